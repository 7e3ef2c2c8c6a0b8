"""Measures texts of a form: the shipped schemas and expressions by each method, against masked `ar`.

    python docs/results/structured_output.py build/demo-bundle [OUT.json] [--bytes 128] [--passes 3] [--quick]

writes docs/results/structured-output.json and prints a table in Markdown. Texts are greedy, after an empty prompt.
The methods write each text in turns, so that a busy machine slows all of them, and must write the same bytes.
``--quick`` takes every sixth form, and one pass. Needs jsonschema and regex, which judge the texts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import jsonschema
import regex

from fastblt.calibration.schemas import load_expressions, load_schemas
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import device_info

TARGET = Path(__file__).with_name("structured-output.json")
#: By name: the method, and whether forced bytes are written without asking the model.
METHODS = {
    "ar": ("ar", True),
    "s:8": ("s:8", True),
    "s:8 unforced": ("s:8", False),
    "auto": ("auto", True),
    "dv:8@one": ("dv:8@one", True),
}
#: A text shorter than this says little about speed.
LONG_BYTES = 16
QUICK = 6


def forms() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the kind, name and options of each form."""
    for name, schema in load_schemas().items():
        yield "schema", name, {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    for name, expression in load_expressions().items():
        yield "expression", name, {"regex": expression}


def has_form(data: bytes, options: dict[str, Any]) -> bool:
    """Judge a text that has ended."""
    if "regex" in options:
        return regex.fullmatch(options["regex"], data.decode("utf-8")) is not None
    schema = options["response_format"]["json_schema"]["schema"]
    judge = jsonschema.validators.validator_for(schema)(schema)
    return bool(judge.is_valid(json.loads(data)))


def write(runtime: BltRuntime, count: int, method: str, options: dict[str, Any]) -> tuple[bytes, str, int, float]:
    """Return a text, what ended it, how many of its bytes were forced, and its seconds."""
    name, forced = METHODS[method]
    began = perf_counter()
    stream = runtime.stream(b"", count, method=name, forced_bytes=forced, **options)
    chunks = list(stream)
    seconds = perf_counter() - began
    data = b"".join(chunk.data for chunk in chunks)
    assert stream.finish is not None
    return data, stream.finish, sum(chunk.origins.count("forced") for chunk in chunks), seconds


def measure(runtime: BltRuntime, count: int, passes: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one form; the fastest of the passes counts."""
    expected, finish, _, _ = write(runtime, count, "ar", options)
    seconds = dict.fromkeys(METHODS, float("inf"))
    forced = dict.fromkeys(METHODS, 0)
    names = list(METHODS)
    for turn in range(passes):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            data, ended, forced[name], taken = write(runtime, count, name, options)
            assert (data, ended) == (expected, finish), f"{name}: found {data!r}, expected {expected!r} of masked ar"
            seconds[name] = min(seconds[name], taken)
    size = len(expected)
    return {
        "bytes": size,
        "finish": finish,
        "valid": has_form(expected, options) if finish == "eos" else None,
        "forced_share": round(forced["s:8"] / size, 3),
        "bytes_per_second": {name: round(size / taken, 1) for name, taken in seconds.items()},
        "times_ar": {name: round(seconds["ar"] / taken, 2) for name, taken in seconds.items()},
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the table of docs/structured-output.md, and the medians of all methods over long texts."""
    print("| form | bytes | ended, valid | forced | `s:8` | `s:8`, all bytes asked |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for row in rows:
        valid, times = {True: "yes", False: "NOT VALID", None: "cut"}[row["valid"]], row["times_ar"]
        print(
            f"| `{row['name']}` | {row['bytes']} | {valid} | {row['forced_share']:.0%} | {times['s:8']:.2f} | "
            f"{times['s:8 unforced']:.2f} |"
        )
    for kind in ("schema", "expression"):
        long = [row for row in rows if row["kind"] == kind and row["bytes"] >= LONG_BYTES]
        if long:
            medians = ", ".join(f"{name} {median(row['times_ar'][name] for row in long):.2f}" for name in METHODS)
            print(f"\n{kind}: {len(long)} texts of {LONG_BYTES} bytes or more, medians of times ar: {medians}")


def main() -> None:
    """Measure and write the report; stop with status 1 if a text that ended does not have its form."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", help="of the shipped checkpoint")
    parser.add_argument("out", nargs="?", type=Path, default=TARGET)
    parser.add_argument("--bytes", type=int, default=128, help="most new bytes of a text")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    passes = 1 if asked.quick else asked.passes
    runtime = BltRuntime.from_pretrained(asked.bundle, provider="cpu", sequences=1)
    for name in METHODS:
        write(runtime, asked.bytes, name, {"regex": "[a-z ]{1,400}"})
    chosen = list(forms())[:: QUICK if asked.quick else 1]
    rows = [
        {"kind": kind, "name": name, **measure(runtime, asked.bytes, passes, options)} for kind, name, options in chosen
    ]
    report = {"new_bytes": asked.bytes, "passes": passes, "machine": device_info(), "rows": rows}
    asked.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print_table(rows)
    if wrong := [row["name"] for row in rows if row["valid"] is False]:
        raise SystemExit(f"found texts without their form: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
