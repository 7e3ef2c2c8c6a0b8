"""Makes docs/pictures/generate.svg anew: what ``fastblt generate --show`` writes, without the table below the text.

python docs/pictures/generate.py build/demo-bundle
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).with_name("generate.svg")
PROMPT = "The king said, "
OPTIONS = "--show --method s:8 --temperature 0.5 --seed 2 --max-new-bytes 160"
COLUMNS = 144


def main(bundle: str) -> None:
    """Run the command and draw its output."""
    command = [sys.executable, "-m", "fastblt", "generate", bundle, PROMPT, *OPTIONS.split(), "--no-profile"]
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    text, _, _ = shown.partition("\nmethod ")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(f'$ fastblt generate bundle "{PROMPT}" {OPTIONS}', style="bold", highlight=False, markup=False)
    console.print(Text.from_ansi(text.rstrip()))
    TARGET.write_text(console.export_svg(title="fastblt"), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/pictures/generate.py BUNDLE")
    main(sys.argv[1])
