"""Writes what a campaign found as Markdown: a report, and the rows of a table in docs/deploy.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastblt.runtime.measure.gpu_campaign.plan import DTYPES, Step
from fastblt.runtime.measure.gpu_campaign.record import DONE, PENDING, Found, Record

REPORT_FILE, ROWS_FILE = "gpu-report.md", "deploy-rows.md"
STUB_WARNING = "STUB OF CUDA: kernels did nothing. Nothing below is a figure of a GPU."
#: Rows of the profile that are shown.
_KERNELS = 15


def report(record: Record, steps: Sequence[Step]) -> str:
    """Return the report of a campaign.

    Args:
        record: what was found.
        steps: all of them, in order.
    """
    found = {name: entry for name, entry in record.steps.items() if entry.result is not None}
    sections = [_head(record), _steps(record, steps), _doctor(record)]
    sections += [_latency(record, entry.result) for name, entry in found.items() if name == "latency"]
    sections += [_verify(record, name, entry) for name, entry in found.items() if name.startswith("verify-")]
    sections += [_audit(record, name, entry) for name, entry in found.items() if name.startswith("audit-")]
    benched = [name for name in found if name.startswith("bench") or name in ("baselines", "replay")]
    sections += [_bench(record, name, found[name].result) for name in benched]
    sections += [_profile(record, entry.result) for name, entry in found.items() if name == "profile"]
    sections += [f"## Rows of docs/deploy.md\n\n{deploy_rows(record)}"]
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def deploy_rows(record: Record) -> str:
    """Return the rows of the table "What is proven where" of docs/deploy.md that the campaign can fill in."""
    versions = record.machine["versions"]
    provider = f"ONNX Runtime {versions.get('onnxruntime-gpu', '(not installed)')}, CUDA provider"
    rows = [(provider, "-", _verdict(record, [f"verify-{dtype}" for dtype in DTYPES]))]
    for target, name in (("tensorrt-rtx", "TensorRT-RTX"), ("tensorrt", "TensorRT")):
        if target in versions:
            compiled = "yes" if _state(record, f"compile-{target}") == DONE else "no"
            rows.append((f"{name} {versions[target]}, fp16", compiled, _verdict(record, [f"verify-{target}"])))
    return _table(("", "compiled", "run"), rows)


def _verdict(record: Record, names: Sequence[str]) -> str:
    """Return what verifications found, and where."""
    parts = []
    for name in names:
        state = _state(record, name)
        if state == DONE:
            parts.append(f"{name}: passed")
        elif record.steps.get(name) is not None and record.steps[name].result is not None:
            parts.append(f"{name}: differs")
        else:
            parts.append(f"{name}: {state}")
    where = f"{record.machine['gpu']}, driver {record.machine['driver']}"
    return f"{'no, a stub: ' if record.stub else ''}{'; '.join(parts)} ({where})"


def _state(record: Record, name: str) -> str:
    return record.steps[name].state if name in record.steps else PENDING


def _head(record: Record) -> str:
    machine, facts = record.machine, record.steps["doctor"].result["facts"]
    revision = f"commit {machine['revision']}" if machine["revision"] else "no clone"
    if machine["uncommitted_changes"]:
        revision += ", with uncommitted changes"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"# Campaign on {machine['gpu']}",
        *(["", f"**{STUB_WARNING}**"] if record.stub else []),
        "",
        f"* GPU: {machine['gpu']}, SM {machine['sm']}, {machine['memory_bytes'] / 2**30:.1f} GiB, "
        f"driver {machine['driver']}",
        f"* machine: {facts['cpu']}, {facts['cores']} cores, {facts['system']}",
        f"* versions: {versions}",
        f"* fastblt {machine['fastblt']}, {revision}",
        f"* checkpoint: {machine['checkpoint']}; replay: {machine['replay_checkpoint']}",
    ]
    return "\n".join(lines)


def _steps(record: Record, steps: Sequence[Step]) -> str:
    rows = []
    for step in steps:
        found = record.steps.get(step.name, Found(PENDING))
        rows.append((step.name, step.shows, found.state, f"{found.seconds:.0f}" if found.seconds else "-", found.error))
    return "## Steps\n\n" + _table(("step", "what", "state", "s", "why"), rows)


def _doctor(record: Record) -> str:
    verdicts = record.steps["doctor"].result["verdicts"]
    rows = [(verdict["way"], "yes" if verdict["works"] else "no", verdict["reason"]) for verdict in verdicts]
    return "## What works here\n\n" + _table(("to run or compile a bundle", "works", "why"), rows)


def _heading(record: Record, title: str) -> str:
    return f"## {title}{' (stub: no figures of a GPU)' if record.stub else ''}\n\n"


def _latency(record: Record, result: Mapping[str, Any]) -> str:
    rows = [(name, f"{times['median']:.2f}", f"{times['p95']:.2f}") for name, times in result["microseconds"].items()]
    rows += [(name, "-", reason) for name, reason in result["left_out"].items()]
    return _heading(record, "Launches and waits, microseconds") + _table(("what", "median", "95th percentile"), rows)


def _verify(record: Record, name: str, found: Found) -> str:
    tensors, texts = found.result["tensors"], found.result["audit"]
    rows = []
    for graph in dict.fromkeys(tensor["graph"] for tensor in tensors):
        own = [tensor for tensor in tensors if tensor["graph"] == graph]
        worst = max(own, key=lambda tensor: tensor["max_error"] / (tensor["limit"] or 1))
        failed = [tensor["output"] for tensor in own if not tensor["passed"]]
        error = f"{worst['max_error']:.2g}"
        rows.append((graph, worst["output"], error, f"{worst['limit']:g}", ", ".join(failed) or "-"))
    faults = sum(len(row["faults"]) for row in texts)
    counts = f"\n\nTexts: {sum(row['prompts'] for row in texts)} compared, {faults} differ by more than rounding."
    title = f"{name}: {'passed' if found.result['passed'] else 'FAILED'}"
    table = _table(("graph", "worst output", "largest error", "allowed", "outputs that failed"), rows)
    return _heading(record, title) + table + counts


def _audit(record: Record, name: str, found: Found) -> str:
    rows = []
    for row in found.result["rows"]:
        counts = (row["prompts"], row["bytes"], row["identical"], len(row["ties"]), len(row["faults"]))
        rows.append((row["method"], *map(str, counts)))
    return _heading(record, name) + _table(("method", "texts", "bytes", "right", "ties", "faults"), rows)


def _bench(record: Record, name: str, result: Mapping[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        accepted = "-" if row["acceptance"] is None else f"{100 * row['acceptance']:.1f} %"
        ratios = (_ratio(row["ratio_to_ar"]), _ratio(row["ratio_to_pytorch_ar"]))
        speed, latency = f"{row['bytes_per_s']:.1f}", f"{row['ms_per_byte_p50']:.3f}"
        rows.append((row["backend"], row["method"], row["device"], speed, latency, *ratios, accepted))
    baselines = {row["pytorch_baseline"] for row in result["rows"]} - {None}
    headings = ("backend", "method", "device", "bytes/s", "ms/byte, median", "x ar", "x PyTorch ar", "drafts kept")
    note = f"\n\nx PyTorch ar: against {', '.join(sorted(baselines))}, the faster baseline." if baselines else ""
    return _heading(record, name) + _table(headings, rows) + note


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _profile(record: Record, result: Mapping[str, Any]) -> str:
    rows = [
        (kernel["name"].replace("|", "\\|")[:100], str(kernel["count"]), f"{kernel['microseconds']:.1f}")
        for kernel in result["kernels"][:_KERNELS]
    ]
    note = f"\n\n{len(result['kernels'])} kinds of work in {result['bytes']} bytes of {result['method']}."
    return _heading(record, "Profile") + _table(("kernel", "launches", "us in all"), rows) + note


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines(headings, rows))


def _lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{' --- |' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()) for cell in row)} |"
