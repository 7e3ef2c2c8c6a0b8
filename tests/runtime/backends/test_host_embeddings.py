from __future__ import annotations

import dataclasses
import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import examples
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastblt.models.blt import Blt
from fastblt.models.config import HASH_PRIMES, BltConfig, HashConfig
from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.protocol import ROW_CAPACITY
from fastblt.runtime.bundle.manifest import EMBEDDINGS_FILE, BundleError
from fastblt.runtime.bundle.tables import map_tables

TOKENS, HASHES = "encoder.tok_embeddings.weight", "encoder.hash_embeddings.weight"
#: Rows and width of the tiny model's tables.
SHAPES = {TOKENS: (260, 32), HASHES: (2 * 97, 32)}
KINDS: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
TORCH_KINDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CONFIGS = {
    "tiny": HashConfig(sizes=(3, 4), rows=97),
    "released": HashConfig(sizes=(3, 4, 5, 6, 7, 8), rows=1013),
    "functions": HashConfig(sizes=(2, 5), rows=64, functions=3),
    "unordered": HashConfig(sizes=(6, 1, 3), rows=31),
    "none": HashConfig(sizes=(), rows=1),
}


def write(path: Path, model: Blt, dtype: str) -> None:
    """Write the tables of a model as a safetensors file, with the library of that name."""
    weights = model.state_dict()
    save_file({name: weights[name].to(TORCH_KINDS[dtype]).contiguous() for name in (TOKENS, HASHES)}, path)


def rounded_encoder(model: Blt, dtype: str) -> Any:
    """Return the encoder with its tables rounded to a type, computing in fp32."""
    encoder = type(model)(model.config).encoder
    encoder.load_state_dict(model.encoder.state_dict())
    for table in (encoder.tok_embeddings, encoder.hash_embeddings):
        table.weight.data = table.weight.to(TORCH_KINDS[dtype]).float()
    return encoder.requires_grad_(False)


def random_ids(context: int, rows: int, seed: int = 0) -> NDArray[np.int64]:
    """Return history and rows; a sequence that has just begun has zeros before it."""
    ids = np.random.default_rng(seed).integers(0, 260, size=context - 1 + rows)
    if seed % 2:
        ids[: context - 1] = 0
    return ids


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("hashing", CONFIGS.values(), ids=CONFIGS.keys())
def test_sums_equal_the_eager_encoder(
    tiny_config: BltConfig, make_model: Callable[..., Blt], tmp_path: Path, hashing: HashConfig, dtype: str
) -> None:
    model = make_model(dataclasses.replace(tiny_config, hash=hashing))
    write(tmp_path / "tables", model, dtype)
    embeddings = HostEmbeddings(tmp_path / "tables", hashing, tiny_config.encoder.dim)
    encoder = rounded_encoder(model, dtype)
    before = hashing.context - 1
    for seed, rows in enumerate((1, 2, 7, 64, ROW_CAPACITY)):
        ids = random_ids(hashing.context, rows, seed)
        tokens = torch.from_numpy(ids).unsqueeze(0)
        expected = encoder.embed(tokens[:, before:], tokens[:, :before])[0].numpy()
        found = np.full((rows, tiny_config.encoder.dim), np.nan, dtype=np.float32)
        embeddings.sum_rows(ids, found)
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
        narrow = np.empty(found.shape, dtype=KINDS[dtype])
        embeddings.sum_rows(ids, narrow)
        # Rounded once, after a sum in fp32.
        assert narrow.tobytes() == found.astype(KINDS[dtype]).tobytes()


@examples(60)
@given(ids=st.lists(st.integers(0, 259), min_size=8, max_size=30))
def test_rows_are_those_of_the_published_hash(tmp_path: Path, ids: list[int]) -> None:
    config = HashConfig(sizes=(3, 8), rows=499, functions=2)
    path = tmp_path / "tables"
    if not path.exists():
        # Each row holds its own number: sums show which rows were taken.
        rows = torch.arange(4 * config.rows, dtype=torch.float32).unsqueeze(1)
        save_file({TOKENS: torch.zeros(260, 1), HASHES: rows}, path)
    out = np.zeros((len(ids) - 7, 1), dtype=np.float32)
    HostEmbeddings(path, config, 1).sum_rows(np.array(ids, dtype=np.int64), out)
    expected = []
    for last in range(7, len(ids)):
        total = table = 0
        for prime in HASH_PRIMES[:2]:
            for size in config.sizes:
                gram = ids[last - size + 1 : last + 1]
                hashed = sum(token * prime**power for power, token in enumerate(gram))
                wrapped = (hashed + 2**63) % 2**64 - 2**63
                total += wrapped % config.rows + table * config.rows
                table += 1
        expected.append(float(total))
    assert out[:, 0].tolist() == expected


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_exported_file_is_safetensors_and_aligned(
    tiny_checkpoint: Path, tiny_model: Blt, exported: Callable[..., Path], dtype: str
) -> None:
    path = exported(tiny_checkpoint, dtype=dtype, hash_tables="host") / EMBEDDINGS_FILE
    found, weights = load_file(path), tiny_model.state_dict()
    assert set(found) == {TOKENS, HASHES}
    mapped = map_tables(path, SHAPES)
    for name, table in found.items():
        assert torch.equal(table, weights[name].to(TORCH_KINDS[dtype]))
        assert mapped[name].dtype == KINDS[dtype]
        assert mapped[name].tobytes() == table.view(torch.uint8).numpy().tobytes()
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0


def test_tables_are_mapped_and_read_only(tiny_bundle: Path) -> None:
    for table in map_tables(tiny_bundle / EMBEDDINGS_FILE, SHAPES).values():
        assert not table.flags.writeable
        owner: Any = table
        while isinstance(getattr(owner, "base", None), np.ndarray | mmap.mmap):
            owner = owner.base
        assert isinstance(owner, mmap.mmap)


def test_metadata_of_a_safetensors_file_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "tables"
    save_file({"a": torch.arange(3)[:, None].float()}, path, metadata={"made": "by hand"})
    (table,) = map_tables(path, {"a": (3, 1)}).values()
    assert table.tolist() == [[0.0], [1.0], [2.0]]


def header(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


def entry(**changes: Any) -> bytes:
    """Write a file with one table of 8 bytes."""
    described = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8], **changes}
    return header(json.dumps({TOKENS: described}).encode()) + bytes(8)


DAMAGED = {
    "empty": b"",
    "short": b"\x01\x00",
    "header cut": header(b'{"a": 1}')[:-3],
    "no JSON": header(b"\xff\xfe" * 10),
    "list": header(b"[]"),
    "number": header(b"5"),
    "header of 4 GB": (2**32).to_bytes(8, "little") + b"{}",
    "header of 2**62 bytes": (2**62).to_bytes(8, "little") + b"{}",
    "header of 2**64 bytes": b"\xff" * 8 + b"{}",
    "entry": header(json.dumps({TOKENS: 3}).encode()),
    "type": entry(dtype="I8"),
    "beyond the end": entry(shape=[4, 1], data_offsets=[0, 16]),
    "negative": entry(data_offsets=[8, 0]),
    "shape": entry(shape=[3, 1]),
    "odd": entry(shape=[1, 1], data_offsets=[0, 7]),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_error_names_the_file_when_it_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / EMBEDDINGS_FILE
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"embeddings\.safetensors: ") as caught:
        HostEmbeddings(path, CONFIGS["tiny"], 32)
    assert str(caught.value).startswith(str(path))


def test_error_names_the_file_when_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing: not a readable safetensors file"):
        map_tables(tmp_path / "nothing", SHAPES)


def test_tables_of_integers_are_refused(tmp_path: Path) -> None:
    save_file({TOKENS: torch.zeros(260, 4, dtype=torch.int64)}, tmp_path / EMBEDDINGS_FILE)
    with pytest.raises(BundleError, match=f"tensor {TOKENS}: found type 'I64', expected a floating-point type"):
        map_tables(tmp_path / EMBEDDINGS_FILE, {TOKENS: (260, 4)})


@pytest.mark.parametrize("left", [TOKENS, HASHES])
def test_error_names_the_table_when_it_is_missing(tiny_bundle: Path, tmp_path: Path, left: str) -> None:
    path = tmp_path / EMBEDDINGS_FILE
    with safe_open(tiny_bundle / EMBEDDINGS_FILE, framework="pt") as file:
        save_file({left: file.get_tensor(left)}, path)
    (missing,) = {TOKENS, HASHES} - {left}
    with pytest.raises(BundleError, match=missing):
        HostEmbeddings(path, CONFIGS["tiny"], 32)


@pytest.mark.parametrize("token", [260, -261, 2**62])
def test_token_that_does_not_exist_is_one_error(tiny_bundle: Path, token: int) -> None:
    """A decoder's graph may draft any number."""
    tables, ids = HostEmbeddings(tiny_bundle / EMBEDDINGS_FILE, CONFIGS["tiny"], 32), np.full(9, token)
    with pytest.raises(GraphError, match=rf"^decoder: failed while it ran \(index {token} is out of bounds"):
        tables.sum_rows(ids, np.empty((10 - CONFIGS["tiny"].context, 32), np.float32))
