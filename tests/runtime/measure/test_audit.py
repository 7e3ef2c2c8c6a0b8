from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig, PatchingConfig
from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, EOS_ID, encode
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.eager.sequence import EagerSequence
from fastblt.runtime.backends.protocol import Backend, DecoderRows, Floats, Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.audit.comparison import audit
from fastblt.runtime.measure.audit.tie_probe import probe_round, unmasking_gap
from fastblt.runtime.measure.audit.ties import explain
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.methods import parse_method, registry, self_speculation
from fastblt.runtime.methods.method import Round
from fastblt.runtime.progress import OnProgress
from fastblt.runtime.sequence.requests import Steps, score, score_with_block
from fastblt.runtime.sequence.sampling import Draft, Sampler
from fastblt.runtime.sequence.session import Session

PROMPTS = [("one", b"The quick brown fox"), ("two", "gr\u00fc\u00df".encode()), ("three", b"")]


def recorder(told: list[tuple[int, int, str]]) -> OnProgress:
    """A callback that records what it is told."""
    return lambda done, total, what: told.append((done, total, what))


@pytest.fixture(scope="module")
def runtimes(tiny_bundle: Path) -> tuple[BltRuntime, BltRuntime]:
    """Eager and ONNX Runtime over the same weights."""
    return (
        BltRuntime.from_pretrained(tiny_bundle, backend="eager", provider="cpu", max_bytes=100),
        BltRuntime.from_pretrained(tiny_bundle, provider="cpu", max_bytes=100),
    )


def test_audit_finds_no_fault_when_methods_are_exact(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    eager, onnx = runtimes
    told: list[tuple[int, int, str]] = []
    candidates = [(onnx, "ar"), (onnx, "s:3"), (eager, "s:8")]
    rows = audit(eager, candidates, PROMPTS, 40, 1e-4, recorder(told))
    assert [(row.backend, row.method) for row in rows] == [
        ("onnxruntime", "ar"),
        ("onnxruntime", "s:3"),
        ("eager", "s:8"),
    ]
    assert all(row.prompts == 3 and not row.faults for row in rows)
    assert all(row.identical + len(row.ties) == 3 for row in rows)
    assert told == [(0, 9, ""), *((i + 1, 9, candidates[i % 3][1]) for i in range(9))]


def test_audit_reports_a_fault_when_the_models_differ(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    """A candidate whose first byte is always replaced is no float tie."""
    eager, onnx = runtimes

    class Wrong:
        backend = onnx.backend

        @staticmethod
        def generate(prompt: bytes, count: int, *, method: str) -> object:
            found = onnx.generate(prompt, count, method=method)
            worst = bytes([(found.data[0] + 128) % 256])
            return dataclasses.replace(found, data=worst + found.data[1:])

    (row,) = audit(eager, [(Wrong(), "ar")], PROMPTS[:1], 10, 1e-4)  # type: ignore[list-item]
    assert row.identical == 0
    assert not row.ties
    (fault,) = row.faults
    assert (fault.prompt, fault.offset) == ("one", 0)
    assert fault.logit_gap > 1e-4


def accept_always(session: Session, sampler: Sampler, draft: Draft, **_: Any) -> Steps[Round]:
    """Verification that verifies nothing."""
    session.append(draft.tokens)
    following = sampler.choose((yield from score()), -1)
    session.append([following])
    return Round((*draft.tokens, following), (*["accepted"] * len(draft.tokens), "free"), (), len(draft.tokens))


def test_audit_reports_a_fault_when_a_method_does_not_verify(
    runtimes: tuple[BltRuntime, BltRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, onnx = runtimes
    monkeypatch.setattr(self_speculation, "verify", accept_always)
    wrong, right = audit(eager, [(onnx, "s:4"), (onnx, "dv:4@one")], PROMPTS, 30, 1e-4)
    assert (len(wrong.faults), wrong.ties, wrong.identical) == (3, [], 0)
    assert wrong.bytes_as_ar == sum(fault.offset for fault in wrong.faults)
    assert all(fault.gap > 1e-4 and fault.order_gap is None for fault in wrong.faults)
    assert (right.faults, right.identical) == ([], 3)


BLOCK_METHODS = ("d:4@one", "d:4@0.03", "d:4@eb10+closed")


@pytest.mark.parametrize("method", BLOCK_METHODS)
def test_method_that_is_not_lossless_is_compared_with_itself(
    runtimes: tuple[BltRuntime, BltRuntime], method: str
) -> None:
    eager, onnx = runtimes
    row, lossless = audit(eager, [(onnx, method), (onnx, "dv:4@one")], PROMPTS, 30, 1e-4)
    assert (row.reference, lossless.reference) == (f"eager {method}", "eager ar")
    assert (row.identical, row.ties, row.faults) == (3, [], [])
    same = [
        common_prefix(eager.generate(p, 30, method="ar").data, eager.generate(p, 30, method=method).data)
        for _, p in PROMPTS
    ]
    assert row.bytes_as_ar == sum(same) < row.ar_bytes
    assert lossless.bytes_as_ar == lossless.ar_bytes == lossless.bytes == row.ar_bytes


class SecondBest:
    """A backend, and its only sequence, that takes the second-best byte of the last row of its n-th block."""

    def __init__(self, backend: Backend, nth: int) -> None:
        self._backend = backend
        self._nth = nth
        self.blocks = 0
        self.sequences = 1
        self._sequence: Any = None

    def new_sequence(self) -> Any:
        self._sequence = self._backend.new_sequence()
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend if hasattr(self._backend, name) else self._sequence, name)

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        rows = self._sequence.run_decoder(position, ids, latents, block).copy()
        self.blocks += block > 0
        if block and self.blocks == self._nth:
            rows.best[-1] = np.argsort(rows.logits[-1])[-2]
        return rows


def test_fault_in_a_block_is_found_and_is_a_tie_when_the_choice_was_narrow(
    runtimes: tuple[BltRuntime, BltRuntime],
) -> None:
    eager, onnx = runtimes

    def run(bound: float) -> Any:
        wrong: Any = BltRuntime(SecondBest(onnx.backend, 3))  # type: ignore[arg-type]
        return audit(eager, [(wrong, "d:4@one")], PROMPTS[:1], 30, bound)[0]

    row = run(1e-4)
    assert not row.ties
    (fault,) = row.faults
    # The last byte of the third block.
    assert (fault.offset, fault.order_gap) == (11, None)
    # The narrowest of the block's four choices; no narrower than the one that was changed.
    prompt = PROMPTS[0][1]
    watched = probe_round(eager, prompt, fault.offset, parse_method("d:4@one"))
    assert fault.logit_gap == pytest.approx(watched.logit_gap)
    assert fault.gap > 1e-4
    assert fault.boundary_gap > 0
    tied = run(fault.gap * 1.01)
    assert (tied.faults, [tie.offset for tie in tied.ties]) == ([], [11])


def test_watched_choices_are_those_of_the_block_with_the_byte(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    eager, _ = runtimes
    method: Any = parse_method("d:4@0.03+partial")
    found = [probe_round(eager, b"abc", offset, method) for offset in range(12)]
    gaps = [(watched.logit_gap, watched.order_gap) for watched in found]
    assert len(set(gaps)) == 3
    assert gaps == [gaps[offset - offset % 4] for offset in range(12)]
    # Every choice of the first block, by hand.
    session = Session(eager.backend)
    session.append([ord(c) + 4 for c in "abc"])
    before, rows = session.run(score_with_block(np.full(4, 260), "partial"))
    top = [float(np.diff(np.sort(row)[-2:])[0]) for row in (before.logits[-1], *rows.logits[1:])]
    order = float(np.abs(rows.probability[1:] - 0.03).min())
    assert float(rows.probability[1:].min()) > 0.03, "a block of one step"
    assert gaps[0] == (pytest.approx(min(top), abs=1e-5), pytest.approx(order, abs=1e-6))


@pytest.mark.parametrize(
    ("rule", "probability", "entropy", "gap"),
    [
        ("one", [0.5, 0.5], [1.0, 1.0], float("inf")),
        ("0.5", [0.9, 0.25, 0.75], [0, 0, 0], 0.25),
        ("0.5", [0.25, 0.375, 0.125], [0, 0, 0], 0.125),  # the surest of those that are not sure
        ("0.75", [0.25, 0.3125, 0.125], [0, 0, 0], 0.0625),
        ("0.5", [0.25], [0], 0.25),
        ("eb1.0", [0, 0, 0], [0.5, 0.25, 1.5], 0.25),  # 0.75 against the bound
        ("eb1.5", [0, 0, 0], [0.5, 0.25, 0.625], 0.125),  # 1.375
        ("eb1.0", [0, 0, 0], [0.375, 0.25, 0.5], 0.125),  # 1.125; and 0.5 is next to 0.375
        ("eb0", [0, 0], [4.0, 4.0625], 0.0625),  # another first byte
        ("eb1.0", [0], [0.99], float("inf")),
        ("ebmax1.0", [0, 0, 0], [0.5, 0.25, 1.5], 0.25),  # 0.75 without the highest
        ("ebmax0.5", [0, 0, 0], [0.375, 0.25, 0.5], 0.125),  # 0.625; and 0.5 is next to 0.375
        ("ebmax1.0", [0], [0.99], float("inf")),
    ],
)
def test_unmasking_gap_is_what_would_have_changed_the_step(
    rule: str, probability: list[float], entropy: list[float], gap: float
) -> None:
    method: Any = parse_method(f"d:4@{rule}")
    floats = [np.array(values, dtype=np.float32) for values in (probability, entropy)]
    assert unmasking_gap(method.argument.rule, *floats) == pytest.approx(gap)


def test_audit_goes_on_until_every_method_has_written_enough(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    eager, onnx = runtimes
    for wanted, prompts in ((1, 1), (20, 1), (21, 2), (60, 3), (1000, 3)):
        told: list[tuple[int, int, str]] = []
        (row,) = audit(eager, [(onnx, "ar")], PROMPTS, 20, 1e-4, recorder(told), wanted_bytes=wanted)
        assert row.prompts == prompts
        assert told == [(min(20 * i, wanted), wanted, "ar" if i else "") for i in range(prompts + 1)]


def test_explain_measures_the_gap_of_the_two_bytes(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    eager, _ = runtimes
    expected = eager.generate(b"abc", 12, method="ar").data
    found = expected[:5] + bytes([expected[5] ^ 1]) + expected[6:]
    difference = explain(eager, "abc", b"abc", expected, found)
    assert difference.offset == 5
    assert difference.logit_gap > 0
    assert difference.boundary_gap >= 0


def test_explain_reads_the_end_of_text_when_an_output_stops_early(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    eager, _ = runtimes
    expected = eager.generate(b"abc", 12, method="ar").data
    assert explain(eager, "abc", b"abc", expected, expected[:7]).offset == 7


VARIANTS = {
    "documents": {"document_masks": True},
    "space": {"patcher": None, "patching": PatchingConfig(mode="space")},
    "static": {"patcher": None, "patching": PatchingConfig(mode="static", max_patch_length=3)},
}


@pytest.fixture(scope="module")
def variants(tiny_config: BltConfig, make_model: Callable[..., Blt]) -> dict[str, BltRuntime]:
    """Models whose patches need no entropy model, and one whose documents are masked."""
    configs = {name: dataclasses.replace(tiny_config, **changes) for name, changes in VARIANTS.items()}
    return {name: BltRuntime(EagerBackend(make_model(config), 700)) for name, config in configs.items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["s:4", "d:4@one"])
def test_audit_explains_faults_of_every_kind_of_model(
    variants: dict[str, BltRuntime], variant: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = variants[variant]
    wrong: Any = BltRuntime(SecondBest(reference.backend, 1))  # type: ignore[arg-type]
    if method == "s:4":
        monkeypatch.setattr(self_speculation, "verify", accept_always)
        wrong = reference
    (row,) = audit(reference, [(wrong, method)], PROMPTS[:1], 40, 1e-9)
    (fault,) = row.faults
    assert (fault.boundary_gap is not None) == (variant == "documents")
    assert fault.logit_gap > 0
    write_json(tmp_path / "audit.json", dataclasses.asdict(row))


def test_entropies_near_the_threshold_are_those_of_masked_documents(
    variants: dict[str, BltRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = variants["documents"]
    backend, threshold = runtime.backend, runtime.config.patching.threshold
    rng = np.random.default_rng(9)
    ids = np.concatenate([[BOS_ID], rng.integers(4, 260, 40)]).astype(np.int64)
    ids[[3, 20, 31]] = EOS_ID
    expected = runtime.generate(ids, 20, method="ar", stop_at_eos=False).data
    seen: list[float] = []
    run_patcher = EagerSequence.run_patcher

    def spy(sequence: EagerSequence, position: int, tokens: Ids, visible_from: Ids | None = None) -> Floats:
        entropies = run_patcher(sequence, position, tokens, visible_from)
        seen.extend(np.abs(entropies - threshold).tolist())
        return entropies

    with monkeypatch.context() as patch:
        patch.setattr(EagerSequence, "run_patcher", spy)
        session = Session(backend)
        session.append(np.concatenate([ids[1:], encode(expected[:9], bos=False)]))
        logits = session.score().logits[-1].copy()
    found = expected[:9] + bytes([expected[9] ^ 1])
    difference = explain(runtime, "ids", ids, expected[:10], found)
    assert (difference.offset, difference.boundary_gap) == (9, pytest.approx(min(seen), abs=1e-6))
    unmasked = session.sequence.run_patcher(0, session.tokens)
    assert float(np.abs(unmasked - threshold).min()) != pytest.approx(min(seen), abs=1e-4)
    ours, other = (float(logits[byte + BYTE_OFFSET]) for byte in (expected[9], found[9]))
    assert difference.logit_gap == pytest.approx(abs(ours - other), abs=1e-5)


class OneByOne:
    """A method that the package does not know; autoregressive, whatever it says of itself."""

    def __init__(self, name: str, *, lossless: bool) -> None:
        self.name, self.lossless = name, lossless

    def check(self, config: BltConfig) -> None:
        """Runs on every model."""

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        while True:
            yield self._round(session, sampler)

    def _round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        token = sampler.choose((yield from score()), -1)
        session.append([token])
        return Round((token,), ("sampled",))


@pytest.mark.usefixtures("own_methods")
@pytest.mark.parametrize("lossless", [True, False])
def test_foreign_methods_are_audited_by_name_and_as_objects(
    runtimes: tuple[BltRuntime, BltRuntime], lossless: bool
) -> None:
    eager, onnx = runtimes
    method = OneByOne("mine", lossless=lossless)
    registry.register_method(registry.MethodEntry("mine", "mine", ("mine",), "for a test", lambda _: method))
    rows = audit(eager, [(onnx, "mine"), (onnx, method)], PROMPTS, 20, 1e-4)
    for row in rows:
        assert (row.method, row.reference) == ("mine", "eager ar" if lossless else "eager mine")
        assert (row.identical, row.faults, row.bytes_as_ar) == (3, [], row.ar_bytes)
    expected = eager.generate(b"abc", 12, method="ar").data
    found = expected[:5] + bytes([expected[5] ^ 1]) + expected[6:]
    difference = explain(eager, "abc", b"abc", expected, found, method)
    probe = probe_round(eager, b"abc", 5, method)
    # Another byte than the second best differs by more.
    assert 0 < probe.logit_gap <= difference.logit_gap
    assert lossless or difference.logit_gap == probe.logit_gap


def test_default_methods_are_of_every_kind() -> None:
    kinds = {parse_method(name).name.partition(":")[0] for name in registry.audit_defaults()}
    assert kinds >= {"ar", "s", "d", "dv"}
