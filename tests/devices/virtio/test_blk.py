"""The block device: each request, what is refused, and what a hostile driver gets out of it."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.disk import SECTOR, Buffers, DiskError, Image
from devices.overlay import Overlay
from devices.virtio.blk import (
    DISCARD_SECTORS,
    DISCARD_SEGMENTS,
    F_DISCARD,
    F_FLUSH,
    F_RO,
    F_WRITE_ZEROES,
    MOST_DATA,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    SEGMENT,
    SEGMENT_UNMAP,
    SIZE_MAX,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
    ZEROES_SECTORS,
    Blk,
)
from tests.devices.virtio.driver import EVERYTHING, Driver, FakeMemory

SECTORS = 64
SIZE = SECTORS * SECTOR
PLAIN = bytes(1 + i // SECTOR for i in range(SIZE))


class FakeDisk:
    """A disk in memory that remembers what was asked of it.

    Attributes:
        data: what was written.
        durable: what a power failure would leave: `data` at the last flush.
        asked: name of each method called, in order.
        error: raised by the next calls, if set.
    """

    def __init__(self, data: bytes = PLAIN, read_only: bool = False) -> None:
        self.data = bytearray(data)
        self.durable = bytes(data)
        self.size = len(data)
        self.read_only = read_only
        self.asked: list[str] = []
        self.error: OSError | None = None

    def _enter(self, name: str) -> None:
        self.asked.append(name)
        if self.error:
            raise self.error

    def read(self, offset: int, views: Sequence[memoryview], /) -> None:
        self._enter("read")
        for view in views:
            assert offset + len(view) <= self.size
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def write(self, offset: int, views: Buffers, /) -> None:
        self._enter("write")
        data = b"".join(views)
        assert offset + len(data) <= self.size
        self.data[offset : offset + len(data)] = data

    def discard(self, offset: int, size: int, /) -> None:
        self._enter("discard")
        assert offset + size <= self.size
        self.data[offset : offset + size] = b"?" * size

    def write_zeroes(self, offset: int, size: int, unmap: bool, /) -> None:
        self._enter("unmap" if unmap else "write_zeroes")
        assert offset + size <= self.size
        self.data[offset : offset + size] = bytes(size)

    def flush(self) -> None:
        self._enter("flush")
        self.durable = bytes(self.data)

    def close(self) -> None:
        self._enter("close")


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def ask(driver: Driver, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> tuple[int, bytes]:
    """Send a request framed as Linux does; the status and the data that came back."""
    readable = [header(kind, sector), data] if data else [header(kind, sector)]
    answer = driver.request(0, readable, [room, 1] if room else [1])
    return answer[-1], answer[:-1]


# --- requests -------------------------------------------------------------------------------------------------------


def test_reading() -> None:
    driver = Driver(Blk(FakeDisk()))
    assert ask(driver, T_IN, 3, room=1024) == (S_OK, PLAIN[3 * SECTOR : 5 * SECTOR])
    assert driver.interrupts == [1]


def test_writing() -> None:
    disk = FakeDisk()
    driver = Driver(Blk(disk))
    assert ask(driver, T_OUT, 2, b"x" * 1024) == (S_OK, b"")
    assert disk.data == PLAIN[: 2 * SECTOR] + b"x" * 1024 + PLAIN[4 * SECTOR :]


def test_the_last_sector_can_be_read_and_written() -> None:
    driver = Driver(Blk(FakeDisk()))
    assert ask(driver, T_OUT, SECTORS - 1, b"z" * SECTOR)[0] == S_OK
    assert ask(driver, T_IN, SECTORS - 1, room=SECTOR) == (S_OK, b"z" * SECTOR)


@pytest.mark.parametrize("indirect", [True, False])
def test_framing_is_the_drivers_choice(indirect: bool) -> None:
    """Header, data and status may be cut into buffers anywhere (specification, section 2.7.4)."""
    driver = Driver(Blk(FakeDisk()))
    request = header(T_OUT, 1) + b"w" * SECTOR
    driver.send(0, [request[:5], request[5:30], request[30:]], [1], indirect)
    driver.send(0, [header(T_IN)[:1], header(T_IN)[1:]], [7, 2 * SECTOR - 8, 2], indirect)
    written, read = driver.used(0)
    assert written.data == bytes((S_OK,))
    assert read.data == PLAIN[:SECTOR] + b"w" * SECTOR + bytes((S_OK,))


def test_requests_of_one_notification_are_served_in_order_with_one_interrupt() -> None:
    driver = Driver(Blk(FakeDisk()))
    for letter in b"abc":
        driver.rings[0].send([header(T_OUT), bytes((letter,)) * SECTOR], [1])
    driver.rings[0].send([header(T_IN)], [SECTOR, 1])
    driver.notify(0)
    assert [used.data[:1] for used in driver.used(0)] == [b"\0", b"\0", b"\0", b"c"]
    assert driver.interrupts == [1]


def test_serial_number() -> None:
    assert ask(Driver(Blk(FakeDisk(), "root")), T_GET_ID, room=20) == (S_OK, b"root".ljust(20, b"\0"))


def test_a_serial_number_of_20_bytes_has_no_end_and_a_longer_one_is_cut() -> None:
    assert ask(Driver(Blk(FakeDisk(), "0123456789abcdefghijklm")), T_GET_ID, room=20) == (S_OK, b"0123456789abcdefghij")


def test_less_room_than_a_serial_number() -> None:
    assert ask(Driver(Blk(FakeDisk(), "serial")), T_GET_ID, room=3) == (S_OK, b"ser")


def test_discard_of_several_ranges() -> None:
    disk = FakeDisk()
    ranges = SEGMENT.pack(2, 1, 0) + SEGMENT.pack(5, 2, 0)
    assert ask(Driver(Blk(disk)), T_DISCARD, data=ranges) == (S_OK, b"")
    expected = bytearray(PLAIN)
    expected[2 * SECTOR : 3 * SECTOR] = b"?" * SECTOR
    expected[5 * SECTOR : 7 * SECTOR] = b"?" * 2 * SECTOR
    assert disk.data == expected


@pytest.mark.parametrize(("flags", "asked"), [(0, "write_zeroes"), (SEGMENT_UNMAP, "unmap")])
def test_zeroes(flags: int, asked: str) -> None:
    disk = FakeDisk()
    assert ask(Driver(Blk(disk)), T_WRITE_ZEROES, data=SEGMENT.pack(1, 3, flags)) == (S_OK, b"")
    assert disk.data == PLAIN[:SECTOR] + bytes(3 * SECTOR) + PLAIN[4 * SECTOR :]
    assert disk.asked == [asked]


# --- durability -----------------------------------------------------------------------------------------------------


def test_a_finished_flush_has_made_durable_what_was_written_before() -> None:
    disk = FakeDisk()
    driver = Driver(Blk(disk))
    ask(driver, T_OUT, 0, b"a" * SECTOR)
    ask(driver, T_WRITE_ZEROES, data=SEGMENT.pack(1, 1, 0))
    assert disk.durable == PLAIN
    for request in (header(T_OUT, 2) + b"b" * SECTOR, header(T_FLUSH), header(T_OUT, 3) + b"c" * SECTOR):
        driver.rings[0].send([request], [1])
    driver.notify(0)
    assert [used.data for used in driver.used(0)] == [bytes((S_OK,))] * 3
    assert disk.durable == b"a" * SECTOR + bytes(SECTOR) + b"b" * SECTOR + PLAIN[3 * SECTOR :]


@pytest.mark.parametrize(
    ("kind", "data"), [(T_OUT, b"a" * SECTOR), (T_WRITE_ZEROES, SEGMENT.pack(0, 1, 0))], ids=["write", "zeroes"]
)
def test_without_the_flush_feature_each_write_is_durable_when_it_is_finished(kind: int, data: bytes) -> None:
    disk = FakeDisk()
    driver = Driver(Blk(disk), features=EVERYTHING & ~F_FLUSH)
    assert ask(driver, kind, 0, data)[0] == S_OK
    assert disk.durable == disk.data != PLAIN


def test_a_flush_that_fails_is_told() -> None:
    disk = FakeDisk()
    driver = Driver(Blk(disk))
    disk.error = OSError(errno.EIO, "")
    assert ask(driver, T_FLUSH)[0] == S_IOERR


# --- configuration --------------------------------------------------------------------------------------------------


def test_capacity_and_limits() -> None:
    blk = Blk(FakeDisk())
    assert blk.read_config(0, 8) == SECTORS
    assert blk.read_config(8, 4) == SIZE_MAX
    assert blk.read_config(12, 4) == 126
    assert blk.read_config(20, 4) == 512
    assert [blk.read_config(at, 4) for at in (36, 40, 44)] == [DISCARD_SECTORS, DISCARD_SEGMENTS, 8]
    assert [blk.read_config(at, 4) for at in (48, 52)] == [ZEROES_SECTORS, 1]
    assert blk.read_config(56, 1) == 1


def test_configuration_ends() -> None:
    blk = Blk(FakeDisk())
    assert blk.read_config(60, 4) == blk.read_config(4096, 8) == 0
    blk.write_config(0, 8, 12345)
    assert blk.read_config(0, 8) == SECTORS


def test_a_read_only_disk_says_so() -> None:
    assert Blk(FakeDisk(read_only=True)).features & (F_RO | F_DISCARD | F_WRITE_ZEROES) == F_RO
    assert Blk(FakeDisk()).features & (F_RO | F_DISCARD | F_WRITE_ZEROES) == F_DISCARD | F_WRITE_ZEROES


# --- what is refused ------------------------------------------------------------------------------------------------

BEYOND = [(SECTORS, 1), (SECTORS - 1, 2), (2**55, 1), (2**64 - 1, 1), (2**64 - 1, 2)]


@pytest.mark.parametrize(("sector", "sectors"), BEYOND)
@pytest.mark.parametrize("kind", [T_IN, T_OUT, T_DISCARD, T_WRITE_ZEROES])
def test_what_is_not_on_the_disk(kind: int, sector: int, sectors: int) -> None:
    disk = FakeDisk()
    driver = Driver(Blk(disk))
    if kind == T_IN:
        status, _ = ask(driver, kind, sector, room=sectors * SECTOR)
    elif kind == T_OUT:
        status, _ = ask(driver, kind, sector, b"x" * sectors * SECTOR)
    else:
        status, _ = ask(driver, kind, 0, SEGMENT.pack(0, 1, 0) * (kind == T_DISCARD) + SEGMENT.pack(sector, sectors, 0))
    assert status == S_IOERR
    assert disk.asked == []


def test_nothing_of_a_refused_read_is_stored() -> None:
    status, data = ask(Driver(Blk(FakeDisk())), T_IN, SECTORS, room=SECTOR)
    assert (status, set(data)) == (S_IOERR, {0xA5})


@pytest.mark.parametrize("size", [1, 511, 513])
def test_parts_of_sectors(size: int) -> None:
    disk = FakeDisk()
    driver = Driver(Blk(disk))
    assert ask(driver, T_IN, 0, room=size)[0] == S_IOERR
    assert ask(driver, T_OUT, 0, b"x" * size)[0] == S_IOERR
    assert disk.asked == []


@pytest.mark.parametrize("kind", [2, 3, 5, 9, 10, 12, 14, 0x8000_0000, 0xFFFF_FFFF])
def test_unknown_requests(kind: int) -> None:
    assert ask(Driver(Blk(FakeDisk())), kind, 0, b"x" * SECTOR, SECTOR)[0] == S_UNSUPP


@pytest.mark.parametrize(("kind", "feature"), [(T_DISCARD, F_DISCARD), (T_WRITE_ZEROES, F_WRITE_ZEROES)])
def test_requests_that_were_not_agreed_on(kind: int, feature: int) -> None:
    disk = FakeDisk()
    driver = Driver(Blk(disk), features=EVERYTHING & ~feature)
    assert ask(driver, kind, 0, SEGMENT.pack(0, 1, 0))[0] == S_UNSUPP
    assert disk.asked == []


@pytest.mark.parametrize(("kind", "flags"), [(T_DISCARD, SEGMENT_UNMAP), (T_DISCARD, 2), (T_WRITE_ZEROES, 2)])
def test_flags_that_a_range_cannot_have(kind: int, flags: int) -> None:
    disk = FakeDisk()
    assert ask(Driver(Blk(disk)), kind, 0, SEGMENT.pack(0, 1, flags))[0] == S_UNSUPP
    assert disk.asked == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (T_DISCARD, b""), (T_WRITE_ZEROES, b""), (T_DISCARD, bytes(15)), (T_DISCARD, bytes(17)),
        (T_DISCARD, SEGMENT.pack(0, 1, 0) * (DISCARD_SEGMENTS + 1)), (T_WRITE_ZEROES, SEGMENT.pack(0, 1, 0) * 2),
    ],
)
def test_ranges_that_are_none_or_too_many(kind: int, data: bytes) -> None:
    disk = FakeDisk()
    assert ask(Driver(Blk(disk)), kind, 0, data)[0] == S_IOERR
    assert disk.asked == []


@pytest.mark.parametrize(("kind", "most"), [(T_DISCARD, DISCARD_SECTORS), (T_WRITE_ZEROES, ZEROES_SECTORS)])
def test_a_range_longer_than_the_device_said(tmp_path: Path, kind: int, most: int) -> None:
    path = tmp_path / "big.img"
    path.touch()
    os.truncate(path, 1 << 30)
    blk = Blk(Overlay(Image(path, read_only=True)))
    driver = Driver(blk)
    assert ask(driver, kind, 0, SEGMENT.pack(0, most, 0))[0] == S_OK
    assert ask(driver, kind, 0, SEGMENT.pack(0, most + 1, 0))[0] == S_IOERR
    blk.close()


def test_more_data_than_the_device_said_is_not_transferred() -> None:
    """Descriptors may all name the same memory: the guest's size is no bound."""
    disk = FakeDisk(bytes(2 * MOST_DATA))
    driver = Driver(Blk(disk), size=128)
    ring, memory = driver.rings[0], driver.memory
    request, data = memory.allocate(16), memory.allocate(SIZE_MAX * 2)
    for room, status in ((SIZE_MAX, S_OK), (SIZE_MAX + SECTOR, S_IOERR)):
        memory.poke(request, header(T_IN))
        ring.describe(0, request, 16, flags=1, following=1)
        for slot in range(1, 127):
            ring.describe(slot, data, room, flags=3, following=slot + 1)
        ring.describe(127, data + 2 * SIZE_MAX - 1, 1, flags=2)
        ring.offer(0)
        driver.notify(0)
        assert memory.read(data + 2 * SIZE_MAX - 1, 1) == bytes((status,))
    assert disk.asked == ["read"]


@pytest.mark.parametrize("kind", [T_OUT, T_DISCARD, T_WRITE_ZEROES])
def test_a_read_only_disk_is_not_written(kind: int) -> None:
    disk = FakeDisk(read_only=True)
    data = b"x" * SECTOR if kind == T_OUT else SEGMENT.pack(0, 1, 0)
    assert ask(Driver(Blk(disk)), kind, 0, data)[0] in (S_IOERR, S_UNSUPP)
    assert disk.asked == []


@pytest.mark.parametrize(
    ("readable", "writable"),
    [([], [513]), ([header(T_IN)[:15]], [513]), ([header(T_FLUSH)], []), ([header(T_OUT) + bytes(512)], [])],
)
def test_chains_that_are_no_request_stop_the_device(readable: list[bytes], writable: list[int]) -> None:
    disk = FakeDisk()
    driver = Driver(Blk(disk))
    driver.send(0, readable, writable)
    assert driver.failure is not None
    assert driver.used(0) == []
    assert disk.asked == []


def test_requests_that_make_requests_come_to_an_end() -> None:
    """A sector read over the ring makes a request available that reads the next such sector, and so on."""
    entries = 16
    disk = FakeDisk()
    driver = Driver(Blk(disk), size=entries)
    ring, memory = driver.rings[0], driver.memory
    request, status = memory.allocate(16), memory.allocate(1)
    memory.poke(request, header(T_IN))

    def read(offset: int, views: Sequence[memoryview], /) -> None:
        disk.asked.append("read")
        assert len(disk.asked) <= 1000, "served without an end"
        views[0][2:4] = (len(disk.asked) + 1 & 0xFFFF).to_bytes(2, "little")

    disk.read = read                    # type: ignore[method-assign]
    ring.describe(0, request, 16, flags=1, following=1)
    ring.describe(1, ring.driver, 512, flags=3, following=2)
    ring.describe(2, status, 1, flags=2)
    ring.offer(0)
    driver.notify(0)
    assert driver.failure is not None
    assert len(disk.asked) == 1


def test_a_full_queue_is_served_in_one_go() -> None:
    driver = Driver(Blk(FakeDisk()), size=16)
    for _ in range(16):
        driver.rings[0].send([header(T_IN)], [512, 1], indirect=True)
    driver.notify(0)
    assert driver.failure is None
    assert len(driver.used(0)) == 16
    assert ask(driver, T_IN, 0, room=SECTOR) == (S_OK, PLAIN[:SECTOR])


def test_what_was_served_before_a_bad_chain_is_told() -> None:
    driver = Driver(Blk(FakeDisk()))
    driver.rings[0].send([header(T_IN)], [512, 1])
    driver.rings[0].send([b"bad"], [1])
    driver.notify(0)
    assert driver.failure is not None
    assert driver.interrupts == [1]
    assert [used.data for used in driver.used(0)] == [PLAIN[:SECTOR] + b"\0"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_errors_of_the_host_are_told_to_the_guest_and_logged_once(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FakeDisk()
    driver = Driver(Blk(disk, "data"))
    disk.error = OSError(number, "")
    for _ in range(3):
        assert ask(driver, T_OUT, 0, b"x" * SECTOR)[0] == S_IOERR
        assert ask(driver, T_IN, 0, room=SECTOR)[0] == S_IOERR
        assert ask(driver, T_DISCARD, 0, SEGMENT.pack(0, 1, 0))[0] == S_IOERR
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("devices.virtio.blk", logging.WARNING)
    assert os.strerror(number) in record.getMessage() and "disk data" in record.getMessage()
    disk.error = None
    assert ask(driver, T_IN, 0, room=SECTOR) == (S_OK, PLAIN[:SECTOR])


# --- its life -------------------------------------------------------------------------------------------------------


def test_after_a_reset_nothing_is_touched_until_the_driver_is_back() -> None:
    disk = FakeDisk()
    blk = Blk(disk)
    driver = Driver(blk)
    blk.reset()
    driver.send(0, [header(T_OUT), b"x" * SECTOR], [1])
    assert disk.asked == []
    assert ask(Driver(blk), T_IN, 0, room=SECTOR) == (S_OK, PLAIN[:SECTOR])


def test_a_restored_device_goes_on_with_the_queue() -> None:
    blk = Blk(FakeDisk())
    before = Driver(blk)
    ask(before, T_OUT, 0, b"x" * SECTOR)
    restored = Blk(FakeDisk(), state=blk.save())
    assert restored.save() == blk.save()
    assert ask(Driver(restored, continues=before), T_IN, 0, room=SECTOR) == (S_OK, PLAIN[:SECTOR])


@pytest.mark.parametrize("disk", [FakeDisk(PLAIN + PLAIN), FakeDisk(read_only=True)])
def test_a_restored_device_does_not_go_on_with_another_disk(disk: FakeDisk) -> None:
    with pytest.raises(DiskError, match="the disk was 32768 bytes and is"):
        Blk(disk, state=Blk(FakeDisk()).save())


def test_closing_closes_the_disk_whatever_the_host_says(caplog: pytest.LogCaptureFixture) -> None:
    disk = FakeDisk()
    blk = Blk(disk)
    disk.error = OSError(errno.ENOSPC, "")
    blk.close()
    assert disk.asked == ["close"]
    assert len(caplog.records) == 1


def test_no_view_of_guest_memory_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(PLAIN)
    blk = Blk(Overlay(Image(path, read_only=True)))
    driver = Driver(blk)
    ask(driver, T_OUT, 0, b"x" * SECTOR)
    ask(driver, T_IN, 0, room=SECTOR)
    driver.send(0, [header(T_IN, SECTORS)], [512, 1])
    driver.send(0, [b"bad"], [1])
    assert driver.failure
    driver.failure = None
    for queue in driver.queues:
        queue.release()
    driver.memory.close()
    blk.close()


# --- hostile drivers ------------------------------------------------------------------------------------------------

KNOWN = T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES
KINDS = st.sampled_from([*KNOWN * 3, 2, 3, 1 << 31, (1 << 32) - 1])
EDGES = 0, 1, 7, 8, 9, SECTORS - 2, SECTORS - 1, SECTORS, 1 << 31, (1 << 32) - 1
SECTOR_NUMBERS = st.sampled_from([*EDGES, 1 << 55, (1 << 64) - 1])
RANGES = st.builds(SEGMENT.pack, SECTOR_NUMBERS, st.sampled_from(EDGES), st.sampled_from([0, 0, 0, 1, 2, 1 << 31]))
PAYLOADS = st.one_of(
    st.lists(RANGES, max_size=3).map(b"".join),
    st.sampled_from([b"", b"w" * SECTOR, b"w" * 3 * SECTOR, b"w" * 8 * SECTOR, b"w" * 100]),
    st.binary(max_size=40),
)
FRAMES = st.one_of(
    st.builds(lambda kind, sector, payload: header(kind, sector) + payload, KINDS, SECTOR_NUMBERS, PAYLOADS),
    st.binary(max_size=40),
)
ROOMS = st.one_of(
    st.sampled_from([[1], [1], [512, 1], [1024, 1], [20, 1], [513]]), st.lists(st.integers(1, 1500), max_size=3)
)
CUTS = st.sampled_from([[], [], [16], [1], [15, 17], [16, 100, 528]])


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in itertools.pairwise(edges)] or [b""]


def test_no_request_escapes_as_an_exception_or_reaches_beyond_the_disk(tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(PLAIN)
    blk = Blk(Overlay(Image(base, read_only=True)))
    read_only = Blk(Image(base, read_only=True))

    @settings(
        max_examples=int(os.environ.get("EMU_FUZZ_EXAMPLES", "500")), deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        which=st.integers(0, 1), frame=FRAMES, rooms=ROOMS, cuts=CUTS, indirect=st.booleans(),
    )
    def serve(which: int, frame: bytes, rooms: list[int], cuts: list[int], indirect: bool) -> None:
        driver = Driver((blk, read_only)[which], memory=FakeMemory(32 << 10))
        driver.send(0, pieces(frame, cuts), rooms, indirect)
        if len(frame) < 16 or not rooms:
            assert driver.failure is not None
            return
        assert driver.failure is None
        (used,) = driver.used(0)
        assert used.written == sum(rooms)
        assert used.data[-1] in (S_OK, S_IOERR, S_UNSUPP)

    serve()
    assert base.read_bytes() == PLAIN
    for device in blk, read_only:
        device.close()
