"""A driver of virtio-pci for tests: finds the structures as the specification says and goes through initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devices.pci import PciBus
from devices.virtio.device import BadRequest, VirtioDevice
from devices.virtio.pci import VirtioPci, VirtioPciState
from devices.virtio.queue import RING_FEATURES, Queue
from tests.devices.fakes import FakeLine
from tests.devices.virtio.driver import VERSION_1, DriverQueue, FakeMemory

__all__ = ["SLOT", "Echo", "EchoState", "Machine"]

SLOT = 3
COMMON, NOTIFY, ISR, DEVICE, WINDOW = range(1, 6)
CAP_VENDOR, CAP_MSIX = 0x09, 0x11
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64


@dataclass(frozen=True)
class EchoState:
    """The device's only register."""

    register: int = 0


class Echo(VirtioDevice):
    """Queue 0 sends each request back; queue 1's buffers wait for `deliver`; one 32-bit configuration register."""

    device_id = 42
    pci_class = 0x02_0000
    features = 0b101
    queue_sizes = (16, 8)

    def __init__(self, state: EchoState | None = None) -> None:
        self.register = (state or EchoState()).register
        self.queues: Sequence[Queue | None] = ()
        self.agreed = 0
        self.resets = 0
        self.activations = 0
        self.notifications = 0

    def read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.register.to_bytes(4, "little")[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        if value == 0xBAD:
            raise BadRequest("no such setting")
        if offset == 0 and size == 4:
            self.register = value

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        self.queues, self.agreed = queues, features
        self.activations += 1

    def notify(self, index: int) -> None:
        self.notifications += 1
        queue = self.queues[index]
        assert queue is not None
        if index == 0:
            while chain := queue.pop():
                queue.push(chain, chain.write(chain.read(64)) if chain.writable_size >= 64 else 0)
            queue.signal()

    def deliver(self, data: bytes) -> bool:
        """The host has something for queue 1; whether there was a buffer."""
        queue = self.queues[1] if self.queues else None
        try:
            chain = queue.pop() if queue else None
            if queue is None or chain is None:
                return False
            queue.push(chain, chain.write(data))
        except BadRequest as error:
            self.transport.fail(error)
            return False
        queue.signal()
        return True

    def reset(self) -> None:
        self.queues = ()
        self.resets += 1

    def save(self) -> EchoState:
        return EchoState(self.register)


class Machine:
    """A bus with one virtio function in slot 3, and its driver.

    Attributes:
        messages: (address, data) of each message signalled interrupt.
        structures: (offset in the BAR, length) by cfg_type, from `probe`.
        rings: the queues from `start`.
    """

    def __init__(
        self, device: VirtioDevice, memory: FakeMemory | None = None, state: VirtioPciState | None = None
    ) -> None:
        self.memory = memory or FakeMemory(1 << 16)
        self.line = FakeLine()
        self.messages: list[tuple[int, int]] = []
        self.function = VirtioPci(
            device, self.memory, self.line, lambda address, data: self.messages.append((address, data)), 11, state
        )
        self.bus = PciBus()
        self.bus.add(SLOT, self.function)
        self.structures: dict[int, tuple[int, int]] = {}
        self.caps: dict[int, int] = {}
        self.rings: list[DriverQueue] = []

    # -- configuration space -------------------------------------------------------------------------------------

    def config(self, register: int, size: int) -> int:
        """Read configuration space through the ports."""
        self.bus.write(0, 4, 0x8000_0000 | SLOT << 11 | (register & 0xFC))
        return self.bus.read(4 + (register & 3), size)

    def set_config(self, register: int, size: int, value: int) -> None:
        """Write it."""
        self.bus.write(0, 4, 0x8000_0000 | SLOT << 11 | (register & 0xFC))
        self.bus.write(4 + (register & 3), size, value)

    def probe(self) -> None:
        """Enable memory and bus mastering, walk the capabilities."""
        self.set_config(0x04, 2, self.config(0x04, 2) | 6)
        at = self.config(0x34, 1)
        while at:
            kind = self.config(at, 1)
            if kind == CAP_VENDOR:
                cfg_type = self.config(at + 3, 1)
                self.caps[cfg_type] = at
                self.structures[cfg_type] = self.config(at + 8, 4), self.config(at + 12, 4)
            elif kind == CAP_MSIX:
                self.caps[0] = at
            at = self.config(at + 1, 1)

    def _address(self) -> int:
        return self.function.bar_address(self.function.bars[0])

    # -- the BAR -------------------------------------------------------------------------------------------------

    def load(self, structure: int, offset: int, size: int) -> int:
        """Read from a structure."""
        return self.bus.memory.read(self._address() + self.structures[structure][0] + offset, size)

    def store(self, structure: int, offset: int, size: int, value: int) -> None:
        """Write to a structure."""
        self.bus.memory.write(self._address() + self.structures[structure][0] + offset, size, value)

    @property
    def status(self) -> int:
        """device_status."""
        return self.load(COMMON, 0x14, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.store(COMMON, 0x14, 1, value)

    def offered(self) -> int:
        """The device's 64 feature bits."""
        bits = 0
        for select in range(2):
            self.store(COMMON, 0x00, 4, select)
            bits |= self.load(COMMON, 0x04, 4) << 32 * select
        return bits

    def accept(self, features: int) -> None:
        """Write the driver's feature bits."""
        for select in range(2):
            self.store(COMMON, 0x08, 4, select)
            self.store(COMMON, 0x0C, 4, features >> 32 * select & 0xFFFF_FFFF)

    def set_up(self, index: int, ring: DriverQueue, enable: int = 1) -> None:
        """Tell the device of a queue."""
        self.store(COMMON, 0x16, 2, index)
        self.store(COMMON, 0x18, 2, ring.size)
        for offset, address in (0x20, ring.descriptors), (0x28, ring.driver), (0x30, ring.device):
            self.store(COMMON, offset, 4, address & 0xFFFF_FFFF)
            self.store(COMMON, offset + 4, 4, address >> 32)
        if enable:
            self.store(COMMON, 0x1C, 2, enable)

    def negotiate(self, features: int = VERSION_1 | RING_FEATURES) -> None:
        """From reset to FEATURES_OK."""
        self.probe()
        self.status = 0
        self.status = ACKNOWLEDGE
        self.status = ACKNOWLEDGE | DRIVER
        self.accept(features)
        self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK

    def start(self, features: int = VERSION_1 | RING_FEATURES, msix: bool = False) -> Machine:
        """From reset to DRIVER_OK with all queues of the device's sizes; with MSI-X, vector 0 is configuration's."""
        self.negotiate(features)
        if msix:
            self.enable_msix()
        self.rings = []
        for index in range(self.load(COMMON, 0x12, 2)):
            self.store(COMMON, 0x16, 2, index)
            ring = DriverQueue(self.memory, self.load(COMMON, 0x18, 2), features)
            self.rings.append(ring)
            self.set_up(index, ring)
        self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
        return self

    # -- interrupts ----------------------------------------------------------------------------------------------

    def msix_control(self, value: int) -> None:
        """Write message control: bit 15 enables, bit 14 masks all."""
        self.set_config(self.caps[0] + 2, 2, value)

    def msix_entry(self, vector: int, address: int, data: int, masked: int = 0) -> None:
        """Write a table entry."""
        at = self._address() + (self.config(self.caps[0] + 4, 4) & ~7) + 16 * vector
        for offset, value in (0, address & 0xFFFF_FFFF), (4, address >> 32), (8, data), (12, masked):
            self.bus.memory.write(at + offset, 4, value)

    def pending(self) -> int:
        """The pending bit array."""
        return self.bus.memory.read(self._address() + (self.config(self.caps[0] + 8, 4) & ~7), 8)

    def enable_msix(self) -> None:
        """Vector n writes 0x40 + n; vector 0 is configuration's, n + 1 queue n's."""
        self.msix_control(1 << 15)
        count = (self.config(self.caps[0] + 2, 2) & 0x7FF) + 1
        for vector in range(count):
            self.msix_entry(vector, 0xFEE0_0000, 0x40 + vector)
        self.store(COMMON, 0x10, 2, 0)
        for index in range(count - 1):
            self.store(COMMON, 0x16, 2, index)
            self.store(COMMON, 0x1A, 2, index + 1)

    # -- requests ------------------------------------------------------------------------------------------------

    def notify(self, index: int) -> None:
        """Tell the device of available buffers."""
        self.store(NOTIFY, 4 * index, 2, index)

    def echo(self, data: bytes, indirect: bool = False) -> Any:
        """Send `data` through queue 0 of `Echo` and fetch what comes back."""
        self.rings[0].send([data], [64], indirect)
        self.notify(0)
        (used,) = self.rings[0].used()
        assert not self.memory.unreported()
        return used.data
