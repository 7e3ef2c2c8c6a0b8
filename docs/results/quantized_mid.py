"""Measures the speed of quantized bundles of a random model of 124 M parameters, replayed at the paper's rates.

    python docs/results/quantized_mid.py BUILD

on a machine that does nothing else. Bundles that BUILD lacks are made first (a few minutes each). Three rounds of all
bundles in turn are written to docs/results/quantized-mid.json; the ratios printed are medians within a round.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from fastblt.runtime.machine import device_info

TARGET = Path(__file__).with_name("quantized-mid.json")
METHODS = ("ar", "s:8", "dv:8@one", "d:8@0.7")
ROUNDS = 3
BENCH = f"--methods {','.join(METHODS)} --replay paper --prompts 2 --max-new-bytes 128 --no-profile"
#: Random weights have no quality to keep, so it is hardly measured.
QUANTIZE = "--rounding rtn --budget bpb=1000% --samples 16 --prompts 1 --windows 1 --window-bytes 64"
#: Options of `fastblt quantize` by bundle.
SCHEMES = {
    "mid-w8": "--scheme w8",
    "mid-w8-patcher": "--scheme w8 --patcher",
    "mid-w4": "--scheme w4",
    "mid-w4-64": "--scheme w4 --block 64",
    "mid-w4-patcher": "--scheme w4 --patcher",
}
KEPT = ("bytes_per_s", "moved_gb", "bytes", "limit_us_per_byte", "limit_gb_per_s", "times_limit", "us_per_byte")

#: Rows of one bundle, round after round, by method.
Found = dict[str, list[dict[str, Any]]]


def prepare(build: Path) -> list[Path]:
    """Return the bundles, the full one first; those that are missing are made."""
    full = build / "mid"
    if not full.exists():
        _fastblt("export", "random:mid", str(full))
    for name, options in SCHEMES.items():
        if not (build / name).exists():
            _fastblt("quantize", str(full), str(build / name), *options.split(), *QUANTIZE.split())
    return [full, *(build / name for name in SCHEMES)]


def bench(bundle: Path) -> list[dict[str, Any]]:
    """Return the rows of one measurement."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        _fastblt("bench", str(bundle), *BENCH.split(), "--json", str(file))
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def ratios(found: Found, full: Found, method: str) -> float:
    """Return the median over the rounds of the speed against that of the full bundle."""
    pairs = zip(found[method], full[method], strict=True)
    middle: float = median(one["bytes_per_s"] / other["bytes_per_s"] for one, other in pairs)
    return middle


def table(found: dict[str, Found]) -> list[str]:
    """Return the rows of a Markdown table."""
    lines = []
    for name, rows in found.items():
        of = {key: median(row[key] for row in rows["ar"]) for key in ("limit_us_per_byte", "times_limit")}
        moved = rows["ar"][0]["moved_gb"] * 1e3 / rows["ar"][0]["bytes"]
        speeds = [
            f"{median(row['bytes_per_s'] for row in rows[method]):.0f} ({ratios(rows, found['mid'], method):.2f})"
            for method in METHODS
        ]
        parts = {part: median(row["us_per_byte"][part] for row in rows["ar"]) for part in rows["ar"][0]["us_per_byte"]}
        shown = " / ".join(f"{value / 1e3:.2f}" for value in parts.values())
        lines.append(
            f"| {name} | {moved:.0f} | {of['limit_us_per_byte']:,.0f} | {of['times_limit']:.1f} | "
            f"{' | '.join(speeds)} | {shown} |"
        )
    return lines


def _fastblt(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "fastblt", *arguments], check=True, stdout=subprocess.DEVNULL)


def main(build: str) -> None:
    """Measure and write."""
    bundles = prepare(Path(build))
    found: dict[str, Found] = {bundle.name: {method: [] for method in METHODS} for bundle in bundles}
    for _ in range(ROUNDS):
        for bundle in bundles:
            for row in bench(bundle):
                found[bundle.name][row["method"]].append({key: row[key] for key in KEPT})
    TARGET.write_text(json.dumps({"device": device_info(), "setting": BENCH, "bundles": found}, indent=1) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/results/quantized_mid.py BUILD")
    main(sys.argv[1])
