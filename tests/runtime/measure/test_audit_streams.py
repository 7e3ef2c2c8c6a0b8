"""Audits of texts that grow together: what only a batch does wrong is found, and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fakes.watched_batch import WatchedBackend, WatchedBatch
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.prompts import distinct_prompts
from fastblt.runtime.backends.batching import Answer, DecoderCall, PartCall
from fastblt.runtime.backends.protocol import Backend, BackendSequence
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.audit.comparison import AuditRow, audit
from fastblt.runtime.measure.audit.growth import Grown, Together
from fastblt.runtime.measure.audit.run import AuditReport, AuditRequest, of_mixed_lengths

METHODS = ("ar", "s:4", "d:4@0.7")
PROMPTS = of_mixed_lengths(distinct_prompts()[:10])


@pytest.fixture
def growth(watched: WatchedBackend) -> Iterator[tuple[BltRuntime, Together]]:
    runtime = BltRuntime(cast("Backend", watched), reuse_prompts=False)
    together = Together(runtime, 3)
    yield runtime, together
    together.close()


def audited(
    reference: BltRuntime, growth: tuple[BltRuntime, Together], prompts: int = 9, bound: float = 1e-4
) -> list[AuditRow]:
    runtime, together = growth
    candidates = [(runtime, method) for method in METHODS]
    return audit(reference, candidates, PROMPTS[:prompts], 15, bound, growth=together)


def test_prompts_are_of_many_lengths() -> None:
    lengths = [len(data) for _, data in PROMPTS]
    assert len(set(lengths)) >= 8
    assert min(lengths) < 32
    assert max(lengths) > 256
    assert all(name.endswith(f"({len(data)} bytes)") for name, data in PROMPTS)


def test_methods_grow_side_by_side_and_by_themselves_and_are_right(
    alone: BltRuntime,
    watched: WatchedBackend,
    growth: tuple[BltRuntime, Together],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []
    step = growth[1]._scheduler.step

    def watching(streams: Any) -> Any:
        seen.append([each.growing.method.name for each in streams])
        return step(streams)

    monkeypatch.setattr(growth[1]._scheduler, "step", watching)
    rows = audited(alone, growth)
    assert [(row.prompts, row.identical, row.ties, row.faults) for row in rows] == [(9, 9, [], [])] * 3
    assert set(METHODS) in [set(names) for names in seen]
    assert {names[0] for names in seen if len(names) == 3 and len(set(names)) == 1} == set(METHODS)
    (batch,) = watched.batches
    assert {count for _, count in batch.calls} == {1, 2, 3}
    assert growth[0].sequences_in_use == 0


def test_why_calls_are_not_shared_is_reported(tiny_bundle: Path) -> None:
    options = ("--backend", "eager", "--streams", "2", "--prompts", "2", "--max-new-bytes", "4", "--methods", "ar")
    result = invoke(tiny_bundle, *options)
    assert result.exit_code == 0, result.stderr
    assert "2 texts at once: one call at a time (eager runs one text at a time)." in result.stdout


def break_one_row(monkeypatch: pytest.MonkeyPatch, choice: int) -> None:
    """Let the batch answer one row of ar wrong, by its second or n-th best token, where three share a call."""
    answer, done = WatchedBatch._answer, False

    def wrong(batch: WatchedBatch, sequence: BackendSequence, call: PartCall, served: int) -> Answer:
        nonlocal done
        found = answer(batch, sequence, call, served)
        if done or not isinstance(call, DecoderCall) or served < 3 or len(call.ids) > 1:
            return found
        done = True
        rows = found.result.copy()
        rows.best[-1] = np.argsort(rows.logits[-1])[-choice]
        return found._replace(result=rows)

    monkeypatch.setattr(WatchedBatch, "_answer", wrong)


def test_what_only_a_batch_does_wrong_is_a_fault(
    alone: BltRuntime, growth: tuple[BltRuntime, Together], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_one_row(monkeypatch, 200)
    (fault,) = [fault for row in audited(alone, growth, 3) for fault in row.faults]
    assert fault.as_alone is False
    assert fault.gap > 1e-4
    assert fault.prompt in dict(PROMPTS)


def test_a_tie_that_only_a_batch_decides_otherwise_is_named(
    alone: BltRuntime, growth: tuple[BltRuntime, Together], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any difference is a tie where the bound is high."""
    break_one_row(monkeypatch, 2)
    rows = audited(alone, growth, 3, bound=100.0)
    (tie,) = [tie for row in rows for tie in row.ties]
    assert (tie.as_alone, [row.faults for row in rows]) == (False, [[], [], []])


def test_a_difference_that_is_there_alone_too_is_not_the_batch_s(
    alone: BltRuntime, growth: tuple[BltRuntime, Together], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference writes less: what differs does so alone, too."""
    generate = alone.generate

    def shorter(prompt: bytes, count: int, **options: Any) -> Any:
        return generate(prompt, count - 5, **options)

    monkeypatch.setattr(alone, "generate", shorter)
    rows = audited(alone, growth, 3)
    assert [fault.as_alone for row in rows for fault in row.faults] == [True] * 9


def invoke(bundle: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["audit", str(bundle), "--provider", "cpu", *options])


def test_command_audits_streams(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    options = ("--streams", "3", "--prompts", "4", "--max-new-bytes", "12", "--methods", "ar,s:4", "--json", str(path))
    result = invoke(tiny_bundle, *options)
    assert result.exit_code == 0, result.stderr
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["streams"] == 3
    assert [row["prompts"] for row in report["rows"]] == [4, 4]
    assert "3 texts at once: calls were shared." in result.stdout
    assert report["calls_shared"] is True


def test_command_prints_what_differs_and_fails(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = Together._grow

    def wrong(*arguments: Any) -> Iterator[Grown]:
        for grown in texts(*arguments):
            yield Grown(grown.candidate, grown.prompt, bytes([grown.data[0] ^ 128]) + grown.data[1:], grown.alone)

    monkeypatch.setattr(Together, "_grow", wrong)
    result = invoke(tiny_bundle, "--streams", "2", "--prompts", "1", "--max-new-bytes", "8", "--methods", "ar")
    assert result.exit_code == 1
    assert "found 1 outputs that differ by more than rounding, expected none" in result.stderr
    assert "FAULT: ar, prompt " in result.stdout
    assert "alone another text" in result.stdout


@pytest.mark.parametrize("streams", [0, 65])
def test_numbers_of_streams_are_checked(tiny_bundle: Path, streams: int) -> None:
    with pytest.raises(ValueError, match=f"streams: found {streams}, expected"):
        AuditRequest(streams=streams)
    assert invoke(tiny_bundle, "--streams", str(streams)).exit_code == 2


def test_a_report_has_one_stream_by_default(tiny_bundle: Path) -> None:
    report = AuditReport(tiny_bundle, AuditRequest(), "eager", 1e-4, [], (), "tiny")
    assert (report.to_dict()["streams"], report.to_dict()["calls_shared"]) == (1, False)
