"""Sequences in a batch: they return and hold what they would alone, whatever they do, and nothing is copied for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from fakes.batch_twins import Play, answer_together, scored
from fakes.earlier_bundles import of_one_sequence
from fakes.onnx_backends import OpenBackend, open_onnx

from fastblt.runtime.backends.batching import (
    BatchingBackend,
    DecoderCall,
    DraftCall,
    EncoderCall,
    PartCall,
    PatcherCall,
)
from fastblt.runtime.backends.cpu import backend as backend_module
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.batch import OnnxRuntimeBatch
from fastblt.runtime.backends.cpu.buffers import BINDING_BYTES, BINDINGS_KEPT
from fastblt.runtime.backends.cpu.encoder_batch import POOL_SLOTS
from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.protocol import CapacityError, DecoderRows
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.sequence.requests import DraftRequest, ScoreRequest

#: Fixture of the checkpoint, and options of the export.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "BLT-D": ("tiny_checkpoint", {}),
    "BLT": ("tiny_encoder_checkpoint", {}),
    "BLT with draft decoder": ("tiny_mixed_checkpoint", {}),
    "BLT-D fp16": ("tiny_checkpoint", {"dtype": "fp16"}),
    "lowered BLT, tables inside": ("tiny_encoder_checkpoint", {"lowered": True, "hash_tables": "graph"}),
    "documents": ("documents_checkpoint", {}),
}
#: Why caches are copied, other than that a sequence writes home what it has computed.
_MOVES = ("join", "move", "growth")


@pytest.fixture(scope="module", params=FORMS)
def backend(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> OnnxRuntimeBackend:
    fixture, options = FORMS[request.param]
    return OnnxRuntimeBackend.load(exported(request.getfixturevalue(fixture), **options), 400, 1)


@pytest.fixture
def blt_d(open_backend: OpenBackend) -> OnnxRuntimeBackend:
    return open_onnx(open_backend, "embedding", 600)


@pytest.fixture
def encoding_backend(tiny_encoder_checkpoint: Path, exported: Callable[..., Path]) -> OnnxRuntimeBackend:
    """Return one whose decoder reads byte states."""
    return OnnxRuntimeBackend.load(exported(tiny_encoder_checkpoint), 400, 1)


def test_rows_and_caches_are_those_of_sequences_alone(backend: OnnxRuntimeBackend) -> None:
    """To the bit, whatever they do; sums of lowered graphs may be added up in another order on some processors."""
    assert isinstance(backend, BatchingBackend)
    batch = backend.new_batch(4)
    play = Play(backend, batch, 4, seed=2, tolerance=1e-5 if backend.manifest.operators == "lowered" else 0.0)
    play.run(90)
    assert set(batch.copied) == {"join", "leave", "growth", "slide", "move"}
    batch.close()
    for twins in play.twins:
        twins.compare_states()
        twins.append([7])
        twins.answer(ScoreRequest(), ScoreRequest())


def test_steps_copy_no_caches(blt_d: OnnxRuntimeBackend) -> None:
    """Only when a sequence joins, when it outgrows a class of the global transformer, and when a window slides."""
    batch, twins = blt_d.new_batch(3), scored(blt_d, 3, 100)
    lanes = batch.lanes
    for step in range(120):
        for each in twins:
            each.append([4 + step])
        answer_together(batch, [(each, (ScoreRequest(), ScoreRequest())) for each in twins])
        if step == 0:
            joined = batch.copied["join"]
            assert joined > 0
    copied = batch.copied
    assert copied["join"] == joined
    assert copied["move"] == copied["leave"] == 0
    patches = max(len(each.shared.patch_ends) for each in twins)
    assert 64 < patches <= 256
    assert copied["growth"] <= 3 * (64 + 128) * lanes["global"].slot_bytes
    # A lane of a window of 24 or 20 has 64 slots; what slides is a window, and the rows that go home.
    for part in ("patcher", "encoder", "decoder"):
        window = lanes[part].classes.window
        assert window is not None
        slides = 3 * -(-120 // (64 - window - 8)) * (window + 8) + 3 * 120
        assert 0 < lanes[part].copied["slide"] <= slides * lanes[part].slot_bytes


def test_calls_are_shared(blt_d: OnnxRuntimeBackend) -> None:
    """Rows of one byte, and drafts that end one after the other, run together; the shares add up to a call."""
    batch, twins = blt_d.new_batch(4), scored(blt_d, 4, 30)
    for each in twins:
        each.append([9])
    calls = [next(each.shared.calls(ScoreRequest())) for each in twins]
    sequences = [each.shared.sequence for each in twins]
    answers = batch.run(list(zip(sequences, calls, strict=True)))
    assert isinstance(calls[0], PatcherCall)
    assert [answer.calls for answer in answers] == [0.25] * 4
    spec, lanes = blt_d.graphs["patcher"].spec, batch.lanes["patcher"]
    assert sum(answer.moved_bytes for answer in answers) == spec.weight_bytes + 4 * 64 * lanes.slot_bytes
    drafts = [
        next(each.shared.calls(DraftRequest(most, None, "closed")))
        for each, most in zip(twins, (1, 3, 3, 2), strict=True)
    ]
    shares = [answer.calls for answer in batch.run(list(zip(sequences, drafts, strict=True)))]
    assert sum(shares) == pytest.approx(3), "three steps, each of one call"
    assert shares == pytest.approx([1 / 4, 1 / 4 + 1 / 3 + 1 / 2, 1 / 4 + 1 / 3 + 1 / 2, 1 / 4 + 1 / 3])


def test_failure_is_forgotten_with_the_sequences_that_had_it(
    blt_d: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, twins = blt_d.new_batch(3), scored(blt_d, 3, 30)
    for each in twins:
        each.append([9])
    answer_together(batch, [(each, (ScoreRequest(), ScoreRequest())) for each in twins])
    for lanes in batch.lanes.values():
        if lanes.class_of[1] >= 0:
            for memory in lanes.buffers(lanes.class_of[1]).values():
                memory.array[1] = np.nan
    twins[1].shared.close()
    after = [*twins[::2], *scored(blt_d, 1, 50)]
    for each in after:
        each.append([9, 10])
    answer_together(batch, [(each, (ScoreRequest(), ScoreRequest())) for each in after])

    def fail(*_: Any) -> None:
        raise GraphError("entropy.onnx: failed")

    for each in after:
        each.append([9])
    calls = [(each.shared.sequence, next(each.shared.calls(ScoreRequest()))) for each in after[:2]]
    monkeypatch.setattr(blt_d.graphs["patcher"], "run", fail)
    with pytest.raises(GraphError):
        batch.run(calls)
    monkeypatch.undo()
    assert [each.shared.sequence.batch for each in after] == [None, None, batch]  # type: ignore[attr-defined]
    answer_together(batch, [(after[2], (ScoreRequest(), ScoreRequest()))])


def test_two_threads_use_a_batch_each(blt_d: OnnxRuntimeBackend) -> None:
    """There is one sequence more than a batch has room for: the one that has been idle for the longest leaves."""
    errors: list[BaseException] = []

    def play(seed: int) -> None:
        try:
            Play(blt_d, blt_d.new_batch(2), 3, seed).run(15)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=play, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_batch_refuses_what_it_cannot_run(
    blt_d: OnnxRuntimeBackend, tiny_bundle: Path, tmp_path: Path, tiny_mixed_checkpoint: Path, exported: Any
) -> None:
    batch, other = blt_d.new_batch(2), OnnxRuntimeBackend.load(tiny_bundle, 100, 1)
    call = PatcherCall(0, np.array([1]), None)
    with pytest.raises(ValueError, match="sequence: found one of another backend"):
        batch.run([(other.new_sequence(), call)])
    closed = blt_d.new_sequence()
    closed.close()
    with pytest.raises(ValueError, match="sequence: found a closed one"):
        batch.run([(closed, call)])
    one, two, three = (blt_d.new_sequence() for _ in range(3))
    decoding, drafting = (DecoderCall(0, np.array([1]), np.array([0]), block, None) for block in (0, 1))
    refused: list[tuple[list[Any], str]] = [
        ([], "batch: found 0 calls, expected 1 to 2"),
        ([(one, call), (two, call), (three, call)], "batch: found 3 calls, expected 1 to 2"),
        ([(one, call), (one, call)], "batch: found several calls of one sequence, expected one of each"),
        ([(one, call), (two, decoding)], "batch: found calls of decoder and patcher, expected one kind"),
    ]
    for calls, message in refused:
        with pytest.raises(ValueError, match=message):
            batch.run(calls)
    assert one.batch is two.batch is None
    mixed = OnnxRuntimeBackend.load(exported(tiny_mixed_checkpoint), 100, 1)
    with pytest.raises(ValueError, match="batch: found calls of decoder and draft, expected one kind"):
        mixed.new_batch(2).run([(mixed.new_sequence(), decoding), (mixed.new_sequence(), drafting)])
    batch.close()
    batch.close()
    with pytest.raises(ValueError, match="batch: found a closed one"):
        batch.run([(blt_d.new_sequence(), call)])
    with pytest.raises(ValueError, match="batch: found a size of 0"):
        blt_d.new_batch(0)
    old = OnnxRuntimeBackend.load(of_one_sequence(tiny_bundle, tmp_path / "old"), 100, 1)
    with pytest.raises(BundleError, match=r"old: found graphs for one sequence, .* 'fastblt export'"):
        old.new_batch(2)
    assert "expected graphs for several" in RoundScheduler(old, 2).alone_because, "its texts grow in turn"


def test_drafts_count_calls_of_encoder_and_decoder_once(encoding_backend: OnnxRuntimeBackend) -> None:
    batch, twins = encoding_backend.new_batch(2), scored(encoding_backend, 2, 30)
    for each in twins:
        each.append([9])
        each.shared.stats.graph_calls.clear()
    answer_together(batch, [(each, (DraftRequest(3, None, "closed"),) * 2) for each in twins])
    for each in twins:
        assert each.shared.stats.graph_calls == {"encoder": pytest.approx(1.5), "decoder": pytest.approx(1.5)}


def test_states_of_a_failed_draft_are_forgotten(encoding_backend: OnnxRuntimeBackend) -> None:
    """They would be written behind the rows of a sequence that is idle."""
    batch, twins = encoding_backend.new_batch(3), scored(encoding_backend, 3, 30)
    for each in twins:
        each.append([9])
    answer_together(batch, [(each, (ScoreRequest(), ScoreRequest())) for each in twins])
    for each in twins:
        each.append([9])
    parts = batch._parts
    assert parts is not None
    parts._draft._states.fill(np.nan)
    answer_together(batch, [(each, (DraftRequest(3, None, "closed"),) * 2) for each in twins[::2]])
    twins[1].rewind(twins[1].shared.length - 2)
    twins[1].append([9])
    answer_together(batch, [(each, (ScoreRequest(), ScoreRequest())) for each in twins])


def test_batch_is_closed_while_another_thread_makes_one(
    blt_d: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, size_of = [blt_d.new_batch(2) for _ in range(3)], backend_module.batch_bytes
    closing = Thread(target=others[0].close)

    def slow(backend: OnnxRuntimeBackend, size: int) -> int:
        if closing.ident is None:
            closing.start()
            closing.join(0.2)
        return size_of(backend, size)

    monkeypatch.setattr(backend_module, "batch_bytes", slow)
    made = blt_d.new_batch(2)
    closing.join()
    assert set(blt_d.batches) == {*others[1:], made}


def test_batch_that_does_not_fit_is_refused(blt_d: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = blt_d.manifest.weight_bytes + blt_d.sequences * blt_d.sequence_bytes
    first = blt_d.new_batch(2)
    room = backend_module.batch_bytes(blt_d, 2) + backend_module.batch_bytes(blt_d, 3)
    monkeypatch.setattr(backend_module, "host_memory", lambda: taken + room)
    with pytest.raises(CapacityError, match=r"batch: found 4 sequences, which take .* expected at most 3 with"):
        blt_d.new_batch(4)
    blt_d.new_batch(3).close()
    first.close()
    blt_d.new_batch(5).close()


def test_memory_is_what_was_expected_at_most(backend: OnnxRuntimeBackend) -> None:
    batch = OnnxRuntimeBatch(backend, 3)
    largest = [lanes.buffers(len(lanes.classes.slots) - 1) for lanes in batch.lanes.values()]
    lanes = sum(memory.bytes for caches in largest for memory in caches.values())
    # A sequence has a lane in the largest class at most, and one that has outgrown another has two for a moment.
    held = lanes * 4 / 3 + batch.packed_bytes
    bindings = len(backend.graphs) * BINDINGS_KEPT * BINDING_BYTES
    assert backend_module.batch_bytes(backend, 3) - bindings == pytest.approx(held, rel=0.01)


def test_rows_are_equal_when_texts_are_much_longer_than_the_windows(blt_d: OnnxRuntimeBackend) -> None:
    batch, twins = blt_d.new_batch(2), scored(blt_d, 2, 200)
    random = np.random.default_rng(3)
    for _ in range(40):
        for each in twins:
            each.append(random.integers(4, 260, 9).tolist())
        answer_together(batch, [(each, (ScoreRequest(), ScoreRequest())) for each in twins])
        for each in twins:
            each.rewind(each.shared.length - 2)
    batch.close()
    for each in twins:
        assert each.shared.length > 450
        each.compare_states()


def test_call_that_is_too_long_takes_home_one_stack_only(encoding_backend: OnnxRuntimeBackend) -> None:
    """A patch stays open for more bytes than the encoder's calls of several take."""
    batch, history = encoding_backend.new_batch(2), encoding_backend.config.hash.context - 1
    shared, alone = (
        [encoding_backend.new_sequence() for _ in range(2)],
        [encoding_backend.new_sequence() for _ in range(2)],
    )
    random = np.random.default_rng(4)

    def ask(call: PartCall) -> None:
        found = batch.run([(each, call) for each in shared])
        for answer, other in zip(found, alone, strict=True):
            if isinstance(call, EncoderCall):
                other.run_encoder(*call)
            else:
                assert isinstance(call, PatcherCall)
                np.testing.assert_array_equal(answer.result, other.run_patcher(*call))

    copied = []
    for position in range(0, 240, 6):
        ids, start = random.integers(4, 260, history + 6), np.array([0])
        ask(PatcherCall(position, ids[history:], None))
        ask(EncoderCall(position, ids, start, start + position + 6, None))
        if position > POOL_SLOTS:
            assert [each.batch for each in shared] == [batch, batch]
            copied.append({(part, why): lanes.copied[why] for part, lanes in batch.lanes.items() for why in _MOVES})
    assert len(copied) > 15
    assert all(each == copied[0] for each in copied)
    for each, other in zip(shared, alone, strict=True):
        for name in ("patcher.key_0", "encoder.key_0"):
            np.testing.assert_array_equal(each.tensor(name, 230, 10), other.tensor(name, 230, 10))
        np.testing.assert_array_equal(each.tensor("patch_embeddings", 0, 1), other.tensor("patch_embeddings", 0, 1))


def test_drafts_move_no_caches_after_their_first_byte(encoding_backend: OnnxRuntimeBackend) -> None:
    batch, (twins,) = encoding_backend.new_batch(1), scored(encoding_backend, 1, 30)
    lanes = {part: batch.lanes[part] for part in ("encoder", "decoder")}
    for part in lanes.values():
        while part.class_of[0] < 0 or part.classes.slots[part.class_of[0]] - part.end[0] + part.base[0] > 3:
            twins.append([9])
            answer_together(batch, [(twins, (ScoreRequest(), ScoreRequest()))])
        copied = []

        def pick(row: DecoderRows, copied: list[Any] = copied) -> tuple[int, bool]:
            copied.append({part: dict(each.copied) for part, each in lanes.items()})
            return 9, True

        twins.append([9])
        answer_together(
            batch, [(twins, (DraftRequest(6, pick, "closed"), DraftRequest(6, lambda row: (9, True), "closed")))]
        )
        assert len(copied) == 6
        assert all(each == copied[0] for each in copied)


def test_draft_of_no_bytes_is_empty(blt_d: OnnxRuntimeBackend) -> None:
    batch, twins = blt_d.new_batch(2), scored(blt_d, 2, 30)
    calls = []
    for most, each in zip((0, 2), twins, strict=True):
        each.append([9])
        call = next(each.shared.calls(DraftRequest(2, None, "closed")))
        assert isinstance(call, DraftCall)
        calls.append((each.shared.sequence, call._replace(most=most)))
    none, two = batch.run(calls)
    assert (len(none.result.tokens), none.calls, len(two.result.tokens), two.calls) == (0, 0, 2, 2)
    assert len(batch.run(calls[:1])[0].result.tokens) == 0
