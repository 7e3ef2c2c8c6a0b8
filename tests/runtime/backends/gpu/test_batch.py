"""Sequences that share calls on a GPU: every text is the one that it is alone, whoever comes and goes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fakes.batches import check_same, rounds_of, texts_of, write_alone, write_together

from fastblt.models.tokens import encode
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.session import Session

Load = Callable[..., DeviceBackend]


@pytest.mark.parametrize(
    ("form", "methods"),
    [
        ("BLT-D engines", ["s:8", "ar", "dv:4@one"]),
        ("BLT-D sessions", ["d:4@0.7", "s:4", "ar"]),
        ("BLT-D fp16 sessions", ["s:4"]),
        ("BLT engines", ["s:4", "s:4", "ar"]),
        ("BLT sessions, tables on the host", ["s:4", "ar"]),
        ("lowered BLT engines", ["s:4", "ar"]),
        ("draft decoder, engines", ["dv:4@one", "s:4"]),
        ("documents, sessions", ["s:4", "ar"]),
    ],
)
def test_texts_that_come_and_go_are_the_same_as_alone(load: Load, form: str, methods: list[str]) -> None:
    texts = texts_of(6)
    alone, together = BltRuntime(load(form, 1)), BltRuntime(load(form, 4))
    expected = write_alone(alone, texts, *methods)
    assert len(set(expected)) == len(texts)
    tolerance = 1e-2 if "fp16" in form else 1e-5
    with rounds_of(together) as scheduler:
        assert scheduler.shares_calls
        check_same(write_together(together, scheduler, texts, *methods), expected, tolerance)
    check_same(write_alone(together, texts[:1], *methods), expected[:1], tolerance)


def test_rows_of_calls_with_as_many_rows_are_the_same_bits_as_alone(load: Load) -> None:
    """Padded to a floor, all calls have 16 rows of each sequence; a prompt read anew is always in the same places."""
    texts = texts_of(3)
    alone, together = (BltRuntime(load("BLT engines", count, 16), reuse_prompts=False) for count in (1, 3))
    with rounds_of(together) as scheduler:
        assert write_together(together, scheduler, texts, "s:4", "ar") == write_alone(alone, texts, "s:4", "ar")


@pytest.mark.parametrize("form", ["BLT-D sessions", "BLT engines"])
def test_long_texts_slide_and_grow_and_are_the_same_as_alone(load: Load, form: str) -> None:
    """Windows slide, and caches of the global transformer move apart, while texts grow together."""
    texts = [(encode(np.random.default_rng(seed).bytes(230 + 80 * seed)), 40) for seed in range(3)]
    alone, backend = BltRuntime(load(form, 1)), load(form, 3)
    together, caches = BltRuntime(backend), backend.slots[0].graphs["global"].caches
    with rounds_of(together) as scheduler:
        caches.array.least = 64
        caches.array.set_stride(64)
        check_same(write_together(together, scheduler, texts, "s:4"), write_alone(alone, texts, "s:4"), 1e-5)
        assert 64 < caches.array.stride < caches.slots
        assert all(slot.graphs["decoder"].caches.base > 0 for slot in backend.slots)
    assert caches.array.stride == caches.slots


def test_nan_of_one_text_stays_there(load: Load) -> None:
    """Also where the text's place is another one afterwards, and the next text's is the one that it had."""
    (failed, _), *texts = texts_of(3)
    alone, backend = BltRuntime(load("BLT engines", 1)), load("BLT engines", 4)
    together = BltRuntime(backend)
    expected = write_alone(alone, texts, "s:4")
    with rounds_of(together) as scheduler, Session(backend) as spoiled:
        spoiled.append(failed[1:])
        spoiled.score()
        for array in backend.memory.arrays.values():
            for lane in range(array.lanes):
                size = array.stride * array.row_bytes
                backend.stream.write(np.full(size, 255, np.uint8), (array.address(0, lane), size))
        check_same(write_together(together, scheduler, texts, "s:4"), expected, 1e-5)
        assert spoiled.sequence.slot.place > 1  # type: ignore[attr-defined]
