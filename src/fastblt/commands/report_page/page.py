"""Puts the page together from what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from fastblt import __version__
from fastblt.commands.inspect_facts import ModelFacts
from fastblt.commands.report_page.costs import drafts, estimate_and_clock, time_by_part
from fastblt.commands.report_page.machine import machine
from fastblt.commands.report_page.markup import Child, document, element
from fastblt.commands.report_page.quantization import quantization
from fastblt.commands.report_page.speed import ar_rate, fastest_lossless, ratio, speed
from fastblt.commands.report_page.tables import count, share
from fastblt.commands.report_page.terms import backend_term, glossary, method_term, term
from fastblt.commands.report_page.texts import Samples, proof, texts
from fastblt.runtime.measure.bench.plan import AR
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchReport

STYLE = Path(__file__).with_name("page.css")
#: Nothing from anywhere, no program: the page's own style is all there is.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class ReportContent:
    """Holds what a page shows."""

    bench: BenchReport
    facts: ModelFacts
    """Of the model that was measured."""
    samples: Samples | None
    """Texts to look at; None: the measurement was a replay."""
    made_on: str
    """Date of the page, as people write it."""
    source: str | None = None
    """Name of the file that the figures come from; None: they were measured for this page."""


def render(content: ReportContent) -> str:
    """Return the text of the page, which needs no other file and no network.

    Raises:
        BundleError: the figures of a quantized bundle's manifest are malformed.
    """
    bench = content.bench
    sections = [
        _summary(bench),
        speed(bench),
        time_by_part(bench),
        estimate_and_clock(bench),
        drafts(bench),
        texts(content.samples) if content.samples else None,
        proof(bench, content.samples),
        quantization(content.facts),
        machine(bench, content.facts),
    ]
    main = element("main", _replay_note(bench), *sections)
    main.append(glossary(main))
    title = f"{bench.model}: fastblt report"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE.read_text(encoding="utf-8")),
    )
    return document(element("html", head, element("body", _header(content), main, _footer(content)), lang="en"))


def _header(content: ReportContent) -> Element:
    bench = content.bench
    options = (
        element("option", name, value=value)
        for value, name in (("", "as the system"), ("light", "light"), ("dark", "dark"))
    )
    theme = element("label", "Theme ", element("select", *options, id="theme"), class_="theme")
    device = bench.device
    return element(
        "header",
        element("h1", bench.model),
        element(
            "p", f"{bench.dtype} · {device['cpu']}, {device['usable_cores']} cores · {content.made_on}", class_="quiet"
        ),
        theme,
    )


def _summary(bench: BenchReport) -> Element:
    """Return the figures that people want first, and one sentence about them."""
    best, backend = fastest_lossless(bench), bench.plan.backend
    tiles = [_tile(count(best.bytes_per_s), "bytes per second, with ", method_term(best.method))]
    over_ar = ratio(best.bytes_per_s, ar_rate(bench, backend))
    if best.method != AR and over_ar:
        tiles.append(_tile(f"{over_ar:.2f}×", "as fast as ", term("ar", "one byte at a time")))
    for other in bench.plan.backends:
        over = ratio(best.bytes_per_s, ar_rate(bench, other)) if other != backend else None
        if over:
            tiles.append(_tile(f"{over:.1f}×", "as fast as ", backend_term(other)))
    if best.times_limit:
        tiles.append(
            _tile(share(1 / best.times_limit), "of the speed that the ", term("limit", "memory limit"), " allows")
        )
    return element(
        "section",
        element("p", *_sentence(bench, best, over_ar), class_="sentence"),
        element("div", *tiles, class_="tiles"),
    )


def _tile(figure: str, *words: Child) -> Element:
    return element("div", element("strong", figure), element("span", *words), class_="tile")


def _sentence(bench: BenchReport, best: BenchRow, over_ar: float | None) -> list[Child]:
    device = bench.device
    place = f"{device['usable_cores']} cores of {device['cpu']}"
    if best.device != "cpu":
        place = device["gpus"][0] if device["gpus"] else "the GPU"
    sentence: list[Child] = [
        element("code", best.method),
        f" writes {count(best.bytes_per_s)} bytes a second on {place}",
    ]
    if best.method == AR:
        return [*sentence, ", one at a time; no lossless method that was measured is faster."]
    sentence.append(f", {over_ar:.2f} times as many as one byte at a time" if over_ar else "")
    same = best.lossless and best.identical_to_ar
    return [*sentence, " – and exactly the same bytes." if same else "."]


def _replay_note(bench: BenchReport) -> Element | None:
    if bench.request.replay is None:
        return None
    words = f" ({bench.request.replay}): what methods cost at given rates. No text was written by the model itself."
    return element("p", term("replay"), words, class_="note")


def _footer(content: ReportContent) -> Element:
    source = f"Figures from {content.source}" if content.source else "Measured for this page"
    generated = "; the texts were generated for it." if content.source and content.samples else "."
    return element("footer", f"{source}{generated} Made by fastblt {__version__} on {content.made_on}.", class_="quiet")
