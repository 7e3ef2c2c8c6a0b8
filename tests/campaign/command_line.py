"""Runs commands inside the worker and judges how they end."""

from __future__ import annotations

from campaign.judge import Judge
from typer.testing import CliRunner

from fastblt.cli import app


def run_command(judge: Judge, argv: list[str]) -> int:
    """Run a command; return its exit status.

    It must be 0, 1 with a line of error, or 2. Nothing that the terminal would obey is printed, wherever it came from.
    """
    result = CliRunner().invoke(app, argv, env={"COLUMNS": "100"}, input=b"prompt\n")
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        judge.call(_throw, error)
        if not judge.counts.failures:
            judge.fail("traceback", f"{type(error).__name__} reaches the user of {argv[0]}: {error}")
    elif result.exit_code not in (0, 1, 2):
        judge.fail("other", f"{argv[0]}: exit status {result.exit_code}")
    elif result.exit_code == 1:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        if not lines or not lines[-1].startswith("error: "):
            judge.fail("other", f"{argv[0]}: exit status 1 without a line of error: {lines[-1:]}")
    if argv[0] != "generate" and "\x1b" in result.output:
        judge.fail("other", f"{argv[0]}: a terminal escape is printed")
    if result.exit_code != 0 and not judge.counts.failures:
        judge.refusals.append("refused")
    return result.exit_code


def _throw(error: BaseException) -> None:
    raise error
