"""Measures the first byte of a second turn, and saving and loading what a sequence has read.

    python docs/results/second_turn.py build/demo-bundle

writes docs/results/second-turn.json. What is compared is measured in turns, so that a busy machine slows all of it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from fastblt.commands.prompts import heldout_prompts
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import device_info

TARGET = Path(__file__).with_name("second-turn.json")
LENGTHS = (500, 2000, 3500)
REPLY_BYTES = 64
QUESTION_BYTES = 40
REPETITIONS = 9


def measure(again: BltRuntime, fresh: BltRuntime, text: bytes, file: Path) -> dict[str, Any]:
    """Return the medians of one conversation, in milliseconds."""
    reply = again.generate(text, REPLY_BYTES, method="ar", stop_at_eos=False).data
    found: dict[str, list[float]] = {"reused": [], "read anew": [], "saved": [], "loaded": []}
    for repetition in range(REPETITIONS):
        question = f" {repetition} ".encode() + text[: QUESTION_BYTES - 3]
        second = again.generate(text + reply + question, 1, method="ar", stop_at_eos=False)
        anew = fresh.generate(text + reply + question, 1, method="ar", stop_at_eos=False)
        assert second.data == anew.data
        found["reused"].append(1e3 * second.stats.first_byte_seconds)
        found["read anew"].append(1e3 * anew.stats.first_byte_seconds)
        again.generate(text, REPLY_BYTES, method="ar", stop_at_eos=False)
        with again.sequence() as sequence:
            sequence.generate(text, REPLY_BYTES, method="ar", stop_at_eos=False)
            began = time.perf_counter()
            sequence.save(file)
            found["saved"].append(1e3 * (time.perf_counter() - began))
        began = time.perf_counter()
        loaded = again.load_sequence(file)
        found["loaded"].append(1e3 * (time.perf_counter() - began))
        assert loaded.generate(question, 1, method="ar", stop_at_eos=False).data == anew.data
        loaded.close()
    medians = {f"{name} ms": round(median(values), 2) for name, values in found.items()}
    return {"conversation bytes": len(text + reply), "file bytes": file.stat().st_size, **medians}


def main(bundle: str) -> None:
    """Measure conversations of `LENGTHS` bytes, and write the report."""
    again = BltRuntime.from_pretrained(bundle, provider="cpu", sequences=4)
    fresh = BltRuntime.from_pretrained(bundle, provider="cpu", sequences=1, reuse_prompts=False)
    with tempfile.TemporaryDirectory() as folder:
        texts = [heldout_prompts(1, length)[0] for length in LENGTHS]
        rows = [measure(again, fresh, text, Path(folder) / "sequence") for text in texts]
    report = {"question bytes": QUESTION_BYTES, "repetitions": REPETITIONS, "device": device_info(), "rows": rows}
    TARGET.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
