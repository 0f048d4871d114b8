"""The host's cost of one read over 9p: the devices of a whole machine, a driver in Python, and no CPU that runs.

What is timed is the store to the notification register, as the CPU hands it over: buses, PCI, the virtqueue, the
9p server, pread(2) into the guest's memory, the used ring, and the message signalled interrupt.
"""

from __future__ import annotations

import statistics
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.p9 import messages
from devices.p9.files import READ_DATA
from devices.pci_function import COMMAND
from devices.virtio import common_config as common
from devices.virtio.p9 import Virtio9p
from devices.virtio.pci import COMMON_PAGE, MSIX_PAGE, NOTIFY_PAGE, VERSION_1
from devices.virtio.queue import DESCRIPTOR, F_INDIRECT, F_NEXT, F_WRITE, RING_FEATURES
from emu.fittings import Fittings, Share
from emu.machine import Machine
from emu.memory import MIB

__all__ = ["READ_SIZE", "Outliers", "Reader", "outliers"]

READ_SIZE = 4096
LONGEST_REPLY = 256                     # to what is asked here, other than a read
MSIZE = 8192
QUEUE_SIZE = 128
ROOT_FID, FILE_FID, TAG = 0, 1, 0
USER_OF_NAMES = 0xFFFF_FFFF             # n_uname where the name says who attaches

MEMORY_AND_BUS_MASTER = 6               # PCI command register
MSIX_ENABLE = 1 << 15                   # message control
MSI_ADDRESS, MSI_DATA = 0xFEE0_0000, 0x41

# Guest-physical places of the driver's things
DESCRIPTORS, DRIVER_AREA, DEVICE_AREA, TABLE = 0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000
REQUEST, REPLY, DATA = 0x10_4000, 0x10_5000, 0x10_8000
USED_EVENT = DRIVER_AREA + 4 + 2 * QUEUE_SIZE
INDEX = 2                               # offset of the index in both areas


class Reader:
    """A machine that shares one directory, and as much of a driver as reads one file in it.

    Args:
        file: what is read from its start; it has at least `READ_SIZE` bytes.
    """

    def __init__(self, file: Path) -> None:
        self._machine = Machine(64 * MIB, Fittings({"data": Share(file.parent)}))
        self._memory = self._machine.memory
        self._store = self._machine.board.mmio.write
        (self._function,) = (each for each in self._machine.board.virtio if isinstance(each.device, Virtio9p))
        self._available = 0
        self._start()
        self._attach(file)

    def _start(self) -> None:
        """Bring the device up as Linux' driver does, with MSI-X."""
        function = self._function
        function.config_write(COMMAND, 2, MEMORY_AND_BUS_MASTER)
        function.config_write(function.capability_offsets[0] + 2, 2, MSIX_ENABLE)
        bar = function.bar_address(function.bars[0])
        self._notification = bar + NOTIFY_PAGE
        for offset, value in (16, MSI_ADDRESS), (20, 0), (24, MSI_DATA), (28, 0):
            self._store(bar + MSIX_PAGE + offset, 4, value)
        features = VERSION_1 | RING_FEATURES
        registers = [
            (common.DRIVER_FEATURE_SELECT, 4, 0), (common.DRIVER_FEATURE, 4, features & 0xFFFF_FFFF),
            (common.DRIVER_FEATURE_SELECT, 4, 1), (common.DRIVER_FEATURE, 4, features >> 32),
            (common.DEVICE_STATUS, 1, common.ACKNOWLEDGE | common.DRIVER | common.FEATURES_OK),
            (common.QUEUE_SELECT, 2, 0), (common.QUEUE_SIZE, 2, QUEUE_SIZE), (common.QUEUE_MSIX_VECTOR, 2, 1),
            (common.QUEUE_DESC, 4, DESCRIPTORS), (common.QUEUE_DRIVER, 4, DRIVER_AREA),
            (common.QUEUE_DEVICE, 4, DEVICE_AREA), (common.QUEUE_ENABLE, 2, 1),
            (common.DEVICE_STATUS, 1, common.DRIVER_OK),
        ]
        for offset, size, value in registers:
            self._store(bar + COMMON_PAGE + offset, size, value)

    def _attach(self, file: Path) -> None:
        version = messages.VERSION
        self._ask(messages.Tversion(MSIZE, version))
        self._ask(messages.Tattach(ROOT_FID, messages.NO_FID, b"", b"", USER_OF_NAMES))
        self._ask(messages.Twalk(ROOT_FID, FILE_FID, (file.name.encode(),)))
        self._ask(messages.Tlopen(FILE_FID, 0))

    def _ask(self, request: Any) -> bytes:
        """Send a request and return the reply's first bytes.

        Raises:
            AssertionError: it is refused, or not answered at once.
        """
        type_ = messages.TYPE_OF[type(request)]
        self._prepare(messages.encode(type_, TAG, request))
        self._notify()
        reply = self._memory.read(REPLY, messages.HEADER.size)
        assert self._used == self._available and reply[4] == type_ + 1, f"{request} is answered by {reply!r}"
        return reply

    def _prepare(self, frame: bytes) -> None:
        """Lay a request out as Linux does: its frame, room for the reply's header, a page for data behind it."""
        header = READ_DATA if frame[4] == messages.TYPE_OF[messages.Tread] else LONGEST_REPLY
        chain = [
            (REQUEST, len(frame), F_NEXT, 1),
            (REPLY, header, F_NEXT | F_WRITE, 2),
            (DATA, READ_SIZE, F_WRITE, 0),
        ]
        self._memory.write(REQUEST, frame)
        self._memory.write(TABLE, b"".join(DESCRIPTOR.pack(*descriptor) for descriptor in chain))
        self._memory.write(DESCRIPTORS, DESCRIPTOR.pack(TABLE, len(chain) * DESCRIPTOR.size, F_INDIRECT, 0))

    def _notify(self) -> int:
        """Make the chain available once more and notify; nanoseconds that the notification took."""
        self._memory.write(USED_EVENT, struct.pack("<H", self._available))
        self._available = (self._available + 1) & 0xFFFF
        self._memory.write(DRIVER_AREA + INDEX, struct.pack("<H", self._available))     # the ring names descriptor 0
        store, notification = self._store, self._notification
        started = time.perf_counter_ns()
        store(notification, 2, 0)
        return time.perf_counter_ns() - started

    @property
    def _used(self) -> int:
        return int.from_bytes(self._memory.read(DEVICE_AREA + INDEX, 2), "little")

    def microseconds(self, count: int) -> float:
        """Read the file's first page so many times; the median in microseconds, which a preemption does not move.

        Raises:
            AssertionError: a read was not answered.
        """
        return statistics.median(self.read_again(count)) / 1000

    def read_again(self, count: int) -> list[int]:
        """Read the file's first page so many times; nanoseconds of each.

        Raises:
            AssertionError: a read was not answered.
        """
        self._prepare(messages.encode(messages.TYPE_OF[messages.Tread], TAG, messages.Tread(FILE_FID, 0, READ_SIZE)))
        self._memory.write(DATA, bytes(READ_SIZE))
        spent_ns = [self._notify() for _ in range(count)]
        assert self._used == self._available, "a read was not answered"
        return spent_ns

    def data(self) -> bytes:
        """What was read last."""
        return self._memory.read(DATA, READ_SIZE)

    def close(self) -> None:
        """End the machine."""
        self._machine.close()


@dataclass(frozen=True)
class Outliers:
    """How many of some samples lie far outside the middle half (Tukey's fences), and the highest of all."""

    count: int
    highest: float


def outliers(samples: Sequence[float]) -> Outliers:
    """Count the samples more than 1.5 times the middle half's width away from it."""
    lower, _, upper = statistics.quantiles(samples, n=4)
    margin = 1.5 * (upper - lower)
    return Outliers(sum(not lower - margin <= sample <= upper + margin for sample in samples), max(samples))
