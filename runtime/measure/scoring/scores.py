"""Runs a plan over one loaded model and keeps every single outcome."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.scoring.free_running import Generated, generate_all
from fastblt.runtime.measure.scoring.plan import ScoringPlan
from fastblt.runtime.measure.scoring.teacher_forced import WindowScore, score_window
from fastblt.runtime.progress import OnProgress, no_progress

AR = "ar"


@dataclass
class Scores:
    """Holds every outcome of one backend."""

    backend: str
    device: str
    windows: dict[str, list[WindowScore]] = field(default_factory=dict)
    """By the name of the text."""
    greedy: dict[str, Generated] = field(default_factory=dict)
    """By method; ``ar`` and BLT-D."""
    sampled: list[Generated] = field(default_factory=list)
    seconds: float = 0.0


def count_steps(texts: Mapping[str, Sequence[Ids]], plan: ScoringPlan) -> int:
    """Return the number of steps whose progress `score` reports: windows, and sets of generated texts."""
    return sum(map(len, texts.values())) + (1 + len(plan.blocks) if plan.blocks else 0) + len(plan.sampling)


def score(
    runtime: BltRuntime,
    texts: Mapping[str, Sequence[Ids]],
    prompts: Sequence[bytes],
    plan: ScoringPlan,
    on_progress: OnProgress = no_progress,
) -> Scores:
    """Score a model.

    Args:
        runtime: with room for a window, and for a prompt and its new bytes.
        texts: windows of each text, from `cut_windows`.
        prompts: what text is generated after.
        plan: from `make_scoring_plan`.
        on_progress: called after each of `count_steps` steps.

    Raises:
        CapacityError: a window, or a prompt with its new bytes, does not fit the runtime.
    """
    began = time.perf_counter()
    scores = Scores(runtime.backend.name, runtime.backend.device)
    done, total = 0, count_steps(texts, plan)
    on_progress(done, total, "")

    def finish(what: str) -> None:
        nonlocal done
        done += 1
        on_progress(done, total, what)

    index = 0
    for name, windows in texts.items():
        scores.windows[name] = []
        for ids in windows:
            with runtime.session() as session:
                scores.windows[name].append(score_window(session, ids, plan, index))
            index += 1
            finish(name)
    for method in [AR, *(method.name for method in plan.blocks)] if plan.blocks else []:
        scores.greedy[method] = generate_all(runtime, prompts, plan.new_bytes, method)
        finish(method)
    for point in plan.sampling:
        scores.sampled.append(
            generate_all(
                runtime,
                prompts,
                plan.new_bytes,
                point.method.name,
                top_p=point.top_p,
                gamma=point.gamma,
                seed=plan.seed,
            )
        )
        finish(point.method.name)
    scores.seconds = time.perf_counter() - began
    return scores
