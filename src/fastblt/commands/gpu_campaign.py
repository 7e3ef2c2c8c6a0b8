"""``fastblt gpu-campaign``: checks and measures everything on this machine's GPU, and writes a report."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import fastblt
from fastblt.commands.checks import check_checkpoint, check_output_folder
from fastblt.commands.errors import UsageError
from fastblt.commands.options import split_names
from fastblt.commands.output import add_row, left, make_table, note, print_table, right, stderr, stdout, words
from fastblt.models.atomic_file import write_file
from fastblt.runtime.bundle.manifest import is_bundle
from fastblt.runtime.driver import bindings_problem, driver_cuda
from fastblt.runtime.machine import package_version
from fastblt.runtime.measure.gpu_campaign.plan import MINUTES, REPLAY_CHECKPOINT, Site, Step, plan
from fastblt.runtime.measure.gpu_campaign.record import (
    DONE,
    FAILED,
    PENDING,
    CampaignError,
    Found,
    Record,
    describe_machine,
    open_record,
)
from fastblt.runtime.measure.gpu_campaign.report import REPORT_FILE, ROWS_FILE, STUB_WARNING, deploy_rows, report
from fastblt.runtime.measure.gpu_campaign.run import run_steps

#: The checkpoint of the repository, if this is a clone of it.
SHIPPED = Path(fastblt.__file__).resolve().parents[2] / "checkpoints" / "blt-d-8m"
_DOCTOR_SECONDS = 180


def command(
    out: Annotated[Path, typer.Argument(help="Folder to write to; a campaign that is there already is continued.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Checkpoint to export and verify  [default: checkpoints/blt-d-8m of a clone]"),
    ] = None,
    replay_checkpoint: Annotated[
        str, typer.Option(help="Checkpoint to replay the paper's acceptance rates with.")
    ] = REPLAY_CHECKPOINT,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=10_000, help="Time for all steps; each has a share of it.")
    ] = MINUTES,
    steps: Annotated[str, typer.Option(help="Comma-separated steps to run  [default: all]")] = "",
) -> None:
    """Check and measure everything on this machine's GPU.

    Runs doctor, verify in every type, audit, bench with the PyTorch baselines, a replay at 1B, launches and waits, a
    profile, and the engines that this machine can run. Steps that are done are not run again, what the machine lacks is
    skipped, and a step that fails does not stop the others.
    """
    if math.isnan(minutes):
        raise UsageError("--minutes: found nan, expected a number")
    check_output_folder(out)
    check_checkpoint(checkpoint)
    check_checkpoint(replay_checkpoint)
    source = _source(out, checkpoint)
    with stderr().status("looking for a GPU"):
        doctor = _doctor()
    site = Site(out.resolve(), source, replay_checkpoint, doctor, shutil.which("nsys"))
    planned = plan(site)
    chosen = _choose(planned, steps)
    record = open_record(site.folder, describe_machine(doctor["facts"], source, replay_checkpoint))
    console = stdout()
    if record.stub:
        note(console, STUB_WARNING)
    record.put("doctor", Found(DONE, result=doctor))
    run_steps(record, chosen, minutes, lambda step, found: _on_step(record, planned, step, found))
    _write_reports(record, planned)
    print_table(console, _table(record, chosen))
    note(console, f"report: {out / REPORT_FILE}; rows of docs/deploy.md: {out / ROWS_FILE}")
    _check(record, chosen, out)


def _source(out: Path, checkpoint: str | None) -> str | None:
    """Return the checkpoint, absolute where it is a folder; None where bundles are there and nothing else is."""
    if checkpoint is None and SHIPPED.is_dir():
        return str(SHIPPED)
    if checkpoint is None:
        if any(map(is_bundle, out.glob("bundles/*"))):
            return None
        raise CampaignError(
            f"checkpoint: found none beside the package and no bundles in {out / 'bundles'}, expected "
            "--checkpoint CHECKPOINT"
        )
    return str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else checkpoint


def _doctor() -> dict[str, Any]:
    """Return what `fastblt doctor` finds, in a process of its own: this one uses no memory of the GPU.

    Raises:
        CampaignError: there is no GPU that CUDA can use.
    """
    problem = bindings_problem(driver_cuda(), package_version("cuda-bindings"))
    if problem is not None:
        raise CampaignError(f"found no GPU that CUDA can use: {problem}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "doctor.json"
        command = [sys.executable, "-m", "fastblt", "doctor", "--json", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_DOCTOR_SECONDS)
        except subprocess.TimeoutExpired:
            raise CampaignError(
                f"fastblt doctor: found no report after {_DOCTOR_SECONDS} s, expected one of this machine"
            ) from None
        if done.returncode or not file.exists():
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise CampaignError(f"fastblt doctor: found a failure ({last}), expected a report of this machine")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if not found["facts"]["gpus"]:
        verdict = next(each for each in found["verdicts"] if each["way"] == "onnxruntime --provider cuda")
        remedy = f": {verdict['remedy']}" if verdict["remedy"] else ""
        raise CampaignError(f"found no GPU that CUDA can use: {verdict['reason']}{remedy}")
    return found


def _choose(planned: list[Step], names: str) -> list[Step]:
    """Return the steps of these names, in the order of the plan; all where there are none.

    Raises:
        UsageError: there is no such step.
    """
    wanted, known = split_names(names), [step.name for step in planned]
    for name in wanted:
        if name not in known:
            raise UsageError(f"--steps: found {name!r}, expected some of {', '.join(known)}")
    return [step for step in planned if not wanted or step.name in wanted]


def _on_step(record: Record, planned: list[Step], step: Step, found: Found | None) -> None:
    """Report progress, and write the reports after each step, so that there is one whatever happens."""
    if found is None:
        note(stderr(), f"{step.name}: {step.shows}")
        return
    if found.state == FAILED:
        note(stderr(), f"{step.name}: failed: {found.error}")
    _write_reports(record, planned)


def _write_reports(record: Record, planned: list[Step]) -> None:
    write_file(record.folder / REPORT_FILE, report(record, planned))
    write_file(record.folder / ROWS_FILE, deploy_rows(record) + "\n")


def _table(record: Record, chosen: list[Step]) -> Any:
    table = make_table(left("step"), left("state"), right("s"), words("why"))
    for step in chosen:
        found = record.steps[step.name]
        add_row(table, step.name, found.state, f"{found.seconds:.0f}", found.error)
    return table


def _check(record: Record, chosen: list[Step], out: Path) -> None:
    """Raise `CampaignError` where steps failed or were not reached; what was skipped is no failure."""
    kinds = ((FAILED, "that failed"), (PENDING, "that were not reached"))
    names = {words: [s.name for s in chosen if record.steps[s.name].state == state] for state, words in kinds}
    parts = [f"steps {words} ({', '.join(found)})" for words, found in names.items() if found]
    if parts:
        raise CampaignError(f"{out}: found {' and '.join(parts)}, expected none; see {out / REPORT_FILE}")
