"""Tensor names of other layouts, as translations of ours.

A layout's `Vocabulary` says what it calls the parts of a model, of a transformer block and of a cross-attention; from
it and a configuration follows the whole table `fastblt.models.formats.checkpoint.Pieces`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.models.formats.checkpoint import Pieces, expected_shapes


@dataclass(frozen=True)
class Vocabulary:
    """Names without ``.weight``; several names stand for tensors joined along the first axis, in this order."""

    parts: Mapping[str, str]
    """Our module to theirs, e.g. ``encoder``; the longest that fits is taken."""
    block: Mapping[str, tuple[str, ...]]
    """What is inside ``layers.N``."""
    cross_attention: Mapping[str, tuple[str, ...]]
    """What is inside a cross-attention."""
    hash_tables: str
    """Name of the fused hash table; with ``{}``, of table number so and so."""


#: Our names: module, number of its layer or cross-attention, what is inside.
_LAYER = re.compile(r"(?P<part>\w+)\.(?P<list>layers|cross_layers)\.(?P<index>\d+)\.(?P<leaf>.+)")
_CROSS = "encoder.cross_attention."


def translate(config: BltConfig, words: Vocabulary) -> Pieces:
    """What each of our tensors is called in a layout."""
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
