"""The rooms of the package: what may import what, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("models", "runtime", "export", "calibration", "src/fastblt", "src/optimum")
LONGEST_FILE = 400

#: The stair, from top to bottom, as prefixes of module names (the longest that fits counts): a module imports from its
#: own step and from lower ones. Two rooms on one step do not import one another.
STAIR: tuple[tuple[str, ...], ...] = (
    ("optimum",),
    ("fastblt.__main__",),
    ("fastblt.cli",),
    ("fastblt.commands",),
    ("fastblt.calibration",),
    ("fastblt.runtime.fleet",),
    ("fastblt.runtime.causal_lm",),
    ("fastblt.runtime.huggingface",),
    ("fastblt.export", "fastblt.runtime.measure", "fastblt.runtime.serving"),
    ("fastblt.runtime.doctor", "fastblt.runtime.blt_runtime"),
    ("fastblt.runtime.sequences",),
    ("fastblt.runtime.batching",),
    ("fastblt.runtime.generation",),
    ("fastblt.runtime.request",),
    ("fastblt.runtime.methods",),
    ("fastblt.runtime.sequence",),
    ("fastblt.runtime.grammar",),
    ("fastblt.runtime.backends",),
    ("fastblt.runtime.bundle",),
    ("fastblt.runtime",),
    ("fastblt.models",),
    ("fastblt",),
)
#: Parts of `fastblt.runtime` that may import PyTorch.
WITH_TORCH = ("fastblt.runtime.backends.eager", "fastblt.runtime.measure.peers")
#: What generates; it does not measure.
GENERATING = ("batching", "methods", "sequence", "grammar", "backends", "bundle")


def module_name(path: Path) -> str:
    """The module that a file is, e.g. ``fastblt.runtime.machine``."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "src" else ["fastblt", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files() -> dict[str, Path]:
    """Every production module and its file; links to the top-level folders are not followed."""
    found = {}
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents if parent != ROOT and ROOT in parent.parents):
                found[module_name(path)] = path
    return found


FILES = files()


def imports(path: Path, *, of_types: bool = False, in_functions: bool = True) -> Iterator[str]:
    """Full names of what a file imports; under ``if TYPE_CHECKING``, and inside functions, only where asked for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped |= set() if of_types else {id(each) for body in node.body for each in ast.walk(body)}
        if isinstance(node, ast.FunctionDef):
            skipped |= set() if in_functions else {id(each) for each in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: found a relative import, expected absolute ones only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def own_imports(module: str, *, in_functions: bool = True) -> set[str]:
    """The modules of this project that a module imports."""
    found = set()
    for name in imports(FILES[module], in_functions=in_functions):
        while name and name not in FILES:
            name = name.rpartition(".")[0]
        if name and name != module:
            found.add(name)
    return found


def room_of(module: str) -> tuple[int, str]:
    """The step of a module, counted from the top, and the room on it."""
    fitting = [
        (len(room), step, room)
        for step, rooms in enumerate(STAIR)
        for room in rooms
        if module == room or module.startswith(f"{room}.")
    ]
    _, step, room = max(fitting)
    return step, room


def is_in(module: str, *rooms: str) -> bool:
    """Whether a module is one of the rooms or in one."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def test_every_module_is_found() -> None:
    assert {"fastblt", "fastblt.cli", "fastblt.models.config", "fastblt.runtime.measure.audit.run"} <= FILES.keys()
    assert len(set(FILES.values())) == len(FILES) > 150


def test_every_room_of_the_stair_exists() -> None:
    rooms = {*WITH_TORCH, *(f"fastblt.runtime.{room}" for room in GENERATING)}.union(*STAIR)
    assert {room for room in rooms if not any(is_in(module, room) for module in FILES)} == set()


def test_no_arrow_runs_up_the_stair() -> None:
    wrong = []
    for module in FILES:
        step, room = room_of(module)
        for other in own_imports(module):
            below, next_room = room_of(other)
            if below < step or (below == step and next_room != room):
                wrong.append(f"{module} ({room}) imports {other} ({next_room})")
    assert wrong == []


def test_no_circle_of_imports() -> None:
    """Of the imports that run when a module is loaded; between rooms those inside functions count too, see below."""
    arrows = {module: own_imports(module, in_functions=False) for module in FILES}
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, f"circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in state:
            return
        state[module] = 1
        for other in sorted(arrows[module]):
            if not module.startswith(f"{other}."):  # a package's own __init__ runs before its modules anyway
                visit(other, (*path, module))
        state[module] = 2

    for module in FILES:
        visit(module, ())


def test_no_circle_between_rooms() -> None:
    """Rooms below the steps of the stair, such as ``runtime.measure.bench``, have no circles either."""
    arrows: dict[str, set[str]] = {}
    for module, path in FILES.items():
        room = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for other in own_imports(module):
            below = other if FILES[other].name == "__init__.py" else other.rpartition(".")[0]
            related = is_in(room, below) or is_in(below, room)
            if not related:
                arrows.setdefault(room, set()).add(below)
    while arrows:
        leaves = {room for room, others in arrows.items() if not others & arrows.keys()}
        assert leaves, f"circle between some of {', '.join(sorted(arrows))}"
        for room in leaves:
            del arrows[room]


@pytest.mark.parametrize("room", GENERATING)
def test_what_generates_does_not_measure(room: str) -> None:
    for module in FILES:
        if is_in(module, f"fastblt.runtime.{room}"):
            measuring = {other for other in own_imports(module) if is_in(other, "fastblt.runtime.measure")}
            assert not measuring, f"{module} imports {measuring}"


def test_runtime_imports_pytorch_only_where_it_is_named() -> None:
    with_torch = {
        module
        for module, path in FILES.items()
        if is_in(module, "fastblt.runtime") and any(is_in(name, "torch") for name in imports(path, of_types=True))
    }
    assert {module for module in with_torch if not is_in(module, *WITH_TORCH)} == set()
    assert with_torch, "the eager backend is found"


def test_models_do_not_import_the_runtime() -> None:
    for module in FILES:
        if is_in(module, "fastblt.models"):
            assert not {other for other in own_imports(module) if not is_in(other, "fastblt.models", "fastblt")} - {
                "fastblt"
            }


def test_no_file_is_longer_than_it_should_be() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert Path(__file__).resolve() in tests
    long = {
        str(path.relative_to(ROOT)): count
        for path in (*FILES.values(), *tests)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert long == {}
