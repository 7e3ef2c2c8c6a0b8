"""Signs and verifies small texts with OpenSSH's ``ssh-keygen -Y``.

It is installed on almost every machine, its keys exist already (in files, agents and security keys), and what it signs
can be verified without this package. The namespace keeps a signature of one kind of content from being used as another.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastblt.models.atomic_folder import scratch_folder
from fastblt.models.limits import KEYS_BYTES, SIGNATURE_BYTES
from fastblt.models.reading import read_text

NAMESPACE = "fastblt-bundle"
_SECONDS = 60
"""Most time for a call of ssh-keygen that asks nobody."""


class SignatureError(ValueError):
    """Reports a text that cannot be signed, or whose signature is not one of an expected key."""


def sign(content: bytes, key: Path) -> bytes:
    """Return a signature of a text; the same one each time with Ed25519 and RSA keys.

    Args:
        content: the text.
        key: file of a private key, or of a public one whose private key is in the user's agent. A passphrase is asked
            for on the terminal, if there is one.

    Raises:
        SignatureError: there is no ssh-keygen, or it cannot use the key.
    """
    if not key.exists():
        raise SignatureError(f"{key}: missing, expected an SSH key (ssh-keygen -t ed25519 -f {key} makes one)")
    done = _ssh_keygen("sign", "-n", NAMESPACE, "-f", os.path.abspath(key), content=content, asks=_has_terminal())
    if done.returncode != 0 or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise SignatureError(f"{key}: cannot sign ({_last_line(done.stderr)}), expected an SSH key that can be used")
    return done.stdout


def verify(content: bytes, signature: bytes, keys: Path) -> str:
    """Return the fingerprint of the key that signed a text, after comparing it with those that may.

    Args:
        content: the text.
        signature: what `sign` returned.
        keys: file of public keys, any of which may have signed it; or of ``ssh-keygen``'s format ALLOWED SIGNERS.

    Raises:
        SignatureError: the signature is of something else or of another key; or there is no ssh-keygen, or no usable
            file of keys.
    """
    allowed = _allowed_signers(keys)
    if len(signature) > SIGNATURE_BYTES:
        raise SignatureError(f"found a signature of {len(signature)} bytes, expected at most {SIGNATURE_BYTES}")
    with _files(signature=signature, allowed=allowed) as (signature_file, allowed_file):
        made_by = _ssh_keygen("check-novalidate", "-n", NAMESPACE, "-s", signature_file, content=content)
        fingerprint = re.search(rb"SHA256:\S+", made_by.stdout)
        if made_by.returncode != 0 or fingerprint is None:
            reason = _last_line(made_by.stderr)
            raise SignatureError(f"found a signature of something else ({reason}), expected one of these sums")
        signer = fingerprint[0].decode()
        found = _ssh_keygen("find-principals", "-f", allowed_file, "-s", signature_file, content=b"")
        principals = found.stdout.decode(errors="replace").splitlines()
        # Only this last call decides: it compares text, key, namespace, and the dates of a key's validity.
        options = ("-n", NAMESPACE, "-f", allowed_file, "-s", signature_file)
        if not principals or _ssh_keygen("verify", *options, "-I", principals[0], content=content).returncode != 0:
            raise SignatureError(f"found a signature of the key {signer}, expected a key that {keys} lists as valid")
    return signer


def _allowed_signers(keys: Path) -> str:
    expected = "public SSH keys, or ssh-keygen's ALLOWED SIGNERS"
    try:
        lines = [line.strip() for line in read_text(keys, KEYS_BYTES).splitlines()]
    except OSError as error:
        raise SignatureError(f"{keys}: cannot be read ({error.strerror}), expected {expected}") from error
    except ValueError as error:
        raise SignatureError(f"{keys}: not text ({error}), expected {expected}") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if any("PRIVATE KEY" in line for line in lines):
        raise SignatureError(f"{keys}: found a private key, expected the public one ({keys}.pub)")
    if not lines:
        raise SignatureError(f"{keys}: found no key, expected {expected}")
    return "".join(f"{_allowed_signer(line)}\n" for line in lines)


def _allowed_signer(line: str) -> str:
    """Return a line of the format ALLOWED SIGNERS for a public key; it begins with its type, the format with names."""
    fields = line.split()
    if len(fields) > 1 and fields[1].startswith("AAAA"):
        return f'signer namespaces="{NAMESPACE}" {fields[0]} {fields[1]}'
    return line


@contextmanager
def _files(*, signature: bytes, allowed: str) -> Iterator[tuple[str, str]]:
    with scratch_folder() as folder:
        (folder / "signature").write_bytes(signature)
        (folder / "allowed").write_text(allowed, encoding="utf-8")
        yield str(folder / "signature"), str(folder / "allowed")


def _ssh_keygen(
    operation: str, *arguments: str, content: bytes, asks: bool = False
) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise SignatureError("found no ssh-keygen, expected OpenSSH 8.2 or later (apt install openssh-client)")
    # It asks on the terminal of its session, or else with a window; where nobody would answer, it has neither.
    environment = {**os.environ, "LC_ALL": "C"} | ({} if asks else {"SSH_ASKPASS_REQUIRE": "never"})
    try:
        return subprocess.run(
            [program, "-Y", operation, *arguments],
            input=content,
            capture_output=True,
            env=environment,
            start_new_session=not asks,
            timeout=None if asks else _SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SignatureError(f"ssh-keygen -Y {operation}: found no answer in {_SECONDS} s, expected one") from None


def _has_terminal() -> bool:
    with suppress(OSError):
        return os.isatty(0)
    return False


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").replace("Enter passphrase: ", "").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1] if lines else "no reason"
