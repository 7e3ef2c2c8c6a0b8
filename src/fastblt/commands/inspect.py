"""``fastblt inspect``: describes a checkpoint or a bundle, and what it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fastblt.commands.checks import check_bundle_or_checkpoint, check_checkpoint, check_file_target, pinned
from fastblt.commands.graphs import graph_tables
from fastblt.commands.inspect_facts import PARTS, Memory, ModelFacts, read_facts
from fastblt.commands.options import JsonOption, PatcherOption, RevisionOption
from fastblt.commands.output import add_row, left, make_table, megabytes, note, print_table, right, stdout, words
from fastblt.models import limits
from fastblt.models.config import BltConfig
from fastblt.runtime.bundle.manifest import EMBEDDINGS_FILE
from fastblt.runtime.measure.replay.paper import POINT_BYTES, Estimate, bytes_per_patch, estimates
from fastblt.runtime.measure.report import write_json

_EMBEDDINGS = ("byte embeddings", "hash embeddings")


def command(
    path: Annotated[
        str,
        typer.Argument(help="Bundle, or checkpoint: {layouts}."),
    ],
    max_bytes: Annotated[
        int, typer.Option(min=1, max=limits.TEXT_BYTES, help="Longest text, prompt included, to report memory for.")
    ] = 4096,
    patcher: PatcherOption = None,
    revision: RevisionOption = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Also compare every sha256 of a bundle, and look for NaNs in its tables."),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Describe a checkpoint or a bundle.

    Prints its geometry, parameters, size on disk, memory on device and host, and the estimated weight traffic of each
    method; of a bundle also its graphs. Weights are not loaded.

    A bundle is compared with its manifest: the size of every file, the header of its tables and, where onnx is
    installed, the inputs and outputs of its graphs.
    """
    check_file_target(json)
    path = pinned(path, revision)
    check_bundle_or_checkpoint(path)
    check_checkpoint(patcher)
    facts = read_facts(path, max_bytes, patcher, check=check)
    graphs = [] if facts.manifest is None else graph_tables(Path(path), facts.manifest)
    if json is not None:
        write_json(json, as_json(facts))
    console = stdout()
    console.print(_headline(facts), soft_wrap=True)
    for table in (geometry_table(facts.config), facts_table(facts.config), parts_table(facts), memory_table(facts)):
        console.print()
        print_table(console, table)
    note(console, _memory_note(facts))
    if facts.engines:
        console.print()
        print_table(console, engines_table(facts))
    for table in graphs:
        console.print()
        print_table(console, table)
    if facts.profiles:
        console.print()
        print_table(console, profiles_table(facts))
    for why in facts.refused_profiles:
        note(console, f"ignored: {why}")
    console.print()
    print_table(console, traffic_table(facts))
    note(console, _traffic_note(facts))


def as_json(facts: ModelFacts) -> dict[str, Any]:
    """Return the facts as plain JSON types."""
    found = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
    found["config"], found["counts"] = facts.config.to_dict(), dataclasses.asdict(facts.counts)
    found["stored"] = {part: dataclasses.asdict(each) for part, each in facts.stored.items()}
    found["memory"] = [{**dataclasses.asdict(each), "device": each.device} for each in facts.memory]
    found["engines"] = [{**dataclasses.asdict(each), "total": each.total} for each in facts.engines]
    found["profiles"] = [dataclasses.asdict(each) for each in facts.profiles]
    found["manifest"] = None if facts.manifest is None else facts.manifest.to_dict()
    return found


def _headline(facts: ModelFacts) -> str:
    manifest = facts.manifest
    if manifest is None:
        return f"{facts.path}: {facts.kind}, {facts.config.name}"
    place = f"in {EMBEDDINGS_FILE}" if manifest.hash_tables == "host" else "inside the encoder graph"
    return f"{facts.path}: bundle, {manifest.model}, {manifest.dtype}, opset {manifest.opset}, hash tables {place}"


def geometry_table(config: BltConfig) -> Table:
    """Return a table with one row for each stack of layers."""
    headings = ("layers", "dim", "heads", "ffn", "window", "rope theta")
    table = make_table(left("stack"), *(right(heading) for heading in headings))
    for name, stack in config.graph_stacks.items():
        window = "all" if stack.window is None else str(stack.window)
        figures = (stack.layers, stack.dim, stack.heads, stack.ffn_dim)
        add_row(table, name, *map(str, figures), window, f"{stack.rope_theta:g}")
    return table


def facts_table(config: BltConfig) -> Table:
    """Return a table of everything else that determines the model."""
    n = config.hash
    sizes = ", ".join(map(str, n.sizes))
    functions = f", {n.functions} hash functions" if n.functions > 1 else ""
    tables = f"{n.tables} of {n.rows} rows x {config.encoder.dim} (n-grams of {sizes} bytes{functions})"
    blocks = f", blocks of up to {config.block_size} bytes" if config.block_size else ", no block diffusion"
    masks = "self-attention stays inside them, EOS ends one" if config.document_masks else "not masked"
    table = make_table(left(""), words(""), header=False)
    add_row(table, "patches", patch_rule(config))
    add_row(table, "documents", masks)
    add_row(table, "hash tables", tables if n.tables else "none")
    add_row(table, "cross-attention", f"{config.cross_attn_k} queries per patch")
    add_row(table, "decoder input", config.decoder_input + blocks)
    if config.has_draft:
        rank = config.draft_rank
        own = "matrices of its own" if rank is None else f"the decoder's matrices and products of rank {rank}"
        add_row(table, "draft decoder", own)
    return table


def patch_rule(config: BltConfig) -> str:
    """Return what ends a patch, in words."""
    rule, longest = config.patching, config.patching.max_patch_length
    limit = "of any length" if longest is None else f"of at most {longest} bytes"
    if rule.mode == "entropy":
        return f"close above {rule.threshold:g} nats, {limit}"
    if rule.mode == "space":
        return f"close at space-like bytes, {limit} (no entropy model)"
    return "every byte is one" if longest == 1 else f"of {longest} bytes (no entropy model)"


def parts_table(facts: ModelFacts) -> Table:
    """Return a table of each part's parameters, share of the non-embedding parameters, size on disk and type."""
    table = make_table(left("part"), *(right(heading) for heading in ("parameters", "share", "MB on disk", "type")))
    counts = facts.counts
    whole = counts.total - counts.byte_embeddings - counts.hash_embeddings
    for part, name in PARTS.items():
        count, stored = getattr(counts, name), facts.stored.get(part)
        if not count:
            continue
        share = "" if part in _EMBEDDINGS else f"{100 * count / whole:.1f} %"
        size, kind = (megabytes(stored.bytes), stored.dtype) if stored else ("", "")
        add_row(table, part, f"{count:,}", share, size, kind)
    disk = sum(stored.bytes for stored in facts.stored.values())
    add_row(table, "total", f"{counts.total:,}", "", megabytes(disk), "", bold=True)
    return table


def memory_table(facts: ModelFacts) -> Table:
    """Return a table of the megabytes on device and host, by part; for a checkpoint, of every type of bundle."""
    columns = [right(f"{m.dtype}\n{kind}") for m in facts.memory for kind in ("weights", "buffers")]
    table = make_table(left("memory, MB"), *columns)
    for part in facts.config.graph_stacks:
        # The draft decoder reads and writes the decoder's keys and values.
        sizes = (size for m in facts.memory for size in (m.weights[part], m.buffers.get(part, 0)))
        add_row(table, part, *map(megabytes, sizes))
    add_row(table, "device", *(megabytes(size) for m in facts.memory for size in _device(m)), bold=True)
    add_row(table, "host", *(text for m in facts.memory for text in (megabytes(m.tables), "")), bold=True)
    for device, name in (("cpu", "a sequence on a CPU"), ("cuda", "a sequence on a GPU")):
        add_row(table, name, *(text for m in facts.memory for text in ("", megabytes(m.sequence_bytes[device]))))
    return table


def engines_table(facts: ModelFacts) -> Table:
    """Return a table of the megabytes that engines need on the device, by folder and longest text."""
    headings = ("bytes of text\nup to", "weights", "engines", "activations", "buffers", "device")
    table = make_table(words("engines, MB"), *(right(heading) for heading in headings))
    for each in facts.engines:
        activations = "unknown" if each.activations is None else megabytes(each.activations)
        sizes = (megabytes(each.weights), megabytes(each.engines), activations, megabytes(each.buffers))
        add_row(table, each.folder, str(each.max_bytes), *sizes, megabytes(each.total))
    return table


def profiles_table(facts: ModelFacts) -> Table:
    """Return a table of what is the default on this machine, by backend."""
    headings = (right("threads"), right("bytes/s"), right("times default"), words("bundle"))
    table = make_table(left("tuned with"), left("method"), *headings)
    for each in facts.profiles:
        threads = "-" if each.threads is None else str(each.threads)
        runs = "this one" if each.runs is None else each.runs.path
        figures = (threads, f"{each.bytes_per_s:.1f}", f"{each.times_default:.2f}")
        add_row(table, f"{each.backend}, {each.provider}", each.method, *figures, runs)
    return table


def _device(memory: Memory) -> tuple[int, int]:
    return sum(memory.weights.values()), sum(memory.buffers.values())


def _memory_note(facts: ModelFacts) -> str:
    return (
        f"buffers: for {facts.max_bytes} bytes of prompt and text, every byte a patch of its own at worst; mostly keys "
        "and values. The patcher is fp32 in every bundle. host: embedding tables, mapped from their file; each byte "
        "reads a few rows."
    )


def traffic_table(facts: ModelFacts) -> Table:
    """Return a table of the weight traffic that methods are estimated to cause."""
    title = f"estimated weight traffic for {POINT_BYTES} bytes of text"
    table = make_table(left("method"), right("GB"), right("saved"), words("assumed"), title=title)
    found = estimates(facts.config)
    for each in found:
        saved = "" if each is found[0] else f"{100 * (1 - each.gb / found[0].gb):.0f} %"
        add_row(table, each.point.method, f"{each.gb:.4g}", saved, _assumption(each))
    return table


def _traffic_note(facts: ModelFacts) -> str:
    return (
        f"16-bit weights, {bytes_per_patch(facts.config):g} bytes per patch, one encoder and one global call per "
        "round; patcher and caches left out; rates of the 1B models in arXiv 2605.08044"
    )


def _assumption(estimate: Estimate) -> str:
    """Return the rates that an estimate takes from the paper, in words; empty for ``ar``."""
    point = estimate.point
    kept = "" if point.acceptance is None else f"{100 * point.acceptance:.0f} % of drafts kept"
    steps = "" if point.steps in (None, 1.0) else f"{point.steps:.3g} steps per block"
    return ", ".join(filter(None, (kept, steps)))
