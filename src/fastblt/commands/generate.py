"""``fastblt generate``: continues a prompt, and prints bytes as they are decided."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Protocol, TextIO

import typer
from rich.console import Console
from rich.table import Table

from fastblt.commands.checks import check_backend, check_bundle, check_file_target
from fastblt.commands.errors import UsageError, usage_errors
from fastblt.commands.escapes import visible_lines
from fastblt.commands.options import (
    BackendOption,
    BundleArgument,
    MaxBytesOption,
    MethodOption,
    ProviderOption,
    RowFloorOption,
    ThreadsOption,
)
from fastblt.commands.output import add_row, left, make_table, print_table, progress, stderr, stdout, words
from fastblt.commands.prompts import default_prompt
from fastblt.commands.show import Show, escaped
from fastblt.commands.tuned import ProfileOption, tuned
from fastblt.models.config import BltConfig
from fastblt.models.limits import GRAMMAR_BYTES, TEXT_BYTES
from fastblt.models.reading import read_text
from fastblt.runtime.backends.protocol import parts_in
from fastblt.runtime.backends.registry import DEFAULT_BACKEND, default_capacity
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk, Generation
from fastblt.runtime.measure.report import write_json
from fastblt.runtime.request import GenerationRequest
from fastblt.runtime.sequences.saved_file import saved_bytes
from fastblt.runtime.text import TextDecoder
from fastblt.runtime.turns import BusyError


class Writer(Protocol):
    """Prints the chunks of a generation."""

    def write(self, chunk: Chunk) -> None:
        """Print one chunk."""
        ...

    def finish(self) -> None:
        """Print what is left."""
        ...


def command(
    bundle: BundleArgument,
    prompt: Annotated[str | None, typer.Argument(help="Text to continue  [default: a held-out text]")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="File with the prompt, any bytes; - is standard input.")
    ] = None,
    max_new_bytes: Annotated[
        int, typer.Option(min=0, max=TEXT_BYTES, help="Bytes to generate, at most.")
    ] = GenerationRequest.max_new_bytes,
    method: MethodOption = None,
    temperature: Annotated[
        float, typer.Option(help="Randomness of sampling; 0: always the likeliest byte.")
    ] = GenerationRequest.temperature,
    top_p: Annotated[
        float, typer.Option(help="Sample from the fewest likeliest bytes with this probability together, in (0, 1].")
    ] = GenerationRequest.top_p,
    top_k: Annotated[
        int, typer.Option(min=0, help="Sample from this many likeliest bytes; 0: from all.")
    ] = GenerationRequest.top_k,
    min_p: Annotated[
        float,
        typer.Option(help="Sample from bytes at least this many times as likely as the likeliest; 0: from all."),
    ] = GenerationRequest.min_p,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BYTE=VALUE",
            help="Make a byte (0 to 255) likelier or less likely: add VALUE to its logit; may be repeated.",
        ),
    ] = None,
    ban: Annotated[list[str] | None, typer.Option(help="Never write the bytes of this text; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling  [default: a random one]")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    json_schema: Annotated[Path | None, typer.Option(help="Write JSON that fits the JSON schema in this file.")] = None,
    json_object: Annotated[bool, typer.Option("--json-object", help="Write a JSON object.")] = False,
    regex: Annotated[str | None, typer.Option(help="Write a text that matches this regular expression.")] = None,
    grammar: Annotated[Path | None, typer.Option(help="Write a text of the Lark grammar in this file.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="Write one of these texts; may be repeated.")] = None,
    backend: BackendOption = DEFAULT_BACKEND,
    provider: ProviderOption = "auto",
    threads: ThreadsOption = None,
    profile: ProfileOption = True,
    max_bytes: MaxBytesOption = None,
    row_floor: RowFloorOption = 1,
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up/--no-warm-up",
            help="On a GPU, bind, compile and record all that texts can need before the first byte.",
        ),
    ] = True,
    session: Annotated[
        Path | None,
        typer.Option(
            help="Continue the text that is saved in this file, and save it at the end; the file is made if missing."
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Mark patch boundaries and where each byte came from, in color.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print statistics to standard error.")] = False,
    logprobs: Annotated[
        Path | None,
        typer.Option(help="Write each new byte and the natural logarithm of its probability to this JSON file."),
    ] = None,
) -> None:
    """Generate text from a bundle.

    New bytes are printed as soon as they are decided: as text to a terminal, unchanged to a file or a pipe.
    """
    with usage_errors():
        request = GenerationRequest(
            max_new_bytes=max_new_bytes,
            method=method,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            logit_bias=parse_bias(logit_bias or ()),
            banned_bytes=parse_ban(ban or ()),
            seed=seed,
            stop=tuple(map(os.fsencode, stop or ())),
            logprobs=logprobs is not None,
            response_format=response_format(json_schema, json_object=json_object),
            regex=regex,
            grammar=None if grammar is None else read_text(grammar, GRAMMAR_BYTES),
            choice=choice or None,
        )
    check_backend(backend)
    check_file_target(logprobs)
    check_file_target(session)
    saved = session if session is not None and session.exists() else None
    version = _version(session)
    before = 0 if saved is None else saved_bytes(saved)
    # A saved text is continued without a prompt, too.
    data, origin = (b"", "") if saved and prompt is None and prompt_file is None else read_prompt(prompt, prompt_file)
    check_bundle(bundle, backend=backend)
    chosen = tuned(bundle, backend, provider, method=method, threads=threads, profile=profile)
    request = replace(request, method=chosen.method)
    capacity = max_bytes or default_capacity(backend, max(1, before + len(data) + max_new_bytes))
    with progress("warming up", delay=1.0) as on_progress:
        runtime = BltRuntime.from_pretrained(
            chosen.bundle,
            provider=provider,
            backend=backend,
            max_bytes=capacity,
            threads=chosen.threads,
            row_floor=row_floor,
            warm_up=warm_up,
            on_progress=on_progress,
        )
    text = runtime.load_sequence(saved) if saved else runtime.sequence()
    console, writer = _open_output(data, origin, show=show)
    generation = text.generate(data, request=request, on_chunk=writer.write)
    writer.finish()
    if session is not None:
        if _version(session) != version:
            raise BusyError(
                f"{session}: found it changed since it was read, expected one command at a time; it is kept"
            )
        text.save(session)
    if show or stats:
        print_table(console, statistics(generation, runtime.config, request.decoding_method().name))
    if logprobs is not None:
        write_json(logprobs, {"bytes": list(generation.data), "logprobs": list(generation.logprobs)})


def _version(path: Path | None) -> tuple[int, int, int] | None:
    """Return what changes whenever a file is replaced; None where there is no file."""
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _open_output(prompt: bytes, origin: str, *, show: bool) -> tuple[Console, Writer]:
    """Return the console for statistics and what prints the text; name a prompt that the user did not choose."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the locale cannot encode is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    if show:
        console = stdout()
        view = Show(console, prompt)
        view.legend()
        return console, view
    console = stderr()
    if origin:
        console.out(f"{origin}: {escaped(prompt)}", highlight=False)
    return console, Plain(sys.stdout)


def parse_bias(items: Sequence[str]) -> dict[int, float]:
    """Return what to add to the logits of bytes, by byte value.

    Args:
        items: such as ``10=-2.5``.

    Raises:
        ValueError: one is malformed. `GenerationRequest` checks the range of its numbers.
    """
    found: dict[int, float] = {}
    for item in items:
        byte, _, value = item.partition("=")
        try:
            found[int(byte, 0)] = float(value)
        except ValueError:
            raise ValueError(f"--logit-bias: found {item!r}, expected BYTE=VALUE, such as 10=-2.5") from None
    return found


def response_format(schema: Path | None, *, json_object: bool) -> dict[str, Any] | None:
    """Return the form of a JSON text, as `GenerationRequest` has it; None: any text.

    Raises:
        ValueError: both are given, or the file is not JSON.
        OSError: the file cannot be read.
    """
    if schema is None:
        return {"type": "json_object"} if json_object else None
    if json_object:
        raise ValueError("--json-object: found it together with --json-schema, expected at most one of them")
    try:
        content = json.loads(read_text(schema, GRAMMAR_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{schema}: {error}, expected a JSON schema") from None
    return {"type": "json_schema", "json_schema": {"schema": content}}


def parse_ban(texts: Sequence[str]) -> bytes:
    """Return the bytes of all texts, none of which may be written.

    Raises:
        ValueError: a text is empty.
    """
    if "" in texts:
        raise ValueError("--ban: found an empty text, expected at least one byte")
    return b"".join(map(os.fsencode, texts))


def read_prompt(prompt: str | None, prompt_file: Path | None) -> tuple[bytes, str]:
    """Return the prompt's bytes, and where they come from if the user did not choose them.

    Arguments of a command are bytes too: those that are not UTF-8 arrive unchanged.

    Raises:
        UsageError: both are given.
        OSError: the file cannot be read.
        ValueError: it is larger than any text can be.
    """
    if prompt is not None and prompt_file is not None:
        raise UsageError("prompt: found both PROMPT and --prompt-file, expected at most one")
    if prompt_file is not None:
        return _read_bytes(prompt_file), ""
    if prompt is not None:
        return os.fsencode(prompt), ""
    chosen = default_prompt()
    return chosen.data, f"prompt {chosen.id} ({chosen.document})"


def _read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, a pipe or, for ``-``, standard input."""
    if str(path) != "-":
        with path.open("rb") as file:
            data = _read_bounded(file)
    else:
        try:
            data = _read_bounded(sys.stdin.buffer)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard input") from None
    if len(data) > TEXT_BYTES:
        raise ValueError(f"{path}: found more than {TEXT_BYTES} bytes, expected a prompt of at most as many")
    return data


def _read_bounded(file: BinaryIO) -> bytes:
    """Return what a file contains, or of one that is too large, a little more than `TEXT_BYTES`."""
    pieces = iter(partial(file.read, 2**20), b"")  # asked for all at once, Python would make room for it first
    return b"".join(islice(pieces, TEXT_BYTES // 2**20 + 1))


class Plain:
    """Prints new bytes: as text on a terminal, unchanged into a file or a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._decoder = TextDecoder()  # characters may be split over chunks

    def write(self, chunk: Chunk) -> None:
        """Print one chunk."""
        if self._terminal:
            self._stream.write(visible_lines(self._decoder.decode(chunk.data)))
            self._stream.flush()
        else:
            self._stream.buffer.write(chunk.data)
            self._stream.buffer.flush()

    def finish(self) -> None:
        """Print the bytes of an unfinished character, and end the line on a terminal."""
        if self._terminal:
            self._stream.write(visible_lines(self._decoder.finish()) + "\n")
            self._stream.flush()


def statistics(generation: Generation, config: BltConfig, method: str) -> Table:
    """Return a table of what a generation did and what it cost."""
    stats = generation.stats
    accepted = "no drafts"
    if stats.acceptance is not None:
        accepted = f"{stats.accepted} of {stats.drafted} bytes ({100 * stats.acceptance:.1f} %)"
    prompt = f"{stats.prompt_bytes} ({stats.reused_bytes} read earlier)" if stats.reused_bytes else stats.prompt_bytes
    calls = ", ".join(f"{part} {stats.nfe[part]}" for part in parts_in(stats.nfe))
    rows = {
        "method": method,
        "prompt, new bytes": f"{prompt}, {stats.new_bytes} (ended by {generation.finish})",
        "time": f"{stats.total_seconds:.3f} s, first byte after {1e3 * stats.first_byte_seconds:.1f} ms",
        "speed": f"{stats.bytes_per_second:.1f} bytes/s, prompt included",
        "model calls (NFE)": calls,
        "rounds": str(stats.rounds),
        "accepted drafts": accepted,
        **({"forced by the grammar": f"{stats.forced} bytes"} if stats.forced else {}),
        "estimated traffic": f"{stats.estimated_gb(config):.4g} GB of 16-bit weights (formula of arXiv 2605.08044)",
        "memory read": f"{stats.moved_bytes / 1e9:.4g} GB of weights and caches",
    }
    table = make_table(left(""), words(""), header=False)
    for name, value in rows.items():
        add_row(table, name, value)
    return table
