"""Checks the keys of clients: only their digests are kept, and a comparison takes as long whatever was presented."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fastblt.models.limits import KEYS_BYTES
from fastblt.models.reading import read_text

#: Environment variable with keys, separated by commas or line ends.
KEYS_VARIABLE = "FASTBLT_API_KEYS"
#: Shortest key; a shorter one could be found by trying.
LEAST_CHARACTERS = 16


class ApiKeysError(ValueError):
    """Reports keys that cannot be used."""


@dataclass(frozen=True)
class ApiKeys:
    """Holds SHA-256 digests of keys; false where there are none."""

    digests: tuple[bytes, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def accept(self, authorization: str | None) -> bool:
        """Decide whether a request may be answered.

        Args:
            authorization: the header of this name, ``Bearer KEY``; None: there is none.
        """
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        found = False
        for known in self.digests:
            found |= hmac.compare_digest(known, digest)
        return found and scheme.lower() == "bearer"


def make_keys(keys: Iterable[str], source: str) -> ApiKeys:
    """Return keys; empty lines, and lines that begin with ``#``, are none.

    Args:
        keys: one a line.
        source: where they are from, for errors. These never repeat a key.

    Raises:
        ApiKeysError: there is none, or one is too short or cannot be part of a header.
    """
    found = [key for each in keys if (key := each.strip()) and not key.startswith("#")]
    if not found:
        raise ApiKeysError(f"{source}: found no key, expected one a line")
    for number, key in enumerate(found, start=1):
        if not (key.isascii() and key.isprintable() and " " not in key and len(key) >= LEAST_CHARACTERS):
            raise ApiKeysError(
                f"{source}: found a key (number {number}) that is too short or has other characters, expected at "
                f"least {LEAST_CHARACTERS} printable ASCII characters without spaces"
            )
    return ApiKeys(tuple(_digest(key) for key in found))


def read_keys(path: Path) -> ApiKeys:
    """Return the keys in a file, one a line.

    Raises:
        ApiKeysError: see `make_keys`, or it is too large or not text.
        OSError: it cannot be read.
    """
    try:
        text = read_text(path, KEYS_BYTES)
    except UnicodeDecodeError:
        raise ApiKeysError(f"{path}: found bytes that are no UTF-8, expected a key a line") from None
    except ValueError as error:
        raise ApiKeysError(f"{path}: {error}") from None
    return make_keys(text.splitlines(), str(path))


def environment_keys() -> ApiKeys:
    """Return the keys in the environment; none if the variable does not exist.

    Raises:
        ApiKeysError: see `make_keys`.
    """
    text = os.environ.get(KEYS_VARIABLE)
    return ApiKeys() if text is None else make_keys(text.replace(",", "\n").splitlines(), KEYS_VARIABLE)


def exposure(path: Path) -> str | None:
    """Return a warning where other users of this machine can read, or replace, a file of keys; None: they cannot."""
    mode = path.stat().st_mode
    if os.name != "posix" or not stat.S_ISREG(mode) or not mode & 0o077:
        return None
    return f"{path}: found permissions {stat.filemode(mode)}, other users can use the keys; chmod 600 {path}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
