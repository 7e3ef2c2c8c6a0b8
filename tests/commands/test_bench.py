import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.bench_tables import bench_tables
from fastblt.models.parameters import count_parameters
from fastblt.models.presets import preset
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import device_info, memory_bandwidth, peak_rss_mb
from fastblt.runtime.measure.bench.plan import BenchPlan, Contender, make_bench_plan
from fastblt.runtime.measure.bench.rows import BenchRow, Measurement, Run, agreement, decode_rate, identical
from fastblt.runtime.measure.bench.run import BenchReport, BenchRequest
from fastblt.runtime.measure.bench.timing import measure, rotated
from fastblt.runtime.measure.replay.backend import ReplayCounts
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.methods import MethodError
from fastblt.runtime.methods.replay_profile import ReplayProfile
from fastblt.runtime.sequence.stats import RunStats

ORT, EAGER = "onnxruntime", "eager"

#: What scripts read; removing or renaming one of these breaks them.
CONTRACT = {
    "backend", "method", "bytes_per_s", "ms_per_byte_p50", "ms_per_byte_p95", "first_byte_ms", "nfe_patcher",
    "nfe_encoder", "nfe_global", "nfe_decoder", "bytes", "acceptance", "identical_to_ar", "estimated_gb",
    "moved_gb", "peak_rss_mb", "ratio_to_eager_ar", "ratio_to_ar", "lossless", "agreement_with_ar",
    "nfe_encoder_per_512", "nfe_global_per_512", "nfe_decoder_per_512", "estimated_gb_per_512", "estimated_saving",
    "measured_saving", "limit_us_per_byte", "limit_gb_per_s", "times_limit", "replay",
}  # fmt: skip


def stats(new_bytes: int, seconds: float, *, drafted: int = 0, accepted: int = 0) -> RunStats:
    """A run whose first byte takes 0.1 s and whose other bytes take the rest in equal parts."""
    later = new_bytes - 1
    return RunStats(
        nfe=Counter(patcher=2, encoder=3, decoder=5),
        moved_bytes=500_000_000,
        rounds=4,
        drafted=drafted,
        accepted=accepted,
        prompt_bytes=10,
        new_bytes=new_bytes,
        first_byte_seconds=0.1,
        total_seconds=seconds,
        byte_seconds=[(seconds - 0.1) / later] * later,
    )


def measurement() -> Measurement:
    plan = make_bench_plan(ORT, ["ar", "s:8"], ["eager"])
    ar, s8, eager = plan.contenders[0], plan.contenders[1], plan.contenders[2]
    runs = {
        ar: [Run(0, b"x" * 11, stats(11, 1.1)), Run(1, b"y" * 11, stats(11, 1.1))],
        s8: [
            Run(0, b"x" * 11, stats(11, 0.6, drafted=8, accepted=6)),
            Run(1, b"z" * 11, stats(11, 0.6, drafted=8)),
        ],
        eager: [Run(0, b"x" * 11, stats(11, 4.1)), Run(1, b"y" * 11, stats(11, 4.1))],
    }
    devices = {ORT: "cpu", EAGER: "cpu"}
    return Measurement(plan, [b"p" * 10] * 2, 11, 1, preset("tiny"), devices, runs, dict.fromkeys(runs, 12.5))


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


def test_ratio_to_eager_is_null_when_eager_is_not_measured() -> None:
    base = measurement()
    plan = make_bench_plan(ORT, ["s:8"])
    alone = dataclasses.replace(base, plan=plan, runs={c: base.runs[c] for c in plan.contenders})
    assert [row.ratio_to_eager_ar for row in alone.rows()] == [None, None]


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


def test_bandwidth_is_of_all_threads() -> None:
    assert 0.1 < memory_bandwidth(8) < 10_000
    assert 0.1 < memory_bandwidth(8, threads=3) < 10_000


def test_plan_measures_ar_of_every_backend_first_and_once() -> None:
    plan = make_bench_plan(ORT, ["s:4", "ar", "s:4"], ["eager/s:2", "eager"])
    assert [str(c) for c in plan.contenders] == ["onnxruntime/ar", "onnxruntime/s:4", "eager/ar", "eager/s:2"]
    assert (plan.backend, plan.baseline) == (ORT, EAGER)


def test_reference_is_own_ar_and_for_ar_the_other_backends() -> None:
    plan = make_bench_plan(ORT, ["s:4"], ["eager", "third"])
    ar, eager = Contender(ORT, "ar"), Contender(EAGER, "ar")
    assert plan.reference(Contender(ORT, "s:4")) == ar
    assert plan.reference(Contender(EAGER, "s:4")) == eager
    assert plan.reference(ar) == eager
    assert plan.reference(eager) == plan.reference(Contender("third", "ar")) == ar
    assert make_bench_plan(ORT, []).reference(ar) == ar


def test_plan_refuses_unknown_method() -> None:
    with pytest.raises(MethodError, match="'x'"):
        make_bench_plan(ORT, ["x"])


def test_order_rotates_so_that_each_is_first_once() -> None:
    plan = make_bench_plan(ORT, ["s:4"], ["eager"])
    orders = [rotated(plan.contenders, turn) for turn in range(3)]
    assert [order[0] for order in orders] == list(plan.contenders)
    assert all(sorted(map(str, order)) == sorted(map(str, plan.contenders)) for order in orders)


def test_identical_compares_every_repeat_with_first_run_of_prompt() -> None:
    reference = [Run(0, b"a", RunStats()), Run(1, b"b", RunStats()), Run(0, b"other", RunStats())]
    assert identical([Run(1, b"b", RunStats()), Run(0, b"a", RunStats())], reference)
    assert not identical(reference, reference)


def test_rate_is_zero_when_nothing_follows_first_byte() -> None:
    assert decode_rate([Run(0, b"a", stats(2, 0.1)), Run(0, b"", RunStats())]) == 0.0
    assert decode_rate([]) == 0.0


def report_of(rows: list[BenchRow]) -> BenchReport:
    return BenchReport(BenchRequest(), measurement().plan, "tiny", "fp32", device_info(1), rows)


def test_report_is_whole_and_replaces_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    for _ in range(2):
        write_json(path, report_of(measurement().rows()).to_dict())
    report = json.loads(path.read_text(encoding="utf-8"))
    assert list(report) == ["device", "replay", "rows"]
    assert report["replay"] is None
    assert all(row.keys() >= CONTRACT for row in report["rows"])
    assert [entry.name for entry in path.parent.iterdir()] == ["bench.json"]


def test_report_leaves_earlier_one_when_it_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("earlier", encoding="utf-8")
    bad = dataclasses.replace(measurement().rows()[0], bytes_per_s=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, report_of([bad]).to_dict())
    assert path.read_text(encoding="utf-8") == "earlier"


def test_device_info_names_machine_and_versions() -> None:
    info = device_info(3)
    assert info["cpu"]
    assert info["cores"] >= info["usable_cores"] >= 1
    assert info["threads"] == 3
    assert {"fastblt", "numpy"} <= info["versions"].keys()
    assert json.loads(json.dumps(info)) == info


def test_peak_memory_is_that_of_a_python_process() -> None:
    peak = peak_rss_mb()
    assert peak is None or 5 < peak < 1e6


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


def bench(bundle: Path, *options: str) -> str:
    arguments = ["bench", str(bundle), "--provider", "cpu", "--threads", "1", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


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


def table_rows(text: str) -> list[list[str]]:
    """Words of the lines that are rows of a table, without the backend."""
    return [line.split()[1:] for line in text.splitlines() if line.startswith((ORT, EAGER))]


def test_command_prints_tables_and_writes_json(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    options = ("--methods", "ar,s:4,d:4@one", "--against", "eager", "--prompts", "2", "--max-new-bytes", "24")
    text = bench(tiny_bundle, *options, "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = report["rows"]
    assert [(row["backend"], row["method"]) for row in rows] == [
        (ORT, "ar"),
        (ORT, "s:4"),
        (ORT, "d:4@one"),
        (EAGER, "ar"),
    ]
    assert [row["lossless"] for row in rows] == [True, True, False, True]
    assert all(row["identical_to_ar"] for row in rows if row["lossless"])
    assert report["replay"] is None
    assert all(row["replay"] is None for row in rows)
    assert all(row["times_limit"] > 0 and row["limit_gb_per_s"] > 0 for row in rows)
    lines = table_rows(text)
    speed, cost = lines[:4], lines[4:]
    assert [line[0] for line in speed] == [line[0] for line in cost] == ["ar", "s:4", "d:4@one", "ar"]
    assert f"{rows[1]['bytes_per_s']:.1f}" in speed[1]
    assert ["yes" in line for line in speed] == [True, True, False, True]
    assert "NO" not in text
    assert f"{rows[2]['nfe_decoder_per_512'] / 512:.2f}" == cost[2][1]
    assert cost[1][4:8] == [
        f"{100 * rows[1]['estimated_saving']:.0f}",
        "%",
        f"{100 * rows[1]['measured_saving']:.0f}",
        "%",
    ]
    (described,) = [line for line in text.splitlines() if line.startswith("tiny (fp32) on cpu: ")]
    assert "held-out prompts: 2 of 64 bytes; 48 new bytes per row" in described
    assert "memory" not in text
    assert "replay" not in text.lower()


def test_command_replays(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    given = "acceptance=0.8,patch=3,d:4@0.7/steps=1.5"
    options = ("--methods", "s:4,d:4@0.7,dv:4@one", "--prompts", "2", "--max-new-bytes", "150", "--replay", given)
    text = bench(tiny_bundle, *options, "--json", str(path))
    assert text.startswith(f"REPLAY ({given}): ")
    assert text.splitlines()[-1].endswith("replay.")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["replay"] == given
    rows = {row["method"]: row for row in report["rows"]}
    for row in rows.values():
        assert row["identical_to_ar"] is None
        assert row["replay"]["wanted_patch"] == 3
        assert row["replay"]["patch"] == pytest.approx(3, rel=0.05)
    assert rows["s:4"]["replay"]["acceptance"] == rows["s:4"]["acceptance"] == pytest.approx(0.8, abs=0.05)
    assert rows["dv:4@one"]["replay"]["acceptance"] == pytest.approx(0.8, abs=0.05)
    assert rows["d:4@0.7"]["replay"]["steps"] == pytest.approx(1.5, abs=0.05)
    assert rows["d:4@0.7"]["replay"]["wanted_acceptance"] is None
    rates = {line[0]: line[1:] for line in table_rows(text)[8:]}
    assert rates["s:4"][:2] == ["80.00", "%"]
    assert "yes" not in text
    assert "NO" not in text


def test_command_refuses_replay_that_lacks_a_figure(tiny_bundle: Path) -> None:
    arguments = ["bench", str(tiny_bundle), "--methods", "s:4", "--replay", "patch=2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --replay: found no acceptance for s:4, expected ")
    assert len(result.stderr.splitlines()) == 1


def test_command_takes_prompts_longer_than_default_capacity(tiny_bundle: Path) -> None:
    text = bench(tiny_bundle, "--methods", "ar", "--prompts", "1", "--prompt-bytes", "5000", "--max-new-bytes", "2")
    assert "held-out prompts: 1 of 5000 bytes" in text


def test_longest_names_and_largest_figures_fit() -> None:
    base = measurement()
    rows = [
        dataclasses.replace(
            row, backend="tensorrt-rtx", method="dv:16@eb1.5+partial", bytes_per_s=123456.7, ratio_to_ar=12.34,
            acceptance=1.0, replay=dict.fromkeys(("wanted_acceptance", "acceptance", "wanted_steps", "steps"), 1.0),
        )
        for row in base.rows()
    ]  # fmt: skip
    report = BenchReport(BenchRequest(), base.plan, "tiny", "fp32", device_info(1), rows)
    assert len(list(bench_tables(report))) == 3  # the tables are measured at the end of the test
