"""Shows the same text under each method, where its bytes come from, and that they are the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from fastblt.commands.report_page.markup import Child, element
from fastblt.commands.report_page.tables import NAME, NUMBER, WORDS, Column, contender, count, section, share, table
from fastblt.commands.report_page.terms import method_term, term
from fastblt.commands.show import BOUNDARY, PROMPT, REJECTED, Marker, Piece
from fastblt.runtime.measure.bench.plan import AR
from fastblt.runtime.measure.bench.rows import BenchRow
from fastblt.runtime.measure.bench.run import BenchReport
from fastblt.runtime.measure.samples import Sample

#: What each kind of byte is called in the legend and when the pointer rests on it.
_KINDS = {
    PROMPT: "prompt",
    "sampled": "one byte at a time",
    "accepted": "draft, kept",
    "corrected": "in place of a rejected draft",
    "free": "free, after a draft kept whole",
    "forced": "forced by a grammar",
    "denoised": "denoised in a block, not checked",
    REJECTED: "draft, rejected",
}
#: Digits of a fingerprint that are shown; all of them are in its tooltip.
_DIGITS = 12


class Samples(NamedTuple):
    """Holds a prompt and the texts that methods wrote after it."""

    prompt: bytes
    backend: str
    texts: Sequence[Sample]


def texts(samples: Samples) -> Element:
    """Return the section with the texts, each with its marks."""
    kinds = {kind for sample in samples.texts for piece in _pieces(samples.prompt, sample) if (kind := piece.kind)}
    lead: list[Child] = ["The same prompt, continued by each method. A bar ends a ", term("patch", "patch"), "."]
    show = element(
        "fieldset",
        element("legend", "Show"),
        _switch("show-patches", "patches", on=True),
        _switch("show-origins", "where bytes come from", on=True),
        _switch("show-rejected", "rejected drafts", on=False),
        class_="switches",
    )
    cards = (_card(samples.prompt, sample) for sample in samples.texts)
    marks = element("div", _legend(kinds), show, class_="marks")
    return section("texts", "The same text, under each method", lead, marks, element("div", *cards, class_="cards"))


def _switch(name: str, label: str, *, on: bool) -> Element:
    box = element("input", type="checkbox", id=name, checked="" if on else None)
    return element("label", box, f" {label}")


def _legend(kinds: set[str]) -> Element:
    marks = (
        element("li", element("del" if kind == REJECTED else "span", words, class_=kind))
        for kind, words in _KINDS.items()
        if kind in kinds
    )
    cut = element("li", "patch ", element("i", class_="cut"), " boundary") if BOUNDARY in kinds else None
    return element("ul", *marks, cut, class_="kinds", aria_label="What the marks mean")


def _card(prompt: bytes, sample: Sample) -> Element:
    stats = sample.stats
    facts = [f"{stats.new_bytes} bytes in {stats.rounds} rounds"]
    if stats.drafted:
        facts.append(f"{share(stats.acceptance)} of {stats.drafted} drafted bytes kept")
    head = element("header", element("h3", method_term(sample.method)), element("p", "; ".join(facts)))
    marked = element("div", *map(_marked, _joined(_pieces(prompt, sample))), class_="text")
    return element("article", head, marked, _verdict(sample), data_method=sample.method)


def _pieces(prompt: bytes, sample: Sample) -> list[Piece]:
    marker = Marker(prompt)
    return [piece for chunk in sample.chunks for piece in marker.mark(chunk)] + list(marker.finish())


def _joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Join neighbors of one kind; boundaries and rejected drafts stay what they are."""
    text, kind = "", ""
    for piece in pieces:
        if piece.kind != kind or kind in (BOUNDARY, REJECTED):
            if text or kind == BOUNDARY:
                yield Piece(text, kind)
            text, kind = "", piece.kind
        text += piece.text
    if text or kind == BOUNDARY:
        yield Piece(text, kind)


def _marked(piece: Piece) -> Element:
    if piece.kind == BOUNDARY:
        return element("i", class_="cut")
    tag = "del" if piece.kind == REJECTED else "span"
    return element(tag, piece.text, class_=piece.kind, title=_KINDS[piece.kind])


def _verdict(sample: Sample) -> Element:
    digest = element("code", sample.digest[:_DIGITS], title=sample.digest)
    if sample.method == AR:
        words = "The text that the others are compared with. "
    elif sample.same_bytes == sample.stats.new_bytes:
        words = "✓ The same bytes as ar. "
    elif sample.lossless:
        words = f"✗ Differs from ar after {sample.same_bytes} bytes. "
    else:
        words = f"Its own text: the first {sample.same_bytes} bytes are those of ar. "
    return element("footer", words, term("fingerprint"), " ", digest)


def proof(report: BenchReport, samples: Samples | None) -> Element | None:
    """Return the section that compares the bytes of all methods; None for a replay, which writes no text."""
    rows = [row for row in report.rows if row.identical_to_ar is not None]
    if not rows:
        return None
    digests = {(samples.backend, sample.method): sample.digest for sample in samples.texts} if samples else {}
    columns = [
        Column(NAME, "Method"),
        Column(WORDS, "Compared with"),
        Column(NUMBER, "Bytes compared"),
        Column(WORDS, "Found"),
        Column(WORDS, term("fingerprint", "Fingerprint of the text above")),
    ]
    table_rows = ([*_proof_row(row, report), _digest(digests.get((row.backend, row.method)))] for row in rows)
    lead: list[Child] = [term("lossless"), " methods have to write exactly what ", element("code", term("ar"))]
    lead += [" of their backend writes, and ", element("code", "ar"), " what it writes in another backend. "]
    lead += ["All texts of the measurement were compared, byte for byte."]
    return section("proof", "The same bytes", lead, table(columns, table_rows, "Texts compared with ar"))


def _proof_row(row: BenchRow, report: BenchReport) -> list[Child]:
    backend = report.plan.backend
    contenders = {(each.backend, each.method): each for each in report.plan.contenders}
    reference = report.plan.reference(contenders[row.backend, row.method])
    itself = (reference.backend, reference.method) == (row.backend, row.method)
    against = "its repetitions" if itself else f"{reference.method} of {reference.backend}"
    return [contender(row, of=backend), against, count(row.bytes), _found(row)]


def _found(row: BenchRow) -> Element:
    if row.identical_to_ar:
        return element("span", "✓ the same bytes", class_="right")
    if row.lossless:
        return element(
            "strong", f"✗ differs: {share(row.agreement_with_ar, 1)} before the first difference", class_="wrong"
        )
    return element("span", f"its own text; {share(row.agreement_with_ar, 1)} before the first difference")


def _digest(digest: str | None) -> Child:
    return element("code", digest[:_DIGITS], title=digest) if digest else "–"
