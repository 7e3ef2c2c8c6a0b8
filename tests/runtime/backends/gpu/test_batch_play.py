"""Sequences of a batch on a GPU return and hold what they would alone, whatever they do, in any order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes.batch_twins import Play

from fastblt.runtime.backends.gpu.backend import DeviceBackend

Load = Callable[..., DeviceBackend]


@pytest.mark.parametrize(
    ("form", "slots", "size", "seed", "turns"),
    [
        ("BLT engines", 8, 4, 2, 20),
        ("BLT-D sessions", 8, 4, 2, 20),
        # More sequences than a call takes.
        ("BLT-D engines", 36, 18, 3, 25),
    ],
)
def test_rows_and_caches_are_those_of_sequences_alone(
    load: Load, form: str, slots: int, size: int, seed: int, turns: int
) -> None:
    backend = load(form, slots)
    batch = backend.new_batch(size)
    play = Play(backend, batch, size, seed, tolerance=2e-4)
    play.run(turns)
    batch.close()
    for twins in play.twins:
        twins.compare_states()
