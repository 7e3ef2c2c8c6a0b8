"""Describes and validates what a quantization is asked to do; imports neither ONNX nor ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastblt.calibration.precision import RANGES, ROUNDINGS, CalibrationError, Scheme, parse_scheme
from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.methods.registry import trace_methods

#: Lets the calibration choose.
AUTO = "auto"
#: Fewer samples per graph are not representative.
LEAST_SAMPLES = 16


@dataclass(frozen=True)
class RecordingSetting:
    """Describes a recording.

    Raises:
        CalibrationError: there are too few samples or prompts.
    """

    prompts: tuple[bytes, ...]
    samples: int = 256
    """Calls of each graph that are kept."""
    new_bytes: int = 64
    """Bytes generated after each prompt with each method."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate samples and prompts."""
        if self.samples < LEAST_SAMPLES:
            raise CalibrationError(f"--samples: found {self.samples}, expected at least {LEAST_SAMPLES}")
        if not self.prompts:
            raise CalibrationError("data: found no prompt, expected at least one")

    def methods(self, config: BltConfig) -> tuple[str, ...]:
        """Return the names of the methods that activations are recorded with."""
        return trace_methods(config)

    def facts(self, config: BltConfig) -> dict[str, object]:
        """Return everything that determines the samples, in plain JSON types."""
        digest = hashlib.sha256(b"\0".join(self.prompts)).hexdigest()
        return {
            "methods": list(self.methods(config)),
            "prompts": len(self.prompts),
            "prompts_sha256": digest,
            "samples": self.samples,
            "new_bytes": self.new_bytes,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class CalibrationRequest:
    """Holds the settings of a quantization.

    Raises:
        CalibrationError: a setting is invalid; the message names the option, what was found and what was expected.
    """

    scheme: str
    """One of `fastblt.calibration.precision.SCHEMES`."""
    prompts: tuple[bytes, ...]
    """Text that is continued to record what layers are fed."""
    windows: tuple[Ids, ...]
    """Held-out text that quality is measured on; int64 [1 + bytes] each, beginning with BOS."""
    budget: Mapping[str, float] = field(default_factory=lambda: {"bpb": 0.01})
    """Largest losses, see `fastblt.calibration.quality.parse_budget`."""
    block: int | None = None
    """Inputs of a layer that share a scale, see `fastblt.calibration.precision.parse_scheme`."""
    rounding: str = AUTO
    """How weights are rounded: one of `ROUNDINGS`, or `AUTO`."""
    ranges: str = AUTO
    """How the range of a layer's inputs is chosen: one of `RANGES`, or `AUTO`, the best of them."""
    samples: int = 256
    """Calls of each graph whose inputs are recorded."""
    new_bytes: int = 64
    """Bytes generated after each prompt while inputs are recorded."""
    seed: int = 0
    anchors: int = 8
    """Positions per window after which drafts and blocks are measured."""
    patcher: bool = False
    """Quantize the patcher, too."""
    uniform: bool = False
    """Fail instead of keeping some layers in higher precision."""
    sensitivity: bool = False
    """Measure every group of layers alone even if the budget does not require it."""

    def __post_init__(self) -> None:
        """Validate every setting."""
        parse_scheme(self.scheme, self.block)
        if not self.windows:
            raise CalibrationError("held-out text: found none, expected at least one window")
        for option, value, known in (("rounding", self.rounding, ROUNDINGS), ("range", self.ranges, RANGES)):
            if value not in (AUTO, *known):
                raise CalibrationError(f"--{option}: found {value!r}, expected {AUTO}, {', '.join(known)}")
        if self.needs_traces:
            _ = self.recording

    @property
    def parsed_scheme(self) -> Scheme:
        """Return the scheme that `scheme` and `block` name."""
        return parse_scheme(self.scheme, self.block)

    @property
    def chosen_rounding(self) -> str:
        """Return the rounding to use.

        GPTQ lost least with every integer type (docs/quantization.md); E4M3 is not a grid that it can work on.
        """
        if self.rounding != AUTO:
            return self.rounding
        return "rtn" if self.scheme == "fp8" else "gptq"

    @property
    def tries_ranges(self) -> bool:
        """Decide whether all choices of the ranges of inputs are compared."""
        scheme = self.parsed_scheme
        return scheme.needs_activations and self.ranges == AUTO and scheme.name != "fp8"

    @property
    def needs_traces(self) -> bool:
        """Decide whether the inputs of layers must be recorded."""
        return self.parsed_scheme.needs_activations or self.chosen_rounding == "gptq"

    @property
    def recording(self) -> RecordingSetting:
        """Return what to record."""
        return RecordingSetting(self.prompts, self.samples, self.new_bytes, self.seed)
