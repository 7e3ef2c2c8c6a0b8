"""The tables of ``fastblt eval``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table

from fastblt.runtime.measure.scoring.comparison import Check
from fastblt.runtime.measure.scoring.figures import Figures
from fastblt.runtime.measure.scoring.windows import OVERALL


def tables(figures: Figures) -> Iterator[Table]:
    """One table for each kind of figure that there is."""
    yield _text(figures)
    if figures.drafts:
        yield _drafts(figures)
    if figures.masked:
        yield _masked(figures)
    if figures.blocks:
        yield _blocks(figures)
    if figures.diversity:
        yield _diversity(figures)


def agreement_table(checks: Sequence[Check], one: str, other: str) -> Table:
    """How two backends compare."""
    table = _table(f"{one} beside {other}", ("figure",), ("compared", "differing", "allowed", "largest difference", ""))
    for check in checks:
        counts = (f"{value:,}" for value in (check.compared, check.differing, check.allowed))
        table.add_row(check.figure, *counts, f"{check.largest_difference:.1e}", "agree" if check.agree else "DIFFER")
    return table


def _table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _text(figures: Figures) -> Table:
    table = _table("true text", ("data",), ("windows", "bytes", "bits per byte", "bytes per patch"))
    for row in figures.text:
        table.add_row(
            row.data, str(row.windows), f"{row.bytes:,}", f"{row.bits_per_byte:.4f}", _number(row.bytes_per_patch)
        )
    return table


def _drafts(figures: Figures) -> Table:
    names = list(dict.fromkeys(row.data for row in figures.drafts))
    table = _table("teacher-forced acceptance: accepted part of the drafted bytes", ("method",), ("drafts", *names))
    cells = {(row.data, row.method): row for row in figures.drafts}
    for method in dict.fromkeys(row.method for row in figures.drafts):
        rates = (_percent(cells[name, method].acceptance) for name in names)
        table.add_row(method, str(cells[OVERALL, method].anchors), *rates)
    return table


def _masked(figures: Figures) -> Table:
    """Rows by t; the closed latent is given for each text, the open patch's for all together."""
    names = list(dict.fromkeys(row.data for row in figures.masked))
    cells = {(row.data, row.t, row.latent): row for row in figures.masked}
    latents = list(dict.fromkeys(row.latent for row in figures.masked))
    columns = [(name, latents[0]) for name in names] + [(OVERALL, latent) for latent in latents[1:]]
    headings = [f"{name}\n{latent} latent" for name, latent in columns]
    table = _table("masked accuracy: hidden bytes that one decoder call restores", (), ("t", "hidden", *headings))
    for t in dict.fromkeys(row.t for row in figures.masked):
        rates = (_percent(cells[name, t, latent].accuracy) for name, latent in columns)
        table.add_row(f"{t:g}", str(cells[OVERALL, t, latents[0]].hidden), *rates)
    return table


def _blocks(figures: Figures) -> Table:
    headings = (
        "block:\nequal",
        "block:\nequal beginning",
        "text:\nequal",
        "text:\nequal beginning",
        "decoder calls\na byte",
    )
    table = _table(
        "BLT-D beside greedy autoregressive bytes: one block after true text, and whole texts after prompts",
        ("method",),
        headings,
    )
    texts = {row.method: row for row in figures.generation}
    for block in figures.blocks:
        if block.data == OVERALL:
            text = texts[block.method]
            prefixes = (f"{value:.2f} bytes" for value in (block.common_prefix, text.common_prefix))
            table.add_row(
                block.method,
                _percent(block.agreement),
                next(prefixes),
                _percent(text.agreement),
                next(prefixes),
                _number(text.decoder_nfe_per_byte),
            )
    return table


def _diversity(figures: Figures) -> Table:
    table = _table(
        "sampled text at temperature 1: diversity against cost",
        ("method",),
        ("top-p", "gamma, nats", "texts", "bytes", "type-token ratio", "decoder calls a byte"),
    )
    for row in figures.diversity:
        gamma = "-" if row.gamma is None else f"{row.gamma:g}"
        counts = (str(row.texts), f"{row.bytes:,}")
        values = (_number(row.type_token_ratio), _number(row.decoder_nfe_per_byte))
        table.add_row(row.method, f"{row.top_p:g}", gamma, *counts, *values)
    return table
