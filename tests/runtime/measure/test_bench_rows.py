"""The rows of a benchmark: their figures from runs whose times are known."""

from __future__ import annotations

import dataclasses

import pytest
from fakes.bench_measurement import CONTRACT, EAGER, ORT, measurement, stats

from fastblt.models.parameters import count_parameters
from fastblt.models.presets import preset
from fastblt.runtime.measure.bench.plan import make_bench_plan
from fastblt.runtime.measure.bench.rows import BenchRow, Run, agreement, decode_rate, identical
from fastblt.runtime.measure.replay.backend import ReplayCounts
from fastblt.runtime.methods.replay_profile import ReplayProfile
from fastblt.runtime.sequence.stats import RunStats


def test_row_has_fields_of_contract() -> None:
    assert {field.name for field in dataclasses.fields(BenchRow)} >= CONTRACT


def test_rows_follow_plan_and_leave_prompt_out_of_rate() -> None:
    ar, s8, eager = measurement().rows()
    assert [(row.backend, row.method) for row in (ar, s8, eager)] == [
        (ORT, "ar"),
        (ORT, "s:8"),
        (EAGER, "ar"),
    ]
    assert ar.bytes_per_s == pytest.approx(10.0)
    assert ar.bytes_per_s_with_prompt == pytest.approx(10.0)
    assert s8.bytes_per_s == pytest.approx(20.0)
    assert ar.ms_per_byte_p50 == pytest.approx(100.0)
    assert eager.ms_per_byte_p95 == pytest.approx(400.0)
    assert ar.first_byte_ms == pytest.approx(100.0)


def test_rows_have_totals_of_all_runs() -> None:
    ar, s8, _ = measurement().rows()
    assert (ar.bytes, ar.prompts, ar.prompt_bytes, ar.rounds) == (22, 2, 20, 8)
    assert (ar.nfe_patcher, ar.nfe_encoder, ar.nfe_global, ar.nfe_decoder) == (4, 6, 0, 10)
    assert ar.moved_gb == pytest.approx(1.0)
    assert ar.estimated_gb == pytest.approx(2 * stats(11, 1).estimated_gb(preset("tiny")))
    assert (ar.acceptance, s8.acceptance, s8.drafted, s8.accepted) == (None, 6 / 16, 16, 6)
    assert ar.peak_rss_mb == 12.5


def test_rows_have_ratios_to_eager_and_to_benchs_ar() -> None:
    ar, s8, eager = measurement().rows()
    assert [row.ratio_to_ar for row in (ar, s8, eager)] == pytest.approx([1.0, 2.0, 0.25])
    assert [row.ratio_to_eager_ar for row in (ar, s8, eager)] == pytest.approx([4.0, 8.0, 1.0])


def test_ratio_to_pytorch_is_to_the_faster_baseline() -> None:
    base = measurement()
    assert {row.pytorch_baseline for row in base.rows()} == {EAGER}
    assert [row.ratio_to_pytorch_ar for row in base.rows()] == pytest.approx([4.0, 8.0, 1.0])
    plan = make_bench_plan(ORT, ["ar", "s:8"], ["eager", "eager-compiled"])
    compiled = plan.contenders[-1]
    for seconds, fastest, ratios in ((2.1, "eager-compiled", [2.0, 4.0, 0.5, 1.0]), (8.1, EAGER, [4.0, 8.0, 1.0, 0.5])):
        runs = {**base.runs, compiled: [Run(0, b"x" * 11, stats(11, seconds)), Run(1, b"y" * 11, stats(11, seconds))]}
        devices = {**base.devices, "eager-compiled": "cpu"}
        peaks = dict.fromkeys(runs, 1.0)
        rows = dataclasses.replace(base, plan=plan, runs=runs, devices=devices, peaks=peaks).rows()
        assert {row.pytorch_baseline for row in rows} == {fastest}
        assert [row.ratio_to_pytorch_ar for row in rows] == pytest.approx(ratios)
        assert [row.ratio_to_eager_ar for row in rows[:3]] == pytest.approx([4.0, 8.0, 1.0])


def test_ratio_to_eager_is_null_when_eager_is_not_measured() -> None:
    base = measurement()
    plan = make_bench_plan(ORT, ["s:8"])
    alone = dataclasses.replace(base, plan=plan, runs={c: base.runs[c] for c in plan.contenders})
    assert [row.ratio_to_eager_ar for row in alone.rows()] == [None, None]
    assert [(row.pytorch_baseline, row.ratio_to_pytorch_ar) for row in alone.rows()] == [(None, None)] * 2


def test_rows_tell_whose_output_differs() -> None:
    assert [row.identical_to_ar for row in measurement().rows()] == [True, False, True]


def test_rows_have_calls_and_estimate_for_512_bytes() -> None:
    base = measurement()
    # Twice 11 bytes; each run calls the decoder 5 times, the encoder 3 times, the global transformer never.
    ar, s8, _ = base.rows()
    assert ar.nfe_decoder_per_512 == pytest.approx(2 * 5 * 512 / 22)
    assert ar.nfe_encoder_per_512 == pytest.approx(2 * 3 * 512 / 22)
    assert ar.nfe_global_per_512 == 0
    parts = count_parameters(preset("tiny"))
    assert s8.estimated_gb_per_512 == pytest.approx(2 * (10 * parts.decoder + 6 * parts.encoder) / 1e9 * 512 / 22)


def test_savings_are_per_byte_and_against_own_ar() -> None:
    base = measurement()
    s8 = base.plan.contenders[1]
    half = stats(21, 1.1)  # 21 bytes for what cost 11; 20 later bytes in 1.0 s instead of 10
    runs = {**base.runs, s8: [Run(0, b"x" * 21, half)]}
    rows = dataclasses.replace(base, runs=runs).rows()
    assert [row.estimated_saving for row in rows] == pytest.approx([0.0, 1 - 11 / 21, 0.0])
    assert [row.measured_saving for row in rows] == pytest.approx([0.0, 0.5, 0.0])
    slower = dataclasses.replace(base, runs={**base.runs, s8: [Run(0, b"x" * 11, stats(11, 2.1))]}).rows()[1]
    assert slower.measured_saving == pytest.approx(-1.0)
    untimed = dataclasses.replace(base, runs={**base.runs, s8: [Run(0, b"x", RunStats(new_bytes=1))]}).rows()[1]
    assert untimed.measured_saving is None


def test_limit_is_time_of_moved_bytes_and_none_without_bandwidth_or_on_gpu() -> None:
    ar = dataclasses.replace(measurement(), memory_gb_per_s=20.0).rows()[0]
    # 1 GB at 20 GB/s for 22 bytes; measured 2.2 s, prompt included.
    assert ar.limit_us_per_byte == pytest.approx(1e6 * 0.05 / 22)
    assert ar.times_limit == pytest.approx(44.0)
    assert ar.limit_gb_per_s == 20.0
    gpu = dataclasses.replace(measurement(), memory_gb_per_s=20.0, devices={ORT: "cuda", EAGER: "cpu"}).rows()
    for row in (measurement().rows()[0], gpu[0]):
        assert (row.limit_us_per_byte, row.times_limit, row.limit_gb_per_s) == (None, None, None)


def test_agreement_is_mean_part_before_first_difference() -> None:
    reference = [Run(0, b"abcd", RunStats()), Run(1, b"wxyz", RunStats()), Run(0, b"zzzz", RunStats())]
    assert agreement([Run(0, b"abxd", RunStats()), Run(1, b"wxyz12", RunStats())], reference) == pytest.approx(0.75)
    assert agreement([Run(0, b"ab", RunStats())], reference) == pytest.approx(0.5)
    assert agreement([Run(1, b"", RunStats())], reference) == 0.0
    assert agreement([Run(0, b"", RunStats())], [Run(0, b"", RunStats())]) == 1.0
    assert agreement([Run(0, b"a", RunStats())], [Run(0, b"", RunStats())]) == 0.0
    assert [row.agreement_with_ar for row in measurement().rows()] == [1.0, 0.5, 1.0]


def test_replay_row_has_rates_and_nothing_about_output() -> None:
    base = measurement()
    profile = ReplayProfile(0.9, 0.8, 0.5, 2.05, acceptance=0.6, steps=3.0)
    s8 = base.plan.contenders[1]
    shown = [dataclasses.replace(run, replay=ReplayCounts(4, 10, 6, 15)) for run in base.runs[s8]]
    profiles = dict.fromkeys(base.plan.contenders, profile)
    row = dataclasses.replace(base, runs={**base.runs, s8: shown}, profiles=profiles).rows()[1]
    assert row.replay == {
        "wanted_acceptance": 0.6, "acceptance": 6 / 16, "wanted_patch": 2.05, "patch": 2.5, "wanted_steps": 3.0,
        "steps": 2.5,
    }  # fmt: skip
    assert row.identical_to_ar is None
    assert row.agreement_with_ar is None
    assert base.rows()[1].replay is None


def test_identical_compares_every_repeat_with_first_run_of_prompt() -> None:
    reference = [Run(0, b"a", RunStats()), Run(1, b"b", RunStats()), Run(0, b"other", RunStats())]
    assert identical([Run(1, b"b", RunStats()), Run(0, b"a", RunStats())], reference)
    assert not identical(reference, reference)


def test_rate_is_zero_when_nothing_follows_first_byte() -> None:
    assert decode_rate([Run(0, b"a", stats(2, 0.1)), Run(0, b"", RunStats())]) == 0.0
    assert decode_rate([]) == 0.0
