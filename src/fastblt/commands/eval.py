"""``fastblt eval``: score a bundle, compare with a second backend, print tables, write JSON and plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from fastblt.calibration.heldout import CORPORA, load_text
from fastblt.commands.bench import split_names
from fastblt.commands.console import progress_bar, table_console
from fastblt.commands.eval_tables import agreement_table, tables
from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.measure.scoring.run import EvalReport, EvalRequest, run_eval
from fastblt.runtime.measure.scoring.windows import Text, cut_prompts, read_texts

JSON_FILE = "eval.json"
N = TypeVar("N", int, float)


def run(
    bundle: Path,
    request: EvalRequest,
    out: Path | None,
    *,
    data: tuple[Path, ...] = (),
    prompts: int,
    prompt_bytes: int,
    plots: bool,
) -> None:
    """Score and report; ``data``: files of the user, none: the held-out text that ships with the package.

    Raises:
        AgreementError: the second backend's figures differ by more than rounding.
        BundleError: the bundle cannot be used.
        MethodError: a method does not exist, or the model cannot run it.
        ValueError: the text is too short, or a setting is out of range.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"{out}: found a file, expected a folder to write to")
    if out is not None and plots:
        import matplotlib  # noqa: F401  # where it is missing, say so before the work is done
    texts = read_texts(data) if data else [Text(corpus, load_text(corpus)) for corpus in CORPORA]
    chosen = cut_prompts(texts, prompts, prompt_bytes) if data else heldout_prompts(prompts, prompt_bytes)
    with progress_bar("scoring") as on_progress:
        report = run_eval(bundle, request, texts, chosen, on_progress, heldout=not data)
    console = table_console()
    _print(console, report)
    if out is not None:
        for path in _write(out, report, plots=plots):
            console.print(f"wrote {path}", soft_wrap=True)
    _judge(report, console)


def numbers(option: str, text: str, kind: Callable[[str], N]) -> list[N]:
    """The numbers in a list with commas between them, each once.

    Args:
        option: its name, for errors.
        text: as the user gave it; may be empty.
        kind: ``int`` or ``float``.

    Raises:
        ValueError: one of them is no finite number, or not greater than 0.
    """
    found: dict[N, None] = {}
    for name in split_names(text):
        try:
            value = kind(name)
        except ValueError:
            value = kind("-1")
        if not 0 < value < float("inf"):
            expected = "whole numbers" if kind is int else "numbers"
            raise ValueError(f"--{option}: found {name!r}, expected {expected} greater than 0, with commas between")
        found[value] = None
    return list(found)


def _print(console: Console, result: EvalReport) -> None:
    console.print(_headline(result), soft_wrap=True)
    for table in tables(result.figures[0]):
        console.print()
        console.print(table)
    for line in result.plan.left_out:
        console.print(f"\n{line}", soft_wrap=True)
    if result.checks:
        console.print()
        console.print(agreement_table(result.checks, *(scores.backend for scores in result.scores)))
    seconds = ", ".join(f"{scores.backend} {scores.seconds:.1f} s" for scores in result.scores)
    console.print(f"\nscored in: {seconds}", soft_wrap=True)


def _headline(result: EvalReport) -> str:
    """One line that says what the tables are about."""
    plan, first = result.plan, result.scores[0]
    source = "held-out text" if result.heldout else "the user's files"
    windows = sum(map(len, result.windows.values()))
    return (
        f"{result.model} ({result.dtype}), {first.backend} on {first.device}; {source}: {windows} windows of "
        f"{result.request.window_bytes} bytes, {plan.anchors} anchors in each; {result.prompts} prompts of "
        f"{result.prompt_bytes} bytes, up to {plan.new_bytes} new bytes after each; seed {plan.seed}"
    )


def _write(out: Path, result: EvalReport, *, plots: bool) -> list[Path]:
    """Write JSON and plots, each file whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON_FILE, result.to_dict())
    written = [out / JSON_FILE]
    if plots:
        from fastblt.commands.eval_plots import write_plots

        written += write_plots(out, result.figures[0], result.model)
    return written


def _judge(result: EvalReport, console: Console) -> None:
    """Say whether the backends agree."""
    if not result.checks:
        console.print(f"verdict: only {result.names} was scored, nothing to compare with", soft_wrap=True)
        return
    result.check()
    console.print(f"verdict: {result.names} agree", soft_wrap=True)
