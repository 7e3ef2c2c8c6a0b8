"""What was compiled is told at the end of a run: engine sizes and build seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastblt.runtime.bundle.engines import EngineFolder

_COMPILED: list[str] = []


@pytest.fixture(scope="session")
def report_engines() -> Callable[[str, EngineFolder], None]:
    """``report_engines(name, folder)``: tell of a folder of engines."""

    def report(name: str, folder: EngineFolder) -> None:
        for engine in folder.engines:
            sms = ", ".join(str(sm) for sm in folder.sms)
            _COMPILED.append(
                f"{name}, {folder.dtype}, {folder.operators}, SM {sms}: {engine.file} {engine.bytes / 1e6:.1f} MB "
                f"in {engine.build_seconds:.1f} s, {len(engine.aliases)} caches in place"
            )

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _COMPILED:
        terminalreporter.section("engines compiled with TensorRT-RTX")
        for line in _COMPILED:
            terminalreporter.write_line(line)
