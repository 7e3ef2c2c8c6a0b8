"""What `fastblt bench --url` reports of the real server: its texts, its counts and its acceptance."""

from __future__ import annotations

import pytest
from fakes.served import Served

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.server_bench import run
from fastblt.runtime.measure.server_bench.request import ServerBenchRequest

PROMPTS = ["Once upon a time", "the quick é"]


@pytest.mark.parametrize("stream", [True, False])
def test_real_server_is_measured(
    served: Served, reference: BltRuntime, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(run, "device_info", dict)
    request = ServerBenchRequest(
        served.url, clients=(1, 6), duration=None, requests=6, max_new_bytes=20, methods=("s:4",), stream=stream
    )
    report = run.run_server_bench(request, PROMPTS)
    texts = [reference.generate(prompt, 20, method="s:4") for prompt in PROMPTS]
    drafted, accepted = (sum(getattr(text.stats, name) for text in texts) for name in ("drafted", "accepted"))
    for row in report.rows:
        assert (row.requests, row.errors) == (6, {})
        assert row.bytes == 3 * sum(len(str(text).encode()) for text in texts)
        assert row.tokens == 3 * sum(len(text.data) for text in texts)
        assert row.acceptance == pytest.approx(accepted / drafted)
        assert row.prompt_tokens == 3 * sum(len(prompt.encode()) for prompt in PROMPTS)
        assert (row.between_chunks_ms_p50 is not None) == stream
