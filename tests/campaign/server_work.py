"""Makes requests for a server, and computes with the runtime alone what their texts must be."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastblt.calibration.heldout import CORPORA, load_prompts, load_text
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.serving.chat_template import ChatTemplate

#: Those whose output a seed determines, and further ones for greedy text.
_SEEDED, _GREEDY = ("ar", "s:4", "s:8"), ("ar", "s:4", "s:16", "dv:8@one", "d:8@0.7", "auto", "")
#: Bytes of prompts that are longer than one piece of a prompt, and new bytes.
_LONG, _NEW_BYTES = (300, 1500), (1, 160)


@dataclass(frozen=True)
class Work:
    """Is one request, and the text that it must bring."""

    body: dict[str, Any]
    chat: bool
    stream: bool
    expected: str = ""


def known_works(rng: random.Random, bundle: Path, count: int) -> list[Work]:
    """Return requests of all kinds, and what a runtime that nobody else uses writes for each."""
    runtime = BltRuntime.from_pretrained(bundle, provider="cpu", threads=1)
    works = [_random_work(rng) for _ in range(count)]
    return [replace(work, expected=_text(runtime, work)) for work in works]


def _text(runtime: BltRuntime, work: Work) -> str:
    body = work.body
    prompt = ChatTemplate().render(body["messages"], 1 << 20) if work.chat else body["prompt"]
    options = {name: body[name] for name in ("temperature", "top_p", "seed", "method", "stop") if name in body}
    return runtime.generate(prompt, body["max_tokens"], **options).data.decode("utf-8", "replace")


def _random_work(rng: random.Random) -> Work:
    body: dict[str, Any] = {"max_tokens": rng.randint(*_NEW_BYTES), "temperature": 0}
    if rng.random() < 0.3:
        body.update(temperature=rng.choice((0.7, 1.0)), seed=rng.randrange(1000), method=rng.choice(_SEEDED))
        body.update(top_p=0.95 if rng.random() < 0.5 else 1.0)
    elif method := rng.choice(_GREEDY):
        body["method"] = method
    if rng.random() < 0.2:
        body["stop"] = rng.choice(("\n\n", "the", [".", ","]))
    chat, stream = rng.random() < 0.3, rng.random() < 0.6
    if stream:
        body["stream"] = True
    prompt = _random_prompt(rng)
    if chat:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    return Work(body, chat, stream)


def _random_prompt(rng: random.Random) -> str:
    corpus = rng.choice(CORPORA)
    if rng.random() < 0.7:
        return rng.choice(load_prompts(corpus)).text
    text, size = load_text(corpus), rng.randint(*_LONG)
    start = rng.randrange(len(text) - size)
    return text[start : start + size].decode("utf-8", "ignore")
