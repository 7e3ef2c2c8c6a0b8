"""Whatever is in the files of a checkpoint, it ends in one short line that names the file, soon."""

import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_checkpoint, load_model, save_checkpoint
from fastblt.models.config import ConfigError
from fastblt.models.formats.convert import convert
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.fields import model_name
from fastblt.models.formats.open import open_checkpoint
from fastblt.models.formats.pth_store import PthStore
from fastblt.models.limits import SAFETENSORS_HEADER_BYTES, STORED_TENSORS
from fastblt.models.presets import preset

WEIGHTS, INDEX, PTH = "model.safetensors", "model.safetensors.index.json", "consolidated.pth"


def refusal(read: Callable[[], object], where: Path) -> str:
    """The one line that an attempt to read ends in."""
    began = time.process_time()
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        read()
    assert time.process_time() - began < 5
    line = str(caught.value)
    assert str(where) in line
    assert line.isprintable()
    assert len(line) < 1_000
    return line


@pytest.fixture(scope="module")
def theirs(make_model: Callable[..., Blt], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in transformers' layout; tests read copies of it."""
    folder = tmp_path_factory.mktemp("theirs")
    config = {**preset("tiny").to_dict(), "decoder_input": "encoder", "block_size": 0}
    save_checkpoint(folder / "own", make_model(type(preset("tiny")).from_dict(config)))
    convert(open_checkpoint(folder / "own"), folder / "theirs", "transformers")
    return folder / "theirs"


@pytest.fixture
def copy(theirs: Path, tmp_path: Path) -> Path:
    """A copy whose files can be replaced."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in theirs.iterdir():
        (folder / path.name).hardlink_to(path)
    return folder


def replace(path: Path, kind: str) -> None:
    """Put something else in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
@pytest.mark.parametrize("name", ["config.json", WEIGHTS, INDEX, "params.json", PTH])
def test_what_is_no_file_is_refused_soon(name: str, kind: str, copy: Path) -> None:
    if name == INDEX:
        (copy / WEIGHTS).unlink()
    elif name in ("params.json", PTH):
        (copy / "config.json").unlink()
        (copy / "params.json").write_text('{"model": {}, "data": {"patcher_args": {"patching_mode": "byte"}}}')
        torch.save({}, copy / PTH)
    replace(copy / name, kind)
    refusal(lambda: open_checkpoint(copy), copy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cross_attn_k": 10**400}, 'cross_attn_k: found "an integer of 1329 bits", expected an integer up to'),
        ({"cross_attn_k": 2**31}, "cross_attn_k: found 2147483648, expected an integer up to 2147483647"),
        ({"cross_attn_k": 65}, "encoder_config: cross_attn_k: found 2, expected 65, as in the main configuration"),
        ({"cross_attn_k": True}, "cross_attn_k: found true, expected an integer"),
        ({"encoder_hash_byte_group_size": [3, 50_000_000]}, "'hash.sizes': found 50000000, expected"),
        ({"encoder_hash_byte_group_size": list(range(1, 10**5))}, "'hash.sizes': found [1, 2,"),
        ({"encoder_hash_byte_group_size": [[3]]}, "'hash.sizes': found [3], expected"),
        ({"encoder_hash_byte_group_vocab": 2**40}, "encoder_hash_byte_group_vocab: found 1099511627776, expected"),
        ({"encoder_hash_byte_group_nb_functions": 10**6}, "'hash.functions': found 1000000, expected"),
        ({"local_attention_window_len": 2**30}, "window': found 1073741824, expected"),
        ({"patching_threshold": 1e400}, "patching_threshold: found Infinity, expected a finite number"),
        ({"max_patch_length": 2**30}, "'patching.max_patch_length': found 1073741824"),
        ({"patching_mode": "\x1b[31m" * 10**5}, 'characters)", expected entropy, space, static or byte'),
        ({"fastblt": {"name": "a\x1b[31m"}}, r"'name': found 'a\x1b[31m', expected 1 to 255 printable characters"),
        ({"decoder_config": {"num_hidden_layers": 100_000}}, "'decoder.layers': found 100000, expected"),
        ({"decoder_config": {"hidden_size": 10**300}}, 'decoder_config: hidden_size: found "an integer of 997 bits"'),
        ({"decoder_config": {"rms_norm_eps": 1e300}}, "rms_norm_eps: found 1e+300, expected a finite number up to"),
        ({"decoder_config": {"rope_parameters": {"rope_theta": -1}}}, "'decoder.rope_theta': found -1.0, expected"),
        ({"decoder_config": [[[[[[]]]]]]}, 'decoder_config: found [[["..."]]], expected an object'),
    ],
    ids=range(19),
)
def test_numbers_of_a_transformers_configuration_are_bounded(change: dict[str, Any], reason: str, copy: Path) -> None:
    data = json.loads((copy / "config.json").read_text())
    for name, value in change.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(data))
    assert reason in refusal(lambda: open_checkpoint(copy), copy / "config.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ffn_dim_multiplier": 1e300}, "ffn_dim_multiplier: found 1e+300, expected a finite number up to"),
        ({"ffn_dim_multiplier": 1e11}, "ffn_dim': found "),
        ({"multiple_of": 10**400}, 'multiple_of: found "an integer of 1329 bits"'),
        ({"dim_global": 10**400}, 'dim_global: found "an integer of 1329 bits"'),
        ({"n_layers_global": 10**5}, "'global_transformer.layers': found 100000"),
        ({"n_heads_global": 0}, "n_heads_global"),
        ({"encoder_hash_byte_group_size": ",".join(["3"] * 10**5)}, "expected comma-separated integers"),
        ({"encoder_hash_byte_group_size": "9" * 900}, "'hash.sizes': found 'an integer of"),
    ],
    ids=range(8),
)
def test_numbers_of_a_release_folder_are_bounded(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    parts = ("local_encoder", "global", "local_decoder")
    args: dict[str, Any] = {"cross_attn_k": 2, "rope_theta": 5e5, "patching_mode": "byte"}
    args |= {
        f"{name}_{part}": value for part in parts for name, value in (("dim", 64), ("n_layers", 1), ("n_heads", 2))
    }
    (tmp_path / "params.json").write_text(json.dumps({"model": {**args, **change}}))
    torch.save({"a": torch.zeros(1)}, tmp_path / PTH)
    line = refusal(lambda: open_checkpoint(tmp_path), tmp_path / "params.json")
    assert reason in line or "n_heads_global" in change


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            (SAFETENSORS_HEADER_BYTES + 1).to_bytes(8, "little"),
            f"found a header of {SAFETENSORS_HEADER_BYTES + 1} bytes",
        ),
        (b"\xff" * 8, "found a header of 18446744073709551615 bytes"),
        (b"", "not a readable safetensors file"),
    ],
    ids=["large", "largest", "empty"],
)
def test_header_of_safetensors_is_bounded(header: bytes, reason: str, copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    (copy / WEIGHTS).write_bytes(header + b"{}" * 8)
    assert reason in refusal(lambda: open_checkpoint(copy), copy / WEIGHTS)


@pytest.mark.parametrize("dtype", ["\nF32", "\x1b[31mF32"])
def test_what_the_library_quotes_from_a_header_is_one_printable_line(dtype: str, copy: Path) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}, ensure_ascii=False).encode()
    (copy / WEIGHTS).unlink()
    (copy / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    line = refusal(lambda: open_checkpoint(copy), copy / WEIGHTS)
    assert "not a readable safetensors file" in line


@pytest.mark.parametrize("name", ["\x1b[31m", "x" * 256, "a\nb", ""])
def test_name_of_a_tensor_is_short_and_printable(name: str, copy: Path, tmp_path: Path) -> None:
    tensors = {**load_file(copy / WEIGHTS), name: torch.zeros(1)}
    (copy / WEIGHTS).unlink()
    save_file(tensors, copy / WEIGHTS)
    assert "found a tensor named " in refusal(lambda: open_checkpoint(copy), copy / WEIGHTS)
    torch.save({name: torch.zeros(1)}, tmp_path / PTH)
    assert "found a tensor named " in refusal(lambda: PthStore(tmp_path / PTH), tmp_path / PTH)
    (copy / WEIGHTS).unlink()
    (copy / INDEX).write_text(json.dumps({"weight_map": {name: "a.safetensors"}}))
    assert "found a tensor named " in refusal(lambda: open_checkpoint(copy), copy / INDEX)


def test_number_of_tensors_is_bounded(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({str(i): entry for i in range(STORED_TENSORS + 1)}).encode()
    (copy / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    assert "found 65537 tensors, expected at most 65536" in refusal(lambda: open_checkpoint(copy), copy / WEIGHTS)


@pytest.mark.parametrize("shard", ["a\0b", "\x1b", "x" * 300, ["a"], {"a": 1}, None, "/etc/passwd"])
def test_name_of_a_shard_is_short_and_printable(shard: Any, copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    (copy / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert ", expected a plain file name" in refusal(lambda: open_checkpoint(copy), copy / INDEX)


def test_number_of_shards_is_bounded(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    (copy / INDEX).write_text(json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(5_000)}}))
    assert "found 5000 shards, expected at most 4096" in refusal(lambda: open_checkpoint(copy), copy / INDEX)


def write_pickle(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Write a .pth file of one tensor whose pickle is changed."""
    torch.save({"model": {"a": torch.arange(1000.0)}}, path)
    with zipfile.ZipFile(path) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, edit(content) if name.endswith("data.pkl") else content)


def test_untouched_pickle_is_read(tmp_path: Path) -> None:
    write_pickle(tmp_path / PTH, lambda content: content)
    assert torch.equal(PthStore(tmp_path / PTH).read("a"), torch.arange(1000.0))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"hello", b"\x80\x020000.", b"\x80\x02h\x05.", b"\x80\x02((((u.", b"\x80\x09N.", b"\x80\x02}]]s.",
        b"\x80\x02ctorch\nFloatStorage\n)R.", b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", b"\x80\x02" + b"]" * 10**4 + b".",
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + (2**60).to_bytes(8, "little") + b"\x85R.",
        b"\x80\x02ctorch\nSize\n\x8a\x09" + (2**62).to_bytes(9, "little") + b"\x85R.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", b"\x80\x02X\x01\x00\x00\x00aQ.", b"\x80\x02(tQ.",
    ],
    ids=range(15),
)  # fmt: skip
def test_damaged_pickle_is_one_line(content: bytes, tmp_path: Path) -> None:
    write_pickle(tmp_path / PTH, lambda _: content)
    line = refusal(lambda: PthStore(tmp_path / PTH), tmp_path / PTH)
    assert "weights_only" not in line


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"M\xe8\x03", b"J\xff\xff\xff\x7f"),  # more values than the file has
        (b"M\xe8\x03", b"J\xff\xff\xff\xff"),  # fewer than none
        (b"K\x01\x85", b"K\x00\x85"),  # one value, repeated a thousand times
        (b"FloatStorage", b"DoubleStorage"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x001"),  # data that is not there
        (b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00\x1b\x1b\x1b"),
    ],
    ids=range(6),
)
def test_pickle_that_describes_other_data_is_refused_or_harmless(before: bytes, after: bytes, tmp_path: Path) -> None:
    write_pickle(tmp_path / PTH, lambda content: content.replace(before, after))
    try:
        store = PthStore(tmp_path / PTH)
    except CheckpointError:
        refusal(lambda: PthStore(tmp_path / PTH), tmp_path / PTH)
    else:
        assert store.read("a").numel() <= 1000


def test_compressed_weights_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / PTH, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    assert "found compressed data in 'a/data.pkl'" in refusal(lambda: PthStore(tmp_path / PTH), tmp_path / PTH)


@pytest.mark.parametrize("content", ["cut", "old format", "script"])
def test_file_of_another_kind_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / PTH
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=content != "old format")
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "script":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{path.stem}/constants.pkl", b"")
    refusal(lambda: PthStore(path), path)


def test_weights_that_no_memory_holds_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastblt.models.machine_memory.host_memory", lambda: 10**6)
    with pytest.raises(
        CheckpointError, match=r"^random:blt-d-8m: found 0\.0 GB of weights, expected at most the machine"
    ):
        load_checkpoint("random:blt-d-8m")
    checkpoint = open_checkpoint("random:blt-d-8m")
    with pytest.raises(
        CheckpointError, match=r"GB of encoder\.hash_embeddings\.weight in torch\.float32, expected at most"
    ):
        checkpoint.read("encoder.hash_embeddings.weight", torch.float32)


def test_memory_is_not_needed_for_what_stays_in_its_file(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastblt.models.machine_memory.host_memory", lambda: 1)
    load_model(open_checkpoint(tiny_checkpoint))
    with pytest.raises(CheckpointError, match="expected at most the machine's memory"):
        load_checkpoint(tiny_checkpoint, dtype=torch.float16)


def test_model_without_a_name_is_called_like_its_folder(tmp_path: Path) -> None:
    assert model_name(tmp_path / "blt 1b \u00e9") == "blt 1b \u00e9"
    assert model_name(tmp_path / "a\x1b[31m\nb") == "a_[31m_b"
