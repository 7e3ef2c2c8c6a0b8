"""A Ray cluster of one machine with a small fleet, for the cases in this folder."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

#: Variables of every process of Ray; set before it is imported. Machines that run tests are slow to start anything.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_metrics_report_interval_ms": "1000",
}
MIB = 2**20


class Cluster:
    """A fleet that runs: its address, its file, and the processes of its replicas."""

    def __init__(self, config: dict[str, Any]) -> None:
        from ray.serve import context

        self.config = config
        self.url = f"http://127.0.0.1:{config['http_options']['port']}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self._client: Any = context._get_global_client()

    def deploy(self, **user_config: str) -> None:
        """Apply the file, as ``serve deploy`` does, and wait until all replicas have it."""
        from ray.serve.schema import ServeDeploySchema

        [deployment] = self.config["applications"][0]["deployments"]
        deployment["user_config"].update(user_config)
        # Ray's own wait gives up after a minute, which a busy machine may need for the imports of two replicas.
        self._client.deploy_apps(ServeDeploySchema.model_validate(self.config), _blocking=False)
        wait_until(self._deployed, 240, self._statuses)

    def _deployed(self) -> bool:
        found = self._client.list_serve_statuses()
        states = [str(each.app_status.status) for each in found]
        assert not any("DEPLOY_FAILED" in state for state in states), self._statuses()
        return bool(states) and all("RUNNING" in state for state in states)

    def _statuses(self) -> str:
        return "\n".join(str(each) for each in self._client.list_serve_statuses())

    def running(self) -> int:
        """Return the number of replicas that Ray takes for running."""
        from ray import serve

        states = serve.status().applications["fastblt"].deployments["replica"].replica_states
        return states.get("RUNNING", 0)

    def pids(self) -> list[int]:
        """Return the processes of the replicas: children of the daemon that this process has started."""
        daemons = [pid for pid, (parent, _) in _processes().items() if parent == os.getpid()]
        return [
            pid
            for pid, (parent, line) in _processes().items()
            if parent in daemons and line.startswith("ray::ServeReplica:fastblt:")
        ]

    def wait_idle(self) -> None:
        """Do nothing: a fleet has no state that a test could look at."""


def wait_until(condition: Callable[[], bool], seconds: float, found: Callable[[], str] = str) -> float:
    """Wait, and return how long it took; what was ``found`` instead is told when it takes too long."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"it takes longer than {seconds} s: {found()}"
        time.sleep(0.05)
    return time.monotonic() - began


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def run_cluster(text: str) -> Iterator[Cluster]:
    """Run the fleet of a file that ``fastblt fleet config`` wrote."""
    os.environ.update(ENVIRONMENT)
    import ray
    from ray import serve

    config = yaml.safe_load(text)
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))  # the paths of sockets have to be short
    try:
        _start(folder)
        serve.start(proxy_location="HeadOnly", http_options=config["http_options"])
        found = Cluster(config)
        found.deploy()
        yield found
        found.http.close()
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> None:
    """Start Ray; it gives up after 30 seconds, which a busy machine may need to start ten processes."""
    import ray

    for attempt in range(3):
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=80 * MIB,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder),
                log_to_driver=False,
                logging_level="ERROR",
            )
            return
        except Exception as error:
            ray.shutdown()
            if attempt == 2 or "timed out during startup" not in str(error):
                raise


def _processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the command line of every process."""
    found = {}
    for each in Path("/proc").iterdir():
        try:
            if each.name.isdigit():
                parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(each.name)] = parent, (each / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended meanwhile
            continue
    return found
