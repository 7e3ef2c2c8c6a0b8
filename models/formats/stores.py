"""Reads named tensors from files, one at a time or by rows; nothing is kept in memory.

A store knows names, shapes and types without touching data. Files are memory-mapped by the libraries that read them
and opened anew for each read: the pages of a mapping that stays open would accumulate to a copy of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastblt.models.formats.errors import CheckpointError, listing
from fastblt.models.limits import FILES, NAME_CHARACTERS, SAFETENSORS_HEADER_BYTES, STORED_TENSORS
from fastblt.models.reading import open_regular, read_json
from fastblt.models.shown import shown, shown_text

#: Types that weights may have, by safetensors' names.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: Inverse of `DTYPES`.
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Describes a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str
    """safetensors' name, e.g. BF16."""
    file: str
    """Where it is stored, for messages."""


class TensorStore(Protocol):
    """Reads tensors by name."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Return the description of every tensor by name."""
        ...

    def read(self, name: str) -> Tensor:
        """Return a tensor in its stored type, backed by its file where the platform allows it."""
        ...

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Return rows ``first`` to ``last`` (exclusive) of a tensor in its stored type."""
        ...

    def gather(self, name: str, rows: Tensor) -> Tensor:
        """Return the rows int64 [n] of a table in its stored type."""
        ...


class SafetensorsStore:
    """Reads one safetensors file, or several shards.

    Raises:
        CheckpointError: a file is missing, truncated or damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._file_of: dict[str, Path] = {}
        self.tensors: dict[str, StoredTensor] = {}
        for path in files:
            with open_file(path) as file:
                names = file.keys()
                check_names(path, names)
                for name in names:
                    if name in self._file_of:
                        raise CheckpointError(f"{path}: found {name} here and in {self._file_of[name]}, expected one")
                    piece = file.get_slice(name)
                    self._file_of[name] = path
                    self.tensors[name] = StoredTensor(tuple(piece.get_shape()), str(piece.get_dtype()), str(path))

    def read(self, name: str) -> Tensor:
        """Implement `TensorStore.read`."""
        with self._opened(name) as file:
            found: Tensor = file.get_tensor(name)
        return found

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Implement `TensorStore.rows`."""
        with self._opened(name) as file:
            found: Tensor = file.get_slice(name)[first:last]
        return found

    def gather(self, name: str, rows: Tensor) -> Tensor:
        """Implement `TensorStore.gather`."""
        return self.read(name)[rows]

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        path = self._file_of[name]
        with open_file(path) as file:
            try:
                yield file
            except (SafetensorError, OSError, RuntimeError) as error:
                raise CheckpointError(f"{path}: {name} cannot be read ({shown_text(str(error))})") from error


def open_file(path: Path) -> Any:
    """Open a safetensors file whose header has a bounded size.

    Raises:
        CheckpointError: it is missing, is something else, or is damaged.
    """
    try:
        with open_regular(path) as file:
            header = int.from_bytes(file.read(8), "little")
        if header > SAFETENSORS_HEADER_BYTES:
            raise SafetensorError(f"found a header of {header} bytes, expected at most {SAFETENSORS_HEADER_BYTES}")
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected the checkpoint's weights") from error
    except (SafetensorError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else shown_text(str(error))
        raise CheckpointError(f"{path}: not a readable safetensors file ({reason})") from error


def check_names(path: Path, names: Collection[str]) -> None:
    """Check the number of tensors of a file, and that their names are short and printable: messages contain them.

    Raises:
        CheckpointError: there are too many, or a name is not.
    """
    if len(names) > STORED_TENSORS:
        raise CheckpointError(f"{path}: found {len(names)} tensors, expected at most {STORED_TENSORS}")
    for name in names:
        if not 0 < len(name) <= NAME_CHARACTERS or not name.isprintable():
            expected = f"1 to {NAME_CHARACTERS} printable characters"
            raise CheckpointError(f"{path}: found a tensor named {shown(name)}, expected {expected}")


def open_safetensors(folder: Path, name: str = "model.safetensors") -> SafetensorsStore:
    """Open the weights of a folder: ``model.safetensors``, or the shards in ``model.safetensors.index.json``.

    If both exist, the one file is read, as transformers does.

    Raises:
        CheckpointError: files are missing or damaged, or the index does not match them.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).exists() or not index.is_file():
        return SafetensorsStore([folder / name])
    file_of = _read_index(index)
    store = SafetensorsStore([folder / shard for shard in sorted(set(file_of.values()))])
    lost = [
        f"{tensor} in {shard}"
        for tensor, shard in file_of.items()
        if tensor not in store.tensors or store.tensors[tensor].file != str(folder / shard)
    ]
    if lost:
        raise CheckpointError(f"{index}: found tensors that are not in the shards that it lists: {listing(lost)}")
    return store


def _read_index(index: Path) -> dict[str, str]:
    """Return the file of each tensor that an index lists."""
    what = "an index of shards with an entry 'weight_map'"
    data = read_json(index, CheckpointError, what, constants=True)
    file_of = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(file_of, dict):
        raise CheckpointError(f"{index}: not an index of shards (found {shown(data)}), expected an entry 'weight_map'")
    check_names(index, file_of)
    for shard in file_of.values():
        plain = isinstance(shard, str) and shard.isprintable() and len(shard) <= NAME_CHARACTERS
        if not plain or Path(shard).name != shard or shard in ("", ".."):
            raise CheckpointError(f"{index}: found shard {shown(shard)}, expected a plain file name")
    shards = len(set(file_of.values()))
    if shards > FILES:
        raise CheckpointError(f"{index}: found {shards} shards, expected at most {FILES}")
    if not file_of:
        raise CheckpointError(f"{index}: found no shards, expected files by tensor in 'weight_map'")
    return file_of


class JoinedStore:
    """Joins several stores to one; the names of each get a prefix."""

    def __init__(self, stores: Sequence[tuple[str, TensorStore]]) -> None:
        self._place: dict[str, tuple[TensorStore, str]] = {}
        for prefix, store in stores:
            for name, tensor in store.tensors.items():
                if prefix + name in self._place:
                    raise CheckpointError(f"{tensor.file}: found a second {prefix + name}, expected one")
                self._place[prefix + name] = (store, name)
        self.tensors: dict[str, StoredTensor] = {
            full: store.tensors[name] for full, (store, name) in self._place.items()
        }

    def read(self, name: str) -> Tensor:
        """Implement `TensorStore.read`."""
        store, own = self._place[name]
        return store.read(own)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Implement `TensorStore.rows`."""
        store, own = self._place[name]
        return store.rows(own, first, last)

    def gather(self, name: str, rows: Tensor) -> Tensor:
        """Implement `TensorStore.gather`."""
        store, own = self._place[name]
        return store.gather(own, rows)


class PartOfStore:
    """Exposes some of a store's tensors."""

    def __init__(self, store: TensorStore, keep: Callable[[str], bool]) -> None:
        self.read, self.rows, self.gather = store.read, store.rows, store.gather
        self.tensors: dict[str, StoredTensor] = {name: t for name, t in store.tensors.items() if keep(name)}
