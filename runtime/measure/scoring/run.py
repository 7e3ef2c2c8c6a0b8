"""Evaluates a bundle from start to end: windows, loading, scores of one or two backends, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastblt import __version__
from fastblt.runtime.backends.entry import LoadRequest
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.backends.registry import DEFAULT_BACKEND, load_backend, load_reference
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.measure.loading import bundle_dtype
from fastblt.runtime.measure.requests import require_at_least
from fastblt.runtime.measure.scoring.comparison import BOUNDS, Check, compare
from fastblt.runtime.measure.scoring.figures import Figures, sum_up
from fastblt.runtime.measure.scoring.plan import ScoringPlan, ScoringRequest, make_scoring_plan
from fastblt.runtime.measure.scoring.scores import Scores, count_steps, score
from fastblt.runtime.measure.scoring.windows import Text, anchors, cut_windows
from fastblt.runtime.progress import OnProgress, no_progress, part_of

#: Values of `EvalRequest.against` that name no backend.
AUTO, NONE = "auto", "none"
EAGER = "eager"


class AgreementError(ValueError):
    """Two backends score differently, by more than rounding."""


@dataclass(frozen=True)
class EvalRequest:
    """Specifies what an evaluation scores.

    Raises:
        ValueError: a number is out of range, or a backend is compared with itself.
    """

    backend: str = DEFAULT_BACKEND
    against: str = AUTO
    """A second backend to compare with (eager: in fp32 whatever the bundle's dtype); ``auto``: eager where PyTorch is
    installed and the bundle is not quantized; ``none``."""
    provider: str = "auto"
    threads: int | None = None
    """Threads of one operator; None: the backend's choice."""
    windows: int = 6
    """Windows of each text, at most."""
    window_bytes: int = 512
    scoring: ScoringRequest = field(default_factory=ScoringRequest)

    def __post_init__(self) -> None:
        """Check the numbers and the backends."""
        require_at_least(1, threads=self.threads, windows=self.windows, window_bytes=self.window_bytes)
        if self.against == self.backend:
            raise ValueError(f"against: found {self.against!r}, expected another backend than the one that is scored")


@dataclass(frozen=True)
class EvalReport:
    """Holds what an evaluation scored, and the outcome."""

    bundle: Path
    model: str
    dtype: str
    request: EvalRequest
    plan: ScoringPlan
    windows: dict[str, list[Ids]]
    """By the name of the text."""
    prompts: int
    """Number of prompts that text was generated after."""
    prompt_bytes: int
    """Bytes of the longest."""
    scores: list[Scores]
    """Of each backend."""
    figures: list[Figures]
    """Of each backend."""
    checks: list[Check]
    """Empty where one backend was scored."""
    heldout: bool
    """Whether the texts are those that ship with the package."""

    @property
    def names(self) -> str:
        """Return the backends in words."""
        return " and ".join(scores.backend for scores in self.scores)

    def check(self) -> None:
        """Raise `AgreementError` where the figures of two backends differ by more than rounding."""
        failed = [check.figure for check in self.checks if not check.agree]
        if failed:
            raise AgreementError(
                f"{self.bundle}: found that {self.names} differ in {', '.join(failed)} by more than rounding, "
                "expected the same figures"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return setting, figures by backend, and agreement (null where one backend was scored) as JSON types."""
        return {
            "fastblt": __version__,
            "model": {"name": self.model, "dtype": self.dtype},
            "setting": self._setting(),
            "data": [{"name": name, "windows": len(cut)} for name, cut in self.windows.items()],
            "left_out": list(self.plan.left_out),
            "backends": {
                scores.backend: {
                    "device": scores.device,
                    "seconds": round(scores.seconds, 3),
                    "figures": dataclasses.asdict(figures),
                }
                for scores, figures in zip(self.scores, self.figures, strict=True)
            },
            "agreement": self._agreement() if self.checks else None,
        }

    def _setting(self) -> dict[str, Any]:
        plan = self.plan
        of_plan = ("anchors", "new_bytes", "mask_size", "mask_rates", "latents", "seed")
        return {
            "windows": self.request.windows,
            "window_bytes": self.request.window_bytes,
            "prompt_bytes": self.prompt_bytes,
            "prompts": self.prompts,
            **{name: getattr(plan, name) for name in of_plan},
            "drafts": [method.name for method in plan.drafts],
            "blocks": [method.name for method in plan.blocks],
            "sampling": [{"method": point.method.name, "top_p": point.top_p} for point in plan.sampling],
            "heldout": self.heldout,
        }

    def _agreement(self) -> dict[str, Any]:
        return {
            "backends": [scores.backend for scores in self.scores],
            "bounds": dataclasses.asdict(BOUNDS[self.dtype]),
            "checks": [{**dataclasses.asdict(check), "agree": check.agree} for check in self.checks],
            "agree": all(check.agree for check in self.checks),
        }


def run_eval(
    bundle: Path,
    request: EvalRequest,
    texts: Sequence[Text],
    prompts: Sequence[bytes],
    on_progress: OnProgress = no_progress,
    *,
    heldout: bool = False,
) -> EvalReport:
    """Load one or two backends and score them on windows of true text and on what they generate.

    Differences between backends are part of the report; `EvalReport.check` raises.

    Args:
        bundle: folder of the bundle.
        request: what to score.
        texts: true text, by name; each at least one window long.
        prompts: what text is generated after.
        on_progress: called after every window and every set of texts, of each backend.
        heldout: whether the texts are those that ship with the package, for the report.

    Raises:
        BundleError: the bundle cannot be used.
        MethodError: a method does not exist, or the model cannot run it.
        ValueError: a text is too short, or a value of the request is out of range.
    """
    windows = {text.name: cut_windows(text, request.windows, request.window_bytes) for text in texts}
    prompt_bytes = max(map(len, prompts), default=0)
    max_bytes = max(request.window_bytes, prompt_bytes + request.scoring.new_bytes)
    opened = Bundle.open(bundle, check=False)
    config = opened.config
    plan = make_scoring_plan(request.scoring, config)
    anchors(request.window_bytes, plan.anchors, plan.longest_block)  # refuses what does not fit, before anything loads
    names = _backends(request, quantized=opened.manifest.quantization is not None)
    load = LoadRequest(bundle, request.provider, max_bytes, request.threads)
    # The second one is what the first is compared with.
    backends = [load_backend(names[0], load), *(load_reference(name, load) for name in names[1:])]
    runtimes = [BltRuntime(backend, reuse_prompts=False) for backend in backends]
    each, scores = count_steps(windows, plan), []
    for index, runtime in enumerate(runtimes):
        part = part_of(on_progress, index * each, len(runtimes) * each, runtime.backend.name)
        scores.append(score(runtime, windows, prompts, plan, part))
    dtype = bundle_dtype(bundle)
    checks = compare(scores[0], scores[1], BOUNDS[dtype]) if len(scores) > 1 else []
    figures = [sum_up(each) for each in scores]
    return EvalReport(
        bundle, config.name, dtype, request, plan, windows, len(prompts), prompt_bytes, scores, figures, checks, heldout
    )  # fmt: skip


def _backends(request: EvalRequest, *, quantized: bool) -> list[str]:
    """Return the backends to score; eager PyTorch does not round inputs, as products with quantized weights do."""
    other = request.against
    if other == AUTO:
        other = EAGER if find_spec("torch") is not None and not quantized else NONE
    return [request.backend] if other in (NONE, request.backend) else [request.backend, other]
