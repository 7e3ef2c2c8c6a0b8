import errno
import json
import os
import time
from pathlib import Path

import pytest

from fastblt.models.limits import JSON_BYTES
from fastblt.models.reading import check_regular, open_regular, read_json, read_text


class WrongError(ValueError):
    """What the tests ask for."""


def refusal(path: Path) -> str:
    """The one line about a file that cannot be read, soon."""
    began = time.process_time()
    with pytest.raises(WrongError) as caught:
        read_json(path, WrongError, "a thing")
    assert time.process_time() - began < 5
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.endswith(", expected a thing")
    assert line.isprintable()
    return line


@pytest.fixture(params=["pipe", "device", "folder", "socket", "link to a device"])
def irregular(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something that is no file."""
    path = tmp_path / "thing"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        return Path("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return path


def test_errors_after_a_file_has_been_opened_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "thing"
    path.write_bytes(b"{}")
    before = len(os.listdir("/proc/self/fd"))

    def fails(descriptor: int) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fails)
        with pytest.raises(PermissionError) as caught:
            open_regular(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EACCES, str(path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_file_is_refused_at_once(irregular: Path) -> None:
    assert "cannot be read (" in refusal(irregular)
    with pytest.raises(OSError, match=r"expected a file|No such device"):
        open_regular(irregular)
    with pytest.raises(OSError, match=r"expected a file|No such device"):
        check_regular(irregular)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 10**6, "not JSON"),
        (b'{"a":' * 10**5, "not JSON"),
        (b"NaN", "found NaN, expected a finite number"),
        (b"[-Infinity]", "found -Infinity, expected a finite number"),
        (b"9" * 5000, "not JSON (Exceeds the limit (4300 digits)"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "found 'b' twice in an object, expected each field once"),
        (b'{"\\u001b": 1, "\\u001b": 1}', r"found '\x1b' twice"),
        (b"1" * (JSON_BYTES + 1), f"found {JSON_BYTES + 1} bytes, expected at most {JSON_BYTES}"),
    ],
    ids=range(10),
)
def test_content_that_is_no_plain_json_is_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    path.write_bytes(content)
    assert reason in refusal(path)


def test_object_of_many_equal_fields_is_refused_soon(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    path.write_text("{" + ",".join(f'"{i}":1' for i in range(10**5)) + ',"99999":1}')
    assert "found '99999' twice" in refusal(path)


def test_content_is_that_of_json(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    data = {"a": [1, 2.5, None, True, "\u00e9", {"b": {}}], "c": 10**400}
    path.write_text(json.dumps(data))
    assert read_json(path, WrongError, "a thing") == data
    path.write_text('{"a": Infinity}')
    assert read_json(path, WrongError, "a thing", constants=True) == {"a": float("inf")}


def test_text_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("four")
    assert read_text(path, 4) == "four"
    with pytest.raises(ValueError, match="found 4 bytes, expected at most 3"):
        read_text(path, 3)


def test_a_bound_that_no_memory_could_hold_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("short", encoding="utf-8")
    assert read_text(tmp_path / "log", 2**50) == "short"
