"""Turns errors into what a user sees when a command fails: one line and an exit status, no traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastblt.commands.escapes import visible
from fastblt.commands.exit_status import FAILURE, SIGNAL, SUCCESS, USAGE
from fastblt.commands.signals import SIGNALS
from fastblt.commands.streams import finish_streams, flush_output

#: Set (to anything) to see the traceback of an error instead of one line.
TRACEBACK_VARIABLE = "FASTBLT_TRACEBACK"

#: Where users report defects.
_REPORTS = "https://github.com/fastblt/fastblt/issues"

#: Number of SIGINT, which Python itself turns into `KeyboardInterrupt` where nobody handles signals.
_SIGINT = 2

#: The extra of this package that installs a package.
_EXTRA_OF = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "huggingface_hub": "export",
    "pysword": "train",
    "matplotlib": "train",
    "lm_eval": "eval",
    "httpx": "serve",
    "ray": "fleet",
    "yaml": "fleet",
    "fastapi": "serve",
    "jinja2": "serve",
    "prometheus_client": "serve",
    "pydantic": "serve",
    "sse_starlette": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "cuda": "gpu",
    "polygraphy": "gpu",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "onnxruntime": "jetpack6",  # with Python 3.10; newer ones have it anyway
}


class UsageError(ValueError):
    """Reports arguments that mean nothing, whatever the files that they name contain."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a `ValueError` of the body, which interprets arguments, into a `UsageError`."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def exit_status(command: Callable[[], Any]) -> int:
    """Run a command and return its exit status; an error becomes one line on standard error.

    Expected are `ValueError`, `OSError`, `MemoryError`, `RecursionError`, every exception that this package defines,
    and a package that is not installed. Anything else is a defect of the program, and reported as one.
    """
    try:
        found = command()
        flush_output()
    except SystemExit as end:
        found = end.code
    except KeyboardInterrupt as error:
        found = getattr(error, "status", SIGNAL + _SIGINT)
    except BrokenPipeError:  # the reader (`| head`) is gone: there is nothing to report, and nobody waits for the rest
        found = FAILURE
    except Exception as error:
        found = SIGNALS.status(_report(error) if SIGNALS.received is None else FAILURE)
    finish_streams()
    return found if isinstance(found, int) else SUCCESS


def _report(error: Exception) -> int:
    """Print what is known of an error, and return the exit status."""
    try:
        flush_output()  # of a table that is half printed: it comes before the error
    except OSError as found:
        error = OSError(f"cannot write to standard output: {found.strerror}")
    with suppress(OSError):  # the exit status is all that is left then
        if TRACEBACK_VARIABLE in os.environ:
            traceback.print_exception(error)
        else:
            print(f"error: {visible(describe(error))}", file=sys.stderr, flush=True)
    return USAGE if isinstance(error, UsageError) or hasattr(error, "format_message") else FAILURE


def describe(error: Exception) -> str:
    """Return one line about an error, never empty."""
    if hasattr(error, "format_message"):  # of the parser of arguments
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        message = " ".join(error.format_message().split()).rstrip(".")
        return f"{message[:1].lower()}{message[1:]}{hint}"
    if isinstance(error, ModuleNotFoundError) and _is_expected(error):
        extra = _EXTRA_OF.get(error.name or "")
        remedy = f", install it with: pip install 'fastblt[{extra}]'" if extra else ""
        return f"this command needs the package {error.name}{remedy}"
    if isinstance(error, FileNotFoundError) and not error.filename and _is_homeless():
        return "the current folder does not exist any more"
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory{message and f' ({message})'}"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply ({message})"
    if not _is_expected(error):
        name = type(error).__name__
        return (
            f"defect of fastblt: {name}{message and f': {message}'}; please set {TRACEBACK_VARIABLE}=1, run the "
            f"command again, and report what it prints: {_REPORTS}"
        )
    return message or type(error).__name__


def _is_homeless() -> bool:
    """Decide whether the current folder is gone: paths that are relative to it lead nowhere."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _is_expected(error: Exception) -> bool:
    """Decide whether an error is the user's to solve."""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith("fastblt")
    known = isinstance(error, ValueError | OSError | MemoryError | RecursionError)
    return known or type(error).__module__.startswith("fastblt.")
