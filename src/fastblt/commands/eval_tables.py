"""The tables of ``fastblt eval``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from fastblt.commands.output import add_row, left, make_table, number, percent, right, words
from fastblt.runtime.measure.scoring.comparison import Check
from fastblt.runtime.measure.scoring.figures import Figures
from fastblt.runtime.measure.scoring.windows import OVERALL


def tables(figures: Figures) -> Iterator[Table]:
    """Yield one table for each kind of figure that there is."""
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
    """Return a table of how the figures of two backends compare."""
    headings = ("compared", "different", "allowed", "largest\ndifference", "")
    table = make_table(left("figure"), *(right(heading) for heading in headings), title=f"{one} beside {other}")
    for check in checks:
        counts = (f"{value:,}" for value in (check.compared, check.differing, check.allowed))
        verdict = "agree" if check.agree else "DIFFER"
        add_row(table, check.figure, *counts, f"{check.largest_difference:.1e}", verdict)
    return table


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names of texts for headings: of files without their folders, unless two would be the same."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _text(figures: Figures) -> Table:
    headings = ("pieces", "bytes", "bits per byte", "bytes per patch")
    table = make_table(words("text"), *(right(heading) for heading in headings), title="prediction of true text")
    for row in figures.text:
        counts = (str(row.windows), f"{row.bytes:,}")
        add_row(table, row.data, *counts, f"{row.bits_per_byte:.4f}", number(row.bytes_per_patch))
    return table


def _drafts(figures: Figures) -> Table:
    names = list(dict.fromkeys(row.data for row in figures.drafts))
    title = "drafts after true text: share of the drafted bytes that is accepted"
    table = make_table(left("method"), right("drafts"), *map(right, short_names(names)), title=title)
    cells = {(row.data, row.method): row for row in figures.drafts}
    for method in dict.fromkeys(row.method for row in figures.drafts):
        rates = (percent(cells[name, method].acceptance) for name in names)
        add_row(table, method, str(cells[OVERALL, method].anchors), *rates)
    return table


def _masked(figures: Figures) -> Table:
    """Return a table by share of hidden bytes; the open patch's latent is reported for all texts together only."""
    names = list(dict.fromkeys(row.data for row in figures.masked))
    cells = {(row.data, row.t, row.latent): row for row in figures.masked}
    latents = list(dict.fromkeys(row.latent for row in figures.masked))
    columns = [(name, latents[0]) for name in names] + [(OVERALL, latent) for latent in latents[1:]]
    headings = ["hidden\nshare", "bytes", *short_names(names)]
    headings += [f"{OVERALL},\n{latent} latent" for latent in latents[1:]]
    title = f"masked blocks: share of the hidden bytes that one decoder call restores ({latents[0]} latent)"
    table = make_table(*(right(heading) for heading in headings), title=title)
    for t in dict.fromkeys(row.t for row in figures.masked):
        rates = (percent(cells[name, t, latent].accuracy) for name, latent in columns)
        add_row(table, f"{t:g}", str(cells[OVERALL, t, latents[0]].hidden), *rates)
    return table


def _blocks(figures: Figures) -> Table:
    headings = (
        "block:\nequal",
        "block: bytes to\n1st difference",
        "text:\nequal",
        "text: bytes to\n1st difference",
        "decoder calls\nper byte",
    )
    title = "block diffusion beside greedy ar: one block after true text, and whole texts after prompts"
    table = make_table(left("method"), *(right(heading) for heading in headings), title=title)
    texts = {row.method: row for row in figures.generation}
    for block in figures.blocks:
        if block.data == OVERALL:
            text = texts[block.method]
            add_row(
                table,
                block.method,
                percent(block.agreement),
                f"{block.common_prefix:.2f}",
                percent(text.agreement),
                f"{text.common_prefix:.2f}",
                number(text.decoder_nfe_per_byte),
            )
    return table


def _diversity(figures: Figures) -> Table:
    headings = ("top-p", "gamma,\nnats", "bytes", "words\na text", "type-token\nratio", "calls\na byte", "bits\na byte")
    title = "sampled text at temperature 1: different words / words, against decoder calls"
    table = make_table(left("method"), *(right(heading) for heading in headings), title=title)
    for row in figures.diversity:
        gamma = "-" if row.gamma is None else f"{row.gamma:g}"
        counts = (f"{row.bytes:,}", f"{row.words:.0f}")
        values = (number(row.type_token_ratio), number(row.decoder_nfe_per_byte), number(row.bits_per_byte))
        add_row(table, row.method, f"{row.top_p:g}", gamma, *counts, *values)
    return table
