"""Cases that need a cluster; `test_fleet.py` runs them in a process of their own, which has one for all of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from fleet.cluster import Cluster, free_port, run_cluster, wait_until
from serving import test_openai_client as client_cases
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.fleet.replica import BUNDLE_HEADER, DIGITS, REPLICA_HEADER

ROOT = Path(__file__).resolve().parents[2]
SESSION_HEADER = "serve_multiplexed_model_id"
MAX_BYTES = 640
REPORT: dict[str, float] = {}

# Every case of the official client runs through the fleet, too.
globals().update({name: case for name, case in vars(client_cases).items() if name.startswith("test_")})


@pytest.fixture(scope="session")
def bundle() -> Path:
    return Path(os.environ["FASTBLT_FLEET_BUNDLE"])


@pytest.fixture(scope="session")
def reference(bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(bundle, max_bytes=MAX_BYTES, sequences=1, threads=1, reuse_prompts=False)


@pytest.fixture(scope="session")
def served(bundle: Path) -> Iterator[Cluster]:
    """Two replicas, as the command writes them."""
    options = ["--min-replicas", "2", "--cpus", "0.2", "--sequences", "4", "--threads", "1", "--drain", "5"]
    options += ["--max-bytes", str(MAX_BYTES), "--port", str(free_port()), "--model-name", "tiny"]
    written = CliRunner().invoke(app, ["fleet", "config", str(bundle), *options])
    assert written.exit_code == 0, written.output
    began = time.monotonic()
    with run_cluster(written.stdout) as found:
        REPORT["start"] = time.monotonic() - began
        REPORT["replica_mib"] = sum(map(resident, found.pids())) / 2 / 2**20
        yield found
    print("FLEET", json.dumps({name: round(value, 2) for name, value in REPORT.items()}))


def resident(pid: int) -> int:
    """Bytes of memory that a process has for itself and shares with others."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.fixture(scope="module")
def client(served: Cluster) -> openai.OpenAI:
    """The client of one session: its second turns find what its first ones have left."""
    headers = {SESSION_HEADER: "cases"}
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, default_headers=headers)


class Load:
    """Clients that ask one after the other until they are stopped."""

    def __init__(self, url: str, expected: dict[str, str], clients: int) -> None:
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=6, timeout=60)
        self.expected = expected
        self.answered = 0
        self.failed: list[str] = []
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def _ask(self, number: int) -> None:
        prompts = list(self.expected)
        while not self.ended.is_set():
            number += 1
            prompt = prompts[number % len(prompts)]
            try:
                found = self.client.completions.create(model="tiny", prompt=prompt, max_tokens=16, temperature=0)
            except openai.OpenAIError as error:
                self.failed.append(repr(error))
                continue
            self.answered += 1
            if found.choices[0].text != self.expected[prompt]:
                self.failed.append(f"{prompt}: found {found.choices[0].text!r}, expected {self.expected[prompt]!r}")


@contextmanager
def load(served: Cluster, reference: BltRuntime, clients: int = 4) -> Iterator[Load]:
    expected = {prompt: reference.generate(prompt, 16).text for prompt in ("one ", "two ", "three ")}
    found = Load(served.url, expected, clients)
    for thread in found.threads:
        thread.start()
    try:
        wait_until(lambda: found.answered >= clients, 30)
        yield found
    finally:
        found.ended.set()
        for thread in found.threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in found.threads)


def ask(served: Cluster, prompt: str, session: str) -> httpx.Response:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "temperature": 0}
    answer = served.http.post("/v1/completions", json=body, headers={SESSION_HEADER: session})
    assert answer.status_code == 200, answer.text
    return answer


def bundles(served: Cluster) -> set[str]:
    return {served.http.get("/health").headers[BUNDLE_HEADER] for _ in range(8)}


def test_sessions_stay_on_their_replica(served: Cluster) -> None:
    texts = {f"user {number}": f"This is what user {number} says first. " for number in range(8)}
    homes = {}
    for session, text in texts.items():
        answer = ask(served, text, session)
        homes[session] = answer.headers[REPLICA_HEADER]
        texts[session] += answer.json()["choices"][0]["text"].encode("ascii", "replace").decode()
    assert len(set(homes.values())) == 2
    for pause in (0.0, 0.0, 1.0):  # before and after Ray knows of the sessions
        time.sleep(pause)
        for session, text in texts.items():
            answer = ask(served, text + "And more.", session)
            assert answer.headers[REPLICA_HEADER] == homes[session]
        found = ask(served, texts["user 7"] + "And more, again.", "user 7").json()
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] > len("This is what user 7 says first. ")


def test_a_client_that_leaves_ends_its_text(served: Cluster) -> None:
    headers = {SESSION_HEADER: "who leaves"}
    body = {"model": "tiny", "prompt": "a", "max_tokens": MAX_BYTES - 1, "method": "ar", "stream": True}
    ended = 'fastblt_texts_total{finish="cancelled"}'
    assert ended not in served.http.get("/metrics", headers=headers).text
    with served.http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        next(answer.iter_raw())

    def ended_and_left() -> bool:  # its place is free once the round that it was in has ended
        metrics = served.http.get("/metrics", headers=headers).text
        return ended in metrics and "fastblt_places_in_use 0.0" in metrics

    wait_until(ended_and_left, 10)


def test_a_killed_replica_costs_no_request(served: Cluster, reference: BltRuntime) -> None:
    before = served.pids()
    assert len(before) == 2
    with load(served, reference) as found:
        os.kill(before[0], signal.SIGKILL)

        def recovered() -> bool:
            now = served.pids()
            return len(now) == 2 and before[0] not in now and served.running() == 2

        REPORT["recovery"] = wait_until(recovered, 90)
        answered = found.answered
        wait_until(lambda: found.answered > answered + 8, 30)
    REPORT["answered_around_kill"] = found.answered
    assert found.failed == []


def test_a_damaged_bundle_is_refused_and_the_one_before_goes_on(
    served: Cluster, bundle: Path, reference: BltRuntime, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "damaged")
    graph = tmp_path / "damaged" / "decoder.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    before = bundles(served)
    with load(served, reference, 2) as found:
        served.deploy(bundle=str(tmp_path / "damaged"))
    assert found.failed == []
    assert bundles(served) == before
    assert served.running() == 2
    served.deploy(bundle=str(bundle))


def test_another_bundle_costs_no_request(served: Cluster, bundle: Path, reference: BltRuntime, tmp_path: Path) -> None:
    """The same model with a manifest that is written otherwise, so that its texts can be compared all along."""
    from fastblt.runtime.fleet.options import BundleChoice

    shutil.copytree(bundle, tmp_path / "other")
    manifest = tmp_path / "other" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text(encoding="utf-8"))), encoding="utf-8")
    choice = BundleChoice.of(tmp_path / "other")
    assert choice.sha256 is not None
    pids = served.pids()
    with load(served, reference) as found:
        began = time.monotonic()
        served.deploy(**choice.to_dict())
        wait_until(lambda: bundles(served) == {str(choice.sha256)[:DIGITS]}, 60)
        REPORT["swap"] = time.monotonic() - began
        answered = found.answered
        wait_until(lambda: found.answered > answered + 8, 30)
    REPORT["answered_around_swap"] = found.answered
    assert found.failed == []
    assert served.pids() == pids, "the processes stay"


def test_figures_arrive_at_ray_s_exporter(served: Cluster) -> None:
    """Those of the dashboard, for both replicas; last, because Ray exports no counter that has never grown."""
    import ray

    dashboard = (ROOT / "docs" / "fleet" / "grafana.json").read_text(encoding="utf-8")
    wanted = set(re.findall(r"ray_fastblt_\w+", dashboard))
    assert len(wanted) > 8
    [node] = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with httpx.Client() as http:

        def missing() -> set[str]:
            return wanted - set(re.findall(r"^(ray_fastblt_\w+)[{ ]", http.get(url).text, re.MULTILINE))

        try:
            wait_until(lambda: not missing(), 20)
        except AssertionError:
            assert missing() == set()

        def replicas() -> set[str]:
            return set(re.findall(r'ray_fastblt_ready\{.*?replica="(\w+)"', http.get(url).text))

        wait_until(lambda: len(replicas()) >= 2, 20, lambda: f"replicas {replicas()}")
