"""Every exported graph against the eager module it came from, on the same inputs.

Each graph is fed what the *eager* model hands over (teacher forcing), so that an error shows in the graph that makes
it. Calls of several lengths follow one another, past the window, with their caches; one call is a block whose rows
see each other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastblt.export.emulation import wide_spec
from fastblt.export.weights import TORCH_DTYPES, CheckpointWeights
from fastblt.export.widening import widen
from fastblt.models.blt import Blt
from fastblt.models.cache import StackCache
from fastblt.models.config import BltConfig, StackConfig
from fastblt.models.formats.checkpoint import HASH_TABLE
from fastblt.models.hashing import hash_rows
from fastblt.models.tokens import BOS_ID
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES, numpy_dtype
from fastblt.runtime.bundle.manifest import EMBEDDINGS_FILE, GraphSpec, load_manifest
from fastblt.runtime.machine import default_threads

#: Largest accepted difference, relative to the largest magnitude of the reference (at least 1). bf16 graphs are
#: checked with their rounded weights but in fp32 arithmetic, see `fastblt.export.widening`.
TOLERANCE = {"fp32": 2e-4, "fp16": 3e-2, "bf16": 2e-4}
_SEED = 0
_PATCH = 4
#: Rows of the longest call.
_LONGEST = 256
#: Caches are bound from a multiple of this on, as a runtime does, so that a slot is not its position.
_VIEW = 8


class VerificationError(ValueError):
    """A graph does not compute what the eager model computes."""


@dataclass(frozen=True)
class Call:
    """Rows of one call."""

    position: int
    rows: int
    block: bool = False
    """Every row sees all of the call's rows."""


def plan_calls(window: int | None) -> list[Call]:
    """Calls of several lengths that pass the end of the window."""
    window = window or _LONGEST
    lengths = [1, 7, 1, 24, 2, *[min(window, _LONGEST)] * -(-window // _LONGEST), 1, 9, 3]
    calls, position = [], 0
    for rows in lengths:
        calls.append(Call(position, rows))
        position += rows
    return [*calls, Call(position, 8, block=True)]


def verify_bundle(bundle: Path, weights: CheckpointWeights, dtype: str) -> list[dict[str, Any]]:
    """Compare the graphs of a bundle with the checkpoint's eager model.

    Args:
        bundle: folder with the graphs and a manifest.
        weights: of the checkpoint that they came from.
        dtype: of the bundle; the eager model computes in fp32 with weights rounded to it.

    Returns:
        One entry per graph, call and output: ``graph``, ``output``, ``rows``, ``position``, ``max_error``.

    Raises:
        VerificationError: a difference is beyond `TOLERANCE`; the message names graph, output and call.
    """
    manifest = load_manifest(bundle)
    results: list[dict[str, Any]] = []
    tables = bundle / EMBEDDINGS_FILE if manifest.hash_tables == "host" else None
    for part, spec in manifest.graphs.items():
        check = _CHECKS[part]
        runner = _runner(bundle / spec.file, spec)
        limit = TOLERANCE["fp32" if part == "patcher" else dtype]
        for call, outputs in check(_EagerPart(weights, dtype, tables), runner):
            for name, (found, expected) in outputs.items():
                file = EMBEDDINGS_FILE if name == "embedded" else spec.file
                error = max_error(found, expected)
                results.append(
                    {
                        "graph": file,
                        "output": name,
                        "rows": call.rows,
                        "position": call.position,
                        "max_error": error,
                    }
                )
                if not error <= limit:
                    raise VerificationError(
                        f"{file}: output {name}, {call.rows} rows at position {call.position}: "
                        f"found a relative error of {error:.3g}, expected at most {limit:g}"
                    )
    return results


def max_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference, divided by the largest magnitude expected where that exceeds 1."""
    wide, reference = found.astype(np.float64), expected.astype(np.float64)
    if wide.shape != reference.shape:
        return float("inf")
    return float(np.abs(wide - reference).max() / max(1.0, np.abs(reference).max()))


def _runner(path: Path, spec: GraphSpec) -> GraphRunner:
    tensors = (*spec.inputs, *spec.outputs)
    if all(t.dtype != "bfloat16" for t in tensors):
        return GraphRunner(path, spec)

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        twin = Path(folder) / path.name
        widen(path, twin)
        return GraphRunner(twin, wide_spec(spec))


class GraphRunner:
    """Runs a graph with plain arrays; caches are carried from call to call."""

    def __init__(self, path: Path, spec: GraphSpec) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = default_threads(spec.weight_bytes)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Packed weights would be a second copy of the model.
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.spec = spec
        self.caches: dict[str, NDArray[Any]] = {}

    def run(self, call: Call, window: int | None, slots: int, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Outputs of a call; ``slots`` is the capacity of the caches."""
        at = np.arange(call.position, call.position + call.rows, dtype=np.int64)[None]
        end = np.full_like(at, call.position + call.rows) if call.block else at + 1
        start = np.zeros_like(at) if window is None else np.maximum(at - window + 1, 0)
        first = int(start.min()) // _VIEW * _VIEW
        feed: dict[str, NDArray[Any]] = {
            "positions": at,
            "write_index": at[0, :1] - first,
            "visible_start": start - first,
            "visible_end": end - first,
        }
        pool_first = int(inputs["patch_start"].min()) if "patch_start" in inputs else 0
        for name in ("patch_start", "patch_end", "pool_index"):
            if name in inputs:
                inputs[name] = inputs[name] - pool_first
        views = {"cache": first, "pool": pool_first}
        for spec in self.spec.inputs:
            if spec.role in views:
                shape = [size if isinstance(size, int) else slots for size in spec.shape]
                cache = self.caches.setdefault(spec.name, np.zeros(shape, numpy_dtype(spec.dtype)))
                feed[spec.name] = cache[:, :, views[spec.role] :]
            elif spec.name in inputs:
                feed[spec.name] = inputs[spec.name].astype(numpy_dtype(spec.dtype))
        names = [t.name for t in self.spec.outputs]
        values = dict(zip(names, self.session.run(names, feed), strict=True))
        written = slice(call.position, call.position + call.rows)
        for spec in self.spec.inputs:
            if spec.role not in views:
                continue
            if f"{spec.name}_rows" in values:
                self.caches[spec.name][:, :, written] = values.pop(f"{spec.name}_rows")
            else:
                self.caches[spec.name][:, :, views[spec.role] :] = values.pop(f"{spec.name}_out")
        return values


class _EagerPart:
    """Loads modules of the eager model one at a time, weights rounded to a dtype, arithmetic in fp32."""

    def __init__(self, weights: CheckpointWeights, dtype: str, tables: Path | None) -> None:
        self.tables = tables
        self.config: BltConfig = weights.config
        self._weights = weights
        self._kind = ir.DataType(BUNDLE_TYPES[dtype].onnx)
        with torch.device("meta"):
            self._model = Blt(self.config)

    def load(self, name: str) -> Any:
        """The submodule ``name`` with its weights, all but the hash tables (see `embed`)."""
        module: nn.Module = self._model.get_submodule(name)
        rounded = torch.float32 if name == "patcher" else TORCH_DTYPES[self._kind]
        tensors = {}
        for key, value in module.state_dict().items():
            full = f"{name}.{key}"
            if full != HASH_TABLE:
                kind = torch.float32 if value.ndim == 1 else rounded
                tensors[key] = self._weights.checkpoint.read(full, kind).float()
        module.load_state_dict(tensors, strict=False, assign=True)
        return module.eval().requires_grad_(False)

    def embed(self, encoder: Any, ids: Tensor, history: Tensor) -> Tensor:
        """What `Encoder.embed` computes, without a hash table in memory: only the rows that are needed are read."""
        x: Tensor = encoder.tok_embeddings(ids)
        if self.config.hash.tables == 0:
            return x
        on_host = self.tables is not None
        kind = self._weights.table_dtype(HASH_TABLE, self._kind) if on_host else TORCH_DTYPES[self._kind]
        rows = torch.stack(hash_rows(torch.cat([history, ids], dim=1), self.config.hash), dim=-1)
        return x + self._weights.checkpoint.gather(HASH_TABLE, rows, kind).float().sum(-2)

    def cache(self, stack: StackConfig, slots: int) -> StackCache:
        """A cache of ``slots``."""
        return StackCache(stack, slots, torch.float32, torch.device("cpu"))


_Outputs = dict[str, tuple[NDArray[Any], NDArray[Any]]]
_Check = Callable[[_EagerPart, GraphRunner], Iterator[tuple[Call, _Outputs]]]


def _ids(rng: np.random.Generator, call: Call) -> NDArray[np.int64]:
    ids = rng.integers(4, 260, size=(1, call.rows))
    if call.position == 0:
        ids[0, 0] = BOS_ID
    return ids


def _slots(calls: list[Call]) -> int:
    return calls[-1].position + calls[-1].rows + 5


def _check_patcher(eager: _EagerPart, runner: GraphRunner) -> Iterator[tuple[Call, _Outputs]]:
    stack = eager.config.patcher
    assert stack is not None
    patcher, rng = eager.load("patcher"), np.random.default_rng(_SEED)
    calls = [call for call in plan_calls(stack.window) if not call.block]
    cache, slots = eager.cache(stack, _slots(calls)), _slots(calls)
    for call in calls:
        ids = _ids(rng, call)
        found = runner.run(call, stack.window, slots, ids=ids)
        expected = patcher.step(torch.from_numpy(ids), cache, call.position).numpy()
        yield call, {"entropy": (found["entropy"], expected)}


def _check_encoder(eager: _EagerPart, runner: GraphRunner) -> Iterator[tuple[Call, _Outputs]]:
    config, stack = eager.config, eager.config.encoder
    encoder, rng = eager.load("encoder"), np.random.default_rng(_SEED)
    calls = [call for call in plan_calls(stack.window) if not call.block]
    cache, slots = eager.cache(stack, _slots(calls)), _slots(calls)
    states = torch.zeros(1, slots, stack.dim)
    history = np.zeros((1, config.hash.context - 1), dtype=np.int64)
    host = HostEmbeddings(eager.tables, config.hash) if eager.tables else None
    for call in calls:
        with_history = np.concatenate([history, _ids(rng, call)], axis=1)
        history = with_history[:, with_history.shape[1] - history.shape[1] :]
        tokens = torch.from_numpy(with_history)
        before = config.hash.context - 1
        embedded = eager.embed(encoder, tokens[:, before:], tokens[:, :before])
        end = call.position + call.rows
        states[:, call.position : end] = encoder.step(embedded, cache, call.position)
        # Patches of a few bytes, the first of which may have begun in the call before.
        starts = np.arange(max(0, call.position - 2), end, _PATCH, dtype=np.int64)[None]
        ends = np.minimum(starts + _PATCH, end)
        found = runner.run(
            call, stack.window, slots, embedded=embedded.numpy(), ids=with_history,
            patch_start=starts, patch_end=ends, pool_index=np.array([call.position]),
        )  # fmt: skip
        members = torch.from_numpy(starts).unsqueeze(-1) + torch.arange(_PATCH)
        valid = members < torch.from_numpy(ends).unsqueeze(-1)
        expected = encoder.pool(states, members.clamp(max=slots - 1), valid)
        outputs = {"patch_embeddings": (found["patch_embeddings"], expected.numpy())}
        if host is not None:
            sums = np.zeros((call.rows, stack.dim), dtype=np.float32)
            host.sum_rows(with_history[0], sums)
            outputs["embedded"] = (sums, embedded[0].numpy())
        if "states" in found:
            outputs["states"] = (found["states"], states[:, call.position : end].numpy())
        yield call, outputs


def _check_global(eager: _EagerPart, runner: GraphRunner) -> Iterator[tuple[Call, _Outputs]]:
    config, stack = eager.config, eager.config.global_transformer
    module, rng = eager.load("global_transformer"), np.random.default_rng(_SEED)
    decoder = eager.load("decoder")
    calls = [call for call in plan_calls(stack.window) if not call.block]
    cache, slots = eager.cache(stack, _slots(calls)), _slots(calls)
    for call in calls:
        x = rng.standard_normal((1, call.rows, config.patch_dim)).astype(np.float32)
        found = runner.run(call, stack.window, slots, patch_embeddings=x)
        latents = module.step(torch.from_numpy(x), cache, call.position)
        kv = decoder.latent_kv(latents)[0].flatten(3)
        yield (
            call,
            {
                "latents": (found["latents"], latents.numpy()),
                "latent_kv": (found["latent_kv"], kv.numpy()),
            },
        )


def _check_decoder(eager: _EagerPart, runner: GraphRunner) -> Iterator[tuple[Call, _Outputs]]:
    config, stack = eager.config, eager.config.decoder
    decoder, rng = eager.load("decoder"), np.random.default_rng(_SEED)
    calls = plan_calls(stack.window)
    cache, slots = eager.cache(stack, _slots(calls)), _slots(calls)
    for call in calls:
        ids = _ids(rng, call)
        states = rng.standard_normal((1, call.rows, stack.dim)).astype(np.float32)
        latents = torch.from_numpy(
            rng.standard_normal((1, 1 + call.rows // _PATCH, config.global_transformer.dim)).astype(np.float32)
        )
        kv = decoder.latent_kv(latents)
        index = np.arange(call.rows, dtype=np.int64)[None] // _PATCH
        found = runner.run(
            call, stack.window, slots,
            ids=ids, states=states, latent_kv=kv[0].flatten(3).numpy(), latent_index=index,
        )  # fmt: skip
        rows: Tensor = decoder.rows(torch.from_numpy(ids), torch.from_numpy(states))
        block = call.rows if call.block else 0
        expected = decoder.step(rows, kv, torch.from_numpy(index), cache, call.position, block=block)
        logp = expected.log_softmax(-1)
        yield (
            call,
            {
                "logits": (found["logits"], expected.numpy()),
                "probability": (found["probability"], logp.exp().amax(-1).numpy()),
                "entropy": (found["entropy"], -(logp.exp() * logp).sum(-1).numpy()),
                # The token itself may differ at a tie: compare the logit of the graph's choice with the highest one.
                "best": (
                    np.take_along_axis(expected.numpy(), found["best"][..., None], -1)[..., 0],
                    expected.amax(-1).numpy(),
                ),
            },
        )


_CHECKS: dict[str, _Check] = {
    "patcher": _check_patcher,
    "encoder": _check_encoder,
    "global": _check_global,
    "decoder": _check_decoder,
}
