"""Snapshots that go to another host in pieces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

from emu.cache import ENVIRONMENT
from emu.errors import BadSnapshot, EmuError
from emu.memory import GuestMemory
from emu.snapshot import parcel
from emu.snapshot.files import Snapshot
from emu.snapshot.pages import PAGE
from emu.snapshot.parcel import PIECE, Piece, fetched, is_snapshot, pack
from emu.snapshot.save import save_snapshot
from tests.snapshot.snapshots import SIZE, State, content


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache" / parcel.KIND


def named(path: Path) -> tuple[str, str]:
    with Snapshot.open(path) as snapshot:
        return snapshot.id, snapshot.digest


def packed(path: Path) -> list[Piece]:
    with Snapshot.open(path) as snapshot:
        return list(pack(snapshot))


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "lock")


def test_what_was_packed_is_there_again(saved: Path, memory: GuestMemory, cache: Path) -> None:
    path = fetched(*named(saved), packed(saved))
    assert path is not None and path.parent == cache
    for name in "header.json", "ram", "files/disk0":
        assert (path / name).read_bytes() == (saved / name).read_bytes()
    assert os.stat(path / "files/disk0").st_blocks < os.stat(saved / "files/disk0").st_size // 512
    with Snapshot.open(path) as snapshot:
        restored = snapshot.map_memory()
        assert restored.ram[:] == memory.ram[:]
        restored.close()


def test_it_is_kept_and_pieces_are_not_needed_again(saved: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = named(saved)
    assert fetched(*name) is None
    path = fetched(*name, packed(saved))
    monkeypatch.setattr(parcel, "unpack", None)
    assert fetched(*name) == fetched(*name, packed(saved)) == path
    assert entries(cache) == [name[0]]


def test_another_snapshot_of_that_id_is_replaced(saved: Path, memory: GuestMemory, cache: Path) -> None:
    id, digest = named(saved)
    save_snapshot(cache.parent.parent / "other", State("other"), memory)
    cache.mkdir(parents=True)
    (cache.parent.parent / "other").rename(cache / id)
    assert fetched(id, digest) is None
    path = fetched(id, digest, packed(saved))
    assert path is not None and is_snapshot(path, id, digest)
    assert entries(cache) == [id]


def test_pieces_are_no_longer_than_an_engine_likes(saved: Path) -> None:
    memory = GuestMemory(SIZE)
    memory.ram[: 20 << 20] = os.urandom(20 << 20)
    save_snapshot(saved.parent / "random.snap", State(), memory)
    memory.close()
    pieces = packed(saved.parent / "random.snap")
    sizes = [sum(len(block) for _name, _offset, block in piece) for piece in pieces]
    assert max(sizes) < PIECE + 1.1 * parcel.BLOCK
    assert len(pieces) <= 6


def changed(pieces: list[Piece], file: str, new: bytes) -> list[Piece]:
    """With another first block of a file."""
    block = zstandard.compress(new)
    place = next((name, offset) for piece in pieces for name, offset, data in piece if name == file and data)
    return [
        tuple((name, offset, block if (name, offset) == place and data else data) for name, offset, data in piece)
        for piece in pieces
    ]


@pytest.mark.parametrize(
    ("file", "message"),
    [("header.json", "header"), ("ram", "checksum"), ("files/disk0", "checksum")],
)
def test_what_came_damaged_is_refused_and_not_kept(saved: Path, cache: Path, file: str, message: str) -> None:
    pieces = changed(packed(saved), file, content(0, 99))
    with pytest.raises(BadSnapshot, match=message) as caught:
        fetched(*named(saved), pieces)
    assert "\n" not in str(caught.value)
    assert entries(cache) == []


def test_another_snapshot_than_was_asked_for_is_refused(saved: Path, cache: Path) -> None:
    with pytest.raises(BadSnapshot, match="in place of"):
        fetched("0" * 32, named(saved)[1], packed(saved))
    assert entries(cache) == []


@pytest.mark.parametrize("name", ["../ram", "/tmp/ram", "files/../../ram", "files/.x", "other"])
def test_no_file_is_written_anywhere_else(saved: Path, cache: Path, name: str) -> None:
    with pytest.raises(BadSnapshot, match="has no file"):
        fetched(*named(saved), [((name, PAGE, b""),)])
    assert entries(cache) == []


def test_bytes_that_do_not_decompress_are_refused(saved: Path, cache: Path) -> None:
    with pytest.raises(BadSnapshot, match="came damaged"):
        fetched(*named(saved), [(("ram", PAGE, b""), ("ram", 0, b"no zstd"))])
    assert entries(cache) == []


def test_a_full_disk_is_told(saved: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    pieces = packed(saved)
    monkeypatch.setattr(os, "pwrite", no_room)
    with pytest.raises(EmuError, match=r"cannot keep a snapshot in .*No space left"):
        fetched(*named(saved), pieces)
    assert entries(cache) == []


def test_an_incremental_snapshot_does_not_go_without_its_base(saved: Path, tmp_path: Path) -> None:
    with Snapshot.open(saved) as base:
        memory = base.map_memory()
        memory.ram[:PAGE] = content(0, 5)
        save_snapshot(tmp_path / "delta", State(), memory, base=base)
        memory.close()
    with pytest.raises(BadSnapshot, match="builds on another snapshot"):
        packed(tmp_path / "delta")
