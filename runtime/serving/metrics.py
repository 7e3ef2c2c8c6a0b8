"""Counts what the server does, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fastblt.runtime.backends.protocol import PARTS, parts_in
from fastblt.runtime.generation import Chunk
from fastblt.runtime.serving.text_job import TextJob

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Holds the counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"fastblt_{name}", text, labels, registry=registry)

        self._generated = counter("generated_bytes", "New bytes")
        self._prompt = counter("prompt_bytes", "Bytes of prompts")
        self._reused = counter("reused_bytes", "Leading bytes of prompts that an earlier text had read already")
        self._drafted = counter("drafted_bytes", "Bytes drafted for verification")
        self._accepted = counter("accepted_bytes", "Drafted bytes that verification kept")
        self._rounds = counter("rounds", "Rounds of decoding methods")
        self._calls = counter("calls", "Calls of each part of the model that each text has asked for", "part")
        self._graph_calls = counter(
            "graph_calls", "Calls of the graph of each part; fewer than those asked for, where texts share them", "part"
        )
        self._texts = counter("texts", "Texts that have ended, by why", "finish")
        self._requests = counter("requests", "Requests, by path and status", "path", "status")
        self._errors = counter("errors", "Requests that failed, by code", "code")
        self._first_byte = Histogram(
            "fastblt_first_byte_seconds",
            "From a request to its first byte, waiting included",
            registry=registry,
            buckets=_SECONDS,
        )
        self._total = Histogram(
            "fastblt_text_seconds", "From a request to the end of its text", registry=registry, buckets=_SECONDS
        )
        for part in PARTS:
            self._calls.labels(part)
            self._graph_calls.labels(part)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for whenever the metrics are read."""
        Gauge(f"fastblt_{name}", text, registry=self.registry).set_function(value)

    def grew(self, job: TextJob, chunk: Chunk) -> None:
        """Count a chunk."""
        if chunk.data:
            self._generated.inc(len(chunk.data))

    def ended(self, job: TextJob) -> None:
        """Count a text that was begun and has ended."""
        stats = job.stats
        self._prompt.inc(stats.prompt_bytes)
        self._reused.inc(stats.reused_bytes)
        self._drafted.inc(stats.drafted)
        self._accepted.inc(stats.accepted)
        self._rounds.inc(stats.rounds)
        for part in parts_in(stats.nfe):
            self._calls.labels(part).inc(stats.nfe[part])
            self._graph_calls.labels(part).inc(stats.graph_calls[part])
        self._texts.labels("error" if job.error else "cancelled" if job.cancelled else job.finish).inc()
        if job.first_byte_seconds is not None:
            self._first_byte.observe(job.first_byte_seconds)
        self._total.observe(job.total_seconds)

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def failed(self, code: str) -> None:
        """Count an error."""
        self._errors.labels(code).inc()

    def text(self) -> bytes:
        """Return all of it, as Prometheus reads it."""
        return generate_latest(self.registry)
