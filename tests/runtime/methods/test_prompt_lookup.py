"""Prompt lookup: what it drafts, that nothing of it shows in the text, and that samples keep their distribution."""

from collections.abc import Callable

import pytest
from fakes.table_backend import Sampling, TableBackend, enumerate_texts, naive_distribution, surprise, table_logits
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.config import BltConfig
from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, EOS_ID, encode
from fastblt.runtime.backends.protocol import DRAFT_SLACK, Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.methods import MethodError, parse_method, prompt_lookup, rounds_of
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

Scripted = Callable[..., Backend]
LINE = b"x = total(a, b)\n"


def test_round_is_what_followed_before_and_costs_no_draft_call(scripted: Scripted) -> None:
    session = Session(scripted(LINE * 4))
    session.append(encode(LINE + LINE[:3], bos=False))
    rounds = rounds_of(parse_method("lookup:5"), session, Sampler())
    assert next(rounds).origins == ("sampled",)
    before = session.stats.nfe["decoder"]
    found = next(rounds)
    assert bytes(token - BYTE_OFFSET for token in found.tokens) == LINE[4:10]
    assert found.origins == ("accepted",) * 5 + ("free",)
    assert session.stats.nfe["decoder"] == before + 1
    assert session.scored == session.length - 1


def test_text_without_an_earlier_occurrence_is_written_byte_by_byte(scripted: Scripted) -> None:
    session = Session(scripted(bytes(range(60))))
    session.append(encode(bytes(range(5)), bos=False))
    rounds = rounds_of(parse_method("lookup:8"), session, Sampler())
    assert [next(rounds).origins for _ in range(40)] == [("sampled",)] * 40


def test_special_tokens_are_not_drafted(scripted: Scripted) -> None:
    document = [*encode(b"abcdef", bos=False).tolist(), EOS_ID]
    session = Session(scripted(document * 3))
    session.append([*document, *document[:4]])
    rounds = rounds_of(parse_method("lookup:8"), session, Sampler())
    next(rounds)
    assert next(rounds).drafted == 1  # f, and not the end of the document


@examples(60)
@given(
    words=st.lists(st.sampled_from([b"alpha ", b"beta ", b"alphabet ", b"\n", b"aaaa"]), min_size=30, max_size=40),
    k=st.integers(1, 20),
    surprising=st.sets(st.integers(1, 90)),
)
def test_drafts_never_show_in_the_text(scripted: Scripted, words: list[bytes], k: int, surprising: set[int]) -> None:
    text = (b"".join(words) + b"end of it " * 6)[:100]
    runtime = BltRuntime(scripted(text, surprising=surprising))
    assert runtime.generate(text[:10], len(text) - 40, method=f"lookup:{k}").data == text[10:-30]


@pytest.mark.parametrize("kind", ["onnxruntime", "eager"])
def test_bytes_equal_autoregression(open_backend: Callable[[str, str, int], Backend], kind: str) -> None:
    """Texts in which drafts are kept and refused, alone and in a batch."""
    prompts = [bytes(range(97, 105)) * 3, b"to be or not to be ", b"abc"]
    for decoder_input in ("embedding", "encoder"):
        runtime = BltRuntime(open_backend(kind, decoder_input, 300))
        expected = [runtime.generate(prompt, 80, method="ar", stop_at_eos=False).data for prompt in prompts]
        found = [runtime.generate(prompt, 80, method="lookup:6", stop_at_eos=False) for prompt in prompts]
        together = runtime.generate_many(prompts, 80, method="lookup:6", stop_at_eos=False)
        assert [each.data for each in found] == [each.data for each in together] == expected
        assert 0 < sum(each.stats.accepted for each in found) < sum(each.stats.drafted for each in found)


def test_sampled_text_is_distributed_like_autoregression(
    tiny_config: BltConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_lookup, "SHORTEST_MATCH", 1)
    longest, start = tiny_config.patching.max_patch_length, (BOS_ID, 1, 0, 1)
    assert longest is not None
    monkeypatch.setattr(prompt_lookup, "BYTE_OFFSET", 0)  # the table's tokens are below it
    expected = enumerate_texts(
        lambda prefix: table_logits(prefix, longest), start, 5, lambda row: naive_distribution(row, 0.9, top_p=0.9)
    )
    found = Sampling(Sampler(0.9, 0.9, 1))
    found.run(TableBackend(tiny_config), "lookup:3", start, 5, 2000)
    assert surprise(found.seen, expected) > 1e-3
    assert 0.05 * found.drafted < found.accepted < 0.9 * found.drafted
    monkeypatch.setattr(Sampler, "_verify", lambda self, token, q, rows, index: token)
    wrong = Sampling(Sampler(0.9, 0.9, 1))
    wrong.run(TableBackend(tiny_config), "lookup:3", start, 5, 2000)
    assert surprise(wrong.seen, expected) < 1e-7, "verification that verifies nothing is found out"


@pytest.mark.parametrize("argument", ["", "0", "x", "-1", str(DRAFT_SLACK), "8+partial"])
def test_bad_lengths_are_refused(argument: str) -> None:
    with pytest.raises(MethodError, match=r"expected 1\.\.63"):
        parse_method(f"lookup:{argument}")
