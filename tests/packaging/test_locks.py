"""What `make` installs is in a lock with its hashes, in the versions of ``constraints.txt``."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
#: Other systems' packages, and those of tools that have an environment of their own.
NOT_IN_CONSTRAINTS = {"colorama", "httpx2-jsfetch"}

all_locks = pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)


def entries(lock: Path) -> dict[str, tuple[Requirement, list[str]]]:
    """Return each package of a lock with its hashes."""
    text = "".join(line for line in lock.read_text(encoding="utf-8").splitlines(True) if not line.startswith("#"))
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        found[canonicalize_name(Requirement(requirement).name)] = (Requirement(requirement), hashes)
    return found


def pins(lock: Path) -> dict[str, str]:
    """Return the version of each package of a lock, without what follows a plus sign."""
    return {name: str(found.specifier).removeprefix("==").split("+")[0] for name, (found, _) in entries(lock).items()}


def constraints(python: str = "3.11") -> dict[str, str]:
    """Return the version of each package in constraints.txt that a version of Python gets."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    fitting = [each for each in pinned if each.marker is None or each.marker.evaluate({"python_version": python})]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in fitting}


def needed_by(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Return what a package needs on this machine, directly or through other installed ones."""
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    found = set()
    for requirement in map(Requirement, requirements_of(name)):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            needed = canonicalize_name(requirement.name)
            found |= {needed} | needed_by(needed, frozenset(requirement.extras), seen)
    return found


def requirements_of(name: str) -> list[str]:
    """Return the requirements of a package, none if it is not installed."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def test_nothing_is_installed_without_a_lock_and_every_lock_is_made_by_make() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    written = set(re.findall(r"--output-file (locks/\S+)", makefile))
    assert {f"locks/{lock.name}" for lock in LOCKS} == written | {"locks/torch-cpu.txt"}
    installs = re.findall(r"^.*pip install.*$", makefile, re.MULTILINE)
    assert len(installs) == 4
    assert [line for line in installs if "--require-hashes" not in line and "--no-index" not in line] == []
    containerfile = (ROOT / "Containerfile").read_text(encoding="utf-8")
    hashed = set(re.findall(r"--require-hashes -r \"?/src/(locks/[^\s\"]+)", containerfile))
    assert hashed == {"locks/build.txt", "locks/${EXTRA}.txt"}
    images = re.findall(r"^FROM (\S+)", containerfile, re.MULTILINE)
    assert [image for image in images if not re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", image)] == ["${BASE}"]


@all_locks
def test_every_package_of_a_lock_is_pinned_and_has_hashes(lock: Path) -> None:
    found = entries(lock)
    assert found
    for requirement, hashes in found.values():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement


@all_locks
def test_versions_of_locks_are_those_of_constraints(lock: Path) -> None:
    pinned, found = constraints("3.10" if lock.stem == "jetpack6" else "3.11"), pins(lock)
    assert {name: version for name, version in found.items() if pinned.get(name, version) != version} == {}
    if lock.stem not in ("tools", "torch", "uv"):  # what only those bring along is pinned by them alone
        # PyTorch asks for other versions of NVIDIA's libraries than ONNX Runtime.
        others = {name for name in found if lock.stem == "gpu" and name.startswith("nvidia-")}
        assert set(found) - set(pinned) <= NOT_IN_CONSTRAINTS | others


@pytest.mark.parametrize(
    ("lock", "extras"), [("core", ()), ("gpu", ("gpu",)), ("export", ("export",)), ("dev", ("export", "train", "dev"))]
)
def test_locks_hold_everything_that_is_needed(lock: str, extras: tuple[str, ...]) -> None:
    """Installations do not resolve dependencies: what a lock lacks would be missing."""
    locked = set(pins(ROOT / "locks" / f"{lock}.txt")) | ({"torch"} if "export" in extras else set())
    of_cuda_build = set(pins(ROOT / "locks" / "torch.txt")) - set(constraints())
    needed = needed_by("fastblt", frozenset(extras), set())
    assert len(needed) > 5
    assert needed - of_cuda_build <= locked


def test_locks_of_extras_are_for_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    others = {"build", "core", "tools", "torch", "torch-cpu", "uv"}
    assert {lock.stem for lock in LOCKS} - others <= set(project["optional-dependencies"])
    assert pins(ROOT / "locks/gpu.txt").keys() >= {"nvidia-cudnn-cu13", "nvidia-cuda-runtime", "nvidia-cublas"}
    cuda = [line for line in (ROOT / "locks/cuda.in").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    for name in ("core", "export", "dev"):
        assert not set(pins(ROOT / "locks" / f"{name}.txt")) & set(cuda)
