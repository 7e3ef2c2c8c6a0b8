"""``fastblt lm-eval``: runs lm-evaluation-harness, which then knows the model ``fastblt``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from fastblt.commands.errors import UsageError, usage_errors
from fastblt.commands.escapes import visible, visible_lines

#: What the harness understands is passed on to it.
CONTEXT_SETTINGS: dict[str, Any] = {"ignore_unknown_options": True}


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="ARGUMENTS...", help="What the command `lm_eval` takes; after `--` its own --help, too."
        ),
    ],
) -> None:
    """Run lm-evaluation-harness over a bundle.

    As `lm_eval`, which has no way to load models of other packages, with the model fastblt added:
    `fastblt lm-eval --model fastblt --model_args bundle=BUNDLE,method=s:8 --tasks TASKS`.

    Keys of --model_args: bundle, method, backend, provider, max_bytes, threads, bytes_per_token, seed. A byte is a
    token. --batch_size is the number of texts at once.
    """
    with usage_errors():
        _check_visible(arguments)
    from lm_eval.__main__ import cli_evaluate

    import fastblt.runtime.measure.harness.model  # noqa: F401  # registers the model

    before = sys.argv
    sys.argv = ["fastblt lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def _check_visible(arguments: list[str]) -> None:
    """Raise where an argument would be obeyed by the terminal: the harness prints those that it does not know."""
    for argument in arguments:
        if visible_lines(argument) != argument:
            raise UsageError(f"lm-eval: found control characters in '{visible(argument)}', expected text")
