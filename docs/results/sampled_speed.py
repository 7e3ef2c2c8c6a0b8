"""Measures methods on sampled text, which does not repeat itself as a small model's greedy text does.

    python docs/results/sampled_speed.py build/demo-bundle

writes docs/results/sampled-speed.json. All methods take turns after each prompt. Their texts differ, so that speeds are
those of many texts: 48 shipped prompts, 256 bytes each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastblt.calibration.heldout import load_prompts
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import device_info

TARGET = Path(__file__).with_name("sampled-speed.json")
METHODS = ("ar", "s:4", "s:8", "lookup:12", "dv:4@one", "auto")
TEMPERATURES = (0.7, 1.0)
NEW_BYTES = 256


def measure(runtime: BltRuntime, temperature: float) -> list[dict[str, float | str]]:
    """Return bytes/s of each method, the prompt left out, and what it is to `ar`."""
    seconds = dict.fromkeys(METHODS, 0.0)
    drafted, accepted = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0)
    for number, prompt in enumerate(load_prompts()[::2]):
        first = number % len(METHODS)
        for method in METHODS[first:] + METHODS[:first]:
            stats = runtime.generate(
                prompt.data, NEW_BYTES, method=method, temperature=temperature, top_p=0.95, stop_at_eos=False
            ).stats
            seconds[method] += (stats.total_seconds - stats.first_byte_seconds) / (stats.new_bytes - 1)
            drafted[method] += stats.drafted
            accepted[method] += stats.accepted
    prompts = number + 1
    return [
        {
            "method": method,
            "temperature": temperature,
            "bytes_per_s": prompts / taken,
            "times_ar": seconds["ar"] / taken,
            "kept": accepted[method] / max(1, drafted[method]),
        }
        for method, taken in seconds.items()
    ]


def main(bundle: str) -> None:
    """Measure and write the report."""
    runtime = BltRuntime.from_pretrained(bundle, provider="cpu", reuse_prompts=False)
    for method in METHODS:
        runtime.generate(b"def main(", NEW_BYTES, method=method, stop_at_eos=False)
    rows = [row for temperature in TEMPERATURES for row in measure(runtime, temperature)]
    TARGET.write_text(json.dumps({"device": device_info(), "top_p": 0.95, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(f"| `{row['method']}` | {row['temperature']} | {row['bytes_per_s']:,.0f} | {row['times_ar']:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1])
