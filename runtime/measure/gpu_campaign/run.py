"""Runs the steps of a campaign one after the other: each in a process of its own, within its time box."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.measure.gpu_campaign.plan import MINUTES, PYTHON, Step
from fastblt.runtime.measure.gpu_campaign.record import DONE, FAILED, PENDING, SKIPPED, Found, Record
from fastblt.runtime.methods.registry import runnable

#: Seconds between the request to end and the end of a process that ignores it.
_GRACE = 10
#: A step is not begun with less time left than this part of its box.
_WORTH_BEGINNING = 0.25


def run_steps(
    record: Record, steps: Sequence[Step], minutes: float, on_step: Callable[[Step, Found | None], None]
) -> None:
    """Run every step that is not done yet, and keep what each finds.

    Args:
        record: of the campaign; written after every step.
        steps: in order; one that needs a step which is not among them takes the record's word for it.
        minutes: for all of them; the boxes of the steps are for `MINUTES` and scale with it.
        on_step: called before a step runs (with None), and with what every step found.

    Raises:
        OSError: the record or a log cannot be written.
    """
    ends = time.monotonic() + 60 * minutes
    for step in steps:
        if step.name in record.steps and record.steps[step.name].state == DONE:
            continue
        box, left = step.seconds * minutes / MINUTES, ends - time.monotonic()
        found = _without_running(record, step)
        if found is None and left < _WORTH_BEGINNING * box:
            found = Found(PENDING, error="the time was up; the same command continues here")
        if found is None:
            on_step(step, None)
            found = _run(step, min(box, left), record.folder)
        record.put(step.name, found)
        on_step(step, found)


def _without_running(record: Record, step: Step) -> Found | None:
    """Return what is known of a step that need not or cannot run; None: it has to run."""
    if step.already_there:
        return Found(DONE)
    if step.lacks:
        return Found(SKIPPED, error=step.lacks)
    for name in step.needs:
        state = record.steps[name].state if name in record.steps else PENDING
        if state != DONE:
            return Found(state if state == PENDING else SKIPPED, error=f"needs {name}, which is {state}")
    return None


def _run(step: Step, seconds: float, folder: Path) -> Found:
    """Run a step with its output in a log file."""
    log = folder / "steps" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if step.result is not None:
        step.result.unlink(missing_ok=True)  # of an earlier try
    command = _command(step)
    began = time.monotonic()
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as failure:
            return Found(FAILED, error=f"{command[0]}: {failure.strerror}", command=tuple(command))
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    took = round(time.monotonic() - began, 1)
    result = _json(step.result)
    if status == 0:
        return Found(DONE, took, "", tuple(command), result)
    error = f"took longer than its {seconds:.0f} s" if status is None else _error(log, status)
    return Found(FAILED, took, error, tuple(command), result)


def _command(step: Step) -> list[str]:
    """Return the command with this interpreter and the methods that the model can run."""
    command = [sys.executable if word == PYTHON else word for word in step.command]
    if step.methods and step.bundle is not None:
        config = Bundle.open(step.bundle, check=False).config
        command += ["--methods", ",".join(runnable(step.methods, config).names)]
    return [sys.executable, *command] if command[0].startswith("-") else command


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, if it still runs."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            else:
                process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return


def _json(path: Path | None) -> Any:
    """Return the content of a JSON file; None where there is none."""
    if path is None or not path.exists():
        return None
    with suppress(ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def _error(log: Path, status: int) -> str:
    """Return one line about a step that failed: the last error in its log, else the last line, else the status."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if status < 0:
        return f"ended by signal {-status}"
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit status {status}"])[-1]
