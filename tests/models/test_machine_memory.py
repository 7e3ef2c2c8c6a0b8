from pathlib import Path

import pytest

from fastblt.models import machine_memory
from fastblt.models.machine_memory import check_memory, host_memory, physical_memory


def test_memory_is_that_of_the_machine() -> None:
    memory = physical_memory()
    assert memory is not None
    assert 2**28 < memory < 2**48
    both = host_memory()
    assert both is not None
    assert memory <= both < 2**48


@pytest.mark.parametrize(("content", "limited"), [("1048576\n", True), ("max\n", False), ("", False)])
def test_memory_is_that_of_the_container_when_it_has_less(
    content: str, limited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_memory, "_GROUP_LIMITS", (tmp_path / "none", tmp_path / "limit"))
    machine = physical_memory()
    (tmp_path / "limit").write_text(content)
    assert physical_memory() == (2**20 if limited else machine)


def test_error_has_both_sizes_when_memory_cannot_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "host_memory", lambda: 24 * 10**9)
    check_memory(24 * 10**9, "m", "weights", ValueError)
    with pytest.raises(ValueError, match=r"^m: found 1,000\.0 GB of weights, expected at most .* memory, 24\.0 GB$"):
        check_memory(10**12, "m", "weights", ValueError)
    monkeypatch.setattr(machine_memory, "host_memory", lambda: None)
    check_memory(10**18, "m", "weights", ValueError)
