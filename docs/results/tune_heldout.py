"""Measures how near to the fastest setting `fastblt tune` comes, on prompts that it has not seen.

    python docs/results/tune_heldout.py build/demo-bundle [SECONDS]

tunes on every other shipped prompt, measures every method with every number of threads on the rest, in turns, and
writes docs/results/tune-cpu.json. A figure is the sum over the prompts of the median time of four texts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from fastblt.calibration.heldout import CORPORA, load_prompts
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import device_info

TARGET = Path(__file__).with_name("tune-cpu.json")
METHODS = "ar,s:2,s:3,s:4,s:6,s:8,s:12,s:16,lookup:12,dv:4@one,dv:6@one,dv:8@one,auto"
THREADS = (1, 2)
NEW_BYTES = 128
REPEATS = 4

Setting = tuple[str, int]


def tune(bundle: str, prompts: list[str], seconds: str) -> tuple[Setting, int]:
    """Return what ``fastblt tune`` chooses and over how many rounds, without touching the user's settings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.json"
        file.write_text(json.dumps(prompts))
        command = [sys.executable, "-m", "fastblt", "tune", bundle, "--prompts", str(file), "--seconds", seconds]
        subprocess.run(command, check=True, env=os.environ | {"XDG_CONFIG_HOME": folder})
        profile = json.loads(next(Path(folder).glob("fastblt/profiles/*/*.json")).read_text())
    return (profile["method"], profile["threads"]), profile["prompts"]


def measure(bundle: str, prompts: list[bytes]) -> dict[Setting, float]:
    """Return the seconds of each setting."""
    runtimes = {threads: BltRuntime.from_pretrained(bundle, provider="cpu", threads=threads) for threads in THREADS}
    settings = [(method, threads) for method in METHODS.split(",") for threads in THREADS]
    seconds = dict.fromkeys(settings, 0.0)
    for number, prompt in enumerate(prompts):
        first = number % len(settings)
        times: dict[Setting, list[float]] = {setting: [] for setting in settings}
        for _ in range(REPEATS):
            for method, threads in settings[first:] + settings[:first]:
                text = runtimes[threads].generate(prompt, NEW_BYTES, method=method, stop_at_eos=False)
                times[method, threads].append(text.stats.total_seconds - text.stats.first_byte_seconds)
        for setting, each in times.items():
            seconds[setting] += median(each)
    return seconds


def main(bundle: str, seconds: str = "60") -> None:
    """Tune, measure and write the report."""
    shipped = [prompt for corpus in CORPORA for prompt in load_prompts(corpus)]
    chosen, rounds = tune(bundle, [prompt.text for prompt in shipped[::2]], seconds)
    found = measure(bundle, [prompt.data for prompt in shipped[1::2]])
    best = min(found.values())
    report = {
        "device": device_info(),
        "seconds": float(seconds),
        "chosen": {"method": chosen[0], "threads": chosen[1], "prompts": rounds},
        "prompts": len(shipped[1::2]),
        "new_bytes": NEW_BYTES,
        "repeats": REPEATS,
        "rows": [
            {"method": method, "threads": threads, "seconds": taken, "times_best": best / taken}
            for (method, threads), taken in sorted(found.items(), key=lambda item: item[1])
        ],
    }
    TARGET.write_text(json.dumps(report, indent=1) + "\n")
    for (method, threads), taken in sorted(found.items(), key=lambda item: item[1]):
        print(f"| `{method}` | {threads} | {best / taken:.3f} | {'chosen' if (method, threads) == chosen else ''} |")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: python docs/results/tune_heldout.py BUNDLE [SECONDS]")
    main(*sys.argv[1:])
