"""Runs a text through ``torch.compile``, over caches that the compiled programs hold.

Calls of few rows are padded to one of a few numbers of rows, each of which is compiled once, when the backend is
loaded: no text waits for a compiler. Longer calls (prompts) and calls that close several patches run the same modules
as they are, in pieces. On a GPU the compiled programs are CUDA graphs.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastblt.runtime.backends.controls import Controls, write_controls
from fastblt.runtime.backends.eager.compilation import Compiler, Program
from fastblt.runtime.backends.eager.readback import from_numpy, read_rows, to_numpy
from fastblt.runtime.backends.eager.static_cache import SPARE, StaticCache
from fastblt.runtime.backends.eager.static_parts import (
    Links,
    StaticDecoder,
    StaticDraft,
    StaticEncoder,
    StaticGlobal,
    StaticPatcher,
)
from fastblt.runtime.backends.graph_error import reporting
from fastblt.runtime.backends.live_rows import cache_ranges, check_state, latent_range, open_patch_range
from fastblt.runtime.backends.protocol import (
    DRAFT_SLACK,
    ROW_CAPACITY,
    DecoderRows,
    Drafted,
    Floats,
    Ids,
    Pick,
    Progress,
    State,
    decoder_of,
    encodes_whole_patches,
)

if TYPE_CHECKING:
    from fastblt.runtime.backends.eager.compiled_backend import CompiledBackend

#: Rows of the compiled programs: a byte, and the drafts that methods verify. Fewer rows are padded.
ROWS = (1, 16)
#: Bytes of the longest patch that a compiled program pools; where patches are shorter, those.
PATCH = 16


class CompiledSequence:
    """Implements `fastblt.runtime.backends.protocol.BackendSequence`.

    Args:
        backend: whose model it runs.
        compiler: compiles its parts.

    Raises:
        CompilerError: nothing can be compiled here.
    """

    def __init__(self, backend: CompiledBackend, compiler: Compiler) -> None:
        self.backend = backend
        self.config = backend.config
        self.failure = backend.failure
        self._device, self._part_dtype = backend.torch_device, backend.part_dtype
        self._compiler, model, max_bytes = compiler, backend.model, backend.max_bytes
        self._restored = Progress()
        """Of the text that was restored: what came before the rows that it can read is not here."""
        self._piece = max(SPARE, self.config.block_size + -self.config.block_size % SPARE)
        positions = max_bytes + 1 + DRAFT_SLACK + max(self._piece, ROWS[-1])
        positions += -positions % SPARE
        self.links = Links(model, positions, ROW_CAPACITY)
        self._whole = encodes_whole_patches(self.config)
        self._members = torch.arange(positions, device=self._device)
        self._caches = {
            part: StaticCache(
                stack, positions, self._piece, self._part_dtype(part), self._device, ring=part != "global"
            )
            for part, stack in self.config.stacks.items()
        }
        if model.draft is not None:
            self._caches["draft"] = self._caches["decoder"]
        self._views = {part: cache.views() for part, cache in self._caches.items()}
        parts: dict[str, nn.Module] = {
            "encoder": StaticEncoder(model, self._caches["encoder"], self.links),
            "global": StaticGlobal(model, self._caches["global"], self.links),
            "decoder": StaticDecoder(model, self._caches["decoder"], self.links),
        }
        if model.patcher is not None:
            parts["patcher"] = StaticPatcher(model.patcher, self._caches["patcher"])
        if model.draft is not None:
            parts["draft"] = StaticDraft(model.draft, self._caches["draft"], self.links)
        self._plain = parts
        longest = self.config.patching.max_patch_length or PATCH
        self._patch = min(PATCH, longest)
        # Numbers of rows that are compiled, by part.
        self._classes = dict.fromkeys(parts, ROWS) | {"global": ROWS[:1]}
        if model.draft is not None:
            self._classes["draft"] = ROWS[1:]
        if self._whole:
            self._classes["encoder"] = (self._patch,)
        self._programs: dict[tuple[str, int], Program] = {}
        self._compile()

    @torch.inference_mode()
    def _compile(self) -> None:
        """Compile every program, and run it for every view of its cache."""
        for part, classes in self._classes.items():
            views = self._views[part]
            dynamic = 1 if len(views) > 1 else None
            for rows in classes:
                calls = [self._first_arguments(part, rows, slots) for slots in views]
                name = f"{part} of {self.config.name}"
                self._programs[part, rows] = self._compiler.compile(name, self._plain[part], calls, dynamic)

    def _first_arguments(self, part: str, rows: int, slots: Tensor) -> list[Tensor]:
        """Return arguments of a program's first call; what it writes, the first text overwrites."""
        control = _control(0, rows, rows, None, 0, None)
        history = self.config.hash.context - 1
        rest: dict[str, list[NDArray[np.int64] | Tensor]] = {
            "patcher": [np.zeros(rows, np.int64)],
            "encoder": [np.zeros(history + rows, np.int64), np.array([[0], [1]]), self._members[: self._patch]],
            "global": [],
            "decoder": [np.zeros(rows, np.int64), np.zeros(rows, np.int64)],
            "draft": [np.zeros(rows, np.int64), np.zeros(rows, np.int64)],
        }
        return [self._on_device(control), slots, *map(self._on_device, rest[part])]

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Implement `BackendSequence.can_resume_from`: rings drop what is behind their windows."""
        if position < self._restored.tokens or open_patch < self._restored.open_patch:
            return False
        return all(
            cache.intact(open_patch if part == "encoder" and self._whole else position)
            for part, cache in self._caches.items()
            if part != "global"
        )

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `BackendSequence.moved_bytes`."""
        return self.backend.moved_bytes(part, position, rows)

    @torch.inference_mode()
    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Implement `BackendSequence.state`."""
        return {name: to_numpy(tensor[at]) for name, (tensor, at) in self._places(progress).items()}

    @torch.inference_mode()
    def restore(self, state: State, progress: Progress) -> None:
        """Implement `BackendSequence.restore`."""
        places = self._places(progress)
        check_state(state, {name: to_numpy(tensor[at]) for name, (tensor, at) in places.items()})
        self.reset()
        for name, (tensor, at) in places.items():
            tensor[at] = from_numpy(state[name]).to(self._device)
        for part, rows in cache_ranges(self.config, progress).items():
            self._caches[part].wrote(rows.stop - 1, 1)
        self._restored = progress

    def _places(self, progress: Progress) -> dict[str, tuple[Tensor, Tensor]]:
        """Return tensors whose first axis counts slots, and the slots that the rest of a text can read, by name."""
        places = {}
        for part, rows in cache_ranges(self.config, progress).items():
            cache, at = self._caches[part], self._slots_of(rows)
            at = at % len(cache.slots)
            for layer in range(self.config.stacks[part].layers):
                for kind in ("key", "value"):
                    places[f"{part}.{kind}_{layer}"] = (cache.get_buffer(f"{kind}s_{layer}")[0], at)
        places["states"] = (self.links.states[0], self._slots_of(open_patch_range(self.config, progress)))
        places["latent_kv"] = (self.links.latent_kv[0], self._slots_of(latent_range(progress)))
        return places

    def _slots_of(self, rows: slice) -> Tensor:
        return torch.arange(rows.start, rows.stop, device=self._device)

    def reset(self) -> None:
        """Implement `BackendSequence.reset`."""
        self._restored = Progress()
        for cache in self._caches.values():
            cache.forget()

    @torch.inference_mode()
    def close(self) -> None:
        """Implement `BackendSequence.close`: the next text gets the same caches, emptied."""
        self.reset()
        for cache in self._caches.values():
            cache.clear()
        self.links.clear()
        self.backend.give_back()

    def _call(
        self,
        part: str,
        position: int,
        rows: int,
        *arguments: NDArray[np.int64] | Tensor,
        block: int = 0,
        visible_from: Ids | None = None,
        compiled: bool = True,
    ) -> Any:
        """Run a part on rows, compiled where there is a program for so many.

        Args:
            part: the part.
            position: of the first row.
            rows: number of rows.
            arguments: what follows control and slots; arrays of one dimension are padded as the rows are.
            block: see `BackendSequence.run_decoder`.
            visible_from: see `Backend`.
            compiled: whether the other arguments are those of the compiled program.
        """
        cache = self._caches[part]
        size = next((size for size in self._classes[part] if rows <= size), None) if compiled else None
        padded = size or rows
        control = _control(position, rows, padded, cache.window, block, visible_from)
        slots = next(view for view in self._views[part] if cache.ring or position + padded <= len(view))
        cache.wrote(position, padded)
        tensors = [self._on_device(_fill(value, padded - rows)) for value in arguments]
        if size is None:
            return self._plain[part](self._on_device(control), slots, *tensors)
        return self._compiler.run(self._programs[part, size], self._on_device(control), slots, *tensors)

    def _on_device(self, value: NDArray[np.int64] | Tensor) -> Tensor:
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        return tensor if tensor.device == self._device else tensor.to(self._device, non_blocking=True)

    @reporting("patcher", Exception)
    @torch.inference_mode()
    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `BackendSequence.run_patcher`."""
        found = []
        for first, last in _pieces(len(ids), self._piece):
            seen = None if visible_from is None else visible_from[first:last]
            entropies = self._call("patcher", position + first, last - first, ids[first:last], visible_from=seen)
            found.append(entropies.cpu().numpy()[: last - first])
        return found[0] if len(found) == 1 else np.concatenate(found)

    @reporting("encoder", Exception)
    @torch.inference_mode()
    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_encoder`."""
        history = self.config.hash.context - 1
        rows, lengths = len(ids) - history, ends - starts
        for first, last in _pieces(rows, self._piece):
            seen = None if visible_from is None else visible_from[first:last]
            # Only the last piece pools; the others pool their first byte, which is overwritten.
            patches = np.stack([starts, lengths]) if last == rows else np.array([[position + first], [1]])
            compiled = patches.shape[1] == 1 and int(patches[1, 0]) <= self._patch
            members = self._members[: self._patch if compiled else int(patches[1].max())]
            self._call(
                "encoder", position + first, last - first, ids[first : last + history], patches, members,
                visible_from=seen, compiled=compiled,
            )  # fmt: skip

    @reporting("global", Exception)
    @torch.inference_mode()
    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_global`."""
        self._call("global", first_patch, count, visible_from=visible_from)

    @reporting("decoder", Exception)
    @torch.inference_mode()
    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Implement `BackendSequence.run_decoder`."""
        found, part = [], decoder_of(self.config, block)
        for first, last in _pieces(len(ids), self._piece):
            seen, rows = None if visible_from is None else visible_from[first:last], slice(first, last)
            own = block if last == len(ids) else 0
            found.append(self._decode(part, position + first, ids[rows], latents[rows], own, seen))
        joined = found[0]
        for more in found[1:]:
            joined = joined.followed_by(more)
        return joined

    def _decode(
        self, part: str, position: int, ids: Ids, latents: Ids, block: int, visible_from: Ids | None
    ) -> DecoderRows:
        logits, *summary = self._call(part, position, len(ids), ids, latents, block=block, visible_from=visible_from)
        best, probability, entropy = (each[: len(ids)] for each in summary)
        return read_rows(logits[: len(ids)], (best, probability, entropy))

    @torch.inference_mode()
    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `BackendSequence.draft`."""
        context = self._on_device(ids).clone()  # the array is the caller's
        latents, seen = np.array([latent]), np.array([visible_from])
        best, tokens, probabilities = context[-1:], [], []
        encoder_seconds = 0.0
        for step in range(count):
            if self.config.decoder_reads_states:
                began = perf_counter()
                self._encode_drafted(position + step, context, seen)
                context = context.roll(-1)
                encoder_seconds += perf_counter() - began
            logits, *summary = self._decode_drafted(position + step, best, latents, seen)
            best, probability = summary[0].clone(), summary[1].clone()  # the next call overwrites them
            more = True
            if pick is not None:
                token, more = pick(read_rows(logits, (best, probability, summary[2])))
                best = torch.full_like(best, token)
            context[-1:] = best
            tokens.append(best)
            probabilities.append(probability)
            if not more:
                break
        chosen, sure = (torch.cat(rows).cpu().numpy() for rows in (tokens, probabilities))
        return Drafted(chosen, sure, encoder_seconds)

    @reporting("decoder", Exception)
    def _decode_drafted(self, position: int, token: Tensor, latents: Ids, seen: Ids) -> Any:
        return self._call("decoder", position, 1, token, latents, visible_from=seen)

    @reporting("encoder", Exception)
    def _encode_drafted(self, position: int, context: Tensor, seen: Ids) -> None:
        """Encode one drafted byte; the patch that is pooled along with it is not read."""
        patch = np.array([[position], [1]])
        self._call("encoder", position, 1, context, patch, self._members[: self._patch], visible_from=seen)


def _control(
    position: int, rows: int, padded: int, window: int | None, block: int, visible_from: Ids | None
) -> NDArray[np.int64]:
    """Return the control rows of `StaticCache.rows`, int64 [3, padded]."""
    control = np.zeros((3, padded), dtype=np.int64)
    places = Controls(control[0], control[1], control[2], np.zeros(1, dtype=np.int64))
    write_controls(places, position, rows, 0, window, block, visible_from, padded)
    return control


def _fill(value: NDArray[np.int64] | Tensor, more: int) -> NDArray[np.int64] | Tensor:
    """Return an array of one dimension with ``more`` zeros behind it, and anything else as it is."""
    if not more or isinstance(value, Tensor) or value.ndim > 1:
        return value
    return np.concatenate([value, np.zeros(more, dtype=np.int64)])


def _pieces(rows: int, size: int) -> list[tuple[int, int]]:
    """Divide rows into pieces of at most ``size``; the last one is full where there are several."""
    bounds = [*range(rows % size, rows + 1, size)] if rows > size else [rows]
    begins = [0, *bounds[:-1]]
    return [(begin, end) for begin, end in zip(begins, bounds, strict=True) if end > begin]
