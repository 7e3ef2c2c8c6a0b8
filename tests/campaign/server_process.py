"""Runs `fastblt serve` as a process of its own, and measures what it holds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

#: Seconds that a server may take to load and to end; the machine may be busy.
_START_SECONDS, _END_SECONDS = 120.0, 60.0


@dataclass(frozen=True)
class Held:
    """Holds what a process has of the system."""

    resident: int
    """Bytes."""
    descriptors: int
    threads: int


@dataclass
class ServerProcess:
    """Is a server that has answered that it is ready."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def held(self) -> Held:
        """Return what the process has of the system now."""
        folder = Path(f"/proc/{self.process.pid}")
        pages = int((folder / "statm").read_text().split()[1])
        counts = (len(os.listdir(folder / name)) for name in ("fd", "task"))
        return Held(pages * os.sysconf("SC_PAGE_SIZE"), *counts)

    def gauges(self) -> dict[str, float]:
        """Return the values of all metrics that have no labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {sample.name: sample.value for sample in samples if not sample.labels}

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status; -SIGKILL if the process does not end."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end of the process and return its exit status; kill it if that takes too long."""
        try:
            return self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def words(self) -> str:
        """Return the last of what the process has written."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]


@contextmanager
def running_server(bundle: Path, log: Path, *options: str) -> Iterator[ServerProcess]:
    """Start a server on a free port, wait until it is ready, and end it with the body.

    Raises:
        RuntimeError: it does not become ready.
    """
    port = _free_port()
    command = (sys.executable, "-m", "fastblt", "serve", str(bundle), "--port", str(port), *options)
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    server = ServerProcess(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_until_ready(server: ServerProcess) -> None:
    end = time.monotonic() + _START_SECONDS
    while server.process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{server.url}/ready", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server does not become ready: {server.words()}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
