"""``fastblt eval``: scores a bundle, compares it with a second backend, prints tables, writes JSON and plots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastblt.calibration.heldout import CORPORA, load_text
from fastblt.commands.checks import check_backend, check_bundle, check_methods, check_output_folder
from fastblt.commands.errors import usage_errors
from fastblt.commands.eval_tables import agreement_table, tables
from fastblt.commands.options import (
    BackendOption,
    BundleArgument,
    ProviderOption,
    ThreadsOption,
    joined,
    numbers,
    split_names,
)
from fastblt.commands.output import note, print_table, progress, stdout
from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.measure.scoring.plan import FIGURE8, ScoringRequest
from fastblt.runtime.measure.scoring.run import AUTO, NONE, EvalReport, EvalRequest, run_eval
from fastblt.runtime.measure.scoring.windows import Text, cut_prompts, read_texts

JSON_FILE = "eval.json"

_DEFAULT = ScoringRequest()
#: Prompts, and bytes of each, unless the user or the protocol of Figure 8 specifies others.
_PROMPTS, _PROMPT_BYTES = 8, 64
_FIGURE8_PROMPTS = 16


def _list(help_text: str, default: Sequence[object]) -> str:
    """Return the help of an option that takes a list, with its default."""
    return f"{help_text}  [default: {joined(default)}]"


def command(
    bundle: BundleArgument,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Text file to measure on; may be repeated  [default: the shipped held-out text]"),
    ] = None,
    backend: BackendOption = EvalRequest.backend,
    against: Annotated[
        str | None,
        typer.Option(
            help="Backend to compare with; auto: eager where PyTorch is installed; none: do not compare  "
            "[default: auto; with --figure8: none]"
        ),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Pieces to score of each text, at most.")] = EvalRequest.windows,
    window_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a piece.")] = EvalRequest.window_bytes,
    anchors: Annotated[
        int, typer.Option(min=1, help="Places in each piece where drafts and blocks are tried.")
    ] = ScoringRequest.anchors,
    k: Annotated[str | None, typer.Option(help=_list("Comma-separated draft lengths of s:K", _DEFAULT.k))] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="Comma-separated block sizes of d:B and dv:B  [default: the trained size, and half of it]"),
    ] = None,
    draft_rules: Annotated[
        str | None, typer.Option(help=_list("Comma-separated RULEs of dv:B@RULE", _DEFAULT.draft_rules))
    ] = None,
    rules: Annotated[str | None, typer.Option(help=_list("Comma-separated RULEs of d:B@RULE", _DEFAULT.rules))] = None,
    mask_rates: Annotated[
        str | None,
        typer.Option(help=_list("Comma-separated shares of a block's bytes to hide and restore", _DEFAULT.mask_rates)),
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Number of prompts to generate text after  [default: 8]")
    ] = None,
    prompt_bytes: Annotated[
        int | None, typer.Option(min=0, help="Bytes of each prompt; 0: text begins with BOS alone  [default: 64]")
    ] = None,
    max_new_bytes: Annotated[
        int | None,
        typer.Option(min=1, help=f"Bytes to generate after each prompt  [default: {_DEFAULT.new_bytes}]"),
    ] = None,
    top_p: Annotated[
        str | None, typer.Option(help=_list("Comma-separated values of top-p for sampled text", _DEFAULT.top_p))
    ] = None,
    gamma: Annotated[
        str | None,
        typer.Option(
            help=_list("Comma-separated entropy bounds (nats) for sampled text of d:B@ebGAMMA", _DEFAULT.gamma)
        ),
    ] = None,
    figure8: Annotated[
        bool,
        typer.Option(
            "--figure8",
            help="Measure diversity against cost with the protocol of the paper's Figure 8: other defaults, namely "
            f"{_FIGURE8_PROMPTS} texts of {FIGURE8.new_bytes} bytes from BOS, gamma {joined(FIGURE8.gamma)}, and no "
            "other figures but bits per byte.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of hidden bytes and of sampling.")] = ScoringRequest.seed,
    out: Annotated[Path | None, typer.Option(help="Folder to write eval.json and plots to.")] = None,
    plots: Annotated[
        bool | None,
        typer.Option("--plots/--no-plots", help="Draw plots  [default: where matplotlib is installed]"),
    ] = None,
    provider: ProviderOption = EvalRequest.provider,
    threads: ThreadsOption = None,
) -> None:
    """Measure how well a bundle predicts text, and what it generates.

    Reports bits per byte, restored bytes of masked blocks, accepted drafts, how block diffusion differs from text
    written byte by byte, and diversity against cost; a second backend has to give the same figures. An empty list
    leaves out the figures it is about.
    """
    preset = FIGURE8 if figure8 else _DEFAULT
    with usage_errors():
        scoring = dataclasses.replace(
            preset,
            k=preset.k if k is None else numbers("k", k, int),
            blocks=None if blocks is None else numbers("blocks", blocks, int),
            draft_rules=preset.draft_rules if draft_rules is None else split_names(draft_rules),
            rules=preset.rules if rules is None else split_names(rules),
            mask_rates=preset.mask_rates if mask_rates is None else numbers("mask-rates", mask_rates, float),
            top_p=preset.top_p if top_p is None else numbers("top-p", top_p, float),
            gamma=preset.gamma if gamma is None else split_names(gamma),
            anchors=anchors,
            new_bytes=max_new_bytes or preset.new_bytes,
            seed=seed,
        )
        scoring.check()
        against = against or (NONE if figure8 else AUTO)
        request = EvalRequest(backend, against, provider, threads, windows, window_bytes, scoring)
    prompts = prompts or (_FIGURE8_PROMPTS if figure8 else _PROMPTS)
    if prompt_bytes is None:
        prompt_bytes = 0 if figure8 else _PROMPT_BYTES
    rules_of_drafts = (f"dv:1@{rule}" for rule in scoring.draft_rules)
    rules_of_blocks = (f"d:1@{rule}" for rule in (*scoring.rules, *(f"eb{bound}" for bound in scoring.gamma)))
    check_methods([*(f"s:{length}" for length in scoring.k), *rules_of_drafts, *rules_of_blocks] or None)
    check_backend(backend)
    check_backend(None if against in (AUTO, NONE) else against)
    check_output_folder(out)
    if plots:
        import matplotlib  # noqa: F401  # where it is missing, report that before the work is done
    check_bundle(bundle)
    texts = read_texts(data) if data else [Text(corpus, load_text(corpus)) for corpus in CORPORA]
    if prompt_bytes == 0:
        chosen = [b""] * prompts
    else:
        chosen = cut_prompts(texts, prompts, prompt_bytes) if data else heldout_prompts(prompts, prompt_bytes)
    with progress("scoring") as on_progress:
        report = run_eval(bundle, request, texts, chosen, on_progress, heldout=not data)
    console = stdout()
    _print(console, report)
    if out is not None:
        _write(out, report, console, plots=plots)
    _print_verdict(report, console)


def _print(console: Console, result: EvalReport) -> None:
    note(console, _headline(result))
    for table in tables(result.figures[0]):
        console.print()
        print_table(console, table)
    for line in result.plan.left_out:
        console.print()
        note(console, line)
    if result.checks:
        console.print()
        print_table(console, agreement_table(result.checks, *(scores.backend for scores in result.scores)))
    seconds = ", ".join(f"{scores.backend} {scores.seconds:.1f} s" for scores in result.scores)
    console.print()
    console.print(f"scored in: {seconds}", soft_wrap=True)


def _headline(result: EvalReport) -> str:
    """Return one line about what the tables are about."""
    plan, first = result.plan, result.scores[0]
    source = "held-out text" if result.heldout else "the user's files"
    windows = sum(map(len, result.windows.values()))
    return (
        f"{result.model} ({result.dtype}), {first.backend} on {first.device}; {source}: {windows} pieces of "
        f"{result.request.window_bytes} bytes, {plan.anchors} places in each; {result.prompts} prompts of "
        f"{result.prompt_bytes} bytes, up to {plan.new_bytes} new bytes after each; seed {plan.seed}"
    )


def _write(out: Path, result: EvalReport, console: Console, *, plots: bool | None) -> None:
    """Write JSON and plots, each file atomically, and name them.

    Args:
        out: folder, made if it is missing.
        result: what to write.
        console: where the files are named.
        plots: whether to draw them; None: where matplotlib is installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON_FILE, result.to_dict())
    written = [out / JSON_FILE]
    if plots or (plots is None and find_spec("matplotlib") is not None):
        from fastblt.commands.eval_plots import write_plots

        written += write_plots(out, result.figures[0], result.model)
    elif plots is None:
        console.print("no plots: matplotlib is not installed (pip install matplotlib)", soft_wrap=True)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)


def _print_verdict(result: EvalReport, console: Console) -> None:
    """Report whether the backends agree; raise `AgreementError` where they do not."""
    if not result.checks:
        console.print(f"verdict: only {result.names} was scored, nothing to compare with", soft_wrap=True)
        return
    result.check()
    console.print(f"verdict: {result.names} agree", soft_wrap=True)
