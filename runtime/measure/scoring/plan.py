"""Plans what to score: methods, rates and sizes, checked against a model before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastblt.models.config import BltConfig
from fastblt.runtime.methods import Method, parse_method
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Latent


@dataclass(frozen=True)
class SamplingPoint:
    """Specifies how text is sampled at temperature 1."""

    method: Method
    top_p: float
    gamma: float | None
    """Entropy bound of the block method, nats; None: autoregressive."""


@dataclass(frozen=True)
class ScoringPlan:
    """Determines the figures of a model, apart from the text."""

    drafts: tuple[Method, ...] = ()
    """Methods whose drafts are tried after true text: BLT-S and BLT-DV."""
    blocks: tuple[Method, ...] = ()
    """BLT-D, compared with autoregressive decoding."""
    mask_size: int = 0
    """Bytes of the blocks that masked accuracy is measured on; 0: it is left out."""
    mask_rates: tuple[float, ...] = ()
    """The paper's t, in (0, 1]."""
    latents: tuple[Latent, ...] = ("closed", "partial")
    """Latents that those blocks read."""
    sampling: tuple[SamplingPoint, ...] = ()
    anchors: int = 4
    """Places in a window after which drafts and blocks are tried."""
    new_bytes: int = 128
    """Bytes generated after each prompt."""
    seed: int = 0
    left_out: tuple[str, ...] = ()
    """What the model cannot do, one line each."""

    @property
    def longest_block(self) -> int:
        """Return the number of true bytes that have to follow an anchor."""
        return max(1, self.mask_size)


@dataclass(frozen=True)
class ScoringRequest:
    """Specifies what a user asks for; an empty list leaves its figures out. `make_scoring_plan` fits it to a model."""

    k: Sequence[int] = (4, 8, 16)
    """Draft lengths of BLT-S, bytes."""
    blocks: Sequence[int] | None = None
    """Block sizes of BLT-DV, bytes; BLT-D uses the largest. None: the trained size and half of it."""
    draft_rules: Sequence[str] = ("one", "0.3", "eb1.5")
    """Unmasking rules of BLT-DV, as after ``dv:8@``."""
    rules: Sequence[str] = ("0.5", "0.7", "0.9", "eb1.0", "one")
    """Unmasking rules of BLT-D, as after ``d:8@``."""
    mask_rates: Sequence[float] = tuple(i / 10 for i in range(1, 11))
    top_p: Sequence[float] = (0.5, 0.8, 1.0)
    gamma: Sequence[str] = ("1.0", "2.0", "4.0", "8.0")
    """Entropy bounds, nats, as after ``d:8@eb``."""
    anchors: int = ScoringPlan.anchors
    new_bytes: int = ScoringPlan.new_bytes
    seed: int = ScoringPlan.seed

    def check(self) -> None:
        """Check what does not depend on the model.

        Raises:
            SamplingError: a top-p is out of range.
            ValueError: a mask rate is out of range.
        """
        for top_p in self.top_p:
            Sampler(1.0, top_p)
        for rate in self.mask_rates:
            if not 0.0 < rate <= 1.0:
                raise ValueError(f"mask rate: found {rate}, expected a number in (0, 1]")


#: Diversity against cost alone, with the entropy bounds and the length of the paper's Figure 8 (texts begin with BOS).
FIGURE8 = ScoringRequest(
    k=(),
    draft_rules=(),
    rules=(),
    mask_rates=(),
    gamma=("0.5", "0.6", "0.7", "0.8", "0.9", "1.0", "1.1", "1.2"),
    new_bytes=1000,
)


def make_scoring_plan(request: ScoringRequest, config: BltConfig) -> ScoringPlan:
    """Fit a request to a model.

    Raises:
        MethodError: a method does not exist, or its blocks are longer than the model was trained on.
        SamplingError: a top-p is out of range.
        ValueError: a mask rate is out of range.
    """
    request.check()
    drafts = [f"s:{k}" for k in request.k]
    blocks: list[str] = []
    sampling = [SamplingPoint(parse_method("ar"), top_p, None) for top_p in request.top_p]
    left_out: list[str] = []
    if not config.block_size:
        left_out.append(f"{config.name} denoises no blocks: the figures of BLT-D and BLT-DV are left out")
    sizes = _block_sizes(request, config)
    if sizes:
        drafts += [f"dv:{size}@{rule}" for size in sizes for rule in request.draft_rules]
        blocks = [f"d:{max(sizes)}@{rule}" for rule in request.rules]
        for top_p in request.top_p:
            for gamma in request.gamma:
                method = _checked(f"d:{max(sizes)}@eb{gamma}", config)
                sampling.append(SamplingPoint(method, top_p, float(gamma)))
    return ScoringPlan(
        drafts=tuple(_checked(name, config) for name in dict.fromkeys(drafts)),
        blocks=tuple(_checked(name, config) for name in dict.fromkeys(blocks)),
        mask_size=config.block_size if request.mask_rates else 0,
        mask_rates=tuple(request.mask_rates),
        sampling=tuple(sampling),
        anchors=request.anchors,
        new_bytes=request.new_bytes,
        seed=request.seed,
        left_out=tuple(left_out),
    )


def _block_sizes(request: ScoringRequest, config: BltConfig) -> list[int]:
    """Return ascending sizes; none for a model without blocks, unless they were asked for (an error later)."""
    if request.blocks is not None:
        return sorted(set(request.blocks))
    return sorted({max(1, config.block_size // 2), config.block_size}) if config.block_size else []


def _checked(name: str, config: BltConfig) -> Method:
    method = parse_method(name)
    method.check(config)
    return method
