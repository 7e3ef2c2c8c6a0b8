"""Holds a text that the scripted model knows by heart, and collects what a runtime generates of it."""

from __future__ import annotations

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk, Generation

METHODS = ("ar", "s:3", "s:8")
PROMPT = b"Once "
REST = b"upon a time there was a fox. The fox had a den. END of the story; and what follows here is never read at all."
TEXT = PROMPT + REST


def collect(runtime: BltRuntime, *args: object, **options: object) -> tuple[Generation, list[Chunk]]:
    chunks: list[Chunk] = []
    return runtime.generate(*args, on_chunk=chunks.append, **({"method": "ar"} | options)), chunks  # type: ignore[arg-type]
