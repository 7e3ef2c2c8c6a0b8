"""``optimum-cli export fastblt`` is ``fastblt export``, found through optimum's own plug-in point."""

import subprocess
import sys
from argparse import ArgumentParser
from enum import EnumType
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.main import get_command

import fastblt.commands.export
from fastblt.cli import app
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import load_manifest
from optimum.commands.register.register_fastblt import FastbltExportCommand

ROOT = Path(__file__).resolve().parents[2]


def optimum_cli(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_arguments_are_those_of_fastblt_export() -> None:
    parser = ArgumentParser()
    FastbltExportCommand.parse_args(parser)
    found = [(a.dest, [*a.option_strings], [*(a.choices or ())], a.default) for a in parser._actions[1:]]
    group: Any = get_command(app)
    command = group.get_command(None, "export")
    types = get_type_hints(fastblt.commands.export.command)
    expected = []
    for p in command.params:
        names = [*p.opts, *p.secondary_opts] if p.param_type_name == "option" else []
        kind = types[p.name]
        choices = [str(choice) for choice in kind] if isinstance(kind, EnumType) else []
        expected.append((p.name, names, choices, p.default))
    assert found == expected


def test_help_lists_command_and_its_arguments(tmp_path: Path) -> None:
    listed = optimum_cli("export", "--help", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "fastblt" in listed.stdout
    told = optimum_cli("export", "fastblt", "--help", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    for word in ("checkpoint", "bundle", "--dtype", "{fp32,fp16,bf16}", "--hash-tables", "{host,graph}"):
        assert word in told.stdout


@pytest.mark.slow
def test_bundle_is_written_with_its_options(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    options = ("--dtype", "fp16", "--hash-tables=graph", "--no-document-masks")
    done = optimum_cli("export", "fastblt", *options, tiny_checkpoint, bundle, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(bundle)
    Bundle.open(bundle)
    assert (manifest.dtype, manifest.hash_tables) == ("fp16", "graph")
    assert not Bundle.open(bundle, check=False).config.document_masks
    assert "decoder.onnx" in done.stdout


def test_patcher_reaches_the_export(tmp_path: Path) -> None:
    done = optimum_cli("export", "fastblt", "random:tiny", "bundle", "--patcher", "some-patcher", cwd=tmp_path)
    assert done.returncode == 1
    assert "some-patcher" in done.stderr


def test_error_is_one_line_when_checkpoint_is_missing(tmp_path: Path) -> None:
    done = optimum_cli("export", "fastblt", "nothing", "bundle", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: nothing")
    assert not list(tmp_path.iterdir())


def test_unknown_dtype_is_a_usage_error(tmp_path: Path) -> None:
    done = optimum_cli("export", "fastblt", "nothing", "bundle", "--dtype", "int3", cwd=tmp_path)
    assert done.returncode == 2
    assert "int3" in done.stderr


@pytest.mark.parametrize("module", ["torch", "numpy", "onnx", "typer", "fastblt"])
def test_loading_the_command_imports_nothing_large(module: str, tmp_path: Path) -> None:
    code = f"import sys, optimum.commands.register.register_fastblt as r; sys.exit({module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"optimum-cli would import {module} at every start"


def test_folders_of_optimum_are_open_to_others() -> None:
    assert not [*(ROOT / "src" / "optimum").rglob("__init__.py")]
