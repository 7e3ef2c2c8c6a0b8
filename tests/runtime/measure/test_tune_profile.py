"""Profiles: what is written can be read, on this machine and for this bundle only, and damage is one message."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastblt.models.limits import JSON_BYTES
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import MANIFEST_FILE
from fastblt.runtime.measure.tune import profile as profile_module
from fastblt.runtime.measure.tune.profile import (
    BundleKey,
    Profile,
    ProfileError,
    find_profile,
    profile_path,
    profiles_of,
    write_profile,
)

PLACE = ("onnxruntime", "auto")


@pytest.fixture(autouse=True)
def settings_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(profile_module, "settings_folder", lambda: tmp_path / "settings")
    return tmp_path / "settings"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle`."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def make(bundle: Path, **changes: Any) -> Profile:
    known = Profile(BundleKey.of(bundle), *PLACE, "s:6", 2, False, 1234.5, 1.1, 96, "0.1.0")
    return dataclasses.replace(known, **changes)


def damage(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a profile of a bundle, and change what the file holds."""
    path = write_profile(make(bundle))
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_profile_is_read_as_it_was_written_and_the_bundle_stays_as_it_is(bundle: Path, settings_folder: Path) -> None:
    assert find_profile(bundle, *PLACE) is None
    assert list(profiles_of(bundle)) == []
    path = write_profile(make(bundle))
    assert path.is_relative_to(settings_folder)
    assert find_profile(bundle, *PLACE) == make(bundle)
    Bundle.open(bundle)  # no file that the manifest does not list


def test_each_backend_and_provider_has_a_profile_of_its_own(bundle: Path) -> None:
    gpu = make(bundle, backend="tensorrt-rtx", provider="cuda", threads=None)
    for each in (make(bundle), gpu):
        write_profile(each)
    assert find_profile(bundle, "tensorrt-rtx", "cuda") == gpu
    assert find_profile(bundle, "eager", "auto") is None
    assert list(profiles_of(bundle)) == [make(bundle), gpu]


def test_bundles_are_known_by_where_they_really_are(bundle: Path, tmp_path: Path) -> None:
    write_profile(make(bundle))
    (tmp_path / "link").symlink_to(bundle, target_is_directory=True)
    assert find_profile(tmp_path / "link", *PLACE) == make(bundle)
    (tmp_path / "deep").mkdir()
    other = Path(shutil.copytree(bundle, tmp_path / "deep" / "bundle"))
    assert profile_path(other, *PLACE).parent.name[:7] == "bundle-"
    assert find_profile(other, *PLACE) is None


def test_profile_of_another_machine_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("cpu", "Z80"), ("usable_cores", 1023), ("gpus", ["NVIDIA H100"])):
        here = {**make(bundle).machine, name: value}
        write_profile(make(bundle, machine=here))
        with pytest.raises(ProfileError, match=f"found a profile of another machine \\({name} ") as error:
            find_profile(bundle, *PLACE)
        assert str(value) in str(error.value)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(profile_module, "machine_identity", lambda here=here: here)
            assert find_profile(bundle, *PLACE) is not None


def test_profile_of_a_bundle_that_has_changed_is_refused(
    bundle: Path, tiny_encoder_bundle: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_encoder_bundle, tmp_path / "other"))
    write_profile(make(bundle, allow_lossy=True, runs=BundleKey.of(other)))
    assert find_profile(bundle, *PLACE) is not None
    shutil.copy(bundle / MANIFEST_FILE, other / MANIFEST_FILE)
    with pytest.raises(ProfileError, match=f"found a profile of another bundle at {other} "):
        find_profile(bundle, *PLACE)
    shutil.rmtree(other)
    with pytest.raises(ProfileError, match=f"found no bundle at {other}, expected the one that"):
        find_profile(bundle, *PLACE)

    write_profile(make(bundle))
    shutil.copy(tiny_encoder_bundle / MANIFEST_FILE, bundle / MANIFEST_FILE)
    with pytest.raises(ProfileError, match=f"found a profile of another bundle at {bundle} "):
        find_profile(bundle, *PLACE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="x"), "entry 'format': found"),
        (lambda data: data.update(version=2), "entry 'format': found"),
        (lambda data: data.pop("machine"), "entry 'machine': found None, expected an object"),
        (lambda data: data["machine"].update(cpu=3), "entry 'machine.cpu': found 3"),
        (lambda data: data["machine"].update(usable_cores=0), "entry 'machine.usable_cores': found 0"),
        (lambda data: data["machine"].update(gpus=[1]), "entry 'machine.gpus'"),
        (lambda data: data["machine"].update(gpus=["x"] * 65), "at most 64 items"),
        (lambda data: data.update(bundle="x"), "entry 'bundle': found 'x', expected an object"),
        (lambda data: data["bundle"].update(path="relative"), "entry 'bundle.path': found 'relative', expected the ab"),
        (lambda data: data["bundle"].update(path="/" + "x" * 4096), "entry 'bundle.path'"),
        (lambda data: data["bundle"].update(manifest="0"), "entry 'bundle.manifest': found '0', expected 64 hex"),
        (lambda data: data.update(backend="eager"), "found a profile of eager and auto, expected onnxruntime and auto"),
        (lambda data: data.update(method="q"), "method 'q': unknown"),
        (lambda data: data.update(method=8), "entry 'method': found 8, expected a string"),
        (lambda data: data.update(method="d:8@0.7"), "entry 'method': found 'd:8@0.7', expected a lossless method"),
        (lambda data: data.update(threads=0), "entry 'threads': found 0, expected an integer from 1 to 1024"),
        (lambda data: data.update(threads=1025), "entry 'threads': found 1025"),
        (lambda data: data.update(threads=True), "entry 'threads': found True"),
        (lambda data: data.update(allow_lossy=None), "entry 'allow_lossy': found None, expected true or false"),
        (lambda data: data.update(bytes_per_s=0), "entry 'bytes_per_s': found 0, expected a number greater than 0"),
        (lambda data: data.update(times_default=1e300), "entry 'times_default': found 1e\\+300"),
        (lambda data: data.update(prompts=-1), "entry 'prompts': found -1"),
        (lambda data: data.update(runs=data["bundle"]), "entry 'runs': found .* because allow_lossy is false"),
        (lambda data: data.update(x="x" * JSON_BYTES), "not JSON"),
    ],
)
def test_damage_is_one_message(bundle: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    damage(bundle, change)
    with pytest.raises(ProfileError, match=message) as error:
        find_profile(bundle, *PLACE)
    assert str(profile_path(bundle, *PLACE)) in str(error.value)
    assert [str(found) for found in profiles_of(bundle)] == [str(error.value)]


def test_what_is_no_file_is_refused(bundle: Path) -> None:
    profile_path(bundle, *PLACE).mkdir(parents=True)
    with pytest.raises(ProfileError, match="cannot be read"):
        find_profile(bundle, *PLACE)
