import dataclasses
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.installed_package import install_package

from fastblt.models.config import BltConfig
from fastblt.models.presets import preset
from fastblt.runtime import plugins
from fastblt.runtime.methods import MethodEntry, MethodError, parse_method, register_method, registry
from fastblt.runtime.methods.ar import Autoregressive

Publish = Callable[..., None]


pytestmark = pytest.mark.usefixtures("own_methods")


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """``publish(module, source, **entry_points)``: install a package with entry points of the group of methods."""

    def write(module: str, source: str, **points: str) -> None:
        install_package(tmp_path, module, source, {registry.ENTRY_POINT_GROUP: points})

    monkeypatch.syspath_prepend(tmp_path)
    return write


def entry(name: str, **changes: object) -> MethodEntry:
    known = MethodEntry(name, name, (name,), "for a test", lambda argument: Autoregressive(name=name))
    return dataclasses.replace(known, **changes)  # type: ignore[arg-type]


SOURCE = """
from fastblt.runtime.methods import MethodEntry
from fastblt.runtime.methods.ar import Autoregressive
ENTRY = MethodEntry("{0}", "{0}", ("{0}",), "from outside", lambda argument: Autoregressive(name="{0}"), ("{0}",))
"""


@pytest.mark.parametrize("known", registry.BUILT_IN, ids=lambda known: known.name)
def test_everything_that_an_entry_names_can_be_parsed(known: MethodEntry) -> None:
    config = preset("tiny")
    assert known.examples
    for name in (*known.examples, *known.audited, *known.benchmarked, *known.tuned, *known.traced(config)):
        assert name.partition(":")[0] == known.name
        assert parse_method(name).name == name
    assert known.syntax.partition(":")[0] == known.name
    assert known.lossless == (known.name != "d")


def test_defaults_are_what_the_model_can_run() -> None:
    diffusion = dataclasses.replace(preset("tiny"), block_size=8)
    plain = dataclasses.replace(diffusion, decoder_input="encoder", block_size=0)
    everything = (
        *("ar", "s:4", "s:8", "s:16", "lookup:12", "dv:8@one", "dv:8@0.3", "dv:8@eb1.5", "dv:8@one+partial"),
        *("d:8@0.7", "d:8@eb1.0", "auto"),
    )
    blocks = tuple(name for name in everything if name[0] == "d")
    assert registry.audit_defaults() == everything
    assert registry.audit_methods(diffusion) == (everything, ())
    assert registry.audit_methods(plain) == (tuple(name for name in everything if name not in blocks), blocks)
    assert registry.bench_methods(plain) == (("ar", "s:4", "s:8", "s:16", "auto"), ())
    size = diffusion.block_size
    assert registry.trace_methods(diffusion) == ("ar", "s:8", f"dv:{size}@one", f"d:{size}@0.7")
    assert registry.trace_methods(plain) == ("ar", "s:8")
    drafts = ("s:2", "s:3", "s:4", "s:6", "s:8", "s:12", "s:16", "lookup:8", "lookup:16")
    assert registry.tune_methods(plain) == registry.tune_methods(plain, allow_lossy=True) == ("ar", *drafts, "auto")
    blocks = ("dv:4@one", "dv:6@one", "dv:8@one")
    assert registry.tune_methods(diffusion) == ("ar", *drafts, *blocks, "auto")
    lossy = ("d:4@0.7", "d:8@0.7", "d:8@eb1.0")
    assert registry.tune_methods(diffusion, allow_lossy=True) == ("ar", *drafts, *blocks, *lossy, "auto")


def test_text_about_methods_names_all_of_them() -> None:
    for text in (registry.methods_help(), registry.methods_table()):
        for known in registry.BUILT_IN:
            assert known.syntax in text
            assert known.summary in text
    assert "| `d:B@RULE` | `d:8@0.7`, `d:8@eb1.0` |" in registry.methods_table()


def test_table_of_the_documentation_is_the_generated_one() -> None:
    root = Path(__file__).resolve().parents[3]
    assert registry.methods_table() in (root / "docs" / "decoding.md").read_text(encoding="utf-8")


def test_method_object_is_its_own_method() -> None:
    method = Autoregressive(name="mine")
    assert parse_method(method) is method


def test_something_else_is_no_method() -> None:
    with pytest.raises(MethodError, match=r"found int, expected a name or an object with rounds\(\)"):
        parse_method(8)  # type: ignore[arg-type]


def test_registered_method_is_offered_everywhere() -> None:
    register_method(
        entry("mine", audited=("mine",), benchmarked=("mine",), tuned=("mine",), traced=lambda config: ("mine",))
    )
    config = preset("tiny")
    assert parse_method("mine").name == "mine"
    for names in (
        *(registry.audit_methods(config).names, registry.bench_defaults()),
        *(registry.trace_methods(config), registry.tune_methods(config)),
    ):
        assert names[-1] == "mine"
    assert "mine (for a test)" in registry.methods_help()
    assert "| `mine` | `mine` | for a test | yes | any model |" in registry.methods_table()
    with pytest.raises(MethodError, match=r"expected ar, .* or mine"):
        parse_method("other")


@pytest.mark.parametrize("name", ["ar", "auto"])
def test_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"found '{name}', which is registered already"):
        register_method(entry(name))


@pytest.mark.parametrize("name", ["", "a:b", "a,b", "a/b", "a b"])
def test_name_that_no_user_could_write_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="method entry: found name"):
        register_method(entry(name))


def test_method_of_another_package_is_found_by_its_entry_point(publish: Publish) -> None:
    publish("other_methods", SOURCE.format("other"), other="other_methods:ENTRY")
    assert parse_method("other").name == "other"
    assert registry.audit_defaults()[-1] == "other"
    assert registry.unavailable_methods() == {}


def test_entry_points_are_read_only_for_names_that_are_not_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise AssertionError("entry points were read")

    monkeypatch.setattr(plugins, "metadata", SimpleNamespace(entry_points=fail))
    assert parse_method("s:8").name == "s:8"
    with pytest.raises(AssertionError, match="entry points were read"):
        parse_method("other")


BROKEN = {
    "import": ("import module_that_is_not_there\n", r"cannot be loaded \(ModuleNotFoundError: No module named"),
    "raises": ("1 / 0\n", r"cannot be loaded \(ZeroDivisionError"),
    "attribute": ("", r"cannot be loaded \(AttributeError"),
    "kind": ("ENTRY = 8\n", "found int, expected a MethodEntry"),
    "name": (SOURCE.format("another"), "found a method named 'another', expected 'broken'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_entry_point_is_named_only_where_it_is_asked_for(publish: Publish, case: str) -> None:
    source, reason = BROKEN[case]
    publish(f"broken_{case}", source, broken=f"broken_{case}:ENTRY")
    where = rf"entry point broken = 'broken_{case}:ENTRY' of broken_{case}"
    with pytest.raises(MethodError, match=rf"method 'broken:4': {where}.*{reason}"):
        parse_method("broken:4")
    with pytest.raises(MethodError, match=rf"method 'other': unknown, expected ar, .*; unavailable: {where}"):
        parse_method("other")
    assert "broken (unavailable: entry point" in registry.methods_help()
    assert "broken" not in registry.methods_table()
    assert "broken" not in registry.audit_defaults()
    assert parse_method("s:8").name == "s:8"


def test_entry_point_cannot_replace_a_method(publish: Publish) -> None:
    publish("taken_method", SOURCE.format("ar"), ar="taken_method:ENTRY")
    assert parse_method("ar").check is not None
    assert "found 'ar', which is registered already" in registry.unavailable_methods()["ar"]


def test_scan_of_entry_points_is_that_of_the_installed_packages() -> None:
    assert list(registry._plugins._entry_points()) == list(metadata.entry_points(group=registry.ENTRY_POINT_GROUP))


def test_names_that_a_model_cannot_run_are_told_apart() -> None:
    config: BltConfig = dataclasses.replace(preset("tiny"), decoder_input="encoder", block_size=0)
    assert registry.runnable(["dv:8@one", "ar"], config) == (("ar",), ("dv:8@one",))
    with pytest.raises(MethodError, match="unknown, expected"):
        registry.runnable(["b"], config)
