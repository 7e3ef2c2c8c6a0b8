"""Compares `auto` with that of an earlier revision, in turns in one process, on every corpus and on editing prompts.

Usage: ``python docs/results/adaptive_turns.py BUNDLE REVISION OUT.json [BYTES]``, in the repository.
The greedy text of every method must be that of `ar`. A figure is the sum of seconds over the prompts of a group.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from types import ModuleType

from fastblt.calibration.heldout import CORPORA, load_edit_prompts, load_prompts
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import device_info
from fastblt.runtime.methods import Method, parse_method

PROMPTS = 12
PASSES = 2


def earlier_auto(revision: str) -> Method:
    """Return `auto` as it was: its package is loaded from git under another name."""
    package = ModuleType("earlier_auto")
    package.__path__ = []
    sys.modules["earlier_auto"] = package
    for name in ("estimates", "drafters", "policy"):
        path = f"{revision}:runtime/methods/adaptive/{name}.py"
        source = subprocess.run(["git", "show", path], capture_output=True, check=True, text=True).stdout
        spec = importlib.util.spec_from_loader(f"earlier_auto.{name}", loader=None)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        exec(source.replace("fastblt.runtime.methods.adaptive", "earlier_auto"), module.__dict__)
    found: Method = sys.modules["earlier_auto.policy"].Adaptive()
    return found


def main(bundle: str, revision: str, out: str, count: str = "192") -> None:
    """Measure and write a table as JSON; seconds per group and method."""
    revision = subprocess.run(["git", "rev-parse", revision], capture_output=True, check=True, text=True).stdout.strip()
    groups = {corpus: [prompt.data for prompt in load_prompts(corpus)[:PROMPTS]] for corpus in CORPORA}
    for prompt in load_edit_prompts():
        groups.setdefault(f"edit-{prompt.document}", []).append(prompt.data)
    methods = {"ar": parse_method("ar"), "earlier": earlier_auto(revision), "auto": parse_method("auto")}
    methods["lookup:16"] = parse_method("lookup:16")
    seconds: dict[str, dict[str, float]] = {group: defaultdict(float) for group in groups}
    runtime = BltRuntime.from_pretrained(bundle)
    turns = [(group, prompt) for _ in range(PASSES) for group, prompts in groups.items() for prompt in prompts]
    for method in methods.values():
        runtime.generate(b"def main(", 400, method=method, stop_at_eos=False)
    for turn, (group, prompt) in enumerate(turns):
        expected = runtime.generate(prompt, int(count), method="ar", stop_at_eos=False).data
        names = list(methods)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = perf_counter()
            found = runtime.generate(prompt, int(count), method=methods[name], stop_at_eos=False)
            seconds[group][name] += perf_counter() - began
            assert found.data == expected, f"{name} after {prompt!r}"
    rows = [
        {"group": group, "seconds": dict(each), "auto_against_earlier": each["earlier"] / each["auto"]}
        for group, each in seconds.items()
    ]
    report = {"revision": revision, "bytes": int(count), "machine": device_info(), "rows": rows}
    Path(out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(
            row["group"],
            f"{row['auto_against_earlier']:.3f}",
            {n: round(s, 2) for n, s in seconds[row["group"]].items()},
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
