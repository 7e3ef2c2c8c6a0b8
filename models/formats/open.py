"""Telling what a checkpoint is by its content, and opening it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fastblt.models.config import BltConfig, StackConfig
from fastblt.models.formats import meta, transformers
from fastblt.models.formats.checkpoint import PATCHER_PREFIX, Checkpoint, Pieces, expected_shapes, identity_pieces
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.fields import read_json
from fastblt.models.formats.hub import local_folder
from fastblt.models.formats.names import translate
from fastblt.models.formats.random_weights import LAYOUT as RANDOM
from fastblt.models.formats.random_weights import PREFIX as RANDOM_PREFIX
from fastblt.models.formats.random_weights import RandomStore, random_config
from fastblt.models.formats.stores import JoinedStore, PartOfStore, TensorStore, open_safetensors

OWN = "fastblt"
CONFIG_FILE = "config.json"
#: A checkpoint folder, of whatever layout, has one of these; a bundle has none.
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", meta.PTH_FILE)
#: What a folder that `fastblt export` wrote has.
_BUNDLE_FILE = "manifest.json"
#: What each layout is called in messages.
DESCRIPTIONS = {
    OWN: "fastblt checkpoint",
    transformers.LAYOUT: "transformers BltForCausalLM",
    meta.HUB: "Meta BLT hub folder",
    meta.RELEASE: "Meta BLT release folder",
    RANDOM: "random weights",
}


def open_checkpoint(
    path: str | Path, *, patcher: str | Path | None = None, document_masks: bool | None = None
) -> Checkpoint:
    """Open a checkpoint of any layout; every tensor is accounted for, none is read.

    Args:
        path: a folder, ``random:PRESET``, or an id of the Hugging Face hub (``name/model``).
        patcher: folder or hub id of an entropy model, or of a checkpoint that has one, to be used instead of the
            checkpoint's own. A checkpoint whose patches needed none is then patched by entropy.
        document_masks: whether self-attention stays inside a document; None: as the checkpoint's origin does.

    Raises:
        CheckpointError: there is none, files are missing or damaged, or tensors do not fit the configuration.
        ConfigError: its configuration is invalid, or means something that this project does not compute.
    """
    checkpoint = _open(str(path), patcher)
    if document_masks is not None:
        config = dataclasses.replace(checkpoint.config, document_masks=document_masks)
        checkpoint = dataclasses.replace(checkpoint, config=config)
    checkpoint.check()
    return checkpoint


def _open(path: str, patcher: str | Path | None) -> Checkpoint:
    if path.startswith(RANDOM_PREFIX):
        if patcher is not None:
            raise CheckpointError(f"{path}: found a patcher {patcher} for it, expected none")
        config = random_config(path)
        return Checkpoint(RANDOM, Path(path), config, RandomStore(config), identity_pieces(config))
    folder = local_folder(path)
    layout = recognise(folder)
    entropy = None if patcher is None else local_folder(str(patcher))
    if layout in (meta.HUB, meta.RELEASE):
        return _open_meta(folder, layout, entropy)
    if layout == OWN:
        config = BltConfig.load(folder / CONFIG_FILE)
    else:
        config = transformers.read_config(folder / CONFIG_FILE, read_json(folder / CONFIG_FILE))
    store: TensorStore = open_safetensors(folder)
    if layout == transformers.LAYOUT and config.patcher is None:
        # transformers stores an entropy model whatever the mode is, unless patch_in_forward is false.
        store = _without_patcher(layout, store)
    main = Checkpoint(layout, folder, config, store, pieces_of(layout, config))
    return main if entropy is None else _with_patcher(main, entropy)


def recognise(folder: Path) -> str:
    """The layout of a folder, by its content.

    Raises:
        CheckpointError: it is none that is known.
        ConfigError: its config.json is not readable.
    """
    path = folder / CONFIG_FILE
    data = read_json(path) if path.is_file() else {}
    if isinstance(data.get("args"), dict):
        return meta.HUB
    if transformers.recognises(data):
        return transformers.LAYOUT
    if (folder / _BUNDLE_FILE).is_file():
        raise CheckpointError(f"{folder}: found a bundle ({_BUNDLE_FILE}), expected the checkpoint that it was made of")
    if path.is_file():
        # Whatever else it is, reading it as ours names the first field that does not fit.
        return OWN
    if meta.is_release_folder(folder):
        return meta.RELEASE
    found = "no such folder"
    if folder.is_dir():
        names = sorted(entry.name for entry in folder.iterdir())
        found = f"a folder with {', '.join(names[:6]) or 'nothing'}{' ...' if len(names) > 6 else ''}"
    elif folder.exists():
        found = "a file"
    raise CheckpointError(
        f"{folder}: found {found}, expected a checkpoint: {CONFIG_FILE} and model.safetensors (of fastblt, "
        f"transformers or Meta's hub folders), or Meta's {meta.PTH_FILE} and {meta.PARAMS_FILE}"
    )


def pieces_of(layout: str, config: BltConfig) -> Pieces:
    """What our tensors are called in a layout."""
    if layout in (OWN, RANDOM):
        return identity_pieces(config)
    return translate(config, transformers.NAMES if layout == transformers.LAYOUT else meta.NAMES)


def _open_meta(folder: Path, layout: str, entropy: Path | None) -> Checkpoint:
    """A model folder of Meta's, with the entropy model that is given or found, where patches need one."""
    store = meta.open_store(folder)
    if meta.read_patching(folder).mode != "entropy":
        config = meta.read_config(folder, None)
        main = Checkpoint(layout, folder, config, store, pieces_of(layout, config))
        return main if entropy is None else _with_patcher(main, entropy)
    entropy = entropy or meta.find_entropy_folder(folder)
    if entropy is None:
        raise CheckpointError(
            f"{folder}: found no entropy model in it or beside it ({', '.join(meta.ENTROPY_FOLDERS)}), expected one, "
            "because the configuration closes patches by entropy: pass its folder with --patcher PATH"
        )
    stack, entropy_store, words = _entropy_model(entropy)
    return _joined(layout, folder, meta.read_config(folder, stack), store, entropy_store, words)


def _with_patcher(main: Checkpoint, entropy: Path) -> Checkpoint:
    stack, store, words = _entropy_model(entropy)
    rule = main.config.patching
    # What a static rule counts to is all of that rule, and no limit of another.
    longest = None if rule.mode == "static" else rule.max_patch_length
    patching = dataclasses.replace(rule, mode="entropy", max_patch_length=longest)
    config = dataclasses.replace(main.config, patcher=stack, patching=patching)
    return _joined(main.layout, main.path, config, main.store, store, words)


def _entropy_model(folder: Path) -> tuple[StackConfig, TensorStore, str]:
    """Geometry, tensors and layout of an entropy model: Meta's, or the patcher of another checkpoint."""
    layout = recognise(folder)
    if layout in (meta.HUB, meta.RELEASE):
        stack, store = meta.open_entropy_model(folder)
        return stack, JoinedStore([(PATCHER_PREFIX, store)]), layout
    other = _open(str(folder), None)
    if other.config.patcher is None:
        raise CheckpointError(f"{folder}: found a checkpoint without an entropy model, expected one that has it")
    names = {p for name, pieces in other.pieces.items() if name.startswith(PATCHER_PREFIX) for p in pieces}
    return other.config.patcher, PartOfStore(other.store, names.__contains__), layout


def _joined(
    layout: str, folder: Path, config: BltConfig, main: TensorStore, entropy: TensorStore, entropy_layout: str
) -> Checkpoint:
    """A checkpoint whose patcher lies elsewhere; a patcher among the main tensors is left out."""
    ours, theirs = pieces_of(layout, config), pieces_of(entropy_layout, config)
    pieces = {name: (theirs if name.startswith(PATCHER_PREFIX) else ours)[name] for name in expected_shapes(config)}
    store = JoinedStore([("", _without_patcher(layout, main)), ("", entropy)])
    return Checkpoint(layout, folder, config, store, pieces)


def _without_patcher(layout: str, store: TensorStore) -> TensorStore:
    """A store without its entropy model, in layouts that have it among the other tensors."""
    prefix = {OWN: PATCHER_PREFIX, transformers.LAYOUT: transformers.NAMES.parts["patcher"]}.get(layout)
    return store if prefix is None else PartOfStore(store, lambda name: not name.startswith(prefix))
