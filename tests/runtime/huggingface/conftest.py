"""Provides models of transformers' interface: over the tiny bundles, and over a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastblt.runtime.huggingface.causal_lm import ORTBltForCausalLM


@pytest.fixture(scope="module", params=["tiny_bundle", "tiny_encoder_bundle"])
def bundle(request: pytest.FixtureRequest) -> Path:
    """Of BLT-D and of BLT."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def model(bundle: Path) -> ORTBltForCausalLM:
    return ORTBltForCausalLM.from_pretrained(bundle, max_bytes=300)


@pytest.fixture(scope="module")
def tiny_causal_lm(tiny_bundle: Path) -> ORTBltForCausalLM:
    return ORTBltForCausalLM.from_pretrained(tiny_bundle, max_bytes=100)


@pytest.fixture
def scripted_lm(scripted: Callable[..., Any]) -> Callable[..., ORTBltForCausalLM]:
    """``scripted_lm(text)``: a model that says this text, as bytes or as tokens after BOS."""
    return lambda text: ORTBltForCausalLM(scripted(text), Path("nowhere"), "scripted")
