"""Files of saved sequences: they continue exactly, with any room, and whatever is wrong with one is one clear error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from safetensors.numpy import load_file, save_file

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequences import saved_file
from fastblt.runtime.sequences.saved_file import SequenceFileError, read_sequence, saved_bytes
from fastblt.runtime.turns import BusyError

PROMPT = b"Once upon a time there was a fox, "


@pytest.fixture(scope="module")
def saved(tiny_backend: OnnxRuntimeBackend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence of a prompt and twenty bytes; its tokens are those of ``saved.text``."""
    path = tmp_path_factory.mktemp("saved") / "sequence"
    sequence = BltRuntime(tiny_backend).sequence()
    sequence.generate(PROMPT, 20, method="s:4", stop_at_eos=False)
    sequence.save(path)
    return path


@pytest.mark.parametrize("max_bytes", [80, 200, 1000])
def test_saved_text_continues_where_it_was(runtime: BltRuntime, tiny_bundle: Path, saved: Path, max_bytes: int) -> None:
    other = BltRuntime(OnnxRuntimeBackend.load(tiny_bundle, max_bytes, 1))
    sequence = other.load_sequence(saved)
    assert sequence.data.startswith(PROMPT)
    assert saved_bytes(saved) == len(sequence.data) == len(PROMPT) + 20
    found = sequence.generate(b"and", 20, method="s:4", stop_at_eos=False)
    text = sequence.data[: len(PROMPT) + 23]
    assert found.stats.reused_bytes >= len(PROMPT) + 18
    assert found.data == runtime.generate(text, 20, method="ar", stop_at_eos=False).data


def test_sequence_without_text_or_after_an_error_is_saved(runtime: BltRuntime, tmp_path: Path) -> None:
    sequence = runtime.sequence()
    for expected in (b"", PROMPT):
        sequence.save(tmp_path / "text")
        loaded = runtime.load_sequence(tmp_path / "text")
        assert loaded.data == expected
        loaded.generate(b"x", 5, stop_at_eos=False)
        sequence.generate(PROMPT, 0)


def test_saving_replaces_the_file_at_once(
    runtime: BltRuntime, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "text"
    target.write_bytes(saved.read_bytes())
    sequence = runtime.load_sequence(target)
    sequence.generate(b"more", 4, stop_at_eos=False)
    stream = sequence.stream(b"", 20, method="ar", stop_at_eos=False)
    next(stream)
    with pytest.raises(BusyError, match="sequence: found a stream that is open"):
        sequence.save(target)
    stream.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            sequence.save(target)
    assert target.read_bytes() == saved.read_bytes()
    assert list(tmp_path.iterdir()) == [target]
    sequence.save(target)
    assert runtime.load_sequence(target).data == sequence.data


def test_new_file_is_private(runtime: BltRuntime, tmp_path: Path) -> None:
    """Who may read a file that is there already is its owner's decision."""
    sequence, target = runtime.sequence(), tmp_path / "text"
    sequence.save(target)
    assert target.stat().st_mode & 0o777 == 0o600
    target.chmod(0o640)
    sequence.save(target)
    assert target.stat().st_mode & 0o777 == 0o640


def test_other_model_or_backend_is_refused(
    tiny_encoder_bundle: Path, tiny_checkpoint: Path, tiny_backend: OnnxRuntimeBackend, saved: Path
) -> None:
    other = BltRuntime.from_pretrained(tiny_encoder_bundle, provider="cpu", max_bytes=200, sequences=1)
    with pytest.raises(SequenceFileError, match=f"{saved}: not a saved sequence that can be used .found one of model"):
        other.load_sequence(saved)
    eager = BltRuntime.from_pretrained(tiny_checkpoint, backend="eager", max_bytes=200, sequences=1)
    with pytest.raises(SequenceFileError, match=r"found one of backend 'onnxruntime \(cpu\)', expected eager \(cpu\)"):
        eager.load_sequence(saved)
    sequence = eager.sequence()
    sequence.generate(PROMPT, 4)
    sequence.save(saved.with_name("eager"))
    again = eager.load_sequence(saved.with_name("eager"))
    assert again.generate(b"x", 8).data == eager.generate(sequence.data + b"x", 8).data
    assert eager.backend.model_digest != tiny_backend.model_digest


def test_text_that_does_not_fit_is_refused(tiny_bundle: Path, saved: Path) -> None:
    small = BltRuntime.from_pretrained(tiny_bundle, provider="cpu", max_bytes=40, sequences=1)
    with pytest.raises(SequenceFileError, match="found 54 bytes of text, expected at most max_bytes=40 of the loaded"):
        small.load_sequence(saved)


def forge(path: Path, target: Path, change: Callable[[dict[str, Any], dict[str, str]], object]) -> Path:
    """Write a file that was changed by somebody who knows the format, its sha256 included."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    fields = json.loads(raw[8 : 8 + size])["__metadata__"]
    fields.pop("sha256")
    tensors = load_file(path)
    change(tensors, fields)
    save_file(tensors, target, {**fields, "sha256": saved_file._digest(fields, tensors)})
    return target


def setting(name: str, value: object) -> Callable[[dict[str, Any], dict[str, str]], object]:
    return lambda tensors, fields: fields.update({name: value}) if name in fields else tensors.update({name: value})


KEY = "decoder.key_0"
FORGERIES: dict[str, tuple[Callable[[dict[str, Any], dict[str, str]], object], str]] = {
    "version": (setting("version", "2"), "found format 'fastblt-sequence', version '2', expected fastblt-sequence, 1"),
    "another field": (lambda _, fields: fields.update(color="red"), "found fields .*'color'.*, expected backend"),
    "missing tensor": (lambda tensors, _: tensors.pop(KEY), f"{KEY}: found none, expected a tensor"),
    "unknown tensor": (
        setting("decoder.key_9", np.zeros(1, np.float32)),
        "decoder.key_9: found a tensor",
    ),
    "type": (lambda t, _: t.update({KEY: t[KEY].astype(np.float16)}), f"{KEY}: found float16 .*, expected float32"),
    "strange type": (
        lambda t, _: t.update({KEY: t[KEY].astype(np.float64)}),
        f"'{KEY}': found type 'F64'",
    ),
    "NaN": (lambda t, _: t[KEY].fill(np.nan), f"'{KEY}': found NaN or infinities, expected finite numbers"),
    "fewer rows": (lambda t, _: t.update({KEY: t[KEY][1:].copy()}), f"{KEY}: found float32 .*, expected float32"),
    "no tokens": (lambda t, _: t.pop("text.tokens"), "text.tokens: found none, expected int64"),
    "tokens of no kind": (lambda t, _: t.update({"text.tokens": t["text.tokens"] + 200}), "text.tokens: found"),
    "negative": (lambda t, _: t.update({"text.tokens": -t["text.tokens"]}), "text.tokens: found int64"),
    "more read than there is": (setting("read", "99"), "read: found '99', expected 0 to 55"),
    "read of no number": (setting("read", "-1"), "read: found '-1', expected 0 to 55"),
    "falling ends": (lambda t, _: t["text.patch_ends"].__setitem__(3, 2), "text.patch_ends: found"),
    "one long patch": (
        lambda t, _: t.update({"text.patch_ends": np.array([1])}),
        "found a patch of .* at most 6",
    ),
    "no patch": (lambda t, _: t.update({"text.patch_ends": np.array([], np.int64)}), "expected 1: BOS is a patch by"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_file_is_refused(runtime: BltRuntime, saved: Path, tmp_path: Path, name: str) -> None:
    change, expected = FORGERIES[name]
    path = forge(saved, tmp_path / "forged", change)
    with pytest.raises(SequenceFileError, match=expected) as refused:
        runtime.load_sequence(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)
    assert runtime.sequences_in_use == 0
    assert runtime.load_sequence(saved).generate(b"x", 3, stop_at_eos=False).data


@given(data=st.data())
@examples(40)
def test_damaged_file_is_refused_or_the_same(
    runtime: BltRuntime, tiny_backend: OnnxRuntimeBackend, saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever is cut off, appended or changed: an error that names the file, or nothing that matters."""
    raw = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    where = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(raw) - 1)))
    kind = data.draw(st.sampled_from(["change", "change", "change", "cut", "append", "insert"]))
    if kind == "cut":
        del raw[where:]
    elif kind == "append":
        raw += data.draw(st.binary(min_size=1, max_size=9))
    elif kind == "insert":
        raw[where:where] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        raw[where] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged"
    path.write_bytes(raw)
    expected = read_sequence(saved, tiny_backend)
    try:
        saved_bytes(path)
        found = read_sequence(path, tiny_backend)
        runtime.load_sequence(path)
    except SequenceFileError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        return
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found[1:3] == expected[1:3]
    assert found.state.keys() == expected.state.keys()
    assert all(found.state[name].tobytes() == expected.state[name].tobytes() for name in expected.state)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "found 0 bytes, expected at least 8"),
        (b"1234567", "found 7 bytes, expected at least 8"),
        (b"\xff" * 8 + b"{}", "found a header of 18446744073709551615 bytes, expected at most 2"),
        (b"\x02" + bytes(7) + b"{}", "found metadata None, expected strings by name"),
        (b"\x02" + bytes(7) + b"[[", "Expecting"),
        (b"\x00\x00\x01" + bytes(5) + b"[" * 2**16, "recursion"),
    ],
)
def test_what_is_no_such_file_is_refused(runtime: BltRuntime, tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SequenceFileError, match=expected):
        runtime.load_sequence(path)
    for missing in (tmp_path / "missing", tmp_path):
        with pytest.raises(SequenceFileError, match=f"{missing}: not a saved sequence that can be used"):
            runtime.load_sequence(missing)


def test_large_file_is_refused_before_it_is_read(runtime: BltRuntime, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(saved.read_bytes())
    os.truncate(path, 2**40)
    with pytest.raises(SequenceFileError, match=f"found {2**40} bytes, expected at most"):
        runtime.load_sequence(path)
