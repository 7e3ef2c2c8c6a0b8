"""Sequences of a batch on a GPU return and hold what they would alone, whatever they do, in any order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes.batch_twins import Play

from fastblt.runtime.backends.gpu.backend import DeviceBackend

Load = Callable[..., DeviceBackend]


@pytest.mark.parametrize("form", ["BLT engines", "BLT-D sessions"])
def test_rows_and_caches_are_those_of_sequences_alone(load: Load, form: str) -> None:
    backend = load(form, 8)
    batch = backend.new_batch(4)
    play = Play(backend, batch, 4, seed=2, tolerance=2e-4)
    play.run(20)
    batch.close()
    for twins in play.twins:
        twins.compare_states()


def test_more_sequences_than_a_call_takes_come_and_go(load: Load) -> None:
    backend = load("BLT-D engines", 36)
    batch = backend.new_batch(18)
    play = Play(backend, batch, 18, seed=3, tolerance=2e-4)
    play.run(25)
    batch.close()
    for twins in play.twins:
        twins.compare_states()
