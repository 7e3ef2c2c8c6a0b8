"""Sequences that share calls on a GPU: every text is the one that it is alone, whoever comes and goes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fakes.batches import rounds_of, texts_of, write_alone, write_together

from fastblt.models.tokens import encode
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.session import Session

Load = Callable[..., DeviceBackend]


@pytest.mark.parametrize(
    ("form", "methods"),
    [
        ("BLT-D engines", ["s:8"]),
        ("BLT-D sessions", ["d:4@0.7", "dv:4@one"]),
        ("BLT-D fp16 sessions", ["s:4"]),
        ("BLT engines", ["s:4", "ar"]),
        ("BLT sessions, tables on the host", ["s:4"]),
        ("lowered BLT engines", ["s:4"]),
        ("draft decoder, engines", ["dv:4@one"]),
        ("documents, sessions", ["s:4"]),
    ],
)
def test_texts_that_come_and_go_are_the_same_as_alone(load: Load, form: str, methods: list[str]) -> None:
    texts = texts_of(5)
    alone, together = BltRuntime(load(form, 1)), BltRuntime(load(form, 3))
    with rounds_of(together) as scheduler:
        assert scheduler.shares_calls
        for method in methods:
            expected = write_alone(alone, texts, method)
            assert len(set(expected)) == len(texts)
            assert write_together(together, scheduler, texts, method) == expected
    assert write_alone(together, texts[:1], methods[-1]) == expected[:1]


def test_calls_that_are_padded_to_a_floor_are_the_same_as_alone(load: Load) -> None:
    texts = texts_of(3)
    alone, together = BltRuntime(load("BLT engines", 1, 16)), BltRuntime(load("BLT engines", 3, 16))
    with rounds_of(together) as scheduler:
        assert write_together(together, scheduler, texts, "s:4") == write_alone(alone, texts, "s:4")


@pytest.mark.parametrize("form", ["BLT-D sessions", "BLT engines"])
def test_long_texts_slide_and_grow_and_are_the_same_as_alone(load: Load, form: str) -> None:
    """Windows slide, and caches of the global transformer move apart, while texts grow together."""
    texts = [(encode(np.random.default_rng(seed).bytes(230 + 80 * seed)), 40) for seed in range(3)]
    alone, backend = BltRuntime(load(form, 1)), load(form, 3)
    together, caches = BltRuntime(backend), backend.slots[0].graphs["global"].caches
    with rounds_of(together) as scheduler:
        caches.array.least = 64
        caches.array.set_stride(64)
        assert write_together(together, scheduler, texts, "s:4") == write_alone(alone, texts, "s:4")
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
        assert write_together(together, scheduler, texts, "s:4") == expected
        assert spoiled.sequence.slot.place > 1  # type: ignore[attr-defined]
