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


class Target(StrEnum):
    """Layouts that checkpoints can be written in."""

    TRANSFORMERS = "transformers"
    FASTBLT = "fastblt"


class EngineTarget(StrEnum):
    """Compilers of engines."""

    TENSORRT_RTX = "tensorrt-rtx"
    TENSORRT = "tensorrt"


class Device(StrEnum):
    """Where training runs."""

    CPU = "cpu"
    CUDA = "cuda"


class Provider(StrEnum):
    """Where a bundle runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


BundleArgument = Annotated[Path, typer.Argument(help="Folder that `fastblt export` wrote.")]
CheckpointArgument = Annotated[
    str,
    typer.Argument(help="Checkpoint: a folder, an id of the Hugging Face hub, or random:PRESET (random weights)."),
]
PatcherOption = Annotated[
    str | None, typer.Option(help="Entropy model to use: its folder or hub id  [default: the checkpoint's own]")
]
DocumentMasksOption = Annotated[
    bool | None,
    typer.Option(
        "--document-masks/--no-document-masks",
        help="Keep self-attention inside a document, which EOS ends  [default: as the checkpoint's origin does]",
    ),
]
ProviderOption = Annotated[
    Provider,
    typer.Option(
        help="Where onnxruntime and eager run; auto: the CPU, until an audit has passed on a GPU; tensorrt: ONNX "
        "Runtime's provider for TensorRT 10."
    ),
]
BackendOption = Annotated[
    str, typer.Option(help="onnxruntime; tensorrt or tensorrt-rtx (engines of `fastblt compile`); eager (PyTorch).")
]


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
    checkpoint: CheckpointArgument,
    bundle: Annotated[Path, typer.Argument(help="Folder to write, all of it or nothing.")],
    dtype: Annotated[Dtype, typer.Option(help="Type of weights and caches.")] = Dtype.FP32,
    hash_tables: Annotated[
        HashTables, typer.Option(help="host: memory-mapped beside the graphs; graph: inside the encoder.")
    ] = HashTables.HOST,
    lowered: Annotated[
        bool,
        typer.Option("--lowered", help="Write graphs without attention and cache updates, for TensorRT before 10.15."),
    ] = False,
    patcher: PatcherOption = None,
    document_masks: DocumentMasksOption = None,
) -> None:
    """Export a checkpoint to ONNX graphs.

    Layouts of fastblt, transformers (BltForCausalLM) and Meta (hub and release folders) are told apart by content.
    The bundle is compared with PyTorch before it appears.
    """
    from fastblt.commands.export import run

    run(
        checkpoint,
        bundle,
        dtype=dtype.value,
        hash_tables=hash_tables.value,
        lowered=lowered,
        patcher=patcher,
        document_masks=document_masks,
    )


@app.command()
@one_line_errors
def convert(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write, all of it or nothing.")],
    to: Annotated[Target, typer.Option(help="Layout to write.")],
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the weights  [default: as they are]")] = None,
    patcher: PatcherOption = None,
    document_masks: DocumentMasksOption = None,
) -> None:
    """Write a checkpoint in another layout.

    Converting back restores every bit, unless --dtype rounds.
    """
    from fastblt.commands.convert import run

    run(
        checkpoint,
        out,
        to.value,
        dtype=dtype.value if dtype else None,
        patcher=patcher,
        document_masks=document_masks,
    )


@app.command()
@one_line_errors
def calibrate(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write, all of it or nothing.")],
    scheme: Annotated[
        str,
        typer.Option(help="w8, w4 (weights of 8 or 4 bits); int8, fp8 (weights and inputs)."),
    ],
    block: Annotated[
        int | None,
        typer.Option(help="Inputs that share a scale: w8 0 (per channel) or 128, w4 32, 64 or 128  [default: 0; 32]"),
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Text to calibrate on; can be repeated  [default: shipped prompts]")
    ] = None,
    heldout: Annotated[
        list[Path] | None, typer.Option(help="Text to measure on; can be repeated  [default: held-out text]")
    ] = None,
    budget: Annotated[
        str,
        typer.Option(help="Most that may be lost: bpb (relative), agreement, boundaries, masked, acceptance=PERCENT%."),
    ] = "bpb=1%",
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Fail instead of keeping some layers in higher precision.")
    ] = False,
    patcher: Annotated[
        bool, typer.Option("--patcher", help="Quantise the patcher, too: patches end elsewhere.")
    ] = False,
    rounding: Annotated[str, typer.Option(help="Of weights: rtn, gptq or auto (gptq, but for fp8).")] = "auto",
    ranges: Annotated[
        str, typer.Option("--range", help="Of inputs: minmax, percentile, entropy, mse or auto (the best).")
    ] = "auto",
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure every block alone, even where the budget does not need it.")
    ] = False,
    samples: Annotated[int, typer.Option(help="Recorded calls of each graph.")] = 256,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts that recording goes on from.")] = 16,
    traces: Annotated[
        Path | None, typer.Option(help="Keep the recording in this folder; one that was interrupted goes on.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows of each held-out text, at most.")] = 6,
    window_bytes: Annotated[int, typer.Option(min=64, help="Bytes of a window.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of what is sampled.")] = 0,
) -> None:
    """Quantise a bundle, and measure what it costs.

    Bits per byte, agreement, masked accuracy and acceptance on held-out text decide: beyond the budget nothing is
    written.
    """
    from fastblt.commands.calibrate import run

    run(
        bundle,
        out,
        scheme=scheme,
        data=data or [],
        heldout=heldout or [],
        budget=budget,
        block=block,
        rounding=rounding,
        ranges=ranges,
        samples=samples,
        prompts=prompts,
        windows=windows,
        window_bytes=window_bytes,
        seed=seed,
        patcher=patcher,
        uniform=uniform,
        sensitivity=sensitivity,
        traces=traces,
    )


@app.command("compile")
@one_line_errors
def compile_engines(
    bundle: BundleArgument,
    target: Annotated[
        EngineTarget,
        typer.Option(help="tensorrt-rtx: for RTX GPUs, needs no GPU; tensorrt: for the GPU of this machine."),
    ] = EngineTarget.TENSORRT_RTX,
    sm: Annotated[
        str | None,
        typer.Option(help="Compute capabilities, with commas between  [default: this GPU's, else 86,89,120]"),
    ] = None,
    max_bytes: Annotated[
        str,
        typer.Option(help="Capacities, prompt and new bytes, with commas between; a run takes the least that does."),
    ] = "512,2048,8192",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Refuse a bundle of another type; engines have the type of the graphs.")
    ] = None,
    max_patch_bytes: Annotated[
        int | None, typer.Option(min=1, help="Longest patch, where the model sets no limit  [default: 512]")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File that TensorRT keeps its measurements of kernels in.")
    ] = None,
) -> None:
    """Compile a bundle's graphs to engines of TensorRT.

    They go into the bundle's own folder, engines/, beside others.
    """
    from fastblt.commands.compile import run
    from fastblt.commands.eval import numbers

    run(
        bundle,
        target.value,
        None if sm is None else tuple(numbers("sm", sm, int)),
        tuple(numbers("max-bytes", max_bytes, int)),
        dtype=None if dtype is None else dtype.value,
        max_patch_bytes=max_patch_bytes,
        timing_cache=timing_cache,
    )


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
        str,
        typer.Option(
            help="ar; s:K (drafts of K bytes, verified); d:B@RULE (denoised blocks); dv:B@RULE (verified, too); auto"
        ),
    ] = "s:8",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the sampled distribution, in (0, 1].")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling  [default: a random one]")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; can be repeated.")] = None,
    backend: BackendOption = "onnxruntime",
    provider: ProviderOption = Provider.AUTO,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Capacity of the caches, prompt and new bytes  [default: 4096; engines: what is needed]"
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Mark patch boundaries and where each byte came from, in colour.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print statistics to standard error.")] = False,
) -> None:
    """Generate text.

    New bytes go to standard output as they are decided: as text to a terminal, unchanged to a file or a pipe.
    """
    from fastblt.commands.generate import GenerateRequest, run

    request = GenerateRequest(
        max_new_bytes=max_new_bytes,
        method=method,
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
        "ar,s:4,s:8,s:16,auto"
    ),
    against: Annotated[
        str,
        typer.Option(
            help="Also measure these, with commas between: BACKEND (its ar), BACKEND/METHOD, or transformers "
            "(generate without its caches; BLT only)."
        ),
    ] = "",
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 8,
    prompt_bytes: Annotated[int, typer.Option(min=1, help="Bytes of each prompt.")] = 64,
    corpora: Annotated[
        str, typer.Option(help="Take the prompts from these, one after the other: web,pycode  [default: all in turn]")
    ] = "",
    max_new_bytes: Annotated[int, typer.Option(min=2, help="Bytes to generate after each.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each prompt.")] = 1,
    replay: Annotated[
        str | None,
        typer.Option(
            help="Measure cost without trained weights: run the real graphs, but let drafts be accepted, blocks take "
            "steps and patches close as given. Items with commas between: acceptance=0.91, steps=2.92, patch=2.05, "
            "for one method METHOD/acceptance=0.77 or METHOD/steps=2.92, or paper, the paper's 1B figures."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
    backend: BackendOption = "onnxruntime",
    provider: ProviderOption = Provider.AUTO,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads  [default: the backend's]")] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Capacity of the caches  [default: 4096 or more; engines: what is needed]")
    ] = None,
) -> None:
    """Measure ways of decoding.

    They run alternately in one process on held-out prompts, greedily, and their output is compared. Figures of a
    --replay are about speed and cost only.
    """
    from fastblt.commands.bench import run, split_names
    from fastblt.runtime.measure.bench.run import BenchRequest

    request = BenchRequest(
        methods=tuple(split_names(methods)),
        against=tuple(split_names(against)),
        backend=backend,
        provider=provider.value,
        threads=threads,
        max_bytes=max_bytes,
        max_new_bytes=max_new_bytes,
        repeats=repeats,
        replay=replay,
    )
    run(bundle, request, json, prompts=prompts, prompt_bytes=prompt_bytes, corpora=corpora)


@app.command()
@one_line_errors
def audit(
    bundle: BundleArgument,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods, with commas between  [default: one or more of each kind that the model can run]"),
    ] = None,
    backend: BackendOption = "onnxruntime",
    reference: Annotated[
        str | None,
        typer.Option(help="Backend that is the truth: eager or onnxruntime  [default: eager; quantised: --backend]"),
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Held-out prompts  [default: 64]")] = None,
    bytes: Annotated[  # the option's name
        int | None,
        typer.Option(min=1, help="Instead of --prompts: go on until every method has written so many bytes."),
    ] = None,
    max_new_bytes: Annotated[int, typer.Option(min=1, help="Bytes to generate after each prompt.")] = 256,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
    provider: ProviderOption = Provider.AUTO,
) -> None:
    """Compare greedy output with the reference's, byte for byte.

    A lossless method is compared with autoregressive output, any other with the same method's on the reference
    backend. A difference at which one of the reference's choices was within rounding is a float tie; any other is a
    fault, and the command fails.
    """
    from fastblt.commands.audit import run
    from fastblt.commands.bench import split_names
    from fastblt.runtime.measure.audit.run import AuditRequest

    chosen = None if methods is None else tuple(split_names(methods))
    run(bundle, AuditRequest(chosen, backend, reference, provider.value, prompts, max_new_bytes, bytes), json)


@app.command()
@one_line_errors
def verify(
    bundle: BundleArgument,
    backend: Annotated[
        str | None,
        typer.Option(help="tensorrt, tensorrt-rtx or onnxruntime  [default: that of the bundle's engines]"),
    ] = None,
    provider: Annotated[Provider, typer.Option(help="Of onnxruntime.")] = Provider.CUDA,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods, with commas between  [default: one or more of each kind that the model can run]"),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts of the audit.")] = 4,
    max_new_bytes: Annotated[int, typer.Option(min=1, help="Bytes to generate after each prompt.")] = 64,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
) -> None:
    """Prove that a bundle runs right on this machine's GPU.

    Real rounds of every method run on the GPU and on the CPU, with the same inputs: every output and every cache is
    compared. Then texts are, byte for byte. Exit status 0 means that all differences are rounding.
    """
    from fastblt.commands.bench import split_names
    from fastblt.commands.verify import run
    from fastblt.runtime.measure.verify.run import VerifyRequest

    chosen = None if methods is None else tuple(split_names(methods))
    run(bundle, VerifyRequest(backend, provider.value, chosen, prompts, max_new_bytes), json)


@app.command("eval")
@one_line_errors
def evaluate(
    bundle: BundleArgument,
    data: Annotated[
        list[Path] | None, typer.Option(help="Score this file; can be repeated  [default: held-out text]")
    ] = None,
    backend: BackendOption = "onnxruntime",
    against: Annotated[
        str,
        typer.Option(help="Compare with this backend; auto: eager, where PyTorch is installed; none: do not."),
    ] = "auto",
    windows: Annotated[int, typer.Option(min=1, help="Windows of each text, at most.")] = 6,
    window_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a window.")] = 512,
    anchors: Annotated[int, typer.Option(min=1, help="Places in a window where drafts and blocks begin.")] = 4,
    k: Annotated[str, typer.Option(help="BLT-S draft lengths, with commas between.")] = "4,8,16",
    blocks: Annotated[
        str | None, typer.Option(help="Block sizes, with commas between  [default: half the trained one, and that]")
    ] = None,
    draft_rules: Annotated[str, typer.Option(help="Unmasking rules of BLT-DV: what may follow dv:8@.")] = (
        "one,0.3,eb1.5"
    ),
    rules: Annotated[str, typer.Option(help="Unmasking rules of BLT-D: what may follow d:8@.")] = (
        "0.5,0.7,0.9,eb1.0,one"
    ),
    mask_rates: Annotated[str, typer.Option(help="Rates t at which bytes of a block are hidden.")] = (
        "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"
    ),
    prompts: Annotated[int, typer.Option(min=1, help="Prompts that text is generated after.")] = 8,
    prompt_bytes: Annotated[int, typer.Option(min=1, help="Bytes of each prompt.")] = 64,
    max_new_bytes: Annotated[int, typer.Option(min=1, help="Bytes to generate after each.")] = 128,
    top_p: Annotated[str, typer.Option(help="Nuclei of sampled text.")] = "0.5,0.8,1",
    gamma: Annotated[str, typer.Option(help="Entropy bounds of sampled BLT-D text, nats.")] = "1.0,2.0,4.0,8.0",
    seed: Annotated[int, typer.Option(min=0, help="Of the hidden bytes and of sampling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for eval.json and the plots.")] = None,
    plots: Annotated[bool, typer.Option(help="Draw plots (needs matplotlib).")] = True,
    provider: ProviderOption = Provider.AUTO,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads  [default: the backend's]")] = None,
) -> None:
    """Score a bundle on true text, and what it generates.

    Bits per byte, masked accuracy, acceptance of drafts, BLT-D beside autoregressive text, diversity against cost; a
    second backend has to give the same. An empty list leaves its figures out.
    """
    from fastblt.commands.bench import split_names
    from fastblt.commands.eval import numbers, run
    from fastblt.runtime.measure.scoring.plan import ScoringRequest
    from fastblt.runtime.measure.scoring.run import EvalRequest

    scoring = ScoringRequest(
        k=numbers("k", k, int),
        blocks=None if blocks is None else numbers("blocks", blocks, int),
        draft_rules=split_names(draft_rules),
        rules=split_names(rules),
        mask_rates=numbers("mask-rates", mask_rates, float),
        top_p=numbers("top-p", top_p, float),
        gamma=split_names(gamma),
        anchors=anchors,
        new_bytes=max_new_bytes,
        seed=seed,
    )
    run(
        bundle,
        EvalRequest(
            backend=backend,
            against=against,
            provider=provider.value,
            threads=threads,
            windows=windows,
            window_bytes=window_bytes,
            scoring=scoring,
        ),
        out,
        data=tuple(data or ()),
        prompts=prompts,
        prompt_bytes=prompt_bytes,
        plots=plots,
    )


@app.command()
@one_line_errors
def inspect(
    path: Annotated[
        str, typer.Argument(help="Bundle, or checkpoint: a folder of any layout, a hub id, or random:PRESET.")
    ],
    max_bytes: Annotated[int, typer.Option(min=1, help="Prompt and new bytes that memory is told for.")] = 4096,
    patcher: PatcherOption = None,
    json: Annotated[Path | None, typer.Option(help="Write the facts to this file.")] = None,
) -> None:
    """Describe a checkpoint or a bundle, without loading its weights.

    Geometry, parameters, bytes on disk, memory on device and host, graphs, estimated weight traffic of each method.
    """
    from fastblt.commands.inspect import run

    run(path, max_bytes, patcher, json)


if __name__ == "__main__":
    app()


@app.command()
@one_line_errors
def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="Also say what this means for a bundle.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write what was found to this file.")] = None,
) -> None:
    """Say what works on this machine, and what to install.

    Looks for driver, GPUs, CUDA, TensorRT, ONNX Runtime and PyTorch; nothing has to be there.
    """
    from fastblt.commands.doctor import run

    run(bundle, json)


@app.command()
@one_line_errors
def pack(
    bundle: BundleArgument,
    archive: Annotated[
        Path | None, typer.Argument(help="File to write; .tar.gz is compressed  [default: BUNDLE.tar]")
    ] = None,
    engines: Annotated[str, typer.Option(help="all, none, or the name of one folder in BUNDLE/engines.")] = "all",
) -> None:
    """Write a bundle and its engines as one archive.

    The same content gives the same bytes; SHA256SUMS inside checks every file.
    """
    from fastblt.commands.pack import run_pack

    run_pack(bundle, archive, engines)


@app.command()
@one_line_errors
def unpack(
    archive: Annotated[Path, typer.Argument(help="File that `fastblt pack` wrote.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make, all of it or nothing.")],
) -> None:
    """Unpack an archive and check every file."""
    from fastblt.commands.pack import run_unpack

    run_unpack(archive, folder)
