"""Builds the training and held-out text, and reads it back.

A built corpus is one folder:

==============  ==================================================================================
``train.bin``   raw bytes of all training documents, one after the other
``heldout.bin`` raw bytes of all held-out documents, likewise
``index.json``  per split: size, sha256 and a list of documents {corpus, name, offset, length};
                per source: license (key ``licence``), version, digests and sizes
==============  ==================================================================================

Whether a document is held out depends on its name alone; no document is in both splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.atomic_partial import named_errors
from fastblt.models.limits import NAME_CHARACTERS
from fastblt.models.reading import read_json
from fastblt.models.shown import shown
from fastblt.models.training.corpus_sources import (
    SOURCES,
    CorpusError,
    Document,
    Source,
    file_digest,
    found_version,
    read_documents,
    text_digest,
)

FORMAT = "fastblt-corpus-1"
INDEX_FILE = "index.json"
SPLITS = ("train", "heldout")
HELDOUT_MODULUS = 24
"""One document in this many is held out (4 %)."""

Reader = Callable[[Source, Path], list[Document]]


@dataclass(frozen=True)
class Split:
    """Holds text and documents of one split; document ``i`` is ``text[offsets[i] : offsets[i] + lengths[i]]``.

    Attributes:
        text: all bytes, uint8, read-only memory map.
        offsets: first byte of each document, int64 ``[documents]``.
        lengths: bytes of each document, int64 ``[documents]``.
        corpus_ids: index into ``Corpus.names`` for each document, int64 ``[documents]``.
        names: name of each document within its corpus, unicode array ``[documents]``.
    """

    text: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    corpus_ids: npt.NDArray[np.int64]
    names: npt.NDArray[np.str_]

    def document(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the bytes of one document, uint8 ``[length]``, without a copy."""
        start = int(self.offsets[index])
        return self.text[start : start + int(self.lengths[index])]


@dataclass(frozen=True)
class Corpus:
    """Holds a built corpus, verified against its index.

    Attributes:
        names: names of the corpora, in the order of ``Split.corpus_ids``.
        train: training text.
        heldout: held-out text.
        index_sha256: digest of the index, which contains all other digests; identifies the corpus in a checkpoint.
    """

    names: tuple[str, ...]
    train: Split
    heldout: Split
    index_sha256: str


def is_heldout(source: Source, name: str) -> bool:
    """Decide whether a document is held out, by a fixed function of the corpus's and the document's name."""
    digest = hashlib.sha256(f"{source.name}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELDOUT_MODULUS == source.heldout_residue


def build_corpus(
    out: Path,
    cache: Path,
    *,
    sources: Sequence[Source] = SOURCES,
    allow_other_python: bool = False,
    reader: Reader = read_documents,
) -> Path:
    """Fetch the sources and write the corpus folder atomically.

    Args:
        out: folder to create; it must not exist yet.
        cache: folder of fetched packages; what it contains is not fetched again.
        sources: corpora to build, in order.
        allow_other_python: accept another version's standard library; its digest is recorded.
        reader: reads the documents of one source; replaced in tests.

    Returns:
        ``out``.

    Raises:
        CorpusError: ``out`` exists, or a source cannot be fetched or is not the pinned text.
    """
    if out.exists():
        raise CorpusError(f"{out}: exists already; expected a new folder")
    with replacing_folder(out) as new:
        _write_corpus(new, cache, sources, allow_other_python, reader)
    return out


def _write_corpus(
    folder: Path, cache: Path, sources: Sequence[Source], allow_other_python: bool, reader: Reader
) -> None:
    tables: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    entries: list[dict[str, Any]] = []
    for source in sources:
        documents = reader(source, cache)
        digest = _checked_digest(source, documents, allow_other_python)
        before = dict(sizes)
        for name, text in documents:
            split = "heldout" if is_heldout(source, name) else "train"
            row = {"corpus": source.name, "name": name, "offset": sizes[split], "length": len(text)}
            tables[split].append(row)
            sizes[split] += len(text)
            path = folder / f"{split}.bin"
            with named_errors(path, path), path.open("ab") as stream:
                stream.write(text)
        entries.append(
            {
                "name": source.name,
                "licence": source.license,
                "origin": source.origin,
                "version": found_version(source),
                "file": source.filename,
                "file_sha256": source.file_sha256,
                "text_sha256": digest,
                "bytes": {split: sizes[split] - before[split] for split in SPLITS},
            }
        )
    index: dict[str, Any] = {"format": FORMAT, "sources": entries}
    for split in SPLITS:
        path = folder / f"{split}.bin"
        path.touch()
        index[split] = {"bytes": sizes[split], "sha256": file_digest(path), "documents": tables[split]}
    path = folder / INDEX_FILE
    with named_errors(path, path):
        path.write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _checked_digest(source: Source, documents: list[Document], allow_other_python: bool) -> str:
    """Return the digest of the documents after comparing it with the pinned one."""
    digest = text_digest(documents)
    if digest == source.text_sha256:
        return digest
    version = found_version(source)
    message = f"{source.name} {version}: sha256 of the text is {digest}, expected {source.text_sha256}"
    if source.client != "none":
        raise CorpusError(message)
    if version == source.version:
        raise CorpusError(f"{message}: this interpreter's standard library is not the released one")
    if not allow_other_python:
        raise CorpusError(
            f"{message} (CPython {source.version}); run CPython {source.version} or set allow_other_python"
        )
    return digest


def load_corpus(path: Path) -> Corpus:
    """Open a built corpus and verify sizes, digests and document tables.

    Raises:
        CorpusError: the folder or a file is missing, truncated, changed or does not fit the index.
    """
    index_path = path / INDEX_FILE
    if not index_path.exists():
        raise CorpusError(f"{index_path}: not found, expected the index of a built corpus")
    index = read_json(index_path, CorpusError, "the index of a built corpus")
    found = index.get("format") if isinstance(index, dict) else None
    if found != FORMAT:
        raise CorpusError(f"{index_path}: found format {shown(found)}, expected {FORMAT!r}")
    try:
        names = tuple(_text(source["name"]) for source in index["sources"])
        splits = {split: _load_split(path / f"{split}.bin", index[split], names) for split in SPLITS}
    except (KeyError, TypeError) as error:
        raise CorpusError(
            f"{index_path}: malformed ({type(error).__name__}: {error}), expected the index of a built corpus"
        ) from error
    return Corpus(names, splits["train"], splits["heldout"], file_digest(index_path))


def _load_split(path: Path, entry: dict[str, Any], names: tuple[str, ...]) -> Split:
    if not path.is_file():
        raise CorpusError(f"{path}: not found, expected the text that {INDEX_FILE} lists")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CorpusError(f"{path}: found {size} bytes, expected {shown(entry['bytes'])}")
    digest = file_digest(path)
    if digest != entry["sha256"]:
        raise CorpusError(f"{path}: found sha256 {digest}, expected {_text(entry['sha256'])}")
    rows = entry["documents"]
    unknown = sorted({_text(row["corpus"]) for row in rows} - set(names))
    if unknown:
        raise CorpusError(
            f"{path}: found documents of {shown(unknown)} in {INDEX_FILE}, expected corpora {list(names)}"
        )
    lengths = np.array([_count(row["length"], size) for row in rows], dtype=np.int64)
    offsets = np.array([_count(row["offset"], size) for row in rows], dtype=np.int64)
    if not np.array_equal(offsets, np.cumsum(lengths) - lengths) or int(lengths.sum()) != size:
        raise CorpusError(f"{path}: documents in {INDEX_FILE} do not cover its {size} bytes in order")
    # An empty file cannot be mapped.
    text = np.memmap(path, dtype=np.uint8, mode="r") if size else np.zeros(0, dtype=np.uint8)
    return Split(
        text=text,
        offsets=offsets,
        lengths=lengths,
        corpus_ids=np.array([names.index(row["corpus"]) for row in rows], dtype=np.int64),
        names=np.array([_text(row["name"]) for row in rows], dtype=np.str_),
    )


def _text(name: object) -> str:
    """Return a name in an index; raise TypeError unless it is short text."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > NAME_CHARACTERS:
        raise TypeError(f"found name {shown(name)}, expected at most {NAME_CHARACTERS} printable characters")
    return name


def _count(value: object, most: int) -> int:
    """Return a number of bytes in an index; raise TypeError unless it is an integer in 0..most."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise TypeError(f"found {shown(value)}, expected an integer from 0 to the file's {most} bytes")
    return value
