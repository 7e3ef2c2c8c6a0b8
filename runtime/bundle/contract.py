"""Derives what every graph and table of a bundle must be, from the configuration and three choices of the manifest.

Backends allocate memory by these types and sizes, so nothing is bound before manifest, graphs and tables have been
compared with them. The choices are the manifest's ``dtype``, ``operators`` and ``hash_tables``; all else follows from
the configuration. Graphs of earlier versions take one sequence: their first axis is 1 instead of ``batch``.
`fastblt.export` builds the graphs, and its modules describe what the tensors mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from fastblt.models.config import BltConfig, HashConfig, StackConfig
from fastblt.models.tokens import VOCAB_SIZE
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES
from fastblt.runtime.bundle.manifest import (
    BATCH,
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    KNOWN_GRAPHS,
    BundleError,
    GraphSpec,
    Manifest,
    TensorSpec,
)

_FLOAT, _INT64 = "float32", "int64"
#: Tensors of ``embeddings.safetensors``.
BYTE_TABLE, HASH_TABLE = "encoder.tok_embeddings.weight", "encoder.hash_embeddings.weight"
Size = int | str


class Interface(NamedTuple):
    """Holds the inputs and outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def activation_type(manifest: Manifest) -> str:
    """Return the tensor type of activations and caches, the patcher's excepted (float32).

    It is that of the manifest's dtype, or float32 in the twin of a bf16 bundle that runs on CPUs.
    """
    kind = BUNDLE_TYPES[manifest.dtype].name
    if kind != "bfloat16":
        return kind
    tensors = (spec for graph in manifest.graphs.values() for spec in (*graph.inputs, *graph.outputs))
    return kind if any(spec.dtype == kind for spec in tensors) else _FLOAT


def interfaces(
    config: BltConfig, activations: str, *, lowered: bool, tables_inside: bool, batches: bool = True
) -> dict[str, Interface]:
    """Return what each graph takes and returns, by part.

    Args:
        config: the model's.
        activations: tensor type of activations and caches, the patcher's excepted.
        lowered: whether graphs return new rows of their caches instead of updating them.
        tables_inside: whether the embedding tables are in the encoder's graph.
        batches: whether calls may hold several sequences.
    """
    choices = _Choices(activations, lowered, BATCH if batches else 1)
    graphs = {} if config.patcher is None else {"patcher": _patcher(config.patcher, choices)}
    graphs["encoder"] = _encoder(config, choices, tables_inside)
    graphs["global"] = _global(config, choices)
    graphs["decoder"] = _decoder(config, choices, reads_states=config.decoder_reads_states)
    if config.has_draft:
        graphs["draft"] = _decoder(config, choices, reads_states=False)
    return graphs


class _Choices(NamedTuple):
    """Holds what the graphs of a bundle have in common."""

    kind: str
    """Type of activations and caches."""
    lowered: bool
    batch: Size
    """First axis of every tensor but the decoder's keys and values of latents."""


def _patcher(stack: StackConfig, choices: _Choices) -> Interface:
    tensors, rows = _Stack(stack, choices._replace(kind=_FLOAT), "rows"), (choices.batch, "rows")
    ids, entropy = TensorSpec("ids", _INT64, rows, "ids"), TensorSpec("entropy", _FLOAT, rows, "entropy")
    return Interface((ids, *tensors.inputs()), (entropy, *tensors.updates()))


def _encoder(config: BltConfig, choices: _Choices, tables_inside: bool) -> Interface:
    kind, lowered, batch = choices
    dim, stack = config.encoder.dim, _Stack(config.encoder, choices, "rows")
    pool: tuple[Size, ...] = (batch, 1, "pool_slots", 3 * dim)
    inputs = (
        TensorSpec("ids", _INT64, (batch, "context_rows"), "ids_with_history")
        if tables_inside
        else TensorSpec("embedded", kind, (batch, "rows", dim), "embedding"),
        TensorSpec("patch_start", _INT64, (batch, "patches"), "patch_start"),
        TensorSpec("patch_end", _INT64, (batch, "patches"), "patch_end"),
        TensorSpec("pool_index", _INT64, (batch,), "pool_index"),
        TensorSpec("pool", kind, pool, "pool"),
        *stack.inputs(),
    )
    outputs = [TensorSpec("patch_embeddings", kind, (batch, "patches", config.patch_dim), "patch_embeddings")]
    if config.decoder_reads_states:
        outputs.append(TensorSpec("states", kind, (batch, "rows", dim), "states"))
    if lowered:
        outputs.append(TensorSpec("pool_rows", kind, (batch, 1, "rows", 3 * dim), "pool_rows"))
    else:
        outputs.append(TensorSpec("pool_out", kind, pool, "pool_update"))
    return Interface(inputs, (*outputs, *stack.updates()))


def _global(config: BltConfig, choices: _Choices) -> Interface:
    stack, (kind, _, batch) = _Stack(config.global_transformer, choices, "patches"), choices
    embeddings = TensorSpec("patch_embeddings", kind, (batch, "patches", config.patch_dim), "patch_embeddings")
    latents = TensorSpec("latents", kind, (batch, "patches", config.global_transformer.dim), "latents")
    # Sequence after sequence.
    latent_kv = _latent_kv(config, kind, "patches" if batch == 1 else "latents")
    return Interface((embeddings, *stack.inputs()), (latents, latent_kv, *stack.updates()))


def _decoder(config: BltConfig, choices: _Choices, *, reads_states: bool) -> Interface:
    stack, rows = _Stack(config.decoder, choices, "rows"), (choices.batch, "rows")
    inputs = (
        TensorSpec("states", choices.kind, (*rows, config.decoder.dim), "states")
        if reads_states
        else TensorSpec("ids", _INT64, rows, "ids"),
        _latent_kv(config, choices.kind, "latents"),
        TensorSpec("latent_index", _INT64, rows, "latent_index"),
        *stack.inputs(),
    )
    outputs = (
        TensorSpec("best", _INT64, rows, "best"),
        TensorSpec("probability", _FLOAT, rows, "probability"),
        TensorSpec("entropy", _FLOAT, rows, "entropy"),
        TensorSpec("logits", _FLOAT, (*rows, config.vocab_size), "logits"),
    )
    return Interface(inputs, (*outputs, *stack.updates()))


def _latent_kv(config: BltConfig, kind: str, count: str) -> TensorSpec:
    width = config.cross_attn_k * config.decoder.dim
    return TensorSpec("latent_kv", kind, (count, config.decoder.layers, 2, width), "latent_kv")


class _Stack(NamedTuple):
    """Describes the tensors that every graph has for its transformer stack."""

    config: StackConfig
    choices: _Choices
    rows: str

    def _caches(self) -> Iterator[str]:
        return (f"{kind}_{layer}" for layer in range(self.config.layers) for kind in ("key", "value"))

    def inputs(self) -> list[TensorSpec]:
        """Return what places the rows, then the caches."""
        kind, _, batch = self.choices
        placing = [
            TensorSpec("positions", _INT64, (batch, self.rows), "position"),
            TensorSpec("write_index", _INT64, (batch,), "write_index"),
            TensorSpec("visible_start", _INT64, (batch, self.rows), "visible_start"),
            TensorSpec("visible_end", _INT64, (batch, self.rows), "visible_end"),
        ]
        shape: tuple[Size, ...] = (batch, 1, "slots", self.config.dim)
        return placing + [TensorSpec(name, kind, shape, "cache") for name in self._caches()]

    def updates(self) -> list[TensorSpec]:
        """Return the updated caches, or their new rows."""
        kind, lowered, batch = self.choices
        end, count, role = ("rows", self.rows, "cache_rows") if lowered else ("out", "slots", "cache_update")
        shape: tuple[Size, ...] = (batch, 1, count, self.config.dim)
        return [TensorSpec(f"{name}_{end}", kind, shape, role) for name in self._caches()]


def check_manifest(path: Path, manifest: Manifest, config: BltConfig) -> None:
    """Compare what a manifest declares with what the configuration requires.

    Args:
        path: of the manifest, for messages.
        manifest: what it declares.
        config: of the bundle.

    Raises:
        BundleError: a graph, a tensor or a file is missing, unknown or another; the message names the first one.
    """
    if config.draft_rank is not None:
        where, file = path.parent / CONFIG_FILE, KNOWN_GRAPHS["draft"]
        raise BundleError(f"{where}: found draft_rank {config.draft_rank}, expected null: {file} has full matrices")
    expected = interfaces(
        config,
        activation_type(manifest),
        lowered=manifest.operators == "lowered",
        tables_inside=manifest.hash_tables == "graph",
        batches=manifest.batches,
    )
    if set(manifest.graphs) != set(expected):
        found, wanted = (", ".join(sorted(parts)) for parts in (manifest.graphs, expected))
        raise BundleError(f"{path}: found graphs {found}, expected {wanted} ({CONFIG_FILE})")
    for part, interface in expected.items():
        check_interface(f"{path}: graph {part}", manifest.graphs[part], interface, f"by {CONFIG_FILE}")
    _check_files(path, manifest)


def check_interface(where: str, found: Interface | GraphSpec, expected: Interface | GraphSpec, reason: str) -> None:
    """Compare inputs and outputs: names, types, shapes, roles and order.

    Args:
        where: begins the message.
        found: what is declared.
        expected: what is required.
        reason: why it is required, in a few words that end the message.

    Raises:
        BundleError: they differ; the message names the first tensor that does.
    """
    for side, one, other in (("input", found.inputs, expected.inputs), ("output", found.outputs, expected.outputs)):
        _check_side(f"{where}: {side}", one, other, reason)


def _check_side(where: str, found: Sequence[TensorSpec], expected: Sequence[TensorSpec], reason: str) -> None:
    if found == expected:
        return
    for index, (one, other) in enumerate(zip_longest(found, expected)):
        if one != other:
            raise BundleError(f"{where} {index}: found {_described(one)}, expected {_described(other)} ({reason})")


def _described(spec: TensorSpec | None) -> str:
    if spec is None:
        return "nothing"
    sizes = ", ".join(map(str, spec.shape))
    return f"{spec.name} {spec.dtype} [{sizes}]" + (f", role {spec.role}" if spec.role else "")


def _check_files(path: Path, manifest: Manifest) -> None:
    """Require the files that every bundle of this kind has; others, a report for example, may be there."""
    on_host = manifest.hash_tables == "host"
    required = [CONFIG_FILE, *(KNOWN_GRAPHS[part] for part in manifest.graphs), *[EMBEDDINGS_FILE] * on_host]
    for name in required:
        if name not in manifest.files:
            raise BundleError(f"{path}: found no file {name}, expected it to be listed")
    if not on_host and EMBEDDINGS_FILE in manifest.files:
        raise BundleError(f"{path}: found {EMBEDDINGS_FILE}, expected none: hash_tables is 'graph'")


def table_shapes(hashing: HashConfig, width: int) -> Mapping[str, tuple[int, int]]:
    """Return rows and width of each table of ``embeddings.safetensors``, by tensor.

    Args:
        hashing: the model's hash n-grams.
        width: of the encoder.
    """
    return {
        BYTE_TABLE: (VOCAB_SIZE, width),
        HASH_TABLE: (hashing.tables * hashing.rows, width),
    }
