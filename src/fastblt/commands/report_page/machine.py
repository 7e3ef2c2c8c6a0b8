"""Describes what was measured on which machine: processor, model, and which backend runs where."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from fastblt.commands.inspect import patch_rule
from fastblt.commands.inspect_facts import PARTS, ModelFacts
from fastblt.commands.report_page.bars import bar
from fastblt.commands.report_page.markup import Child, element
from fastblt.commands.report_page.tables import BAR, NAME, NUMBER, WORDS, Column, count, section, table
from fastblt.commands.report_page.terms import backend_term, term
from fastblt.runtime.backends.registry import backends
from fastblt.runtime.measure.bench.run import BenchReport

#: Terms of a model's parts, by their names in `PARTS`.
_PART_TERMS = {"patcher": "patcher", "encoder": "encoder", "global": "global", "decoder": "decoder"}
_PART_TERMS |= {"draft": "draft_decoder"}
_DEVICES = {"cpu": "processor", "cuda": "NVIDIA GPU"}


def machine(report: BenchReport, facts: ModelFacts) -> Element:
    """Return the section about machine and model."""
    entries = (element("div", element("dt", name), element("dd", value)) for name, value in _facts(report, facts))
    places = {row.backend: row.device for row in report.rows}
    known = {entry.name: entry.summary for entry in backends()}
    columns = [Column(NAME, "What runs"), Column(WORDS, "How"), Column(WORDS, "Where")]
    rows = (
        [backend_term(name), known.get(name, "another program, for comparison"), _DEVICES.get(device, device)]
        for name, device in places.items()
    )
    return section(
        "machine",
        "What was measured, and where",
        _lead(report),
        element("dl", *entries, class_="facts"),
        table(columns, rows, "What runs where"),
        _parts(facts),
    )


def _lead(report: BenchReport) -> list[Child]:
    row = report.rows[0]
    size = row.prompt_bytes // max(1, row.prompts)
    repeats = f", each {row.repeats} times" if row.repeats > 1 else ""
    prompts = f"{row.prompts} prompts" if row.prompts > 1 else "1 prompt"
    return [
        f"{prompts} of {size:,} bytes{repeats}; {row.bytes:,} new bytes by each method, the likeliest byte each time. "
        "All methods ran in turn in one process, so that whatever else the machine did met all of them."
    ]


def _facts(report: BenchReport, facts: ModelFacts) -> Iterator[tuple[Child, Child]]:
    """Yield names and values of what describes machine and model."""
    device, config = report.device, facts.config
    bandwidths = [f"{device['memory_gb_per_s']:.1f} GB/s with one thread"]
    limit = report.rows[0].limit_gb_per_s
    if limit:
        bandwidths.append(f"{limit:.1f} GB/s at best")
    yield "Model", f"{config.name}, {facts.counts.total:,} parameters"
    yield element("span", term("type")), report.dtype
    yield element("span", term("patch", "Patches")), patch_rule(config)
    yield "Processor", f"{device['cpu']}, {device['usable_cores']} of {device['cores']} cores"
    yield (
        element("span", term("threads")),
        "chosen by the backend" if device["threads"] is None else str(device["threads"]),
    )
    yield "Main memory is read at", ", ".join(bandwidths)
    yield "GPUs", ", ".join(device["gpus"]) or "none"
    yield "System", f"{device['os']}, Python {device['python']}"
    yield "Packages", ", ".join(f"{name} {version}" for name, version in device["versions"].items())


def _parts(facts: ModelFacts) -> Element:
    """Return a table of the model's parts and their sizes."""
    largest = max((stored.bytes for stored in facts.stored.values()), default=0) or 1
    columns = [
        Column(NAME, "Part of the model"),
        Column(BAR),
        Column(NUMBER, "MB on disk"),
        Column(NUMBER, "Parameters"),
        Column(WORDS, term("type")),
    ]
    rows: list[list[Child]] = []
    for part, field in PARTS.items():
        stored = facts.stored.get(part)
        if stored is None:
            continue
        name = term(_PART_TERMS[part]) if part in _PART_TERMS else part.capitalize()
        drawn = bar(stored.bytes / largest, "other", f"{part}: {stored.bytes / 1e6:.2f} MB")
        rows.append([name, drawn, count(stored.bytes / 1e6, 2), count(getattr(facts.counts, field)), stored.dtype])
    return table(columns, rows, "Parts of the model")
