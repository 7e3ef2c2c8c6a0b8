"""Bytes of texts that grow together are those of texts alone, whoever comes and goes: every kind of graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.arrivals import arrivals, check_arrivals
from fakes.watched_batch import WatchedBackend
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime

METHODS = ("ar", "s:4", "s:7", "dv:4@one", "dv:3@0.3+partial", "auto", "d:4@0.7", "lookup:6")
PLAIN = ("ar", "s:4", "s:7+partial", "auto")
#: Fixture of the checkpoint, options of the export, methods.
FORMS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "BLT-D": ("tiny_checkpoint", {"verify": True}, METHODS),
    "BLT-D fp16": ("tiny_checkpoint", {"dtype": "fp16"}, METHODS),
    "BLT": ("tiny_encoder_checkpoint", {"verify": True}, PLAIN),
    "lowered BLT, tables inside": ("tiny_encoder_checkpoint", {"lowered": True, "hash_tables": "graph"}, PLAIN),
    "BLT with draft decoder": ("tiny_mixed_checkpoint", {"verify": True}, METHODS),
}


def load(bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(bundle, max_bytes=600, threads=1, sequences=24, reuse_prompts=False)


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> tuple[BltRuntime, tuple[str, ...]]:
    fixture, options, methods = FORMS[request.param]
    return load(exported(request.getfixturevalue(fixture), **options)), methods


@examples(4)
@given(st.data())
def test_bytes_are_those_of_texts_alone(form: tuple[BltRuntime, tuple[str, ...]], data: st.DataObject) -> None:
    runtime, methods = form
    check_arrivals(runtime, runtime, data.draw(arrivals(methods)))


@examples(6)
@given(st.data())
def test_batches_are_asked_what_they_can_answer(alone: BltRuntime, data: st.DataObject) -> None:
    """A watched batch refuses calls that are not of one kind, or twice of a sequence."""
    together = BltRuntime(cast("Backend", WatchedBackend(alone.backend)))
    check_arrivals(together, alone, data.draw(arrivals(METHODS)))
