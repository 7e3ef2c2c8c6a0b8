"""Puts a made-up source of a few kilobytes in place of the training corpus, and a short evaluation behind it."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

from fastblt.models.training import corpus, report
from fastblt.models.training.corpus_sources import Document, Source, text_digest
from fastblt.models.training.recipe import TrainConfig

DOCUMENTS: list[Document] = [(f"doc{i:03d}", f"{i} bottles of beer on the wall\n".encode() * 40) for i in range(60)]
SOURCE = Source("toy", "CC0-1.0", "made up", "1", 4, text_digest(DOCUMENTS), client="pip")
#: Saves and evaluates often: there are more moments to be interrupted in.
RECIPE = TrainConfig(
    model="tiny",
    budget_seconds=0.4,
    patcher_seconds=0.2,
    batch=2,
    window=64,
    long_window=128,
    save_every=0.1,
    eval_every=0.2,
)


def install() -> None:
    """Let ``fastblt data`` and ``fastblt train`` of this process use it."""
    changed = {"sources": (SOURCE,), "reader": lambda source, cache: DOCUMENTS}
    corpus.build_corpus.__kwdefaults__.update(changed)
    report.heldout_report = partial(report.heldout_report, windows=4, length=256)


def write_recipe(path: Path) -> None:
    """Write the recipe of a training run that takes a second."""
    path.write_text(json.dumps(dataclasses.asdict(RECIPE)), encoding="utf-8")
