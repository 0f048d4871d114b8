"""Rubbish in rings and registers: queues against a model of the specification, and the whole transport.

EMU_FUZZ_EXAMPLES sets the number of inputs of each test.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.virtio.device import BadRequest
from devices.virtio.queue import EVENT_IDX, INDIRECT_DESC, RING_FEATURES, Chain, Queue, QueueState
from tests.devices.virtio.driver import BASE, VERSION_1, DriverQueue, FakeMemory
from tests.devices.virtio.pci_driver import COMMON, DEVICE, ISR, NOTIFY, WINDOW, Echo, Machine

EXAMPLES = int(os.environ.get("EMU_FUZZ_EXAMPLES", "100"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

T = TypeVar("T")

SIZE = 0x800                            # of memory
RINGS = BASE, BASE + 0x80, BASE + 0xA0  # descriptors, driver area, device area of a queue of up to 8
TABLE = BASE + 0x100                    # where an indirect table may be
NEXT, WRITE, INDIRECT = 1, 2, 4

FLAGS = 0, NEXT, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT, 7, 0xFFF8, 0xFFFF
FOLLOWING = *range(1, 8), 1, 2, 3, 0, 8, 9, 0x100, 0xFFFF
ADDRESSES = (
    BASE, TABLE, TABLE, TABLE + 16, BASE + 0x400, BASE + SIZE - 1, BASE + SIZE, BASE - 1, 0, 1 << 63, (1 << 64) - 1,
)
LENGTHS = 0, 1, 2, 16, 32, 48, 160, 0x100, 0x3FF, 0x400, 24, SIZE, 0x7FFF_FFFF, 0xFFFF_FFFF


class Tape:
    """Decisions read off random bytes: one draw an input, which is much faster than a draw a decision."""

    def __init__(self, tape: bytes) -> None:
        self._bytes = iter(tape)

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1, at most 255; 0 once the tape has ended."""
        return next(self._bytes, 0) % limit

    def pick(self, choices: Sequence[T]) -> T:
        """One of these, the first once the tape has ended."""
        return choices[self.below(len(choices))]

    def number(self, size: int) -> int:
        """An integer of `size` bytes."""
        return int.from_bytes((self.below(256) for _ in range(size)), "little")

    def descriptor(self, index: int) -> tuple[int, int, int, int]:
        """The one at `index` of a table; seven of eight are likely to be in order."""
        if self.below(8):
            following = index + 1 if self.below(4) else self.below(8)
            kind = self.below(16)
            if kind < 3:
                return TABLE + 16 * kind, 16 * (1 + self.below(8)), INDIRECT, following
            writable = WRITE if index > 2 or kind == 3 else 0
            return TABLE + 0x200, self.pick((1, 8, 64)), writable | (NEXT if kind < 8 else 0), following
        return self.pick(ADDRESSES), self.pick(LENGTHS), self.pick(FLAGS), self.pick(FOLLOWING)


def tapes(size: int) -> st.SearchStrategy[Tape]:
    """Tapes of so many decisions."""
    return st.binary(min_size=size, max_size=size).map(Tape)


class Malformed(Exception):
    """The model's verdict on a chain."""


@dataclass(frozen=True)
class Model:
    """The rules of the specification, section 2.7, over a copy of memory."""

    ram: bytes
    size: int
    indirect: bool

    def _in_memory(self, address: int, length: int) -> bool:
        return BASE <= address and address + length <= BASE + len(self.ram)

    def _entry(self, table: int, index: int) -> tuple[int, int, int, int]:
        entry: tuple[int, int, int, int] = struct.unpack_from("<QIHH", self.ram, table - BASE + 16 * index)
        return entry

    def _buffers(self, table: int, entries: int, index: int, nested: bool) -> list[tuple[int, int, int]]:
        """(address, length, flags) of a chain, no further than one more than the queue has entries."""
        found: list[tuple[int, int, int]] = []
        for _ in range(self.size + 1):
            if index >= entries:
                raise Malformed
            address, length, flag, index = self._entry(table, index)
            if flag & INDIRECT:
                if nested or not self.indirect or flag & NEXT or length == 0 or length % 16:
                    raise Malformed
                if not self._in_memory(address, length):
                    raise Malformed
                return found + self._buffers(address, length // 16, 0, nested=True)
            found.append((address, length, flag))
            if not flag & NEXT:
                return found
        raise Malformed

    def chain(self, head: int) -> tuple[bytes, list[int]]:
        """What can be read, and the addresses of the bytes that can be written."""
        buffers = self._buffers(RINGS[0], self.size, head, nested=False)
        if len(buffers) > self.size:
            raise Malformed
        buffers = [buffer for buffer in buffers if buffer[1]]
        kinds = [flag & WRITE for _address, _length, flag in buffers]
        if kinds != sorted(kinds) or not all(self._in_memory(buffer[0], buffer[1]) for buffer in buffers):
            raise Malformed
        readable = [self.ram[a - BASE : a - BASE + length] for a, length, flag in buffers if not flag & WRITE]
        writable = [address for a, length, flag in buffers if flag & WRITE for address in range(a, a + length)]
        return b"".join(readable), writable


class Rubbish:
    """A queue full of it.

    Attributes:
        left: entries that are available, as far as the driver says.
    """

    def __init__(self, tape: Tape) -> None:
        self.memory = FakeMemory(SIZE)
        self.features = tape.pick((RING_FEATURES, RING_FEATURES, INDIRECT_DESC, EVENT_IDX, 0))
        self.size = tape.pick((2, 4, 8, 8))
        self.start = tape.pick((0, 0xFFFD))
        self.left = tape.pick((*range(1, self.size + 1), self.size, self.size, self.size + 1, 0x8000, 0xFFFF))
        heads = [tape.below(self.size) if tape.below(16) else tape.pick((8, 0xFFFF)) for _ in range(self.size)]
        self.available = struct.pack("<H", (self.start + self.left) & 0xFFFF)
        self._put(RINGS[0], [tape.descriptor(i) for i in range(self.size)])
        self._put(TABLE, [tape.descriptor(i) for i in range(10)])
        self.memory.poke(RINGS[1], b"\0\0" + self.available + struct.pack(f"<{self.size}H", *heads))
        state = QueueState(self.size, *RINGS, self.start, self.start, self.start)
        self.queue = Queue(0, self.memory, state, self.features, lambda: None)

    def _put(self, address: int, entries: list[tuple[int, int, int, int]]) -> None:
        self.memory.poke(address, b"".join(struct.pack("<QIHH", *entry) for entry in entries))

    def expected(self, taken: int) -> tuple[int, bytes, list[int]]:
        """Head, request and room of the next chain by the model."""
        if self.left - taken > self.size:
            raise Malformed
        slot = RINGS[1] + 4 + 2 * ((self.start + taken) % self.size)
        head = int.from_bytes(self.memory.read(slot, 2), "little")
        return head, *Model(bytes(self.memory.ram), self.size, bool(self.features & INDIRECT_DESC)).chain(head)


def _answer(memory: FakeMemory, queue: Queue, chain: Chain, writable: list[int], size: int) -> None:
    """Fill a chain, and see that the bytes are where the model says."""
    data = bytes(range(1, 1 + min(size, len(writable))))
    chain.write(data)
    for address, byte in dict(zip(writable, data, strict=False)).items():
        assert memory.read(address, 1)[0] == byte
    queue.push(chain, len(data))


@fuzz
@given(tapes(160))
def test_queue_agrees_with_the_model(tape: Tape) -> None:
    rubbish = Rubbish(tape)
    memory, queue = rubbish.memory, rubbish.queue
    taken = 0
    while rubbish.left > taken and memory.read(RINGS[1] + 2, 2) == rubbish.available:   # no answer was written there
        try:
            head, readable, writable = rubbish.expected(taken)
        except Malformed:
            with pytest.raises(BadRequest):
                queue.pop()
            break
        chain = queue.pop()
        assert chain is not None
        assert (chain.head, chain.read()) == (head, readable)
        assert (chain.readable_size, chain.writable_size) == (len(readable), len(writable))
        _answer(memory, queue, chain, writable, tape.below(6))
        taken += 1
    if rubbish.left == taken:
        assert queue.pop() is None
    queue.signal()
    assert queue.save().last_avail == (rubbish.start + taken) & 0xFFFF
    assert not memory.unreported()


FIELDS = (
    0, 4, 8, 0xC, 0x10, 0x12, 0x14, 0x14, 0x14, 0x15, 0x16, 0x16, 0x18, 0x1A, 0x1C, 0x1C, 0x1E, *range(0x20, 0x38, 4),
)
VALUES = (
    0, 0, 1, 1, 2, 3, 4, 8, 11, 15, 0x40, 0x80, 0xFF, 0xFFFF, 0xFFFF_FFFF, 1 << 28, 1 << 29, 0xBAD,
    BASE, BASE + 0x80, BASE + 0x1000, BASE + 0xFFF8, 0x8000, 0xC000, 0xE000_0000, (1 << 64) - 1,
)
KINDS = (
    "start", "msix", "store", "store", "store", "store", "load", "config", "window", "poke", "poke", "poke", "poke",
    "send", "send", "receive", "receive", "deliver", "deliver", "changed", "restore",
)


def _window(machine: Machine, offset: int, size: int, value: int) -> None:
    at = machine.caps[WINDOW]
    machine.set_config(at + 4, 1, value >> 40 & 1)
    machine.set_config(at + 8, 4, offset)
    machine.set_config(at + 12, 4, size)
    if value & 1:
        machine.set_config(at + 16, 4, value >> 1 & 0xFFFF_FFFF)
    else:
        machine.config(at + 16, 4)


class Refusing(Echo):
    """It goes on to take requests when it needs a reset."""

    refuses = True

    def refuse_all(self, index: int) -> None:
        queue = self.queues[index]
        assert queue is not None
        for _ in range(queue.size):
            try:
                if chain := queue.pop():
                    queue.push(chain, 0)
            except BadRequest:
                queue.skip()
        queue.signal()


def _restore(machine: Machine) -> Machine:
    state = machine.function.save()
    kind = type(machine.function.device)
    assert issubclass(kind, Echo)
    copy = Machine(kind(machine.function.device.save()), machine.memory, state)
    assert copy.function.save() == state
    assert copy.line.level == machine.line.level
    machine.function.close()
    copy.structures, copy.caps, copy.rings = machine.structures, machine.caps, machine.rings
    return copy


def _act(machine: Machine, kind: str, value: int) -> None:
    device = machine.function.device
    assert isinstance(device, Echo)
    if kind in ("start", "msix"):
        machine.set_config(0x10, 4, 0xC000_0000)
        machine.start(VERSION_1 | value & RING_FEATURES, kind == "msix")
    elif kind == "send" and machine.rings and machine.rings[0]._free:
        machine.rings[0].send([b"text"][: value & 1], [64][: 1 - (value & 1)])
        machine.notify(0)
    elif kind == "receive" and machine.rings and machine.rings[1]._free:
        machine.rings[1].send([], [8])
    elif kind == "deliver":
        device.deliver(b"data")
    elif kind == "changed":
        machine.function.config_changed()


def _access(machine: Machine, tape: Tape, kind: str) -> None:
    structure, size = tape.pick((COMMON, COMMON, COMMON, NOTIFY, ISR, DEVICE)), tape.pick((1, 2, 2, 4, 4, 8))
    value = (tape.pick(VALUES) if tape.below(3) else tape.number(size)) & (1 << 8 * size) - 1
    offset = tape.pick(FIELDS) if tape.below(4) else tape.number(2) & 0xFFF
    if kind == "store":
        machine.store(structure, offset, size, value)
    elif kind == "load":
        assert 0 <= machine.load(structure, offset, size) < 1 << 8 * size
    elif kind == "window":
        _window(machine, tape.number(2), size, value)
    elif kind == "poke":
        ring = tape.pick(machine.rings or [DriverQueue(machine.memory, 2)])
        area = tape.pick((ring.descriptors, ring.driver, ring.driver, ring.device))
        machine.memory.poke(area + offset % 64, value.to_bytes(size, "little"))
        machine.notify(tape.below(2))
    elif size < 8:
        machine.set_config(offset & 0xFF, size, value)
        assert 0 <= machine.config(offset & 0xFF, size) < 1 << 8 * size


@pytest.mark.parametrize("kind_of_device", [Echo, Refusing])
@fuzz
@given(tape=tapes(200))
def test_nothing_escapes_the_transport(kind_of_device: type[Echo], tape: Tape) -> None:
    machine = Machine(kind_of_device())
    machine.probe()
    for _ in range(25):
        kind = tape.pick(KINDS)
        if kind == "restore":
            machine = _restore(machine)
        elif kind in ("store", "load", "config", "window", "poke"):
            _access(machine, tape, kind)
        else:
            _act(machine, kind, tape.number(4))
        assert not machine.memory.unreported()
    machine.set_config(0x10, 4, 0xC000_0000)
    machine.set_config(0x14, 4, 0)
    machine.start()
    assert machine.echo(b"still works", indirect=True) == b"still works"
