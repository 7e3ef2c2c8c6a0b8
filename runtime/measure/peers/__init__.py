"""Other software that a benchmark compares with: it generates whole texts and is no backend of ours.

A peer runs a bundle's own weights, so that its output can be compared byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fastblt.models.config import BltConfig
from fastblt.runtime.generation import Generation

PEERS = ("transformers",)


class Generator(Protocol):
    """What a benchmark measures: a runtime of ours, or a peer."""

    @property
    def config(self) -> BltConfig:
        """The model's."""
        ...

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        ...

    def generate(self, prompt: bytes, max_new_bytes: int, *, method: str) -> Generation:
        """Greedy text after a prompt, ended by EOS or after so many tokens."""
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
