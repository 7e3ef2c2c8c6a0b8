"""Shows what quantization saved and what it cost, where the bundle was quantized."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from fastblt.commands.inspect_facts import ModelFacts
from fastblt.commands.report_page.bars import bar
from fastblt.commands.report_page.markup import Child, element
from fastblt.commands.report_page.tables import BAR, NAME, NUMBER, Column, count, section, share, table
from fastblt.commands.report_page.terms import method_term, term
from fastblt.models.limits import FILE_BYTES
from fastblt.runtime.bundle.json_entries import JsonEntries
from fastblt.runtime.bundle.manifest import MANIFEST_FILE, BundleError

#: Most methods whose kept drafts a manifest reports.
_METHODS = 100


def quantization(facts: ModelFacts) -> Element | None:
    """Return the section about quantization; None where the bundle was not quantized, or does not hold the figures.

    Raises:
        BundleError: the manifest's figures are malformed.
    """
    found = facts.manifest.quantization if facts.manifest else None
    if found is None or "quality" not in found or "weight_bytes" not in found:
        return None
    data = JsonEntries(Path(facts.path) / MANIFEST_FILE, found, BundleError, "quantization")
    quality = data.object("quality")
    lead: list[Child] = [term("quantization"), f" to {data.text('scheme')}, measured on held-out text: smaller "]
    lead += [term("weights", "weights"), ", and what they cost."]
    return section(
        "quantization",
        "What quantization saved and cost",
        lead,
        _sizes(data.object("weight_bytes")),
        _quality(quality.object("before"), quality.object("after")),
    )


def _sizes(data: JsonEntries) -> Element:
    """Return a table of each part's weights before and after."""
    sizes = {part: data.object(part) for part in data.data}
    pairs = {
        part: (each.integer("before", 0, FILE_BYTES), each.integer("after", 0, FILE_BYTES))
        for part, each in sizes.items()
    }
    largest = max((size for pair in pairs.values() for size in pair), default=0) or 1
    columns = [
        Column(NAME, "Part"),
        Column(BAR),
        Column(NUMBER, "MB before", swatch="other"),
        Column(NUMBER, "MB after", swatch="ours"),
        Column(NUMBER, "Smaller"),
    ]
    rows: list[list[Child]] = []
    for part, (before, after) in pairs.items():
        bars = element(
            "div",
            bar(before / largest, "other", f"{part} before: {before / 1e6:.2f} MB"),
            bar(after / largest, "ours", f"{part} after: {after / 1e6:.2f} MB"),
            class_="pair",
        )
        ratio = f"{before / after:.2f}×" if after else "–"
        rows.append([part, bars, count(before / 1e6, 2), element("strong", count(after / 1e6, 2)), ratio])
    return table(columns, rows, "Weights before and after quantization")


def _quality(before: JsonEntries, after: JsonEntries) -> Element:
    """Return a table of quality before and after."""
    columns = [Column(NAME, "On held-out text"), Column(NUMBER, "Before"), Column(NUMBER, "After")]
    return table(columns, _quality_rows(before, after), "Quality before and after quantization")


def _quality_rows(before: JsonEntries, after: JsonEntries) -> Iterator[list[Child]]:
    bits = (each.number("bits_per_byte") for each in (before, after))
    yield [term("bits"), *(count(each, 4) for each in bits)]
    agreed = (each.number("agreement") for each in (before, after))
    yield [term("agreement", "Same next byte expected"), *(share(each, 2) for each in agreed)]
    ends = (each.number("boundaries") for each in (before, after))
    yield [term("patch", "Same ends of patches"), *(share(each, 2) for each in ends)]
    kept = [each.object("acceptance", _METHODS) for each in (before, after)]
    for method in kept[1].data:
        name = element("span", term("acceptance", "Drafts kept"), " by ", method_term(method))
        yield [name, *(share(each.number(method), 1) for each in kept)]
