"""Lists the kinds of bundles that run on a GPU, and the methods that each of them is run with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """Describes one kind of bundle.

    Attributes:
        base: model that is exported: ``embedding`` (BLT-D), ``encoder`` (BLT) or ``mixed`` (BLT with a draft decoder).
        options: of `export_bundle`.
        scheme: of quantization; empty: none.
        documents: whether the model has document masks.
    """

    base: str
    options: dict[str, Any] = field(default_factory=dict)
    scheme: str = ""
    documents: bool = False

    @property
    def methods(self) -> list[str]:
        """Return what the model can be decoded with."""
        blocks = ["dv:4@one", "d:4@0.7"] if self.base != "encoder" else []
        return ["ar", "s:8", *blocks, "auto"]

    @property
    def parts(self) -> set[str]:
        """Return the parts that have a graph."""
        return {"patcher", "encoder", "global", "decoder", *(["draft"] if self.base == "mixed" else [])}

    @property
    def tables_on_host(self) -> bool:
        """Whether the hash tables are in a file that the host reads."""
        return self.options.get("hash_tables", "host") == "host"


_LOWERED, _INSIDE = {"lowered": True}, {"hash_tables": "graph"}
KINDS = {
    "fp32": Kind("embedding"),
    "fp16": Kind("embedding", {"dtype": "fp16"}),
    "bf16": Kind("embedding", {"dtype": "bf16"}),
    "fp32-lowered": Kind("embedding", _LOWERED),
    "fp16-lowered": Kind("embedding", {"dtype": "fp16", **_LOWERED}),
    "bf16-lowered": Kind("embedding", {"dtype": "bf16", **_LOWERED}),
    "fp16-w8": Kind("embedding", {"dtype": "fp16"}, "w8"),
    "fp16-w4": Kind("embedding", {"dtype": "fp16"}, "w4"),
    "fp16-tables-inside": Kind("embedding", {"dtype": "fp16", **_INSIDE}),
    "fp16-documents": Kind("embedding", {"dtype": "fp16"}, documents=True),
    "blt-fp32": Kind("encoder"),
    "blt-fp16": Kind("encoder", {"dtype": "fp16"}),
    "blt-bf16": Kind("encoder", {"dtype": "bf16"}),
    "blt-fp16-lowered": Kind("encoder", {"dtype": "fp16", **_LOWERED}),
    "blt-fp16-w4": Kind("encoder", {"dtype": "fp16"}, "w4"),
    "blt-fp16-tables-inside": Kind("encoder", {"dtype": "fp16", **_INSIDE}),
    "blt-fp16-documents": Kind("encoder", {"dtype": "fp16"}, documents=True),
    "mixed-fp16-w4": Kind("mixed", {"dtype": "fp16"}, "w4"),
    "mixed-fp16-lowered": Kind("mixed", {"dtype": "fp16", **_LOWERED}),
}
