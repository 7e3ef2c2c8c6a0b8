"""Reads the held-out text that ships with the package (sources and licenses: ``heldout/README.md``)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from fastblt.models.config import ConfigError, build_dataclass
from fastblt.models.reading import read_json
from fastblt.models.shown import shown

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # Python 3.11

CORPORA = ("pycode", "pydocs", "web", "shak")
"""Python code, Python documentation, World English Bible, Shakespeare."""
EDIT = "edit"
"""Prompts that hold what is to be written again with a change."""


@dataclass(frozen=True)
class Prompt:
    """Holds the beginning of a generation: a piece of a held-out document, not part of any training text.

    Attributes:
        id: ``<corpus>-<number>``, unique.
        corpus: one of `CORPORA`, or `EDIT`.
        document: name of the held-out document within its corpus; of `EDIT`, the task.
        offset: first byte of the prompt within the document.
        text: 64-160 bytes when encoded as UTF-8; of `EDIT`, 64-320.
    """

    id: str
    corpus: str
    document: str
    offset: int
    text: str

    @property
    def data(self) -> bytes:
        """Return the bytes that the model sees: UTF-8, exactly those of the document."""
        return self.text.encode()


def load_prompts(corpus: str | None = None) -> list[Prompt]:
    """Return the shipped prompts, of one corpus or of all, in a fixed order (24 per corpus).

    Raises:
        ValueError: there is no such corpus, or the shipped file is missing or malformed.
    """
    if corpus is not None:
        _check_corpus(corpus)
    prompts = _parse_prompts(_folder() / "prompts.json")
    return [prompt for prompt in prompts if corpus in (None, prompt.corpus)]


def load_edit_prompts() -> list[Prompt]:
    """Return the shipped prompts that hold what is to be written again with a change, four of each task.

    Raises:
        ValueError: the shipped file is missing or malformed.
    """
    return _parse_prompts(_folder() / "edit.json")


def load_text(corpus: str) -> bytes:
    """Return about 48 KB of held-out UTF-8 text: pieces of documents, whole lines, one after the other.

    The text does not overlap with the prompts.

    Raises:
        ValueError: there is no such corpus.
        FileNotFoundError: the installation lacks the file.
    """
    _check_corpus(corpus)
    return (_folder() / f"{corpus}.txt").read_bytes()


def _folder() -> Traversable:
    return files("fastblt.calibration") / "heldout"


def _check_corpus(corpus: str) -> None:
    if corpus not in CORPORA:
        raise ValueError(f"held-out corpus: found {corpus!r}, expected one of {', '.join(CORPORA)}")


def _parse_prompts(path: Traversable) -> list[Prompt]:
    rows = read_json(Path(str(path)), ValueError, "a list of prompts")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: found {shown(rows)}, expected a list of prompts")
    try:
        return [build_dataclass(Prompt, row) for row in rows]
    except ConfigError as error:
        raise ValueError(f"{path}: malformed prompt ({error}), expected the fields of Prompt") from error
