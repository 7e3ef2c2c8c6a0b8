"""What the page makes of bytes: marks, escapes, characters in pieces, rejected drafts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, get_args

from playwright.sync_api import Page, expect

from fastblt.commands.show import BOUNDARY, PROMPT, Marker
from fastblt.runtime.generation import Chunk
from fastblt.runtime.methods import Origin

Answered = Callable[..., list[dict[str, Any]]]

#: Characters of one to four bytes, a line end, what is no UTF-8, a character that breaks off.
ALPHABET = [b"a", b"b", b" ", b"\n", b"\x07", "é".encode(), "’".encode(), "😀".encode(), b"\xff", b"\xe2\x80", b"<"]

#: Every node of a text: its kind and text, in the order of the document.
READ_NODES = """box => [...box.childNodes].map(node => {
    if (node.tagName === "I") return ["boundary", ""];
    return [node.className.replace(/ (line-end|mixed)/g, ""), node.textContent];
})"""


def generate(page: Page, prompt: str = "") -> None:
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#stop-button[aria-disabled=true]")


def merged(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join neighbors of one kind."""
    joined: list[tuple[str, str]] = []
    for kind, text in pieces:
        if joined and joined[-1][0] == kind != BOUNDARY:
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


def random_chunks(rng: random.Random, prompt: bytes) -> list[Chunk]:
    """Return chunks whose ends fall anywhere, in characters too."""
    data = b"".join(rng.choices(ALPHABET, k=120))
    kinds = rng.choices(get_args(Origin), k=len(data))
    ends = sorted(rng.sample(range(-len(prompt), len(data) - 1), k=40))
    chunks, at = [], 0
    while at < len(data):
        size = rng.randint(1, 9)
        piece, origins = data[at : at + size], tuple(kinds[at : at + size])
        rejected = b"".join(rng.choices(ALPHABET, k=3)) if "corrected" in origins else b""
        # The last byte's own end is known with the next chunk.
        known = tuple(end for end in ends if end < at + size - 1)
        ends = ends[len(known) :]
        chunks.append(Chunk(piece, origins, rejected, known))
        at += size
    return chunks


def test_marks_are_those_of_generate_show(page: Page, answered: Answered) -> None:
    prompt = "Prompt ’é"
    for seed in range(3):
        chunks = random_chunks(random.Random(seed), prompt.encode())
        marker = Marker(prompt.encode())
        expected = [piece for chunk in chunks for piece in marker.mark(chunk)] + list(marker.finish())
        answered(page, [(c.data, list(c.origins), list(c.boundaries), c.rejected) for c in chunks])
        generate(page, prompt)
        found = page.locator(".text").evaluate(READ_NODES)
        assert merged([tuple(node) for node in found]) == merged([(piece.kind, piece.text) for piece in expected])


def test_character_whose_bytes_have_different_origins(page: Page, answered: Answered) -> None:
    euro = "€".encode()
    answered(page, [(euro[:1], ["accepted"], [], b""), (euro[1:], ["corrected", "free"], [0], b"\x80")])
    generate(page)
    box = page.locator(".text")
    assert box.evaluate(READ_NODES) == [["rejected", "\\x80"], ["accepted", "€"], ["boundary", ""]]
    title = box.locator(".mixed").get_attribute("title")
    assert title is not None
    assert title.startswith("A character of 3 bytes: \\xe2 drafted and kept; \\x82 written in place of")


def test_model_writes_text_and_no_markup(page: Page, answered: Answered) -> None:
    evil = b"<img src=//example.org/x onerror=alert(1)><script>alert(1)</script>"
    answered(page, [(evil, ["corrected"] * len(evil), [], b"<b>no</b>")])
    generate(page, "<i>prompt</i>")
    box = page.locator(".text")
    expect(box).to_contain_text(evil.decode())
    assert box.evaluate("box => box.querySelectorAll('img, script, b, i:not(.cut)').length") == 0


def test_rejected_drafts_show_on_request_and_are_no_part_of_what_is_copied(page: Page, answered: Answered) -> None:
    answered(page, [(b"abX", ["accepted", "accepted", "corrected"], [], b"cde")])
    generate(page)
    rejected = page.locator(".text .rejected")
    expect(rejected).to_be_hidden()
    assert "rejected draft “cde”" in str(page.locator(".text .corrected").get_attribute("title"))
    page.get_by_label("rejected drafts").check()
    expect(rejected).to_be_visible()
    page.locator(".text").evaluate("box => getSelection().selectAllChildren(box)")
    assert page.evaluate("() => getSelection().toString()") == "abX"


def test_legend_has_a_shape_for_every_kind(page: Page) -> None:
    legend = page.get_by_role("list", name="What the marks mean")
    assert legend.get_by_role("listitem").count() == len(get_args(Origin)) + 4
    shapes = legend.evaluate("""list => [...list.querySelectorAll('span, del')].map(node => {
        const style = getComputedStyle(node);
        return [style.textDecorationLine, style.textDecorationStyle, style.boxShadow === 'none'].join(' ');
    })""")
    kinds = legend.evaluate("list => [...list.querySelectorAll('span, del')].map(node => node.className)")
    marked = [shape for shape, kind in zip(shapes, kinds, strict=True) if kind not in (PROMPT, "sampled")]
    assert len(set(marked)) == len(marked) == 7, "no two kinds differ by color alone"
