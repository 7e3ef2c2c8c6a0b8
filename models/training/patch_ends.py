"""Finds where the patches of a whole corpus end, once: the patcher is frozen while the rest of the model learns.

A window of training text then needs no pass of the patcher, and its patches are those of its document: the patcher has
read the text before the window, too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save

from fastblt.models.atomic_file import write_file
from fastblt.models.config import PatchingConfig
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.stores import open_file
from fastblt.models.patch_rule import ends_by_entropy
from fastblt.models.patcher import Patcher, entropy
from fastblt.models.tokens import BOS_ID, BYTE_OFFSET
from fastblt.models.training.corpus import Split

#: Bytes whose entropies one call returns.
PIECE = 8192
SAVE_SECONDS = 60.0

#: Called with the finished share; returns whether there is time to go on.
OnDocument = Callable[[float], bool]


class PatchEnds:
    """Holds for each byte of a text whether the entropy of the byte after it ends a patch; a file keeps what is found.

    Args:
        patcher: frozen.
        rule: its threshold; the longest patch is left to `closes_patch`.
        text: documents; the patcher reads none across its ends.
        path: the file.

    Raises:
        CheckpointError: the file is damaged. One of another patcher or text is overwritten.
    """

    def __init__(self, patcher: Patcher, rule: PatchingConfig, text: Split, path: Path) -> None:
        self._patcher, self._rule, self._text, self._path = patcher, rule, text, path
        self._digest = _digest(patcher, rule, text)
        self.ends: NDArray[np.bool_] = np.zeros(len(text.text), dtype=np.bool_)
        self._documents = self._load()

    @property
    def complete(self) -> bool:
        """Return whether all documents have been read."""
        return self._documents == len(self._text.lengths)

    def find(self, on_document: OnDocument) -> bool:
        """Read the documents that have not been read; return False if ``on_document`` stopped it before the end."""
        saved = time.monotonic()
        going = True
        while going and not self.complete:
            first, size = (int(of[self._documents]) for of in (self._text.offsets, self._text.lengths))
            self.ends[first : first + size] = self._document(self._text.text[first : first + size])
            self._documents += 1
            going = on_document((first + size) / len(self.ends))
            if self.complete or not going or time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
        return self.complete

    def of_windows(self, starts: NDArray[np.int64], sizes: NDArray[np.int64], length: int) -> torch.Tensor:
        """Return where the rule ends patches of windows (see `read_windows`), bool [windows, length]."""
        found = np.zeros((len(starts), length), dtype=np.bool_)
        for row, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
            found[row, 1 : 1 + size] = self.ends[start : start + size][: length - 1]
        return torch.from_numpy(found)

    @torch.no_grad()
    def _document(self, data: NDArray[np.uint8]) -> NDArray[np.bool_]:
        window, layers = self._patcher.config.window, self._patcher.config.layers
        before = PIECE if window is None else layers * (window - 1)
        device = self._patcher.output.weight.device
        found = [np.zeros(0, dtype=np.bool_)]
        for start in range(0, len(data), PIECE):
            begin = max(0, start - before)
            rows = 1 + min(len(data), start + PIECE) - begin
            # BOS of a later piece is out of the window of every byte whose entropy is kept. Windows that fill the
            # sequence are attended to one by one, others with a mask of all pairs of rows.
            ids = torch.full((1, rows + -rows % (window or 1)), BOS_ID)
            ids[0, 1:rows] = torch.from_numpy(data[begin : start + PIECE].astype(np.int64) + BYTE_OFFSET)
            entropies = entropy(self._patcher(ids.to(device)))[0, 1 + start - begin : rows]
            found.append(ends_by_entropy(entropies, self._rule).cpu().numpy())
        return np.concatenate(found)

    def _save(self) -> None:
        metadata = {"digest": self._digest, "documents": str(self._documents)}
        write_file(self._path, save({"ends": torch.from_numpy(np.packbits(self.ends))}, metadata=metadata))

    def _load(self) -> int:
        """Read the file, if there is one for this patcher and text; return the documents that it has."""
        if not self._path.exists():
            return 0
        size = -(-len(self.ends) // 8)
        try:
            with open_file(self._path) as file:
                metadata = file.metadata()
                packed = file.get_tensor("ends")
            if metadata["digest"] != self._digest:
                return 0
            documents = int(metadata["documents"])
            if packed.dtype != torch.uint8 or tuple(packed.shape) != (size,):
                raise ValueError(f"found ends {packed.dtype} {list(packed.shape)}, expected uint8 [{size}]")
            if not 0 <= documents <= len(self._text.lengths):
                raise ValueError(f"found {documents} documents, expected at most {len(self._text.lengths)}")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self._path}: not the patch ends of a corpus ({error})") from error
        self.ends = np.unpackbits(packed.numpy(), count=len(self.ends)).astype(np.bool_)
        return documents


def _digest(patcher: Patcher, rule: PatchingConfig, text: Split) -> str:
    """Return what identifies a patcher's weights, its threshold and a text: 64 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([str(patcher.config), rule.threshold, text.lengths.tolist()]).encode())
    for name, tensor in sorted(patcher.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(hashlib.sha256(text.text.data).digest())
    return digest.hexdigest()
