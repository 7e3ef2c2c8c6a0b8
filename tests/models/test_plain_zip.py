import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastblt.models.limits import PICKLE_BYTES, ZIP_DIRECTORY_BYTES
from fastblt.models.plain_zip import check_plain


def test_what_torch_and_numpy_write_passes(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "text").write_text("no archive, which the library will tell")
    for path in tmp_path.iterdir():
        check_plain(path)


def test_compressed_member_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"^found compressed data in 'a/data\.pkl', expected plain data$"):
        check_plain(path)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1000))
    with pytest.raises(ValueError, match="found compressed data"):
        check_plain(tmp_path / "a.npz")


def test_pickle_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes(PICKLE_BYTES + 1))
    with pytest.raises(ValueError, match=f"found {PICKLE_BYTES + 1} bytes in 'a/data.pkl', expected at most"):
        check_plain(path)


def test_directory_of_many_members_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, ZIP_DIRECTORY_BYTES + 1, 0, 0)
    path.write_bytes(bytes(ZIP_DIRECTORY_BYTES + 1) + end)
    with pytest.raises(ValueError, match=f"found a directory of {ZIP_DIRECTORY_BYTES + 1} bytes, expected at most"):
        check_plain(path)


def test_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(OSError, match="found a pipe, expected a file"):
        check_plain(tmp_path / "a.pth")
