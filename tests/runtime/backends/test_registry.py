import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.installed_package import install_package

from fastblt.runtime import plugins
from fastblt.runtime.backends import registry
from fastblt.runtime.backends.entry import BackendEntry, BackendError, LoadRequest, ProviderError
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.backends.registry import backend_entry, load_backend, register_backend
from fastblt.runtime.plugins import Plugins

Publish = Callable[..., None]


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test has registered after it."""
    fresh = Plugins("backend", registry.ENTRY_POINT_GROUP, BackendEntry, BackendError, registry.BUILT_IN)
    monkeypatch.setattr(registry, "_plugins", fresh)


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Return ``publish(module, source, **entry_points)``, which installs a package with entry points for backends."""

    def write(module: str, source: str, **points: str) -> None:
        install_package(tmp_path, module, source, {registry.ENTRY_POINT_GROUP: points})

    monkeypatch.syspath_prepend(tmp_path)
    return write


def refuse(request: LoadRequest) -> Backend:
    raise BackendError(f"{request.folder}: loaded")


def entry(name: str, **changes: object) -> BackendEntry:
    return dataclasses.replace(BackendEntry(name, "for a test", refuse), **changes)  # type: ignore[arg-type]


SOURCE = """
from fastblt.runtime.backends.entry import BackendEntry
ENTRY = BackendEntry("{0}", "from outside", lambda request: request)
"""


def test_text_about_backends_names_all_of_them() -> None:
    for text in (registry.backends_help(), registry.backends_table()):
        for known in registry.BUILT_IN:
            assert known.name in text
            assert known.summary in text
    assert "| `tensorrt` | TensorRT engines, built by fastblt compile | GPU | `auto`, `cuda` |" in (
        registry.backends_table()
    )


def test_tensorrt_the_provider_is_told_from_tensorrt_the_backend() -> None:
    assert "tensorrt (ONNX Runtime's execution provider for TensorRT 10, not the backend" in registry.providers_help()
    assert "tensorrt (TensorRT engines, built by fastblt compile)" in registry.backends_help()


def test_every_provider_of_a_built_in_backend_is_explained() -> None:
    assert {name for known in registry.BUILT_IN for name in known.providers} == set(registry.PROVIDER_SUMMARIES)


def test_capacity_is_exact_where_memory_costs() -> None:
    found = {known.name: registry.default_capacity(known.name, 300) for known in registry.BUILT_IN}
    roomy = dict.fromkeys(("onnxruntime", "eager", "eager-compiled"), 4096)
    assert found == {**roomy, "tensorrt": 300, "tensorrt-rtx": 300}
    assert registry.default_capacity("onnxruntime", 5000) == 5000


def test_table_of_the_documentation_is_the_generated_one() -> None:
    root = Path(__file__).resolve().parents[3]
    assert registry.backends_table() in (root / "docs" / "deploy.md").read_text(encoding="utf-8")


def test_registered_backend_is_offered_and_loaded(tmp_path: Path) -> None:
    register_backend(entry("mine", providers=("auto", "abacus")))
    assert registry.backend_names()[-1] == "mine"
    assert "mine (for a test)" in registry.backends_help()
    assert "| `mine` | for a test | CPU | `auto`, `abacus` |" in registry.backends_table()
    assert registry.default_capacity("mine", 7) == 4096
    with pytest.raises(BackendError, match=": loaded"):
        load_backend("mine", LoadRequest(tmp_path, "abacus"))
    with pytest.raises(
        BackendError, match=r"expected one of onnxruntime, eager, eager-compiled, tensorrt, tensorrt-rtx, mine$"
    ):
        backend_entry("other")


@pytest.mark.parametrize(
    ("name", "expected"), [("onnxruntime", "auto, cpu, cuda or tensorrt"), ("tensorrt", "auto or cuda"), ("m", "auto")]
)
def test_provider_that_a_backend_does_not_know_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    register_backend(entry("m"))
    with pytest.raises(ProviderError, match=f"^provider: found 'tpu', expected {expected} with backend {name}$"):
        load_backend(name, LoadRequest(tmp_path, "tpu"))


@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt-rtx"])
def test_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"backend entry: found '{name}', which is registered already"):
        register_backend(entry(name))


@pytest.mark.parametrize("name", ["", "a:b", "a,b", "a/b", "a b"])
def test_name_that_no_user_could_write_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="backend entry: found name"):
        register_backend(entry(name))


def test_backend_of_another_package_is_found_by_its_entry_point(publish: Publish, tmp_path: Path) -> None:
    publish("other_backends", SOURCE.format("other"), other="other_backends:ENTRY")
    request = LoadRequest(tmp_path)
    found: object = load_backend("other", request)
    assert found is request
    assert registry.backend_names()[-1] == "other"
    assert registry.unavailable_backends() == {}


def test_entry_points_are_read_only_for_names_that_are_not_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise AssertionError("entry points were read")

    monkeypatch.setattr(plugins, "metadata", SimpleNamespace(entry_points=fail))
    assert backend_entry("eager").reads_checkpoints
    with pytest.raises(AssertionError, match="entry points were read"):
        backend_entry("other")


BROKEN = {
    "import": ("import module_that_is_not_there\n", r"cannot be loaded \(ModuleNotFoundError: No module named"),
    "raises": ("1 / 0\n", r"cannot be loaded \(ZeroDivisionError"),
    "attribute": ("", r"cannot be loaded \(AttributeError"),
    "kind": ("ENTRY = 8\n", "found int, expected a BackendEntry"),
    "name": (SOURCE.format("another"), "found a backend named 'another', expected 'broken'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_entry_point_is_named_only_where_it_is_asked_for(publish: Publish, case: str) -> None:
    source, reason = BROKEN[case]
    publish(f"broken_backend_{case}", source, broken=f"broken_backend_{case}:ENTRY")
    where = rf"entry point broken = 'broken_backend_{case}:ENTRY' of broken[-_]backend[-_]{case}"
    with pytest.raises(BackendError, match=rf"backend 'broken': {where}.*{reason}"):
        backend_entry("broken")
    with pytest.raises(BackendError, match=rf"found 'other', expected one of onnxruntime, .*; unavailable: {where}"):
        backend_entry("other")
    assert "broken (unavailable: entry point" in registry.backends_help()
    assert "broken" not in registry.backends_table()
    assert backend_entry("onnxruntime").name == "onnxruntime"


def test_entry_point_cannot_replace_a_backend(publish: Publish) -> None:
    publish("taken_backend", SOURCE.format("eager"), eager="taken_backend:ENTRY")
    assert backend_entry("eager").summary != "from outside"
    assert "found 'eager', which is registered already" in registry.unavailable_backends()["eager"]


def test_one_of_two_entry_points_with_one_name_is_used(publish: Publish) -> None:
    for module in ("first_twin", "second_twin"):
        publish(module, SOURCE.format("twin"), twin=f"{module}:ENTRY")
    assert backend_entry("twin").name == "twin"
    assert registry.backend_names().count("twin") == 1
    assert "found 'twin', which is registered already" in registry.unavailable_backends()["twin"]


def test_list_of_backends_imports_none_of_them() -> None:
    code = (
        "import sys; from fastblt.runtime.backends.registry import backends_help; backends_help(); "
        "print([m for m in ('numpy', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
