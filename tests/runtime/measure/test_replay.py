"""Replays: rates come out as wanted, and every call reaches the real backend."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from fakes.only_sequence import OnlySequence

from fastblt.models.config import BltConfig
from fastblt.models.tokens import MASK_ID, decode
from fastblt.runtime.backends.protocol import PARTS, Backend, DecoderRows, Drafted, Floats, Ids, Pick
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Generation
from fastblt.runtime.measure.replay.backend import ReplayBackend
from fastblt.runtime.measure.replay.draws import ReplayCounts, replay_text
from fastblt.runtime.measure.replay.rates import ReplayRates
from fastblt.runtime.methods.replay_profile import ReplayProfile
from fastblt.runtime.sequence.session import Session

PROMPT = b"prompt"
LENGTH = 1200


class CountingBackend(OnlySequence):
    """Answers nonsense at once, and counts its calls as a session does: a draft is a decoder call a byte."""

    name, device = "counting", "cpu"

    def __init__(self, config: BltConfig, max_bytes: int) -> None:
        self.config, self.max_bytes = config, max_bytes
        self.calls: Counter[str] = Counter()
        self.block_calls: list[tuple[int, int]] = []
        """Blocks that were denoised: position of the first byte, bytes not decided."""

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        self.calls["patcher"] += 1
        return np.full(len(ids), 99.0, dtype=np.float32)

    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        self.calls["encoder"] += 1

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        self.calls["global"] += 1

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        self.calls["decoder"] += 1
        if block:
            self.block_calls.append((position + len(ids) - block, int((ids[-block:] == MASK_ID).sum())))
        return self._rows(len(ids))

    def _rows(self, count: int) -> DecoderRows:
        floats = np.full(count, 0.5, dtype=np.float32)
        return DecoderRows(np.full(count, 7), floats, floats, np.zeros((count, 260), dtype=np.float32))

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        tokens = []
        more = True
        while more and len(tokens) < count:
            token, more = pick(self._rows(1)) if pick else (7, True)
            tokens.append(token)
        self.calls["decoder"] += len(tokens)
        return Drafted(np.array(tokens), np.full(len(tokens), 0.5, dtype=np.float32), 0.25)

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        return True

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        return 100


@pytest.fixture(scope="module")
def config(tiny_config: BltConfig) -> BltConfig:
    """Patches of up to 8 bytes, blocks of up to 16."""
    patching = dataclasses.replace(tiny_config.patching, max_patch_length=8)
    return dataclasses.replace(tiny_config, patching=patching, block_size=16)


def replayed(config: BltConfig, method: str, text: str, length: int = LENGTH) -> tuple[Generation, ReplayBackend]:
    """A generation over a `CountingBackend`."""
    profile = ReplayRates.parse(text, [method]).profile(method, config)
    backend = ReplayBackend(CountingBackend(config, length + 50), profile)
    return BltRuntime(backend).generate(PROMPT, length, method=method), backend


def expected_text(length: int) -> bytes:
    first = 1 + len(PROMPT)
    return decode(replay_text(first + length)[first:])


@pytest.mark.parametrize("acceptance", [0.35, 0.8034, 0.9677])
@pytest.mark.parametrize(
    "method",
    ["s:2", "s:4", "s:16", "s:8+partial", "dv:4@one", "dv:8@one", "dv:8@one+partial", "dv:8@one+block",
     "dv:16@0.3+partial+block", "dv:8@eb1.5", "dv:8@0"],
)  # fmt: skip
def test_acceptance_is_the_wanted_one(config: BltConfig, method: str, acceptance: float) -> None:
    found, _ = replayed(config, method, f"acceptance={acceptance},steps=2.5")
    assert found.stats.acceptance == pytest.approx(acceptance, abs=0.012)
    assert found.data == expected_text(LENGTH)


@pytest.mark.parametrize(("acceptance", "bytes_per_round"), [(0, 1), (1, 9)])
def test_acceptance_reaches_both_ends(config: BltConfig, acceptance: int, bytes_per_round: int) -> None:
    for method in ("s:8", "dv:8@one"):
        found, _ = replayed(config, method, f"acceptance={acceptance}", 90)
        assert found.stats.acceptance == acceptance
        assert found.stats.rounds == 1 + -(-(90 - 1) // bytes_per_round)


@pytest.mark.parametrize("steps", [1.0, 2.92, 4.5])
@pytest.mark.parametrize("method", ["d:8@0.7", "d:8@0", "d:6@eb1.0", "d:8@0.7+block", "d:16@eb0+closed", "dv:8@0.3"])
def test_steps_of_a_block_are_the_wanted_ones(config: BltConfig, method: str, steps: float) -> None:
    found, backend = replayed(config, method, f"steps={steps},acceptance=0.8")
    counts = backend.take_counts()
    assert counts.steps / counts.blocks == pytest.approx(steps, abs=0.02)
    assert isinstance(backend.real, CountingBackend)
    assert counts.blocks == len({position for position, _ in backend.real.block_calls})
    assert counts.steps == len(backend.real.block_calls)
    assert found.data == expected_text(LENGTH)


def test_bytes_of_a_block_are_decided_in_equal_parts(config: BltConfig) -> None:
    _, backend = replayed(config, "d:8@0.7", "steps=3", 8)
    assert isinstance(backend.real, CountingBackend)
    # The first byte and two of the seven others, then two, then three.
    assert [masked for _, masked in backend.real.block_calls] == [8, 5, 3]
    _, backend = replayed(config, "d:8@0.7+block", "steps=3", 8)
    assert isinstance(backend.real, CountingBackend)
    assert [masked for _, masked in backend.real.block_calls] == [8, 6, 3]


@pytest.mark.parametrize("patch", [1.0, 2.05, 4.0, 7.5, 8.0])
def test_patches_have_the_wanted_length(config: BltConfig, patch: float) -> None:
    found, backend = replayed(config, "ar", f"patch={patch}")
    counts = backend.take_counts()
    assert counts.patch_bytes / counts.patches == pytest.approx(patch, rel=0.02)
    # The global transformer runs once for the prompt, then for each patch.
    assert found.stats.nfe["global"] == pytest.approx(LENGTH / patch, abs=0.02 * LENGTH / patch + 2)


def test_patches_differ_in_length_up_to_the_longest(config: BltConfig) -> None:
    _, backend = replayed(config, "ar", "patch=4")
    lengths = Counter(np.diff(backend.streams[0].ends).tolist())
    assert set(lengths) == set(range(1, 9))


@pytest.mark.parametrize("method", ["ar", "s:4", "s:4+partial", "d:8@0.7", "dv:8@one", "dv:8@0.3+partial", "auto"])
def test_every_call_reaches_the_real_backend(config: BltConfig, method: str) -> None:
    found, backend = replayed(config, method, "acceptance=0.8,steps=2.92", 200)
    assert isinstance(backend.real, CountingBackend)
    assert {part: found.stats.nfe[part] for part in PARTS} == {part: backend.real.calls[part] for part in PARTS}
    assert found.stats.moved_bytes == 100 * backend.real.calls.total()
    assert found.data == expected_text(200)


def test_adaptive_method_learns_the_rate(config: BltConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every call takes a millisecond, however crowded the machine is.
    monkeypatch.setattr(Session, "now", lambda self: 1e-3 * self.stats.nfe.total())
    high, _ = replayed(config, "auto", "acceptance=0.95")
    low, _ = replayed(config, "auto", "acceptance=0.1")
    assert high.stats.accepted / high.stats.rounds > 4 > 1 > low.stats.accepted / low.stats.rounds


@pytest.mark.parametrize("pick", [None, lambda row: (int(row.best[0]), True)])
def test_time_of_the_encoder_is_that_of_the_real_backend(config: BltConfig, pick: Pick | None) -> None:
    _, backend = replayed(config, "s:4", "acceptance=1", 4)
    ids = np.zeros(config.hash.context, dtype=np.int64)
    sequence = backend.streams[0]
    drafted = sequence.draft(5, ids, 0, 4, pick)
    assert drafted.tokens.tolist() == sequence.text[6:10].tolist()
    assert drafted.encoder_seconds == 0.25


def test_counts_are_those_since_the_last_call(config: BltConfig) -> None:
    _, backend = replayed(config, "d:8@0.7", "steps=2", 16)
    first = backend.take_counts()
    assert (first.blocks, first.steps) == (2, 4)
    again = backend.take_counts()
    assert (again.blocks, again.steps) == (0, 0)
    total = ReplayCounts(1, 2, 3, 4)
    total.add(ReplayCounts(10, 20, 30, 40))
    assert total == ReplayCounts(11, 22, 33, 44)


@pytest.mark.parametrize("method", ["ar", "s:4", "d:4@0.7", "dv:4@one", "dv:4@0.3+partial"])
def test_replay_drives_a_real_bundle(open_backend: Any, method: str) -> None:
    real: Backend = open_backend("onnxruntime", "embedding", 200)
    profile = ReplayRates.parse("acceptance=0.75,steps=1.5,patch=3", [method]).profile(method, real.config)
    found = BltRuntime(ReplayBackend(real, profile)).generate(PROMPT, 120, method=method)
    assert found.data == expected_text(120)
    if found.stats.drafted:
        assert found.stats.acceptance == pytest.approx(0.75, abs=0.06)


def test_replay_of_a_model_without_mask_row_drafts_bytes(open_backend: Any) -> None:
    real: Backend = open_backend("onnxruntime", "encoder", 200)
    found = BltRuntime(ReplayBackend(real, ReplayProfile(0.9, 0.0, 0.5, 2.0))).generate(PROMPT, 120, method="s:4")
    assert found.data == expected_text(120)
    assert found.stats.acceptance == pytest.approx((0.9 + 0.81 + 0.729 + 0.6561) / 4, abs=0.06)


def test_two_replays_over_one_backend_have_a_sequence_each(open_backend: Any) -> None:
    real: Backend = open_backend("onnxruntime", "embedding", 80)
    profile = ReplayProfile(0.5, 0.5, 0.5, 2.0)
    one, other = BltRuntime(ReplayBackend(real, profile)), BltRuntime(ReplayBackend(real, profile))
    stream = one.stream(b"", 9, method="ar")
    found = next(stream).data
    assert other.generate(b"", 3, method="ar").data == decode(replay_text(4)[1:])
    assert found + b"".join(chunk.data for chunk in stream) == decode(replay_text(10)[1:])
