"""``fastblt inspect``: what a checkpoint or a bundle is, and what it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastblt.commands.graphs import graph_table, tensor_table
from fastblt.commands.inspect_facts import BYTES_PER_PATCH, ESTIMATE_BYTES, PARTS, Memory, ModelFacts, read_facts
from fastblt.models.config import BltConfig
from fastblt.runtime.bundle.manifest import EMBEDDINGS_FILE
from fastblt.runtime.measure.report import write_json

_EMBEDDINGS = ("byte embeddings", "hash embeddings")


def run(path: str, max_bytes: int, patcher: str | None = None, json_file: Path | None = None) -> None:
    """Print a description of a checkpoint of any layout or of a bundle; errors as in `read_facts`."""
    facts = read_facts(path, max_bytes, patcher)
    if json_file is not None:
        write_json(json_file, as_json(facts))
    console = Console(highlight=False)
    console.print(_headline(facts), soft_wrap=True)
    for table in (geometry_table(facts.config), facts_table(facts.config), parts_table(facts), memory_table(facts)):
        console.print()
        console.print(table)
    console.print(_memory_note(facts), soft_wrap=True)
    if facts.manifest is not None:
        for table in (graph_table(Path(path), facts.manifest), *map(tensor_table, facts.manifest.graphs.values())):
            console.print()
            console.print(table)
    console.print()
    console.print(_traffic_text(facts), soft_wrap=True)


def as_json(facts: ModelFacts) -> dict[str, Any]:
    """The facts as plain JSON types."""
    found = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
    found["config"], found["counts"] = facts.config.to_dict(), dataclasses.asdict(facts.counts)
    found["stored"] = {part: dataclasses.asdict(each) for part, each in facts.stored.items()}
    found["memory"] = [{**dataclasses.asdict(each), "device": each.device} for each in facts.memory]
    found["manifest"] = None if facts.manifest is None else facts.manifest.to_dict()
    return found


def _headline(facts: ModelFacts) -> str:
    manifest = facts.manifest
    if manifest is None:
        return f"{facts.path}: {facts.kind}, {facts.config.name}"
    place = f"in {EMBEDDINGS_FILE}" if manifest.hash_tables == "host" else "inside the encoder graph"
    return f"{facts.path}: bundle, {manifest.model}, {manifest.dtype}, opset {manifest.opset}, hash tables {place}"


def geometry_table(config: BltConfig) -> Table:
    """One row for each stack."""
    table = Table("stack", box=None, pad_edge=False)
    for heading in ("layers", "dim", "heads", "ffn", "window", "rope theta"):
        table.add_column(heading, justify="right")
    for name, stack in config.stacks.items():
        window = "all" if stack.window is None else str(stack.window)
        numbers = (stack.layers, stack.dim, stack.heads, stack.ffn_dim)
        table.add_row(name, *map(str, numbers), window, f"{stack.rope_theta:g}")
    return table


def facts_table(config: BltConfig) -> Table:
    """What else determines the model."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("patches", patch_rule(config))
    masks = "self-attention stays inside them, EOS ends one" if config.document_masks else "not masked"
    table.add_row("documents", masks)
    n = config.hash
    sizes = ", ".join(map(str, n.sizes))
    functions = f", {n.functions} hash functions" if n.functions > 1 else ""
    tables = f"{n.tables} of {n.rows} rows x {config.encoder.dim} (n-grams of {sizes} bytes{functions})"
    table.add_row("hash tables", tables if n.tables else "none")
    table.add_row("cross-attention", f"{config.cross_attn_k} queries per patch")
    blocks = f", blocks of up to {config.block_size} bytes" if config.block_size else ", no block diffusion"
    table.add_row("decoder input", config.decoder_input + blocks)
    return table


def patch_rule(config: BltConfig) -> str:
    """What closes a patch, in words."""
    rule, longest = config.patching, config.patching.max_patch_length
    limit = "of any length" if longest is None else f"of at most {longest} bytes"
    if rule.mode == "entropy":
        return f"close above {rule.threshold:g} nats, {limit}"
    if rule.mode == "space":
        return f"close at space-like bytes, {limit} (no entropy model)"
    return "every byte is one" if longest == 1 else f"of {longest} bytes (no entropy model)"


def parts_table(facts: ModelFacts) -> Table:
    """Parameters, share of the non-embedding parameters, bytes on disk and type of each part."""
    table = Table("part", box=None, pad_edge=False)
    for heading in ("parameters", "share", "MB on disk", "type"):
        table.add_column(heading, justify="right")
    counts = facts.counts
    whole = counts.total - counts.byte_embeddings - counts.hash_embeddings
    for part, name in PARTS.items():
        count, stored = getattr(counts, name), facts.stored.get(part)
        if not count:
            continue
        share = "" if part in _EMBEDDINGS else f"{100 * count / whole:.1f} %"
        table.add_row(part, f"{count:,}", share, _mb(stored.bytes) if stored else "", stored.dtype if stored else "")
    disk = sum(stored.bytes for stored in facts.stored.values())
    table.add_row("total", f"{counts.total:,}", "", _mb(disk), "", style="bold")
    return table


def memory_table(facts: ModelFacts) -> Table:
    """Megabytes on device and host, by part; for a checkpoint, of every type of bundle."""
    table = Table("memory, MB", box=None, pad_edge=False)
    for memory in facts.memory:
        table.add_column(f"{memory.dtype}\nweights", justify="right")
        table.add_column("\nbuffers", justify="right")
    for part in facts.config.stacks:
        table.add_row(part, *(_mb(size) for m in facts.memory for size in (m.weights[part], m.buffers[part])))
    table.add_row("device", *(_mb(size) for m in facts.memory for size in _device(m)), style="bold")
    table.add_row("host", *(text for m in facts.memory for text in (_mb(m.tables), "")), style="bold")
    return table


def _device(memory: Memory) -> tuple[int, int]:
    return sum(memory.weights.values()), sum(memory.buffers.values())


def _memory_note(facts: ModelFacts) -> str:
    return (
        f"buffers: for {facts.max_bytes} bytes of prompt and text, each a patch at worst, mostly keys and values; the "
        "patcher is fp32 in every bundle; host: embedding tables, mapped from their file, of which a byte reads a few "
        "rows"
    )


def _traffic_text(facts: ModelFacts) -> str:
    ar = facts.traffic_gb["ar"]
    each = [
        f"{method} {gb:.4g} GB" + ("" if method == "ar" else f" ({100 * (1 - gb / ar):.0f} % less)")
        for method, gb in facts.traffic_gb.items()
    ]
    return (
        f"estimated weight traffic for {ESTIMATE_BYTES} bytes: {', '.join(each)}\n"
        f"assumed: 16-bit weights, {BYTES_PER_PATCH:g} bytes per patch, the paper's acceptance (91 % of drafts, 80 % "
        "of one-step blocks) and steps (2.9 a block), one encoder and global call a round; patcher and caches left "
        "out (the paper's formula)"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.2f}"
