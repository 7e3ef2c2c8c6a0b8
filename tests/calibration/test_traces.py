from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from fastblt.calibration import trace_recorder, trace_store
from fastblt.calibration.layer_inputs import CallReplay
from fastblt.calibration.precision import CalibrationError
from fastblt.calibration.request import RecordingSetting
from fastblt.calibration.trace_recorder import record
from fastblt.calibration.trace_store import INDEX_FILE, TraceStore, model_digest
from fastblt.models.tokens import MASK_ID
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import load_manifest


def digest(bundle: Path) -> str:
    return model_digest(load_manifest(bundle))


def contents(store: TraceStore) -> list[tuple[object, ...]]:
    """Every sample with the bytes of its arrays, in an order that does not depend on shards."""
    found = []
    for part in ("patcher", "encoder", "global", "decoder"):
        for sample, arrays in store.read(part):
            data = tuple((name, array.tobytes()) for name, array in sorted(arrays.items()))
            found.append((part, sample.stratum, sample.priority, data))
    return sorted(found)


def test_every_kind_of_call_is_kept(traces: TraceStore) -> None:
    kinds = Counter((sample.part, sample.stratum) for sample in traces.samples)
    decoder = {stratum for part, stratum in kinds if part == "decoder"}
    assert {"prefill", "byte", "chunk", "masked-100"} <= decoder
    assert len(decoder & set(trace_recorder.MASKED_STRATA)) >= 3, "blocks at several stages"
    assert {part for part, _ in kinds} == {"patcher", "encoder", "global", "decoder"}
    assert max(kinds.values()) <= -(-56 // 3)
    for (part, stratum), count in kinds.items():
        assert count <= traces.index.offered[f"{part}/{stratum}"]
    assert traces.index.complete


def test_samples_are_what_the_graph_is_fed(traces: TraceStore, tiny_bundle: Path) -> None:
    spec = load_manifest(tiny_bundle).graphs["decoder"]
    session = ort.InferenceSession(tiny_bundle / spec.file, providers=["CPUExecutionProvider"])
    for sample, arrays in traces.read("decoder"):
        assert set(arrays) == {tensor.name for tensor in spec.inputs}
        assert arrays["ids"].shape[1] == sample.rows
        assert (arrays["ids"] == MASK_ID).any() == sample.stratum.startswith("masked")
        assert np.isfinite(session.run(["logits"], arrays)[0]).all()


def test_recording_that_was_interrupted_goes_on_to_the_same_samples(
    traces: TraceStore, tiny_bundle: Path, setting: RecordingSetting, tmp_path: Path
) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(tiny_bundle, tmp_path, digest(tiny_bundle), setting, stop)
    (tmp_path / "shard-00099.npz").write_bytes(b"half written")
    assert not json.loads((tmp_path / INDEX_FILE).read_text())["complete"]
    told: list[int] = []
    store = record(tiny_bundle, tmp_path, digest(tiny_bundle), setting, lambda done, total, what: told.append(done))
    assert told[0] == 5
    assert contents(store) == contents(traces)
    assert not (tmp_path / "shard-00099.npz").exists()


@pytest.mark.parametrize("moment", ["before the first index", "after the first shard"])
def test_recording_begins_again_whenever_the_first_was_interrupted(
    moment: str, tiny_bundle: Path, setting: RecordingSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(store: TraceStore) -> None:
        write_shard(store)
        raise KeyboardInterrupt

    write_shard = TraceStore._write_shard
    if moment == "before the first index":
        (tmp_path / f".{INDEX_FILE}.fastblt-0123456789abcdef.partial").touch()
    else:
        monkeypatch.setattr(TraceStore, "_write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record(tiny_bundle, tmp_path, digest(tiny_bundle), setting)
        assert list(tmp_path.glob("shard-*"))
    facts = dict(setting.facts(Bundle.open(tiny_bundle).config))
    store = TraceStore(tmp_path, digest(tiny_bundle), facts)
    assert store.samples == []


def test_memory_is_bounded_by_writing_shards(
    traces: TraceStore,
    tiny_bundle: Path,
    setting: RecordingSetting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace_store, "PENDING_BYTES", 20_000)
    store = record(tiny_bundle, tmp_path, digest(tiny_bundle), setting)
    assert store.index.shards > traces.index.shards
    assert contents(store) == contents(traces)
    used = {sample.shard for sample in store.samples}
    assert len(list(tmp_path.glob("*.npz"))) == len(used), "shards without samples are deleted"


def test_another_seed_keeps_other_calls(
    traces: TraceStore, tiny_bundle: Path, setting: RecordingSetting, tmp_path: Path
) -> None:
    other = record(tiny_bundle, tmp_path, digest(tiny_bundle), dataclasses.replace(setting, seed=1))
    assert contents(other) != contents(traces)


def test_traces_of_another_model_are_refused(
    traces: TraceStore, tiny_encoder_bundle: Path, setting: RecordingSetting
) -> None:
    with pytest.raises(CalibrationError, match=r"traces\.json: found traces of model .* another bundle"):
        record(tiny_encoder_bundle, traces.folder, digest(tiny_encoder_bundle), setting)


def test_traces_of_other_settings_are_refused(traces: TraceStore, tiny_bundle: Path, setting: RecordingSetting) -> None:
    with pytest.raises(CalibrationError, match=r"traces\.json: found samples 56, expected 64"):
        record(tiny_bundle, traces.folder, digest(tiny_bundle), dataclasses.replace(setting, samples=64))


SAMPLE = {"part": "decoder", "stratum": "byte", "priority": 0.5, "rows": 1, "shard": 0, "key": 0}
HEAD = {"format": "fastblt-traces", "version": 1, "model": "m", "setting": {}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[]", "cannot be read"),
        ('{"format": "fastblt-traces"}', "cannot be read"),
        ('{"format": "x", "version": 1, "samples": []}', "cannot be read"),
        *(
            (
                json.dumps({**HEAD, "samples": [{**SAMPLE, name: value}]}),
                f"cannot be read \\(config field 'samples.{name}",
            )
            for name, value in {"part": "\x1b", "rows": -1, "shard": 10**400, "key": 1.5, "priority": 2}.items()
        ),
        (json.dumps({**HEAD, "samples": [], "shards": -1}), "cannot be read \\(config field 'shards'"),
        (json.dumps({**HEAD, "samples": [], "offered": {"a": "b"}}), "cannot be read \\(config field 'offered.a'"),
        (json.dumps({**HEAD, "samples": [], "model": 3}), "cannot be read \\(config field 'model'"),
    ],
    ids=range(12),
)
def test_damaged_index_is_named(
    text: str, reason: str, tiny_bundle: Path, setting: RecordingSetting, tmp_path: Path
) -> None:
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(CalibrationError, match=rf"traces\.json: {reason}"):
        record(tiny_bundle, tmp_path, digest(tiny_bundle), setting)


def test_folder_with_other_files_is_left_alone(tiny_bundle: Path, setting: RecordingSetting, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CalibrationError, match="found files but no"):
        record(tiny_bundle, tmp_path, digest(tiny_bundle), setting)
    assert (tmp_path / "thesis.txt").exists()


def test_damaged_shard_is_named(tiny_bundle: Path, setting: RecordingSetting, tmp_path: Path) -> None:
    store = record(tiny_bundle, tmp_path, digest(tiny_bundle), setting)
    path = next(tmp_path.glob("*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CalibrationError, match=rf"{path.name}: cannot be read"):
        contents(store)


def test_too_few_samples_are_refused(tiny_bundle: Path, setting: RecordingSetting, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="--samples: found 4, expected at least 16"):
        record(tiny_bundle, tmp_path, digest(tiny_bundle), dataclasses.replace(setting, samples=4))


def test_no_prompt_is_refused(tiny_bundle: Path, setting: RecordingSetting, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="data: found no prompt"):
        record(tiny_bundle, tmp_path, digest(tiny_bundle), dataclasses.replace(setting, prompts=()))


def test_statistics_are_those_of_all_rows(traces: TraceStore, tiny_bundle: Path) -> None:
    name = "decoder.layers.0.wqkv"
    replay = CallReplay(tiny_bundle / "decoder.onnx", "decoder", traces)
    rows = np.concatenate([rows for _, rows in replay.rows([name])])
    ((found, inputs),) = replay.statistics([name], moments=True)
    assert found == name
    assert inputs.rows == len(rows) == sum(s.rows for s in traces.samples if s.part == "decoder")
    np.testing.assert_array_equal(inputs.channel_largest, np.abs(rows).max(axis=0))
    assert inputs.histogram.sum() == rows.size
    assert inputs.moments is not None
    np.testing.assert_allclose(inputs.moments, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_inputs_that_are_not_finite_are_named(
    traces: TraceStore, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = CallReplay(tiny_bundle / "decoder.onnx", "decoder", traces)
    bad = np.full((40, 32), np.inf, dtype=np.float32)
    monkeypatch.setattr(CallReplay, "rows", lambda self, names: iter([(names[0], bad)]))
    with pytest.raises(CalibrationError, match=r"layer decoder\.layers\.0\.wo: found inf in its inputs"):
        list(replay.statistics(["decoder.layers.0.wo"], moments=False))


def test_too_few_rows_are_named(traces: TraceStore, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = CallReplay(tiny_bundle / "decoder.onnx", "decoder", traces)
    few = np.ones((3, 32), dtype=np.float32)
    monkeypatch.setattr(CallReplay, "rows", lambda self, names: iter([(names[0], few)]))
    with pytest.raises(
        CalibrationError, match=r"layer decoder\.layers\.0\.wo: found 3 recorded rows, expected at least 32"
    ):
        list(replay.statistics(["decoder.layers.0.wo"], moments=False))
