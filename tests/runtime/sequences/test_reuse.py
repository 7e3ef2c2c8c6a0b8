"""What an earlier text leaves in a place, or a file, changes nothing about a later one.

Its bytes are the same, and probabilities as far as they do not depend on how many rows a call has: fp32 products of
one row and of several differ in the last bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from shared_files import SharedFiles

from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, EOS_ID
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream
from fastblt.runtime.sequences.sequence import Sequence

#: Longer than what one call reads.
MAX_BYTES = 400
METHODS = ("ar", "s:4", "dv:4@0.4", "d:4@0.6")
#: Few, so that texts share beginnings; EOS begins another document where documents are masked.
TOKENS = [BYTE_OFFSET + byte for byte in b"ab c"] + [EOS_ID]


@pytest.fixture(scope="module", params=["embedding", "encoder", "documents"])
def bundle(request: pytest.FixtureRequest, exported: Callable[..., Path], shared_files: SharedFiles) -> Path:
    """Patches that are encoded whole; byte by byte; and with masked documents."""
    if request.param != "documents":
        name = {"embedding": "tiny_bundle", "encoder": "tiny_encoder_bundle"}[request.param]
        found: Path = request.getfixturevalue(name)
        return found
    config = request.getfixturevalue("tiny_encoder_config")
    model = request.getfixturevalue("make_model")(dataclasses.replace(config, document_masks=True))
    return exported(shared_files.make("tiny-encoder-documents", lambda folder: save_checkpoint(folder, model)))


@pytest.fixture(scope="module")
def backend(bundle: Path) -> OnnxRuntimeBackend:
    """Has places for two texts."""
    return OnnxRuntimeBackend.load(bundle, MAX_BYTES, 1, sequences=2)


@pytest.fixture(scope="module")
def fresh(bundle: Path) -> BltRuntime:
    """Reads every text from the beginning."""
    return BltRuntime(OnnxRuntimeBackend.load(bundle, MAX_BYTES, 1, sequences=1), reuse_prompts=False)


def check_same(found: ByteStream, expected: ByteStream, most: int | None = None) -> None:
    """Compare what two streams report, their chunks (up to a number) and their tokens."""
    one, other = (list(islice(stream, most)) for stream in (found, expected))
    assert [chunk[:4] for chunk in one] == [chunk[:4] for chunk in other]
    assert (found.tokens, found.finish) == (expected.tokens, expected.finish)
    logprobs = [[logprob for chunk in chunks for logprob in chunk.logprobs] for chunks in (one, other)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)


@st.composite
def texts(draw: st.DrawFn, earlier: Ids) -> Ids:
    """Tokens whose beginning is that of an earlier text, of any length; some are longer than one call reads."""
    kept = draw(st.integers(1, len(earlier)))
    more = draw(st.lists(st.sampled_from(TOKENS), max_size=30))
    if draw(st.integers(0, 5)) == 0:
        more = (more + TOKENS) * (270 // (len(more) + len(TOKENS)))
    return np.concatenate([earlier[:kept], np.array(more, dtype=np.int64)])[: MAX_BYTES - 30]


def options(draw: st.DrawFn, backend: OnnxRuntimeBackend) -> dict[str, Any]:
    methods = METHODS if backend.config.block_size else METHODS[:2]
    temperature = draw(st.sampled_from([0.0, 0.8]))
    method = draw(st.sampled_from(methods))
    return {"method": method, "temperature": temperature, "seed": 3, "stop_at_eos": False, "logprobs": True}


@given(data=st.data())
@examples(6)
def test_reused_place_changes_nothing(backend: OnnxRuntimeBackend, fresh: BltRuntime, data: st.DataObject) -> None:
    runtime = BltRuntime(backend)
    known = [np.array([BOS_ID])]
    for _ in range(data.draw(st.integers(2, 5))):
        ids = data.draw(texts(data.draw(st.sampled_from(known))))
        setting, count = options(data.draw, backend), data.draw(st.integers(0, 12))
        stream = runtime.stream(ids, count, **setting)
        most = data.draw(st.sampled_from([None, None, None, 1]))
        check_same(stream, fresh.stream(ids, count, **setting), most)
        assert 0 <= stream.stats.reused_bytes < max(1, len(ids))
        known.append(np.concatenate([ids, np.array(stream.tokens, dtype=np.int64)])[: MAX_BYTES - 60])
        del stream
        before, after = ids.copy(), bytes(range(97, 97 + data.draw(st.integers(0, 3))))
        assert runtime.score(before, after).logprobs == pytest.approx(fresh.score(before, after).logprobs, abs=1e-4)


@given(data=st.data())
@examples(6)
def test_sequences_that_share_places_change_nothing(
    backend: OnnxRuntimeBackend, fresh: BltRuntime, tmp_path: Path, data: st.DataObject
) -> None:
    """Three sequences in two places: they are saved to memory, brought back, closed, and saved to files."""
    runtime = BltRuntime(backend)
    sequences = [runtime.sequence() for _ in range(3)]
    for _ in range(data.draw(st.integers(3, 9))):
        index = data.draw(st.integers(0, 2))
        work = data.draw(st.sampled_from(["grow", "grow", "grow", "save", "close"]))
        if work == "save":
            sequences[index].save(tmp_path / "text")
            sequences[index] = runtime.load_sequence(tmp_path / "text")
        elif work == "close":
            sequences[index].close()
            sequences[index] = runtime.sequence()
        grow(sequences[index], fresh, data.draw, backend)


def grow(sequence: Sequence, fresh: BltRuntime, draw: st.DrawFn, backend: OnnxRuntimeBackend) -> None:
    before, setting = sequence.tokens, options(draw, backend)
    more = draw(st.lists(st.sampled_from(TOKENS), max_size=30))
    if len(before) + len(more) > MAX_BYTES - 30:
        return
    ids = np.concatenate([before, np.array(more, dtype=np.int64)])
    stream = sequence.stream(np.concatenate([[BOS_ID], more]).astype(np.int64), 8, **setting)
    check_same(stream, fresh.stream(ids, 8, **setting))
    assert sequence.tokens.tolist() == [*ids.tolist(), *stream.tokens]


def test_beginning_that_was_read_is_not_read_again(backend: OnnxRuntimeBackend) -> None:
    runtime = BltRuntime(backend)
    first = runtime.generate(b"a prompt, and more", 8, method="ar", stop_at_eos=False)
    text = b"a prompt, and more" + first.data
    again = runtime.generate(text + b"!", 4, method="ar", stop_at_eos=False)
    other = runtime.generate(b"a prompt, but", 4, method="ar", stop_at_eos=False)
    # The last byte that was generated has not been read; the third text would throw away more than it can use.
    assert [run.stats.reused_bytes for run in (first, again, other)] == [0, len(text) - 1, 0]
    assert again.stats.nfe["patcher"] < first.stats.nfe["patcher"]
