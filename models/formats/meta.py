"""Reads Meta's layouts: release folders (``consolidated.pth``, ``params.json``) and hub folders ("args").

The entropy model has a folder of its own, in or beside the model's, in either layout. Both layouts share tensor names,
and Meta's code masks documents at EOS.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastblt.models.config import BltConfig, HashConfig, PatchingConfig, StackConfig
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.fields import Fields, model_name, naming, read_json
from fastblt.models.formats.layout import BUNDLE_FILE, CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, Layout
from fastblt.models.formats.names import PATCHER_PREFIX, Pieces, Vocabulary, translate
from fastblt.models.formats.transformers import WINDOW, patching_rule
from fastblt.models.limits import LIST_ITEMS
from fastblt.models.tokens import VOCAB_SIZE

if TYPE_CHECKING:
    from fastblt.models.formats.checkpoint import Checkpoint
    from fastblt.models.formats.separate_patcher import StoredPatcher
    from fastblt.models.formats.stores import TensorStore

PARAMS_FILE, PTH_FILE, TRAIN_ARGS_FILE = "params.json", "consolidated.pth", "train_args.json"
#: Where the entropy model of a model folder may be.
ENTROPY_FOLDERS = ("entropy_model", "../entropy_model", "../blt-entropy")

#: A tensor that an entropy model has and a model lacks.
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


class _MetaLayout:
    """Reads what Meta's two layouts have in common: tensor names, and patchers in folders of their own."""

    patcher_prefix = None

    def open(self: Layout, path: Path, patcher: Path | None) -> Checkpoint:
        """Implement `Layout.open`; find the entropy model in or beside the folder if none is passed."""
        from fastblt.models.formats.checkpoint import Checkpoint
        from fastblt.models.formats.separate_patcher import joined, open_patcher, with_patcher

        store = open_store(path)
        if read_patching(path).mode != "entropy":
            config = read_config(path, None)
            return with_patcher(Checkpoint(self, path, config, store, self.pieces(config)), patcher)
        patcher = patcher or find_entropy_folder(path)
        if patcher is None:
            raise CheckpointError(
                f"{path}: found no entropy model in it or beside it ({', '.join(ENTROPY_FOLDERS)}), expected one, "
                "because the configuration closes patches by entropy: pass its folder with --patcher PATH"
            )
        stored = open_patcher(patcher)
        return joined(self, path, read_config(path, stored.config), store, stored)

    def open_patcher(self: Layout, path: Path) -> StoredPatcher:
        """Implement `Layout.open_patcher`: accept an entropy model, or a model that has one in or beside it."""
        from fastblt.models.formats.separate_patcher import StoredPatcher
        from fastblt.models.formats.stores import JoinedStore

        config, store = open_entropy_model(path)
        return StoredPatcher(config, JoinedStore([(PATCHER_PREFIX, store)]), self)

    def pieces(self, config: BltConfig) -> Pieces:
        """Implement `Layout.pieces`."""
        return translate(config, NAMES)


class MetaHub(_MetaLayout):
    """Reads Meta's folders on the Hugging Face hub."""

    name = "meta-hub"
    description = "Meta BLT hub folder"
    title = "Meta's hub folders (`facebook/blt-1b`)"
    contents = (
        f"`{CONFIG_FILE}` with `args`, `{WEIGHTS_FILE}`, `{TRAIN_ARGS_FILE}`, the entropy model in `entropy_model/` or "
        "beside"
    )
    recognized_by = "`args`"
    files = (CONFIG_FILE, WEIGHTS_FILE)
    weight_files = (WEIGHTS_FILE, INDEX_FILE)
    hub_files = ("*.json", "*.safetensors", "entropy_model/*")

    def recognizes(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Implement `Layout.recognizes`."""
        return isinstance(config.get("args"), dict)


class MetaRelease(_MetaLayout):
    """Reads folders that Meta's training code writes."""

    name = "meta-release"
    description = "Meta BLT release folder"
    title = "Meta's release folders"
    contents = f"`{PARAMS_FILE}`, `{PTH_FILE}`, the entropy model in `{ENTROPY_FOLDERS[0]}/` or `{ENTROPY_FOLDERS[1]}/`"
    recognized_by = "those files"
    files = (PARAMS_FILE, PTH_FILE)
    weight_files = (PTH_FILE,)
    hub_files = ("*.json", PTH_FILE, "entropy_model/*")

    def recognizes(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Implement `Layout.recognizes`; a folder with a manifest is a bundle, whatever else is in it."""
        return is_release_folder(path) and not (path / BUNDLE_FILE).is_file()


def is_hub_folder(folder: Path) -> bool:
    """Decide whether a folder has a config.json with "args"."""
    path = folder / CONFIG_FILE
    return path.is_file() and isinstance(read_json(path).get("args"), dict)


def is_release_folder(folder: Path) -> bool:
    """Decide whether a folder has ``consolidated.pth`` or ``params.json``; reading it reports which is missing."""
    return (folder / PTH_FILE).is_file() or (folder / PARAMS_FILE).is_file()


def open_store(folder: Path) -> TensorStore:
    """Return the weights of a folder of either layout."""
    from fastblt.models.formats.pth_store import PthStore
    from fastblt.models.formats.stores import open_safetensors

    return open_safetensors(folder) if is_hub_folder(folder) else PthStore(folder / PTH_FILE)


def model_fields(folder: Path) -> tuple[Fields, Fields]:
    """Return the model's arguments, and those of its patcher (empty if there are none)."""
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
    """Return the patch rule of a model folder: the patcher's in training, else that of the model's arguments.

    Raises:
        ConfigError: a field is invalid, or names a rule that this project does not have.
    """
    args, patcher_args = model_fields(folder)
    source, threshold = (patcher_args, "threshold") if patcher_args.data else (args, "patching_threshold")
    source.require("monotonicity", False, None)
    source.require("threshold_add", None)
    return patching_rule(source, threshold)


def read_config(folder: Path, patcher: StackConfig | None) -> BltConfig:
    """Return the configuration of a model folder.

    Args:
        folder: of either layout.
        patcher: geometry of its entropy model; None if patches need none.

    Raises:
        ConfigError: a field is missing or invalid, or describes something that this project does not compute.
    """
    args = model_fields(folder)[0]
    _check_supported(args)
    k = args.integer("cross_attn_k")
    window = args.optional_integer("local_attention_window_len", missing=WINDOW)
    values: dict[str, Any] = {
        "name": model_name(folder),
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
    """Return two thirds of four times the width, scaled and rounded up as Meta's code does."""
    hidden = int(args.number("ffn_dim_multiplier", 1.0) * int(8 * dim / 3))
    multiple = args.integer("multiple_of", 256)
    args.expect(multiple > 0, "multiple_of", "a positive integer")
    return -(-hidden // multiple) * multiple


def _hash(args: Fields) -> HashConfig:
    name = "encoder_hash_byte_group_size"
    sizes = args.data.get(name) or []
    if isinstance(sizes, str):
        parts = [part.strip() for part in sizes[:LIST_ITEMS].split(",")]
        args.expect(len(sizes) <= LIST_ITEMS and all(map(str.isdecimal, parts)), name, "comma-separated integers")
        sizes = list(map(int, parts))
    args.expect(isinstance(sizes, list), name, "a list of integers, or comma-separated integers")
    rows = args.integer("encoder_hash_byte_group_vocab", 500_002)
    return HashConfig(tuple(sizes), rows, args.integer("encoder_hash_byte_group_nb_functions", 1))


def find_entropy_folder(folder: Path) -> Path | None:
    """Return the entropy model's folder in or beside a model's; None if there is none."""
    for name in ENTROPY_FOLDERS:
        path = folder.absolute() / name
        if is_hub_folder(path) or is_release_folder(path):
            return path.resolve()
    return None


def open_entropy_model(folder: Path) -> tuple[StackConfig, TensorStore]:
    """Return geometry and tensors of an entropy model, given its folder or that of a model that has one.

    Raises:
        ConfigError: a field is missing or invalid.
        CheckpointError: the folder is neither, or its files are damaged.
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
    """Return the geometry of the entropy model in a folder of either layout.

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
    """Keep what Meta's code reads of a release folder's entropy model; it fixes the rest itself."""
    read = ("dim", "n_layers", "n_heads", "ffn_dim_multiplier", "vocab_size")
    kept: Mapping[str, Any] = {name: args.data[name] for name in read if name in args.data}
    return Fields(kept, args.where)
