"""Counts what a generation did and what it cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from fastblt.models.config import BltConfig
from fastblt.models.parameters import count_parameters


@dataclass
class RunStats:
    """Holds the counters of one generation; NFE = network function evaluations (forward passes)."""

    nfe: Counter[str] = field(default_factory=Counter)
    """Calls of each part: patcher, encoder, global, decoder, and draft if there is a draft decoder."""
    part_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds inside the backend for each part; the rest of the total is the control flow."""
    graph_calls: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Calls of each part's graph, each divided by the sequences that it served."""
    moved_bytes: int = 0
    """Weight and cache bytes that the calls read."""
    rounds: int = 0
    """Draft-and-verify rounds (autoregressive: bytes)."""
    drafted: int = 0
    """Bytes drafted."""
    accepted: int = 0
    """Drafted bytes that verification accepted."""
    forced: int = 0
    """Bytes that a grammar forced, and the model was not asked about."""
    prompt_bytes: int = 0
    """Bytes of the prompt."""
    reused_bytes: int = 0
    """Bytes of the prompt that had been read for an earlier text, and were not read again."""
    new_bytes: int = 0
    """Bytes generated."""
    first_byte_seconds: float = 0.0
    """From the call to the first new byte, the prompt included."""
    total_seconds: float = 0.0
    """From the call to the last new byte so far."""
    byte_seconds: list[float] = field(default_factory=list)
    """Seconds of each byte after the first: a round's time divided by its bytes."""

    @property
    def acceptance(self) -> float | None:
        """Return the accepted part of the drafted bytes; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def decoder_calls(self) -> int:
        """Return the calls of the decoder, and of the draft decoder if there is one."""
        return self.nfe["decoder"] + self.nfe["draft"]

    @property
    def bytes_per_second(self) -> float:
        """Return the new bytes per second of the whole generation, prompt included."""
        return self.new_bytes / self.total_seconds if self.total_seconds else 0.0

    def estimated_gb(self, config: BltConfig) -> float:
        """Return the weight traffic in GB by the formula of arXiv 2605.08044: 16-bit weights, no patcher, no caches."""
        # Matrices of low rank are part of full ones where they are run.
        parts = count_parameters(replace(config, draft_rank=None))
        decoder = self.nfe["decoder"] * parts.decoder
        encoder = self.nfe["encoder"] * parts.encoder + self.nfe["global"] * parts.global_transformer
        draft = self.nfe["draft"] * parts.draft
        return 2 * (decoder + encoder + draft) / 1e9
