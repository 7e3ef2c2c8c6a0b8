"""Texts that arrive and depart at random, more of them than a call takes, are those that they are alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from fakes.batches import rounds_of, texts_of, write_alone

from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.blt_runtime import BltRuntime

Load = Callable[..., DeviceBackend]
_SLOTS, _METHODS = 18, ("s:4", "ar", "s:8")


@pytest.mark.parametrize(("form", "seed"), [("BLT-D sessions", 3), ("BLT engines", 4)])
def test_texts_of_18_slots_are_the_same_as_alone(load: Load, form: str, seed: int) -> None:
    random, texts = np.random.default_rng(seed), texts_of(40, seed)
    expected = write_alone(BltRuntime(load(form, 1)), texts, *_METHODS)
    runtime, methods, waiting = BltRuntime(load(form, _SLOTS)), itertools.cycle(_METHODS), list(range(len(texts)))
    found, departed, most = dict[int, bytes](), 0, 0
    with rounds_of(runtime) as scheduler:
        streams = {}
        while waiting or streams:
            for _ in range(int(random.integers(0, 9))):
                if waiting and len(streams) < _SLOTS:
                    index, method = waiting.pop(0), next(methods)
                    text, size = texts[index]
                    streams[index], found[index] = runtime.stream(text, size, method=method), b""
            most = max(most, len(streams))
            for index, step in zip(list(streams), scheduler.step(list(streams.values())), strict=True):
                assert step.error is None
                if step.chunk is not None:
                    found[index] += step.chunk.data
                if step.chunk is None or not streams[index].open:
                    assert found[index] == expected[index].data
                    streams.pop(index).close()
                elif random.random() < 0.04:
                    assert expected[index].data.startswith(found[index])
                    streams.pop(index).close()
                    departed += 1
    assert (most, departed > 0) == (_SLOTS, True)
