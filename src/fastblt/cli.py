"""The command line: declares arguments, then calls the command's module in `fastblt.commands`.

Nothing but typer is imported before a command runs, so that ``fastblt --help`` is quick.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastblt import __version__
from fastblt.commands.errors import one_line_errors

app = typer.Typer(
    name="fastblt",
    help="Train, export and run byte-level language models (Byte Latent Transformers).",
    no_args_is_help=True,
    add_completion=False,
    # Both would import rich at every start.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    """Types that an exported bundle can compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class HashTables(StrEnum):
    """Where an exported bundle keeps its hash n-gram tables."""

    HOST = "host"
    GRAPH = "graph"


class Device(StrEnum):
    """Where training runs."""

    CPU = "cpu"
    CUDA = "cuda"


class Provider(StrEnum):
    """Where a bundle runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


BundleArgument = Annotated[Path, typer.Argument(help="Folder that `fastblt export` wrote.")]
ProviderOption = Annotated[
    Provider, typer.Option(help="Where it runs; auto: the CPU, until an audit has passed on a GPU.")
]
BackendOption = Annotated[str, typer.Option(help="onnxruntime, or eager (PyTorch).")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastblt {__version__}")
        raise typer.Exit


@app.callback()
def _fastblt(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, export and run byte-level language models (Byte Latent Transformers)."""


@app.command()
@one_line_errors
def data(
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    cache: Annotated[
        Path | None, typer.Option(help="Where fetched packages are kept  [default: ~/.cache/fastblt]")
    ] = None,
    allow_other_python: Annotated[
        bool,
        typer.Option("--allow-other-python", help="Accept the standard library of another CPython version."),
    ] = False,
) -> None:
    """Build the training corpus.

    Its sources are packages pinned by sha256.
    """
    from fastblt.commands.data import build

    build(out, cache, allow_other_python=allow_other_python)


@app.command()
@one_line_errors
def train(
    config: Annotated[str, typer.Argument(help="Recipe: a JSON file, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: state, log and, at the end, checkpoint.")],
    data: Annotated[Path, typer.Option(help="Corpus that `fastblt data` built.")] = Path("build/corpus"),
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after this much wall time; --resume goes on.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    init: Annotated[
        Path | None, typer.Option(help="Start from this checkpoint's weights and patcher  [default: random weights]")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where it trains.")] = Device.CPU,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads  [default: all cores]")] = None,
) -> None:
    """Train a model from a recipe."""
    from fastblt.commands.train import run

    run(config, out, data, max_seconds=max_seconds, resume=resume, init=init, device=device.value, threads=threads)


@app.command()
@one_line_errors
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    bundle: Annotated[Path, typer.Argument(help="Folder to write, all of it or nothing.")],
    dtype: Annotated[Dtype, typer.Option(help="Type of weights and caches.")] = Dtype.FP32,
    hash_tables: Annotated[
        HashTables, typer.Option(help="host: memory-mapped beside the graphs; graph: inside the encoder.")
    ] = HashTables.HOST,
) -> None:
    """Export a checkpoint to ONNX graphs.

    The bundle is compared with PyTorch before it appears.
    """
    from fastblt.commands.export import run

    run(checkpoint, bundle, dtype=dtype.value, hash_tables=hash_tables.value)


@app.command()
@one_line_errors
def generate(
    bundle: BundleArgument,
    prompt: Annotated[str | None, typer.Argument(help="Text to go on from  [default: held-out text]")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Read the prompt's bytes from a file; - is standard input.")
    ] = None,
    max_new_bytes: Annotated[int, typer.Option(min=0, help="Bytes to generate.")] = 256,
    method: Annotated[
        str | None,
        typer.Option(help="ar, or s:K (self-speculation, drafts of K bytes)  [default: s:8; ar when sampling]"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the sampled distribution, in (0, 1].")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling  [default: a random one]")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; can be repeated.")] = None,
    backend: BackendOption = "onnxruntime",
    provider: ProviderOption = Provider.AUTO,
    max_bytes: Annotated[int, typer.Option(min=1, help="Capacity of the caches: prompt and new bytes.")] = 4096,
    show: Annotated[
        bool, typer.Option("--show", help="Mark patch boundaries and where each byte came from, in colour.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print statistics to standard error.")] = False,
) -> None:
    """Generate text.

    New bytes go to standard output as they are decided: as text to a terminal, unchanged to a file or a pipe.
    """
    from fastblt.commands.generate import Request, run

    request = Request(
        max_new_bytes=max_new_bytes,
        method=method or ("ar" if temperature else "s:8"),
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
    )
    run(
        bundle,
        request,
        prompt=prompt,
        prompt_file=prompt_file,
        backend=backend,
        provider=provider.value,
        max_bytes=max_bytes,
        show=show,
        stats=stats,
    )


@app.command()
@one_line_errors
def bench(
    bundle: BundleArgument,
    methods: Annotated[str, typer.Option(help="Methods, with commas between; ar is always measured.")] = (
        "ar,s:4,s:8,s:16"
    ),
    against: Annotated[
        str,
        typer.Option(help="Also measure these, with commas between: BACKEND (its ar) or BACKEND/METHOD."),
    ] = "",
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 8,
    prompt_bytes: Annotated[int, typer.Option(min=1, help="Bytes of each prompt.")] = 64,
    max_new_bytes: Annotated[int, typer.Option(min=2, help="Bytes to generate after each.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each prompt.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
    backend: BackendOption = "onnxruntime",
    provider: ProviderOption = Provider.AUTO,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads  [default: the backend's]")] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Capacity of the caches  [default: 4096, or what is needed]")
    ] = None,
) -> None:
    """Measure ways of decoding.

    They run alternately in one process on held-out prompts, greedily, and their output is compared.
    """
    from fastblt.commands.bench import Setting, run

    run(
        bundle,
        Setting(
            methods=methods,
            against=against,
            backend=backend,
            provider=provider.value,
            threads=threads,
            max_bytes=max_bytes,
            prompts=prompts,
            prompt_bytes=prompt_bytes,
            max_new_bytes=max_new_bytes,
            repeats=repeats,
        ),
        json,
    )


@app.command()
@one_line_errors
def audit(
    bundle: BundleArgument,
    methods: Annotated[str, typer.Option(help="Methods, with commas between.")] = "ar,s:2,s:4,s:8,s:16",
    reference: Annotated[str, typer.Option(help="Backend whose ar is the truth: eager or onnxruntime.")] = "eager",
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 64,
    max_new_bytes: Annotated[int, typer.Option(min=1, help="Bytes to generate after each.")] = 256,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
    provider: ProviderOption = Provider.AUTO,
) -> None:
    """Compare greedy output with autoregressive output, byte for byte.

    A difference at which the reference's two logits are within rounding is a float tie; any other is a fault, and the
    command fails.
    """
    from fastblt.commands.audit import Setting, run
    from fastblt.commands.bench import split_names

    run(bundle, Setting(tuple(split_names(methods)), reference, provider.value, prompts, max_new_bytes), json)


@app.command()
@one_line_errors
def inspect(
    path: Annotated[Path, typer.Argument(help="Checkpoint folder or bundle.")],
) -> None:
    """Describe a checkpoint or a bundle.

    Geometry, parameters, bytes on disk, graphs, estimated weight traffic.
    """
    from fastblt.commands.inspect import run

    run(path)


if __name__ == "__main__":
    app()
