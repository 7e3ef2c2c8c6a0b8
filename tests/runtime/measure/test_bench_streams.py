"""Benchmarks of texts that grow at the same time: what is counted, predicted and compared."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.watched_batch import WatchedBackend

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Generation
from fastblt.runtime.measure.bench.plan import Contender, make_bench_plan
from fastblt.runtime.measure.bench.streams.growth import Growth, Work, grow, grow_in_peer
from fastblt.runtime.measure.bench.streams.prediction import expected_most, predicted_moved_bytes
from fastblt.runtime.measure.bench.streams.rows import Compared, StreamsRow, figures
from fastblt.runtime.measure.bench.streams.run import check_streams, weights_of
from fastblt.runtime.measure.bench.streams.timing import StreamsMeasurement
from fastblt.runtime.measure.peers import GeneratedBatch, Generator
from fastblt.runtime.measure.replay.rates import ReplayRates
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.stats import RunStats

PROMPTS = [bytes([65 + i]) * 40 for i in range(4)]


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=200, threads=1, sequences=24, reuse_prompts=False)


def work(seconds: float, new_bytes: int, rounds: int, moved: float, **calls: tuple[int, float]) -> Work:
    """Counters; of each part its calls, and those of its graph."""
    return Work(
        seconds,
        new_bytes,
        rounds,
        moved,
        {part: alone for part, (alone, _) in calls.items()},
        {part: together for part, (_, together) in calls.items()},
        8,
        6,
    )


def weights(runtime: BltRuntime) -> dict[str, float]:
    manifest = cast("OnnxRuntimeBackend", runtime.backend).manifest
    return {part: float(spec.weight_bytes) for part, spec in manifest.graphs.items()}


def test_calls_of_a_round_are_shared_or_happen_if_any_text_makes_them() -> None:
    assert expected_most({9: 10}, 10, 8) == 9
    assert expected_most({}, 10, 8) == 0
    assert expected_most({1: 1}, 4, 8) == pytest.approx(1 - 0.75**8)
    assert expected_most({1: 2, 2: 2}, 4, 2) == pytest.approx(1.75)
    assert expected_most({1: 3}, 10, 1) == pytest.approx(0.3)


def test_the_longest_draft_of_a_round_is_expected() -> None:
    """Drafts of 1 or 9 bytes, as often: of two texts one drafts 9 in three of four rounds; on average each drafts 5."""
    assert expected_most({1: 5, 9: 5}, 10, 2) == pytest.approx(0.25 * 1 + 0.75 * 9)
    assert expected_most({1: 5, 9: 5}, 10, 1) == pytest.approx(5)
    assert expected_most({4: 5}, 10, 2) == pytest.approx(0.75 * 4), "half of the rounds are without any call"


def test_bytes_are_predicted_by_weights_once_a_call_and_caches_of_each_text() -> None:
    # Ten rounds of each of four texts: weights 100 and 1000, caches 60 in all.
    in_turn = work(1, 80, 40, 100 * 40 + 1000 * 20 + 60, patcher=(40, 40), **{"global": (20, 20)})
    rounds = {"patcher": {1: 40}, "global": {1: 20}}
    found = predicted_moved_bytes(in_turn, rounds, 4, {"patcher": 100.0, "global": 1000.0})
    assert found == pytest.approx(100 * 10 + 1000 * 10 * (1 - 0.5**4) + 60)
    nothing = work(0, 0, 0, 0)
    assert predicted_moved_bytes(nothing, {}, 4, {}) == 0


def test_weights_are_those_of_the_manifest(runtime: BltRuntime, tiny_bundle: Path) -> None:
    """On a GPU a call of no rows reads caches, too: no call says what the weights are."""
    eager = BltRuntime.from_pretrained(tiny_bundle, backend="eager", max_bytes=64)
    assert weights_of(tiny_bundle, {"onnxruntime": runtime, "eager": eager}) == weights(runtime)
    assert weights_of(tiny_bundle / "none", {"eager": eager}) == {}


def growth(rate: float, calls: float, moved: float, text: bytes = b"abc") -> Growth:
    """Two texts that grew by 100 bytes while both did, in 20 rounds."""
    steady = work(100 / rate, 100, 20, moved, decoder=(20, calls))
    whole = work(100 / rate + 1, 120, 24, moved + 5, decoder=(24, calls + 4))
    return Growth([text, b"x"], whole, steady, [0.5, 0.7], [0.01] * 9 + [0.03], {"decoder": Counter({1: 20})})


def test_figures_are_those_of_the_time_in_which_all_texts_grow() -> None:
    found = figures([growth(200, 10, 700), growth(200, 10, 700)])
    assert (found.bytes, found.bytes_per_s) == (200, pytest.approx(200))
    assert found.bytes_per_s_with_prompt == pytest.approx(240 / 3)
    assert (found.ms_per_byte_p50, found.first_byte_ms) == (pytest.approx(10), pytest.approx(600))
    assert 10 < found.ms_per_byte_p95 <= 30
    assert found.part_calls_per_byte == {"decoder": pytest.approx(0.1)}
    assert (found.calls_per_byte, found.moved_bytes_per_byte) == (pytest.approx(0.1), pytest.approx(7))


def compared(together: list[Growth], in_turn: list[Growth], **changes: Any) -> StreamsRow:
    wanted: dict[str, Any] = {
        "contender": Contender("onnxruntime", "s:4"), "device": "cpu", "streams": 2, "calls_shared": True,
        "alone_because": None, "together": together, "in_turn": in_turn, "weights": {"decoder": 50.0}, "profile": None,
    }  # fmt: skip
    return Compared(**(wanted | changes)).row(400.0)


def test_a_row_compares_with_texts_in_turn_with_the_prediction_and_with_a_peer() -> None:
    row = compared([growth(200, 10, 700)], [growth(100, 20, 1100)])
    assert (row.times_in_turn, row.times_peer, row.acceptance) == (pytest.approx(2), pytest.approx(0.5), 0.75)
    # In turn 20 calls of 50 bytes, and caches of 100; together ten calls.
    assert row.predicted_moved_bytes_per_byte == pytest.approx(6)
    assert row.times_predicted == pytest.approx(7 / 6)
    assert (row.as_in_turn, row.lossless, row.replay) == (True, True, None)
    assert compared([growth(200, 10, 700)], [growth(100, 20, 1100, b"abd")]).as_in_turn is False


def test_texts_that_share_nothing_have_nothing_to_compare() -> None:
    row = compared([growth(200, 20, 1100)], [], calls_shared=False, alone_because="it cannot")
    assert row.alone_because == "it cannot"
    assert [row.in_turn, row.times_in_turn, row.predicted_moved_bytes_per_byte, row.times_predicted] == [None] * 4
    assert row.as_in_turn is None


@pytest.mark.parametrize("method", ["ar", "s:4"])
def test_texts_grow_alike_and_share_their_calls(runtime: BltRuntime, method: str) -> None:
    scheduler = RoundScheduler(runtime.backend, len(PROMPTS))
    together = grow(runtime, scheduler, PROMPTS, 24, method)
    scheduler.close()
    in_turn = grow(runtime, RoundScheduler(runtime.backend, len(PROMPTS), slots=1), PROMPTS, 24, method)
    expected = [runtime.generate(p, 24, method=method, stop_at_eos=False).data for p in PROMPTS]
    assert together.texts == in_turn.texts == expected
    assert together.whole.new_bytes == in_turn.whole.new_bytes == sum(map(len, expected))
    assert together.steady.calls == in_turn.steady.calls == in_turn.steady.graph_calls
    for part in ("patcher", "decoder"):
        assert together.steady.graph_calls[part] == pytest.approx(together.steady.calls[part] / 4)
    assert together.steady.moved_bytes < in_turn.steady.moved_bytes
    assert len(together.first_byte_seconds) == 4
    assert 0 < together.steady.seconds < together.whole.seconds
    assert runtime.sequences_in_use == 0
    if method == "ar":
        # Every round is a byte of each text; the first is the prompt's, and the last is left out.
        assert together.steady.new_bytes == 4 * 22 == len(together.byte_seconds)
        assert together.rounds_by_calls["decoder"] == in_turn.rounds_by_calls["decoder"] == {1: 4 * 22}
        assert together.rounds_by_calls["global"] == {1: together.steady.calls["global"]}


def test_an_error_closes_all_texts(runtime: BltRuntime) -> None:
    watched = WatchedBackend(runtime.backend)
    own = BltRuntime(cast("Backend", watched), reuse_prompts=False)
    new_batch = watched.new_batch

    def failing(size: int) -> Any:
        batch = new_batch(size)
        batch.error = RuntimeError("no more")
        return batch

    watched.new_batch = failing  # type: ignore[method-assign]
    scheduler = RoundScheduler(own.backend, 2)
    with pytest.raises(RuntimeError, match="no more"):
        grow(own, scheduler, [b"a", b"b"], 5, "ar")
    scheduler.close()
    assert own.sequences_in_use == 0


def test_units_are_measured_with_calls_shared_and_in_turn(runtime: BltRuntime) -> None:
    seen: list[str] = []
    plan = make_bench_plan("onnxruntime", ["auto"])
    measurement = StreamsMeasurement({"onnxruntime": runtime}, plan, (1, 2), PROMPTS, 12, weights(runtime))
    rows = measurement.measure(2, lambda done, total, what: seen.append(f"{done}/{total} {what}"))
    assert [(row.method, row.streams, row.calls_shared) for row in rows] == [
        ("ar", 1, False),
        ("ar", 2, True),
        ("auto", 1, False),
        ("auto", 2, True),
    ]
    assert seen[-1].startswith("18/18 ")
    assert any(each.endswith("onnxruntime/auto, 2 together") for each in seen)
    ar = rows[1]
    assert (ar.as_in_turn, ar.in_turn is not None, ar.times_in_turn is not None) == (True, True, True)
    assert ar.together.calls_per_byte < 0.8 * rows[0].together.calls_per_byte
    assert rows[3].as_in_turn
    known = [measurement._learned[unit] for unit in measurement._units if unit.contender.method == "auto"]
    assert len({id(value) for each in known for value in each.values()}) == len(known) == 3, (
        "each has learned for itself"
    )


@pytest.mark.parametrize("replays", [False, True])
def test_one_batch_serves_all_units_of_a_backend(
    runtime: BltRuntime, monkeypatch: pytest.MonkeyPatch, replays: bool
) -> None:
    made: list[int] = []
    new_batch = OnnxRuntimeBackend.new_batch
    monkeypatch.setattr(OnnxRuntimeBackend, "new_batch", lambda self, size: made.append(size) or new_batch(self, size))
    plan = make_bench_plan("onnxruntime", ["s:4"])
    rates = ReplayRates.parse("acceptance=0.8,patch=3", plan.methods)
    profiles = {c: rates.profile(c.method, runtime.config) for c in plan.contenders} if replays else None
    measurement = StreamsMeasurement({"onnxruntime": runtime}, plan, (2, 3), PROMPTS, 8, weights(runtime), profiles)
    made.clear()
    assert all(row.calls_shared and row.as_in_turn is (None if replays else True) for row in measurement.measure(2))
    assert made == [3]
    backend = runtime.backend
    assert isinstance(backend, OnnxRuntimeBackend)
    assert not backend.batches, "none is left open"


def test_replays_draw_alike_with_calls_shared_and_in_turn(runtime: BltRuntime) -> None:
    plan = make_bench_plan("onnxruntime", ["s:4"])
    rates = ReplayRates.parse("acceptance=0.8,patch=3", plan.methods)
    profiles = {c: rates.profile(c.method, runtime.config) for c in plan.contenders}
    measurement = StreamsMeasurement({"onnxruntime": runtime}, plan, (1, 3), PROMPTS, 60, weights(runtime), profiles)
    rows = measurement.measure()
    for row in rows:
        assert row.as_in_turn is None
        assert row.replay is not None
        assert row.replay["patch"] == pytest.approx(3, rel=0.1)
    three = rows[-1]
    assert three.replay is not None
    assert (three.streams, three.replay["acceptance"]) == (3, pytest.approx(0.8, abs=0.07))
    together, in_turn = (
        next(grown for unit, (grown,) in measurement._grown.items() if (unit.streams, unit.shared) == (3, shared))
        for shared in (True, False)
    )
    assert together.texts == in_turn.texts
    assert len(set(together.texts)) == 3, "each stream has a text of its own"
    assert together.steady.calls == in_turn.steady.calls
    assert runtime.backend.sequences - runtime.sequences_in_use > 0


class Peer:
    """Writes nonsense in batches."""

    device = "cpu"

    def __init__(self, runtime: BltRuntime) -> None:
        self.config = runtime.config

    def generate(self, prompt: bytes, max_new_bytes: int, *, method: str) -> Generation:
        raise NotImplementedError

    def generate_batch(self, prompts: list[bytes], max_new_bytes: int) -> GeneratedBatch:
        stats = RunStats(rounds=max_new_bytes, moved_bytes=100 * max_new_bytes, first_byte_seconds=0.5)
        stats.nfe["decoder"] = max_new_bytes
        stats.total_seconds = 0.5 * max_new_bytes
        stats.byte_seconds = [0.5] * (max_new_bytes - 1)
        return GeneratedBatch([b"x" * max_new_bytes] * len(prompts), stats)


def test_a_peer_s_batch_is_compared_with(runtime: BltRuntime) -> None:
    found = grow_in_peer(Peer(runtime), PROMPTS, 10)
    assert (found.whole.new_bytes, found.steady.new_bytes, found.steady.seconds) == (40, 36, pytest.approx(4.5))
    assert found.steady.graph_calls == {"decoder": pytest.approx(9)}
    plan = make_bench_plan("onnxruntime", ["ar"], ["transformers"])
    runtimes: dict[str, Generator] = {"onnxruntime": runtime, "transformers": Peer(runtime)}
    ours, theirs = StreamsMeasurement(runtimes, plan, (2,), PROMPTS, 8, weights(runtime)).measure()
    assert theirs.together.bytes_per_s == pytest.approx(4)
    assert (theirs.times_peer, theirs.in_turn) == (pytest.approx(1), None)
    assert ours.times_peer == pytest.approx(ours.together.bytes_per_s / 4)


def test_numbers_of_texts_ascend() -> None:
    assert check_streams([1, 2, 64]) == (1, 2, 64)
    for wrong in ([], [0, 1], [2, 2], [4, 1], [1, 65]):
        with pytest.raises(ValueError, match=r"streams: found .* expected ascending whole numbers from 1 to 64"):
            check_streams(wrong)


def test_what_was_learned_can_be_exchanged() -> None:
    learned = Learned()
    first = learned.recall(list, list)
    before = learned.exchange({})
    assert learned.recall(list, list) is not first
    learned.exchange(before)
    assert learned.recall(list, list) is first


def test_rows_are_plain_data() -> None:
    row = dataclasses.asdict(compared([growth(200, 10, 700)], [growth(100, 20, 1100)]))
    assert set(row) == {
        "backend", "method", "device", "streams", "calls_shared", "alone_because", "together", "in_turn",
        "times_in_turn", "predicted_moved_bytes_per_byte", "times_predicted", "as_in_turn", "times_peer", "lossless",
        "acceptance", "replay",
    }  # fmt: skip
    assert set(row["together"]) == set(row["in_turn"]) == {
        "bytes", "bytes_per_s", "bytes_per_s_with_prompt", "ms_per_byte_p50", "ms_per_byte_p95", "first_byte_ms",
        "calls_per_byte", "part_calls_per_byte", "moved_bytes_per_byte",
    }  # fmt: skip
