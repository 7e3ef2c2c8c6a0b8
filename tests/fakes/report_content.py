"""Holds what a page of ``fastblt report`` shows, with figures that are all known and texts that try to be markup."""

from __future__ import annotations

from collections.abc import Callable

from fakes.bench_measurement import ORT, measurement

from fastblt.commands.report_page.texts import Samples
from fastblt.runtime.generation import Chunk
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchReport, BenchRequest
from fastblt.runtime.measure.samples import Sample
from fastblt.runtime.sequence.stats import RunStats

EVIL = "\"'><img src=//example.org/x onerror=alert(1)><script>alert(1)</script><style>*{display:none}</style>&amp;"

DEVICE = {
    "cpu": "Processor",
    "cores": 4,
    "usable_cores": 2,
    "threads": None,
    "memory_gb_per_s": 12.5,
    "gpus": [],
    "os": "System",
    "python": "3.11",
    "versions": {"fastblt": "1"},
}

QUALITY = {"bits_per_byte": 1.5, "agreement": 0.98, "boundaries": 1.0, "masked": None, "acceptance": {"s:8": 0.625}}
QUANTIZATION = {
    "scheme": "w8",
    "graphs": {"decoder": {}},
    "quality": {"before": QUALITY, "after": {**QUALITY, "bits_per_byte": 1.5625}},
    "weight_bytes": {"decoder": {"before": 8_000_000, "after": 2_000_000}},
}


def chunk(data: bytes, kind: str, rejected: bytes = b"", ends: tuple[int, ...] = ()) -> Chunk:
    return Chunk(data, (kind,) * len(data), rejected, ends)  # type: ignore[arg-type]


def samples(prompt: bytes = b"Prompt ", text: bytes = b"The text.") -> Samples:
    """Texts of every kind of byte: by ``ar``; the same by ``s:8``; another by ``d:8@0.7``."""
    plain = (chunk(text, "sampled", ends=(0, 3)),)
    drafted = (chunk(text[:4], "accepted"), chunk(text[4:5], "corrected", text[::-1]), chunk(text[5:], "free"))
    other = (chunk(text[:4] + b"!" * (len(text) - 4), "denoised"),)
    stats = RunStats(new_bytes=len(text), rounds=3, drafted=8, accepted=4)
    return Samples(
        prompt,
        ORT,
        [
            Sample("ar", True, plain, RunStats(new_bytes=len(text), rounds=len(text)), len(text)),
            Sample("s:8", True, drafted, stats, len(text)),
            Sample("d:8@0.7", False, other, RunStats(new_bytes=len(text), rounds=2), 4),
        ],
    )


def report(change: Callable[[BenchRow], BenchRow] = lambda row: row, replay: str | None = None) -> BenchReport:
    """The measurement of `measurement`, each row changed."""
    found = measurement()
    rows = [change(row) for row in found.rows()]
    return BenchReport(BenchRequest(replay=replay), found.plan, "model", "fp32", DEVICE, rows)
