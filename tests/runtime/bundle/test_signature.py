"""Archives that are signed, and what is refused as not signed by the expected key."""

from __future__ import annotations

import io
import os
import pty
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fastblt.runtime.bundle import signature
from fastblt.runtime.bundle.archive import SIGNATURE_FILE, SUMS_FILE, ArchiveError, pack
from fastblt.runtime.bundle.signature import NAMESPACE, SignatureError, sign, verify
from fastblt.runtime.bundle.unpacking import unpack

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")

SUMS = b"0" * 64 + b"  manifest.json\n"


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key") / "key")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("other") / "other", "ecdsa")


def public(key: Path) -> Path:
    return key.with_suffix(".pub")


def fingerprint(key: Path) -> str:
    shown = subprocess.run(["ssh-keygen", "-l", "-f", public(key)], capture_output=True, text=True, check=True)
    return shown.stdout.split()[1]


def repack(archive: Path, **changes: bytes | None) -> None:
    """Write an archive again with other content of some files, by name with underscores; None: without them."""
    with tarfile.open(archive) as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    with tarfile.open(archive, "w") as tar:
        for name, content in contents.items():
            new = changes.get(name.replace(".", "_"), content)
            if new is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(new)
                tar.addfile(entry, io.BytesIO(new))


def test_signed_archive_is_verified_and_the_same_when_packed_again(
    tiny_bundle: Path, tmp_path: Path, key: Path, other: Path
) -> None:
    boxes = [tmp_path / "a.tar", tmp_path / "b.tar"]
    packed = [pack(tiny_bundle, box, key=key) for box in boxes]
    assert packed[0] == packed[1]
    assert packed[0].names[-2:] == [SUMS_FILE, SIGNATURE_FILE]
    keys = tmp_path / "keys"
    keys.write_text(f"# who may sign\n{public(other).read_text()}\n{public(key).read_text()}")
    unpacked = unpack(boxes[0], tmp_path / "out", keys=keys)
    assert (unpacked.signed, unpacked.signer) == (True, fingerprint(key))
    assert not (tmp_path / "out" / SIGNATURE_FILE).exists()
    unchecked = unpack(boxes[1], tmp_path / "unchecked")
    assert (unchecked.signed, unchecked.signer) == (True, None)


def test_common_tools_verify_a_signed_archive(tiny_bundle: Path, tmp_path: Path, key: Path) -> None:
    """With the commands of docs/deploy.md."""
    pack(tiny_bundle, tmp_path / "box.tar", key=key)
    (tmp_path / "signers").write_text(f'me@example.com namespaces="{NAMESPACE}" {public(key).read_text()}')
    commands = f"""set -e; mkdir box; tar -xf box.tar -C box; cd box
        ssh-keygen -Y verify -f ../signers -I me@example.com -n {NAMESPACE} -s {SIGNATURE_FILE} < {SUMS_FILE}
        sha256sum --check --quiet --strict {SUMS_FILE}"""
    subprocess.run(["sh", "-c", commands], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("unsigned", "found no signature, expected one"),
        ("key", "found a signature of the key SHA256:.*, expected a key that .* lists as valid"),
        ("sums", "found a signature of something else"),
        ("junk", "found a signature of something else"),
        ("file", r"config\.json: found sha256"),
        ("missing", r"found config\.json in the archive or in SHA256SUMS alone"),
    ],
)
def test_archive_that_is_not_what_was_signed_is_refused(
    tiny_bundle: Path, tmp_path: Path, key: Path, other: Path, what: str, message: str
) -> None:
    box = tmp_path / "box.tar"
    pack(tiny_bundle, box, key=None if what == "unsigned" else other if what == "key" else key)
    if what == "sums":
        repack(box, SHA256SUMS=SUMS)
    if what == "junk":
        repack(box, SHA256SUMS_sig=b"junk\n")
    if what in ("file", "missing"):
        repack(box, config_json=b"{}" if what == "file" else None)
    with pytest.raises(ArchiveError, match=message):
        unpack(box, tmp_path / "out", keys=public(key))
    assert not (tmp_path / "out").exists()


def test_signature_for_another_purpose_is_refused(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "NAMESPACE", "git")
    made = sign(SUMS, key)
    monkeypatch.undo()
    with pytest.raises(SignatureError, match=r"found a signature of something else .*namespace"):
        verify(SUMS, made, public(key))


@pytest.mark.parametrize(
    ("options", "valid"),
    [
        ("", True),
        (f'namespaces="{NAMESPACE},git"', True),
        ('namespaces="git"', False),
        ('valid-before="20200101"', False),
        ("cert-authority", False),
    ],
)
def test_allowed_signers_mean_what_they_mean_to_openssh(tmp_path: Path, key: Path, options: str, valid: bool) -> None:
    keys = tmp_path / "signers"
    keys.write_text(f"me@example.com,*@example.org {options} {public(key).read_text()}")
    made = sign(SUMS, key)
    if valid:
        assert verify(SUMS, made, keys) == fingerprint(key)
    else:
        with pytest.raises(SignatureError, match=r"expected a key that .* lists as valid"):
            verify(SUMS, made, keys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff", "not text"),
        (b"# nothing\n", "found no key"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "found a private key, expected the public one"),
        (b"x" * 2**21, "not text .*found 2097152 bytes"),
        (b"ssh-ed25519 AAAAjunk\n", "found a signature of the key SHA256:.*, expected a key that"),
    ],
)
def test_unusable_file_of_keys_is_one_error(tmp_path: Path, key: Path, content: bytes | None, message: str) -> None:
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_bytes(content)
    with pytest.raises(SignatureError, match=message):
        verify(SUMS, sign(SUMS, key), keys)


def test_key_that_cannot_sign_is_one_error_and_nothing_is_written(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    for name, message in (("none", "missing, expected an SSH key"), ("junk", "junk: cannot sign")):
        with pytest.raises(SignatureError, match=message):
            pack(tiny_bundle, tmp_path / "box.tar", key=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["junk"]


def test_missing_ssh_keygen_is_one_error(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SignatureError, match=r"found no ssh-keygen, expected OpenSSH 8\.2 or later"):
        sign(SUMS, key)


SIGN = """
import sys
from pathlib import Path
from fastblt.runtime.bundle.signature import SignatureError, sign
try:
    print(len(sign(b"text", Path(sys.argv[1]))))
except SignatureError as error:
    print(error)
"""


def test_passphrase_is_asked_for_on_the_terminal_and_nowhere_else(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", passphrase="secret words")
    command = [sys.executable, "-c", SIGN, str(key)]
    environment = {**os.environ, "DISPLAY": ":9", "SSH_ASKPASS": "/bin/cat"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=30, check=True
    )
    assert done.stdout.startswith(f"{key}: cannot sign (Load key")
    assert "incorrect passphrase" in done.stdout
    process, terminal = pty.fork()
    if process == 0:
        os.execv(command[0], command)
    seen = b""
    while b"Enter passphrase" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"secret words\n")
    assert os.waitpid(process, 0)[1] == 0
    assert int(os.read(terminal, 1000)) > 200
