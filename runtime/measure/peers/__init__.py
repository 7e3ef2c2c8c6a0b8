"""Loads other software that a benchmark compares with; a peer generates whole texts and is no backend of ours.

A peer runs a bundle's own weights, so that its output can be compared byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from fastblt.models.config import BltConfig
from fastblt.runtime.generation import Generation
from fastblt.runtime.sequence.stats import RunStats

PEERS = ("transformers",)


class Generator(Protocol):
    """Generates text and can be measured: a runtime of ours, or a peer."""

    @property
    def config(self) -> BltConfig:
        """Return the model's configuration."""
        ...

    @property
    def device(self) -> str:
        """Return ``cpu`` or ``cuda``."""
        ...

    def generate(self, prompt: bytes, max_new_bytes: int, *, method: str) -> Generation:
        """Generate greedily after a prompt, until EOS or ``max_new_bytes`` tokens."""
        ...


class GeneratedBatch(NamedTuple):
    """Holds texts that a peer has written as one batch."""

    texts: list[bytes]
    stats: RunStats
    """Of the batch: a call counts once, a round is a byte of every text."""


@runtime_checkable
class BatchGenerator(Protocol):
    """Marks a peer that can generate after several prompts at once."""

    def generate_batch(self, prompts: Sequence[bytes], max_new_bytes: int) -> GeneratedBatch:
        """Generate greedily after prompts of one length, ``max_new_bytes`` tokens each, whatever they are."""
        ...


def load_peer(bundle: Path, name: str, provider: str, threads: int | None) -> Generator:
    """Load a bundle's weights, or a checkpoint's, into a peer.

    Raises:
        PeerError: the peer is not installed, or cannot run this model.
        BundleError: the bundle cannot be used.
    """
    assert name in PEERS, name
    from fastblt.runtime.measure.peers.transformers import TransformersPeer

    return TransformersPeer.load(bundle, provider, threads)
