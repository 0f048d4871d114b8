"""Raw images: what is read and written, zeroed, flushed and locked, and what is no image."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from pathlib import Path

import pytest

from devices import disk as disk_module
from devices.disk import SECTOR, DiskError, Image

SIZE = 256 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image whose bytes are all different from their neighbours'."""
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(SIZE))
    return path


def pattern(size: int) -> bytes:
    return b"".join(i.to_bytes(4, "little") for i in range(-(-size // 4)))[:size]


def read(disk: Image, offset: int, *sizes: int) -> list[bytes]:
    buffers = [bytearray(b"\xa5" * size) for size in sizes]
    disk.read(offset, [memoryview(buffer) for buffer in buffers])
    return [bytes(buffer) for buffer in buffers]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * SECTOR


def test_views_are_filled_one_after_the_other(path: Path) -> None:
    image = Image(path, read_only=True)
    data = pattern(SIZE)
    assert read(image, 1024, 512, 0, 1536, 100) == [data[1024:1536], b"", data[1536:3072], data[3072:3172]]
    image.close()


def test_written_views_stand_in_the_file_one_after_the_other(path: Path) -> None:
    image = Image(path)
    image.write(512, [memoryview(b"a" * 600), b"", b"b" * 424])
    image.close()
    expected = bytearray(pattern(SIZE))
    expected[512:1536] = b"a" * 600 + b"b" * 424
    assert path.read_bytes() == expected


def test_more_views_than_one_system_call_takes(path: Path) -> None:
    image = Image(path)
    count = disk_module.IOV_MAX * 2 + 3
    image.write(3, [bytes((i % 251,)) for i in range(count)])
    assert b"".join(read(image, 3, *[1] * count)) == bytes(i % 251 for i in range(count))
    image.close()


def test_partial_transfers_are_gone_on_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real_read(fd, [views[0][:7]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: real_write(fd, [views[0][:5]], at))
    image = Image(path)
    image.write(100, [b"x" * 12, b"y" * 9])
    assert read(image, 98, 10, 20) == [pattern(SIZE)[98:100] + b"x" * 8, b"xxxx" + b"y" * 9 + pattern(SIZE)[121:128]]
    image.close()


def test_a_write_of_which_nothing_is_taken_is_an_error_not_a_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: 0)
    image = Image(path)
    with pytest.raises(OSError):
        image.write(0, [b"x"])
    image.close()


def test_an_odd_size_is_rounded_up_and_the_rest_reads_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(b"x" * 700)
    image = Image(path)
    assert image.size == 1024
    assert read(image, 512, 100, 412) == [b"x" * 100, b"x" * 88 + bytes(324)]
    image.write(512, [b"y" * 512])
    image.close()
    assert path.read_bytes() == b"x" * 512 + b"y" * 512


def test_an_image_cut_off_by_the_host_reads_as_zeros(path: Path) -> None:
    image = Image(path, read_only=True)
    os.truncate(path, 100)
    assert read(image, 0, 50, 100) == [pattern(50), pattern(100)[50:] + bytes(50)]
    assert read(image, 8192, 512) == [bytes(512)]
    image.close()


@pytest.mark.parametrize("unmap", [True, False])
@pytest.mark.parametrize("supported", [True, False])
def test_zeroes_are_where_they_are_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, unmap: bool, supported: bool
) -> None:
    if not supported:
        monkeypatch.setattr(disk_module, "make_zero", lambda *arguments: False)
    image = Image(path)
    image.write_zeroes(512, 150 * 1024, unmap)
    image.close()
    expected = bytearray(pattern(SIZE))
    expected[512 : 512 + 150 * 1024] = bytes(150 * 1024)
    assert path.read_bytes() == expected


def test_discarded_room_goes_back_to_the_host(path: Path) -> None:
    before = allocated(path)
    image = Image(path)
    image.discard(64 * 1024, 128 * 1024)
    image.close()
    assert allocated(path) <= before - 128 * 1024
    data = pattern(SIZE)
    assert path.read_bytes() == data[: 64 * 1024] + bytes(128 * 1024) + data[192 * 1024 :]


def test_zeroes_without_unmap_keep_their_room(path: Path) -> None:
    before = allocated(path)
    image = Image(path)
    image.write_zeroes(64 * 1024, 128 * 1024, False)
    image.close()
    assert allocated(path) >= before


class FakeLibc:
    """A C library whose fallocate fails with one error number after another."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def fallocate(self, fd: int, mode: int, offset: int, size: int) -> int:
        error = self.errors.pop(0)
        ctypes.set_errno(error)
        return -1 if error else 0


def test_discard_does_nothing_where_the_host_cannot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "_libc", lambda: FakeLibc(errno.EOPNOTSUPP))
    image = Image(path)
    image.discard(0, SIZE)
    image.close()
    assert path.read_bytes() == pattern(SIZE)


def test_discard_interrupted_by_a_signal_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libc = FakeLibc(errno.EINTR, errno.EINTR, 0)
    monkeypatch.setattr(disk_module, "_libc", lambda: libc)
    image = Image(path)
    image.discard(0, SIZE)
    image.close()
    assert libc.errors == []


def test_discard_tells_of_an_error_of_the_host(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "_libc", lambda: FakeLibc(errno.EIO))
    image = Image(path)
    with pytest.raises(OSError) as caught:
        image.discard(0, SIZE)
    assert caught.value.errno == errno.EIO
    image.close()


def test_flush_returns_after_what_was_written_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.pread(fd, 4, 0)))
    image = Image(path)
    image.write(0, [b"data"])
    assert synced == []
    image.flush()
    assert synced == [b"data"]
    image.close()


# --- what is no image -----------------------------------------------------------------------------------------------


def complaint(path: Path | str, read_only: bool = True) -> str:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(DiskError) as caught:
        Image(path, read_only)
    assert set(os.listdir("/proc/self/fd")) <= before, "a descriptor was left open"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("read_only", [True, False])
def test_missing_image(tmp_path: Path, read_only: bool) -> None:
    assert "No such file" in complaint(tmp_path / "none.img", read_only)
    assert not (tmp_path / "none.img").exists()


@pytest.mark.parametrize("read_only", [True, False])
def test_directory_is_no_image(tmp_path: Path, read_only: bool) -> None:
    assert "directory" in complaint(tmp_path, read_only)


@pytest.mark.parametrize("read_only", [True, False])
def test_fifo_is_no_image_and_is_not_waited_for(tmp_path: Path, read_only: bool) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "neither a file nor a block device" in complaint(tmp_path / "fifo", read_only)


def test_socket_is_no_image(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert "cannot open" in complaint(tmp_path / "s")


def test_character_device_is_no_image() -> None:
    assert "neither a file nor a block device" in complaint("/dev/zero")


def test_empty_image(tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    assert "is empty" in complaint(tmp_path / "empty.img")


def test_name_that_no_file_can_have() -> None:
    assert "no file has such a name" in complaint("a\0b")


def test_qcow2_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").write_bytes(b"QFI\xfb" + bytes(1020))
    assert "qemu-img convert" in complaint(tmp_path / "a.qcow2")


# --- locks ----------------------------------------------------------------------------------------------------------


def test_two_writers_of_one_image(path: Path) -> None:
    first = Image(path)
    assert "in use by another machine" in complaint(path, read_only=False)
    first.close()
    Image(path).close()


def test_no_reader_beside_a_writer(path: Path) -> None:
    writer = Image(path)
    assert "being written to by another machine" in complaint(path, read_only=True)
    writer.close()


def test_no_writer_beside_readers(path: Path) -> None:
    first, second = Image(path, read_only=True), Image(path, read_only=True)
    first.close()
    assert "in use by another machine" in complaint(path, read_only=False)
    second.close()
    Image(path).close()


def test_a_file_system_without_locks_is_used_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    Image(path).close()
