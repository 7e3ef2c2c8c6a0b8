"""The four top-level folders are linked into the package, and what is built from the tree holds them."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SUBPACKAGES = ("calibration", "export", "models", "runtime")
OPTIMUM_COMMAND = "optimum/commands/register/register_fastblt.py"
BUILD_INPUTS = ("LICENSE", "NOTICE", "README.md", "pyproject.toml", "setup.py", "src", *SUBPACKAGES)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build reads, links kept as links."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy / name)
    return copy


def run_python(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=False)


def build_wheel(tree: Path, out: Path) -> set[str]:
    """Builds a wheel of `tree` with the installed setuptools and returns the names of its files."""
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
    built = run_python("-m", "pip", "wheel", *options, "--wheel-dir", str(out), str(tree), cwd=out.parent)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_subpackage_is_relative_link_to_top_level_folder(name: str) -> None:
    link = ROOT / "src" / "fastblt" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", "..", name)
    assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_installed_package_exposes_subpackage(name: str) -> None:
    spec = importlib.util.find_spec(f"fastblt.{name}")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).name == "__init__.py"


def test_installed_version_is_version_of_package() -> None:
    import fastblt

    assert importlib.metadata.version("fastblt") == fastblt.__version__


@pytest.mark.parametrize("module", ["torch", "numpy", "onnxruntime"])
def test_import_fastblt_leaves_out(module: str, tmp_path: Path) -> None:
    done = run_python("-c", f"import sys, fastblt; sys.exit({module!r} in sys.modules)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr or f"import fastblt imports {module}"


def requirements() -> list[Requirement]:
    return [Requirement(line) for line in importlib.metadata.requires("fastblt") or []]


@pytest.mark.parametrize(
    ("platform", "machine", "expected"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("win32", "ARM64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
    ],
)
def test_core_is_small_and_has_one_onnxruntime(platform: str, machine: str, expected: str) -> None:
    there = {"sys_platform": platform, "platform_machine": machine, "extra": ""}
    core = {r.name.replace("_", "-") for r in requirements() if r.marker is None or r.marker.evaluate(there)}
    assert core == {"ml-dtypes", "numpy", "platformdirs", "rich", "safetensors", "typer", expected}


def test_constraints_pin_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {Requirement(line).name.replace("_", "-") for line in lines if line and not line.startswith("#")}
    asked = {requirement.name.replace("_", "-") for requirement in requirements()}
    assert asked - pinned == {"tensorrt"}  # depends on the machine: 10.x on older devices, 11.x elsewhere


def test_setup_stops_when_link_is_text_file(tree: Path) -> None:
    link = tree / "src" / "fastblt" / "export"
    link.unlink()
    link.write_text("../../export", encoding="utf-8")
    done = run_python("setup.py", "--version", cwd=tree)
    assert done.returncode != 0
    expected = f"{link}: found a text file, expected a symbolic link to {os.path.join('..', '..', 'export')}"
    assert expected in done.stderr


def test_setup_stops_when_link_is_missing_or_points_elsewhere(tree: Path) -> None:
    (tree / "src" / "fastblt" / "runtime").unlink()
    (tree / "src" / "fastblt" / "models").unlink()
    (tree / "src" / "fastblt" / "models").symlink_to("../../export")
    done = run_python("setup.py", "--version", cwd=tree)
    assert done.returncode != 0
    assert f"{tree / 'src' / 'fastblt' / 'runtime'}: found nothing" in done.stderr
    assert f"{tree / 'src' / 'fastblt' / 'models'}: found a link to ../../export" in done.stderr


def test_setup_stops_when_link_is_copy_of_folder(tree: Path) -> None:
    link = tree / "src" / "fastblt" / "calibration"
    link.unlink()
    shutil.copytree(tree / "calibration", link)
    done = run_python("setup.py", "--version", cwd=tree)
    assert done.returncode != 0
    assert f"{link}: found a copy of the folder" in done.stderr


def test_wheel_holds_every_module_and_type_marker(tree: Path, tmp_path: Path) -> None:
    heldout = tree / "calibration" / "heldout"
    heldout.mkdir(exist_ok=True)
    (heldout / "sample.txt").write_text("held out\n", encoding="utf-8")
    files = build_wheel(tree, tmp_path / "wheels")

    modules = {f"fastblt/{p.relative_to(tree)}" for name in SUBPACKAGES for p in (tree / name).rglob("*.py")}
    assert modules <= files
    assert {f"fastblt/{name}/__init__.py" for name in SUBPACKAGES} <= files
    assert {"fastblt/__init__.py", "fastblt/py.typed", "fastblt/calibration/heldout/sample.txt"} <= files
    # optimum's folders belong to optimum: the command is put there, and nothing else.
    others = {name for name in files if ".dist-info" not in name and not name.startswith("fastblt/")}
    assert others == {OPTIMUM_COMMAND}


def test_optimum_cli_finds_command_of_wheel(tree: Path, tmp_path: Path) -> None:
    build_wheel(tree, tmp_path / "wheels")
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "unpacked", format="zip")
    # -S: the editable installation that the tests run in is not seen.
    paths = [str(tmp_path / "unpacked"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    code = f"import sys; sys.path += {paths}; from optimum.commands.optimum_cli import main; main()"
    done = run_python("-S", "-c", code, "export", "fastblt", "nothing", "bundle", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: nothing: "), done.stderr


def test_source_distribution_builds_same_wheel(tree: Path, tmp_path: Path) -> None:
    from_tree = build_wheel(tree, tmp_path / "wheels")
    made = run_python("setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path / "sdist"), cwd=tree)
    assert made.returncode == 0, made.stdout + made.stderr
    (archive,) = (tmp_path / "sdist").iterdir()
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert build_wheel(unpacked, tmp_path / "wheels-of-sdist") == from_tree
