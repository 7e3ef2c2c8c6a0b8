"""Is a Python process that has imported what commands import, and forks one child per command.

``python warm_process.py SOURCE`` reads one request a line from standard input, as JSON, and answers with one line. The
child runs the entry point of the installed program to its end, as a process of its own would, only without seconds of
imports before it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import tomllib

#: What commands import when they start to work. None of it may start threads, as ONNX
#: Runtime does when it is imported: they would be missing in children.
MODULES = (
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors.torch",
    "torch",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "fastblt.cli",
    "fastblt.export.graph_builder",
    "fastblt.models.training.loop",
    "fastblt.models.training.report",
    "fastblt.runtime.blt_runtime",
)


def entry_point() -> Callable[[], object]:
    """Return what the program ``fastblt`` calls."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, name = project["project"]["scripts"]["fastblt"].partition(":")
    found: Callable[[], object] = getattr(importlib.import_module(module), name)
    return found


def warm_up() -> None:
    """Import everything, and stay a process of one thread."""
    for name in MODULES:
        importlib.import_module(name)
    from fastblt.cli import COMMANDS

    for name in COMMANDS:
        importlib.import_module(f"fastblt.commands.{name.replace('-', '_')}")
    sys.modules["torch"].set_num_threads(1)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"warm process: found {threads} threads, expected one, or forks are not safe")


def become_command(request: dict[str, Any]) -> None:
    """Prepare this process, a child, to run a command: its folder, its streams and its rule of faults."""
    # Signals are for the command: one that comes earlier waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    for stream, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, stream)
        os.close(opened)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if request["toy"]:
        importlib.import_module("campaign.toy_corpus").install()
    sys.argv = ["fastblt", *request["arguments"]]
    if request["rule"]:
        ctypes.CDLL(None).fault_arm(request["rule"].encode())
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    except KeyboardInterrupt:  # it came before the command began, which is what ends so
        os._exit(128 + signal.SIGINT)


def run_to_the_end(command: Callable[[], object]) -> NoReturn:
    """Run a command as the interpreter would, and exit without taking hundreds of idle modules apart for a second."""
    status = 0
    try:
        command()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does first of all
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        status = 120
    sys.stderr.flush()
    os._exit(status)


def look_after(child: int, request: dict[str, Any]) -> dict[str, Any]:
    """Send the child the signal that is asked for, wait for it, and return how it ended."""
    started = time.monotonic()
    descriptor = os.pidfd_open(child)
    limit, late = float(request["limit"]), False
    try:
        if request["signal"] and not select.select([descriptor], [], [], request["after"])[0]:
            signal.pidfd_send_signal(descriptor, request["signal"])
        if not select.select([descriptor], [], [], limit)[0]:
            late = True
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(descriptor)
    _, status, usage = os.wait4(child, 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "late": late,
        "seconds": time.monotonic() - started,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
    }


def main() -> None:
    """Answer requests."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    warm_up()
    gc.freeze()
    command = entry_point()
    answers = os.fdopen(os.dup(1), "w")
    os.set_inheritable(answers.fileno(), False)
    os.dup2(2, 1)  # whatever prints must not write into the answers
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            become_command(request)
            run_to_the_end(command)
        print(json.dumps(look_after(child, request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
