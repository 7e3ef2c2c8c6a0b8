"""The measuring of a benchmark: all methods alternately, over the real backends."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fakes.bench_measurement import EAGER, ORT

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.bench.plan import BenchPlan, make_bench_plan
from fastblt.runtime.measure.bench.timing import measure
from fastblt.runtime.methods import MethodError


@pytest.fixture(scope="module")
def runtimes(tiny_bundle: Path) -> dict[str, BltRuntime]:
    return {
        name: BltRuntime.from_pretrained(tiny_bundle, provider="cpu", backend=name, max_bytes=128, threads=1)
        for name in (ORT, EAGER)
    }


def test_measure_runs_all_alternately_and_outputs_agree(runtimes: dict[str, BltRuntime]) -> None:
    plan = make_bench_plan(ORT, ["s:2", "s:8"], [EAGER, "eager/s:4"])
    told: list[tuple[int, int, str]] = []
    found = measure(
        runtimes, plan, [b"In the", b"\xff", b""], 40, repeats=2, on_progress=lambda *each: told.append(each)
    )
    names = list(map(str, plan.contenders))
    total = 7 * len(names)
    assert [(done, of) for done, of, _ in told] == [(done, total) for done in range(total + 1)]
    seen = [what for _, _, what in told[1:]]
    assert seen[: len(names)] == names
    assert Counter(seen) == dict.fromkeys(names, 7)
    for row in found.rows():
        assert row.identical_to_ar, f"{row.backend}/{row.method}"
        assert row.bytes == 6 * 40
        assert row.bytes_per_s > 0
        assert row.ms_per_byte_p95 >= row.ms_per_byte_p50 > 0
        assert (row.acceptance is None) == (row.method == "ar")
        assert row.nfe_decoder >= row.nfe_patcher > 0


@pytest.mark.parametrize(("prompts", "count", "repeats"), [([], 8, 1), ([b""], 1, 1), ([b""], 8, 0)])
def test_measure_refuses_when_there_is_nothing_to_time(prompts: list[bytes], count: int, repeats: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1, 2 and 1"):
        measure({}, BenchPlan((), ORT, None), prompts, count, repeats)


def test_methods_that_model_cannot_run_are_refused_before_anything_is_measured(
    open_backend_runtime: BltRuntime,
) -> None:
    told: list[object] = []
    plan = make_bench_plan(ORT, ["s:2", "d:4@0.7"])
    with pytest.raises(MethodError, match=r"'d:4@0.7': tiny-encoder has no \[MASK\] row"):
        measure({ORT: open_backend_runtime}, plan, [b""], 8, on_progress=lambda *each: told.append(each))
    assert told == []


@pytest.fixture
def open_backend_runtime(tiny_encoder_bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(tiny_encoder_bundle, provider="cpu", max_bytes=64, threads=1)
