"""Meta's layouts: release folders (``consolidated.pth``, ``params.json``), hub folders (``config.json`` with "args").

The entropy model lies in a folder of its own, in or beside the model's; it may have either layout. Both layouts share
tensor names, and Meta's code masks documents at EOS.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastblt.models.config import BltConfig, HashConfig, PatchingConfig, StackConfig
from fastblt.models.formats.checkpoint import PATCHER_PREFIX
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.fields import Fields, naming, read_json
from fastblt.models.formats.names import Vocabulary
from fastblt.models.formats.stores import PthStore, TensorStore, open_safetensors
from fastblt.models.formats.transformers import WINDOW, patching_rule
from fastblt.models.tokens import VOCAB_SIZE

HUB, RELEASE = "meta-hub", "meta-release"
CONFIG_FILE, PARAMS_FILE, PTH_FILE, TRAIN_ARGS_FILE = (
    "config.json",
    "params.json",
    "consolidated.pth",
    "train_args.json",
)
#: Where the entropy model of a model folder may lie.
ENTROPY_FOLDERS = ("entropy_model", "../entropy_model", "../blt-entropy")

#: What a model lacks and an entropy model has.
_ENTROPY_TENSOR = "tok_embeddings.weight"

_BLOCK = {
    "attention_norm": ("attention_norm",),
    "wqkv": ("attention.wq", "attention.wk", "attention.wv"),
    "wo": ("attention.wo",),
    "ffn_norm": ("ffn_norm",),
    "feed_forward.w13": ("feed_forward.w1", "feed_forward.w3"),
    "feed_forward.w2": ("feed_forward.w2",),
}
#: The entropy model's tensors have no prefix where they are stored; ours is put in front (see `JoinedStore`).
NAMES = Vocabulary(
    parts={
        "patcher": PATCHER_PREFIX,
        "encoder": "local_encoder.",
        "global_transformer": "global_transformer.",
        "decoder": "local_decoder.",
        "layers": "layers",
        "cross_layers": "cross_attn_layers",
        "tok_embeddings": "tok_embeddings",
        "norm": "norm",
        "output": "output",
        "patch_projection": "patch_embedding_projection",
        "input_projection": "token_embedding_projection",
    },
    block=_BLOCK,
    cross_attention={
        "norm_q": ("cross_attn_norm_q",),
        "norm_kv": ("cross_attn_norm_kv",),
        "wq": ("wq",),
        "wkv": ("wk", "wv"),
        "wo": ("wo",),
    },
    hash_tables="encoder_hash_tok_embedding.{}",
)


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder has a config.json with "args"."""
    path = folder / CONFIG_FILE
    return path.is_file() and isinstance(read_json(path).get("args"), dict)


def is_release_folder(folder: Path) -> bool:
    """Whether a folder has ``consolidated.pth`` or ``params.json``; what lacks the other is told when it is read."""
    return (folder / PTH_FILE).is_file() or (folder / PARAMS_FILE).is_file()


def open_store(folder: Path) -> TensorStore:
    """The weights of a folder of either layout."""
    return open_safetensors(folder) if is_hub_folder(folder) else PthStore(folder / PTH_FILE)


def model_fields(folder: Path) -> tuple[Fields, Fields]:
    """The model's arguments, and those of its patcher (empty where there are none)."""
    if is_hub_folder(folder):
        path = folder / CONFIG_FILE
        args = Fields(read_json(path), str(path)).inside("args")
        extra = folder / TRAIN_ARGS_FILE
        training = Fields(read_json(extra), str(extra)) if extra.is_file() else Fields({}, str(extra))
        return args, training.inside("data").inside("patcher_args")
    path = folder / PARAMS_FILE
    params = Fields(read_json(path), str(path))
    return params.inside("model"), params.inside("data").inside("patcher_args")


def read_patching(folder: Path) -> PatchingConfig:
    """The patch rule of a model folder: as the patcher was set up in training, else as the model's arguments say.

    Raises:
        ConfigError: a field is invalid, or names a rule that this project does not have.
    """
    args, patcher_args = model_fields(folder)
    source, threshold = (patcher_args, "threshold") if patcher_args.data else (args, "patching_threshold")
    source.require("monotonicity", False, None)
    source.require("threshold_add", None)
    return patching_rule(source, threshold)


def read_config(folder: Path, patcher: StackConfig | None) -> BltConfig:
    """The configuration of a model folder.

    Args:
        folder: of either layout.
        patcher: its entropy model's; None where patches need none.

    Raises:
        ConfigError: a field is missing or invalid, or means something that this project does not compute.
    """
    args = model_fields(folder)[0]
    _check_supported(args)
    k = args.integer("cross_attn_k")
    window = args.optional_integer("local_attention_window_len", missing=WINDOW)
    values: dict[str, Any] = {
        "name": folder.absolute().name,
        "patcher": patcher,
        "encoder": _stack(args, "local_encoder", window),
        "global_transformer": _stack(args, "global", None),
        "decoder": _stack(args, "local_decoder", window),
        "patching": read_patching(folder),
        "hash": _hash(args),
        "cross_attn_k": k,
        "document_masks": True,
    }
    with naming(args.where):
        return BltConfig(**values)


def _check_supported(args: Fields) -> None:
    args.expect(args.data.get("vocab_size", VOCAB_SIZE) == VOCAB_SIZE, "vocab_size", str(VOCAB_SIZE))
    for side in ("encoder", "decoder"):
        args.require(f"cross_attn_window_{side}", None)
    if args.integer("n_layers_local_encoder") > 1:
        args.require("cross_attn_all_layers_encoder", False, None)
    if args.integer("n_layers_local_decoder") > 1:
        args.require("cross_attn_all_layers_decoder", True)
    args.require("downsampling_by_pooling", "max", None)
    heads = args.integer("n_heads_local_encoder")
    args.expect(
        args.integer("cross_attn_nheads", heads) == heads == args.integer("n_heads_local_decoder"),
        "cross_attn_nheads",
        "the heads of encoder and decoder",
    )


def _stack(args: Fields, part: str, window: int | None) -> StackConfig:
    dim, heads = args.integer(f"dim_{part}"), args.integer(f"n_heads_{part}")
    for name in ("n_kv_heads", f"n_kv_heads_{part}"):
        args.expect(args.data.get(name) in (None, heads), name, f"null or {heads} (grouped queries are not supported)")
    return StackConfig(
        dim=dim,
        layers=args.integer(f"n_layers_{part}"),
        heads=heads,
        ffn_dim=_ffn_dim(args, dim),
        rope_theta=args.number("rope_theta"),
        window=window,
        norm_eps=args.number("norm_eps", 1e-5),
    )


def _ffn_dim(args: Fields, dim: int) -> int:
    """Two thirds of four times the width, rounded up to a multiple."""
    hidden = int(args.number("ffn_dim_multiplier", 1.0) * int(8 * dim / 3))
    multiple = args.integer("multiple_of", 256)
    args.expect(multiple > 0, "multiple_of", "a positive integer")
    return -(-hidden // multiple) * multiple


def _hash(args: Fields) -> HashConfig:
    name = "encoder_hash_byte_group_size"
    sizes = args.data.get(name) or []
    if isinstance(sizes, str):
        args.expect(all(part.strip().isdecimal() for part in sizes.split(",")), name, "integers with commas between")
        sizes = [int(part) for part in sizes.split(",")]
    args.expect(isinstance(sizes, list), name, "a list of integers, or integers with commas between")
    rows = args.integer("encoder_hash_byte_group_vocab", 500_002)
    return HashConfig(tuple(sizes), rows, args.integer("encoder_hash_byte_group_nb_functions", 1))


def find_entropy_folder(folder: Path) -> Path | None:
    """The entropy model's folder in or beside a model's."""
    for name in ENTROPY_FOLDERS:
        path = folder.absolute() / name
        if is_hub_folder(path) or is_release_folder(path):
            return path.resolve()
    return None


def open_entropy_model(folder: Path) -> tuple[StackConfig, TensorStore]:
    """Geometry and tensors of an entropy model, from its folder or from that of a model that has one.

    Raises:
        ConfigError: a field is missing or invalid.
        CheckpointError: it is neither, or its files are damaged.
    """
    for place in (folder, find_entropy_folder(folder)):
        if place is not None:
            store = open_store(place)
            if _ENTROPY_TENSOR in store.tensors:
                return read_entropy_config(place), store
    raise CheckpointError(
        f"{folder}: found no tensor {_ENTROPY_TENSOR}, expected an entropy model, or a model with one in or beside it"
    )


def read_entropy_config(folder: Path) -> StackConfig:
    """The geometry of an entropy model's folder of either layout.

    Raises:
        ConfigError: a field is missing or invalid.
    """
    if is_hub_folder(folder):
        path = folder / CONFIG_FILE
        args: Fields = Fields(read_json(path), str(path)).inside("args")
    else:
        path = folder / PARAMS_FILE
        args = _without_defaults(Fields(read_json(path), str(path)).inside("entropy_model"))
    args.expect(args.data.get("vocab_size", VOCAB_SIZE) == VOCAB_SIZE, "vocab_size", str(VOCAB_SIZE))
    dim, heads = args.integer("dim"), args.integer("n_heads")
    args.expect(args.data.get("n_kv_heads") in (None, heads), "n_kv_heads", f"null or {heads}")
    stack = StackConfig(
        dim=dim,
        layers=args.integer("n_layers"),
        heads=heads,
        ffn_dim=_ffn_dim(args, dim),
        rope_theta=args.number("rope_theta", 1e4),
        window=args.optional_integer("sliding_window", missing=WINDOW),
        norm_eps=args.number("norm_eps", 1e-5),
    )
    with naming(args.where):
        stack.validate("patcher")
    return stack


def _without_defaults(args: Fields) -> Fields:
    """Only what Meta's code reads of a release folder's entropy model; the rest is fixed in that code."""
    read = ("dim", "n_layers", "n_heads", "ffn_dim_multiplier", "vocab_size")
    kept: Mapping[str, Any] = {name: args.data[name] for name in read if name in args.data}
    return Fields(kept, args.where)
