"""Chooses prompts for commands: held-out text that ships with the package, or what a file lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastblt.calibration.heldout import CORPORA, EDIT, Prompt, load_edit_prompts, load_prompts, load_text
from fastblt.commands.errors import UsageError
from fastblt.models.limits import JSON_BYTES
from fastblt.models.reading import read_json, read_text

#: Every shipped prompt is at least this long.
SHORTEST_PROMPT = 64

#: Prompts cut from the held-out text end at multiples of this many bytes, so that prompts of different sizes have the
#: same continuations, and only the length of the context differs.
_LONG_PROMPT = 4096

#: Bytes of the prompts that `distinct_prompts` cuts from the held-out text, one after the other.
_CUT = 96

#: Corpus of the prompt that `fastblt generate` continues when it is given none.
DEFAULT_CORPUS = "web"


def default_prompt() -> Prompt:
    """Return the first shipped prompt of `DEFAULT_CORPUS`."""
    return load_prompts(DEFAULT_CORPUS)[0]


def heldout_prompts(count: int, size: int, corpora: Sequence[str] = ()) -> list[bytes]:
    """Return prompts of one size; the same ones at every call.

    Up to `SHORTEST_PROMPT` bytes they are the shipped prompts, cut; longer ones come from the held-out text. Those of
    ``edit`` are whole, whatever the size: cut, they would lack the text that is to be written again.

    Args:
        count: number of prompts.
        size: bytes of each.
        corpora: corpora to take equal shares from, one after the other, so that the kind of text changes on the way;
            ``edit`` is one of them. Empty: all of `CORPORA` in turn.

    Raises:
        UsageError: a corpus does not exist, or there are fewer prompts of this size.
    """
    known = (*CORPORA, EDIT)
    unknown = [name for name in corpora if name not in known]
    if unknown:
        raise UsageError(f"corpora: found {unknown[0]!r}, expected some of {', '.join(known)}")
    cut = _shipped if size <= SHORTEST_PROMPT else _from_text
    chosen = list(corpora or CORPORA)
    per_corpus = [_editing() if corpus == EDIT else cut(corpus, size) for corpus in chosen]
    available = len(chosen) * min(len(prompts) for prompts in per_corpus)
    if count > available:
        raise UsageError(f"prompts: found {count} of {size} bytes, expected at most {available}")
    share, rest = divmod(count, len(chosen))
    shares = [prompts[: share + (index < rest)] for index, prompts in enumerate(per_corpus)]
    if corpora:
        return [prompt for prompts in shares for prompt in prompts]
    return [shares[i % len(chosen)][i // len(chosen)] for i in range(count)]


def distinct_prompts() -> list[tuple[str, bytes]]:
    """Return identifiers and bytes of distinct held-out prompts, the corpora in turn; the same ones at every call.

    The shipped prompts come first, then pieces of the held-out text, named by corpus and offset of the first byte.
    """
    shipped = zip(*(load_prompts(corpus) for corpus in CORPORA), strict=True)
    known = {prompt.data: prompt.id for group in shipped for prompt in group}
    texts = {corpus: load_text(corpus) for corpus in CORPORA}
    for start in range(0, max(map(len, texts.values())), _CUT):
        for corpus, text in texts.items():
            piece = text[start : start + _CUT]
            if len(piece) == _CUT:
                known.setdefault(piece, f"{corpus}@{start}")
    return [(name, data) for data, name in known.items()]


def _shipped(corpus: str, size: int) -> list[bytes]:
    return [prompt.data[:size] for prompt in load_prompts(corpus)]


def _editing() -> list[bytes]:
    """Return the editing prompts, the tasks in turn."""
    tasks: dict[str, list[bytes]] = {}
    for prompt in load_edit_prompts():
        tasks.setdefault(prompt.document, []).append(prompt.data)
    return [data for group in zip(*tasks.values(), strict=True) for data in group]


def _from_text(corpus: str, size: int) -> list[bytes]:
    text = load_text(corpus)
    step = max(size, _LONG_PROMPT)
    return [text[end - size : end] for end in range(step, len(text) + 1, step)]


def read_prompts(path: Path) -> list[str]:
    """Return the prompts in a file: a list of strings in a ``.json`` file, else every line that is not empty.

    Raises:
        ValueError: there are none, or it is too large or not UTF-8.
        OSError: it cannot be read.
    """
    if path.suffix == ".json":
        found = read_json(path, ValueError, "a list of prompts")
    else:
        found = _lines(path)
    if not isinstance(found, list) or not found or not all(isinstance(each, str) and each for each in found):
        raise ValueError(f"{path}: found no list of prompts, expected at least one text")
    if any("\ud800" <= character <= "\udfff" for each in found for character in each):
        raise ValueError(f"{path}: found half of a character, which no request can have, expected text")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in read_text(path, JSON_BYTES).splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: found bytes that are no UTF-8, expected text") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
