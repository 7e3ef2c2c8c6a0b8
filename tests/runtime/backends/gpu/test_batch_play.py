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
