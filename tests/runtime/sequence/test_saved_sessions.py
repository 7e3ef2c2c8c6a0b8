"""What a session has read, copied to the host and back: it continues, here or elsewhere, as if it had never gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.tokens import BYTE_OFFSET, encode
from fastblt.runtime.backends.protocol import Backend, Progress, encodes_whole_patches
from fastblt.runtime.methods import parse_method, rounds_of
from fastblt.runtime.sequence.requests import score_known
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.saved_session import SavedSession
from fastblt.runtime.sequence.session import Session
from fastblt.runtime.sequence.stats import RunStats

OpenBackend = Callable[[str, str, int], Backend]
KINDS = [(kind, rows) for kind in ("eager", "onnxruntime") for rows in ("embedding", "encoder")]
OTHER = np.random.default_rng(3).bytes(200)


@pytest.fixture(scope="module", params=KINDS, ids=["-".join(kind) for kind in KINDS])
def host_backend(request: pytest.FixtureRequest, open_backend: OpenBackend) -> Backend:
    """Each backend on the host with each kind of decoder input; windows are shorter than its texts."""
    return open_backend(*request.param, 400)


def read(backend: Backend, text: bytes) -> Session:
    session = Session(backend)
    session.append(encode(text, bos=False))
    session.score()
    return session


def following(session: Session, method: str, count: int = 12) -> tuple[list[int], list[int], bytes]:
    """Return the tokens and patches of a text that continues with an "A", and the row of another byte after that."""
    session.append([BYTE_OFFSET + 65])
    end = session.length + count
    for _ in rounds_of(parse_method(method), session, Sampler()):
        if session.length >= end:
            break
    session.rewind(end)
    session.append([BYTE_OFFSET + 66])
    return session.tokens.tolist(), list(session.patch_ends), session.score().logits[-1].tobytes()


def test_session_whose_patches_are_known_and_rows_are_not_is_saved(host_backend: Backend) -> None:
    """Asking for rows that are known reads patches even where no row is."""
    unread, session = Session(host_backend), Session(host_backend)
    for each in (unread, session):
        each.append(encode(OTHER, bos=False))
    expected = following(unread, "ar")
    assert session.run(score_known()) is None
    saved = session.saved()
    assert (saved.patch_ends, saved.progress) == ((), Progress())
    other = Session(host_backend)
    other.restore(saved)
    assert following(other, "ar") == expected


@examples(5)
@given(
    length=st.integers(0, 250),
    back=st.integers(0, 40),
    method=st.sampled_from(["ar", "s:5", "dv:4@0.4"]),
)
def test_restored_session_continues_to_the_bit(host_backend: Backend, length: int, back: int, method: str) -> None:
    if not host_backend.config.block_size and method.startswith("dv"):
        method = "s:3"
    session = read(host_backend, np.random.default_rng(length).bytes(length))
    session.rewind(max(1, session.length - back))  # rows of a text that was rewound are not part of it
    saved = session.saved()
    expected = following(session, method)
    for other in (session, read(host_backend, OTHER), Session(host_backend)):
        other.restore(saved)
        assert (other.length, other.scored) == (len(saved.tokens), saved.progress.tokens)
        assert following(other, method) == expected
        other.close()


def test_copy_holds_the_rows_that_the_rest_can_read_and_no_others(host_backend: Backend) -> None:
    saved, config = read(host_backend, OTHER).saved(), host_backend.config
    open_rows = 0 if encodes_whole_patches(config) else saved.progress.tokens - saved.progress.open_patch
    expected = {"latent_kv": 1, "pool" if host_backend.name == "onnxruntime" else "states": open_rows}
    for part, stack in config.stacks.items():
        ends = {"global": saved.progress.patches}
        if encodes_whole_patches(config):
            ends["encoder"] = saved.progress.open_patch
        end = ends.get(part, saved.progress.tokens)
        rows = end if stack.window is None else min(end, stack.window - 1)
        expected |= {f"{part}.{kind}_{layer}": rows for kind in ("key", "value") for layer in range(stack.layers)}
    assert {name: len(rows) for name, rows in saved.state.items()} == expected
    assert saved.size == sum(rows.nbytes for rows in saved.state.values())


def test_session_that_is_rewound_behind_what_was_restored_reads_it_again(host_backend: Backend) -> None:
    session = Session(host_backend)
    session.restore(read(host_backend, OTHER).saved())
    for keep in (150, 3):
        session.rewind(keep)
        expected = read(host_backend, OTHER[: keep - 1])
        found, rows = (following(each, "ar") for each in (session, expected))
        assert found[:2] == rows[:2]
        np.testing.assert_allclose(*(np.frombuffer(each[2], np.float32) for each in (found, rows)), atol=5e-5)
        session.restore(read(host_backend, OTHER).saved())


def spoiled(saved: SavedSession) -> dict[str, dict[str, Any]]:
    """Return states that are wrong, each in one way, by what the error reports."""
    good = dict(saved.state)
    return {
        "latent_kv: found none, expected a tensor": {name: good[name] for name in good if name != "latent_kv"},
        "mood: found a tensor, expected none": {**good, "mood": good["latent_kv"]},
        "decoder.key_0: found float64": {**good, "decoder.key_0": good["decoder.key_0"].astype(np.float64)},
        "global.value_1: found float32": {**good, "global.value_1": good["global.value_1"][1:]},
        "patcher.key_0: found float32": {**good, "patcher.key_0": good["patcher.key_0"][:, 1:]},
    }


def test_wrong_copy_is_refused_before_anything_is_written(host_backend: Backend) -> None:
    saved, other = read(host_backend, OTHER).saved(), read(host_backend, OTHER[:90])
    before = other.saved()
    for message, state in spoiled(saved).items():
        with pytest.raises(ValueError, match=f"^{message}"):
            other.sequence.restore(state, saved.progress)
        with pytest.raises(ValueError, match=f"^{message}"):
            Session(host_backend).restore(saved._replace(state=state))
    after = other.sequence.state(before.progress)
    for name, rows in before.state.items():
        np.testing.assert_array_equal(after[name], rows, err_msg=name)


def test_session_of_which_a_restoration_failed_holds_nothing_but_bos(host_backend: Backend) -> None:
    saved, session = read(host_backend, OTHER).saved(), read(host_backend, OTHER[:50])
    for state in spoiled(saved).values():
        with pytest.raises(ValueError, match="found"):
            session.restore(saved._replace(state=state))
        assert (session.length, session.scored, session.patch_ends) == (1, 0, [])
    session.append(encode(OTHER[:50], bos=False))
    expected = read(host_backend, OTHER[:50])
    session.score()
    assert following(session, "s:3") == following(expected, "s:3")


def test_session_of_which_a_restoration_was_interrupted_holds_nothing_but_bos(
    host_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, session = read(host_backend, OTHER).saved(), Session(host_backend)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session.sequence, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.restore(saved)
    assert (session.length, session.scored, session.patch_ends) == (1, 0, [])


def test_closed_session_takes_no_other_text(host_backend: Backend) -> None:
    saved, session = read(host_backend, OTHER).saved(), Session(host_backend)
    session.close()
    for call in (session.clear, lambda: session.restore(saved), lambda: session.begin(saved.tokens, RunStats())):
        with pytest.raises(ValueError, match=r"^session: found a closed one, expected one that is open$"):
            call()
