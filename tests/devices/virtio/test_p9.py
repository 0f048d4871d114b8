"""The 9p device on a queue in guest memory."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices.p9 import messages as m
from devices.p9.codec import HEADER
from devices.p9.export import Export, ExportError
from devices.virtio.p9 import MOUNT_TAG, Virtio9p
from tests.devices.virtio.driver import Driver
from tests.devices.virtio.pci_driver import ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, Machine

PAGE = 4096
ROOT = 0
RUNNING = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK


def frame(request: Any, data: bytes = b"", tag: int = 1) -> bytes:
    """A message, with data behind it."""
    return m.encode(m.TYPE_OF[type(request)], tag, request, len(data)) + data


class Guest:
    """A driver that has mounted."""

    def __init__(self, device: Virtio9p) -> None:
        self.driver = Driver(device)
        self.ask(m.Tversion(64 << 10, m.VERSION))
        self.ask(m.Tattach(ROOT, m.NO_FID, b"", b"", 0))

    def ask(self, request: Any) -> Any:
        """Send a message; the reply."""
        reply = self.driver.request(0, [frame(request)], [PAGE])
        return m.decode(reply[4], reply)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory with a file of three pages and a bit."""
    (tmp_path / "file").write_bytes(bytes(range(256)) * 48 + b"end")
    return tmp_path


@pytest.fixture
def device(shared: Path) -> Virtio9p:
    return Virtio9p(Export(shared, "data"))


def test_the_configuration_is_the_mount_tag(device: Virtio9p) -> None:
    assert device.device_id == 9 and device.features == MOUNT_TAG == 1 and device.queue_sizes == (128,)
    assert device.read_config(0, 2) == 4
    assert bytes(device.read_config(2 + place, 1) for place in range(4)) == b"data"
    assert device.read_config(0, 8) == int.from_bytes(struct.pack("<H", 4) + b"data", "little")
    assert device.read_config(6, 4) == device.read_config(100, 1) == 0


def test_a_directory_that_cannot_be_shared_is_said_so(shared: Path) -> None:
    export = Export(shared, "data")
    shared.joinpath("file").unlink()
    shared.rmdir()
    with pytest.raises(ExportError):
        Virtio9p(export)


def test_a_file_is_read_into_the_driver_s_pages_and_written_from_them(shared: Path, device: Virtio9p) -> None:
    guest = Guest(device)
    guest.ask(m.Twalk(ROOT, 1, (b"file",)))
    guest.ask(m.Tlopen(1, os.O_RDWR))
    # As Linux does without copying: the header in one buffer, and the pages of the file's cache.
    reply = guest.driver.request(0, [frame(m.Tread(1, 0, 4 * PAGE))], [11, PAGE, PAGE, PAGE, PAGE])
    assert HEADER.unpack_from(reply)[0] == len(reply) and reply[11:] == (shared / "file").read_bytes()
    request = m.encode(118, 1, m.Twrite(1, 10, 2 * PAGE), 2 * PAGE)
    reply = guest.driver.request(0, [request, b"a" * PAGE, b"b" * PAGE], [PAGE])
    assert m.decode(119, reply).size == 2 * PAGE
    assert (shared / "file").read_bytes()[10 : 10 + 2 * PAGE] == b"a" * PAGE + b"b" * PAGE


def test_requests_made_together_are_answered_with_one_interrupt(device: Virtio9p) -> None:
    guest = Guest(device)
    before = guest.driver.interrupts[0]
    for tag in range(5):
        guest.driver.rings[0].send([frame(m.Tgetattr(ROOT, 0), tag=tag)], [PAGE])
    guest.driver.notify(0)
    assert [HEADER.unpack_from(used.data)[2] for used in guest.driver.used(0)] == [0, 1, 2, 3, 4]
    assert guest.driver.interrupts[0] == before + 1


@pytest.mark.parametrize(("readable", "writable"), [([b"1234"], [PAGE]), ([bytes(7)], [10]), ([bytes(7)], [])])
def test_what_cannot_even_be_told_an_error_stops_the_device(
    device: Virtio9p, readable: list[bytes], writable: list[int]
) -> None:
    guest = Guest(device)
    guest.driver.rings[0].send([frame(m.Tgetattr(ROOT, 0))], [PAGE])
    guest.driver.rings[0].send(readable, writable)
    guest.driver.notify(0)
    assert guest.driver.failure is not None
    assert len(guest.driver.used(0)) == 1           # what came before it was answered


def test_a_reset_forgets_fids(device: Virtio9p) -> None:
    guest = Guest(device)
    device.reset()
    guest.driver = Driver(device)
    assert isinstance(guest.ask(m.Tgetattr(ROOT, 0)), m.Rlerror)


def test_a_restored_device_answers_what_was_in_the_queue(shared: Path, device: Virtio9p) -> None:
    guest = Guest(device)
    guest.ask(m.Twalk(ROOT, 1, (b"file",)))
    guest.driver.rings[0].send([frame(m.Tgetattr(1, 0x7FF))], [PAGE])
    new = Virtio9p(Export(shared, "data"), device.save())
    assert new.save() == device.save()
    driver = Driver(new, continues=guest.driver)
    (used,) = driver.used(0)
    assert m.decode(25, used.data).size == (shared / "file").stat().st_size
    assert driver.interrupts == [1]


def test_a_bad_request_found_on_restore_stops_the_device(shared: Path, device: Virtio9p) -> None:
    guest = Guest(device)
    guest.driver.rings[0].send([b"bad"], [PAGE])
    assert Driver(Virtio9p(Export(shared, "data"), device.save()), continues=guest.driver).failure is not None


# --- when it needs a reset ----------------------------------------------------------------------------------------


class PciGuest:
    """A driver on PCI, of a device with a file open as fid 1."""

    def __init__(self, device: Virtio9p) -> None:
        self.machine = Machine(device).start()
        self.ask(m.Tversion(64 << 10, m.VERSION))
        self.ask(m.Tattach(ROOT, m.NO_FID, b"", b"", 0))
        self.ask(m.Twalk(ROOT, 1, (b"file",)))

    def send(self, request: Any, tag: int = 1) -> None:
        self.machine.rings[0].send([frame(request, tag=tag)], [PAGE])

    def ask(self, request: Any) -> Any:
        self.send(request)
        self.machine.notify(0)
        (used,) = self.machine.rings[0].used()
        return m.decode(used.data[4], used.data)

    def restored(self, device: Virtio9p) -> None:
        """Go on with another device, as after a restore."""
        old = self.machine
        self.machine = Machine(device, old.memory, old.function.save())
        self.machine.structures, self.machine.caps, self.machine.rings = old.structures, old.caps, old.rings


GETATTR, EIO = m.Tgetattr(1, 0x7FF), m.Rlerror(errno.EIO)


def break_by_message(guest: PciGuest) -> None:
    guest.machine.rings[0].send([b"bad"], [PAGE])
    guest.machine.notify(0)


def break_by_chain(guest: PciGuest) -> None:
    guest.machine.rings[0].describe(120, 0, 1)
    guest.machine.rings[0].offer(120)
    guest.machine.notify(0)
    guest.machine.rings[0].seen_used += 1       # what was no request is given back


def break_by_index(guest: PciGuest) -> None:
    available = guest.machine.rings[0].available
    guest.machine.rings[0].set_available(available + 1000)
    guest.machine.notify(0)
    guest.machine.rings[0].set_available(available)


Break = Callable[[PciGuest], None]
BREAKS = break_by_message, break_by_chain, break_by_index
breaks = pytest.mark.parametrize("break_it", BREAKS, ids=lambda one: one.__name__)


@breaks
def test_requests_are_refused_until_the_driver_starts_over(device: Virtio9p, break_it: Break) -> None:
    guest = PciGuest(device)
    break_it(guest)
    for _ in range(300):                        # more than the ring has entries
        assert guest.ask(GETATTR) == EIO
    assert guest.machine.status & NEEDS_RESET
    assert not guest.machine.memory.unreported()
    again = PciGuest(device)
    assert again.ask(GETATTR).size
    assert again.machine.status == RUNNING


@breaks
def test_a_device_restored_in_need_of_a_reset_refuses_what_waits_and_what_comes(
    device: Virtio9p, shared: Path, break_it: Break
) -> None:
    guest = PciGuest(device)
    break_it(guest)
    for tag in range(3):
        guest.send(GETATTR, tag)                # of which nobody has told the device
    guest.restored(Virtio9p(Export(shared, "data"), device.save()))
    guest.machine.function.kick_all()
    assert [(HEADER.unpack_from(used.data)[2], m.decode(used.data[4], used.data))
            for used in guest.machine.rings[0].used()] == [(tag, EIO) for tag in range(3)]
    assert guest.ask(GETATTR) == EIO
    assert guest.machine.status & NEEDS_RESET
    assert guest.machine.messages or guest.machine.line.level


def test_what_waits_behind_a_bad_request_is_refused_at_once(device: Virtio9p) -> None:
    guest = PciGuest(device)
    guest.send(m.Twalk(ROOT, 2, ()))
    guest.machine.rings[0].send([b"bad"], [PAGE])
    guest.send(GETATTR)
    guest.machine.notify(0)
    first, last = guest.machine.rings[0].used()
    assert isinstance(m.decode(first.data[4], first.data), m.Rwalk)
    assert m.decode(last.data[4], last.data) == EIO


def test_who_has_no_room_for_the_refusal_gets_none(device: Virtio9p) -> None:
    guest = PciGuest(device)
    break_by_message(guest)
    guest.machine.rings[0].send([frame(GETATTR)], [10])
    guest.machine.notify(0)
    (used,) = guest.machine.rings[0].used()
    assert used.written == 0


def test_closing_gives_descriptors_back(shared: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    device = Virtio9p(Export(shared, "data"))
    guest = Guest(device)
    guest.ask(m.Twalk(ROOT, 1, (b"file",)))
    guest.ask(m.Tlopen(1, 0))
    device.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    device.notify(0)
