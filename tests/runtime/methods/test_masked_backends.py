"""Texts with a form on every backend, for every kind of bundle, and together: those of masked `ar` there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fakes.masked_texts import check_forms, check_together, json_format
from fakes.uncompiled import Uncompiled

from fastblt.models.blt import Blt
from fastblt.runtime.backends.eager.compiled_backend import CompiledBackend
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime

OpenBackend = Callable[[str, str, int], Backend]
DRAFTS = ("s:4", "lookup:4", "auto", "s:8")
#: An encoder-input BLT has no blocks.
METHODS = {
    "embedding": ("dv:4@one", "dv:4@0.4", *DRAFTS),
    "encoder": DRAFTS,
    "mixed": ("dv:4@one", "dv:3@0.4", *DRAFTS),
}
KINDS = ("eager", "onnxruntime", "tensorrt-rtx", "onnxruntime-cuda")


@pytest.mark.parametrize("rows", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_drafts_write_what_masked_ar_writes(open_backend: OpenBackend, kind: str, rows: str) -> None:
    check_forms(BltRuntime(open_backend(kind, rows, 600)), METHODS[rows])


def test_padded_rows_of_compiled_programs_write_the_same(tiny_mixed_model: Blt) -> None:
    check_forms(BltRuntime(CompiledBackend(tiny_mixed_model, 100, 1, Uncompiled())), METHODS["mixed"])


@pytest.mark.parametrize("methods", [("ar",), ("s:8",), ("s:4", "ar", "dv:4@one", "auto")], ids=",".join)
def test_texts_of_several_forms_share_calls(alone: BltRuntime, methods: tuple[str, ...]) -> None:
    check_together(alone, methods)


RECURSIVE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"kind": {"enum": ["leaf", "tree"]}, "child": {"$ref": "#/$defs/node"}},
            "required": ["kind", "child"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize("method", ["ar", "s:8", "dv:4@one", "dv:4@0.4", "auto"])
def test_a_schema_that_requires_itself_is_cut_where_it_has_a_choice(alone: BltRuntime, method: str) -> None:
    text = alone.generate(b"", 600, method=method, response_format=json_format(RECURSIVE))
    assert (len(text.data), text.finish) == (600, "length")
    assert text.data.count(b'"child":{"kind":"') > 10
    ending = RECURSIVE | {"$defs": {"node": RECURSIVE["$defs"]["node"] | {"required": ["kind"]}}}
    ended = alone.generate(b"", 600, method=method, response_format=json_format(ending), logit_bias={ord("}"): 30.0})
    assert ended.finish == "eos"
    assert json.loads(ended.data).keys() == {"kind"}
