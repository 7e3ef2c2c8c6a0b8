"""ONNX Runtime's own CUDA provider and our GPU backend, unmodified, over a stub of the driver: what is asked of it.

Results are scripted (`fakes.cuda_stub.scripted_onnxruntime`), for kernels do nothing; which operators run where, what
is recorded, copied and waited for is real. One process runs all kinds of bundles; the tests read its log.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fakes.cuda_stub.kinds import KINDS, Kind
from fakes.cuda_stub.log import GraphRun, Section
from fakes.cuda_stub.measure import drive, graph_kernels
from shared_files import SharedFiles

from fastblt.calibration.bundle_quantizer import Quantizer, Recipe, layers_of
from fastblt.calibration.precision import parse_scheme
from fastblt.calibration.sensitivity import assignment, groups_of
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig
from fastblt.runtime.bundle.manifest import load_manifest

pytestmark = pytest.mark.slow

NEW_BYTES = 48
#: Kernels that one recorded graph of each part may have, by kind. A change that needs fewer lowers the number.
BUDGET: dict[str, dict[str, int]] = json.loads(Path(__file__).with_name("kernel_budget.json").read_text())
#: What may happen while a session runs; copies have to be on the device.
_ALLOWED = {
    *("kernel", "cudaMemcpyAsync", "cudaMemcpy2DAsync", "cudaMemsetAsync", "cudaEventRecord", "cudaStreamWaitEvent"),
    *("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"),
}
#: What may happen besides when it runs with a shape for the first time: its memory grows, it waits before it records.
_ALLOWED_ONCE = {"cudaMalloc", "cudaHostAlloc", "cudaStreamSynchronize"}


class Driven(NamedTuple):
    """Holds the log of one bundle, and what the driver process counted."""

    kind: Kind
    result: dict[str, Any]
    sections: list[Section]

    def runs(self) -> Iterator[GraphRun]:
        for section in self.sections:
            yield from section.runs

    def method(self, name: str) -> Section:
        return next(section for section in self.sections if section.name == name)


@pytest.fixture(scope="module")
def bundles(
    tiny_config: BltConfig,
    tiny_encoder_config: BltConfig,
    tiny_mixed_config: BltConfig,
    make_model: Callable[..., Blt],
    shared_files: SharedFiles,
    exported: Callable[..., Path],
) -> dict[str, Path]:
    """A bundle of every kind."""

    def checkpoint(kind: Kind) -> Path:
        config = {"embedding": tiny_config, "encoder": tiny_encoder_config, "mixed": tiny_mixed_config}[kind.base]
        name = f"{config.name}{'-documents' * kind.documents}"
        model = make_model(dataclasses.replace(config, document_masks=kind.documents))
        return shared_files.make(name, lambda folder: save_checkpoint(folder, model))

    def bundle(kind: Kind) -> Path:
        whole = exported(checkpoint(kind), **kind.options)
        if not kind.scheme:
            return whole
        return shared_files.make(f"{whole.name}-{kind.scheme}", lambda folder: quantize(whole, folder, kind.scheme))

    return {name: bundle(kind) for name, kind in KINDS.items()}


def quantize(bundle: Path, out: Path, name: str) -> None:
    """Write a bundle with every weight in a scheme, rounded to the nearest."""
    scheme = parse_scheme(name, None)
    groups = groups_of(
        list(layers_of(bundle, [part for part in load_manifest(bundle).graphs if part != "patcher"])), scheme
    )
    out.mkdir()
    Quantizer(bundle, bundle, None, Recipe()).write(out, assignment([(g, scheme.precision) for g in groups]))


@pytest.fixture(scope="module")
def all_driven(
    bundles: dict[str, Path], cuda_stub: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Driven]:
    """Every bundle, run with every method."""
    plan = [
        {"bundle": str(bundles[name]), "methods": kind.methods, "new_bytes": NEW_BYTES, "timed": 0}
        for name, kind in KINDS.items()
    ]
    results, sections = drive(plan, tmp_path_factory.mktemp("cuda-provider"), cuda_stub)
    found = {}
    for (name, kind), result in zip(KINDS.items(), results, strict=True):
        found[name] = Driven(kind, result, [s for s in sections if s.bundle == str(bundles[name])])
    return found


@pytest.fixture(params=KINDS)
def driven(request: pytest.FixtureRequest, all_driven: dict[str, Driven]) -> Driven:
    return all_driven[request.param]


def test_runs_on_cuda_and_generates(driven: Driven) -> None:
    assert driven.result["providers"][0] == "CUDAExecutionProvider"
    assert list(driven.result["methods"]) == driven.kind.methods
    for generated in driven.result["methods"].values():
        assert generated["bytes"] >= NEW_BYTES - 8


def test_nothing_fails_and_nothing_forbidden_is_asked_of_a_capture(driven: Driven) -> None:
    events = [event for section in driven.sections for event in section.events]
    assert [event for event in events if event.name in ("failed", "forbidden")] == []


def test_no_graph_moves_anything_between_host_and_device(driven: Driven) -> None:
    """A node that ONNX Runtime leaves to the CPU would need a copy and a wait."""
    for run in driven.runs():
        names = {event.name for event in run.events}
        assert names <= _ALLOWED | (_ALLOWED_ONCE if run.captures else set()), (run.part, run.shape)
        assert {event.fields.get("kind", "D2D") for event in run.events} == {"D2D"}


def test_every_graph_is_recorded_when_first_run_and_launched_after(driven: Driven) -> None:
    """ONNX Runtime runs a graph twice in its first call: once to allocate, once to record."""
    known: dict[tuple[str, str], int] = {}
    for run in driven.runs():
        key = (run.part, run.shape)
        if key in known:
            assert run.replays, key
        else:
            assert run.captures, key
            names = [event.name for event in run.events]
            begins = names.index("cudaStreamBeginCapture")
            assert "kernel" in names[:begins], "it is run before it is recorded"
            assert names[-1] == "cudaGraphLaunch"
            assert len(run.recorded) == int(run.events[-1].fields["kernels"])
        known[key] = known.get(key, 0) + 1
    assert {part for part, _ in known} == driven.kind.parts
    assert max(known.values()) > 10


def test_caches_are_updated_in_place(driven: Driven) -> None:
    """No call copies a cache; lowered graphs have their new rows copied to their places, those alone."""
    caches, updated = driven.result["caches"], set()
    assert set(caches) == driven.kind.parts
    for section in driven.sections[1:]:
        for event in section.events:
            for part, (address, size, lane) in caches.items():
                inside = [address <= event.number(end) < address + size for end in ("to", "from")]
                if event.name.startswith("cudaMemcpy") and any(inside):
                    assert driven.kind.options.get("lowered"), event.text
                    assert inside == [True, False], event.text
                    assert event.number("bytes") // event.number("rows") <= lane // 2, event.text
                    updated.add(part)
    assert updated == (set(caches) if driven.kind.options.get("lowered") else set())


def test_copies_of_the_host_use_page_locked_memory(driven: Driven) -> None:
    """Those from other memory would make the host wait."""
    copies = [e for section in driven.sections[1:] for e in section.events if e.name in ("cudaMemcpyAsync",)]
    assert copies
    assert [event.text for event in copies if event.number("pageable")] == []


def test_waits_are_those_of_the_documents(driven: Driven) -> None:
    kind, found = driven.kind, {}
    for name in kind.methods:
        # What follows the prompt has no entropies yet that were asked for ahead.
        found[name] = (driven.method(name).waits() - 1) / driven.result["methods"][name]["rounds"]
    assert found["ar"] <= 1
    # One for the draft and its entropies, one or two for the verification; tables on the host need one a byte.
    chained = kind.base == "embedding" or not kind.tables_on_host
    assert found["s:8"] <= (2 if chained else 10)
    if kind.base != "encoder":
        assert found["dv:4@one"] <= 3
        # The bytes before a block are rows of another graph where there is a draft decoder.
        assert found["d:4@0.7"] <= (5 if kind.base == "mixed" else 4)


def test_only_the_stream_is_waited_for(driven: Driven) -> None:
    """In a generation whose graphs have all been recorded, nothing allocates and nothing else waits."""
    for name in driven.kind.methods[:-1]:
        names = {event.name for event in driven.method(name).events}
        assert names <= {"cudaMemcpyAsync", "cudaMemcpy2DAsync", "cudaGraphLaunch", "cudaStreamSynchronize"}


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_graphs_have_no_more_kernels_than_the_budget(kind: str, all_driven: dict[str, Driven]) -> None:
    found = {part: len(names) for part, names in graph_kernels(all_driven[kind].sections).items()}
    budget = BUDGET.get(kind, {})
    assert set(found) == set(budget), f'add to kernel_budget.json: "{kind}": {json.dumps(found)}'
    more = {part: (number, budget[part]) for part, number in found.items() if number > budget[part]}
    assert more == {}, f"kernels and budget by part; found in all: {json.dumps(found)}"
