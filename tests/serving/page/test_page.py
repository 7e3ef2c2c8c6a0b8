"""The page in a browser, over the real server and a tiny bundle."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes.browser import POOR_CONTRAST
from playwright.sync_api import Page, Route, expect

ROOT = Path(__file__).resolve().parents[3]

Answered = Callable[..., list[dict[str, Any]]]

#: Keeps every text that an element has had.
WATCH = """element => {
    const seen = [];
    new MutationObserver(() => seen.push(element.textContent)).observe(
        element, { childList: true, characterData: true, subtree: true });
    window["seen-" + (element.id || "text")] = seen;
}"""

#: Every kind of mark.
ALL_KINDS = [
    (b"sa", ["sampled"] * 2, [0], b""),
    (b"acX", ["accepted", "accepted", "corrected"], [], b"rejected"),
    (b"fd", ["free", "denoised"], [3], b""),
]


def done(page: Page) -> None:
    page.wait_for_selector("#stop-button[aria-disabled=true]")


def figure(page: Page, name: str) -> str:
    return page.locator(f"[data-figure={name}]").first.inner_text()


def test_text_streams_in_and_figures_with_it(page: Page, watched: Any) -> None:
    page.get_by_label("Prompt").fill("In the")
    page.get_by_label("Method", exact=True).select_option("s:8")
    page.get_by_label("New bytes, at most").fill("200")
    page.locator("#announcement").evaluate(WATCH)
    page.locator("#columns").evaluate(WATCH)
    page.get_by_role("button", name="Generate").click()
    done(page)
    assert page.locator(".state").inner_text() == "reached its length"
    seen = page.evaluate("() => window['seen-columns']")
    assert len({len(text) for text in seen}) > 10, "the text grows piece by piece"
    figures = re.compile(r"writing.*bytes/s.*\d % of \d.*\d patcher", re.DOTALL)
    assert any(figures.search(text) for text in seen), "and so do its figures"
    announced = page.evaluate("() => window['seen-announcement']")
    assert announced[0] == "Generating."
    assert re.fullmatch(r"s:8: 200 bytes, [\d,]+ bytes/s, \d+ % of \d+ drafted bytes kept\.", announced[-1])
    assert len(announced) < 5, "at intervals, not with each byte"
    assert page.locator(".text .prompt").first.inner_text() in "In the"
    assert page.locator(".text .accepted, .text .corrected").count() > 0
    assert page.locator(".text .cut").count() > 0
    assert re.fullmatch(r"[\d,]+ bytes/s", figure(page, "speed"))
    assert re.match(r"[\d.]+ m?s", figure(page, "first"))
    assert re.fullmatch(r"(\d\.\d\d (patcher|encoder|global|decoder)\s?){4}", figure(page, "calls"))
    assert figure(page, "bytes") == "200"
    # Nothing was asked of anyone else, and nothing is kept.
    assert {url for url in watched.requests if not url.startswith((watched.url, "data:"))} == set()
    assert page.evaluate("() => localStorage.length + sessionStorage.length + document.cookie.length") == 0


def picture_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "pictures" / "page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_comparison_with_ar_and_the_picture_of_it(page: Page, watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = picture_script()
    monkeypatch.setattr(script, "COMPARISONS", 1)
    picture = script.shrink(script.draw(page, watched.url))
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000
    verdict = r"The texts are identical \(200 bytes\)\. s:8 wrote [\d.]+ times as fast as ar\."
    assert re.fullmatch(verdict, page.locator("#verdict").inner_text())
    assert [heading.inner_text() for heading in page.get_by_role("heading", level=2).all()] == ["s:8", "ar"]
    one, two = (page.locator(".text").nth(i) for i in (0, 1))
    page.get_by_label("rejected drafts").uncheck()
    assert one.inner_text() == two.inner_text()
    assert two.locator(".accepted").count() == 0


def test_both_requests_of_a_comparison_have_one_seed(page: Page, answered: Answered) -> None:
    asked = answered(page, ALL_KINDS)
    page.get_by_label("Temperature").fill("0.8")
    page.get_by_text("More about sampling").click()
    page.get_by_label("Top-p").fill("0.9")
    page.get_by_label("Stop strings").fill("end\n\\n\\n")
    page.get_by_label("Method", exact=True).select_option("s:8")
    page.get_by_label("Compare with ar").check()
    page.get_by_role("button", name="Generate").click()
    done(page)
    assert "The texts are identical (7 bytes)." in page.locator("#verdict").inner_text()
    first, second = asked
    assert first["seed"] == second["seed"] >= 0
    assert {**first, "method": "ar"} == second
    assert first["stop"] == ["end", "\n\n"]
    assert (first["temperature"], first["top_p"], "top_k" in first) == (0.8, 0.9, False)


def test_progress_is_announced_and_escape_stops(watched: Any) -> None:
    page = watched.open()
    page.clock.install()
    page.get_by_label("Method", exact=True).select_option("ar")
    page.get_by_label("New bytes, at most").fill("16000")
    page.get_by_label("Prompt").press("Control+Enter")
    page.wait_for_selector(".text .sampled", state="attached")
    page.clock.fast_forward(5000)
    assert re.fullmatch(r"ar: [\d,]+ bytes? so far\.", page.get_by_role("status").inner_text())
    page.keyboard.press("Escape")
    done(page)
    assert page.locator(".state").inner_text() == "stopped"
    assert re.match(r"Stopped\. ar: [\d,]+ bytes?", page.get_by_role("status").inner_text())
    assert 0 < int(figure(page, "bytes").replace(",", "")) < 16000
    assert watched.wrong == []


def test_errors_are_shown_and_announced(page: Page, watched: Any) -> None:
    page.get_by_label("Method", exact=True).select_option("other")
    page.get_by_label("Name of the method").fill("nonsense")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_contain_text("nonsense")
    watched.wrong.clear()  # the browser itself reports the status 400
    page.get_by_label("Method", exact=True).select_option("ar")
    page.route("**/v1/completions", lambda route: route.abort())
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_have_text("The server does not answer. Is it still running?")
    watched.wrong.clear()
    page.unroute("**/v1/completions")
    cut_short = 'data: {"choices": []}\n\n'
    page.route("**/v1/completions", lambda route: route.fulfill(content_type="text/event-stream", body=cut_short))
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_have_text("The server ended the text before it was complete.")


def test_key_is_asked_for_and_kept_in_memory_only(page: Page, watched: Any) -> None:
    refused = '{"error": {"message": "no valid API key", "type": "invalid_request_error"}}'

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.fallback()
        else:
            route.fulfill(status=401, content_type="application/json", body=refused)

    page.route("**/v1/models", guard)
    page.reload()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("textbox", name="API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("no valid API key")
    page.get_by_role("textbox", name="API key").fill("secret")
    page.keyboard.press("Enter")
    expect(page.get_by_role("form", name="API key")).to_be_hidden()
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    expect(page.get_by_role("alert")).to_be_empty()
    assert page.evaluate("() => localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.reload()
    expect(page.get_by_role("textbox", name="API key")).to_have_value("")
    watched.wrong.clear()  # the browser itself reports the status 401


def test_everything_has_a_name_and_the_keyboard_reaches_it(page: Page, answered: Answered) -> None:
    page.get_by_text("More about sampling").click()
    answered(page, ALL_KINDS)
    page.get_by_label("Prompt").press("Control+Enter")
    done(page)
    expect(page.locator("body")).to_match_aria_snapshot("""
      - link "Skip to the text"
      - banner:
        - heading "fastblt" [level=1]
        - combobox "Theme"
      - main:
        - form "Request":
          - textbox "Prompt"
          - combobox "Method"
          - spinbutton "New bytes, at most"
          - spinbutton "Temperature"
          - group:
            - spinbutton "Top-p"
            - spinbutton "Top-k"
            - spinbutton "Min-p"
            - spinbutton "Seed"
            - textbox "Stop strings, one a line"
          - checkbox "Compare with ar, one byte at a time"
          - button "Generate"
          - button "Stop"
        - region "Generated text":
          - alert
          - status
          - list "What the marks mean"
          - group "Show":
            - checkbox "patches" [checked]
            - checkbox "where bytes come from" [checked]
            - checkbox "rejected drafts"
          - article /Text of/:
            - heading [level=2]
            - group /Text of/
            - term: Drafted bytes kept
    """)
    focusable = page.locator("a, input, select, textarea, button, summary, [tabindex='0']").locator("visible=true")
    names = focusable.evaluate_all("nodes => nodes.map(node => node.id || node.tagName)")
    page.get_by_role("link", name="Skip to the text").focus()
    reached = ["A"]
    for _ in names[1:]:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
        assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == names


def test_colors_have_contrast_in_light_and_dark_and_nothing_overflows(watched: Any, answered: Answered) -> None:
    page = watched.open(color_scheme="dark", viewport={"width": 360, "height": 640})
    answered(page, ALL_KINDS)
    page.get_by_label("rejected drafts").check()
    page.get_by_label("Compare with ar").check()
    page.get_by_label("Method", exact=True).select_option("s:8")
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#verdict")
    background = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert page.evaluate(POOR_CONTRAST) == []
    page.get_by_label("Theme").select_option("light")
    assert page.evaluate(background) != dark
    assert page.evaluate(POOR_CONTRAST) == []
    page.get_by_label("Theme").select_option("dark")
    assert page.evaluate(background) == dark
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
