"""The page as text: what it shows, what it leaves out, and that nothing in it is markup but its own."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import pytest
from fakes.report_content import EVIL, QUANTIZATION, report, samples

from fastblt.commands.inspect_facts import ModelFacts
from fastblt.commands.report_page.markup import document, element
from fastblt.commands.report_page.page import ReportContent, render
from fastblt.commands.report_page.terms import TERMS
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.measure.bench.rows import BenchRow


class Parsed(HTMLParser):
    """What a browser would make of a page: tags with attributes, and the text outside the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for tag, attributes in self.tags if tag == "section" and "id" in attributes]


def test_page_has_every_section_and_its_figures(content: ReportContent) -> None:
    page = Parsed(render(content))
    assert page.ids() == [
        "speed", "time", "estimate", "drafts", "texts", "proof", "quantization", "machine", "words",
    ]  # fmt: skip
    for row in content.bench.rows:
        assert f"{row.bytes_per_s:,.0f}" in page.text
    assert "s:8 writes 20 bytes a second on 2 cores of Processor, 2.00 times" not in page.text, "its bytes are wrong"
    assert "ar writes 10 bytes a second on 2 cores of Processor" in page.text
    assert "✗ differs: 50.0 % before the first difference" in page.text
    assert page.text.count("✓ the same bytes") == 2
    assert "The same bytes as ar. " in page.text
    assert "Its own text: the first 4 bytes are those of ar. " in page.text
    assert "Prompt The text." in page.text.replace("\n", "")
    for figure in ("1.5000", "1.5625", "8.00", "2.00", "4.00×", "62.5 %"):
        assert figure in page.text, figure


def test_fastest_method_with_the_right_bytes_comes_first(facts: ModelFacts) -> None:
    right = report(lambda row: dataclasses.replace(row, identical_to_ar=True))
    page = Parsed(render(ReportContent(right, facts, samples(), "2026-01-02")))
    assert "s:8 writes 20 bytes a second on 2 cores of Processor, 2.00 times as many as one byte at a time" in page.text
    assert "exactly the same bytes" in page.text
    assert "quantization" not in page.ids()


def test_bars_are_as_long_as_their_figures(content: ReportContent) -> None:
    bars = [
        (attributes["class"], float((attributes["width"] or "").rstrip("%")))
        for tag, attributes in Parsed(render(content)).tags
        if tag == "rect" and attributes["class"] in ("ours", "other")
    ]
    speeds = [row.bytes_per_s for row in content.bench.rows]
    assert [width for _, width in bars[:3]] == [pytest.approx(100 * each / max(speeds), abs=0.01) for each in speeds]
    assert [kind for kind, _ in bars[:3]] == ["ours", "ours", "other"]


def test_limit_is_a_line_or_an_arrow(facts: ModelFacts) -> None:
    def limited(us: float) -> Parsed:
        bench = report(lambda row: dataclasses.replace(row, limit_us_per_byte=us, times_limit=4.0))
        return Parsed(render(ReportContent(bench, facts, None, "2026-01-02")))

    near, far = limited(1e6 / 40), limited(1e6 / 400)
    lines = [attributes["x1"] for tag, attributes in near.tags if attributes.get("class") == "limit"]
    assert lines[:3] == ["100.00%"] * 3
    assert "▸" not in near.text
    assert far.text.count("▸") == 3
    assert "25 %of the speed that the" in far.text


def test_replay_has_no_texts_and_no_proof(facts: ModelFacts) -> None:
    def replayed(row: BenchRow) -> BenchRow:
        return dataclasses.replace(row, identical_to_ar=None, agreement_with_ar=None, replay={})

    page = Parsed(render(ReportContent(report(replayed, replay="paper"), facts, None, "2026-01-02")))
    assert {"texts", "proof"}.isdisjoint(page.ids())
    assert "(paper): what methods cost at given rates" in page.text


def test_only_ar_needs_neither_drafts_nor_estimate(facts: ModelFacts) -> None:
    bench = report()
    bench = dataclasses.replace(bench, rows=bench.rows[:1])
    assert {"estimate", "drafts"}.isdisjoint(Parsed(render(ReportContent(bench, facts, None, "2026-01-02"))).ids())


def test_what_comes_from_files_and_models_is_text(content: ReportContent, evil_content: ReportContent) -> None:
    page = Parsed(render(evil_content))
    harmless = {tag for tag, _ in Parsed(render(content)).tags}
    assert {tag for tag, _ in page.tags} == harmless
    assert {"script", "img"}.isdisjoint(harmless)
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert page.text.count(EVIL) >= 6, "it is all there, as text"
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any(name in ("src", "href") for _, attributes in page.tags for name in attributes)


def test_element_escapes_markup_and_what_nobody_sees() -> None:
    made = element("p", "a<b>&\x1b\u202e\x00", element("b", "c"), "d\ud800\n", title='"&\n', lang=None)
    assert document(made) == (
        '<!doctype html>\n<p title="&quot;&amp;\\n">a&lt;b&gt;&amp;\\x1b\\u202e\\x00<b>c</b>d\\ud800\n</p>\n'
    )


def test_every_term_of_the_page_is_explained_once(content: ReportContent) -> None:
    page = Parsed(render(content))
    used = {attributes["data-term"] for _, attributes in page.tags if "data-term" in attributes}
    explained = [attributes["id"] for tag, attributes in page.tags if tag == "dd" and "id" in attributes]
    assert sorted(explained) == sorted(f"term-{key}" for key in used)  # type: ignore[type-var]
    described = {attributes["aria-describedby"] for _, attributes in page.tags if "aria-describedby" in attributes}
    assert described == set(explained)
    assert used < TERMS.keys()


def test_malformed_figures_of_a_bundle_are_one_error(content: ReportContent) -> None:
    assert content.facts.manifest is not None
    bad = {**QUANTIZATION, "weight_bytes": {"decoder": {"before": "many", "after": 1}}}
    manifest = dataclasses.replace(content.facts.manifest, quantization=bad)
    facts = dataclasses.replace(content.facts, manifest=manifest)
    expected = r"manifest\.json: entry 'quantization\.weight_bytes\.decoder\.before': found 'many', expected an integer"
    with pytest.raises(BundleError, match=expected):
        render(dataclasses.replace(content, facts=facts))
