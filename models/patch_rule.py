"""States the rule by which patches close, for single tokens, NumPy arrays and PyTorch tensors alike.

A patch is closed by the token at position i when the rule for the token after it opens a new one, which depends on
tokens up to i only:

    closes(i) = (i == 0) or ends(i) or (the patch has max_patch_length tokens)

ends(i) is, by the mode: H_i > threshold (entropy, arXiv 2412.09871); token i is space-like and token i-1 is not, or it
is a special token (space, ibid. section 2.2 and arXiv 2404.14408); never (static).

`fastblt.models.patching` applies the rule to whole sequences, `fastblt.runtime.sequence.patches` to the tokens of a
sequence as they come. The functions here use only operators that Python's numbers, arrays and tensors share, so that
both read the same definitions and this module needs neither library.
"""

from __future__ import annotations

from typing import Any

from fastblt.models.config import PatchingConfig
from fastblt.models.tokens import BYTE_OFFSET


def ends_by_entropy(entropies: Any, config: PatchingConfig) -> Any:
    """Return where the mode ``entropy`` ends a patch: ``entropies``, in nats, are those of the token after each."""
    return entropies > config.threshold


def ends_by_space(ids: Any, space_like: Any, space_like_before: Any) -> Any:
    """Return where the mode ``space`` ends a patch.

    Args:
        ids: tokens.
        space_like: whether each of them is space-like, from `fastblt.models.tokens.SPACE_LIKE`.
        space_like_before: whether the token before each of them is; for position 0 it does not matter.
    """
    return (ids < BYTE_OFFSET) | (space_like & ~space_like_before)


def closes_by_rule(position: Any, ends: Any) -> Any:
    """Return whether tokens close their patch, however long it is.

    Args:
        position: of the token in its sequence, 0 for BOS.
        ends: whether the mode's rule ends a patch there.
    """
    return ends | (position == 0)


def is_full(length: Any, config: PatchingConfig) -> Any:
    """Return whether tokens close their patch because it has the longest length; False if there is no such limit.

    Args:
        length: tokens from the first one of the patch to this one. It may also be counted from an earlier patch, if
            all patches since then were closed by this rule alone: they have max_patch_length tokens each.
        config: longest patch.
    """
    longest = config.max_patch_length
    return False if longest is None else length % longest == 0
