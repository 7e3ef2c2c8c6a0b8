"""The page in a browser: from a file, without a network, on screens and on paper, in light and dark."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.browser import POOR_CONTRAST
from playwright.sync_api import Browser, Page, expect

from fastblt.commands.report_page.page import ReportContent, render
from fastblt.runtime.measure.bench.saved import read_bench

BACKGROUND = "() => getComputedStyle(document.body).backgroundColor"
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
#: Width of a sheet of A4 without its margins of 13 mm, in CSS pixels.
PAPER = {"width": 695, "height": 1024}
#: A measurement with many columns.
RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results" / "baselines-cpu.json"

Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """``open_page(content, **options)``: the page of a file; fails if it reports an error or asks for anything else."""
    wrong: list[str] = []
    contexts = []
    path = tmp_path / "report.html"

    def load(content: ReportContent, **options: Any) -> Page:
        path.write_text(render(content), encoding="utf-8")
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: wrong.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield load
    for context in contexts:
        context.close()
    assert wrong == []


def test_page_is_complete_without_network_or_program(open_page: Open, content: ReportContent) -> None:
    page = open_page(content, offline=True)
    assert page.title() == "model: fastblt report"
    assert page.locator("script, link, img, iframe, object").count() == 0
    assert page.locator("main > section").count() == 10
    assert page.locator("svg.bar").count() > 10
    for each in page.locator("svg.bar").all():
        assert each.get_attribute("aria-label")
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")


def test_markup_of_others_stays_text(open_page: Open, evil_content: ReportContent) -> None:
    page = open_page(evil_content)
    expect(page.locator("h1")).to_contain_text("<script>alert(1)</script>")
    assert page.locator("img, script").count() == 0
    assert page.locator(".text").first.inner_text().count("onerror=alert(1)") == 2
    expect(page.locator("#machine")).to_be_visible()


def test_bars_have_lengths_and_parts_have_colors_of_their_own(open_page: Open, content: ReportContent) -> None:
    page = open_page(content, viewport={"width": 1200, "height": 800})
    speeds = [row.bytes_per_s for row in content.bench.rows]
    drawn = page.locator("#speed rect:not(.track)").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert [width / max(drawn) for width in drawn] == [pytest.approx(each / max(speeds), abs=0.01) for each in speeds]
    fills = page.evaluate("""() => ['patcher', 'encoder', 'global', 'decoder', 'draft', 'host'].map(kind => {
        const rect = document.querySelector('#time svg').appendChild(
            document.createElementNS('http://www.w3.org/2000/svg', 'rect'));
        rect.setAttribute('class', 'part ' + kind);
        return getComputedStyle(rect).fill;
    })""")
    assert len(set(fills)) == 6


def test_texts_have_marks_that_can_be_switched(open_page: Open, content: ReportContent) -> None:
    page = open_page(content)
    text = page.locator("[data-method='s:8'] .text")
    assert text.locator("span").evaluate_all("all => all.map(e => [e.className, e.textContent])") == [
        ["prompt", "Prompt "], ["accepted", "The "], ["corrected", "t"], ["free", "ext."],
    ]  # fmt: skip
    rejected, cut = text.locator(".rejected"), page.locator("[data-method='ar'] .text .cut")
    expect(rejected).to_be_hidden()
    page.get_by_label("rejected drafts").check()
    expect(rejected).to_have_text(".txet ehT")
    expect(rejected).to_be_visible()
    assert cut.count() == 2
    page.get_by_label("patches").uncheck()
    assert cut.evaluate_all("all => all.map(e => getComputedStyle(e).display)") == ["none", "none"]
    accepted = text.locator(".accepted")
    expect(accepted).to_have_css("text-decoration-line", "underline")
    page.get_by_label("where bytes come from").uncheck()
    expect(accepted).to_have_css("text-decoration-line", "none")


def test_words_have_tooltips_for_pointer_and_keyboard(open_page: Open, content: ReportContent) -> None:
    page = open_page(content)
    word = page.locator("#texts .lead [data-term=patch]")
    tip = word.get_by_role("tooltip", include_hidden=True)
    expect(tip).to_be_hidden()
    word.hover()
    expect(tip).to_be_visible()
    expect(tip).to_contain_text("Neighboring bytes")
    page.mouse.move(0, 0)
    expect(tip).to_be_hidden()
    word.focus()
    expect(tip).to_be_visible()
    described = page.evaluate("() => document.getElementById(document.activeElement.getAttribute('aria-describedby'))"
                              ".textContent")  # fmt: skip
    assert described.startswith("Neighboring bytes")


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_overflows_not_even_a_tooltip(open_page: Open, content: ReportContent, width: int) -> None:
    page = open_page(content, viewport={"width": width, "height": 800})
    assert page.evaluate(OVERFLOW) == 0
    for word in page.locator(".term").all():
        word.focus()
        assert page.evaluate(OVERFLOW) == 0, word.text_content()


def test_colors_have_contrast_in_light_and_dark(open_page: Open, content: ReportContent) -> None:
    page = open_page(content, color_scheme="dark")
    page.get_by_label("rejected drafts").check()
    dark = page.evaluate(BACKGROUND)
    assert page.evaluate(POOR_CONTRAST) == []
    page.get_by_label("Theme").select_option("light")
    assert page.evaluate(BACKGROUND) != dark
    assert page.evaluate(POOR_CONTRAST) == []
    page.get_by_label("Theme").select_option("dark")
    assert page.evaluate(BACKGROUND) == dark


def test_paper_is_white_and_has_words_instead_of_tooltips(open_page: Open, content: ReportContent) -> None:
    wide = read_bench(RESULTS, "model", "fp32")  # two baselines are a column each, a draft decoder is another
    rows = [dataclasses.replace(row, us_per_byte={**row.us_per_byte, "draft": 1e4}) for row in wide.rows]
    content = dataclasses.replace(content, bench=dataclasses.replace(wide, rows=rows))
    page = open_page(content, color_scheme="dark", viewport=PAPER)
    page.get_by_label("Theme").select_option("dark")
    page.emulate_media(media="print")
    assert page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    assert page.evaluate(POOR_CONTRAST) == []
    assert page.evaluate(OVERFLOW) == 0
    right_ends = page.locator("table").evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
    assert max(right_ends) <= PAPER["width"], "no table is cut off"
    expect(page.get_by_label("Theme")).to_be_hidden()
    expect(page.locator(".switches")).to_be_hidden()
    word = page.locator("#texts .lead [data-term=patch]")
    word.focus()
    expect(word.locator(".tip")).to_be_hidden()
    expect(page.locator("#words dt").first).to_be_visible()
    assert page.pdf().startswith(b"%PDF-")
