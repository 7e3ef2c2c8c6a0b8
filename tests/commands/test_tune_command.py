"""The command tune, and the commands that read what it found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.tune import _mixed
from fastblt.commands.tuned import Tuned, tuned
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.measure.tune.profile import BundleKey, Profile, find_profile, profile_path, write_profile
from fastblt.runtime.serving import app as serving_app

PLACE = ("onnxruntime", "auto")
Load = dict[str, Any]


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Load]:
    """Arguments with which runtimes are loaded."""
    found: list[Load] = []
    original = BltRuntime.from_pretrained

    def load(bundle: Path, **options: Any) -> BltRuntime:
        found.append({"bundle": Path(bundle), **options})
        return original(bundle, **options)

    monkeypatch.setattr(BltRuntime, "from_pretrained", load)
    return found


def run(*arguments: str) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout, result.stderr


def keep(bundle: Path, **changes: Any) -> Profile:
    """Write a profile of a bundle, and return it."""
    known = Profile(BundleKey.of(bundle), *PLACE, "s:5", 2, False, 1234.5, 1.1, 96, "0.1.0")
    profile = dataclasses.replace(known, **changes)
    write_profile(profile)
    return profile


def generate(bundle: Path, *options: str) -> tuple[str, str]:
    """The method that statistics name, and everything on standard error."""
    _, errors = run("generate", str(bundle), "x", "--max-new-bytes", "4", "--max-bytes", "64", "--stats", *options)
    return next(line.split()[1] for line in errors.splitlines() if line.startswith("method")), errors


def test_command_prints_a_table_and_keeps_a_profile(tiny_bundle: Path, tmp_path: Path) -> None:
    """Which of the two wins does not matter."""
    prompts, report = tmp_path / "prompts.txt", tmp_path / "report.json"
    prompts.write_text("one prompt\nanother é\n", encoding="utf-8")
    options = ("--methods", "s:4", "--threads", "1", "--seconds", "1", "--prompts", str(prompts))
    text, _ = run("tune", str(tiny_bundle), *options, "--json", str(report))
    profile = find_profile(tiny_bundle, *PLACE)
    assert profile is not None
    assert (profile.method in ("auto", "s:4"), profile.threads, profile.prompts) == (True, 1, 2)
    data = json.loads(report.read_text(encoding="utf-8"))
    assert {row["method"] for row in data["rows"]} == {"auto", "s:4"}
    assert data["rows"][0]["method"] == profile.method
    assert data["profiles"][0]["bytes_per_s"] == profile.bytes_per_s
    rows = [line.split() for line in text.splitlines() if line.startswith(tiny_bundle.name)]
    assert [row[1] for row in rows] == [row["method"] for row in data["rows"]]
    assert f"-> {profile_path(tiny_bundle, *PLACE)}" in text
    assert "times the default" in text
    assert profile.method in run("inspect", str(tiny_bundle))[0].partition("tuned with")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "q"), "method 'q': unknown"),
        (("--methods", ""), "methods: found none, expected at least one"),
        (("--methods", "d:4@0.7"), "'d:4@0.7': found one that is not lossless, expected --allow-lossy"),
        (("--threads", "0"), "--threads: found '0', expected whole numbers greater than 0 and at most 1024"),
        (("--threads", "1025"), "--threads: found '1025'"),
        (("--seconds", "0"), "invalid value for '--seconds'"),
        (("--against", "nothing"), "nothing: found no such folder, expected a bundle"),
        (("--backend", "abacus"), "backend: found 'abacus'"),
    ],
)
def test_what_means_nothing_is_refused(tiny_bundle: Path, options: tuple[str, str], message: str) -> None:
    result = CliRunner().invoke(app, ["tune", str(tiny_bundle), *options])
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert find_profile(tiny_bundle, *PLACE) is None


def test_generate_takes_what_was_found_unless_options_differ(tiny_bundle: Path, loads: list[Load]) -> None:
    assert generate(tiny_bundle)[0] == "auto"
    keep(tiny_bundle)
    assert generate(tiny_bundle)[0] == "s:5"
    assert generate(tiny_bundle, "--seed", "1")[0] == "s:5"
    assert generate(tiny_bundle, "--method", "ar")[0] == "ar"
    assert generate(tiny_bundle, "--threads", "1")[0] == "s:5"
    assert generate(tiny_bundle, "--no-profile")[0] == "auto"
    assert generate(tiny_bundle, "--provider", "cpu")[0] == "auto"
    assert [load["threads"] for load in loads] == [None, 2, 2, 2, 1, None, None]


def test_seed_fixes_the_text_of_a_bundle_that_was_tuned_to_the_default(tiny_bundle: Path) -> None:
    """A seed does not fix what auto samples."""
    keep(tiny_bundle, method="auto")
    assert generate(tiny_bundle)[0] == "auto"
    assert generate(tiny_bundle, "--seed", "1")[0] == "s:8"


def test_nothing_is_said_about_a_profile_that_changes_no_text(tiny_bundle: Path) -> None:
    keep(tiny_bundle)
    assert run("generate", str(tiny_bundle), "x", "--max-new-bytes", "4")[1] == ""


def test_another_bundle_runs_where_text_may_change(
    tiny_bundle: Path, tiny_encoder_bundle: Path, loads: list[Load]
) -> None:
    keep(tiny_bundle, allow_lossy=True, runs=BundleKey.of(tiny_encoder_bundle))
    method, errors = generate(tiny_bundle)
    assert (method, loads[0]["bundle"]) == ("s:5", tiny_encoder_bundle.resolve())
    assert f"tuned with --allow-lossy: {tiny_encoder_bundle.resolve()} with s:5; --no-profile: the" in errors
    assert generate(tiny_bundle, "--no-profile")[0] == "auto"
    assert loads[1]["bundle"] == tiny_bundle


def test_profile_that_cannot_be_used_is_ignored_with_one_message(tiny_bundle: Path) -> None:
    profile = keep(tiny_bundle)
    keep(tiny_bundle, machine={**profile.machine, "cpu": "Z80"})
    method, errors = generate(tiny_bundle)
    (warning,) = [line for line in errors.splitlines() if "warning" in line]
    assert method == "auto"
    assert warning.startswith(f"warning: {profile_path(tiny_bundle, *PLACE)}: found a profile of another machine (cpu ")
    assert warning.endswith(f"; ignored, fastblt tune {tiny_bundle} writes a new one")
    text, _ = run("inspect", str(tiny_bundle))
    assert "tuned with" not in text
    assert "ignored: " in text
    assert "of another machine (cpu 'Z80')" in text


def test_inspect_shows_what_was_found(tiny_bundle: Path, tmp_path: Path) -> None:
    assert "tuned with" not in run("inspect", str(tiny_bundle))[0]
    profile = keep(tiny_bundle)
    keep(tiny_bundle, backend="tensorrt", threads=None, method="ar")
    text, _ = run("inspect", str(tiny_bundle), "--json", str(tmp_path / "facts.json"))
    rows = [line.split() for line in text.partition("tuned with")[2].splitlines() if ", auto" in line]
    assert rows == [
        ["onnxruntime,", "auto", "s:5", "2", "1234.5", "1.10", "this", "one"],
        ["tensorrt,", "auto", "ar", "-", "1234.5", "1.10", "this", "one"],
    ]
    data = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
    assert data["profiles"][0] == dataclasses.asdict(profile)
    assert data["refused_profiles"] == []


def test_bench_measures_what_was_found(tiny_bundle: Path, tmp_path: Path, loads: list[Load]) -> None:
    keep(tiny_bundle)
    path = tmp_path / "bench.json"
    options = ("--prompts", "1", "--max-new-bytes", "4", "--json", str(path))

    def measured(*more: str) -> list[tuple[str, str]]:
        run("bench", str(tiny_bundle), *options, *more)
        return [(row["backend"], row["method"]) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]

    assert ("onnxruntime", "s:5") in measured("--against", "eager")
    assert {load["backend"]: load["threads"] for load in loads} == {"onnxruntime": 2, "eager": None}
    loads.clear()
    assert measured("--methods", "s:4", "--threads", "1") == [("onnxruntime", "ar"), ("onnxruntime", "s:4")]
    assert ("onnxruntime", "s:5") not in measured("--no-profile")
    assert [load["threads"] for load in loads] == [1, None]


def test_bench_measures_the_bundle_that_it_is_given(
    tiny_bundle: Path, tiny_encoder_bundle: Path, loads: list[Load]
) -> None:
    keep(tiny_bundle, allow_lossy=True, runs=BundleKey.of(tiny_encoder_bundle))
    run("bench", str(tiny_bundle), "--prompts", "1", "--max-new-bytes", "4", "--methods", "s:4")
    assert [(load["bundle"], load["threads"]) for load in loads] == [(tiny_bundle, None)]


def test_serve_takes_what_was_found(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, loads: list[Load]) -> None:
    settings: list[Any] = []

    def stop(load: Callable[[], BltRuntime], found: Any) -> None:
        load()
        settings.append(found)
        raise typer.Exit

    monkeypatch.setattr(serving_app, "create_app", stop)
    keep(tiny_bundle)
    run("serve", str(tiny_bundle), "--sequences", "1")
    run("serve", str(tiny_bundle), "--sequences", "1", "--method", "ar", "--threads", "1")
    run("serve", str(tiny_bundle), "--sequences", "1", "--no-profile")
    assert [found.method for found in settings] == ["s:5", "ar", None]
    assert [load["threads"] for load in loads] == [2, 1, None]


def test_options_come_before_the_profile(tiny_bundle: Path) -> None:
    keep(tiny_bundle)
    assert tuned(tiny_bundle, *PLACE, method=None, threads=None, profile=True) == Tuned(tiny_bundle, "s:5", 2)
    assert tuned(tiny_bundle, *PLACE, method="ar", threads=1, profile=True) == Tuned(tiny_bundle, "ar", 1)
    assert tuned(tiny_bundle, *PLACE, method=None, threads=None, profile=False) == Tuned(tiny_bundle, None, None)
    assert load_manifest(tiny_bundle).files.keys() == {path.name for path in tiny_bundle.iterdir()} - {"manifest.json"}


def test_prompts_of_a_file_are_mixed() -> None:
    prompts = [f"{corpus} {number}" for corpus in ("code", "prose") for number in range(20)]
    mixed = [data.decode() for data in _mixed(prompts)]
    assert sorted(mixed) == sorted(prompts)
    assert len({prompt.split()[0] for prompt in mixed[:5]}) == 2
    assert [data.decode() for data in _mixed(prompts)] == mixed
