"""Texts of twenty expressions, Unicode among them, match them; they end by themselves, since all are bounded."""

from __future__ import annotations

import re

import pytest

from fastblt.runtime.blt_runtime import BltRuntime

EXPRESSIONS = (
    r"[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]",
    r"(25[0-5]|1[0-9]{2}|[1-9]?[0-9])(\.(25[0-5]|1[0-9]{2}|[1-9]?[0-9])){3}",
    r"[a-z]{1,8}@[a-z]{1,8}\.(com|org)",
    r"#[0-9a-f]{6}",
    r"(0|-?[1-9][0-9]{0,5})(\.[0-9]{1,3})?",
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    r"v[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}(-rc[1-9])?",
    r"https?://[a-z]{1,10}(/[a-z]{0,5}){0,3}",
    r"(true|false|null)",
    r"\([0-9]{3}\) [0-9]{3}-[0-9]{4}",
    r"[A-Z][a-z]{2,6}( [A-Z][a-z]{2,6}){1,2}",
    r"[äöüß]{1,6}",
    r"[а-я]{2,5}!",
    r"日本(語|人)?",
    r"[ぁ-ん]{1,4}。",
    r"(🙂|🙃|🚀){1,3}",
    r"[^\x00-\x7f]{1,3}",
    r"é?è?ê?x",
    r"[α-ω]+?ς",
    r"(«[a-zéà]{1,6}»,? ?){1,3}",
)


@pytest.mark.parametrize("method", ["s:8", "dv:4@0.4"])
def test_texts_match(alone: BltRuntime, method: str) -> None:
    assert len(EXPRESSIONS) == 20
    for expression in EXPRESSIONS:
        text = alone.generate(b"x", 300, method=method, temperature=1.0, seed=5, regex=expression)
        assert text.finish == "eos", expression
        assert re.fullmatch(expression, text.data.decode("utf-8"), re.DOTALL), (expression, text.data)
