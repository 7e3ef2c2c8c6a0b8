"""``fastblt generate``: a prompt goes in, bytes come out as they are decided."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console
from rich.table import Table

from fastblt.commands.prompts import default_prompt
from fastblt.commands.show import Show, escaped
from fastblt.models.config import BltConfig
from fastblt.runtime.backends.registry import default_capacity
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk, Generation
from fastblt.runtime.methods import parse_method
from fastblt.runtime.text import TextDecoder

# A terminal must not obey control characters that a model came up with.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class PromptError(ValueError):
    """No usable prompt."""


class Writer(Protocol):
    """Takes the chunks of a generation."""

    def write(self, chunk: Chunk) -> None:
        """Print one chunk."""
        ...

    def finish(self) -> None:
        """Print what is left."""
        ...


@dataclass(frozen=True)
class GenerateRequest:
    """How to generate; the fields are `BltRuntime.generate`'s."""

    max_new_bytes: int = 256
    method: str = "s:8"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


def run(
    bundle: Path,
    request: GenerateRequest,
    *,
    prompt: str | None,
    prompt_file: Path | None,
    backend: str,
    provider: str,
    max_bytes: int | None,
    show: bool,
    stats: bool,
) -> None:
    """Generate after a prompt and print; statistics go to stderr, after ``--show`` to stdout."""
    parse_method(request.method)  # a wrong name is told before a large bundle is read
    data, origin = read_prompt(prompt, prompt_file)
    capacity = max_bytes or default_capacity(backend, max(1, len(data) + request.max_new_bytes))
    runtime = BltRuntime.from_pretrained(bundle, provider=provider, backend=backend, max_bytes=capacity)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the locale cannot encode is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    writer: Writer
    if show:
        console = Console(highlight=False)
        writer = Show(console, data)
        writer.legend()
    else:
        console = Console(stderr=True, highlight=False)
        writer = Plain(sys.stdout)
        if origin:
            console.out(f"{origin}: {escaped(data)}", highlight=False)
    generation = generate(runtime, data, request, writer)
    if show or stats:
        console.print(statistics(generation, runtime.config, request.method))


def generate(runtime: BltRuntime, prompt: bytes, request: GenerateRequest, writer: Writer) -> Generation:
    """Generate, handing every chunk to ``writer`` as it comes."""
    generation = runtime.generate(
        prompt,
        request.max_new_bytes,
        method=request.method,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=tuple(os.fsencode(text) for text in request.stop),
        on_chunk=writer.write,
    )
    writer.finish()
    return generation


def read_prompt(prompt: str | None, prompt_file: Path | None) -> tuple[bytes, str]:
    """The prompt's bytes, and where they come from if the user did not say.

    Arguments of a command are bytes too: those that are no UTF-8 arrive unchanged.

    Raises:
        PromptError: both are given.
        OSError: the file cannot be read.
    """
    if prompt is not None and prompt_file is not None:
        raise PromptError("prompt: found both PROMPT and --prompt-file, expected at most one")
    if prompt_file is not None:
        return (sys.stdin.buffer.read() if str(prompt_file) == "-" else prompt_file.read_bytes()), ""
    if prompt is not None:
        return os.fsencode(prompt), ""
    chosen = default_prompt()
    return chosen.data, f"prompt {chosen.id} ({chosen.document})"


class Plain:
    """New bytes as they are: text on a terminal, raw bytes into a file or a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._decoder = TextDecoder()  # characters may be split over chunks

    def write(self, chunk: Chunk) -> None:
        """Print one chunk."""
        if self._terminal:
            self._stream.write(self._decoder.decode(chunk.data).translate(_CONTROLS))
            self._stream.flush()
        else:
            self._stream.buffer.write(chunk.data)
            self._stream.buffer.flush()

    def finish(self) -> None:
        """Print the bytes of an unfinished character, and end the line on a terminal."""
        if self._terminal:
            self._stream.write(self._decoder.finish() + "\n")
            self._stream.flush()


def statistics(generation: Generation, config: BltConfig, method: str) -> Table:
    """What the generation did and what it cost."""
    stats = generation.stats
    table = Table(box=None, show_header=False, pad_edge=False)
    accepted = "nothing drafted"
    if stats.acceptance is not None:
        accepted = f"{stats.accepted} of {stats.drafted} ({100 * stats.acceptance:.1f} %)"
    table.add_row("method", method)
    table.add_row("prompt, new bytes", f"{stats.prompt_bytes}, {stats.new_bytes} (ended by {generation.finish})")
    table.add_row("time", f"{stats.total_seconds:.3f} s, first byte after {1e3 * stats.first_byte_seconds:.1f} ms")
    table.add_row("speed", f"{stats.bytes_per_second:.1f} bytes/s, prompt included")
    calls = ", ".join(f"{part} {stats.nfe[part]}" for part in ("patcher", "encoder", "global", "decoder"))
    table.add_row("NFE", calls)
    table.add_row("rounds", str(stats.rounds))
    table.add_row("accepted drafts", accepted)
    table.add_row("traffic", f"{stats.estimated_gb(config):.4g} GB by the paper's formula (16-bit weights),")
    table.add_row("", f"{stats.moved_bytes / 1e9:.4g} GB of weights and caches read")
    return table
