"""Checks that doctor learns from NVML what the driver reports, and nothing where NVML is missing or fails."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

import pytest

from fastblt.commands.doctor import describe
from fastblt.runtime.doctor.facts import probe
from fastblt.runtime.doctor.nvml import Board, read_nvml

H100 = Board("NVIDIA H100 80GB HBM3", 90, 80 * 2**30, 79 * 2**30, 700.0, 1980)


class NVMLError(Exception):
    """Stands in for the error that the real module raises."""


class FakeNvml:
    """Stands in for the module ``pynvml`` of nvidia-ml-py on a machine with one H100 and one other GPU.

    Args:
        failing: names of functions that raise.
    """

    NVML_CLOCK_SM = 1

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.open = 0

    def __getattribute__(self, name: str) -> object:
        if name.startswith("nvml") and name in self.failing:
            raise NVMLError(name)
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.95.05"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:  # noqa: N802
        return H100.name if handle == 0 else b"an older module returns bytes"

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return 9, 0

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=80 * 2**30, free=79 * 2**30, used=2**30)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: int, type: int) -> int:  # noqa: N802
        assert type == self.NVML_CLOCK_SM
        return 1980


def install(monkeypatch: pytest.MonkeyPatch, *failing: str) -> FakeNvml:
    fake = FakeNvml(*failing)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_driver_and_gpus_are_read_and_nvml_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch)
    version, boards = read_nvml()
    assert (version, boards[0]) == ("580.95.05", H100)
    assert [board.name for board in boards] == [H100.name, "an older module returns bytes"]
    assert fake.open == 0


def test_missing_package_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_nvml() == (None, ())


@pytest.mark.parametrize(
    ("failing", "version", "boards"),
    [
        ("nvmlInit", None, 0),
        ("nvmlSystemGetDriverVersion", None, 2),
        ("nvmlDeviceGetCount", "580.95.05", 0),
        ("nvmlDeviceGetHandleByIndex", "580.95.05", 0),
        ("nvmlDeviceGetName", "580.95.05", 0),
        ("nvmlShutdown", "580.95.05", 2),
    ],
)
def test_failing_call_leaves_out_what_it_would_have_returned(
    monkeypatch: pytest.MonkeyPatch, failing: str, version: str | None, boards: int
) -> None:
    install(monkeypatch, failing)
    found = read_nvml()
    assert (found[0], len(found[1])) == (version, boards)


@pytest.mark.parametrize(
    ("failing", "fields"),
    [
        ("nvmlDeviceGetCudaComputeCapability", {"sm"}),
        ("nvmlDeviceGetMemoryInfo", {"memory_bytes", "free_bytes"}),
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_watts"}),
        ("nvmlDeviceGetMaxClockInfo", {"max_clock_mhz"}),
    ],
)
def test_query_that_a_gpu_does_not_support_is_none(
    monkeypatch: pytest.MonkeyPatch, failing: str, fields: set[str]
) -> None:
    install(monkeypatch, failing)
    board = read_nvml()[1][0]
    assert {name for name, value in vars(board).items() if value is None} == fields


def test_module_that_warns_when_imported_warns_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("package")
    (folder / "pynvml.py").write_text("import warnings\nwarnings.warn('use nvidia-ml-py', FutureWarning)\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_nvml() == (None, ())
    assert sys.modules["pynvml"].__file__ == str(folder / "pynvml.py")
    assert caught == []
    monkeypatch.delitem(sys.modules, "pynvml")


def test_doctor_describes_gpus_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "nvmlDeviceGetEnforcedPowerLimit")
    facts = probe()
    assert (facts.driver_version, len(facts.boards)) == ("580.95.05", 2)
    lines = describe(facts)
    assert any(line.startswith("driver: 580.95.05") for line in lines)
    expected = f"GPU that the driver reports: {H100.name}, SM 90, 79.0 of 80.0 GiB free, clock up to 1980 MHz"
    assert expected in lines


def test_doctor_describes_power_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert any(line.endswith("power limit 700 W, clock up to 1980 MHz") for line in describe(probe()))
