"""Computes what each graph of a bundle returns, and what it should return according to the eager model.

Each graph is fed what the *eager* model passes on (teacher forcing), so that an error shows in the graph that causes
it. Calls of several lengths follow one another, past the window, with their caches; one call is a block whose rows
see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastblt.export.graph_runner import Call, GraphRunner, plan_calls
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
            ids: int64 [1, rows].
            history: int64 [1, context - 1], the tokens before them.

        Returns:
            fp32 [1, rows, dim].
        """
        x: Tensor = encoder.tok_embeddings(ids)
        if self.config.hash.tables == 0:
            return x
        on_host = self.tables is not None
        kind = self._weights.table_dtype(HASH_TABLE, self._kind) if on_host else TORCH_DTYPES[self._kind]
        rows = torch.stack(hash_rows(torch.cat([history, ids], dim=1), self.config.hash), dim=-1)
        return x + self._weights.checkpoint.gather(HASH_TABLE, rows, kind).float().sum(-2)

    def cache(self, stack: StackConfig, slots: int) -> StackCache:
        """Return an empty fp32 cache of a stack."""
        return StackCache(stack, slots, torch.float32, torch.device("cpu"))


#: Found and expected values by name of the output.
Outputs = dict[str, tuple[NDArray[Any], NDArray[Any]]]
Check = Callable[[EagerParts, GraphRunner], Iterator[tuple[Call, Outputs]]]


def calls_of(part: str, stack: StackConfig) -> list[Call]:
    """Return the calls that a part's graph is compared in; only the decoders have blocks."""
    return [call for call in plan_calls(stack.window) if part in ("decoder", "draft") or not call.block]


def _ids(rng: np.random.Generator, call: Call) -> NDArray[np.int64]:
    ids = rng.integers(4, 260, size=(1, call.rows))
    if call.position == 0:
        ids[0, 0] = BOS_ID
    return ids


def _slots(calls: list[Call]) -> int:
    return calls[-1].position + calls[-1].rows + 5


def _check_patcher(eager: EagerParts, runner: GraphRunner) -> Iterator[tuple[Call, Outputs]]:
    stack = eager.config.patcher
    assert stack is not None
    patcher, rng = eager.load("patcher"), np.random.default_rng(_SEED)
    calls = calls_of("patcher", stack)
    cache, slots = eager.cache(stack, _slots(calls)), _slots(calls)
    for call in calls:
        ids = _ids(rng, call)
        found = runner.run(call, stack.window, slots, ids=ids)
        expected = patcher.step(torch.from_numpy(ids), cache, call.position).numpy()
        yield call, {"entropy": (found["entropy"], expected)}


def _check_encoder(eager: EagerParts, runner: GraphRunner) -> Iterator[tuple[Call, Outputs]]:
    config, stack = eager.config, eager.config.encoder
    encoder, rng = eager.load("encoder"), np.random.default_rng(_SEED)
    calls = calls_of("encoder", stack)
    cache, slots = eager.cache(stack, _slots(calls)), _slots(calls)
    states = torch.zeros(1, slots, stack.dim)
    history = np.zeros((1, config.hash.context - 1), dtype=np.int64)
    host = HostEmbeddings(eager.tables, config.hash, stack.dim) if eager.tables else None
    for call in calls:
        with_history = np.concatenate([history, _ids(rng, call)], axis=1)
        history = with_history[:, with_history.shape[1] - history.shape[1] :]
        tokens = torch.from_numpy(with_history)
        before = config.hash.context - 1
        embedded = eager.embed(encoder, tokens[:, before:], tokens[:, :before])
        end = call.position + call.rows
        states[:, call.position : end] = encoder.step(embedded, cache, call.position)
        # Patches of a few bytes; the first may have begun in the previous call.
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


def _check_global(eager: EagerParts, runner: GraphRunner) -> Iterator[tuple[Call, Outputs]]:
    config, stack = eager.config, eager.config.global_transformer
    module, rng = eager.load("global_transformer"), np.random.default_rng(_SEED)
    decoder = eager.load("decoder")
    calls = calls_of("global", stack)
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
    calls = calls_of("decoder", stack)
    cache, slots = eager.cache(stack, _slots(calls)), _slots(calls)
    for call in calls:
        ids = _ids(rng, call)
        if call.block and module is not decoder:
            ids[:, ::2] = MASK_ID
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
        rows = rows_of(torch.from_numpy(ids), torch.from_numpy(states))
        block = call.rows if call.block else 0
        expected = module.step(rows, kv, torch.from_numpy(index), cache, call.position, block=block)
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


#: Each part's comparison: yields every call with its outputs.
CHECKS: dict[str, Check] = {
    "patcher": _check_patcher,
    "encoder": _check_encoder,
    "global": _check_global,
    "decoder": _check_decoder,
    "draft": _check_draft,
}
