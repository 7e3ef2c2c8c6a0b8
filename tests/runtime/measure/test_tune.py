"""``run_tune`` on a machine with a scripted clock: what is compared, what wins, and how the time is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.scripted_machine import ScriptedMachine

from fastblt.runtime.bundle.manifest import BundleError, load_manifest
from fastblt.runtime.measure.tune import settings as tune_settings
from fastblt.runtime.measure.tune.profile import BundleKey
from fastblt.runtime.measure.tune.run import MOST_BYTES, TuneReport, TuneRequest, profiles, run_tune
from fastblt.runtime.measure.tune.settings import thread_counts
from fastblt.runtime.methods import MethodError

PROMPTS = [b"one", b"two", b"three"]
#: Seconds per byte.
PACES = {"ar": 3e-3, "s:4": 1.5e-3, "s:8": 1.2e-3, "auto": 1.4e-3, "d:4@0.7": 0.8e-3}


def pace(bundle: str, threads: int | None, method: str) -> float:
    """Two threads are twice as fast as one; four are slow."""
    return PACES.get(method, 2e-3) * {1: 1.0, 2: 0.5, 4: 5.0}.get(threads or 1, 1.0) * (0.5 if "other" in bundle else 1)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_settings, "usable_cores", lambda: 4)


@pytest.fixture
def other_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """`tiny_bundle` under another name."""
    link = tmp_path / "other"
    link.symlink_to(tiny_bundle, target_is_directory=True)
    return link


def tune(bundle: Path, request: TuneRequest, machine: ScriptedMachine) -> TuneReport:
    return run_tune(bundle, request, PROMPTS, load=machine.load, clock=machine.clock)


def winner(report: TuneReport) -> tuple[str, int | None, str]:
    (found,) = report.winners
    return found.contender.engine.bundle.name, found.contender.engine.threads, found.contender.method


@pytest.mark.usefixtures("four_cores")
def test_fastest_method_and_threads_win(tiny_bundle: Path) -> None:
    machine = ScriptedMachine(pace)
    report = tune(tiny_bundle, TuneRequest(), machine)
    assert winner(report) == (tiny_bundle.name, 2, "s:8")
    (found,) = report.winners
    assert found.seconds_per_byte == pytest.approx(0.6e-3)
    assert report.defaults[found.contender] == pytest.approx(1.4 / 0.6)
    assert report.seconds == pytest.approx(machine.now - 100.0)
    assert report.seconds < 60.0
    assert len(report.standings) == report.settings


@pytest.mark.usefixtures("four_cores")
def test_threads_that_are_clearly_slower_are_raced_with_one_method_only(tiny_bundle: Path) -> None:
    machine = ScriptedMachine(pace)
    report = tune(tiny_bundle, TuneRequest(), machine)
    assert {call.method for call in machine.calls if call.threads == 4} == {"auto"}
    assert {each.contender.engine.threads for each in report.standings} == {1, 2}
    assert Counter(machine.loads) == dict.fromkeys([(tiny_bundle.name, count) for count in (1, 2, 4)], 1)


def test_all_settings_are_measured_after_the_same_prompts(tiny_bundle: Path) -> None:
    machine = ScriptedMachine(pace)
    tune(tiny_bundle, TuneRequest(threads=(1,), methods=("ar", "s:8")), machine)
    whole = [call for call in machine.calls if call.new_bytes == MOST_BYTES]
    prompts = [call.prompt for call in whole[:12]]
    assert prompts == [b"one"] * 6 + [b"two"] * 3 + [b"three"] * 3, "the first text of each is not measured"
    for group in (whole[0:6:2], whole[1:6:2], whole[6:9], whole[9:12]):
        assert {call.method for call in group} == {"auto", "ar", "s:8"}


def test_only_lossless_methods_win_unless_others_are_allowed(tiny_bundle: Path) -> None:
    request = TuneRequest(threads=(1,))
    assert winner(tune(tiny_bundle, request, ScriptedMachine(pace)))[2] == "s:8"
    request = TuneRequest(threads=(1,), allow_lossy=True)
    assert winner(tune(tiny_bundle, request, ScriptedMachine(pace)))[2] == "d:4@0.7"
    with pytest.raises(MethodError, match=r"'d:4@0\.7': found one that is not lossless, expected --allow-lossy"):
        TuneRequest(methods=("d:4@0.7",))


def test_each_bundle_has_a_winner_unless_text_may_change(tiny_bundle: Path, other_bundle: Path) -> None:
    def uneven(bundle: str, threads: int | None, method: str) -> float:
        return pace(bundle, threads, method) * (0.1 if bundle == "other" and method == "s:4" else 1.0)

    request = TuneRequest(threads=(1,), against=(other_bundle,))
    report = tune(tiny_bundle, request, ScriptedMachine(uneven))
    own, other = report.winners
    assert (own.contender.engine.bundle, own.contender.method) == (tiny_bundle, "s:8")
    assert (other.contender.engine.bundle, other.contender.method) == (other_bundle, "s:4")
    assert report.defaults == {own.contender: pytest.approx(1.4 / 1.2), other.contender: pytest.approx(14 / 1.5)}

    request = TuneRequest(threads=(1,), against=(other_bundle,), allow_lossy=True)
    report = tune(tiny_bundle, request, ScriptedMachine(uneven))
    assert winner(report) == ("other", 1, "s:4")
    assert list(report.defaults.values()) == [pytest.approx(1.4 / 0.075)], "against the tuned bundle's default"


def test_profiles_say_what_to_run(tiny_bundle: Path, tiny_encoder_bundle: Path) -> None:
    def pace_of(bundle: str, threads: int | None, method: str) -> float:
        return (1e-3 if bundle == tiny_encoder_bundle.name else 2e-3) * (1 if method == "s:6" else 2)

    request = TuneRequest(threads=(1,), against=(tiny_encoder_bundle,))
    report = tune(tiny_bundle, request, ScriptedMachine(pace_of))
    own, other = profiles(tiny_bundle, request, report, 3)
    assert (own.bundle, other.bundle) == (BundleKey.of(tiny_bundle), BundleKey.of(tiny_encoder_bundle))
    assert (own.runs, other.runs) == (None, None)
    assert (own.method, own.threads, own.prompts, own.allow_lossy) == ("s:6", 1, 3, False)
    assert (own.bytes_per_s, own.times_default) == (pytest.approx(500), pytest.approx(2.0))

    request = TuneRequest(threads=(1,), against=(tiny_encoder_bundle,), allow_lossy=True)
    report = tune(tiny_bundle, request, ScriptedMachine(pace_of))
    (found,) = profiles(tiny_bundle, request, report, 3)
    assert found.bundle == BundleKey.of(tiny_bundle)
    assert found.runs == BundleKey.of(tiny_encoder_bundle)
    assert (found.method, found.times_default, found.allow_lossy) == ("s:6", pytest.approx(4.0), True)


def test_threads_do_not_matter_on_a_gpu(tiny_bundle: Path) -> None:
    machine = ScriptedMachine(lambda bundle, threads, method: PACES.get(method, 2e-3), device="cuda")
    assert winner(tune(tiny_bundle, TuneRequest(), machine)) == (tiny_bundle.name, None, "s:8")
    assert len(machine.loads) == 1


@pytest.mark.parametrize("slowdown", [1.0, 20.0, 500.0])
def test_budget_is_kept_whatever_the_speed(tiny_bundle: Path, slowdown: float) -> None:
    """The slowest settings of the slowest machine write one byte in 1.5 s: not all of them are reached."""

    def slow(bundle: str, threads: int | None, method: str) -> float:
        return slowdown * pace(bundle, threads, method)

    machine = ScriptedMachine(slow, loading=2.0)
    report = tune(tiny_bundle, TuneRequest(threads=(1,)), machine)
    longest = max(10 + call.new_bytes for call in machine.calls) * slowdown * max(PACES.values())
    assert report.seconds <= 60.0 + 2 * longest
    assert report.new_bytes >= 100 if slowdown == 1.0 else 16 <= report.new_bytes < 20
    assert len(report.standings) == report.settings or slowdown == 500.0
    assert report.winners


def test_what_cannot_be_tuned_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    machine = ScriptedMachine(pace)
    refused: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: TuneRequest(seconds=0.0), ValueError, "seconds: found 0.0, expected a number greater than 0"),
        (lambda: TuneRequest(seconds=float("nan")), ValueError, "seconds: found nan"),
        (lambda: TuneRequest(threads=(0,)), ValueError, r"threads\[0\]: found 0, expected a whole number >= 1"),
        (lambda: TuneRequest(max_new_bytes=8), ValueError, "max_new_bytes: found 8"),
        (lambda: TuneRequest(methods=("q",)), MethodError, "method 'q': unknown"),
        (lambda: run_tune(tiny_bundle, TuneRequest(), [], load=machine.load), ValueError, "prompts: found none"),
        (lambda: tune(tmp_path, TuneRequest(), machine), BundleError, "manifest.json: cannot be read"),
        (lambda: tune(tiny_bundle, TuneRequest(methods=("dv:64@one",)), machine), MethodError, "dv:64"),
    ]
    for action, error, message in refused:
        with pytest.raises(error, match=message):
            action()
    assert len(machine.calls) == 0


@pytest.mark.usefixtures("four_cores")
def test_threads_are_powers_of_two_as_far_as_memory_allows(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_counts(tiny_bundle, None, 1) == (1, 4, 2)
    assert thread_counts(tiny_bundle, [3, 1], 1) == (1, 3)
    monkeypatch.setattr(tune_settings, "default_threads", lambda weights: 4)
    assert thread_counts(tiny_bundle, None, 1) == (4, 2, 1)
    monkeypatch.setattr(tune_settings, "usable_cores", lambda: 6)
    assert thread_counts(tiny_bundle, None, 1) == (4, 6, 2, 1)
    weights = load_manifest(tiny_bundle).weight_bytes
    monkeypatch.setattr(tune_settings, "host_memory", lambda: 4 * weights)
    assert thread_counts(tiny_bundle, None, 1) == (4, 6)
    assert thread_counts(tiny_bundle, None, 2) == (4,)
    assert thread_counts(tiny_bundle, None, 9) == (4,)
