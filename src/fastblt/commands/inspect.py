"""``fastblt inspect``: what a checkpoint or a bundle is, told from its files without loading the weights."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open

from fastblt.commands.graphs import files_of, graph_table, tensor_table
from fastblt.models.config import BltConfig
from fastblt.models.parameters import ParameterCounts, count_parameters
from fastblt.runtime.bundle import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    MANIFEST_FILE,
    Manifest,
    load_config,
    load_manifest,
)
from fastblt.runtime.stats import RunStats

WEIGHTS_FILE = "model.safetensors"

# What the traffic estimate assumes; both figures are the paper's, for its 1B model (FR->EN, k = 8).
ESTIMATE_BYTES = 512
BYTES_PER_PATCH = 4.0
DRAFT = 8
ACCEPTANCE = 0.91

PARTS = {
    "patcher": "patcher",
    "encoder": "encoder",
    "global": "global_transformer",
    "decoder": "decoder",
    "byte embeddings": "byte_embeddings",
    "hash embeddings": "hash_embeddings",
}
_EMBEDDINGS = ("byte embeddings", "hash embeddings")
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


class InspectError(ValueError):
    """Nothing that can be inspected; the message names the file, what was found and what is expected."""


@dataclass(frozen=True)
class StoredWeights:
    """What the header of a weight file says, by part (keys of `PARTS`)."""

    elements: Counter[str]
    bytes: Counter[str]
    dtypes: dict[str, str]


def run(path: Path) -> None:
    """Print a description of a checkpoint folder or a bundle, whichever it is.

    Raises:
        InspectError: it is neither, or its weight file is damaged.
        BundleError: its manifest is not usable.
        ConfigError: its configuration is invalid.
    """
    console = Console(highlight=False)
    if (path / MANIFEST_FILE).is_file():
        describe_bundle(console, path)
    elif (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
        describe_checkpoint(console, path)
    else:
        found = "no such folder"
        if path.is_dir():
            found = f"a folder with {_some_names(path)}"
        elif path.exists():
            found = "a file"
        raise InspectError(
            f"{path}: found {found}, expected a checkpoint ({CONFIG_FILE}, {WEIGHTS_FILE}) "
            f"or a bundle ({MANIFEST_FILE})"
        )


def _some_names(folder: Path, most: int = 6) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


def describe_checkpoint(console: Console, path: Path) -> None:
    """Geometry, parameters and bytes per part, estimated traffic."""
    config = BltConfig.load(path / CONFIG_FILE)
    stored = read_weights(path / WEIGHTS_FILE)
    counts = count_parameters(config)
    console.print(f"checkpoint {path}: {config.name}", soft_wrap=True)
    _print_geometry(console, config)
    sizes = {part: (stored.bytes[part], stored.dtypes.get(part, "-")) for part in PARTS}
    console.print(parts_table(counts, sizes))
    for part, name in PARTS.items():
        if stored.elements[part] != getattr(counts, name):
            console.print(
                f"warning: {WEIGHTS_FILE} has {stored.elements[part]} elements of {part}, "
                f"{CONFIG_FILE} expects {getattr(counts, name)}",
                soft_wrap=True,
            )
    _print_estimate(console, config)


def describe_bundle(console: Console, path: Path) -> None:
    """The same for a bundle, and its graphs."""
    manifest = load_manifest(path)
    config = load_config(path)
    place = f"in {EMBEDDINGS_FILE}" if manifest.hash_tables == "host" else "inside the encoder graph"
    console.print(
        f"bundle {path}: {manifest.model}, {manifest.dtype}, opset {manifest.opset}, hash tables {place}",
        soft_wrap=True,
    )
    _print_geometry(console, config)
    console.print(parts_table(count_parameters(config), bundle_sizes(path, manifest)))
    console.print()
    console.print(graph_table(path, manifest))
    for graph in manifest.graphs.values():
        console.print()
        console.print(tensor_table(graph))
    _print_estimate(console, config)


def read_weights(path: Path) -> StoredWeights:
    """Sizes and types of the tensors of a checkpoint's weight file, by part.

    Raises:
        InspectError: the file is not readable as safetensors.
    """
    elements: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    dtypes: dict[str, set[str]] = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                piece = file.get_slice(name)
                part, dtype = part_of(name), str(piece.get_dtype())
                count = math.prod(piece.get_shape())
                elements[part] += count
                sizes[part] += count * _ITEM_BYTES.get(dtype, 1)
                dtypes.setdefault(part, set()).add(dtype)
    except (SafetensorError, OSError) as error:
        raise InspectError(f"{path}: not a readable safetensors file ({error})") from error
    return StoredWeights(elements, sizes, {part: "/".join(sorted(kinds)) for part, kinds in dtypes.items()})


def part_of(tensor: str) -> str:
    """The part (a key of `PARTS`) that a checkpoint tensor belongs to."""
    if "hash_embeddings" in tensor:
        return "hash embeddings"
    if "tok_embeddings" in tensor:
        return "byte embeddings"
    module = tensor.partition(".")[0]
    return "global" if module == "global_transformer" else module


def bundle_sizes(path: Path, manifest: Manifest) -> dict[str, tuple[int, str]]:
    """Bytes on disk and type of each part of a bundle; small embedding tables lie inside the graphs."""
    sizes = {
        part: (
            sum((path / name).stat().st_size for name in files_of(graph, manifest)),
            "fp32" if part == "patcher" else manifest.dtype,
        )
        for part, graph in manifest.graphs.items()
    }
    if EMBEDDINGS_FILE in manifest.files:
        sizes["hash embeddings"] = ((path / EMBEDDINGS_FILE).stat().st_size, manifest.dtype)
    return sizes


def _print_geometry(console: Console, config: BltConfig) -> None:
    console.print()
    console.print(geometry_table(config))
    console.print()
    console.print(facts_table(config))
    console.print()


def geometry_table(config: BltConfig) -> Table:
    """One row for each stack."""
    table = Table("stack", box=None, pad_edge=False)
    for heading in ("layers", "dim", "heads", "ffn", "window", "rope theta"):
        table.add_column(heading, justify="right")
    stacks = {
        "patcher": config.patcher,
        "encoder": config.encoder,
        "global": config.global_transformer,
        "decoder": config.decoder,
    }
    for name, stack in stacks.items():
        window = "all" if stack.window is None else str(stack.window)
        numbers = (stack.layers, stack.dim, stack.heads, stack.ffn_dim)
        table.add_row(name, *map(str, numbers), window, f"{stack.rope_theta:g}")
    return table


def facts_table(config: BltConfig) -> Table:
    """What else determines the model."""
    table = Table(box=None, show_header=False, pad_edge=False)
    longest = config.patching.max_patch_length
    limit = "of any length" if longest is None else f"of at most {longest} bytes"
    table.add_row("patches", f"close above {config.patching.threshold:g} nats, {limit}")
    n = config.hash
    sizes = ", ".join(map(str, n.sizes))
    table.add_row("hash tables", f"{n.tables} of {n.rows} rows x {config.encoder.dim} (n-grams of {sizes} bytes)")
    table.add_row("cross-attention", f"{config.cross_attn_k} queries per patch")
    blocks = f", blocks of up to {config.block_size} bytes" if config.block_size else ", no block diffusion"
    table.add_row("decoder input", config.decoder_input + blocks)
    return table


def parts_table(counts: ParameterCounts, sizes: dict[str, tuple[int, str]]) -> Table:
    """Parameters, share of the non-embedding parameters, bytes on disk and type of each part."""
    table = Table("part", box=None, pad_edge=False)
    for heading in ("parameters", "share", "MB on disk", "type"):
        table.add_column(heading, justify="right")
    whole = counts.total - counts.byte_embeddings - counts.hash_embeddings
    for part, name in PARTS.items():
        count = getattr(counts, name)
        share = "" if part in _EMBEDDINGS else f"{100 * count / whole:.1f} %"
        size, dtype = sizes.get(part, (0, ""))
        table.add_row(part, f"{count:,}", share, f"{size / 1e6:.2f}" if size else "", dtype)
    disk = sum(size for size, _ in sizes.values())
    table.add_row("total", f"{counts.total:,}", "", f"{disk / 1e6:.2f}", "", style="bold")
    return table


def estimated_gb(config: BltConfig, method_bytes: float, draft: int) -> float:
    """Weight traffic by the paper's formula for `ESTIMATE_BYTES` bytes at `BYTES_PER_PATCH`.

    Args:
        config: the model.
        method_bytes: bytes that one round gives.
        draft: bytes that one round drafts; 0: autoregressive.
    """
    rounds = ESTIMATE_BYTES / method_bytes
    # A verification makes all latents of the patches that it closes in one call.
    patch_calls = math.ceil(min(rounds, ESTIMATE_BYTES / BYTES_PER_PATCH))
    decoder = math.ceil(rounds * (draft + 1))
    # Where the decoder reads byte states, the encoder runs on every byte, drafted ones included.
    encoder = decoder if config.decoder_input == "encoder" else patch_calls
    nfe = Counter({"decoder": decoder, "encoder": encoder, "global": patch_calls})
    return RunStats(nfe=nfe).estimated_gb(config)


def _print_estimate(console: Console, config: BltConfig) -> None:
    ar = estimated_gb(config, 1, 0)
    speculative = estimated_gb(config, DRAFT * ACCEPTANCE + 1, DRAFT)
    console.print()
    console.print(
        f"estimated weight traffic for {ESTIMATE_BYTES} bytes: "
        f"ar {ar:.4g} GB, s:{DRAFT} {speculative:.4g} GB ({100 * (1 - speculative / ar):.0f} % less)",
        soft_wrap=True,
    )
    console.print(
        f"assumed: 16-bit weights, {BYTES_PER_PATCH:g} bytes per patch, {100 * ACCEPTANCE:.0f} % of drafts "
        "accepted, one encoder and global call a round; patcher and caches left out (the paper's formula)",
        soft_wrap=True,
    )
