"""Holds a measurement of a benchmark whose figures are all known, and the fields that a row must have."""

from __future__ import annotations

from collections import Counter

from fastblt.models.presets import preset
from fastblt.runtime.measure.bench.plan import make_bench_plan
from fastblt.runtime.measure.bench.rows import Measurement, Run
from fastblt.runtime.sequence.stats import RunStats

ORT, EAGER = "onnxruntime", "eager"
#: What scripts read; removing or renaming one of these breaks them.
CONTRACT = {
    "backend", "method", "bytes_per_s", "ms_per_byte_p50", "ms_per_byte_p95", "first_byte_ms", "nfe_patcher",
    "nfe_encoder", "nfe_global", "nfe_decoder", "bytes", "acceptance", "identical_to_ar", "estimated_gb",
    "moved_gb", "peak_rss_mb", "ratio_to_eager_ar", "ratio_to_ar", "lossless", "agreement_with_ar",
    "nfe_encoder_per_512", "nfe_global_per_512", "nfe_decoder_per_512", "estimated_gb_per_512", "estimated_saving",
    "pytorch_baseline", "ratio_to_pytorch_ar",
    "measured_saving", "limit_us_per_byte", "limit_gb_per_s", "times_limit", "replay",
}  # fmt: skip


def stats(new_bytes: int, seconds: float, *, drafted: int = 0, accepted: int = 0) -> RunStats:
    """A run whose first byte takes 0.1 s and whose other bytes take the rest in equal parts."""
    later = new_bytes - 1
    return RunStats(
        nfe=Counter(patcher=2, encoder=3, decoder=5),
        moved_bytes=500_000_000,
        rounds=4,
        drafted=drafted,
        accepted=accepted,
        prompt_bytes=10,
        new_bytes=new_bytes,
        first_byte_seconds=0.1,
        total_seconds=seconds,
        byte_seconds=[(seconds - 0.1) / later] * later,
    )


def measurement() -> Measurement:
    plan = make_bench_plan(ORT, ["ar", "s:8"], ["eager"])
    ar, s8, eager = plan.contenders[0], plan.contenders[1], plan.contenders[2]
    runs = {
        ar: [Run(0, b"x" * 11, stats(11, 1.1)), Run(1, b"y" * 11, stats(11, 1.1))],
        s8: [
            Run(0, b"x" * 11, stats(11, 0.6, drafted=8, accepted=6)),
            Run(1, b"z" * 11, stats(11, 0.6, drafted=8)),
        ],
        eager: [Run(0, b"x" * 11, stats(11, 4.1)), Run(1, b"y" * 11, stats(11, 4.1))],
    }
    devices = {ORT: "cpu", EAGER: "cpu"}
    return Measurement(plan, [b"p" * 10] * 2, 11, 1, preset("tiny"), devices, runs, dict.fromkeys(runs, 12.5))
