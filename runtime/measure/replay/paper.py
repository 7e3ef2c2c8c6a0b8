"""Holds the operating points that Fast BLT (arXiv 2605.08044) reports, and estimates what they cost on a model.

The points are those of the paper's 1B models: 512 bytes of French to English. They are the only published figures in
the package: replays (``--replay paper``) and the estimates of ``inspect`` read them here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.methods.registry import runnable
from fastblt.runtime.sequence.stats import RunStats

#: Bytes that the calls of a point are counted for.
POINT_BYTES = 512
#: Bytes per patch on this text: BLT's 512 bytes took 250 global calls. On its training data the models average 4.
POINT_PATCH = 2.05


@dataclass(frozen=True)
class OperatingPoint:
    """Describes what the paper reports of one method."""

    method: str
    """The method's name here, e.g. ``s:8``."""
    size: int
    """Bytes per draft or block; of ``ar`` 1."""
    acceptance: float | None
    """Part of the drafted bytes that verification kept; None where nothing is verified."""
    decoder_calls: int
    """Decoder calls for `POINT_BYTES` bytes."""
    patch_calls: int
    """Encoder calls, and as many global calls, for `POINT_BYTES` bytes; in the paper mostly two of each per round."""
    gb: float
    """Weight traffic in GB for `POINT_BYTES` bytes of the 1B model, 16-bit weights."""
    steps: float | None = None
    """Decoder calls that write a block; None where every byte of a draft takes one."""

    @property
    def round_bytes(self) -> float:
        """Return the mean of the bytes per round: what is kept, and after a verification one byte more."""
        return float(self.size) if self.acceptance is None else self.size * self.acceptance + 1

    @property
    def round_decoder_calls(self) -> float:
        """Return the mean of the decoder calls per round: of the draft or block, and one that verifies it."""
        return (self.steps or self.size) + (self.acceptance is not None)


#: Steps are decoder calls per block; of dv:8@0.3 without the verification: 134 encoder calls are 67 rounds.
POINTS = (
    OperatingPoint("ar", 1, None, 512, 250, 814.95),
    OperatingPoint("s:4", 4, 0.9677, 526, 212, 719.45),
    OperatingPoint("s:8", 8, 0.9114, 558, 125, 504.08),
    OperatingPoint("s:16", 16, 0.7693, 664, 79, 418.26),
    OperatingPoint("d:4@0.7", 4, None, 213, 128, 401.38, 213 / 128),
    OperatingPoint("d:8@0.7", 8, None, 187, 64, 226.00, 187 / 64),
    OperatingPoint("d:16@0.7", 16, None, 100, 32, 115.34, 100 / 32),
    OperatingPoint("d:8@eb1.0", 8, None, 244, 64, 243.95, 244 / 64),
    OperatingPoint("dv:8@one", 8, 0.8034, 139, 139, 408.23, 1.0),
    OperatingPoint("dv:8@0.3", 8, 0.8381, 176, 134, 406.37, 176 / 67 - 1),
    OperatingPoint("dv:16@one", 16, 0.7719, 80, 80, 234.33, 1.0),
)

#: Points that a short list shows: one of each kind of method.
SHORT_LIST = ("ar", "s:8", "d:8@0.7", "dv:8@one")


def operating_point(method: str) -> OperatingPoint | None:
    """Return the point of a method, which may differ in options (``dv:8@one+partial``); None: there is none."""
    name = method.partition("+")[0]
    return next((point for point in POINTS if point.method == name), None)


@dataclass(frozen=True)
class Estimate:
    """Describes what `POINT_BYTES` bytes cost a model at an operating point, with the calls that this runtime makes."""

    point: OperatingPoint
    calls: Counter[str]
    """Calls of ``encoder``, ``global`` and ``decoder``, and of ``draft`` if there is a draft decoder."""
    gb: float
    """Weight traffic in GB by the paper's formula: 16-bit weights, no patcher, no caches."""


def estimates(config: BltConfig, methods: Sequence[str] = SHORT_LIST) -> list[Estimate]:
    """Estimate calls and weight traffic of methods on a model, all at the same operating points.

    Acceptance, steps and bytes per patch (`bytes_per_patch`) are the paper's. Calls are this runtime's: a round makes
    the latents of all patches that it closes in one encoder call and one global call, where the paper counts two of
    each.

    Args:
        config: the model's.
        methods: names of `POINTS`; those that the model cannot run are left out.

    Raises:
        ValueError: the paper has no figures of a method.
    """
    found = []
    for name in runnable(methods, config).names:
        point = operating_point(name)
        if point is None:
            expected = ", ".join(each.method for each in POINTS)
            raise ValueError(f"estimate: found method {name!r}, expected one of {expected}")
        calls = _calls(point, config)
        found.append(Estimate(point, calls, RunStats(nfe=calls).estimated_gb(config)))
    return found


def bytes_per_patch(config: BltConfig) -> float:
    """Return the bytes per patch that estimates assume: the paper's, or what the model's patches allow."""
    longest = config.patching.max_patch_length
    if longest is not None and (config.patching.mode == "static" or longest < POINT_PATCH):
        return float(longest)
    return POINT_PATCH


def _calls(point: OperatingPoint, config: BltConfig) -> Counter[str]:
    """Count the calls of each part for `POINT_BYTES` bytes, rounded up."""
    rounds = POINT_BYTES / point.round_bytes
    patches = math.ceil(min(rounds, POINT_BYTES / bytes_per_patch(config)))
    decoder = math.ceil(rounds * point.round_decoder_calls)
    if config.has_draft and point.steps is not None:
        # The draft decoder takes the steps; a call of each other part scores what a round has written.
        whole = math.ceil(rounds)
        return Counter(decoder=whole, encoder=whole, draft=math.ceil(rounds * point.steps), **{"global": patches})
    # Where the decoder reads byte states, the encoder runs on every byte, drafted ones included.
    encoder = decoder if config.decoder_reads_states else patches
    return Counter({"decoder": decoder, "encoder": encoder, "global": patches})
