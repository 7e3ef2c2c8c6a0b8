"""Rows of a session and of a block after them, against whole sequences of the eager model without any cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fakes.whole_sequence import SIZE, Logits, is_tie, whole
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import examples

from fastblt.models import limits
from fastblt.models.blt import Blt
from fastblt.models.tokens import MASK_ID, encode
from fastblt.runtime.backends.protocol import (
    DRAFT_SLACK,
    MAX_ROWS,
    ROW_CAPACITY,
    Backend,
    CapacityError,
    DecoderRows,
    Ids,
)
from fastblt.runtime.sequence.requests import denoise, draft, draft_with_block, score_known, score_with_block
from fastblt.runtime.sequence.session import Latent, Session

OpenBackend = Callable[[str, str, int], Backend]
TOLERANCE = 1e-4
MASKED = np.full(SIZE, MASK_ID, dtype=np.int64)


def close(found: Logits, expected: Logits) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@examples(12)
@given(
    text=st.binary(min_size=2, max_size=60),
    before=st.integers(0, 59),
    latent=st.sampled_from(["closed", "partial"]),
    size=st.integers(1, SIZE),
    after=st.integers(2, 259),
)
def test_block_rows_equal_whole_sequence_and_leave_no_trace(
    blt_d: Backend, tiny_model: Blt, text: bytes, before: int, latent: Latent, size: int, after: int
) -> None:
    tokens = encode(text).tolist()
    assume(not is_tie(tiny_model, [*tokens, after]))
    session = Session(blt_d)
    cut = min(before + 1, len(tokens) - 1)
    session.append(tokens[1:cut])
    session.score()
    session.append(tokens[cut:])
    clean, masked = session.run(score_with_block(MASKED[:size], latent))
    expected, expected_block = whole(tiny_model, tokens, [MASK_ID] * size, latent)
    close(clean.logits, expected[cut:])
    close(masked.logits, expected_block)
    # Some bytes decided.
    block = [77, *[MASK_ID] * (size - 1)]
    close(session.run(denoise(np.array(block))).logits, whole(tiny_model, tokens, block, latent)[1])
    assert session.tokens.tolist() == tokens
    assert session.scored == session.length == len(tokens)
    # What follows does not know of it: neither of the block's rows nor of the open patch's latent.
    for token in (after, 50, 60):
        session.append([token])
        tokens.append(token)
    assume(not is_tie(tiny_model, tokens))
    close(session.score().logits[-1], whole(tiny_model, tokens, [MASK_ID], "closed")[0][-1])


@examples(12)
@given(text=st.binary(min_size=2, max_size=60), size=st.integers(1, SIZE))
def test_drafted_block_equals_whole_sequence_with_stale_latents(
    blt_d: Backend, tiny_model: Blt, text: bytes, size: int
) -> None:
    tokens = encode(text).tolist()
    assume(not is_tie(tiny_model, tokens))
    session = Session(blt_d)
    session.append(tokens[1:-1])
    session.score()
    session.append(tokens[-1:])
    calls = dict(session.stats.nfe)
    clean, masked = session.run(draft_with_block(MASKED[:size]))
    expected, expected_block = whole(tiny_model, tokens, [MASK_ID] * size, "stale")
    close(clean.logits, expected[-1:])
    close(masked.logits, expected_block)
    block = [*[MASK_ID] * (size - 1), 77]
    close(session.run(denoise(np.array(block))).logits, whole(tiny_model, tokens, block, "stale")[1])
    made = {part: count - calls.get(part, 0) for part, count in session.stats.nfe.items()}
    assert {part: count for part, count in made.items() if count} == {"decoder": 2}
    assert (session.length, session.scored) == (len(tokens), len(tokens) - 1)
    close(session.score().logits[-1], whole(tiny_model, tokens, [MASK_ID], "closed")[0][-1])


@examples(15)
@given(text=st.binary(min_size=4, max_size=60), known=st.integers(1, 30), wanted=st.booleans())
def test_rows_in_parts_are_the_rows_and_need_no_latent_first(
    blt_d: Backend, tiny_model: Blt, text: bytes, known: int, wanted: bool
) -> None:
    tokens = encode(text).tolist()
    known = min(known, len(tokens) - 1)
    assume(not is_tie(tiny_model, tokens))
    session = Session(blt_d)
    session.append(tokens[1:known])
    session.score()
    ends = list(session.patch_ends)
    session.append(tokens[known:])
    calls = dict(session.stats.nfe)
    expected = whole(tiny_model, tokens, [MASK_ID], "closed")[0][known:]
    closing: list[int] = tiny_model.segment(torch.tensor([tokens])).closes[0].nonzero().flatten().tolist()
    first_new = next((p for p in closing if p >= known), len(tokens))
    rows = []
    for part in scored_in_parts(session):
        rows.append(part.logits.copy())
        encoded = session.stats.nfe["global"] > calls["global"]
        assert encoded == (sum(map(len, rows)) > first_new - known)
        if not wanted:
            break
    found = np.concatenate(rows)
    close(found, expected[: len(found)])
    if wanted:
        assert len(found) == len(expected)
    assert len(rows) <= 2
    # Where the caller stopped is where it may go on, after a rewind or without one.
    assert session.scored == known + len(found)
    session.rewind(known + len(found))
    assert session.patch_ends == [*ends, *(p + 1 for p in closing if known <= p < session.length)]
    again = [*tokens[: session.length], 99]
    assume(not is_tie(tiny_model, again))
    session.append([99])
    close(session.score().logits[-1], whole(tiny_model, again, [MASK_ID], "closed")[0][-1])


def scored_in_parts(session: Session) -> Iterator[DecoderRows]:
    """Score what needs no new latent first, and the rest when it is asked for."""
    known = session.run(score_known())
    if known is not None:
        yield known
    yield session.score()


def test_rows_in_parts_are_encoded_once(open_backend: OpenBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the decoder reads byte states, the first part has to be encoded before the patch that it does not reach."""
    encoded: list[int] = []
    with Session(open_backend("onnxruntime", "encoder", 200)) as session:
        run = session.sequence.run_encoder

        def watch(first: int, context: Ids, *rest: Any) -> None:
            encoded.extend(range(first, first + len(context) - session.config.hash.context + 1))
            run(first, context, *rest)

        monkeypatch.setattr(session.sequence, "run_encoder", watch)
        parts = []
        for start in range(0, 60, 6):
            session.append([70 + place % 50 for place in range(start, start + 6)])
            parts.append(len([*scored_in_parts(session)]))
        assert encoded == [*range(session.length)]
        assert max(parts) == 2


@pytest.mark.parametrize("kind", ["eager", "onnxruntime", "tensorrt-rtx"])
def test_last_byte_is_scored_after_a_draft_has_closed_its_patch(open_backend: OpenBackend, kind: str) -> None:
    """A draft from the open patch's latent reads the last byte; if that ends the patch, it is encoded already."""
    expected, found = (Session(open_backend(kind, "encoder", 200)) for _ in range(2))
    closed = 0
    with expected, found:
        for byte in range(40, 80):
            for session in (expected, found):
                session.append([byte])
            if found.length > 2:
                found.run(draft(2, latent="partial"))
                closed += found.patch_ends[-1] == found.length
            np.testing.assert_array_equal(found.score().logits, expected.score().logits)
    assert closed > 0


def test_parts_of_too_many_tokens_are_refused(blt_d: Backend) -> None:
    session = Session(blt_d)
    session.append([50] * (MAX_ROWS + 1))
    with pytest.raises(ValueError, match=f"score_known: found {MAX_ROWS + 2} tokens to score, expected at most 256"):
        session.run(score_known())


@pytest.mark.parametrize("size", [0, SIZE + 1])
@pytest.mark.parametrize("call", ["score_with_block", "draft_with_block"])
def test_block_of_another_size_is_refused(blt_d: Backend, size: int, call: str) -> None:
    session = Session(blt_d)
    session.score()
    session.append([50])
    block = np.full(size, MASK_ID)
    with pytest.raises(ValueError, match=rf"block: found {size} bytes, expected 1\.\.4, the size the model was"):
        session.run(score_with_block(block, "closed") if call == "score_with_block" else draft_with_block(block))
    assert (session.length, session.scored) == (2, 1)


def test_block_may_not_run_past_the_buffers(open_backend: OpenBackend) -> None:
    backend = open_backend("eager", "embedding", 10)
    for room in (SIZE, SIZE - 1):
        session = Session(backend)
        session.append([50] * (10 + DRAFT_SLACK - room))
        if room == SIZE:
            session.run(score_with_block(MASKED, "closed"))
        else:
            with pytest.raises(CapacityError, match=f"block: found {SIZE} bytes after position .*, expected at most 3"):
                session.run(score_with_block(MASKED, "closed"))


def test_every_block_that_a_configuration_may_have_fits_a_call_and_the_end_of_a_text() -> None:
    assert min(DRAFT_SLACK, ROW_CAPACITY - MAX_ROWS) >= limits.BLOCK_SIZE


def test_block_is_the_same_when_another_session_has_come_between(blt_d: Backend) -> None:
    session = Session(blt_d)
    session.append([50, 60, 70])
    _, rows = session.run(score_with_block(MASKED, "closed"))
    expected = rows.logits.copy()
    other = Session(blt_d)
    other.append([90, 80, 70, 60, 50])
    other.run(score_with_block(MASKED, "closed"))
    np.testing.assert_array_equal(session.run(denoise(MASKED)).logits, expected)
