"""What a text has left in a slot, copied to the host and back: it continues as if it had never gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.models.tokens import encode
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.sliding import REWIND, RewindError
from fastblt.runtime.backends.protocol import Progress
from fastblt.runtime.sequence.requests import draft
from fastblt.runtime.sequence.saved_session import SavedSession
from fastblt.runtime.sequence.session import Session

TEXT = np.random.default_rng(7).bytes(990)


@pytest.fixture(params=["BLT-D engines", "BLT engines", "BLT sessions", "mixed engines"])
def backend(
    request: pytest.FixtureRequest,
    compiled: Callable[..., Path],
    tiny_checkpoint: Path,
    tiny_encoder_checkpoint: Path,
    tiny_mixed_checkpoint: Path,
    gpu: FakeCuda,
) -> DeviceBackend:
    """Two slots for texts that are longer than the windows."""
    model, kind = request.param.split()
    checkpoint = {"BLT-D": tiny_checkpoint, "BLT": tiny_encoder_checkpoint, "mixed": tiny_mixed_checkpoint}[model]
    bundle = compiled(checkpoint) if model == "BLT-D" else compiled(checkpoint, hash_tables="graph")
    if kind == "engines":
        return loading.load_tensorrt(bundle, "tensorrt-rtx", 1000, sequences=2)
    return loading.load_onnxruntime(bundle, "cuda", 1000, ort=FakeOnnxRuntime(gpu), sequences=2)


def read(session: Session, text: bytes) -> None:
    session.append(encode(text, bos=False))
    session.score()


def following(session: Session) -> list[bytes]:
    """Return rows and drafts of the same bytes after whatever has been read."""
    found = []
    for token in encode(b"what comes now", bos=False):
        session.append([token])
        found += [array.tobytes() for array in session.run(draft(3))]
        found.append(session.score().logits.tobytes())
    return found


@pytest.mark.parametrize("length", [0, 40, 800])
def test_text_continues_in_another_slot_to_the_bit(backend: DeviceBackend, length: int) -> None:
    with Session(backend) as session, Session(backend) as other:
        read(session, TEXT[:length]) if length else session.score()
        saved = session.saved()
        read(other, TEXT[200:700])  # what is there is overwritten
        other.restore(saved)
        expected = following(session)
        assert following(other) == expected
    if length == 800:
        assert backend.slots[0].graphs["decoder"].caches.base > 0
    # And again where it had been evicted: both slots have had other texts since.
    with Session(backend) as session:
        read(session, TEXT[:90])
        session.restore(saved)
        assert following(session) == expected


def test_restored_text_is_rewound_a_little_without_reading_it_again(backend: DeviceBackend) -> None:
    with Session(backend) as session, Session(backend) as other:
        read(session, TEXT[:600])
        other.restore(session.saved())
        for each in (session, other):
            each.rewind(601 - REWIND // 2)
        assert other.sequence.can_resume_from(other.scored, other._patches.next_latent_start)
        assert following(other) == following(session)
        # Farther back, what was restored does not suffice: the text is read again from its beginning.
        other.rewind(300)
        assert other.sequence._slot.resumable_from == 0
        session.rewind(300)
        found, expected = (np.frombuffer(following(each)[-1], np.float32) for each in (other, session))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def spoiled(saved: SavedSession) -> list[dict[str, Any]]:
    """Return states that are wrong, each in one way."""
    good = dict(saved.state)
    short = {name: rows[1:] if name.startswith("decoder.") else rows for name, rows in good.items()}
    return [
        {name: rows for name, rows in good.items() if name != "latent_kv"},
        {**good, "mood": good["latent_kv"]},
        {**good, "latent_kv": good["latent_kv"][1:]},
        {**good, "decoder.key_0": good["decoder.key_0"].astype(np.float64)},
        {**good, "decoder.value_0": good["decoder.value_0"][:, 1:]},
        {**good, "decoder.key_0": good["decoder.key_0"][1:]},
        {name: rows[:1] if name.startswith("decoder.") else rows for name, rows in short.items()},
    ]


def test_wrong_state_is_refused_before_anything_is_written(backend: DeviceBackend) -> None:
    with Session(backend) as session:
        read(session, TEXT[:150])
        saved = session.saved()
        expected = following(session)
    sequence = backend.new_sequence()
    for state in spoiled(saved):
        before = sequence.tensor("decoder.key_0", 0, 50)
        with pytest.raises(ValueError, match=r"^state: [^\n]*found [^\n]*expected [^\n]*$"):
            sequence.restore(state, saved.progress)
        np.testing.assert_array_equal(sequence.tensor("decoder.key_0", 0, 50), before)
    sequence.close()
    with Session(backend) as session:
        session.restore(saved)
        assert following(session) == expected


def test_rows_that_have_been_dropped_cannot_be_copied(backend: DeviceBackend) -> None:
    with Session(backend) as session:
        read(session, TEXT)
        with pytest.raises(RewindError, match=r"^state: [a-z]+\.key_0: found position \d+ needed, expected at least"):
            session.sequence.state(Progress(100, 100, 1))
