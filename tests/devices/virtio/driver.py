"""The driver's side of virtio for tests: guest RAM that checks, virtqueues as a driver lays them out, a transport.

A device's test looks like this:

    driver = Driver(Rng(...))                       # negotiates everything offered, sets up all queues
    head = driver.send(0, [b"request"], [16])       # makes buffers available and notifies
    (used,) = driver.used(0)
    assert used == Used(head, 16, b"the answer's 16 b")
    assert driver.failure is None
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from devices import OutsideMemory
from devices.virtio.device import BadRequest, VirtioDevice
from devices.virtio.queue import EVENT_IDX, INDIRECT_DESC, RING_FEATURES, Queue, QueueState

__all__ = ["BASE", "EVERYTHING", "VERSION_1", "Driver", "DriverQueue", "FakeMemory", "Used", "pack_descriptor"]

VERSION_1 = 1 << 32
EVERYTHING = (1 << 64) - 1
F_NEXT, F_WRITE, F_INDIRECT = 1, 2, 4
BASE = 0x10_0000                    # so that address 0 is not RAM
CANARY = 0xA5


def pack_descriptor(address: int, length: int, flags: int, following: int) -> bytes:
    """A descriptor as it stands in memory."""
    return struct.pack("<QIHH", address, length, flags, following)


class FakeMemory:
    """Guest RAM from 0x100000; it notices host writes that were not reported.

    Attributes:
        base, size: guest-physical start and bytes.
        ram: its contents; a test changes them by `poke`.
        reported: (address, size) of what `write` and `written` were told, in order.
    """

    def __init__(self, size: int = 1 << 20, base: int = BASE) -> None:
        self.base = base
        self.size = size
        self.ram = bytearray([CANARY]) * size
        self.reported: list[tuple[int, int]] = []
        self._known = bytearray(self.ram)       # contents as far as the processor has been told
        self._view = memoryview(self.ram)
        self._free: dict[int, list[int]] = {}
        self._next = base

    def _offset(self, address: int, size: int) -> int:
        if size < 0 or address < self.base or address + size > self.base + self.size:
            raise OutsideMemory(f"{size} bytes at guest-physical {address:#x} are not RAM")
        return address - self.base

    def read(self, address: int, size: int) -> bytes:
        """Copy; also for tests."""
        offset = self._offset(address, size)
        return bytes(self.ram[offset : offset + size])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store as the host does."""
        offset = self._offset(address, len(data))
        self._view[offset : offset + len(data)] = data
        self.written(address, len(data))

    def view(self, address: int, size: int) -> memoryview:
        """The RAM itself."""
        offset = self._offset(address, size)
        return self._view[offset : offset + size]

    def written(self, address: int, size: int) -> None:
        """The host has stored something through a view."""
        offset = self._offset(address, size)
        self.reported.append((address, size))
        self._known[offset : offset + size] = self._view[offset : offset + size]

    def views(self, addresses: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
        """The RAM itself, many ranges of it."""
        return [self.view(address, size) for address, size in zip(addresses, sizes, strict=True)]

    def written_all(self, addresses: Sequence[int], sizes: Sequence[int]) -> None:
        """The host has stored something through many views."""
        for address, size in zip(addresses, sizes, strict=True):
            self.written(address, size)

    def poke(self, address: int, data: bytes) -> None:
        """Store as the guest does."""
        offset = self._offset(address, len(data))
        self._view[offset : offset + len(data)] = data
        self._known[offset : offset + len(data)] = data

    def unreported(self) -> list[int]:
        """Addresses the host changed through views without calling `written`; has to be empty."""
        if self.ram == self._known:
            return []
        return [self.base + i for i, (a, b) in enumerate(zip(self.ram, self._known, strict=True)) if a != b]

    def allocate(self, size: int, alignment: int = 16) -> int:
        """Address of a fresh, or freed, range."""
        if self._free.get(size):
            return self._free[size].pop()
        address = -(-self._next // alignment) * alignment
        self._offset(address, size)
        self._next = address + size
        return address

    def free(self, address: int, size: int) -> None:
        """Give a range back that `allocate` gave."""
        self._free.setdefault(size, []).append(address)

    def close(self) -> None:
        """What the machine does in the end; fails with BufferError while a device holds a view."""
        self._view.release()
        self.ram.clear()


@dataclass(frozen=True)
class Used:
    """A chain that came back.

    Attributes:
        id: head of the chain, as `send` returned it.
        written: bytes the device says it stored.
        data: the first `written` bytes of its writable buffers.
    """

    id: int
    written: int
    data: bytes


class DriverQueue:
    """One virtqueue, driver's side.

    Args:
        memory: where the rings and buffers are put.
        size: entries.
        features: VIRTIO_F_EVENT_IDX makes the driver write used_event, asking to hear of every used buffer.

    Attributes:
        descriptors, driver, device: addresses of the three areas.
    """

    def __init__(self, memory: FakeMemory, size: int = 16, features: int = RING_FEATURES) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = bool(features & EVENT_IDX)
        self.descriptors = self._zeroed(16 * size)
        self.driver = self._zeroed(6 + 2 * size)
        self.device = self._zeroed(6 + 8 * size)
        self.available = 0
        self.seen_used = 0
        self._free = list(range(size - 1, -1, -1))
        self._requests: dict[int, _Request] = {}

    def _zeroed(self, size: int) -> int:
        address = self.memory.allocate(size)
        self.memory.poke(address, bytes(size))
        return address

    @property
    def state(self) -> QueueState:
        """What the driver tells the device in the beginning."""
        return QueueState(self.size, self.descriptors, self.driver, self.device)

    def send(
        self, readable: Iterable[bytes] = (), writable: Iterable[int] = (), indirect: bool = False
    ) -> int:
        """Make a chain available, without a notification.

        Args:
            readable: contents of each buffer the device reads.
            writable: size of each buffer it fills; they hold 0xa5 before.
            indirect: put the descriptors into an indirect table.

        Returns:
            The chain's head.
        """
        request = _Request()
        for data in readable:
            address = self._buffer(request, bytes(data))
            request.descriptors.append((address, len(data), 0))
        for size in writable:
            address = self._buffer(request, bytes([CANARY]) * size)
            request.descriptors.append((address, size, F_WRITE))
            request.writable.append((address, size))
        chained = _chained(request.descriptors, range(1, len(request.descriptors)))
        if indirect:
            table = b"".join(chained)
            chained = [pack_descriptor(self._buffer(request, table), len(table), F_INDIRECT, 0)]
        request.slots = [self._free.pop() for _ in chained]
        if not indirect:
            chained = _chained(request.descriptors, request.slots[1:])
        for slot, descriptor in zip(request.slots, chained, strict=True):
            self.memory.poke(self.descriptors + 16 * slot, descriptor)
        self._requests[request.slots[0]] = request
        self.offer(request.slots[0])
        return request.slots[0]

    def _buffer(self, request: _Request, data: bytes) -> int:
        address = self.memory.allocate(len(data))
        self.memory.poke(address, data)
        request.buffers.append((address, len(data)))
        return address

    def offer(self, head: int) -> None:
        """Make the chain that begins at a descriptor available, whatever stands there."""
        self.memory.poke(self.driver + 4 + 2 * (self.available % self.size), struct.pack("<H", head & 0xFFFF))
        self.set_available(self.available + 1)

    def set_available(self, index: int) -> None:
        """Write the index of the driver area."""
        self.available = index & 0xFFFF
        self.memory.poke(self.driver + 2, struct.pack("<H", self.available))

    def describe(self, slot: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write a descriptor."""
        self.memory.poke(self.descriptors + 16 * slot, pack_descriptor(address, length, flags, following))

    @property
    def used_index(self) -> int:
        """Index of the device area."""
        return int.from_bytes(self.memory.read(self.device + 2, 2), "little")

    @property
    def wants_notification(self) -> bool:
        """Whether a driver that has just made one chain available has to notify."""
        if self.event_idx:
            event = int.from_bytes(self.memory.read(self.device + 4 + 8 * self.size, 2), "little")
            return event == (self.available - 1) & 0xFFFF
        return not self.memory.read(self.device, 1)[0] & 1

    def suppress(self, used_event: int) -> None:
        """With EVENT_IDX: interrupt only once the used entry of that index is filled."""
        self.memory.poke(self.driver + 4 + 2 * self.size, struct.pack("<H", used_event & 0xFFFF))

    def used(self) -> list[Used]:
        """The chains that came back since the last call; their buffers are freed."""
        found = []
        while self.seen_used != self.used_index:
            entry = self.memory.read(self.device + 4 + 8 * (self.seen_used % self.size), 8)
            head, written = struct.unpack("<II", entry)
            request = self._requests.pop(head)
            data = b"".join(self.memory.read(address, size) for address, size in request.writable)
            assert written <= len(data), "the device says it stored more than it was given room for"
            assert set(data[written:]) <= {CANARY}, "the device stored more than it says"
            found.append(Used(head, written, data[:written]))
            self._free.extend(request.slots)
            for address, size in request.buffers:
                self.memory.free(address, size)
            self.seen_used = (self.seen_used + 1) & 0xFFFF
        self.suppress(self.seen_used)
        return found


class _Request:
    """What the driver remembers of a chain."""

    def __init__(self) -> None:
        self.slots: list[int] = []
        self.descriptors: list[tuple[int, int, int]] = []
        self.writable: list[tuple[int, int]] = []
        self.buffers: list[tuple[int, int]] = []


def _chained(descriptors: list[tuple[int, int, int]], following: Iterable[int]) -> list[bytes]:
    """Descriptors as they stand in memory; `following` says where each but the first is."""
    links = [(F_NEXT, index) for index in following] + [(0, 0)]
    return [
        pack_descriptor(address, size, flags | link, index)
        for (address, size, flags), (link, index) in zip(descriptors, links, strict=True)
    ]


class Driver:
    """A device, its queues and its driver, without PCI: the transport in `devices.virtio.device`'s sense.

    Args:
        device: what is tested.
        features: what the driver accepts of what is offered.
        size: entries of each queue, at most what the device has.
        memory: guest RAM; 4 MiB of its own if None.
        continues: the driver of the device that was saved; its memory and queues go on where they are.

    Attributes:
        features: bits agreed on.
        rings: the queues, driver's side.
        interrupts: how often each queue has interrupted.
        config_changes: how often the device has said that its configuration is another one.
        failure: the first BadRequest; from then on nothing is asked of the device, as the transport does.
    """

    def __init__(
        self,
        device: VirtioDevice,
        features: int = EVERYTHING,
        size: int = 16,
        memory: FakeMemory | None = None,
        continues: Driver | None = None,
    ) -> None:
        self.device = device
        self.features = (device.features | VERSION_1 | RING_FEATURES) & features
        self.interrupts = [0] * len(device.queue_sizes)
        self.config_changes = 0
        self.failure: BadRequest | None = None
        self.memory: FakeMemory
        self.rings: list[DriverQueue]
        if continues:
            self.memory, self.rings = continues.memory, continues.rings
            states = [queue.save() for queue in continues.queues]
        else:
            self.memory = memory or FakeMemory(4 << 20)
            sizes = [min(size, most) for most in device.queue_sizes]
            self.rings = [DriverQueue(self.memory, entries, self.features) for entries in sizes]
            states = [ring.state for ring in self.rings]
        self.queues: list[Queue] = [
            Queue(index, self.memory, state, self.features, lambda index=index: self._interrupted(index))  # type: ignore[misc]
            for index, state in enumerate(states)
        ]
        device.transport = self
        device.activate(self.queues, self.features)
        if continues:
            self._kick_all()

    def _kick_all(self) -> None:
        """As the transport does after a restore: nobody notifies a device again of what is in its queues."""
        for index, queue in enumerate(self.queues):
            if not queue.empty:
                self.notify(index)

    def config_changed(self) -> None:
        """Transport: count it."""
        self.config_changes += 1

    def fail(self, error: BadRequest) -> None:
        """Transport: stop the queues."""
        self.failure = self.failure or error
        for queue in self.queues:
            queue.stop()

    def _interrupted(self, index: int) -> None:
        self.interrupts[index] += 1

    def notify(self, index: int) -> None:
        """Tell the device that there are buffers; a BadRequest becomes `failure`."""
        if self.failure:
            return
        try:
            self.device.notify(index)
        except BadRequest as error:
            self.fail(error)

    def send(
        self, index: int, readable: Iterable[bytes] = (), writable: Iterable[int] = (), indirect: bool | None = None
    ) -> int:
        """Make a chain available and notify if the device wants it; the chain's head.

        Args:
            index: of the queue.
            readable, writable: as `DriverQueue.send` takes them.
            indirect: None: as Linux does, where there is more than one buffer and it was agreed on.
        """
        readable, writable = list(readable), list(writable)
        if indirect is None:
            indirect = bool(self.features & INDIRECT_DESC) and len(readable) + len(writable) > 1
        head = self.rings[index].send(readable, writable, indirect)
        if self.rings[index].wants_notification:
            self.notify(index)
        return head

    def used(self, index: int) -> list[Used]:
        """The chains that came back since the last call; checks that the device reported what it stored."""
        assert not self.memory.unreported(), "bytes were stored without Memory.written"
        return self.rings[index].used()

    def request(self, index: int, readable: Iterable[bytes] = (), writable: Iterable[int] = ()) -> bytes:
        """Send one chain that the device answers at once; what it stored."""
        head = self.send(index, readable, writable)
        assert self.failure is None, self.failure
        (used,) = self.used(index)
        assert used.id == head
        return used.data
