"""The declarations cffi reads are those that stand in `declarations`; what is mapped over a mapping shows."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from emu.snapshot import declarations, libc

PAGE = mmap.PAGESIZE


def test_generated_module_is_up_to_date(tmp_path: Path) -> None:
    fresh = tmp_path / "_libc.py"
    declarations.generate(fresh)
    assert declarations.OUTPUT.read_text() == fresh.read_text()


def test_a_file_and_zeros_are_laid_over_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a" * PAGE + b"b" * PAGE)
    with open(tmp_path / "file", "rb") as file, mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE) as mapping:
        mapping[:] = b"." * len(mapping)
        address = libc.address_of(mapping)
        libc.map_at(address + PAGE, PAGE, file.fileno(), PAGE)
        libc.map_at(address + 2 * PAGE, PAGE)
        assert [mapping[at] for at in range(0, 4 * PAGE, PAGE)] == [ord("."), ord("b"), 0, ord(".")]
        mapping[PAGE] = 1
    assert (tmp_path / "file").read_bytes()[PAGE] == ord("b"), "the mapping is not private"


def test_what_the_host_refuses_is_an_error(tmp_path: Path) -> None:
    with mmap.mmap(-1, PAGE) as mapping, pytest.raises(OSError, match="Bad file descriptor"):
        libc.map_at(libc.address_of(mapping), PAGE, 1 << 20, 0)
    with pytest.raises(FileNotFoundError):
        libc.exchange(str(tmp_path / "one"), str(tmp_path / "other"))


def test_names_are_exchanged(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.write_bytes(b"")
    if not libc.exchange(os.fspath(one), os.fspath(other)):
        pytest.skip("this file system cannot exchange names")
    assert one.is_file() and other.is_dir()


def test_a_libc_without_the_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "libc", object())
    assert not libc.exchange("one", "other")
