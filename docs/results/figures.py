"""Measures the tables of docs/performance.md anew, in one sitting, and prints them as Markdown.

Usage, in the repository and on a machine that does nothing else (about half an hour on two cores):

    python docs/results/figures.py BUILD              # everything; bundles that BUILD lacks are exported to it
    python docs/results/figures.py BUILD bench mid    # some of it
    python docs/results/figures.py --print            # the tables of the JSON files that are here

Every measurement is one command of `fastblt`, whose output is a JSON file of this folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Row = dict[str, Any]
Cell = Callable[[Row], str]

#: Folder of each bundle in BUILD, and what is exported to it.
BUNDLES = {
    "demo-bundle": "checkpoints/blt-d-8m",
    "mid": "random:mid",
    "30m": "random:blt-30m",
    "300m": "random:blt-300m",
}
_MANY = (
    "ar,s:4,s:8,s:16,dv:4@one,dv:5@one,dv:8@one,dv:8@one+block,dv:8@one+partial,dv:8@0.3,dv:8@eb1.5,"
    "d:8@0.5+partial,d:8@0.7+partial,d:8@0.7,d:8@0.7+partial+block,d:8@eb1.0+partial,auto"
)
_REPLAYED = "ar,s:4,s:8,s:16,d:8@0.7,d:16@0.7,d:8@eb1.0,dv:8@one,dv:8@0.3,dv:16@one,auto"
_ADAPTIVE = "ar,s:4,s:6,s:8,s:12,dv:5@one,auto"
_TWO_CALLS = "s:4,s:4+partial,s:8,s:8+partial,s:16,s:16+partial"
_BOUNDS = (
    "d:8@eb0.5,d:8@ebmax0.5,d:8@eb1.0,d:8@ebmax1.0,d:8@eb2.0,d:8@ebmax2.0,"
    "dv:8@eb0.5,dv:8@ebmax0.5,dv:8@eb1.5,dv:8@ebmax1.5"
)
_COMPARED = "--methods ar,s:4,s:8 --against transformers,eager"


def _lengths(prompts: int, size: int) -> str:
    return f"30m --methods ar --against transformers --prompts {prompts} --max-new-bytes {size}"


#: What is measured, by name: JSON file, and bundle and options of `fastblt bench`.
MEASUREMENTS = {
    "baselines": ("baselines-cpu", "demo-bundle --methods ar,s:8,auto --against eager,eager-compiled --repeats 3"),
    "bench": ("bench-cpu", f"demo-bundle --methods {_MANY} --against eager --prompts 16 --max-new-bytes 256"),
    "mid": ("replay-mid", f"mid --methods {_REPLAYED} --replay paper --prompts 4 --max-new-bytes 256"),
    "30m": ("peers-30m", f"30m {_COMPARED} --prompts 8"),
    "30m-64": ("peers-30m-64", _lengths(3, 64)),
    "30m-128": ("peers-30m-128", _lengths(8, 128)),
    "30m-256": ("peers-30m-256", _lengths(3, 256)),
    "30m-512": ("peers-30m-512", _lengths(2, 512)),
    "300m": ("peers-300m", f"300m {_COMPARED} --prompts 3"),
    "web": ("adaptive-web", f"demo-bundle --corpora web --methods {_ADAPTIVE} --prompts 24 --max-new-bytes 256"),
    "pycode": (
        "adaptive-pycode",
        f"demo-bundle --corpora pycode --methods {_ADAPTIVE} --prompts 24 --max-new-bytes 256",
    ),
    "mix": ("adaptive-mix", f"demo-bundle --corpora web,pycode --methods {_ADAPTIVE} --prompts 24 --max-new-bytes 256"),
    "256": ("context-256", "demo-bundle --methods ar,s:8 --repeats 2 --prompt-bytes 256 --max-bytes 8192"),
    "4096": ("context-4096", "demo-bundle --methods ar,s:8 --repeats 2 --prompt-bytes 4096 --max-bytes 8192"),
    "two-calls": ("two-calls-cpu", f"demo-bundle --methods {_TWO_CALLS} --prompts 12 --max-new-bytes 256"),
    "bounds": ("entropy-bounds-cpu", f"demo-bundle --methods {_BOUNDS} --prompts 12 --max-new-bytes 256"),
}


def main(arguments: Sequence[str]) -> None:
    """Measure what is named, or everything, and print the tables."""
    if not arguments:
        raise SystemExit("usage: python docs/results/figures.py BUILD [NAME ...], or --print")
    if arguments[0] != "--print":
        build, *names = arguments
        for name in names or MEASUREMENTS:
            _measure(Path(build), *MEASUREMENTS[name])
    for line in _tables():
        print(line)


def _measure(build: Path, file: str, options: str) -> None:
    """Run one `fastblt bench`; its bundle is exported first where it is missing."""
    bundle, *rest = options.split()
    if not (build / bundle).exists():
        _fastblt("export", BUNDLES[bundle], str(build / bundle))
    _fastblt("bench", str(build / bundle), *rest, "--no-profile", "--json", str(HERE / f"{file}.json"))


def _fastblt(*arguments: str) -> None:
    print("fastblt", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "fastblt", *arguments], check=True, stdout=subprocess.DEVNULL)


def _rows(name: str) -> list[Row]:
    rows: list[Row] = json.loads((HERE / f"{MEASUREMENTS[name][0]}.json").read_text())["rows"]
    return rows


def _table(rows: Sequence[Row], cells: dict[str, Cell]) -> Iterator[str]:
    yield "| " + " | ".join(cells) + " |"
    yield "| " + " | ".join("---" for _ in cells) + " |"
    for row in rows:
        yield "| " + " | ".join(cell(row) for cell in cells.values()) + " |"
    yield ""


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.0f} %"


def _kept(row: Row) -> str:
    return "-" if row["acceptance"] is None else f"{100 * row['acceptance']:.1f} %"


def _name(row: Row) -> str:
    return f"{row['backend']} {row['method']}"


def _per_byte(row: Row, call: str) -> float:
    return float(row[f"nfe_{call}_per_512"]) / 512


def _times(of: Callable[[Sequence[Row]], float], rows: Sequence[Row]) -> Cell:
    """Return a cell with the speed of a row against that of another one."""
    return lambda row: f"{row['bytes_per_s'] / of(rows):.2f}"


def _speed(backend: str, method: str = "ar") -> Callable[[Sequence[Row]], float]:
    return lambda rows: next(r["bytes_per_s"] for r in rows if (r["backend"], r["method"]) == (backend, method))


def _part(name: str) -> Cell:
    return lambda row: f"{row['us_per_byte'][name]:.0f}"


_CALLS: Cell = lambda row: f"{row['nfe_decoder_per_512']:.0f} / {row['nfe_global_per_512']:.0f}"  # noqa: E731
_MOVED: Cell = lambda row: f"{row['moved_gb'] * 1e3 / row['bytes']:.1f}"  # noqa: E731


def _tables() -> Iterator[str]:
    for table in (_baselines, _bench, _replay, _peers, _lengths_against_transformers, _adaptive, _context, _decoding):
        try:
            yield from table()
        except FileNotFoundError as error:
            print(f"{error.filename}: not measured here, its table is left out", file=sys.stderr)


def _baselines() -> Iterator[str]:
    rows = _rows("baselines")
    ours, compiled, eager = (_speed(name) for name in ("onnxruntime", "eager-compiled", "eager"))
    yield from _table(
        rows,
        {
            "backend, method": _name,
            "bytes/s": lambda row: f"{row['bytes_per_s']:,.0f}",
            "x ORT AR": _times(ours, rows),
            "x eager-compiled AR": _times(compiled, rows),
            "x eager AR": _times(eager, rows),
        },
    )


def _bench() -> Iterator[str]:
    rows = _rows("bench")
    yield from _table(
        rows,
        {
            "backend, method": _name,
            "bytes/s": lambda row: f"{row['bytes_per_s']:.0f}",
            "x ORT AR": _times(_speed("onnxruntime"), rows),
            "x eager AR": _times(_speed("eager"), rows),
            "drafts kept": _kept,
            "NFE/512: decoder / encoder+global": _CALLS,
            "estimated GB/512 (saved)": lambda row: (
                f"{row['estimated_gb_per_512']:.2f} ({_percent(row['estimated_saving'], '+')})"
            ),
            "time saved": lambda row: _percent(row["measured_saving"], "+"),
            "moved MB/byte": lambda row: f"{row['moved_gb'] * 1e3 / row['bytes']:.2f}",
            "limit, us/byte": lambda row: f"{row['limit_us_per_byte']:.0f}",
            "measured, us/byte": lambda row: f"{sum(row['us_per_byte'].values()):.0f}",
        },
    )
    parts = ("patcher", "encoder", "global", "decoder", "host")
    yield from _table(
        rows,
        {
            "backend, method": _name,
            **{part: _part(part) for part in parts},
            "total": lambda row: f"{sum(row['us_per_byte'].values()):.0f}",
            "bytes per round": lambda row: f"{row['bytes'] / row['rounds']:.2f}",
        },
    )


def _replay() -> Iterator[str]:
    rows = _rows("mid")
    yield from _table(
        rows,
        {
            "method": lambda row: row["method"],
            "kept (steps per block)": lambda row: (
                _kept(row)
                if row["acceptance"]
                else "-"
                if row["method"] == "ar"
                else f"({row['replay']['steps']:.2f} steps)"
            ),
            "NFE/512: decoder / encoder+global": _CALLS,
            "formula saves here": lambda row: _percent(row["estimated_saving"]),
            "time saved": lambda row: _percent(row["measured_saving"]),
            "x AR": _times(_speed("onnxruntime"), rows),
            "moved MB/byte": _MOVED,
            "limit, ms/byte": lambda row: f"{row['limit_us_per_byte'] / 1e3:.2f}",
            "measured, ms/byte": lambda row: f"{sum(row['us_per_byte'].values()) / 1e3:.2f}",
        },
    )


def _peers() -> Iterator[str]:
    for name in ("30m", "300m"):
        rows = _rows(name)
        yield from _table(
            rows,
            {
                "contender": _name,
                "bytes/s": lambda row: f"{row['bytes_per_s']:.1f}",
                "x transformers": _times(_speed("transformers"), rows),
                "x eager": _times(_speed("eager"), rows),
                "drafts kept": _kept,
                "ms/byte: patcher / encoder / global / decoder": lambda row: " / ".join(
                    f"{row['us_per_byte'][part] / 1e3:.1f}" for part in ("patcher", "encoder", "global", "decoder")
                ),
                "global calls per byte": lambda row: f"{_per_byte(row, 'global'):.2f}",
            },
        )


def _lengths_against_transformers() -> Iterator[str]:
    for name in ("30m-64", "30m-128", "30m-256", "30m-512"):
        rows = _rows(name)
        ours, theirs = _speed("onnxruntime")(rows), _speed("transformers")(rows)
        yield f"{name}: {ours:.1f} {theirs:.1f} {ours / theirs:.1f}"
    yield ""


def _adaptive() -> Iterator[str]:
    columns = {name: {row["method"]: row for row in _rows(name)} for name in ("web", "pycode", "mix")}
    speeds = {name: {method: row["bytes_per_s"] for method, row in rows.items()} for name, rows in columns.items()}
    for method in speeds["web"]:
        yield f"| {method} | " + " | ".join(f"{of[method] / of['ar']:.2f}" for of in speeds.values()) + " |"
    best = [of["auto"] / max(of[method] for method in of if method != "auto") - 1 for of in speeds.values()]
    yield "| auto against the best fixed one | " + " | ".join(f"{100 * value:+.1f} %" for value in best) + " |"
    yield ""


def _context() -> Iterator[str]:
    for short, long in zip(_rows("256"), _rows("4096"), strict=True):
        times = [1e3 / row["bytes_per_s"] for row in (short, long)]
        ratio, first = times[1] / times[0], long["first_byte_ms"]
        yield f"| {short['method']} | {times[0]:.2f} | {times[1]:.2f} | {ratio:.2f} | {first:.0f} |"
    yield ""


def _decoding() -> Iterator[str]:
    for name in ("two-calls", "bounds"):
        rows = _rows(name)
        yield from _table(
            rows,
            {
                "method": lambda row: f"`{row['method']}`",
                "kept": _kept,
                "D per byte": lambda row: f"{_per_byte(row, 'decoder'):.2f}",
                "E, G per byte": lambda row: f"{_per_byte(row, 'global'):.2f}",
                "D per round": lambda row: f"{row['nfe_decoder'] / row['rounds']:.2f}",
                "bytes/s": lambda row: f"{row['bytes_per_s']:.0f}",
                "x ar": _times(_speed("onnxruntime"), rows),
            },
        )


if __name__ == "__main__":
    main(sys.argv[1:])
