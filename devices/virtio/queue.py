"""Split virtqueues (Virtual I/O Device specification 1.2, section 2.7), the device's side.

Everything in a ring is the driver's, and the driver is hostile: what is against the specification is `BadRequest`.
The emulated processor does not run while a device does, so no memory barrier is needed anywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from devices import Memory, OutsideMemory
from devices.frozen import frozen, replace
from devices.virtio.device import BadRequest

__all__ = ["EVENT_IDX", "INDIRECT_DESC", "LARGEST_QUEUE", "RING_FEATURES", "Chain", "Queue", "QueueState"]

INDIRECT_DESC = 1 << 28             # feature bits: VIRTIO_F_INDIRECT_DESC and VIRTIO_F_EVENT_IDX
EVENT_IDX = 1 << 29
RING_FEATURES = INDIRECT_DESC | EVENT_IDX

DESCRIPTOR = struct.Struct("<QIHH")             # address, length, flags, next
DESCRIPTOR_SIZE = DESCRIPTOR.size
F_NEXT, F_WRITE, F_INDIRECT = 1, 2, 4           # descriptor flags
F_NO_INTERRUPT = 1                              # flag in the driver area: the driver polls

FLAGS, INDEX, RING = range(3)                   # driver and device area, in 16-bit units; the ring is followed by
DRIVER_ENTRY, DEVICE_ENTRY = 1, 4               # its entries of these sizes, and they by the EVENT_IDX field
DEVICE_RING_32 = 1                              # where the device area's entries begin in 32-bit units

FEW, MANY = 4, 128                      # descriptors of an indirect table that may be taken at once
IN_ORDER = tuple(range(1, MANY))

LARGEST_QUEUE = 1 << 15
LONGEST_CHAIN = 1 << 32                         # bytes; a chain has fewer
WRAP = 0xFFFF                                   # ring indices are 16 bits wide and never reset


@frozen
class QueueState:
    """Where the driver put a queue, and how far it has been worked through.

    Attributes:
        size: entries.
        descriptors, driver, device: guest-physical addresses of the three areas.
        last_avail: index of the next available entry to take.
        next_used: index of the next used entry to fill.
        signalled_used: `next_used` when the driver was last told.
    """

    size: int
    descriptors: int = 0
    driver: int = 0
    device: int = 0
    last_avail: int = 0
    next_used: int = 0
    signalled_used: int = 0


@cache
def _table(entries: int) -> struct.Struct:
    """An indirect table of so many descriptors."""
    return struct.Struct("<" + "QIHH" * entries)


@cache
def _flags(readable: int, last: int) -> tuple[int, ...]:
    """Those of an indirect table that is used in order, up to the descriptor `last`."""
    return (F_NEXT,) * readable + (F_NEXT | F_WRITE,) * (last - readable) + (F_WRITE,)


class Chain:
    """One request: buffers in guest RAM that the device reads, then buffers that it fills.

    The driver can change their contents at any time the guest runs, and may let them overlap: read what is checked
    once, by `read`, and use the copy.

    Attributes:
        head: the descriptor that it is known by.
        readable, writable: the buffers in order, none of them empty.
        addresses, sizes: of the writable ones.
        readable_size, writable_size: bytes in them, below 2**32 together.
    """

    __slots__ = ("addresses", "head", "readable", "readable_size", "sizes", "writable", "writable_size")

    def __init__(
        self, head: int, readable: list[memoryview], writable: list[memoryview], addresses: Sequence[int],
        sizes: Sequence[int], readable_size: int, writable_size: int,
    ) -> None:  # fmt: skip
        self.head = head
        self.readable = readable
        self.writable = writable
        self.addresses = addresses
        self.sizes = sizes
        self.readable_size = readable_size
        self.writable_size = writable_size

    def read(self, size: int | None = None, offset: int = 0) -> bytes:
        """Copy of the readable part from `offset`, shorter than `size` where the part ends.

        A driver may offer 4 GiB: only ask for all of it where the size has been checked.
        """
        if size is None:
            size = self.readable_size
        first = self.readable[0] if self.readable else b""
        if offset + size <= len(first):
            return bytes(first[offset : offset + size])
        size = min(size, self.readable_size - offset)
        return b"".join(_cut(self.readable, self.readable_size, offset, size)) if size > 0 else b""

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Store bytes in the writable part from `offset`; how many.

        Raises:
            BadRequest: they do not fit; nothing has been stored.
        """
        size = len(data)
        if self.writable and offset + size <= len(self.writable[0]):
            self.writable[0][offset : offset + size] = data
            return size
        source, done = memoryview(data), 0
        for view in self.writable_views(offset, size):
            view[:] = source[done : done + len(view)]
            done += len(view)
        return size

    def readable_views(self, offset: int, size: int) -> list[memoryview]:
        """`size` bytes of the readable part from `offset`, in place.

        Raises:
            BadRequest: it is shorter.
        """
        if offset + size > self.readable_size:
            raise BadRequest(f"{size} bytes at {offset} wanted of a request of {self.readable_size}")
        return _cut(self.readable, self.readable_size, offset, size)

    def writable_views(self, offset: int, size: int) -> list[memoryview]:
        """`size` bytes of the writable part from `offset`, in place.

        Raises:
            BadRequest: it is shorter.
        """
        if offset + size > self.writable_size:
            raise BadRequest(f"{size} bytes at {offset} do not fit into the {self.writable_size} for the answer")
        return _cut(self.writable, self.writable_size, offset, size)


class Queue:
    """A virtqueue that the driver has set up; the rings stay mapped until `release`.

    Args:
        index: which of the device's queues it is.
        memory: guest RAM.
        state: where it is, and where to go on.
        features: the feature bits agreed on.
        interrupt: tells the driver that there are used buffers.

    Raises:
        BadRequest: its size is no power of two up to 32,768, or an area is misaligned or not in RAM.
    """

    def __init__(
        self, index: int, memory: Memory, state: QueueState, features: int, interrupt: Callable[[], None]
    ) -> None:
        self.index = index
        self.size = size = state.size
        self._state = state
        self._memory = memory
        self._interrupt = interrupt
        self._indirect = bool(features & INDIRECT_DESC)
        self._event_idx = bool(features & EVENT_IDX)
        self._last_avail = state.last_avail
        self._next_used = state.next_used
        self._signalled_used = state.signalled_used
        if not 0 < size <= LARGEST_QUEUE or size & (size - 1):
            raise BadRequest(f"queue {index}: size {size} is no power of two up to {LARGEST_QUEUE}")
        self._mask = size - 1
        self._used_event = RING + DRIVER_ENTRY * size
        self._avail_event = RING + DEVICE_ENTRY * size
        self._device_size = 2 * self._avail_event + 2
        self._descriptors = self._area("descriptors", state.descriptors, DESCRIPTOR_SIZE * size, 16)
        self._driver = self._area("driver area", state.driver, 2 * self._used_event + 2, 2).cast("H")
        device = self._area("device area", state.device, self._device_size, 4)
        self._device = device.cast("H")
        self._device_32 = device[: 2 * self._avail_event].cast("I")
        self._stopped = False

    def _area(self, name: str, address: int, size: int, alignment: int) -> memoryview:
        if address % alignment:
            raise BadRequest(f"queue {self.index}: {name} at {address:#x} is not aligned to {alignment}")
        try:
            return self._memory.view(address, size)
        except OutsideMemory as error:
            raise BadRequest(f"queue {self.index}: {name}: {error}") from None

    @property
    def empty(self) -> bool:
        """Whether no chain is available now; if so, the driver notifies when it makes one available."""
        if self._stopped:
            return True
        if self._driver[INDEX] != self._last_avail:
            return False
        self._want_notification()
        return True

    def pop(self) -> Chain | None:
        """Take the next available chain; None if there is none, and the driver notifies when it makes one available.

        Raises:
            BadRequest: the driver broke the specification; nothing has been taken.
        """
        if self._stopped:
            return None
        last = self._last_avail
        driver = self._driver
        available = driver[INDEX]
        if available == last:
            self._want_notification()
            return None
        if (available - last) & WRAP > self.size:
            raise BadRequest(f"queue {self.index}: index {available} is over {self.size} ahead of {last}")
        try:
            chain = self._walk(driver[RING + (last & self._mask)])
        except OutsideMemory as error:
            raise BadRequest(f"queue {self.index}: {error}") from None
        self._last_avail = (last + 1) & WRAP
        return chain

    def chains(self) -> Iterator[Chain]:
        """Take what is available now, one after another; to be given up early only for good reason.

        Raises:
            BadRequest: the driver broke the specification, for one by having the device write over the ring: with
                each request making the next one available that would go on for ever.
        """
        if self._stopped:
            return
        for _ in range((self._driver[INDEX] - self._last_avail) & WRAP):
            chain = self.pop()
            if chain is None:
                return
            yield chain
        if not self.empty:
            raise BadRequest(f"queue {self.index}: requests are made available by requests")

    def skip(self) -> None:
        """Put the next available chain back unread, which `pop` does not take; nothing if the ring itself is wrong.

        A byte is said to be in it: no driver takes that for an answer, nor waits for one any more.
        """
        last = self._last_avail
        if not self._stopped and 0 < (self._driver[INDEX] - last) & WRAP <= self.size:
            self._last_avail = (last + 1) & WRAP
            head = self._driver[RING + (last & self._mask)]
            if head < self.size:
                self.push(Chain(head, [], [], (), (), 0, 0), 1)

    def _walk(self, head: int) -> Chain:
        """Follow a chain, checking all of it."""
        table, entries, index, left = self._descriptors, self.size, head, self.size
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        addresses: list[int] = []
        readable_size = writable_size = 0
        view, unpack = self._memory.view, DESCRIPTOR.unpack_from
        flags = F_NEXT
        while flags & F_NEXT:
            if index >= entries:
                raise BadRequest(f"queue {self.index}: descriptor {index} of {entries}")
            address, length, flags, index = unpack(table, index * DESCRIPTOR_SIZE)
            if flags & F_INDIRECT:
                if table is not self._descriptors:
                    raise BadRequest(f"queue {self.index}: indirect descriptor in an indirect table")
                table, entries, index = self._indirect_table(address, length, flags), length // DESCRIPTOR_SIZE, 0
                if FEW < entries <= MANY and left == self.size and (chain := self._whole_table(head, table, entries)):
                    return chain
                flags = F_NEXT
                continue
            if not left:
                raise BadRequest(f"queue {self.index}: chain of more than {self.size} descriptors")
            left -= 1
            if not length:
                continue
            if flags & F_WRITE:
                writable.append(view(address, length))
                addresses.append(address)
                writable_size += length
            elif writable:
                raise BadRequest(f"queue {self.index}: readable descriptor after a writable one")
            else:
                readable.append(view(address, length))
                readable_size += length
        if readable_size + writable_size >= LONGEST_CHAIN:
            raise BadRequest(f"queue {self.index}: chain of {readable_size + writable_size} bytes")
        return Chain(head, readable, writable, addresses, [*map(len, writable)], readable_size, writable_size)

    def _whole_table(self, head: int, table: memoryview, entries: int) -> Chain | None:
        """The chain in an indirect table that is used up in order, as Linux lays it out, and is answered.

        Without a step in Python for each page; None if it is any other.
        """
        if entries > self.size:
            return None
        fields, last = _table(entries).unpack(table), entries - 1
        sizes, flags = fields[1::4], fields[2::4]
        readable, size = flags.count(F_NEXT), sum(sizes)
        if flags != _flags(readable, last) or fields[3:-1:4] != IN_ORDER[:last] or 0 in sizes or size >= LONGEST_CHAIN:
            return None
        addresses = fields[::4]
        views = self._memory.views(addresses, sizes)
        readable_size = sum(sizes[:readable])
        return Chain(
            head, views[:readable], views[readable:], addresses[readable:], sizes[readable:],
            readable_size, size - readable_size,
        )  # fmt: skip

    def _indirect_table(self, address: int, length: int, flags: int) -> memoryview:
        if not self._indirect:
            raise BadRequest(f"queue {self.index}: indirect descriptor without VIRTIO_F_INDIRECT_DESC")
        if flags & F_NEXT:
            raise BadRequest(f"queue {self.index}: indirect descriptor with a next one")
        if length % DESCRIPTOR_SIZE:         # an empty table has no first descriptor
            raise BadRequest(f"queue {self.index}: indirect table of {length} bytes")
        return self._memory.view(address, length)

    def _want_notification(self) -> None:
        """Without EVENT_IDX the driver always notifies: the device's flags stay 0."""
        if self._event_idx and self._device[self._avail_event] != self._last_avail:
            self._device[self._avail_event] = self._last_avail
            if self._next_used == self._signalled_used:     # else `signal` reports the whole area
                self._memory.written(self._state.device + 2 * self._avail_event, 2)

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back as used; the driver sees it at once but is told by `signal`.

        Args:
            chain: from `pop` of this queue.
            written: bytes of its writable part that were stored, from its start.
        """
        if self._stopped:
            return
        device, used = self._device_32, self._next_used
        entry = DEVICE_RING_32 + 2 * (used & self._mask)
        device[entry] = chain.head
        device[entry + 1] = written
        self._next_used = self._device[INDEX] = (used + 1) & WRAP
        if written == chain.writable_size and len(chain.addresses) > FEW:
            self._memory.written_all(chain.addresses, chain.sizes)
            return
        report = self._memory.written
        for address, size in zip(chain.addresses, chain.sizes, strict=True):
            if written <= 0:
                break
            report(address, min(size, written))
            written -= size

    def signal(self) -> None:
        """Interrupt the driver if it wants to hear of what was pushed; to be called once after a batch of `push`."""
        used, told = self._next_used, self._signalled_used
        if used == told or self._stopped:
            return
        self._report_used()
        if self._event_idx:
            wanted = (used - self._driver[self._used_event] - 1) & WRAP < (used - told) & WRAP
        else:
            wanted = not self._driver[FLAGS] & F_NO_INTERRUPT
        if wanted:
            self._interrupt()

    def stop(self) -> None:
        """The device has failed: the queue is empty and nothing is put into it until the driver has reset it."""
        self._report_used()
        self._stopped = True

    def _report_used(self) -> None:
        """What was stored in the device area since the last time."""
        if self._next_used != self._signalled_used:
            self._signalled_used = self._next_used
            self._memory.written(self._state.device, self._device_size)

    def save(self) -> QueueState:
        """The state to go on from."""
        return replace(
            self._state,
            last_avail=self._last_avail, next_used=self._next_used, signalled_used=self._signalled_used,
        )

    def release(self) -> None:
        """Stop, and let go of guest RAM."""
        self.stop()
        for view in self._descriptors, self._driver, self._device, self._device_32:
            view.release()


def _cut(views: Sequence[memoryview], whole: int, offset: int, size: int) -> list[memoryview]:
    """The part of the views' joint contents that begins at `offset`."""
    if views and offset == len(views[0]) and size == whole - offset:
        return list(views[1:])          # all behind a header in a buffer of its own, as Linux lays requests out
    parts = []
    for view in views:
        if size <= 0:
            break
        if offset < len(view):
            part = view[offset : offset + size]
            parts.append(part)
            size -= len(part)
            offset = 0
        else:
            offset -= len(view)
    return parts
