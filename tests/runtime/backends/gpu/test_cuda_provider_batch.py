"""ONNX Runtime's own CUDA provider over a stub of the driver: what eight texts that grow together ask of it.

As in `test_cuda_provider`, results are scripted; what is recorded, launched, copied and waited for is real.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fakes.cuda_stub.log import Section
from fakes.cuda_stub.measure import drive

pytestmark = pytest.mark.slow

STREAMS, NEW_BYTES = 8, 48
#: Launches and copies that the host may queue for a byte, by model and method: of one text, and of eight together.
BUDGET = {"BLT-D": {"ar": (8.8, 2.8), "s:8": (8.2, 1.8)}, "BLT": {"ar": (13.1, 5.5), "s:8": (12.7, 2.8)}}
#: Recorded graphs that are launched for a byte.
GRAPHS = {"BLT-D": {"ar": (2.6, 0.55), "s:8": (2.1, 0.3)}, "BLT": {"ar": (3.3, 0.55), "s:8": (3.5, 0.5)}}


class Driven(NamedTuple):
    """Holds what one model was asked for with one number of texts."""

    result: dict[str, Any]
    sections: dict[str, Section]

    def per_byte(self, method: str, kind: str) -> float:
        return self.sections[method].launches()[kind] / self.result["methods"][method]["bytes"]


@pytest.fixture(scope="module")
def driven(
    tiny_checkpoint: Path,
    tiny_encoder_checkpoint: Path,
    exported: Callable[..., Path],
    cuda_stub: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, int], Driven]:
    """Every model, with one text and with eight."""
    bundles = {"BLT-D": exported(tiny_checkpoint), "BLT": exported(tiny_encoder_checkpoint, hash_tables="graph")}
    keys = [(name, streams) for name in bundles for streams in (1, STREAMS)]
    plan = [
        {"bundle": str(bundles[name]), "methods": ["ar", "s:8"], "new_bytes": NEW_BYTES, "timed": 0, "streams": streams}
        for name, streams in keys
    ]
    results, sections = drive(plan, tmp_path_factory.mktemp("cuda-provider-batch"), cuda_stub)
    labels = {key: f"{bundles[key[0]]}{f' x {key[1]}' if key[1] > 1 else ''}" for key in keys}
    return {
        key: Driven(result, {s.name: s for s in sections if s.bundle == labels[key]})
        for key, result in zip(keys, results, strict=True)
    }


@pytest.fixture(params=BUDGET)
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_nothing_fails_and_all_is_recorded(driven: dict[tuple[str, int], Driven], model: str) -> None:
    for name, section in driven[model, STREAMS].sections.items():
        assert [event for event in section.events if event.name in ("failed", "forbidden")] == []
        if not name.startswith(("load", "first", "between")):
            assert section.runs
            assert all(run.replays for run in section.runs)
            assert any("batch=8" in run.shape for run in section.runs)


def test_eight_texts_wait_as_often_as_one(driven: dict[tuple[str, int], Driven], model: str) -> None:
    found = driven[model, STREAMS]
    for method, waits in (("ar", 1), ("s:8", 2)):
        assert found.sections[method].waits() / found.result["methods"][method]["rounds"] <= waits


@pytest.mark.parametrize("method", ["ar", "s:8"])
def test_launches_of_a_byte_are_within_the_budget(
    driven: dict[tuple[str, int], Driven], model: str, method: str
) -> None:
    for budget, kind in ((BUDGET, "host"), (GRAPHS, "graphs")):
        for streams, most in zip((1, STREAMS), budget[model][method], strict=True):
            assert driven[model, streams].per_byte(method, kind) <= most, (kind, streams)
