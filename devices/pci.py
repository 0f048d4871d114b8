"""The PCI bus of a PC: configuration mechanism #1, host bridge, memory decoding (PCI Local Bus specification 3.0).

One bus, one function in each of 32 slots; no I/O ports, no bridges behind the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from devices import MmioDevice, PortRanges
from devices.frozen import frozen
from devices.pci_function import BAR_0, PAGE, Identity, PciFunction, PciFunctionState

__all__ = ["POWER_ON", "WINDOW", "PciBus", "PciBusState", "PciMemory", "ResetRegister"]

CONFIG_ADDRESS, RESET_CONTROL, CONFIG_DATA = 0, 1, 4        # offsets from port 0xcf8
ADDRESS_ENABLE = 1 << 31
ADDRESS_WRITABLE = ADDRESS_ENABLE | 0xFF_FFFC
ADDRESS_BUS_AND_FUNCTION = 0xFF_0700                        # only 0:x.0 exists
SLOTS = 32
FUNCTION = 0b111                    # of a device and function number
CONFIG_SIZE = 256
HOST_BRIDGE = Identity(vendor=0x8086, device=0x1237, class_code=0x06_0000, revision=2)      # Intel 440FX
PAGE_SHIFT, PAGE_MASK = PAGE.bit_length() - 1, PAGE - 1

WINDOW = 0xC000_0000                # where firmware puts the functions' memory, from here up


class ResetRegister(Protocol):
    """The reset control register, port 0xcf9, which lies among PCI's ports."""

    def read(self) -> int:
        """The register's byte."""

    def write(self, value: int, /) -> None:
        """Write the register's byte."""


@frozen
class PciBusState:
    """What a snapshot keeps of the bus; the functions in its slots keep their own."""

    address: int = 0
    bridge: PciFunctionState | None = None


POWER_ON = PciBusState()

Meter = Callable[[PciFunction | None, MmioDevice], MmioDevice]
"""Stands before a page of a function, and before what answers where no function does."""


class _Nobody:
    """What answers where no function does: reads all ones."""

    def read(self, offset: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class PciMemory:
    """The memory side of the bus: an access goes to the function that has enabled a page there.

    The guest may map functions over each other: the lowest slot answers, within it the lowest BAR.

    Args:
        nobody: answers where no function does.
    """

    def __init__(self, nobody: MmioDevice) -> None:
        self._nobody = nobody
        self._pages: dict[int, MmioDevice] = {}

    def read(self, address: int, size: int) -> int:
        """Load of 1, 2, 4 or 8 bytes."""
        return self._pages.get(address >> PAGE_SHIFT, self._nobody).read(address & PAGE_MASK, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Store of 1, 2, 4 or 8 bytes."""
        self._pages.get(address >> PAGE_SHIFT, self._nobody).write(address & PAGE_MASK, size, value)

    def map(self, pages: list[tuple[int, MmioDevice]]) -> None:
        """Replace everything by these (address, handler); the first of several at one address counts."""
        self._pages = {address >> PAGE_SHIFT: handler for address, handler in reversed(pages)}


class PciConfiguration:
    """Configuration space in memory, one bus of it (PCI Express base specification, section 7.2.2, "ECAM").

    A function has 4 KiB there; these have none of the extended registers beyond the first 256.
    """

    def __init__(self, slots: dict[int, PciFunction]) -> None:
        self._slots = slots

    def read(self, offset: int, size: int) -> int:
        """Load of 1, 2, 4 or 8 bytes; all ones where nothing answers."""
        target = self._target(offset, size)
        return (1 << 8 * size) - 1 if target is None else target[0].config_read(target[1], size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Store of 1, 2, 4 or 8 bytes; dropped where nothing answers."""
        target = self._target(offset, size)
        if target is not None:
            target[0].config_write(target[1], size, value)

    def _target(self, offset: int, size: int) -> tuple[PciFunction, int] | None:
        """The function and its register that lie at an offset."""
        device, register = offset >> 12, offset & 0xFFF
        function = None if device & FUNCTION else self._slots.get(device >> 3)
        if function is None or size > 4 or register >= CONFIG_SIZE or register % size:
            return None
        return function, register


class PciBus:
    """The bus with its host bridge in slot 0, reached through ports 0xcf8 to 0xcff.

    Args:
        reset_control: the register at port 0xcf9; None: there is none.
        state: what to start with.
        meter: stands before each page of the functions' memory.

    Attributes:
        memory: the functions' memory, by guest-physical address.
        configuration: their configuration spaces as memory, for a board that maps them.
    """

    ports: PortRanges = ((0xCF8, 8),)

    def __init__(
        self,
        reset_control: ResetRegister | None = None,
        state: PciBusState = POWER_ON,
        meter: Meter = lambda _function, page: page,
    ) -> None:
        self._reset_control = reset_control
        self._address = state.address
        self._slots: dict[int, PciFunction] = {}
        self._next_free = WINDOW
        self._meter = meter
        self._metered: dict[int, MmioDevice] = {}       # the functions' pages by their identity
        self.memory = PciMemory(meter(None, _Nobody()))
        self.configuration = PciConfiguration(self._slots)
        self._bridge = PciFunction(HOST_BRIDGE, state=state.bridge)
        self.add(0, self._bridge)

    def add(self, slot: int, function: PciFunction) -> None:
        """Put a function into a slot, and do what firmware does: give its BARs addresses.

        Raises:
            ValueError: there is no such slot, or it is taken.
        """
        if not 0 <= slot < SLOTS or slot in self._slots:
            raise ValueError(f"PCI slot {slot} is taken, or not one of {SLOTS}")
        self._slots[slot] = function
        for bar in function.bars:
            self._metered.update((id(page), self._meter(function, page)) for page in bar.pages.values())
        self._place(function)
        function.mapping_changed = self._remap
        self._remap()

    def _place(self, function: PciFunction) -> None:
        for bar in function.bars:
            address = -(-self._next_free // bar.size) * bar.size
            self._next_free = address + bar.size
            if not function.restored:
                function.config_write(BAR_0 + 4 * bar.index, 4, address)

    def _remap(self) -> None:
        functions = [function for _slot, function in sorted(self._slots.items())]
        self.memory.map([(address, self._metered[id(page)]) for f in functions for address, page in f.mapped_pages()])

    def read(self, offset: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes at port 0xcf8 + `offset`."""
        if offset >= CONFIG_DATA:
            function = self._selected()
            register = offset - CONFIG_DATA
            if function is not None and register + size <= 4:
                return function.config_read((self._address & 0xFC) + register, size)
        elif offset == CONFIG_ADDRESS and size == 4:
            return self._address
        elif offset == RESET_CONTROL and size == 1 and self._reset_control is not None:
            return self._reset_control.read()
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes at port 0xcf8 + `offset`."""
        if offset >= CONFIG_DATA:
            function = self._selected()
            register = offset - CONFIG_DATA
            if function is not None and register + size <= 4:
                function.config_write((self._address & 0xFC) + register, size, value)
        elif offset == CONFIG_ADDRESS and size == 4:
            self._address = value & ADDRESS_WRITABLE
        elif offset == RESET_CONTROL and size == 1 and self._reset_control is not None:
            self._reset_control.write(value)

    def _selected(self) -> PciFunction | None:
        """The function that the address register points at."""
        if not self._address & ADDRESS_ENABLE or self._address & ADDRESS_BUS_AND_FUNCTION:
            return None
        return self._slots.get(self._address >> 11 & SLOTS - 1)

    def save(self) -> PciBusState:
        """The address register and the host bridge."""
        return PciBusState(self._address, self._bridge.save_function())
