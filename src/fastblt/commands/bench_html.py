"""Writes the page about a benchmark: reads the facts of the model, generates the texts to look at, renders."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from fastblt.commands.inspect_facts import read_facts
from fastblt.commands.output import progress
from fastblt.commands.prompts import default_prompt
from fastblt.commands.report_page.page import ReportContent, render
from fastblt.commands.report_page.texts import Samples
from fastblt.models.atomic_file import write_file
from fastblt.runtime.backends.registry import DEFAULT_BACKEND, default_capacity
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.bench.run import BenchReport
from fastblt.runtime.measure.samples import write_samples


@dataclass(frozen=True)
class SampleRequest:
    """Specifies the texts that the page shows, and what generates them."""

    backend: str = DEFAULT_BACKEND
    provider: str = "auto"
    threads: int | None = None
    prompt: bytes | None = None
    """None: a shipped one."""
    max_new_bytes: int = 240
    """New bytes of each text."""


def write_page(
    path: Path, bundle: Path, report: BenchReport, request: SampleRequest, source: str | None = None
) -> None:
    """Generate a text by each method of the report's backend, and write the page atomically.

    Args:
        path: of the HTML file.
        bundle: what was measured.
        report: of the measurement; a replay gets no texts, which would not be the model's.
        request: what to generate, and how.
        source: name of the file that the report comes from; None: it was measured just now.

    Raises:
        BundleError: the bundle cannot be used.
        CapacityError: the engines of a bundle are for shorter texts.
        MethodError: the model cannot run a method.
        OSError: the file cannot be written.
    """
    samples = None if report.request.replay else _samples(bundle, report, request)
    prompt_bytes = len(samples.prompt) if samples else 0
    facts = read_facts(str(bundle), prompt_bytes + request.max_new_bytes)
    write_file(path, render(ReportContent(report, facts, samples, date.today().isoformat(), source)))


def _samples(bundle: Path, report: BenchReport, request: SampleRequest) -> Samples:
    prompt = default_prompt().data if request.prompt is None else request.prompt
    runtime = BltRuntime.from_pretrained(
        bundle,
        provider=request.provider,
        backend=request.backend,
        max_bytes=default_capacity(request.backend, len(prompt) + request.max_new_bytes),
        threads=request.threads,
        reuse_prompts=False,
    )
    methods = [row.method for row in report.rows if row.backend == report.plan.backend]
    with progress("generating", delay=1.0) as on_progress:
        texts = write_samples(runtime, methods, prompt, request.max_new_bytes, on_progress)
    return Samples(prompt, request.backend, texts)
