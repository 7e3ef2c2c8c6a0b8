"""``fastblt train``: runs a recipe with a progress bar, and prints evaluations as lines above it."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastblt.commands.checks import check_checkpoint, check_output_folder, pinned
from fastblt.commands.choice import Choice
from fastblt.commands.errors import UsageError
from fastblt.commands.options import RevisionOption
from fastblt.commands.output import stdout
from fastblt.models import limits
from fastblt.models.formats.hub import locate
from fastblt.models.formats.hub_id import is_hub_id
from fastblt.models.training.corpus import Corpus, load_corpus
from fastblt.models.training.recipe import TrainConfig
from fastblt.models.training.run_files import CHECKPOINT_FOLDER, LOG_FILE, STATE_FILE
from fastblt.runtime.measure.report import write_json

if TYPE_CHECKING:
    from fastblt.models.training.loop import OnStep
    from fastblt.models.training.state import Progress as TrainProgress


class RunError(ValueError):
    """Reports a training run that cannot be started as asked."""


class Device(Choice):
    """Where training runs."""

    CPU = "cpu"
    CUDA = "cuda"


def command(
    config: Annotated[str, typer.Argument(help="Recipe: a JSON file, or the name of one that ships with fastblt.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: its state, its log and, at the end, the checkpoint.")],
    data: Annotated[Path, typer.Option(help="Corpus that `fastblt data` built.")] = Path("build/corpus"),
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after this much time; --resume continues later.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    init: Annotated[
        str | None,
        typer.Option(help="Checkpoint to start from, patcher included: {layouts}  [default: random weights]"),
    ] = None,
    revision: RevisionOption = None,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.CPU,
    threads: Annotated[
        int | None, typer.Option(min=1, max=limits.THREADS, help="CPU threads  [default: all cores]")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the layers first, which needs a C++ compiler and a minute.")
    ] = False,
) -> None:
    """Train a model from a recipe."""
    recipe = load_recipe(config)
    refuse_existing_run(out, resume)
    check_output_folder(out)
    if init is not None:
        init = pinned(init, revision)
        if not resume:  # a run in the folder would not read it
            check_checkpoint(init)
    elif revision is not None:
        raise UsageError("--revision: found no --init, expected the checkpoint that it is of")
    corpus = load_corpus(data)
    import torch

    from fastblt.models.training.loop import Trainer
    from fastblt.models.training.processes import joined

    if device == Device.CUDA and not torch.cuda.is_available():
        raise RunError("device: found cuda, expected cpu: PyTorch sees no GPU here")
    if threads is not None:
        torch.set_num_threads(threads)
    if compiled:
        check_compiler()
    with joined(device.value) as (processes, here):
        trainer = Trainer(recipe, corpus.train, corpus.heldout, out, here, processes, compiled=compiled)
        console = stdout()
        console.quiet = not processes.first
        found = trainer.resume() if resume else False
        if resume:
            p = trainer.progress
            where = f"continues at step {p.step} of phase {p.phase}" if found else "holds no run yet, starts one"
            console.print(f"{out}: {where}", soft_wrap=True)
        if init is not None and not found:
            base = locate(init)
            trainer.start_from(base.folder)
            if is_hub_id(base.name):
                console.print(f"{out}: starts from {base.name}", soft_wrap=True)
        done = run_shown(trainer, console, out, max_seconds, "bits/byte", first=processes.first)
        if done and processes.first:
            _report(out, corpus, console)
        print_ending(console, out, done=done)


class Runnable(Protocol):
    """Trains until it is done or time is up."""

    def run(self, max_seconds: float, on_step: OnStep | None = None) -> bool:
        """Return whether it is done."""
        ...


def run_shown(
    trainer: Runnable, console: Console, out: Path, max_seconds: float | None, unit: str, *, first: bool
) -> bool:
    """Run a training with a progress bar, and return whether it is done.

    Args:
        trainer: to run.
        console: to print to.
        out: folder of the run.
        max_seconds: when to stop; None: when it is done.
        unit: of the loss.
        first: whether this process shows what it does; others that share the run do not.
    """
    with Display(console, out / LOG_FILE, unit) as display:
        try:
            done = trainer.run(math.inf if max_seconds is None else max_seconds, display.on_step if first else None)
        except KeyboardInterrupt:
            console.print(f"{out}: interrupted, --resume continues from the last save", soft_wrap=True)
            raise
        if first:
            display.print_evaluations()
    return done


def print_ending(console: Console, out: Path, *, done: bool) -> None:
    """Print where the checkpoint is, or that time is up."""
    ending = f"done, see {out / CHECKPOINT_FOLDER}" if done else f"{out}: time is up, --resume continues"
    console.print(ending, soft_wrap=True)


def check_compiler() -> None:
    """Raise `RunError` unless PyTorch finds a C++ compiler: it looks for one only when the first step is under way."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise RunError(f"--compile: found no C++ compiler, expected g++ or the one that CXX names ({error})") from error


def _report(out: Path, corpus: Corpus, console: Console) -> None:
    """Evaluate a finished run on every held-out corpus, and plot its curves."""
    from fastblt.models.checkpoint import load_checkpoint
    from fastblt.models.training.report import CURVES_FILE, REPORT_FILE, heldout_report, plot_curves

    console.print("evaluating on every held-out corpus")
    write_json(out / REPORT_FILE, heldout_report(load_checkpoint(out / CHECKPOINT_FOLDER), corpus))
    if find_spec("matplotlib") is None:
        console.print("no plot of the curves: matplotlib is not installed (pip install matplotlib)", soft_wrap=True)
    else:
        plot_curves(out / LOG_FILE, out / CURVES_FILE)


def load_recipe(name: str) -> TrainConfig:
    """Read a recipe from a JSON file, or a shipped one by its name.

    Raises:
        ConfigError: the file cannot be read or is no recipe.
        RunError: neither a file nor a shipped recipe.
    """
    if Path(name).is_file():
        return TrainConfig.load(Path(name))
    folder = files("fastblt.models.training") / "recipes"
    shipped = folder / f"{name}.json"
    if not shipped.is_file():
        names = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir())
        raise RunError(f"recipe {name!r}: neither a file nor one of the shipped recipes {', '.join(names)}")
    with as_file(shipped) as path:
        return TrainConfig.load(path)


def refuse_existing_run(out: Path, resume: bool) -> None:
    """Raise `RunError` where starting would overwrite a run."""
    found = [name for name in (STATE_FILE, LOG_FILE, CHECKPOINT_FOLDER) if (out / name).exists()]
    if found and not resume:
        raise RunError(f"{out}: found {found[0]} of an earlier run, expected a new folder or --resume")


@dataclass
class Display:
    """Shows the progress bar of a run, and its evaluations as they appear in the log."""

    console: Console
    log: Path
    unit: str = "bits/byte"
    """Of the loss that is shown, the first one of a step's report."""
    _nats: float = 0.0
    _phase: str = ""
    _first_tokens: int = 0
    _first_time: float = 0.0
    _log_read: int = 0
    _task: TaskID = field(init=False)
    _bar: Progress = field(init=False)

    def __post_init__(self) -> None:
        self._log_read = self.log.stat().st_size if self.log.exists() else 0
        self._bar = Progress(
            TextColumn("{task.description:8}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:5.1f} %  {task.fields[speed]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            # A step takes a tenth of a second or more: a faster refresh would only cost training time.
            refresh_per_second=2,
        )

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_step(self, progress: TrainProgress, done: float, report: dict[str, float]) -> None:
        """Show one step; ``done`` is the finished share of the phase, ``report`` holds the losses in nats."""
        nats = next(iter(report.values()), 0.0)
        if progress.phase != self._phase:
            self._start_phase(progress, nats)
        self._nats += 0.05 * (nats - self._nats)
        seconds = time.monotonic() - self._first_time
        speed = (progress.tokens - self._first_tokens) / seconds if seconds > 0 else 0.0
        self._bar.update(
            self._task,
            completed=100 * done,
            speed=f"{self._nats / math.log(2):.3f} {self.unit}  {speed:,.0f} tokens/s  step {progress.step}",
        )
        self.print_evaluations()

    def _start_phase(self, progress: TrainProgress, nats: float) -> None:
        self._phase, self._nats = progress.phase, nats
        self._first_tokens, self._first_time = progress.tokens, time.monotonic()
        self._task = self._bar.add_task(progress.phase, total=100, speed="")

    def print_evaluations(self) -> None:
        """Print the log's new lines."""
        if not self.log.exists() or self.log.stat().st_size == self._log_read:
            return
        with self.log.open("rb") as file:
            file.seek(self._log_read)
            new = file.read()
        whole, _, _ = new.rpartition(b"\n")
        self._log_read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            self.console.print(evaluation_line(json.loads(line)), soft_wrap=True)


def evaluation_line(record: dict[str, Any]) -> str:
    """Return one record of ``log.jsonl`` as a line: step and time, then every measure."""
    where = f"{record['phase']} step {record['step']} ({record['seconds']:.0f} s)"
    known = {"phase", "step", "seconds", "total_seconds", "tokens", "threshold"}
    measures = [f"{name} {value:.4g}" for name, value in record.items() if name not in known]
    return "  ".join([where, *measures])
