"""Translates our tensor names to those of other layouts.

A layout's `Vocabulary` lists its names for the parts of a model, of a transformer block and of a cross-attention; the
whole table `Pieces` follows from it and a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastblt.models.config import BltConfig

#: Our tensor to the stored ones that it consists of.
Pieces = Mapping[str, tuple[str, ...]]

#: Prefix of the patcher's tensors among ours.
PATCHER_PREFIX = "patcher."


@dataclass(frozen=True)
class Vocabulary:
    """Lists names without ``.weight``; several names denote tensors joined along the first axis, in this order."""

    parts: Mapping[str, str]
    """Our module to theirs, e.g. ``encoder``; the longest match is used."""
    block: Mapping[str, tuple[str, ...]]
    """Our tensors to theirs inside ``layers.N``."""
    cross_attention: Mapping[str, tuple[str, ...]]
    """Our tensors to theirs inside a cross-attention."""
    hash_tables: str
    """Name of the fused hash table, or of each table if it contains ``{}`` for the table's number."""


#: Our names: module, number of its layer or cross-attention, what is inside.
_LAYER = re.compile(r"(?P<part>\w+)\.(?P<list>layers|cross_layers)\.(?P<index>\d+)\.(?P<leaf>.+)")
_CROSS = "encoder.cross_attention."


def translate(config: BltConfig, words: Vocabulary) -> Pieces:
    """Return the names of each of our tensors in a layout."""
    from fastblt.models.formats.checkpoint import expected_shapes

    return {name: _translated(name.removesuffix(".weight"), config, words) for name in expected_shapes(config)}


def _translated(name: str, config: BltConfig, words: Vocabulary) -> tuple[str, ...]:
    if name == "encoder.hash_embeddings":
        count = config.hash.tables if "{}" in words.hash_tables else 1
        return tuple(f"{words.hash_tables.format(table)}.weight" for table in range(count))
    found = _LAYER.fullmatch(name)
    if found is not None:
        inside = words.block if found["list"] == "layers" else words.cross_attention
        prefix = f"{words.parts[found['part']]}{words.parts[found['list']]}.{found['index']}"
        return tuple(f"{prefix}.{leaf}.weight" for leaf in inside[found["leaf"]])
    if name.startswith(_CROSS):
        prefix = f"{words.parts['encoder']}{words.parts['cross_layers']}.0"
        return tuple(f"{prefix}.{leaf}.weight" for leaf in words.cross_attention[name.removeprefix(_CROSS)])
    if name in words.parts:
        return (f"{words.parts[name]}.weight",)
    part, _, leaf = name.partition(".")
    return (f"{words.parts[part]}{words.parts[leaf]}.weight",)
