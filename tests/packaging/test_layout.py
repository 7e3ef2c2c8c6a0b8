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
from shared_files import SharedFiles

ROOT = Path(__file__).resolve().parents[2]
SUBPACKAGES = ("calibration", "export", "models", "runtime")
OPTIMUM_COMMAND = "optimum/commands/register/register_fastblt.py"
BUILD_INPUTS = ("LICENSE", "NOTICE", "README.md", "pyproject.toml", "setup.py", "src", *SUBPACKAGES)


def copy_tree(copy: Path) -> None:
    """Copy what a build reads, links kept as links, and add a file to the held-out text."""
    copy.mkdir()
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy / name)
    (copy / "calibration" / "heldout" / "sample.txt").write_text("held out\n", encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build reads."""
    copy_tree(tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture(scope="module")
def wheel(shared_files: SharedFiles) -> Path:
    """A wheel of the tree."""

    def write(folder: Path) -> None:
        folder.mkdir()
        copy_tree(folder / "tree")
        build_wheel(folder / "tree", folder / "wheels")
        shutil.rmtree(folder / "tree")

    (found,) = (shared_files.make("wheel", write) / "wheels").glob("*.whl")
    return found


def names_in(wheel: Path) -> set[str]:
    """Return the names of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def run_python(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=False)


def build_wheel(tree: Path, out: Path) -> Path:
    """Build a wheel of `tree` with the installed setuptools."""
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
    built = run_python("-m", "pip", "wheel", *options, "--wheel-dir", str(out), str(tree), cwd=out.parent)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


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
    # The extra fleet asks for the package's own extra serve. TensorRT depends on the machine: 10.x on older devices.
    assert asked - pinned == {"fastblt", "tensorrt"}


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


def test_wheel_holds_every_module_and_type_marker(wheel: Path) -> None:
    files = names_in(wheel)
    modules = {f"fastblt/{p.relative_to(ROOT)}" for name in SUBPACKAGES for p in (ROOT / name).rglob("*.py")}
    scripts = {"heldout/select_pieces.py", "schemas/select_schemas.py"}
    assert modules - files == {f"fastblt/calibration/{name}" for name in scripts}, "not part of the package"
    assert {f"fastblt/{name}/__init__.py" for name in SUBPACKAGES} <= files
    assert {"fastblt/__init__.py", "fastblt/py.typed", "fastblt/calibration/heldout/sample.txt"} <= files
    folders = ("calibration/heldout", "calibration/schemas", "models/training/recipes")
    kept = [path for folder in folders for path in (ROOT / folder).iterdir()]
    data = [path for path in kept if path.suffix in (".json", ".md", ".txt")]
    assert len(data) >= 10
    page = [*(ROOT / "runtime/serving/page").iterdir()]
    assert {"index.html", "page.css", "page.js"} <= {path.name for path in page}
    assert {f"fastblt/{path.relative_to(ROOT)}" for path in data + page} <= files
    assert "fastblt/commands/report_page/page.css" in files
    # optimum's folders belong to optimum: the command is put there, and nothing else.
    others = {name for name in files if ".dist-info" not in name and not name.startswith("fastblt/")}
    assert others == {OPTIMUM_COMMAND}


def test_optimum_cli_finds_command_of_wheel(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path / "unpacked", format="zip")
    # -E and -S: neither PYTHONPATH nor the editable installation that the tests run in is seen.
    paths = [str(tmp_path / "unpacked"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    code = f"import sys; sys.path += {paths}; from optimum.commands.optimum_cli import main; main()"
    done = run_python("-E", "-S", "-c", code, "export", "fastblt", "nothing", "bundle", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: nothing: "), done.stderr


def test_source_distribution_builds_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    made = run_python("setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path / "sdist"), cwd=tree)
    assert made.returncode == 0, made.stdout + made.stderr
    (archive,) = (tmp_path / "sdist").iterdir()
    shutil.unpack_archive(archive, tmp_path / "unpacked")  # Python 3.11.2, which Debian has, knows no filter
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert names_in(build_wheel(unpacked, tmp_path / "wheels-of-sdist")) == names_in(wheel)
