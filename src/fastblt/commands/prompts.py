"""Prompts for commands that were given none: held-out text that ships with the package."""

from __future__ import annotations

from fastblt.calibration.heldout import CORPORA, Prompt, load_prompts, load_text

#: Every shipped prompt is at least this long.
SHORTEST_PROMPT = 64

#: Prompts from the held-out text end at multiples of this many bytes, so that prompts of different sizes have the same
#: continuations, and only the length of the context differs.
_LONG_PROMPT = 4096

#: The prompt that `fastblt generate` goes on from when it is given none.
DEFAULT_CORPUS = "web"


def default_prompt() -> Prompt:
    """The first shipped prompt of `DEFAULT_CORPUS`."""
    return load_prompts(DEFAULT_CORPUS)[0]


def heldout_prompts(count: int, size: int) -> list[bytes]:
    """Prompts of one size, the corpora in turn; the same ones at every call.

    Up to `SHORTEST_PROMPT` bytes they are the shipped prompts, cut; longer ones come from the held-out text.

    Args:
        count: how many.
        size: bytes of each.

    Raises:
        ValueError: there are not so many prompts of this size.
    """
    cut = _shipped if size <= SHORTEST_PROMPT else _from_text
    per_corpus = [cut(corpus, size) for corpus in CORPORA]
    available = len(CORPORA) * min(len(prompts) for prompts in per_corpus)
    if count > available:
        raise ValueError(f"prompts: found {count} of {size} bytes, expected at most {available}")
    return [per_corpus[i % len(CORPORA)][i // len(CORPORA)] for i in range(count)]


def _shipped(corpus: str, size: int) -> list[bytes]:
    return [prompt.data[:size] for prompt in load_prompts(corpus)]


def _from_text(corpus: str, size: int) -> list[bytes]:
    text = load_text(corpus)
    step = max(size, _LONG_PROMPT)
    return [text[end - size : end] for end in range(step, len(text) + 1, step)]
