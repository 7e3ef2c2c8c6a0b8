"""Turns errors into what a user sees when a command fails: one line and an exit status, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

P = ParamSpec("P")

#: Set (to anything) to see the traceback of an error instead of one line.
TRACEBACK_VARIABLE = "FASTBLT_TRACEBACK"

#: Exit status of a command that the user interrupted, as shells report it (128 + SIGINT).
INTERRUPTED = 130

#: The extra of this package that installs a package.
_EXTRA_OF = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "huggingface_hub": "export",
    "pysword": "train",
    "matplotlib": "train",
    "cuda": "gpu",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
}


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors that users can cause into ``error: ...`` on stderr and exit status 1.

    Those are `ValueError`, `OSError`, `MemoryError`, every exception that this package defines, and a package that is
    not installed. Anything else is a defect of the program and keeps its traceback.
    """

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            # The reader (`| head`) is gone: there is nothing to report, and exit must not flush into the closed pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if TRACEBACK_VARIABLE in os.environ or not _is_expected(error):
                raise
            typer.echo(f"error: {describe(error)}", err=True)
            raise typer.Exit(1) from None

    return guarded


def describe(error: Exception) -> str:
    """Return one line about an error, never empty."""
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRA_OF.get(error.name or "")
        remedy = f", install it with: pip install 'fastblt[{extra}]'" if extra else ""
        return f"this command needs the package {error.name}{remedy}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _is_expected(error: Exception) -> bool:
    """Decide whether an error is the user's to solve."""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith("fastblt")
    return isinstance(error, ValueError | OSError | MemoryError) or type(error).__module__.startswith("fastblt.")
