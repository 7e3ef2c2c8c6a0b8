"""``fastblt adapt``: trains a draft decoder for a BLT, so that it can denoise blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.checkpoints import read_checkpoint
from fastblt.commands.checks import check_checkpoint, check_output_folder, pinned
from fastblt.commands.errors import usage_errors
from fastblt.commands.options import CheckpointArgument, DocumentMasksOption, PatcherOption, RevisionOption
from fastblt.commands.output import stdout
from fastblt.commands.train import Device, RunError, print_ending, refuse_existing_run, run_shown
from fastblt.models import limits
from fastblt.models.adapting.recipe import AdaptConfig

_DEFAULTS = AdaptConfig()
_FULL = "full"


def command(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Argument(help="Folder of the run: its state, its log and, at the end, the checkpoint.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text to learn from: a file, a folder of files, or a corpus that `fastblt data` built; can be given "
            "several times. A file is one document, or in a .jsonl file each line's field text  "
            "[default: build/corpus]",
        ),
    ] = None,
    block_size: Annotated[int, typer.Option(help="Longest block to denoise, in bytes.")] = _DEFAULTS.block_size,
    rank: Annotated[
        str, typer.Option(help="Rank of what is added to the decoder's matrices, or full for matrices of its own.")
    ] = str(_DEFAULTS.rank),
    steps: Annotated[int, typer.Option(help="Steps of training.")] = _DEFAULTS.steps,
    batch: Annotated[int, typer.Option(help="Windows of text in a step, all GPUs together.")] = _DEFAULTS.batch,
    window: Annotated[int, typer.Option(help="Tokens of a window.")] = _DEFAULTS.window,
    accumulate: Annotated[
        int, typer.Option(help="Pieces of a step on each GPU, one after the other: less memory.")
    ] = _DEFAULTS.accumulate,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Compute activations twice instead of keeping them.")
    ] = False,
    distill: Annotated[
        float, typer.Option(help="Part of the blocks that hold the model's own drafts instead of the text.")
    ] = _DEFAULTS.distilled,
    position_decay: Annotated[
        float, typer.Option(help="Bytes over which the weight of a block's bytes falls to 1/e.")
    ] = _DEFAULTS.position_decay,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = _DEFAULTS.learning_rate,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = _DEFAULTS.seed,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after this much time; --resume continues later.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    patcher: PatcherOption = None,
    revision: RevisionOption = None,
    document_masks: DocumentMasksOption = None,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.CPU,
    threads: Annotated[
        int | None, typer.Option(min=1, max=limits.THREADS, help="CPU threads  [default: all cores]")
    ] = None,
) -> None:
    """Give a BLT block drafts: train a draft decoder beside it.

    Nothing else is trained. What the adapted model writes with ar, s:K and dv is what the original writes, byte for
    byte. Several GPUs: torchrun --nproc-per-node N -m fastblt adapt ...
    """
    with usage_errors():
        config = dataclasses.replace(
            _DEFAULTS,
            block_size=block_size,
            rank=_rank(rank),
            steps=steps,
            batch=batch,
            window=window,
            accumulate=accumulate,
            checkpoint_activations=checkpoint_activations,
            distilled=distill,
            position_decay=position_decay,
            learning_rate=learning_rate,
            seed=seed,
        )
    checkpoint = pinned(checkpoint, revision)
    check_checkpoint(checkpoint)
    check_checkpoint(patcher)
    refuse_existing_run(out, resume)
    check_output_folder(out)
    _run(
        config,
        _Source(checkpoint, patcher, document_masks, text or [Path("build/corpus")]),
        out,
        device,
        threads,
        resume,
        max_seconds,
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """Names what is adapted, and the text that it learns from."""

    checkpoint: str
    patcher: str | None
    document_masks: bool | None
    text: list[Path]


def _rank(text: str) -> int | None:
    """Return the rank that an option asks for; None: full matrices."""
    if text == _FULL:
        return None
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"--rank: found {text!r}, expected a positive integer or {_FULL}")
    return int(text)


def _run(
    config: AdaptConfig,
    source: _Source,
    out: Path,
    device: Device,
    threads: int | None,
    resume: bool,
    max_seconds: float | None,
) -> None:
    """Train in the processes that there are; one of them prints."""
    import torch

    from fastblt.models.adapting.loop import Adapter
    from fastblt.models.adapting.memory import check_plain
    from fastblt.models.adapting.text_files import open_text
    from fastblt.models.training.processes import joined

    if device == Device.CUDA and not torch.cuda.is_available():
        raise RunError("device: found cuda, expected cpu: PyTorch sees no GPU here")
    if threads is not None:
        torch.set_num_threads(threads)
    with joined(device.value) as (processes, here):
        console = stdout()
        console.quiet = not processes.first
        base = read_checkpoint(console, source.checkpoint, patcher=source.patcher, document_masks=source.document_masks)
        check_plain(base)
        found_text = open_text(source.text, config.window)
        adapter = Adapter(config, base, found_text, out, here, processes)
        if resume:
            found = adapter.resume()
            where = f"continues at step {adapter.progress.step}" if found else "holds no run yet, starts one"
            console.print(f"{out}: {where}", soft_wrap=True)
        if not adapter.progress.step:
            console.print("measuring the model on held-out text, before the first step")
        done = run_shown(adapter, console, out, max_seconds, "bits/hidden byte", first=processes.first)
        print_ending(console, out, done=done)
