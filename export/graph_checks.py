"""Computes what each graph of a bundle returns, and what it should return according to the eager model.

Each graph is fed what the *eager* model passes on (teacher forcing), so that an error shows in the graph that causes
it. Calls of several lengths follow one another, past the window, with their caches; one call is a block whose rows
see each other. Then other sequences share the calls, each with its own length, place and window; the eager model
computes them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastblt.export.graph_runner import SEQUENCES, Call, Calls, GraphRunner, most_rows, plan_calls, slots_for
from fastblt.export.weights import TORCH_DTYPES, CheckpointWeights
from fastblt.models.blt import Blt
from fastblt.models.cache import StackCache
from fastblt.models.config import BltConfig, StackConfig
from fastblt.models.formats.checkpoint import HASH_TABLE
from fastblt.models.hashing import hash_rows
from fastblt.models.tokens import BOS_ID, MASK_ID
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES

_SEED = 0
_PATCH = 4


class EagerParts:
    """Loads modules of the eager model one at a time, weights rounded to a dtype, arithmetic in fp32.

    Args:
        weights: of the checkpoint.
        dtype: of the bundle.
        tables: file of the tables on the host; None: they are in the graph.
        lowered: whether the graphs are lowered; their norms keep fp32 weights.
    """

    def __init__(self, weights: CheckpointWeights, dtype: str, tables: Path | None, *, lowered: bool) -> None:
        self.tables = tables
        self.config: BltConfig = weights.config
        self._weights = weights
        self._lowered = lowered
        self._kind = ir.DataType(BUNDLE_TYPES[dtype].onnx)
        with torch.device("meta"):
            self._model = Blt(self.config)

    def load(self, name: str) -> Any:
        """Return the submodule ``name`` with its weights, all but the hash tables (see `embed`)."""
        module: nn.Module = self._model.get_submodule(name)
        rounded = torch.float32 if name == "patcher" else TORCH_DTYPES[self._kind]
        tensors = {}
        for key, value in module.state_dict().items():
            full = f"{name}.{key}"
            if full != HASH_TABLE:
                kind = torch.float32 if self._lowered and value.ndim == 1 else rounded
                tensors[key] = self._weights.checkpoint.read(full, kind).float()
        module.load_state_dict(tensors, strict=False, assign=True)
        return module.eval().requires_grad_(False)

    def embed(self, encoder: Any, ids: Tensor, history: Tensor) -> Tensor:
        """Compute `Encoder.embed` without a hash table in memory: read only the rows that are needed.

        Args:
            encoder: the eager module.
            ids: int64 [b, rows].
            history: int64 [b, context - 1], the tokens before them.

        Returns:
            fp32 [b, rows, dim].
        """
        x: Tensor = encoder.tok_embeddings(ids)
        if self.config.hash.tables == 0:
            return x
        on_host = self.tables is not None
        kind = self._weights.table_dtype(HASH_TABLE, self._kind) if on_host else TORCH_DTYPES[self._kind]
        rows = torch.stack(hash_rows(torch.cat([history, ids], dim=1), self.config.hash), dim=-1)
        return x + self._weights.checkpoint.gather(HASH_TABLE, rows, kind).float().sum(-2)

    def caches(self, stack: StackConfig, slots: int) -> list[StackCache]:
        """Return an empty fp32 cache of a stack for each sequence."""
        return [StackCache(stack, slots, torch.float32, torch.device("cpu")) for _ in range(SEQUENCES)]


#: Found and expected values by name of the output.
Outputs = dict[str, tuple[NDArray[Any], NDArray[Any]]]
Check = Callable[[EagerParts, GraphRunner], Iterator[tuple[Call, Outputs]]]


def calls_of(part: str, stack: StackConfig) -> list[Calls]:
    """Return the calls that a part's graph is compared in; only the decoders have blocks."""
    plan = plan_calls(stack.window)
    if part in ("decoder", "draft"):
        return plan
    return [[replace(call, block=False) for call in calls] for calls in plan if len(calls) > 1 or not calls[0].block]


def _ids(rng: np.random.Generator, calls: Calls) -> NDArray[np.int64]:
    """Return tokens [b, n], those of padding included."""
    ids = rng.integers(4, 260, size=(len(calls), most_rows(calls)))
    ids[[call.position == 0 for call in calls], 0] = BOS_ID
    return ids


def _own(found: NDArray[Any], call: Call) -> NDArray[Any]:
    """Return the rows [1, rows, ...] of a sequence, without padding."""
    return found[call.sequence : call.sequence + 1, : call.rows]


def _check_patcher(eager: EagerParts, runner: GraphRunner) -> Iterator[tuple[Call, Outputs]]:
    stack = eager.config.patcher
    assert stack is not None
    patcher, rng = eager.load("patcher"), np.random.default_rng(_SEED)
    plan = calls_of("patcher", stack)
    slots = slots_for(plan)
    caches = eager.caches(stack, slots)
    for calls in plan:
        ids = _ids(rng, calls)
        found = runner.run(calls, stack.window, slots, ids=ids)
        for call in calls:
            expected = patcher.step(torch.from_numpy(_own(ids, call)), caches[call.sequence], call.position)
            yield call, {"entropy": (_own(found["entropy"], call), expected.numpy())}


def _check_encoder(eager: EagerParts, runner: GraphRunner) -> Iterator[tuple[Call, Outputs]]:
    config, stack = eager.config, eager.config.encoder
    encoder, rng = eager.load("encoder"), np.random.default_rng(_SEED)
    plan = calls_of("encoder", stack)
    slots = slots_for(plan)
    caches, states = eager.caches(stack, slots), torch.zeros(SEQUENCES, slots, stack.dim)
    before = config.hash.context - 1
    history = np.zeros((SEQUENCES, before), dtype=np.int64)
    host = HostEmbeddings(eager.tables, config.hash, stack.dim) if eager.tables else None
    for calls in plan:
        ids = np.concatenate([history[: len(calls)], _ids(rng, calls)], axis=1)
        tokens = torch.from_numpy(ids)
        embedded = eager.embed(encoder, tokens[:, before:], tokens[:, :before])
        starts, ends = _patches(calls)
        found = runner.run(
            calls, stack.window, slots, embedded=embedded.numpy(), ids=ids,
            patch_start=starts, patch_end=ends, pool_index=np.array([call.position for call in calls]),
        )  # fmt: skip
        for call in calls:
            one = slice(call.sequence, call.sequence + 1)
            rows, own = slice(call.position, call.position + call.rows), embedded[one, : call.rows]
            states[one, rows] = encoder.step(own, caches[call.sequence], call.position)
            history[call.sequence] = ids[call.sequence, call.rows : call.rows + before]
            patches = -(-(rows.stop - int(starts[call.sequence, 0])) // _PATCH)
            members = torch.from_numpy(starts[one, :patches]).unsqueeze(-1) + torch.arange(_PATCH)
            valid = members < torch.from_numpy(ends[one, :patches]).unsqueeze(-1)
            expected = encoder.pool(states[one], members.clamp(max=slots - 1), valid)
            outputs = {"patch_embeddings": (found["patch_embeddings"][one, :patches], expected.numpy())}
            if host is not None:
                sums = np.zeros((call.rows, stack.dim), dtype=np.float32)
                host.sum_rows(ids[call.sequence, : before + call.rows], sums)
                outputs["embedded"] = (sums, own[0].numpy())
            if "states" in found:
                outputs["states"] = (_own(found["states"], call), states[one, rows].numpy())
            yield call, outputs


def _patches(calls: Calls) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where patches of a few bytes begin and end, [b, p]; the first may have begun in the previous call.

    Sequences with fewer patches are padded with their first byte.
    """
    firsts = np.array([[max(0, call.position - 2)] for call in calls], dtype=np.int64)
    lasts = np.array([[call.position + call.rows] for call in calls], dtype=np.int64)
    starts = firsts + np.arange(-(-int((lasts - firsts).max()) // _PATCH)) * _PATCH
    starts = np.where(starts < lasts, starts, firsts)
    ends = np.minimum(starts + _PATCH, lasts)
    ends[:, 1:] = np.where(starts[:, 1:] == firsts, firsts + 1, ends[:, 1:])
    return starts, ends


def _check_global(eager: EagerParts, runner: GraphRunner) -> Iterator[tuple[Call, Outputs]]:
    config, stack = eager.config, eager.config.global_transformer
    module, rng = eager.load("global_transformer"), np.random.default_rng(_SEED)
    decoder = eager.load("decoder")
    plan = calls_of("global", stack)
    slots = slots_for(plan)
    caches = eager.caches(stack, slots)
    for calls in plan:
        x = rng.standard_normal((len(calls), most_rows(calls), config.patch_dim)).astype(np.float32)
        found = runner.run(calls, stack.window, slots, patch_embeddings=x)
        by_sequence = found["latent_kv"].reshape(*x.shape[:2], *found["latent_kv"].shape[1:])
        for call in calls:
            latents = module.step(torch.from_numpy(_own(x, call)), caches[call.sequence], call.position)
            kv = decoder.latent_kv(latents).flatten(4)
            yield (
                call,
                {
                    "latents": (_own(found["latents"], call), latents.numpy()),
                    "latent_kv": (_own(by_sequence, call), kv.numpy()),
                },
            )


def _check_decoder(eager: EagerParts, runner: GraphRunner) -> Iterator[tuple[Call, Outputs]]:
    decoder = eager.load("decoder")
    return _check_rows(eager, runner, decoder, decoder, decoder.rows)


def _check_draft(eager: EagerParts, runner: GraphRunner) -> Iterator[tuple[Call, Outputs]]:
    draft = eager.load("draft")
    return _check_rows(eager, runner, draft, eager.load("decoder"), lambda ids, states: draft.tok_embeddings(ids))


def _check_rows(
    eager: EagerParts, runner: GraphRunner, module: Any, decoder: Any, rows_of: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[tuple[Call, Outputs]]:
    """Compare a decoder's graph, either one's.

    Args:
        eager: for the caches.
        runner: of the graph.
        module: what it should compute.
        decoder: makes the keys and values of latents.
        rows_of: returns input rows, of tokens and byte states.
    """
    config, stack, rng = eager.config, eager.config.decoder, np.random.default_rng(_SEED)
    plan = calls_of("decoder", stack)
    slots = slots_for(plan)
    caches = eager.caches(stack, slots)
    for calls in plan:
        ids, rows = _ids(rng, calls), most_rows(calls)
        if module is not decoder:
            ids[[call.block for call in calls], ::2] = MASK_ID
        states = rng.standard_normal((*ids.shape, stack.dim)).astype(np.float32)
        count = 1 + rows // _PATCH
        shape = (len(calls), count, config.global_transformer.dim)
        kv = decoder.latent_kv(torch.from_numpy(rng.standard_normal(shape).astype(np.float32)))
        # One store holds the latents of all sequences.
        index = np.arange(len(calls))[:, None] * count + np.arange(rows) // _PATCH
        found = runner.run(
            calls, stack.window, slots,
            ids=ids, states=states, latent_kv=kv.flatten(4).flatten(0, 1).numpy(), latent_index=index,
        )  # fmt: skip
        for call in calls:
            own, block = torch.from_numpy(_own(ids, call)), call.rows if call.block else 0
            known, at = kv[call.sequence : call.sequence + 1], torch.arange(call.rows)[None] // _PATCH
            inputs = rows_of(own, torch.from_numpy(_own(states, call)))
            expected = module.step(inputs, known, at, caches[call.sequence], call.position, block=block)
            yield call, _choices({name: _own(value, call) for name, value in found.items()}, expected)


def _choices(found: dict[str, NDArray[Any]], expected: Tensor) -> Outputs:
    """Return what rows of logits [1, n, vocab] become, found and expected."""
    logp = expected.log_softmax(-1)
    return {
        "logits": (found["logits"], expected.numpy()),
        "probability": (found["probability"], logp.exp().amax(-1).numpy()),
        "entropy": (found["entropy"], -(logp.exp() * logp).sum(-1).numpy()),
        # The token itself may differ at a tie: compare the logit of the graph's choice with the highest one.
        "best": (
            np.take_along_axis(expected.numpy(), found["best"][..., None], -1)[..., 0],
            expected.amax(-1).numpy(),
        ),
    }


#: Each part's comparison: yields every call with its outputs.
CHECKS: dict[str, Check] = {
    "patcher": _check_patcher,
    "encoder": _check_encoder,
    "global": _check_global,
    "decoder": _check_decoder,
    "draft": _check_draft,
}
