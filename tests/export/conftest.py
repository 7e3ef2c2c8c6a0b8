"""Reports what was compiled: engine sizes and build seconds are listed at the end of a test run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastblt.runtime.bundle.engines import EngineFolder


@pytest.fixture
def report_engines(record_property: Callable[[str, object], None]) -> Callable[[str, EngineFolder], None]:
    """``report_engines(name, folder)``: list a folder of engines at the end of the run."""

    def report(name: str, folder: EngineFolder) -> None:
        for engine in folder.engines:
            sms = ", ".join(str(sm) for sm in folder.sms)
            line = (
                f"{name}, {folder.dtype}, {folder.operators}, SM {sms}: {engine.file} {engine.bytes / 1e6:.1f} MB "
                f"in {engine.build_seconds:.1f} s, {len(engine.aliases)} caches in place"
            )
            record_property("engine", line)

    return report
