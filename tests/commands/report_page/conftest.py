"""Provides pages whose figures are all known, and a browser."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.browser import chromium
from fakes.report_content import DEVICE, EVIL, QUANTIZATION, report, samples
from playwright.sync_api import Browser

from fastblt.commands.inspect_facts import ModelFacts, read_facts
from fastblt.commands.report_page.page import ReportContent


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium; tests skip where there is none."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def facts(tiny_bundle: Path) -> ModelFacts:
    return read_facts(str(tiny_bundle), 256)


@pytest.fixture
def quantized(facts: ModelFacts) -> ModelFacts:
    """The same, as if it had been quantized."""
    assert facts.manifest is not None
    return dataclasses.replace(facts, manifest=dataclasses.replace(facts.manifest, quantization=QUANTIZATION))


@pytest.fixture
def content(quantized: ModelFacts) -> ReportContent:
    """A page with every section."""
    return ReportContent(report(), quantized, samples(), "2026-01-02")


@pytest.fixture
def evil_content(quantized: ModelFacts) -> ReportContent:
    """The same, with markup wherever a file, a machine or a model has a say."""
    device = {**DEVICE, "cpu": EVIL, "os": EVIL, "gpus": [EVIL], "versions": {EVIL: EVIL}}
    bad = dataclasses.replace(report(), model=EVIL, dtype=EVIL, device=device)
    assert quantized.manifest is not None
    scheme = dataclasses.replace(quantized.manifest, quantization={**QUANTIZATION, "scheme": EVIL})
    facts = dataclasses.replace(quantized, config=dataclasses.replace(quantized.config, name=EVIL), manifest=scheme)
    return ReportContent(bad, facts, samples(EVIL.encode(), EVIL.encode()), EVIL, EVIL)
