"""Describes the geometry of a Byte Latent Transformer as one frozen, validated, JSON-serializable dataclass.

Nothing here imports torch: the runtime reads the same configuration on machines without PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastblt.models import limits
from fastblt.models.parameters import count_parameters
from fastblt.models.reading import read_json
from fastblt.models.shown import shown
from fastblt.models.tokens import VOCAB_SIZE

DecoderInput = Literal["encoder", "embedding", "mixed"]
PatchingMode = Literal["entropy", "space", "static"]
BlockLatent = Literal["closed", "partial"]

#: Multipliers of the rolling n-gram hash, one per hash function (blt-1b uses the first only).
HASH_PRIMES: tuple[int, ...] = (
    1000000007,
    5915587277,
    1500450271,
    3267000013,
    5754853343,
    4093082899,
    9576890767,
    3628273133,
    2860486313,
    5463458053,
    3367900313,
)


class ConfigError(ValueError):
    """Reports a configuration that no model can have; the message names field, value and what was expected."""


def expect(condition: bool, name: str, found: object, expected: str) -> None:
    """Raise `ConfigError` that names a field unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"config field {shown(name)}: found {shown(found)}, expected {expected}")


def expect_integer(name: str, found: object, most: int, least: int = 1, *, optional: bool = False) -> None:
    """Raise `ConfigError` that names a field unless it is an integer (no truth value) in ``least``..``most``.

    With ``optional``, None passes.
    """
    fits = isinstance(found, int) and not isinstance(found, bool) and least <= found <= most
    kind = {0: "0 or a positive integer", 1: "a positive integer"}.get(least, f"an integer from {least}")
    expect(fits or (optional and found is None), name, found, f"{'null or ' * optional}{kind} up to {most}")


def expect_number(name: str, found: object, most: float, least: float = 0.0, *, positive: bool = False) -> None:
    """Raise `ConfigError` that names a field unless it is a number in ``least``..``most``; NaN is none.

    Args:
        name: of the field.
        found: its value.
        most: largest number, finite.
        least: smallest number.
        positive: whether it must be greater than 0.
    """
    # NaN fails both comparisons.
    fits = isinstance(found, int | float) and not isinstance(found, bool) and least <= found <= most
    lower = "a positive, finite number" if positive else f"a number from {least:g}"
    expect(fits and (not positive or found > 0), name, found, f"{lower} up to {most:g}")  # type: ignore[operator]


@dataclass(frozen=True)
class StackConfig:
    """Describes one stack of pre-norm transformer blocks (RMSNorm, RoPE attention, SwiGLU)."""

    dim: int
    """Width of the residual stream."""
    layers: int
    """Number of blocks."""
    heads: int
    """Attention heads; ``dim / heads`` is the head dimension and must be even (RoPE rotates pairs)."""
    ffn_dim: int
    """Hidden width of the SwiGLU feed-forward network."""
    rope_theta: float = 500_000.0
    """Base of the rotary position embedding."""
    window: int | None = None
    """Positions that a row sees, itself included; None: all earlier ones."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm in the stack."""

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.dim // self.heads

    def validate(self, name: str) -> None:
        """Raise `ConfigError` unless the stack is valid; ``name`` prefixes the field in the message."""
        most = {"dim": limits.DIM, "layers": limits.LAYERS, "heads": limits.HEADS, "ffn_dim": limits.FFN_DIM}
        for key in most:
            expect_integer(f"{name}.{key}", getattr(self, key), most[key])
        expect(self.dim % self.heads == 0, f"{name}.heads", self.heads, f"a divisor of dim={self.dim}")
        expect(self.head_dim % 2 == 0, f"{name}.heads", self.heads, "an even head dimension dim/heads")
        expect_integer(f"{name}.window", self.window, limits.WINDOW, optional=True)
        expect_number(f"{name}.rope_theta", self.rope_theta, limits.ROPE_THETA, positive=True)
        expect_number(f"{name}.norm_eps", self.norm_eps, limits.NORM_EPS, positive=True)


@dataclass(frozen=True)
class PatchingConfig:
    """Describes the rule that closes patches; BOS is a patch by itself in every mode.

    ``entropy``, the mode of released checkpoints, consults an entropy model. The others need none: ``space`` closes a
    patch at a space-like byte (neither Latin letter, digit nor UTF-8 continuation) that follows another byte, and at
    every special token; ``static`` only at ``max_patch_length`` (1: every byte is a patch).
    """

    threshold: float = 1.335442066192627
    """entropy: a patch closes at a byte whose next-byte entropy, in nats, is strictly greater than this."""
    max_patch_length: int | None = None
    """In every mode a patch closes when it has this many bytes; None: no limit."""
    mode: PatchingMode = "entropy"
    """What closes a patch."""

    def validate(self) -> None:
        """Raise `ConfigError` unless the rule is valid."""
        modes = get_args(PatchingMode)
        expect(self.mode in modes, "patching.mode", self.mode, f"one of {', '.join(modes)}")
        expect_number("patching.threshold", self.threshold, limits.THRESHOLD)
        expect(
            self.mode != "static" or self.max_patch_length is not None,
            "patching.max_patch_length",
            self.max_patch_length,
            "a positive integer (mode is 'static')",
        )
        expect_integer("patching.max_patch_length", self.max_patch_length, limits.PATCH_LENGTH, optional=True)


@dataclass(frozen=True)
class HashConfig:
    """Describes the hash n-gram tables; table ``f * len(sizes) + g`` belongs to function f and size ``sizes[g]``."""

    sizes: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    """n-gram lengths in tokens."""
    rows: int = 500_002
    """Rows of each table."""
    functions: int = 1
    """Hash functions, each with its own multiplier and its own tables."""

    @property
    def tables(self) -> int:
        """Return the number of tables."""
        return len(self.sizes) * self.functions

    @property
    def context(self) -> int:
        """Return the number of tokens that the longest n-gram spans; 1 if there are no tables."""
        return max(self.sizes) if self.tables else 1

    def validate(self) -> None:
        """Raise `ConfigError` unless the tables are valid."""
        count, found = len(self.sizes), list(self.sizes)
        expect(count <= limits.HASH_SIZES, "hash.sizes", found, f"at most {limits.HASH_SIZES} lengths")
        for size in self.sizes:
            expect_integer("hash.sizes", size, limits.NGRAM)
        expect(len(set(self.sizes)) == count, "hash.sizes", found, "distinct positive integers")
        expect_integer("hash.rows", self.rows, limits.HASH_ROWS)
        expect_integer("hash.functions", self.functions, len(HASH_PRIMES), 0)


@dataclass(frozen=True)
class BltConfig:
    """Holds everything that determines the shapes and the control flow of one model.

    ``decoder_input`` separates the families: "encoder" is BLT (the decoder starts from the encoder's byte states),
    "embedding" is BLT-D (the decoder has an embedding table of its own, with a [MASK] row, and can denoise blocks of up
    to ``block_size`` bytes). "mixed" is a BLT with a second decoder for blocks, the draft decoder, which has such a
    table; all else computes what it computes in the BLT.
    """

    name: str
    patcher: StackConfig | None
    """The entropy model; None exactly if ``patching.mode`` needs none."""
    encoder: StackConfig
    global_transformer: StackConfig
    decoder: StackConfig
    patching: PatchingConfig = field(default_factory=PatchingConfig)
    hash: HashConfig = field(default_factory=HashConfig)
    cross_attn_k: int = 2
    """Queries that pool a patch, and tokens that a latent becomes in the decoder."""
    decoder_input: DecoderInput = "encoder"
    block_size: int = 0
    """Longest block that the model was trained to denoise; 0: no block diffusion."""
    draft_rank: int | None = None
    """mixed: rank of the matrices that are added to the decoder's to make the draft decoder's; None: it has its own."""
    block_latent: BlockLatent = "closed"
    """Which latent its blocks were trained on, and methods let them read unless told otherwise: ``closed``, the newest
    of a closed patch; or ``partial``, that of the open patch so far (o_M of arXiv 2605.08044)."""
    document_masks: bool = False
    """Whether self-attention stays inside a document: no row sees anything before the last EOS that precedes it."""
    vocab_size: int = VOCAB_SIZE

    def __post_init__(self) -> None:
        """Validate every field."""
        for name in ("patcher", "encoder", "global_transformer", "decoder"):
            stack = getattr(self, name)
            if stack is not None:
                stack.validate(name)
        self.patching.validate()
        needs_patcher = self.patching.mode == "entropy"
        expect(
            (self.patcher is not None) == needs_patcher,
            "patcher",
            None if self.patcher is None else "an entropy model",
            f"{'an entropy model' if needs_patcher else 'null'} (patching.mode is {self.patching.mode!r})",
        )
        self.hash.validate()
        printable = isinstance(self.name, str) and self.name.isprintable() and self.name
        wanted = f"1 to {limits.NAME_CHARACTERS} printable characters"
        expect(bool(printable) and len(self.name) <= limits.NAME_CHARACTERS, "name", self.name, wanted)
        expect(self.vocab_size == VOCAB_SIZE, "vocab_size", self.vocab_size, str(VOCAB_SIZE))
        expect_integer("cross_attn_k", self.cross_attn_k, limits.CROSS_ATTN_K)
        inputs = get_args(DecoderInput)
        expect(self.decoder_input in inputs, "decoder_input", self.decoder_input, f"one of {', '.join(inputs)}")
        expect(
            self.encoder.dim == self.decoder.dim,
            "decoder.dim",
            self.decoder.dim,
            f"the encoder's width {self.encoder.dim} (they share the byte states)",
        )
        self._check_blocks()
        total = count_parameters(self).total
        expect(total <= limits.PARAMETERS, "sizes of all parts", total, f"at most {limits.PARAMETERS} parameters")

    def _check_blocks(self) -> None:
        expect_integer("block_size", self.block_size, limits.BLOCK_SIZE, 0)
        expect(
            self.block_size == 0 or self.decoder_input != "encoder",
            "block_size",
            self.block_size,
            "0, or a positive integer with decoder_input 'embedding' or 'mixed' (only they have a [MASK] row)",
        )
        expect(
            self.block_size > 0 or not self.has_draft,
            "block_size",
            self.block_size,
            "a positive integer (decoder_input is 'mixed')",
        )
        latents = get_args(BlockLatent)
        expect(self.block_latent in latents, "block_latent", self.block_latent, f"one of {', '.join(latents)}")
        expect_integer("draft_rank", self.draft_rank, limits.DRAFT_RANK, optional=True)
        expect(
            self.draft_rank is None or self.has_draft,
            "draft_rank",
            self.draft_rank,
            f"null (decoder_input is {self.decoder_input!r}, only 'mixed' has a draft decoder)",
        )

    @property
    def has_draft(self) -> bool:
        """Decide whether blocks are denoised by a decoder of their own."""
        return self.decoder_input == "mixed"

    @property
    def decoder_reads_states(self) -> bool:
        """Decide whether the decoder starts from the encoder's byte states; otherwise it has an embedding table."""
        return self.decoder_input != "embedding"

    @property
    def without_draft(self) -> BltConfig:
        """Return the configuration of the same model without a draft decoder; a model that has none is unchanged."""
        if not self.has_draft:
            return self
        return dataclasses.replace(self, decoder_input="encoder", block_size=0, draft_rank=None, block_latent="closed")

    @property
    def graph_stacks(self) -> dict[str, StackConfig]:
        """Return the transformer stack of each graph of a bundle, by part: `stacks`, and draft if there is one."""
        return {**self.stacks, "draft": self.decoder} if self.has_draft else self.stacks

    @property
    def stacks(self) -> dict[str, StackConfig]:
        """Return the transformer stacks by part: patcher (if there is one), encoder, global, decoder."""
        stacks = {"patcher": self.patcher} if self.patcher is not None else {}
        return {**stacks, "encoder": self.encoder, "global": self.global_transformer, "decoder": self.decoder}

    @property
    def patch_dim(self) -> int:
        """Return the width of a patch embedding before the global transformer: ``cross_attn_k * encoder.dim``."""
        return self.cross_attn_k * self.encoder.dim

    @property
    def has_global_projection(self) -> bool:
        """Decide whether a matrix maps patch embeddings to the global width (7B has one, 1B does not)."""
        return self.patch_dim != self.global_transformer.dim

    @property
    def latent_kv_dim(self) -> int:
        """Return the number of elements of one latent's keys and values in all decoder layers."""
        return 2 * self.decoder.layers * self.cross_attn_k * self.decoder.dim

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, nested like the dataclasses; fields of a draft decoder only if there is one."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        if not self.has_draft:
            del plain["draft_rank"]
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BltConfig:
        """Build a configuration from what `to_dict` returns.

        Raises:
            ConfigError: a field is unknown, missing or invalid.
        """
        config = build_dataclass(cls, data)
        assert isinstance(config, cls)
        return config

    def to_json(self) -> str:
        """Return the text that `load` reads."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Write the configuration as JSON."""
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> BltConfig:
        """Read JSON written by `save`.

        Raises:
            ConfigError: the file is missing, is not JSON, or does not describe a model; the message names it.
        """
        data = read_json(path, ConfigError, "a config.json", constants=True)
        try:
            return cls.from_dict(data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def build_dataclass(cls: type[Any], data: object, prefix: str = "") -> Any:
    """Instantiate a config dataclass from plain JSON types, strictly."""
    expect(isinstance(data, dict), prefix.rstrip(".") or "config", type(data).__name__, "an object")
    assert isinstance(data, dict)
    hints = get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        expect(key in known, f"{prefix}{key}", data[key], f"one of the fields {', '.join(known)}")
    values: dict[str, Any] = {}
    for key, spec in known.items():
        if key not in data:
            required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
            expect(not required, f"{prefix}{key}", "nothing", "a value")
            continue
        values[key] = _value(hints[key], data[key], f"{prefix}{key}")
    return cls(**values)


def _value(hint: Any, value: object, name: str) -> Any:
    """Check one JSON value against a field's type hint."""
    if hint == StackConfig | None:
        return None if value is None else build_dataclass(StackConfig, value, f"{name}.")
    if dataclasses.is_dataclass(hint):
        return build_dataclass(hint, value, f"{name}.")  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        most = limits.LIST_ITEMS
        expect(isinstance(value, list) and len(value) <= most, name, value, f"a list of at most {most} items")
        kinds_of = get_args(hint)
        items = list(value)  # type: ignore[call-overload]
        inner = [kinds_of[0]] * len(items) if kinds_of[-1] is Ellipsis else list(kinds_of)
        expect(len(items) == len(inner), name, value, f"a list of {len(inner)}")
        return tuple(
            _value(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(inner, items, strict=True))
        )
    kinds: dict[Any, tuple[tuple[type, ...], str]] = {
        bool: ((bool,), "true or false"),
        int: ((int,), "an integer"),
        float: ((int, float), "a number"),
        str: ((str,), "a string"),
        int | None: ((int, type(None)), "an integer or null"),
        float | None: ((int, float, type(None)), "a number or null"),
        str | BltConfig: ((str,), "a string or an object"),
        DecoderInput: ((str,), "a string"),
        PatchingMode: ((str,), "a string"),
        BlockLatent: ((str,), "a string"),
    }
    types, expected = kinds[hint]
    expect(isinstance(value, types) and (hint is bool or not isinstance(value, bool)), name, value, expected)
    if value is None or hint not in (float, float | None):
        return value
    # Integers of hundreds of digits are beyond every float; NaN is left to the field's bounds.
    expect(not isinstance(value, int) or abs(value) <= sys.float_info.max, name, value, "a finite number")
    return float(value)  # type: ignore[arg-type]
