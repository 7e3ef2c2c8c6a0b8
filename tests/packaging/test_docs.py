"""What README and docs name exists: files, commands, options, extras; and their Python runs."""

from __future__ import annotations

import re
import shutil
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import click
import pytest
import tomllib
import typer

from fastblt.cli import ALIASES, COMMANDS, app

ROOT = Path(__file__).resolve().parents[2]
DOCS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
#: Folders of the repository whose files the docs name by path.
FOLDERS = ("calibration", "checkpoints", "docs", "export", "locks", "models", "runtime", "src", "tests", ".ci")
#: Options of programs other than fastblt that the docs name on their own.
FOREIGN_OPTIONS = {
    "--batch_size",
    "--build-arg",
    "--device",
    "--metrics-export-port",
    "--model_args",
    "--system-site-packages",
    "--trt",
    "--trt-npps",
    "--trt-outputs",
    "--onnxrt",
    "--rtol",
    "--atol",
}
#: Commands that hand options on to another program.
HANDING_ON = {"lm-eval"}
LONGEST_LINE = 100

all_docs = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)


def blocks(path: Path, language: str | None = None) -> list[str]:
    """Return the fenced code blocks of a language, or of all."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for name, text in found if language in (None, name)]


def prose(path: Path) -> str:
    """Return the text without its code blocks; lines keep their numbers."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)


def spans(path: Path) -> list[str]:
    """Return what is between backticks, a line break inside being a space."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(path))]


def code(path: Path) -> list[str]:
    """Return every line of code: of blocks, comments included, indented, or between backticks."""
    joined = (block.replace("\\\n", " ") for block in blocks(path))
    indented = [line.strip() for line in prose(path).splitlines() if line.startswith("    ")]
    return [*chain.from_iterable(block.splitlines() for block in joined), *indented, *spans(path)]


def alternatives(name: str) -> list[str]:
    """Return ``a/x.py`` and ``a/y.py`` of ``a/{x,y}.py``."""
    found = re.search(r"\{([^}]*)\}", name)
    if found is None:
        return [name]
    return [each for part in found[1].split(",") for each in alternatives(name.replace(found[0], part, 1))]


@cache
def options_of(command: str) -> frozenset[str]:
    """Return every option of a command, aliases and negations included, and of the commands below it."""
    group: Any = typer.main.get_command(app)
    found = group.get_command(click.Context(group), command)
    commands = (found, *getattr(found, "commands", {}).values())
    parameters = (parameter for each in commands for parameter in each.params)
    options = (option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts))
    return frozenset(option for option in options if option.startswith("-")) | {"--help"}


@all_docs
def test_named_files_exist(path: Path) -> None:
    """Paths from the root or from a folder that the docs speak of; file names alone are found anywhere."""
    words = {word.rstrip(".,:;") for span in code(path) for word in re.findall(r"[\w.{},*/-]+", span)}
    missing = []
    for name in chain.from_iterable(alternatives(word) for word in words):
        if name.split("/")[0] in FOLDERS and "/" in name and (ROOT / name.split("/")[0]).is_dir():
            found = any(ROOT.glob(name.rstrip("/")))
        elif re.fullmatch(r"[\w*]+(/[\w*]+)*\.(py|md)", name):
            found = any(any((ROOT / folder).rglob(name)) for folder in FOLDERS) or (ROOT / name).exists()
        else:
            continue
        if not found:
            missing.append(name)
    assert missing == []


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings)


@all_docs
def test_links_lead_to_files_and_headings(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?[^)]*\)", prose(path))
    local = [(path.parent / target if target else path, anchor) for target, anchor in links if "://" not in target]
    assert [file for file, _ in local if not file.exists()] == []
    assert [f"{file}#{anchor}" for file, anchor in local if anchor and anchor not in anchors(file)] == []


@all_docs
def test_named_commands_and_options_exist(path: Path) -> None:
    wrong = []
    for line in code(path):
        for command, rest in re.findall(r"(?:^|(?<!from)(?<!cli export)[\s(])fastblt ([a-z][a-z-]*)\b([^&;]*)", line):
            if command not in COMMANDS | ALIASES:
                wrong.append(f"fastblt {command}")
                continue
            wanted = [] if command in HANDING_ON else re.findall(r"(?<![\w-])--[a-z][\w-]*", rest)
            wrong += [f"fastblt {command} {option}" for option in wanted if option not in options_of(command)]
    known = frozenset().union(*(options_of(command) for command in COMMANDS)) | FOREIGN_OPTIONS
    alone = [span for span in spans(path) if span.startswith("--")]
    wrong += [option for span in alone for option in re.findall(r"--[a-z][\w-]*", span) if option not in known]
    assert wrong == []


@all_docs
def test_named_extras_and_make_targets_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"(?:fastblt|\.whl|'\.|\"\.|/src)\[([\w,-]+)\]", text)
    assert {extra for found in named for extra in found.split(",")} <= set(extras)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {found for line in code(path) for found in re.findall(r"^\s*make ([a-z-]+)", line)} <= targets


@all_docs
def test_lines_are_short_and_nothing_is_cited_that_is_not_here(path: Path) -> None:
    lines = enumerate(prose(path).splitlines(), 1)
    tables_and_code = (" " * 4, "|")
    long = [i for i, line in lines if len(line) > LONGEST_LINE and not line.startswith(tables_and_code)]
    assert long == [], f"lines of more than {LONGEST_LINE} characters"
    assert not re.search(r"\bmethod\.md", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["README.md", "docs/python.md", "docs/optimum.md"])
def test_python_blocks_run(name: str, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as one program, in a folder that has the demo bundle."""
    shutil.copytree(demo_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    program = blocks(ROOT / name, "python")
    assert program
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(program, 1):
        exec(compile(block, f"{name}, Python block {number}", "exec"), namespace)


def test_readme_and_docs_are_checked_at_all() -> None:
    """The patterns above find what they are for."""
    readme = ROOT / "README.md"
    assert any(line.startswith("fastblt export") for line in code(readme))
    assert {"--method", "--show"} <= options_of("generate")
    assert alternatives("a/{b,c}_{d,e}.py") == ["a/b_d.py", "a/b_e.py", "a/c_d.py", "a/c_e.py"]
    assert any(span.startswith("runtime/") for span in spans(ROOT / "docs" / "architecture.md"))
