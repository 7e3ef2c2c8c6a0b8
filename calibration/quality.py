"""Measures the quality of a bundle on held-out text, compared with the bundle that it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastblt.calibration.precision import CalibrationError
from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.scoring.figures import sum_up
from fastblt.runtime.measure.scoring.plan import ScoringPlan, ScoringRequest, make_scoring_plan
from fastblt.runtime.measure.scoring.scores import score
from fastblt.runtime.measure.scoring.windows import OVERALL
from fastblt.runtime.sequence.likelihood import score_tokens

#: Losses that a budget can limit: relative growth of bits per byte, decrease of shares of outcomes.
LIMITS = ("bpb", "agreement", "boundaries", "masked", "acceptance")


@dataclass(frozen=True)
class Outcomes:
    """Holds the outcomes of a bundle on the windows."""

    bits_per_byte: float
    best: list[Ids]
    """Most likely token after each token, per window."""
    ends: list[tuple[int, ...]]
    """Patch ends per window."""
    masked: float | None = None
    """Accuracy on hidden bytes, all rates together, reading the last closed patch."""
    acceptance: Mapping[str, float] = field(default_factory=dict)
    """Accepted part of the drafts, by method."""


@dataclass(frozen=True)
class Quality:
    """Compares one bundle with another; shares are in [0, 1]."""

    bits_per_byte: float
    agreement: float
    """Share of next bytes that equal the reference's."""
    boundaries: float
    """Share of the patch ends of either bundle that both have."""
    masked: float | None
    acceptance: Mapping[str, float]

    def losses(self, reference: Quality) -> dict[str, float]:
        """Return how much worse the bundle is, by the names of `LIMITS`."""
        found = {
            "bpb": self.bits_per_byte / reference.bits_per_byte - 1.0,
            "agreement": 1.0 - self.agreement,
            "boundaries": 1.0 - self.boundaries,
        }
        if self.masked is not None and reference.masked is not None:
            found["masked"] = reference.masked - self.masked
        if self.acceptance:
            found["acceptance"] = max(reference.acceptance[name] - rate for name, rate in self.acceptance.items())
        return found


def full_plan(config: BltConfig, anchors: int) -> ScoringPlan:
    """Return the plan of everything that is measured of a candidate that may be kept."""
    request = ScoringRequest(
        k=(4, 8), draft_rules=("one", "0.3"), rules=(), mask_rates=(0.25, 0.5, 0.75, 1.0), top_p=(), gamma=(),
        anchors=anchors,
    )  # fmt: skip
    return make_scoring_plan(request, config)


def measure(bundle: Path, windows: Sequence[Ids], plan: ScoringPlan | None = None) -> Outcomes:
    """Score windows of true text.

    Args:
        bundle: one that the CPU can run.
        windows: int64 [1 + bytes] each, beginning with BOS.
        plan: drafts and masks to measure, too; None: code length only.

    Raises:
        CalibrationError: the model returns numbers that are not finite.
    """
    runtime = BltRuntime.from_pretrained(bundle, max_bytes=max(map(len, windows)), reuse_prompts=False)
    nats, best, ends = 0.0, [], []
    for ids in windows:
        found: list[Ids] = []
        with runtime.session() as session:
            logprobs = score_tokens(session, ids, on_rows=lambda rows, found=found: found.append(rows.best.copy()))  # type: ignore[misc]
            ends.append(tuple(int(position) for position in session.patch_ends))
        nats -= float(logprobs.sum())
        best.append(np.concatenate(found))
    if not math.isfinite(nats):
        raise CalibrationError(f"{bundle}: found a code length of {nats}, expected a finite number")
    bits = nats / math.log(2) / sum(len(ids) - 1 for ids in windows)
    if plan is None:
        return Outcomes(bits, best, ends)
    figures = sum_up(score(runtime, {"text": list(windows)}, [], plan))
    hidden = [row for row in figures.masked if row.latent == "closed" and row.data == OVERALL]
    return Outcomes(
        bits,
        best,
        ends,
        sum(row.right for row in hidden) / sum(row.hidden for row in hidden) if hidden else None,
        {row.method: row.acceptance for row in figures.drafts if row.data == OVERALL},
    )


def compare(found: Outcomes, reference: Outcomes) -> Quality:
    """Compare one bundle's outcomes with another's on the same windows."""
    equal = sum(int((a == b).sum()) for a, b in zip(found.best, reference.best, strict=True))
    pairs = [(set(a), set(b)) for a, b in zip(found.ends, reference.ends, strict=True)]
    return Quality(
        found.bits_per_byte,
        equal / sum(map(len, reference.best)),
        sum(len(a & b) for a, b in pairs) / sum(len(a | b) for a, b in pairs),
        found.masked,
        dict(found.acceptance),
    )


def parse_budget(text: str) -> dict[str, float]:
    """Return limits by name, given e.g. ``bpb=0.5%,acceptance=1%``.

    Raises:
        CalibrationError: a name is not one of `LIMITS`, or a limit is no percentage.
    """
    limits = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        try:
            limit = float(value.removesuffix("%")) / 100 if value.endswith("%") else math.nan
        except ValueError:
            limit = math.nan
        if name not in LIMITS or not 0 <= limit < math.inf:
            expected = f"NAME=PERCENT% with a name of {', '.join(LIMITS)}, e.g. bpb=0.5%"
            raise CalibrationError(f"--budget: found {item!r}, expected {expected}")
        limits[name] = limit
    return limits


def exceeded(losses: Mapping[str, float], budget: Mapping[str, float]) -> dict[str, float]:
    """Return the losses that exceed their limits."""
    return {name: losses[name] for name, limit in budget.items() if losses.get(name, 0.0) > limit}
