"""Writes what a sequence has read to a file, and reads it back.

The file has the published format of safetensors. Its tensors are ``text.tokens`` (int64, BOS first),
``text.patch_ends`` (int64), and the state of the backend (`BackendSequence.state`); its metadata, all of them strings:

============  ==============================================================================
format        ``fastblt-sequence``
version       ``1``
model         `Backend.model_digest`: a state means nothing to other weights
backend       name and device: each keeps its state in its own way
dtype         type of the activations, e.g. ``float32``
max_bytes     that it was written with; a text may continue with any that it fits
read          number of leading tokens that have been read
sha256        of everything else
============  ==============================================================================

Whatever is read is checked before it is used: sizes before memory is taken, then the sha256, then the text, and by the
backend the shape and type of every tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from fastblt.models.atomic_file import write_file
from fastblt.models.limits import SAFETENSORS_HEADER_BYTES, TEXT_BYTES
from fastblt.models.reading import open_regular
from fastblt.models.shown import shown
from fastblt.models.tokens import BOS_ID, VOCAB_SIZE
from fastblt.runtime.backends.protocol import Backend, Progress
from fastblt.runtime.bundle.dtypes import SAFETENSORS_TYPES
from fastblt.runtime.bundle.json_entries import is_integer
from fastblt.runtime.sequence.saved_session import SavedSession

FORMAT = "fastblt-sequence"
VERSION = "1"
_TOKENS, _ENDS = "text.tokens", "text.patch_ends"
_FIELDS = {"format", "version", "model", "backend", "dtype", "max_bytes", "read", "sha256"}
#: Bytes that a file begins with: how long its header is.
_LENGTH_BYTES = 8
#: Bytes of a file beside the state: the header, and what a token and a patch end take.
_HEADER_BYTES = 2**20
_TOKEN_BYTES = 16

Tensors = dict[str, NDArray[Any]]


class SequenceFileError(ValueError):
    """Reports a saved sequence that cannot be used; the message names the file, what was found and what is expected."""


def write_sequence(path: Path, saved: SavedSession, backend: Backend) -> None:
    """Write what a session has read, replacing the file at once; a new one is its owner's to read, and nobody else's.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {name: np.ascontiguousarray(array) for name, array in saved.state.items()}
    tensors[_TOKENS] = np.asarray(saved.tokens, dtype=np.int64)
    tensors[_ENDS] = np.array(saved.patch_ends, dtype=np.int64)
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "model": backend.model_digest,
        "backend": _kind_of(backend),
        "dtype": str(saved.state["latent_kv"].dtype),
        "max_bytes": str(backend.max_bytes),
        "read": str(saved.progress.tokens),
    }
    write_file(path, save(tensors, {**fields, "sha256": _digest(fields, tensors)}), private=True)


def read_sequence(path: Path, backend: Backend) -> SavedSession:
    """Read what `write_sequence` wrote; the backend has yet to check its own tensors.

    Raises:
        CapacityError: the text is longer than the backend's ``max_bytes``.
        SequenceFileError: the file cannot be read, is damaged, or was written with other weights or another backend.
    """
    raw, fields = _read_file(path, backend)
    try:
        tensors = _tensors(raw)
        found = fields.pop("sha256")
        if found != _digest(fields, tensors):
            raise ValueError(f"found content of another sha256 than {shown(found)}, expected what was saved")
        return _session(fields, tensors, backend)
    except (ValueError, SafetensorError) as error:
        raise SequenceFileError(f"{path}: not a saved sequence that can be used ({error})") from error


def saved_bytes(path: Path) -> int:
    """Return the bytes of text that a file claims to hold, which `read_sequence` has yet to check.

    Raises:
        SequenceFileError: it is no saved sequence.
    """
    with _opened(path) as (_, header):
        _fields(header)
        entry = header.get(_TOKENS)
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not (isinstance(shape, list) and len(shape) == 1 and is_integer(shape[0], 1, TEXT_BYTES + 1)):
            raise ValueError(f"{_TOKENS}: found shape {shown(shape)}, expected 1 to {TEXT_BYTES + 1} tokens")
        return int(shape[0]) - 1


def _kind_of(backend: Backend) -> str:
    return f"{backend.name} ({backend.device})"


def _digest(fields: Mapping[str, str], tensors: Tensors) -> str:
    """Return the sha256 of the other metadata and of all tensors."""
    digest = hashlib.sha256(json.dumps(sorted(fields.items())).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{json.dumps(name)} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read_file(path: Path, backend: Backend) -> tuple[bytes, dict[str, str]]:
    """Return the content of a file of a bounded size, and its metadata, which fits the backend."""
    with _opened(path) as (file, header):
        fields = _fields(header)
        _check_fields(fields, backend)
        whole = os.fstat(file.fileno()).st_size
        most = 2 * backend.sequence_bytes + _TOKEN_BYTES * (backend.max_bytes + 1) + _HEADER_BYTES
        if whole > most:
            raise ValueError(f"found {whole} bytes, expected at most {most} for this model and max_bytes")
        file.seek(0)
        return file.read(whole), fields


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """Yield an open file and its header, in plain types; an error of the body gets the file's name.

    Raises:
        SequenceFileError: it cannot be read, or the body raises a `ValueError`.
    """
    try:
        with open_regular(path) as file:
            whole = os.fstat(file.fileno()).st_size
            if whole < _LENGTH_BYTES:
                raise ValueError(f"found {whole} bytes, expected at least {_LENGTH_BYTES}, the length of the header")
            size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            most = min(SAFETENSORS_HEADER_BYTES, whole - _LENGTH_BYTES)
            if size > most:
                raise ValueError(f"found a header of {size} bytes, expected at most {most}")
            yield file, json.loads(file.read(size))
    except (OSError, ValueError, RecursionError) as error:  # the last: thousands of brackets
        reason = error.strerror if isinstance(error, OSError) else error
        raise SequenceFileError(f"{path}: not a saved sequence that can be used ({reason})") from error


def _fields(header: Any) -> dict[str, str]:
    """Return the metadata of a header."""
    fields = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise ValueError(f"found metadata {shown(fields)}, expected strings by name")
    if (fields.get("format"), fields.get("version")) != (FORMAT, VERSION):
        found = f"format {shown(fields.get('format'))}, version {shown(fields.get('version'))}"
        raise ValueError(f"found {found}, expected {FORMAT}, {VERSION}")
    if fields.keys() != _FIELDS:
        raise ValueError(f"found fields {shown(sorted(fields))}, expected {', '.join(sorted(_FIELDS))}")
    return fields


def _check_fields(fields: dict[str, str], backend: Backend) -> None:
    """Compare what the file was written with to what it is read with."""
    if fields["backend"] != _kind_of(backend):
        raise ValueError(f"found one of backend {shown(fields['backend'])}, expected {_kind_of(backend)}")
    if fields["model"] != backend.model_digest:
        raise ValueError(
            f"found one of model {shown(fields['model'])}, expected {backend.model_digest}, the loaded one; load the "
            "model that it was saved with"
        )


def _tensors(raw: bytes) -> Tensors:
    """Return the tensors of a file; they refer to copies of its content."""
    found: Tensors = {}
    for name, entry in deserialize(raw):  # type: ignore[no-untyped-call]
        kind = SAFETENSORS_TYPES.get(entry["dtype"])
        if kind is None:
            raise ValueError(
                f"{shown(name)}: found type {shown(entry['dtype'])}, expected {', '.join(SAFETENSORS_TYPES)}"
            )
        found[name] = np.frombuffer(entry["data"], dtype=kind.numpy).reshape(entry["shape"])
    return found


def _session(fields: Mapping[str, str], tensors: Tensors, backend: Backend) -> SavedSession:
    """Return what the file holds, once the text is one that this model can have read."""
    tokens, ends = (_positions(tensors, name) for name in (_TOKENS, _ENDS))
    length, most = len(tokens), backend.max_bytes + 1
    if not length or tokens[0] != BOS_ID or tokens.max() >= VOCAB_SIZE:
        raise ValueError(
            f"{_TOKENS}: found {shown(tokens[:8].tolist())}, expected ids below {VOCAB_SIZE}, {BOS_ID} first"
        )
    if length > most:
        raise ValueError(f"found {length - 1} bytes of text, expected at most max_bytes={most - 1} of the loaded model")
    read = int(fields["read"]) if fields["read"].isdecimal() and len(fields["read"]) < len(str(TEXT_BYTES)) + 1 else -1
    if not 0 <= read <= length:
        raise ValueError(f"read: found {shown(fields['read'])}, expected 0 to {length}, the tokens that there are")
    _check_patches(ends, read, backend)
    open_patch = int(ends[-1]) if len(ends) else 0
    state = {name: array for name, array in tensors.items() if name not in (_TOKENS, _ENDS)}
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{shown(name)}: found NaN or infinities, expected finite numbers")
    return SavedSession(tokens, tuple(ends.tolist()), Progress(read, open_patch, len(ends)), state)


def _positions(tensors: Tensors, name: str) -> NDArray[np.int64]:
    """Return a tensor of positions or ids, int64 [n]; none is negative."""
    array = tensors.get(name)
    if array is None or array.ndim != 1 or array.dtype != np.int64 or (array.size and array.min() < 0):
        found = "none" if array is None else f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"{name}: found {found}, expected int64 [n] that are not negative")
    return array


def _check_patches(ends: NDArray[np.int64], read: int, backend: Backend) -> None:
    """Check that patches are those of a text of which ``read`` tokens were read: rising, and none too long.

    A longer one would be encoded in a call that no buffer has room for.
    """
    bounds = np.concatenate([np.zeros(1, np.int64), ends, np.array([read])])
    sizes, longest = np.diff(bounds), backend.config.patching.max_patch_length
    expected = f"rising positions up to {read}, the tokens that were read"
    if read and (not len(ends) or ends[0] != 1):
        raise ValueError(f"{_ENDS}: found {shown(ends[:1].tolist())} first, expected 1: BOS is a patch by itself")
    if (sizes[:-1] < 1).any() or sizes[-1] < 0:
        raise ValueError(f"{_ENDS}: found {shown(ends[:8].tolist())}, expected {expected}")
    if longest is not None and (sizes.max() > longest or sizes[-1] == longest):
        raise ValueError(
            f"{_ENDS}: found a patch of {sizes.max()} bytes, expected at most {longest}, and a shorter open one"
        )
