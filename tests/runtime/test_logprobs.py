"""Log-probabilities of new bytes: the model's own, given everything before them, whatever is sampled or banned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.tokens import BYTE_OFFSET, EOS_ID, encode
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk
from fastblt.runtime.methods import MethodError, Round
from fastblt.runtime.sequence.requests import Steps, score
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

PROMPT = b"some words, "
LOSSLESS = ("ar", "s:3", "s:8", "dv:4@one", "dv:4@0.4", "dv:4@one+partial", "auto")
OpenBackend = Callable[[str, str, int], Backend]


@pytest.fixture(scope="module")
def runtime(open_backend: OpenBackend) -> BltRuntime:
    return BltRuntime(open_backend("onnxruntime", "embedding", 200))


@torch.inference_mode()
def whole_sequence(model: Blt, prompt: bytes, tokens: tuple[int, ...]) -> NDArray[np.float64]:
    """The model's log-probability of each of some tokens, by one pass over the whole sequence."""
    ids = [*encode(prompt).tolist(), *tokens]
    logits = model(torch.tensor([ids[:-1]]))[0][0].double().log_softmax(-1)
    first = len(ids) - len(tokens) - 1
    found: NDArray[np.float64] = logits[torch.arange(first, len(ids) - 1), torch.tensor(tokens)].numpy()
    return found


@pytest.mark.parametrize("method", LOSSLESS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "top_p": 0.9, "top_k": 40, "seed": 1},
        {"banned_bytes": bytes(range(128)), "logit_bias": {200: 3.0}},
    ],
    ids=["greedy", "sampled", "banned"],
)
def test_logprobs_are_the_models_own_given_everything_before(
    runtime: BltRuntime, tiny_model: Blt, method: str, options: dict[str, Any]
) -> None:
    chunks: list[Chunk] = []
    found = runtime.generate(PROMPT, 40, method=method, logprobs=True, on_chunk=chunks.append, **options)
    assert all(len(chunk.logprobs) == len(chunk.data) for chunk in chunks)
    assert found.logprobs == tuple(p for chunk in chunks for p in chunk.logprobs)
    assert len(found.logprobs) == len(found.data) > 10
    are_bytes = np.array(found.tokens) >= BYTE_OFFSET
    expected = whole_sequence(tiny_model, PROMPT, found.tokens)[are_bytes]
    np.testing.assert_allclose(found.logprobs, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", ["ar", "s:4", "dv:4@one", "d:4@0.7", "auto"])
def test_bytes_are_the_same_with_logprobs_and_without(runtime: BltRuntime, method: str) -> None:
    with_them = runtime.generate(PROMPT, 40, method=method, logprobs=True)
    without = runtime.generate(PROMPT, 40, method=method)
    assert with_them.data == without.data
    assert without.logprobs == ()


def test_logprobs_of_blocks_are_those_of_the_rows_that_decide(
    runtime: BltRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step, so that the block's rows are those of one call; its first byte comes from the row before the block."""
    decided: list[tuple[int, float]] = []
    draw = Sampler.draw

    def noted(self: Sampler, rows: Any, index: int, *, masked: bool = True) -> Any:
        token, q = draw(self, rows, index, masked=masked)
        p = torch.tensor(rows.logits[index]).double().log_softmax(-1)
        decided.append((token, float(p[token])))
        return token, q

    monkeypatch.setattr(Sampler, "draw", noted)
    for rule in ("one", "0.02", "eb9"):
        decided.clear()
        found = runtime.generate(PROMPT, 32, method=f"d:4@{rule}", logprobs=True, stop_at_eos=False)
        expected = sorted(p for token, p in decided if token >= BYTE_OFFSET)
        assert sorted(found.logprobs) == pytest.approx(expected, abs=1e-9)
        if rule == "one":
            tokens = [token for token, _ in decided]
            assert list(found.tokens) == tokens
            assert list(found.logprobs) == pytest.approx([p for t, p in decided if t >= BYTE_OFFSET], abs=1e-9)


@pytest.mark.parametrize("method", ["ar", "s:3"])
def test_logprobs_stay_aligned_where_tokens_have_no_byte_and_bytes_are_held_back(
    scripted: Callable[..., Backend], method: str
) -> None:
    """The scripted model is certain of its text, except of bytes that a prompt has led astray: there are none."""
    script = [*encode(b"Once upon a", bos=False), EOS_ID, *encode(b" time there was a fox, and more.", bos=False)]
    runtime = BltRuntime(scripted(script, misdrafted={9, 17}))
    found = runtime.generate(b"Once", 30, method=method, logprobs=True, stop_at_eos=False, stop="fox")
    assert found.data == b" upon a time there was a "
    assert len(found.logprobs) == len(found.data)
    np.testing.assert_allclose(found.logprobs, 0.0, atol=1e-6)
    found = runtime.generate(b"Once", 30, method=method, logprobs=True)
    assert (found.data, found.finish, len(found.logprobs)) == (b" upon a", "eos", 7)


class Silent:
    """A method that reports no log-probabilities."""

    name = "silent"
    lossless = True

    def check(self, config: BltConfig) -> None:
        pass

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        while True:
            yield self._round(session, sampler)

    def _round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        token = sampler.choose((yield from score()), -1)
        session.append([token])
        return Round((token,), ("sampled",))


def test_method_without_logprobs_is_an_error_only_where_they_are_wanted(runtime: BltRuntime) -> None:
    method: Any = Silent()
    assert runtime.generate(PROMPT, 5, method=method).data == runtime.generate(PROMPT, 5, method="ar").data
    with pytest.raises(MethodError, match="method 'silent': found 0 log-probabilities of 1 tokens, expected one per"):
        runtime.generate(PROMPT, 5, method=method, logprobs=True)
