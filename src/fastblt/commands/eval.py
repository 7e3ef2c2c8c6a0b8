"""``fastblt eval``: score a bundle, compare with a second backend, print tables, write JSON and plots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fastblt import __version__
from fastblt.calibration.heldout import CORPORA, load_text
from fastblt.commands.bench import bundle_dtype, split_names
from fastblt.commands.console import table_console
from fastblt.commands.eval_tables import agreement_table, tables
from fastblt.commands.prompts import heldout_prompts
from fastblt.models.tokens import decode
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.measure.bench.runner import write_json
from fastblt.runtime.measure.scoring.comparison import BOUNDS, Check, compare
from fastblt.runtime.measure.scoring.figures import OVERALL, Figures, sum_up
from fastblt.runtime.measure.scoring.plan import ScoringPlan, ScoringRequest, make_scoring_plan
from fastblt.runtime.measure.scoring.scores import Scores, score, steps
from fastblt.runtime.measure.scoring.windows import Text, anchors, cut_windows

JSON_FILE = "eval.json"
N = TypeVar("N", int, float)

AUTO, NONE, EAGER = "auto", "none", "eager"


class AgreementError(ValueError):
    """Two backends score differently, by more than rounding."""


@dataclass(frozen=True)
class EvalRequest:
    """What to score, as the command line gives it."""

    data: tuple[Path, ...] = ()
    """Files of the user's; none: the shipped held-out text."""
    backend: str = "onnxruntime"
    against: str = AUTO
    """A second backend; ``auto``: eager where PyTorch is installed; ``none``."""
    provider: str = "auto"
    threads: int | None = None
    windows: int = 6
    window_bytes: int = 512
    prompts: int = 8
    prompt_bytes: int = 64
    plots: bool = True
    request: ScoringRequest = field(default_factory=ScoringRequest)


@dataclass(frozen=True)
class EvalResult:
    """What was scored, and what came out."""

    model: str
    dtype: str
    setting: EvalRequest
    plan: ScoringPlan
    windows: dict[str, list[Ids]]
    """By the name of the text."""
    prompts: int
    """As many as there were; the user's files may have room for fewer than were asked for."""
    scores: list[Scores]
    """Of each backend."""
    figures: list[Figures]
    """Of each backend."""
    checks: list[Check]
    """Empty where one backend was scored."""

    @property
    def names(self) -> str:
        """The backends."""
        return " and ".join(scores.backend for scores in self.scores)


def run(bundle: Path, setting: EvalRequest, out: Path | None) -> None:
    """Score and report.

    Raises:
        AgreementError: the second backend's figures differ by more than rounding.
        BundleError: the bundle cannot be used.
        MethodError: a method does not exist, or the model cannot run it.
        ValueError: the text is too short, or a setting is out of range.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"{out}: found a file, expected a folder to write to")
    if out is not None and setting.plots:
        import matplotlib  # noqa: F401  # where it is missing, say so before the work is done
    result = _evaluate(bundle, setting)
    console = table_console()
    _print(console, result)
    if out is not None:
        for path in _write(out, result):
            console.print(f"wrote {path}", soft_wrap=True)
    _judge(bundle, result, console)


def _evaluate(bundle: Path, setting: EvalRequest) -> EvalResult:
    texts = read_texts(setting)
    windows = {text.name: cut_windows(text, setting.windows, setting.window_bytes) for text in texts}
    prompts = _prompts(texts, setting)
    quantized = Bundle.open(bundle, check=False).manifest.quantization is not None
    runtimes = [_load(bundle, name, setting) for name in _backends(setting, quantized)]
    config = runtimes[0].config
    plan = make_scoring_plan(setting.request, config)
    anchors(setting.window_bytes, plan.anchors, plan.longest_block)  # refuses what does not fit before the work is done
    scores = _score(runtimes, windows, prompts, plan)
    dtype = bundle_dtype(bundle)
    checks = compare(scores[0], scores[1], BOUNDS[dtype]) if len(scores) > 1 else []
    figures = [sum_up(each) for each in scores]
    return EvalResult(config.name, dtype, setting, plan, windows, len(prompts), scores, figures, checks)


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


def read_texts(setting: EvalRequest) -> list[Text]:
    """The user's files, or the held-out corpora.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is given twice, or has the name of all texts together.
    """
    names = [str(path) for path in setting.data]
    for name in names:
        if names.count(name) > 1 or name == OVERALL:
            raise ValueError(f"data: found {name!r} {names.count(name)} times, expected different files")
    if not setting.data:
        return [Text(corpus, load_text(corpus)) for corpus in CORPORA]
    return [Text(name, path.read_bytes()) for name, path in zip(names, setting.data, strict=True)]


def _prompts(texts: Sequence[Text], setting: EvalRequest) -> list[bytes]:
    """Held-out prompts, or cuts from the user's files in turn."""
    if not setting.data:
        return heldout_prompts(setting.prompts, setting.prompt_bytes)
    cuts = [cut_windows(text, -(-setting.prompts // len(texts)), setting.prompt_bytes) for text in texts]
    found = [decode(cut[i]) for i in range(max(map(len, cuts))) for cut in cuts if i < len(cut)]
    return found[: setting.prompts]


def _backends(setting: EvalRequest, quantized: bool) -> list[str]:
    """Those that are scored. Eager PyTorch does not round inputs, as products with quantised weights do."""
    other = setting.against
    if other == setting.backend:
        raise ValueError(f"--against: found {other!r}, expected another backend than the one that is scored")
    if other == AUTO:
        other = EAGER if find_spec("torch") is not None and not quantized else NONE
    return [setting.backend] if other in (NONE, setting.backend) else [setting.backend, other]


def _load(bundle: Path, backend: str, setting: EvalRequest) -> BltRuntime:
    return BltRuntime.from_pretrained(
        bundle,
        provider=setting.provider,
        backend=backend,
        max_bytes=max(setting.window_bytes, setting.prompt_bytes + setting.request.new_bytes),
        threads=setting.threads,
    )


def _score(
    runtimes: Sequence[BltRuntime], windows: dict[str, list[Ids]], prompts: list[bytes], plan: ScoringPlan
) -> list[Scores]:
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    found = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(runtimes) * steps(windows, plan))
        for runtime in runtimes:
            bar.update(task, description=runtime.backend.name)
            found.append(score(runtime, windows, prompts, plan, lambda: bar.advance(task)))
    return found


def _print(console: Console, result: EvalResult) -> None:
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


def _headline(result: EvalResult) -> str:
    """One line that says what the tables are about."""
    setting, plan, first = result.setting, result.plan, result.scores[0]
    source = "the user's files" if setting.data else "held-out text"
    windows = sum(map(len, result.windows.values()))
    return (
        f"{result.model} ({result.dtype}), {first.backend} on {first.device}; {source}: {windows} windows of "
        f"{setting.window_bytes} bytes, {plan.anchors} anchors in each; {result.prompts} prompts of "
        f"{setting.prompt_bytes} bytes, up to {plan.new_bytes} new bytes after each; seed {plan.seed}"
    )


def report(result: EvalResult) -> dict[str, Any]:
    """The JSON file: setting, figures by backend, agreement (null where one backend was scored)."""
    setting, plan = result.setting, result.plan
    settings = {
        **{name: getattr(setting, name) for name in ("windows", "window_bytes", "prompt_bytes")},
        "prompts": result.prompts,
        **{
            name: getattr(plan, name) for name in ("anchors", "new_bytes", "mask_size", "mask_rates", "latents", "seed")
        },
        "drafts": [method.name for method in plan.drafts],
        "blocks": [method.name for method in plan.blocks],
        "sampling": [{"method": point.method.name, "top_p": point.top_p} for point in plan.sampling],
        "heldout": not setting.data,
    }
    return {
        "fastblt": __version__,
        "model": {"name": result.model, "dtype": result.dtype},
        "setting": settings,
        "data": [{"name": name, "windows": len(cut)} for name, cut in result.windows.items()],
        "left_out": list(plan.left_out),
        "backends": {
            scores.backend: {
                "device": scores.device,
                "seconds": round(scores.seconds, 3),
                "figures": dataclasses.asdict(figures),
            }
            for scores, figures in zip(result.scores, result.figures, strict=True)
        },
        "agreement": _agreement(result) if result.checks else None,
    }


def _agreement(result: EvalResult) -> dict[str, Any]:
    return {
        "backends": [scores.backend for scores in result.scores],
        "bounds": dataclasses.asdict(BOUNDS[result.dtype]),
        "checks": [{**dataclasses.asdict(check), "agree": check.agree} for check in result.checks],
        "agree": all(check.agree for check in result.checks),
    }


def _write(out: Path, result: EvalResult) -> list[Path]:
    """Write JSON and plots, each file whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON_FILE, report(result))
    written = [out / JSON_FILE]
    if result.setting.plots:
        from fastblt.commands.eval_plots import write_plots

        written += write_plots(out, result.figures[0], result.model)
    return written


def _judge(bundle: Path, result: EvalResult, console: Console) -> None:
    """Say whether the backends agree."""
    if not result.checks:
        console.print(f"verdict: only {result.names} was scored, nothing to compare with", soft_wrap=True)
        return
    failed = [check.figure for check in result.checks if not check.agree]
    if failed:
        raise AgreementError(
            f"{bundle}: found that {result.names} differ in {', '.join(failed)} by more than rounding, "
            "expected the same figures"
        )
    console.print(f"verdict: {result.names} agree", soft_wrap=True)
