import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import examples

from fastblt.models.blt import Blt
from fastblt.models.patcher import entropy
from fastblt.models.tokens import BOS_ID, encode
from fastblt.runtime.backends.protocol import DRAFT_SLACK, MAX_ROWS, Backend, CapacityError
from fastblt.runtime.methods import parse_method, rounds_of
from fastblt.runtime.sequence.requests import draft
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

ModelOf = Callable[[Backend], Blt]
LatentsOf = Callable[[Session, int], NDArray[np.float32]]
TOLERANCE = 5e-5
"""Of logits up to 4 in size: two backends, two orders of summation."""


def is_tie(model: Blt, tokens: list[int]) -> bool:
    """Whether an entropy is the threshold but for rounding, so that a boundary may be here or not."""
    entropies = entropy(model.patcher(torch.tensor([tokens])))
    return float((entropies - model.config.patching.threshold).abs().min()) < 1e-5


def random_text(length: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def fresh(backend: Backend, tokens: list[int]) -> tuple[Session, NDArray[np.float32]]:
    """A new session that has scored these tokens (BOS first) in one go, and the logits of the last one."""
    session = Session(backend)
    session.append(tokens[1:])
    return session, session.score().logits[-1].copy()


@examples(25)
@given(text=st.binary(max_size=90), sizes=st.lists(st.integers(1, 50), max_size=12))
def test_rows_equal_whole_sequence_for_any_split(
    backend: Backend, model_of: ModelOf, text: bytes, sizes: list[int]
) -> None:
    model, ids = model_of(backend), encode(text)
    assume(not is_tie(model, ids.tolist()))
    session = Session(backend)
    logits, probabilities, best, entropies = [], [], [], []
    done = 1
    for size in [*sizes, len(ids)]:
        session.append(ids[done : done + size])
        done = session.length
        if session.scored < session.length:
            rows = session.score()
            logits.append(rows.logits.copy())
            probabilities += rows.probability.tolist()
            entropies += rows.entropy.tolist()
            best += rows.best.tolist()
    assert session.tokens.tolist() == ids.tolist()
    assert session.scored == session.length == len(ids)
    whole = torch.from_numpy(ids).unsqueeze(0)
    patches = model.segment(whole)
    assert session.patch_ends == (patches.closes[0].nonzero().flatten() + 1).tolist()
    expected = model(whole, patches)[0][0]
    found = np.concatenate(logits)
    np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, rtol=0)
    assert best == found.argmax(1).tolist()
    np.testing.assert_allclose(probabilities, expected.softmax(-1).amax(-1).numpy(), atol=1e-5)
    np.testing.assert_allclose(entropies, entropy(expected).numpy(), atol=1e-4)


def test_long_prompt_is_fed_in_pieces_and_equals_whole_sequence(backend: Backend, model_of: ModelOf) -> None:
    model = model_of(backend)
    length = MAX_ROWS + 60
    tokens = next(
        ids.tolist()
        for ids in (encode(random_text(length, seed)) for seed in range(20))
        if not is_tie(model, ids.tolist())
    )
    session, logits = fresh(backend, tokens)
    assert session.stats.nfe["patcher"] == session.stats.nfe["decoder"] == 2
    whole = torch.tensor([tokens])
    assert session.patch_ends == (model.segment(whole).closes[0].nonzero().flatten() + 1).tolist()
    np.testing.assert_allclose(logits, model(whole)[0][0, -1].numpy(), atol=TOLERANCE, rtol=0)


steps = st.one_of(
    st.tuples(st.just("append"), st.lists(st.integers(2, 259), min_size=1, max_size=12)),
    st.tuples(st.just("score"), st.none()),
    st.tuples(st.just("rewind"), st.integers(0, 30)),
    st.tuples(st.just("draft"), st.integers(1, 9)),
)


@examples(40)
@given(plan=st.lists(steps, min_size=4, max_size=25))
def test_nothing_remembers_what_was_rewound(
    backend: Backend, model_of: ModelOf, latents_of: LatentsOf, plan: list[tuple[str, object]]
) -> None:
    """After any appends, scores, drafts and rewinds a session is that of its tokens alone."""
    session = Session(backend)
    tokens = [BOS_ID]
    for verb, argument in plan:
        if verb == "append":
            assert isinstance(argument, list)
            session.append(argument)
            tokens += argument
        elif verb == "score" and session.scored < session.length:
            session.score()
        elif verb == "rewind":
            assert isinstance(argument, int)
            length = max(1, len(tokens) - argument)
            session.rewind(length)
            del tokens[length:]
        elif verb == "draft" and 0 < session.scored == session.length - 1:
            assert isinstance(argument, int)
            session.run(draft(argument))
        assert session.tokens.tolist() == tokens
    assume(not is_tie(model_of(backend), tokens))
    session.append([77])
    logits = session.score().logits[-1].copy()
    latents = latents_of(session, len(session.patch_ends))
    other, expected = fresh(backend, [*tokens, 77])
    assert session.patch_ends == other.patch_ends
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(latents, latents_of(other, len(other.patch_ends)), atol=TOLERANCE, rtol=1e-4)


@examples(8)
@given(prompt=st.binary(max_size=40), data=st.data(), method=st.sampled_from(["ar", "s:1", "s:4", "s:7"]))
def test_generation_is_the_same_when_rewound_and_generated_again(
    backend: Backend, latents_of: LatentsOf, prompt: bytes, method: str, data: st.DataObject
) -> None:
    session = Session(backend)
    session.append(encode(prompt, bos=False))
    first = session.length

    def generate(count: int) -> None:
        for _ in rounds_of(parse_method(method), session, Sampler()):
            if session.length >= count:
                return

    generate(first + 30)
    end = session.scored
    tokens, ends = session.tokens.tolist()[:end], list(session.patch_ends)
    latents = latents_of(session, len(ends))
    for _ in range(2):
        # A row says what follows its token: the last token that stays is scored once more.
        keep = data.draw(st.integers(max(first, 2), end - 1)) - 1
        session.rewind(keep)
        assert session.tokens.tolist() == tokens[:keep]
        assert session.patch_ends == [e for e in ends if e <= keep]
        session.append([tokens[keep]])
        generate(end + 1)
        session.rewind(end)
        assert session.tokens.tolist() == tokens
        assert session.patch_ends == ends
        np.testing.assert_allclose(latents_of(session, len(ends)), latents, atol=TOLERANCE, rtol=1e-4)


def test_rewind_forgets_patches_that_end_later_and_no_others(backend: Backend) -> None:
    session, _ = fresh(backend, encode(random_text(60, 0)).tolist())
    ends = list(session.patch_ends)
    assert len(ends) > 8
    for length in range(61, 0, -1):
        session.rewind(length)
        assert session.length == session.scored == length
        assert session.patch_ends == [e for e in ends if e <= length]
        assert session.open_start == max((e for e in ends if e <= length), default=0)


def test_rewind_costs_no_call(backend: Backend) -> None:
    session, _ = fresh(backend, encode(b"some bytes").tolist())
    before = (dict(session.stats.nfe), session.stats.moved_bytes)
    session.rewind(4)
    assert (dict(session.stats.nfe), session.stats.moved_bytes) == before


def test_sessions_do_not_see_each_other_when_they_follow_one_another(backend: Backend) -> None:
    text = encode(random_text(50, 1)).tolist()
    _, expected = fresh(backend, text)
    fresh(backend, encode(random_text(200, 2)).tolist())
    _, found = fresh(backend, text)
    assert np.array_equal(found, expected)


def test_draft_commits_nothing_and_reads_the_newest_latent(backend: Backend, model_of: ModelOf) -> None:
    model, tokens = model_of(backend), encode(random_text(30, 3)).tolist()
    session, _ = fresh(backend, tokens)
    session.append([99])
    drafted, probabilities = session.run(draft(6))
    assert session.tokens.tolist() == [*tokens, 99]
    assert session.scored == len(tokens)
    known = model.segment(torch.tensor([tokens])).latent_index[0].tolist()
    ids = [*tokens, 99]
    for token, probability in zip(drafted.tolist(), probabilities.tolist(), strict=True):
        index = known + [known[-1]] * (len(ids) - len(known))
        row = model(torch.tensor([ids]), latent_index=torch.tensor([index]))[0][0, -1].softmax(-1)
        assert token == int(row.argmax())
        assert probability == pytest.approx(float(row.max()), abs=1e-5)
        ids.append(token)


def test_draft_books_each_part_its_own_time(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here every encoder call lasts at least 5 ms, every decoder call does not."""
    session, _ = fresh(backend, encode(random_text(30, 3)).tolist())
    session.append([99])
    stats, reads_states = session.stats, backend.config.decoder_input == "encoder"
    # A GPU's calls of the encoder are an object of their own.
    encoder: Any = session.sequence
    encoder = encoder if hasattr(encoder, "_encode") else encoder.slot.encoder
    encode_rows = encoder._encode

    def slow(*args: Any) -> None:
        time.sleep(0.005)
        encode_rows(*args)

    with monkeypatch.context() as patch:  # the sequence is gone when the test is over
        patch.setattr(encoder, "_encode", slow)
        for pick in (None, lambda row: (int(row.best[0]), True)):
            seconds, calls = dict(stats.part_seconds), dict(stats.nfe)
            began = time.perf_counter()
            session.run(draft(6, pick))
            whole = time.perf_counter() - began
            spent = {part: stats.part_seconds[part] - seconds[part] for part in ("encoder", "decoder")}
            assert stats.nfe["decoder"] - calls["decoder"] == 6
            assert stats.nfe["encoder"] - calls["encoder"] == (6 if reads_states else 0)
            assert spent["decoder"] > 0
            assert spent["decoder"] + spent["encoder"] <= whole
            assert spent["decoder"] <= whole - (0.03 if reads_states else 0.0)
            assert spent["encoder"] >= 0.03 if reads_states else spent["encoder"] == 0


def test_score_is_refused_when_everything_is_scored(backend: Backend) -> None:
    session, _ = fresh(backend, encode(b"abc").tolist())
    with pytest.raises(ValueError, match="score: found no token to score"):
        session.score()


@pytest.mark.parametrize("pending", [0, 2])
def test_draft_is_refused_when_not_one_token_is_pending(backend: Backend, pending: int) -> None:
    session, _ = fresh(backend, encode(b"abc").tolist())
    session.append([50] * pending)
    with pytest.raises(ValueError, match=rf"draft: found {pending} tokens to score, expected 1"):
        session.run(draft(4))


def test_draft_is_refused_when_there_is_no_latent(backend: Backend) -> None:
    """A new session holds BOS, which is not scored: no patch is closed, and a draft has nothing to read."""
    with pytest.raises(ValueError, match="draft: "):
        Session(backend).run(draft(4))


@pytest.mark.parametrize("length", [-1, 0, 5])
def test_rewind_is_refused_when_length_is_out_of_range(backend: Backend, length: int) -> None:
    session, _ = fresh(backend, encode(b"abc").tolist())
    with pytest.raises(ValueError, match=rf"rewind: found length {length}, expected 1\.\.4"):
        session.rewind(length)
    assert session.length == session.scored == 4


def test_append_is_refused_when_buffers_are_full(backend: Backend) -> None:
    session = Session(backend)
    session.append([50] * (backend.max_bytes + DRAFT_SLACK))
    length = session.length
    with pytest.raises(CapacityError, match=f"expected at most max_bytes={backend.max_bytes}"):
        session.append([50])
    assert session.length == length
    session.rewind(3)
    session.append([51])
    assert session.tokens.tolist() == [BOS_ID, 50, 50, 51]


@pytest.mark.parametrize("decoder_input", ["embedding", "encoder"])
@pytest.mark.parametrize("kind", ["eager", "onnxruntime"])
def test_cost_of_steps_does_not_depend_on_capacity(
    open_backend: Callable[[str, str, int], Backend], kind: str, decoder_input: str
) -> None:
    moved = []
    for max_bytes in (100, 3000):
        session, _ = fresh(open_backend(kind, decoder_input, max_bytes), encode(random_text(80, 4)).tolist())
        moved.append(session.stats.moved_bytes)
    assert moved[0] == moved[1] > 0


@pytest.mark.parametrize("part", ["patcher", "encoder", "decoder"])
def test_windowed_parts_read_no_more_when_the_text_is_longer(backend: Backend, part: str) -> None:
    sequence = backend.new_sequence()
    near, far = (max(sequence.moved_bytes(part, p + i, 1) for i in range(64)) for p in (128, 512))
    assert near == far
    near, far = (sequence.moved_bytes("global", position, 1) for position in (128, 512))
    assert far > near
    sequence.close()
