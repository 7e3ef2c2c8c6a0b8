from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastblt.calibration.heldout import CORPORA, load_prompts, load_text
from fastblt.cli import app
from fastblt.commands.prompts import distinct_prompts
from fastblt.runtime.methods import registry, self_speculation
from fastblt.runtime.methods.method import Round
from fastblt.runtime.sequence.requests import Steps, score
from fastblt.runtime.sequence.sampling import Draft, Sampler
from fastblt.runtime.sequence.session import Session


def accept_always(session: Session, sampler: Sampler, draft: Draft, **_: Any) -> Steps[Round]:
    """Verification that verifies nothing."""
    session.append(draft.tokens)
    following = sampler.choose((yield from score()), -1)
    session.append([following])
    return Round((*draft.tokens, following), (*["accepted"] * len(draft.tokens), "free"), (), len(draft.tokens))


def test_command_prints_a_table_and_writes_json(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    options = [
        "--prompts",
        "2",
        "--max-new-bytes",
        "16",
        "--methods",
        "ar,s:4",
        "--provider",
        "cpu",
        "--json",
        str(path),
    ]
    result = CliRunner().invoke(app, ["audit", str(tiny_bundle), *options])
    assert result.exit_code == 0, result.stderr
    report = json.loads(path.read_text(encoding="utf-8"))
    assert [row["method"] for row in report["rows"]] == ["ar", "s:4"]
    assert report["reference"] == "eager ar"


def invoke(bundle: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["audit", str(bundle), "--provider", "cpu", *options])


def test_command_audits_every_kind_of_method_by_default_and_names_what_is_left_out(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "audit_defaults", lambda: ("ar", "s:4", "dv:4@one", "dv:8@one", "d:4@0.7", "d:8@0.7"))
    result = invoke(tiny_bundle, "--prompts", "1", "--max-new-bytes", "8")
    assert result.exit_code == 0, result.stderr
    assert "left out, tiny cannot run them: dv:8@one, d:8@0.7" in result.stderr
    listed = [line.split()[0] for line in result.stdout.splitlines() if re.match(r"\S+ +1 +8 ", line)]
    assert listed == ["ar", "s:4", "dv:4@one", "d:4@0.7"]


def test_command_refuses_a_method_that_the_model_cannot_run(tiny_bundle: Path) -> None:
    result = invoke(tiny_bundle, "--prompts", "1", "--methods", "ar,d:8@0.7")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "'d:8@0.7': found blocks of 8 bytes" in result.stderr


def test_command_writes_as_many_bytes_as_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    result = invoke(
        tiny_bundle, "--bytes", "60", "--max-new-bytes", "16", "--methods", "ar,d:4@one", "--json", str(path)
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(path.read_text(encoding="utf-8"))
    assert (report["reference"], report["tie_bound"], report["max_new_bytes"]) == ("eager ar", 1e-4, 16)
    assert [row["reference"] for row in report["rows"]] == ["eager ar", "eager d:4@one"]
    assert min(row["bytes"] for row in report["rows"]) >= 60 > min(row["bytes"] for row in report["rows"]) - 16
    assert report["bytes_compared"] == sum(row["bytes"] for row in report["rows"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bytes", "60", "--prompts", "3"), "found both prompts and bytes, expected one of them"),
        (("--bytes", "100000", "--max-new-bytes", "2"), r"bytes: found 100000, expected at most \d+: \d+ held-out"),
        (("--prompts", "100000"), r"prompts: found 100000, expected at most \d+"),
    ],
)
def test_command_refuses_more_than_there_is(tiny_bundle: Path, options: tuple[str, ...], message: str) -> None:
    result = invoke(tiny_bundle, *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2 if "both" in message else 1, 1)
    assert re.search(message, result.stderr)


def test_command_fails_when_texts_end_before_there_are_enough_bytes(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After this prompt the model ends its document."""
    monkeypatch.setattr("fastblt.commands.audit.distinct_prompts", lambda: [("one", b"prompt 31")])
    result = invoke(tiny_bundle, "--bytes", "40", "--max-new-bytes", "40", "--methods", "ar")
    assert result.exit_code == 1
    assert re.search(r"found \d+ bytes after all held-out prompts, expected 40", result.stderr)


def test_command_fails_when_there_is_a_fault(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_speculation, "verify", accept_always)
    result = invoke(tiny_bundle, "--prompts", "1", "--max-new-bytes", "20", "--methods", "ar,s:4")
    assert result.exit_code == 1
    assert "found 1 outputs that differ by more than rounding, expected none" in result.stderr
    assert "FAULT: s:4, prompt " in result.stdout


def test_heldout_prompts_are_distinct_and_enough_for_the_documented_audit() -> None:
    prompts = distinct_prompts()
    assert prompts == distinct_prompts()
    names, texts = zip(*prompts, strict=True)
    assert len(set(names)) == len(set(texts)) == len(prompts)
    assert len(prompts) * 256 > 400_000
    shipped = {p.id: p.data for p in load_prompts()}
    assert dict(prompts[: len(shipped)]) == shipped
    assert [p[0].partition("-")[0] for p in prompts[:4]] == list(CORPORA)
    for name, data in prompts[len(shipped) :: 97]:
        corpus, _, start = name.partition("@")
        assert load_text(corpus)[int(start) :][: len(data)] == data
