import re
from collections.abc import Callable
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.tokens import BOS_ID, EOS_ID, encode
from fastblt.runtime.backends.protocol import DRAFT_SLACK, MAX_ROWS, Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Generation
from fastblt.runtime.methods import MethodError, parse_method, rounds_of
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

Scripted = Callable[..., Backend]
#: After the second the BLT-D model ends its document, after the third the BLT model.
PROMPTS = (b"", b"prompt 31", b"prompt 68", bytes(range(120, 160)))
TEXT = b"It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want. "


@pytest.fixture(scope="module")
def generate(backend: Backend) -> Callable[..., Generation]:
    """``generate(prompt, method, stop_at_eos)``: 40 bytes, remembered."""

    @cache
    def run(prompt: bytes, method: str, stop_at_eos: bool) -> Generation:
        # Sequences of the backend, of which a GPU has few, are for other tests too.
        return BltRuntime(backend).generate(prompt, 40, method=method, stop_at_eos=stop_at_eos)

    return run


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_self_speculation_equals_autoregression_when_greedy(generate: Callable[..., Generation], k: int) -> None:
    """A text without an EOS is the same whether it would stop there or not: it is generated once."""
    drafted = accepted = 0
    for prompt, option in product(PROMPTS, ("", "+partial") if k == 4 else ("",)):
        ends = generate(prompt, "ar", True).finish == "eos"
        for stop_at_eos in (False, True) if ends else (True,):
            expected, found = generate(prompt, "ar", stop_at_eos), generate(prompt, f"s:{k}{option}", stop_at_eos)
            assert found.data == expected.data
            assert found.finish == expected.finish
            drafted += found.stats.drafted
            accepted += found.stats.accepted
    assert 0.1 * drafted < accepted < drafted, "neither nothing nor everything, or the test proves little"


def test_random_models_do_not_only_loop_and_end_some_documents(generate: Callable[..., Generation]) -> None:
    """Otherwise the test above would prove little."""
    assert {generate(p, "ar", True).finish for p in PROMPTS} == {"length", "eos"}
    assert len({generate(p, "ar", False).data for p in PROMPTS}) == len(PROMPTS)
    assert all(len(set(generate(p, "ar", False).data)) > 5 for p in PROMPTS)


@examples(80)
@given(
    k=st.integers(1, 20),
    surprising=st.sets(st.integers(1, 90)),
    misdrafted=st.sets(st.integers(1, 90)),
    eos_at=st.none() | st.integers(5, 60),
    stop_at_eos=st.booleans(),
)
def test_drafts_never_show_in_the_text(
    scripted: Scripted, k: int, surprising: set[int], misdrafted: set[int], eos_at: int | None, stop_at_eos: bool
) -> None:
    """Any patches, any wrong drafts: the text is the model's; the backend checks every call."""
    prompt, count = TEXT[:4], 50
    tokens = encode(TEXT, bos=False).tolist()
    if eos_at is not None:
        tokens.insert(eos_at, EOS_ID)
    expected, finish = TEXT[4 : 4 + count], "length"
    if eos_at is not None and eos_at < 4 + count:
        # A token without a byte counts as one of the fifty.
        expected, finish = (TEXT[4:eos_at], "eos") if stop_at_eos else (TEXT[4 : 3 + count], "length")
    for method in ("ar", f"s:{k}", f"s:{k}+partial"):
        runtime = BltRuntime(scripted(tokens, surprising=surprising, misdrafted=misdrafted))
        found = runtime.generate(prompt, count, method=method, stop_at_eos=stop_at_eos)
        assert found.data == expected
        assert found.finish == finish


@pytest.mark.parametrize("k", [1, 4, 7])
def test_round_is_k_accepted_and_one_free_byte_when_drafts_are_right(scripted: Scripted, k: int) -> None:
    session = Session(scripted(TEXT))
    session.append(encode(TEXT[:4], bos=False))
    rounds = rounds_of(parse_method(f"s:{k}"), session, Sampler())
    first = next(rounds)
    assert (first.tokens, first.origins, first.drafted) == ((TEXT[4] + 4,), ("sampled",), 0)
    for _ in range(3):
        before = session.length
        found = next(rounds)
        assert found.origins == ("accepted",) * k + ("free",)
        assert found.rejected == ()
        assert (found.drafted, found.accepted) == (k, k)
        assert session.length == before + k + 1
        assert session.scored == session.length - 1
        assert session.tokens.tolist() == [BOS_ID, *encode(TEXT[: session.length - 1], bos=False)]


@pytest.mark.parametrize("wrong", range(4))
def test_round_ends_with_the_corrected_byte_when_a_draft_is_wrong(scripted: Scripted, wrong: int) -> None:
    k, prompt = 4, 4
    # Position p is byte p - 1 of the text; the first draft follows one sampled byte.
    at = prompt + 2 + wrong
    session = Session(scripted(TEXT, misdrafted={at}))
    session.append(encode(TEXT[:prompt], bos=False))
    rounds = rounds_of(parse_method(f"s:{k}"), session, Sampler())
    next(rounds)
    found = next(rounds)
    assert found.origins == ("accepted",) * wrong + ("corrected",)
    assert bytes(t - 4 for t in found.tokens) == TEXT[prompt + 1 : prompt + 2 + wrong]
    assert len(found.rejected) == k - wrong
    assert found.rejected[0] != TEXT[at - 1] + 4
    assert (found.drafted, found.accepted) == (k, wrong)


@pytest.mark.parametrize("method", ["s:1", "s:4", "s:8", "s:16"])
def test_round_makes_at_most_one_encoder_and_global_call(backend: Backend, method: str) -> None:
    """The paper makes two; verification has already made the latents that the next draft reads."""
    k = int(method[2:])
    session = Session(backend)
    session.append(encode(b"The quick brown fox", bos=False))
    reads_states = backend.config.decoder_input == "encoder"
    before = dict(session.stats.nfe)
    drafts = 0
    for index, _ in enumerate(rounds_of(parse_method(method), session, Sampler())):
        if index == 12:
            break
        made = {part: session.stats.nfe[part] - before.get(part, 0) for part in session.stats.nfe}
        before = dict(session.stats.nfe)
        assert made["patcher"] == 1
        assert made["decoder"] == 1 + drafts
        assert made.get("global", 0) <= 1
        # Where the decoder reads byte states a drafted row is an encoder row too.
        states = drafts if reads_states else 0
        assert made.get("encoder", 0) - states <= 1
        drafts = k
    assert session.stats.nfe["global"] >= 4


def test_round_from_the_open_patch_makes_the_two_calls_of_the_paper(backend: Backend) -> None:
    session = Session(backend)
    session.append(encode(b"The quick brown fox", bos=False))
    states = 4 if backend.config.decoder_input == "encoder" else 0
    before: dict[str, int] = {}
    most = []
    for index, found in enumerate(rounds_of(parse_method("s:4+partial"), session, Sampler())):
        made = {part: n - before.get(part, 0) for part, n in session.stats.nfe.items()}
        before = dict(session.stats.nfe)
        if index:
            assert made["decoder"] == 1 + 4
            # Verification reads all patches in one call; there is none to make where the draft has closed none.
            assert 1 <= made["global"] <= 2
            assert made["global"] <= made["encoder"] - states <= 2
            most.append(made["global"])
            assert found.drafted == 4
        if index == 12:
            break
    assert max(most) == 2


def test_autoregression_calls_global_once_per_patch(backend: Backend) -> None:
    runtime = BltRuntime(backend)
    prompt = b"The quick brown fox"
    patches = []
    stats = runtime.generate(
        prompt, 60, method="ar", stop_at_eos=False, on_chunk=lambda chunk: patches.append(len(chunk.boundaries))
    ).stats
    assert stats.nfe["patcher"] == stats.nfe["decoder"] == stats.rounds == 60
    # The prompt's patches come with the first call, every later one has a call of its own.
    later = sum(patches[1:])
    assert stats.nfe["global"] == 1 + later
    expected = stats.nfe["global"] if backend.config.decoder_input == "embedding" else 60
    assert stats.nfe["encoder"] == expected


def test_calls_hold_no_more_rows_than_a_backend_must_take(scripted: Scripted) -> None:
    """The backend refuses more; here no entropy is high, so that patches are as long as they can be."""
    text = np.random.default_rng(0).bytes(3 * MAX_ROWS + 100)
    backend = scripted(text, max_bytes=len(text))
    found = BltRuntime(backend).generate(text[: 3 * MAX_ROWS], 20, method="s:8")
    assert found.data == text[3 * MAX_ROWS :][:20]
    assert found.stats.nfe["patcher"] == 4 + found.stats.rounds - 1


@pytest.fixture(scope="module")
def small_and_expected(backend: Backend, open_backend: Callable[..., Backend]) -> tuple[BltRuntime, bytes]:
    """A runtime that holds 40 bytes, and what a large one writes byte by byte."""
    small = open_backend(backend.name, backend.config.decoder_input, 40)
    expected = BltRuntime(backend).generate(b"some words", 30, method="ar", stop_at_eos=False)
    return BltRuntime(small), expected.data


@pytest.mark.parametrize("k", [1, 16, DRAFT_SLACK - 1])
def test_draft_may_run_past_the_capacity(small_and_expected: tuple[BltRuntime, bytes], k: int) -> None:
    small, expected = small_and_expected
    assert small.generate(b"some words", 30, method=f"s:{k}", stop_at_eos=False).data == expected


@pytest.mark.parametrize("text", ["ar", "s:1", "s:8", "s:8+partial", f"s:{DRAFT_SLACK - 1}"])
def test_method_keeps_its_name_when_parsed(text: str) -> None:
    assert parse_method(text).name == text


@pytest.mark.parametrize("text", ["", "AR", "s8", "b:8", "greedy", " ar", "ar ", ":"])
def test_unknown_method_is_named_with_the_choices(text: str) -> None:
    with pytest.raises(MethodError, match=r"unknown, expected ar, s:K") as caught:
        parse_method(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["s", "s:", "s:0", "s:-1", "s:x", "s:2.5", "s:8:2", "s: 8", "s:²", "s:٤", f"s:{DRAFT_SLACK}"]
)
def test_bad_draft_length_is_named_with_the_range(text: str) -> None:
    with pytest.raises(MethodError, match=rf"found draft length .*, expected 1\.\.{DRAFT_SLACK - 1}"):
        parse_method(text)


@pytest.mark.parametrize("options", ["+closed", "+", "+partial+partial", "+block"])
def test_option_of_self_speculation_is_partial(options: str) -> None:
    with pytest.raises(MethodError, match=rf"'s:8{re.escape(options)}': found options .*, expected none or partial"):
        parse_method(f"s:8{options}")


def test_argument_of_autoregression_is_refused() -> None:
    with pytest.raises(MethodError, match=r"'ar:3': found an argument"):
        parse_method("ar:3")


def test_sampled_bytes_are_a_function_of_the_seed(backend: Backend) -> None:
    runtime = BltRuntime(backend)

    def sample(seed: int | None, temperature: float = 1.0) -> bytes:
        return runtime.generate(b"abc", 30, method="ar", temperature=temperature, seed=seed, stop_at_eos=False).data

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(None) != sample(None)
    assert sample(5, temperature=1e-4) == runtime.generate(b"abc", 30, method="ar", stop_at_eos=False).data
