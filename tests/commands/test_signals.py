"""Signals end the program with their status, quietly, and nothing half done is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("default_signals")

#: Runs the program with one import, or one function, that reports that it was reached and then waits.
WAITING = """
import sys, time
class Place:
    def find_spec(self, name, *_):
        if name == {module!r}:
            wait()
def wait(*arguments, **options):
    print("waiting", file=sys.stderr, flush=True)
    {wait}
{prepare}
sys.meta_path.insert(0, Place())
from fastblt.__main__ import main
main()
"""
SLEEP = "time.sleep(30)"


def start(
    wait: str, *arguments: object, module: str = "fastblt.commands.inspect", prepare: str = ""
) -> subprocess.Popen[str]:
    """Start a command, and return when it has reached a place."""
    code = WAITING.format(wait=wait, module=module, prepare=prepare)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "waiting\n"
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a process, and return its exit status and what it printed."""
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda each: int(each),
)
def test_signal_while_a_file_is_written_leaves_nothing(
    number: signal.Signals, status: int, tiny_bundle: Path, tmp_path: Path
) -> None:
    prepare = "import tarfile; tarfile.TarFile.addfile = wait"
    process = start(SLEEP, "pack", tiny_bundle, tmp_path / "x.tar", module="", prepare=prepare)
    process.send_signal(number)
    assert end(process) == (status, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_imports_ends_quietly(number: signal.Signals) -> None:
    process = start(SLEEP, "inspect", "random:tiny")
    process.send_signal(number)
    assert end(process) == (128 + number, "", "")


def test_signal_that_python_drops_is_raised_again() -> None:
    """As in ``__del__``, exceptions in callbacks of weak references are printed and dropped."""
    wait = """import weakref
    class Object: pass
    def callback(_): time.sleep(30)
    found = Object()
    reference = weakref.ref(found, callback)
    del found
    time.sleep(30)"""
    process = start(wait, "inspect", "random:tiny")
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", "")


def test_signal_that_an_import_hides_is_no_other_error() -> None:
    wait = """try:
        time.sleep(30)
    except KeyboardInterrupt:
        raise ImportError("no numpy")"""
    process = start(wait, "inspect", "random:tiny")
    process.send_signal(signal.SIGTERM)
    assert end(process) == (143, "", "")


def test_signal_waits_until_pytorch_is_imported(tmp_path: Path) -> None:
    """Its C++ would abort the process."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(0.3)\nprint('imported', flush=True)\n")
    wait = f"sys.path.insert(0, {str(tmp_path)!r}); import torch; time.sleep(30)"
    process = start(wait, "inspect", "random:tiny")
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (143, "imported\n", "")


def test_second_signal_ends_a_library_that_does_not_return() -> None:
    # Blocked in this thread, signals arrive in another, and do not interrupt what this one calls.
    prepare = """
import ctypes, os, signal
from fastblt.commands import signals
signals.SAME_SECONDS = 1.0  # a busy machine may take half a second between two signals
libc, buffer, pipe = ctypes.CDLL(None), ctypes.create_string_buffer(1), os.pipe()
def place():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    wait()
Place.find_spec = lambda self, name, *_: name == "fastblt.commands.inspect" and place() or None
"""
    process = start("libc.read(pipe[0], buffer, 1)", "inspect", "random:tiny", prepare=prepare)
    time.sleep(0.3)  # until it is inside the library: the line that it prints comes before
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # the same one again, as `timeout` sends it
    time.sleep(1.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", "")


def test_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    prepare = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = start("time.sleep(0.3)", "inspect", tmp_path, prepare=prepare)
    process.send_signal(signal.SIGHUP)
    assert end(process)[0] == 1  # there is no checkpoint in the folder


def test_importing_the_package_installs_no_handler() -> None:
    code = """
import signal, fastblt, fastblt.cli, fastblt.runtime.blt_runtime
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.set_wakeup_fd(-1) == -1
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
