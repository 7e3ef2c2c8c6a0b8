"""Runs trainings in one process, or in several that share them, and prints their losses as JSON.

``python -m fakes.shared_runs WORK OUT``; several processes find one another by the variables that ``torchrun`` sets.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from fakes.training_runs import step_clock

from fastblt.models.adapting.loop import Adapter
from fastblt.models.adapting.quality import HeldOut
from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.adapting.text_files import open_text
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.training import loop
from fastblt.models.training.loop import Trainer
from fastblt.models.training.processes import Processes, joined
from fastblt.models.training.recipe import TrainConfig

TEXT = b"".join(b"%d bottles of beer on the wall, %d bottles of beer; " % (i, i) for i in range(200))
ADAPT = AdaptConfig(steps=4, batch=4, window=48, block_size=4, rank=3, blocks=16, hold=0.0)
TRAIN = TrainConfig(
    "tiny", budget_seconds=2.0, patcher_seconds=1.0, window=48, long_window=96, batch=4, blocks=32, distilled=0.5
)


def main(work: Path, out: Path) -> None:
    """Run both kinds of training, print their losses from the first process."""
    torch.set_num_threads(1)
    HeldOut.original = HeldOut.drafts = lambda *_: {}  # type: ignore[method-assign]
    loop.evaluate = lambda *_: {}  # type: ignore[attr-defined]
    Trainer._clock = step_clock()  # type: ignore[method-assign]
    with joined("cpu") as (processes, _):
        losses = {"adapt": _adapt(work, out, processes), "train": _train(work, out, processes)}
        if processes.first:
            print(json.dumps(losses))


def _adapt(work: Path, out: Path, processes: Processes) -> list[float]:
    found: list[float] = []
    text = open_text([work / "text"], ADAPT.window)
    run = Adapter(ADAPT, open_checkpoint(work / "base"), text, out / "adapt", processes=processes)
    assert run.run(1e9, lambda progress, done, report: found.append(report["draft_nats"]))
    return found


def _train(work: Path, out: Path, processes: Processes) -> list[float]:
    found: list[float] = []
    split = open_text([work / "text"], 48).heldout
    run = Trainer(TRAIN, split, split, out / "train", processes=processes)
    assert run.run(1e9, lambda progress, done, report: found.extend(report.values()))
    return found


def run_processes(count: int, work: Path, out: Path) -> dict[str, list[float]]:
    """Run this module in new processes, and return the losses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["PYTHONPATH"] = os.pathsep.join(["tests", os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "fakes.shared_runs", str(work), str(out)]
    started = [
        subprocess.Popen(
            command,
            env={**shared, "WORLD_SIZE": str(count), "RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[2],
        )
        for rank in range(count)
    ]
    try:
        output, _ = started[0].communicate(timeout=900)
        assert [each.wait(timeout=300) for each in started] == [0] * count
    finally:
        for each in started:
            each.kill()
    found: dict[str, list[float]] = json.loads(output)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
