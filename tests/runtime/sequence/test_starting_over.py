"""A rewind beyond what a backend's caches keep: what was scored is read again, and drafting goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastblt.models.tokens import encode
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.verify.lockstep import Comparison
from fastblt.runtime.sequence.requests import draft
from fastblt.runtime.sequence.session import Session

TEXT = encode(b"In the beginning God created the heaven and the earth.")


def test_draft_goes_on_after_a_rewind_that_starts_over(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BltRuntime.from_pretrained(tiny_bundle, max_bytes=200).backend
    found = []
    for kept in (True, False):
        asked: list[tuple[int, int]] = []
        session = Session(backend)
        monkeypatch.setattr(
            session.sequence, "can_resume_from", lambda *at, kept=kept, asked=asked: asked.append(at) or kept
        )
        session.append(TEXT[1:])
        session.score()
        session.rewind(30)
        session.append(TEXT[30:31])
        assert (session.length, session.scored) == (31, 30)
        tokens, _ = session.run(draft(6))
        found.append((tokens.tolist(), list(session.patch_ends)))
        ((position, open_patch),) = asked
        assert position == 30
        assert open_patch <= position
    assert found[0] == found[1]


def test_numbers_that_are_not_finite_or_missing_never_agree() -> None:
    good, bad, zero = np.ones(4, np.float32), np.array([1, np.nan, 1, 1], np.float32), np.zeros(4, np.float32)
    for found, expected in ((good, bad), (bad, good), (bad, bad)):
        comparison = Comparison("decoder", "logits")
        comparison.add(found, expected)
        assert comparison.max_error == float("inf")
        assert comparison.cosine == -1.0
    comparison = Comparison("decoder", "key_0")
    comparison.add(zero, 0.01 * good)
    assert comparison.cosine == 0.0
