"""Counts what bundles launch, on a machine without a GPU: ``python -m fakes.cuda_stub.measure BUNDLE ...``.

ONNX Runtime's CUDA provider runs over the stub of the driver. For each bundle: the kernels of every graph that was
recorded, and for each method, per byte and per round, what the host queued (a recorded graph counts once), what the
device runs of it, how often the host waited, and the host's time over a driver that does nothing.

With ``--shapes COLUMN``, the models of ``docs/results/launches.json`` are exported and measured, and the results are
written to that file, under the name of the column.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fakes.cuda_stub import build, kernel_names, log

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "docs" / "results" / "launches.json"
NEW_BYTES = 160
BLT, BLT_D = ("ar", "s:8"), ("ar", "s:8", "dv:8@one", "d:8@0.7")
#: What `--shapes` measures: model (see `fakes.cuda_stub.shapes.shape`), type, place of the hash tables, methods.
SHAPES = (
    ("blt-1b", "fp16", "host", BLT),
    ("blt-1b", "fp16", "graph", BLT),
    ("blt-1b+draft", "fp16", "host", BLT_D),
    ("blt-d-1b", "fp16", "host", BLT_D),
    ("blt-d-8m", "fp16", "host", BLT_D),
    ("tiny", "fp32", "host", ("ar", "s:8", "dv:4@one", "d:4@0.7")),
)


def drive(plan: list[dict[str, Any]], folder: Path, libraries: Path) -> tuple[list[dict[str, Any]], list[log.Section]]:
    """Run `fakes.cuda_stub.drive` in a process of its own.

    Args:
        plan: see there.
        folder: for the plan, the log and the results.
        libraries: from `build.build`.

    Returns:
        What it wrote, and the sections of the log.
    """
    files = [folder / name for name in ("plan.json", "results.json", "log.txt")]
    files[0].write_text(json.dumps(plan))
    files[2].unlink(missing_ok=True)
    command = [sys.executable, "-m", "fakes.cuda_stub.drive", str(files[0]), str(files[1])]
    done = subprocess.run(command, env=build.environment(libraries, log=files[2]), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"fakes.cuda_stub.drive failed:\n{done.stdout}{done.stderr}")
    return json.loads(files[1].read_text()), log.sections(files[2])


def graph_kernels(sections: Iterable[log.Section]) -> dict[str, list[str]]:
    """Return the kernels of one recorded graph of each part: that of the fewest rows."""
    found: dict[str, log.GraphRun] = {}
    for section in sections:
        for run in section.runs:
            if run.captures and (run.part not in found or run.rows < found[run.part].rows):
                found[run.part] = run
    return {part: run.recorded for part, run in sorted(found.items())}


def summary(driven: dict[str, Any], sections: list[log.Section]) -> dict[str, Any]:
    """Return the figures of one bundle.

    Args:
        driven: what `fakes.cuda_stub.drive` wrote about it.
        sections: those of the bundle.
    """
    by_name = {section.name: section for section in sections}
    methods = {}
    for name, generated in driven["methods"].items():
        section, size, rounds = by_name[name], generated["bytes"], generated["rounds"]
        launches = section.launches()
        methods[name] = {
            "bytes per round": round(size / rounds, 2),
            "host launches per byte": round(launches["host"] / size, 2),
            "graph launches per byte": round(launches["graphs"] / size, 2),
            "copies per byte": round(launches["single copies"] / size, 2),
            "device launches per byte": round(launches["device"] / size, 1),
            "waits per byte": round(section.waits() / size, 3),
            "waits per round": round(section.waits() / rounds, 2),
            "host us per byte": round(generated["microseconds"] / size, 1),
        }
    return {"kernels": graph_kernels(sections), "methods": methods}


def measure(bundles: list[tuple[Path, list[str]]], timed: int = 3, streams: int = 1) -> list[dict[str, Any]]:
    """Return the figures of bundles, each of them with its methods, and the names of the kernels of each part.

    With several ``streams``, texts grow together, and bytes and rounds are those of all.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build.build(folder / "libraries")
        plan = [
            {"bundle": str(bundle), "methods": methods, "new_bytes": NEW_BYTES, "timed": timed, "streams": streams}
            for bundle, methods in bundles
        ]
        driven, sections = drive(plan, folder, folder / "libraries")
    found = []
    for entry, result in zip(plan, driven, strict=True):
        label = f"{entry['bundle']} x {streams}" if streams > 1 else entry["bundle"]
        found.append(summary(result, [section for section in sections if section.bundle == label]))
    return found


def shown(name: str, found: dict[str, Any]) -> str:
    """Return the figures of one bundle as a table."""
    parts = ", ".join(f"{part} {len(kernels)}" for part, kernels in found["kernels"].items())
    columns = list(next(iter(found["methods"].values())))
    lines = [name, f"  kernels of a recorded graph: {parts}", "  " + "  ".join(["method".ljust(9), *columns])]
    for method, values in found["methods"].items():
        cells = [str(values[column]).rjust(len(column)) for column in columns]
        lines.append("  " + "  ".join([method.ljust(9), *cells]))
    return "\n".join(lines)


def shown_kernels(found: dict[str, Any]) -> str:
    """Return the kernels of each part by name, the most frequent ones first."""
    lines = []
    for part, names in found["kernels"].items():
        counts = Counter(map(kernel_names.short, names)).most_common()
        lines += [f"  {part}: {len(names)}", *(f"    {count:4}  {name}" for name, count in counts)]
    return "\n".join(lines)


def measure_shapes(column: str, folder: Path) -> None:
    """Export what `SHAPES` lists, measure it, and write it to `RESULTS` under the name of a column."""
    from fakes.cuda_stub.shapes import write

    named = {}
    for preset, dtype, tables, methods in SHAPES:
        named[f"{preset} {dtype}, tables: {tables}"] = (write(folder, preset, dtype, tables), list(methods))
    found = dict(zip(named, measure(list(named.values())), strict=True))
    for name, values in found.items():
        print(shown(name, values))
        values["kernels"] = {part: len(names) for part, names in values["kernels"].items()}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, column: found}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="count launches and waits over a stub of CUDA")
    parser.add_argument("bundles", nargs="*", type=Path, help="folders of bundles")
    parser.add_argument("--methods", default="ar,s:8", help="separated by commas")
    parser.add_argument("--streams", type=int, default=1, help="texts that grow together")
    parser.add_argument("--kernels", action="store_true", help="list the kernels of each part by name")
    parser.add_argument("--shapes", metavar="COLUMN", help="measure the models of docs/results/launches.json")
    given = parser.parse_args()
    reason = build.missing()
    if reason is not None:
        parser.exit(1, f"measure: {reason}\n")
    if given.shapes:
        with tempfile.TemporaryDirectory() as folder:
            measure_shapes(given.shapes, Path(folder))
    if given.bundles:
        bundles = [(bundle.resolve(), given.methods.split(",")) for bundle in given.bundles]
        for (bundle, _), values in zip(bundles, measure(bundles, streams=given.streams), strict=True):
            print(shown(bundle.name, values))
            if given.kernels:
                print(shown_kernels(values))


if __name__ == "__main__":
    main()
