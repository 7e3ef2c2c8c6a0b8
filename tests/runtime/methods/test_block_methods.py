"""The methods d and dv, against Algorithm 1 on whole sequences of the eager model and against autoregression."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from fakes.whole_sequence import SIZE, Logits, is_tie, whole
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.blt import Blt
from fastblt.models.patcher import entropy
from fastblt.models.tokens import EOS_ID, MASK_ID, encode
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.methods import MethodError, Round, parse_method, rounds_of
from fastblt.runtime.methods.denoising import Confidence, Unmasking
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

OpenBackend = Callable[[str, str, int], Backend]
#: After the second the model ends its document.
PROMPTS = (b"", b"prompt 31", bytes(range(120, 160)))


def unmask(rows: Logits, block: list[int], rule: str) -> list[int]:
    """Algorithm 1's choice: which masked positions to fill, by their top probability or their entropy."""
    logits = torch.from_numpy(rows)
    masked = [i for i, token in enumerate(block) if token == MASK_ID]
    if rule == "one":
        return masked
    if rule.startswith("eb"):
        without_highest = rule.startswith("ebmax")
        gamma = float(rule.removeprefix("eb").removeprefix("max"))
        uncertain = entropy(logits).tolist()
        chosen: list[int] = []
        for i in sorted(masked, key=lambda i: uncertain[i]):
            if chosen and sum(uncertain[j] for j in (chosen if without_highest else [*chosen, i])) > gamma:
                break
            chosen.append(i)
        return chosen
    top = logits.softmax(-1).amax(-1).tolist()
    return [i for i in masked if top[i] > float(rule)] or [max(masked, key=lambda i: top[i])]


def naive_blocks(model: Blt, tokens: list[int], count: int, rule: str, latent: str, clean_first: bool) -> list[int]:
    """``count`` bytes by Algorithm 1 on whole sequences: nothing is kept from step to step."""
    end = len(tokens) + count
    while len(tokens) < end:
        block = [MASK_ID] * SIZE
        clean, rows = whole(model, tokens, block, latent)
        first = int(clean[-1].argmax()) if clean_first else MASK_ID
        while MASK_ID in block:
            wanted = [first, *block[1:]] if clean_first else block
            filled = {i: int(rows[i].argmax()) for i in unmask(rows, wanted, rule)}
            block = [filled.get(i, token) for i, token in enumerate(wanted)]
            rows = whole(model, tokens, block, latent)[1]
        tokens = [*tokens, *block]
    return tokens[:end]


BLOCKS = ("one", "0.03", "0.04", "eb10", "eb0", "ebmax5")
PROMPT = b"The quick"


@pytest.mark.parametrize("options", ["", "+closed", "+block", "+closed+block"])
@pytest.mark.parametrize("rule", BLOCKS)
def test_block_diffusion_equals_algorithm_1_on_whole_sequences(
    blt_d: Backend, tiny_model: Blt, rule: str, options: str
) -> None:
    session = Session(blt_d)
    session.append(encode(PROMPT, bos=False))
    tokens = session.tokens.tolist()
    for step in rounds_of(parse_method(f"d:{SIZE}@{rule}{options}"), session, Sampler()):
        assert step.origins == ("denoised",) * SIZE
        assert (step.drafted, step.accepted, step.rejected) == (0, 0, ())
        assert session.tokens[-SIZE:].tolist() == list(step.tokens)
        if session.length >= len(tokens) + 20:
            break
    latent = "partial" if "partial" in options else "closed"
    expected = naive_blocks(tiny_model, tokens, 20, rule, latent, "block" not in options)
    assert session.tokens.tolist() == expected


def test_rules_and_latents_of_block_diffusion_differ(tiny_model: Blt) -> None:
    """Otherwise the test above would prove little."""
    tokens = encode(PROMPT).tolist()
    texts = {tuple(naive_blocks(tiny_model, tokens, 20, rule, "partial", True)) for rule in BLOCKS}
    assert len(texts) >= 4
    texts = {tuple(naive_blocks(tiny_model, tokens, 20, "0.03", x, y)) for x in ("closed", "partial") for y in (0, 1)}
    assert len(texts) == 4


@pytest.mark.parametrize("option", ["", "+block"])
@pytest.mark.parametrize("latent", ["closed", "partial"])
@pytest.mark.parametrize("rule", ["one", "0.04"])
def test_drafts_of_verification_are_those_of_algorithm_1(
    blt_d: Backend, tiny_model: Blt, rule: str, latent: str, option: str
) -> None:
    """``closed``: the last byte is not scored, so it reads what was closed before it, as the block does."""
    session = Session(blt_d)
    session.append(encode(PROMPT, bos=False))
    tokens: list[int] = []
    for index, step in enumerate(rounds_of(parse_method(f"dv:{SIZE}@{rule}+{latent}{option}"), session, Sampler())):
        if index:
            drafted = [*step.tokens[: step.accepted], *step.rejected]
            reads = "stale" if latent == "closed" else latent
            assert drafted == naive_blocks(tiny_model, tokens, SIZE, rule, reads, not option)[-SIZE:]
        tokens = session.tokens.tolist()
        if index == 8:
            break


@pytest.mark.parametrize("method", ["d:4@0.04", "dv:4@0.04", "dv:4@one+block"])
@pytest.mark.parametrize("latent", ["closed", "partial"])
def test_block_reads_the_latent_that_the_model_was_trained_on(
    blt_d: Backend, monkeypatch: pytest.MonkeyPatch, method: str, latent: str
) -> None:
    def outcome(name: str) -> tuple[bytes, int, int]:
        found = BltRuntime(blt_d).generate(PROMPT, 30, method=name, stop_at_eos=False)
        return found.data, found.stats.nfe["global"], found.stats.drafted

    expected = {each: outcome(f"{method}+{each}") for each in ("closed", "partial")}
    assert expected["closed"] != expected["partial"]
    monkeypatch.setattr(blt_d, "config", dataclasses.replace(blt_d.config, block_latent=latent))
    assert outcome(method) == expected[latent]
    assert outcome(f"{method}+closed") == expected["closed"], "an option wins"


VERIFYING = tuple(f"dv:4@{rule}{latent}" for rule in ("one", "0.02", "eb0") for latent in ("", "+partial"))


@pytest.fixture(scope="module")
def autoregressive(blt_d: Backend) -> Callable[[bytes, int, bool], tuple[bytes, str]]:
    """``autoregressive(prompt, count, stop_at_eos)``: bytes and why they end."""

    @cache
    def run(prompt: bytes, count: int, stop_at_eos: bool) -> tuple[bytes, str]:
        found = BltRuntime(blt_d).generate(prompt, count, method="ar", stop_at_eos=stop_at_eos)
        return found.data, found.finish

    return run


@pytest.mark.parametrize("method", [*VERIFYING, "dv:3@one+block", "dv:1", "dv:4@eb9.7+partial+block"])
def test_diffusion_with_verification_equals_autoregression_when_greedy(
    blt_d: Backend, autoregressive: Callable[[bytes, int, bool], tuple[bytes, str]], method: str
) -> None:
    drafted = accepted = 0
    endings = set()
    for prompt in PROMPTS:
        # A text without an EOS is the same whether it would stop there or not.
        ends = autoregressive(prompt, 30, True)[1] == "eos"
        for stop_at_eos in (False, True) if ends else (True,):
            expected = autoregressive(prompt, 30, stop_at_eos)
            found = BltRuntime(blt_d).generate(prompt, 30, method=method, stop_at_eos=stop_at_eos)
            assert (found.data, found.finish) == expected
            endings.add(found.finish)
            drafted += found.stats.drafted
            accepted += found.stats.accepted
    assert endings == {"length", "eos"}
    assert 0 < accepted < 0.9 * drafted


@examples(8)
@given(prompt=st.binary(max_size=40), count=st.integers(1, 12), method=st.sampled_from(VERIFYING))
def test_diffusion_with_verification_equals_autoregression_for_any_prompt(
    blt_d: Backend, tiny_model: Blt, prompt: bytes, count: int, method: str
) -> None:
    expected = BltRuntime(blt_d).generate(prompt, count, method="ar", stop_at_eos=False).data
    assume(not is_tie(tiny_model, encode(prompt + expected).tolist()))
    assert BltRuntime(blt_d).generate(prompt, count, method=method, stop_at_eos=False).data == expected


@pytest.mark.parametrize("method", ["dv:4@one", "dv:4@one+partial", "d:4@one"])
def test_text_ends_before_a_stop_string_and_at_the_capacity(open_backend: OpenBackend, method: str) -> None:
    """The buffers hold exactly the prompt and the new bytes; a block runs past them and is cut."""
    runtime = BltRuntime(open_backend("eager", "embedding", 30))
    found = runtime.generate(b"some words", 20, method=method, stop_at_eos=False)
    assert len(found.data) == 20
    stop = found.data[9:11]
    at = found.data.index(stop)
    ended = runtime.generate(b"some words", 20, method=method, stop_at_eos=False, stop=stop)
    assert (ended.data, ended.finish) == (found.data[:at], "stop")


def counted_rounds(session: Session, method: str, count: int) -> Iterator[tuple[Round, dict[str, int]]]:
    """Rounds, and the calls that each of them made."""
    before = dict(session.stats.nfe)
    for index, step in enumerate(rounds_of(parse_method(method), session, Sampler())):
        made = {part: n - before.get(part, 0) for part, n in session.stats.nfe.items()}
        before = dict(session.stats.nfe)
        yield step, made
        if index == count:
            return


@pytest.mark.parametrize(
    ("method", "steps"),
    [("d:4@one", 1), ("d:4@eb0", 3), ("d:4@eb0+block", 4), ("d:3@0.99+closed", 2), ("d:1@0.5", 1), ("d:4@eb99", 1)],
)
def test_block_costs_one_encoder_and_global_call_and_a_decoder_call_a_step(
    blt_d: Backend, method: str, steps: int
) -> None:
    session = Session(blt_d)
    session.append(encode(b"The quick brown fox", bos=False))
    for step, made in counted_rounds(session, method, 10):
        assert made["decoder"] == steps
        assert made["patcher"] == 1
        assert made["encoder"] == made["global"] <= 1
        assert session.length - session.scored == len(step.tokens)
    assert session.stats.nfe["global"] >= 4


@pytest.mark.parametrize(("method", "steps"), [("dv:4@one", 1), ("dv:4@eb0", 3), ("dv:3@0.99+block", 3)])
@pytest.mark.parametrize("latent", ["closed", "partial"])
def test_round_costs_one_encoder_and_global_call_and_one_more_if_partial(
    blt_d: Backend, method: str, steps: int, latent: str
) -> None:
    session = Session(blt_d)
    session.append(encode(b"The quick brown fox", bos=False))
    most = []
    for index, (_, made) in enumerate(counted_rounds(session, f"{method}+{latent}", 16)):
        if index == 0:
            continue  # the prompt
        # Verification is one decoder call or two; none if the last byte's own row refuses the draft already.
        least, highest = (steps, steps + 2) if latent == "partial" else (steps + 1, steps + 2)
        assert least <= made["decoder"] <= highest
        assert made["encoder"] == made["global"]
        most.append(made["global"])
    assert max(most) <= (1 if latent == "closed" else 2)
    assert latent == "partial" or set(most) == {0, 1}, "some rounds fail before a latent is needed"


@pytest.mark.parametrize("method", ["d:4@one", "dv:4@one"])
def test_methods_are_refused_on_a_model_without_blocks(open_backend: OpenBackend, method: str) -> None:
    runtime = BltRuntime(open_backend("eager", "encoder", 50))
    with pytest.raises(MethodError, match=r"has no \[MASK\] row"):
        runtime.generate(b"abc", 5, method=method)
    with pytest.raises(MethodError, match="found blocks of 5 bytes, expected at most 4"):
        BltRuntime(open_backend("eager", "embedding", 50)).generate(b"abc", 5, method=method.replace("4", "5"))


TEXT = b"It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want. "


@examples(60)
@given(
    method=st.sampled_from(
        ["dv:4@one", "dv:3@0.6", "dv:4@eb1.0", "dv:4@0.99+partial", "dv:2@one+partial+block", "dv:1"]
    ),
    surprising=st.sets(st.integers(1, 90)),
    misdrafted=st.sets(st.integers(1, 90)),
    eos_at=st.none() | st.integers(5, 60),
)
def test_blocks_never_show_in_the_text(
    scripted: Callable[..., Backend], method: str, surprising: set[int], misdrafted: set[int], eos_at: int | None
) -> None:
    """Any patches, any wrong drafts: the text is the model's; the backend checks every call."""
    tokens = encode(TEXT, bos=False).tolist()
    if eos_at is not None:
        tokens.insert(eos_at, EOS_ID)
    backend = scripted(tokens, surprising=surprising, misdrafted=misdrafted)
    if backend.config.decoder_input == "encoder":
        return
    found = BltRuntime(backend).generate(TEXT[:4], 50, method=method)
    assert found.data == (TEXT[4:54] if eos_at is None or eos_at >= 54 else TEXT[4:eos_at])
    if not misdrafted and eos_at is None:
        assert found.stats.accepted == found.stats.drafted


@examples(30)
@given(
    method=st.sampled_from(["d:4@one", "d:3@0.6+closed", "d:4@eb1.0", "d:2@0.99+block"]),
    surprising=st.sets(st.integers(1, 90)),
)
def test_blocks_that_are_right_are_the_text(
    scripted: Callable[..., Backend], method: str, surprising: set[int]
) -> None:
    backend = scripted(TEXT, surprising=surprising)
    if backend.config.decoder_input == "embedding":
        assert BltRuntime(backend).generate(TEXT[:4], 50, method=method).data == TEXT[4:54]


@pytest.mark.parametrize("name", ["d:4@0.7+partial", "dv:4@one+block"])
def test_block_method_with_another_rule_differs_in_that_alone(name: str) -> None:
    method = parse_method(name)
    assert isinstance(method, Unmasking)
    other = method.with_rule(Confidence(0.25))
    assert isinstance(other, type(method))
    assert isinstance(other, Unmasking)
    assert other.rule == Confidence(0.25)
    assert other.name == name
    assert other.with_rule(method.rule) == method
    assert not isinstance(parse_method("s:4"), Unmasking)
