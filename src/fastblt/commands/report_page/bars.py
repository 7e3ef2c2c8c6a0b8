"""Draws bars as inline SVG; sizes are parts of the whole width, so that they fit any screen and any sheet of paper."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from fastblt.commands.report_page.markup import element


def bar(part: float, kind: str, label: str, *, limit: float | None = None) -> Element:
    """Return a bar.

    Args:
        part: its length, 0.0 to 1.0 of the width.
        kind: class of its color, see ``page.css``.
        label: what it shows, for those who cannot see it.
        limit: where a line marks what cannot be passed; beyond 1.0 an arrow at the edge points to it.
    """
    shapes = [_rectangle(0.0, 1.0, "track"), _rectangle(0.0, part, kind)]
    if limit is not None and limit <= 1.0:
        where = _percent(limit)
        shapes.append(element("line", x1=where, x2=where, y1="0", y2="100%", class_="limit"))
    elif limit is not None:
        shapes.append(element("text", "▸", x="100%", y="50%", class_="beyond"))
    return element("svg", *shapes, class_="bar", role="img", aria_label=label)


def stacked_bar(parts: Mapping[str, float], whole: float, label: str, words: Mapping[str, str]) -> Element:
    """Return a bar of several parts.

    Args:
        parts: lengths by kind, in any unit.
        whole: what the width stands for, in the same unit.
        label: what it shows, for those who cannot see it.
        words: what each part shows when the pointer rests on it.
    """
    shapes, start = [], 0.0
    for kind, size in parts.items():
        shapes.append(_rectangle(start / whole, size / whole, f"part {kind}", words[kind]))
        start += size
    return element("svg", *shapes, class_="bar stacked", role="img", aria_label=label)


def _rectangle(start: float, size: float, kind: str, words: str | None = None) -> Element:
    title = element("title", words) if words else None
    left, width = min(max(start, 0.0), 1.0), min(max(size, 0.0), 1.0)
    return element("rect", title, x=_percent(left), width=_percent(width), height="100%", class_=kind)


def _percent(part: float) -> str:
    return f"{100 * part:.2f}%"
