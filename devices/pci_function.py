"""One PCI function: configuration space, BARs, capabilities, INTx (PCI Local Bus specification 3.0, section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from devices import IrqLine, MmioDevice
from devices.frozen import frozen

__all__ = [
    "BAR_0", "COMMAND", "INTERRUPT_LINE", "PAGE", "Bar", "Capability", "Identity", "PciFunction", "PciFunctionState",
]

VENDOR_ID, DEVICE_ID, COMMAND, STATUS = 0x00, 0x02, 0x04, 0x06
REVISION_ID, CLASS_CODE = 0x08, 0x09            # class code: 3 bytes
CACHE_LINE_SIZE, LATENCY_TIMER = 0x0C, 0x0D
BAR_0, BAR_END = 0x10, 0x28
SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID = 0x2C, 0x2E
CAPABILITIES_POINTER = 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
FIRST_CAPABILITY = 0x40
CONFIG_SIZE = 0x100

COMMAND_MEMORY = 1 << 1
COMMAND_INTX_DISABLE = 1 << 10
COMMAND_WRITABLE = COMMAND_INTX_DISABLE | 1 << 8 | 1 << 6 | 1 << 2 | COMMAND_MEMORY     # SERR#, parity, bus master
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
BAR_64_BIT = 0b100
BAR_FLAGS = 0xF
INTA = 1

PAGE = 0x1000


@frozen
class Identity:
    """The numbers by which a driver finds the function; `class_code` has 24 bits."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


@frozen
class Bar:
    """A memory range that the guest places.

    Attributes:
        index: number of its base address register; a 64-bit one takes the next as well.
        size: bytes, a power of two of at least a page.
        pages: what answers in it, by its page's offset; elsewhere it reads all ones.
        is_64_bit: whether it can be above 4 GiB.
    """

    index: int
    size: int
    pages: Mapping[int, MmioDevice]
    is_64_bit: bool = False


@frozen
class Capability:
    """An entry of the capability list.

    Attributes:
        kind: capability ID.
        body: its bytes after ID and next pointer.
        writable: mask of the bits of `body` that the guest can change; missing bytes are read-only.
    """

    kind: int
    body: bytes
    writable: bytes = b""


@frozen
class PciFunctionState:
    """What a snapshot keeps: configuration space, and whether the function asks for its line interrupt."""

    config: bytes
    intx: bool = False


class _Registers:
    """Configuration space and which bits of it the guest can change."""

    def __init__(self) -> None:
        self.values = bytearray(CONFIG_SIZE)
        self.writable = bytearray(CONFIG_SIZE)

    def put(self, offset: int, size: int, value: int, writable: int = 0) -> None:
        self.values[offset : offset + size] = value.to_bytes(size, "little")
        self.writable[offset : offset + size] = writable.to_bytes(size, "little")


class PciFunction:
    """A function with a type 0 header.

    Args:
        identity: its numbers.
        bars: its memory.
        capabilities: in the order of the list.
        intx: its interrupt line, shared with others at the controller; None: it has none.
        state: what to start with; None: as after power-on.

    Raises:
        ValueError: the state's configuration space has another size.

    Attributes:
        capability_offsets: where each capability begins in configuration space.
        mapping_changed: called when its memory has moved, appeared or vanished; the bus sets it.
        restored: whether it was made from a state, so that no firmware sets it up.
    """

    def __init__(
        self,
        identity: Identity,
        bars: Sequence[Bar] = (),
        capabilities: Sequence[Capability] = (),
        intx: IrqLine | None = None,
        state: PciFunctionState | None = None,
    ) -> None:
        self.bars = tuple(bars)
        self._intx = intx
        self._intx_wanted = bool(state and state.intx)
        self.mapping_changed: Callable[[], None] = lambda: None
        registers = _header(identity, intx is not None)
        for bar in bars:
            _put_bar(registers, bar)
        self.capability_offsets = _put_capabilities(registers, capabilities)
        self._config = registers.values
        self._writable = registers.writable
        self.restored = state is not None
        if state:
            if len(state.config) != CONFIG_SIZE:
                raise ValueError(f"{len(state.config)} bytes of configuration space in place of {CONFIG_SIZE}")
            self._config[:] = state.config
            self._drive_intx()

    def config_read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of configuration space, within a doubleword."""
        return int.from_bytes(self._config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of configuration space, within a doubleword; read-only bits stay."""
        end = offset + size
        mask = int.from_bytes(self._writable[offset:end], "little")
        old = int.from_bytes(self._config[offset:end], "little")
        new = old & ~mask | value & mask
        self._config[offset:end] = new.to_bytes(size, "little")
        if new != old and ((offset < COMMAND + 2 and end > COMMAND) or BAR_0 <= offset < BAR_END):
            self._drive_intx()
            self.mapping_changed()

    def bar_address(self, bar: Bar) -> int:
        """Guest-physical address that the guest gave to one of `bars`; decoded only while memory access is enabled."""
        start = BAR_0 + 4 * bar.index
        return int.from_bytes(self._config[start : start + (8 if bar.is_64_bit else 4)], "little") & ~BAR_FLAGS

    def mapped_pages(self) -> Iterator[tuple[int, MmioDevice]]:
        """(address, handler) of every page that answers to memory accesses now."""
        if self._config[COMMAND] & COMMAND_MEMORY:
            for bar in self.bars:
                address = self.bar_address(bar)
                for offset, handler in bar.pages.items():
                    yield address + offset, handler

    def set_intx(self, level: bool) -> None:
        """Ask for the line interrupt, or no longer."""
        self._intx_wanted = level
        self._drive_intx()

    def _drive_intx(self) -> None:
        status = self._config[STATUS] & ~STATUS_INTERRUPT
        self._config[STATUS] = status | STATUS_INTERRUPT if self._intx_wanted else status
        if self._intx is not None:
            disabled = self._config[COMMAND + 1] & COMMAND_INTX_DISABLE >> 8
            self._intx.set(self._intx_wanted and not disabled)

    def save_function(self) -> PciFunctionState:
        """The state to go on from."""
        return PciFunctionState(bytes(self._config), self._intx_wanted)


def _header(identity: Identity, has_line: bool) -> _Registers:
    registers = _Registers()
    put = registers.put
    put(VENDOR_ID, 2, identity.vendor)
    put(DEVICE_ID, 2, identity.device)
    put(COMMAND, 2, 0, COMMAND_WRITABLE)
    put(REVISION_ID, 1, identity.revision)
    put(CLASS_CODE, 3, identity.class_code)
    put(CACHE_LINE_SIZE, 1, 0, 0xFF)
    put(LATENCY_TIMER, 1, 0, 0xFF)
    put(SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor)
    put(SUBSYSTEM_ID, 2, identity.subsystem)
    if has_line:
        put(INTERRUPT_LINE, 1, 0xFF, 0xFF)      # 0xff: unknown, or not connected
        put(INTERRUPT_PIN, 1, INTA)
    return registers


def _put_bar(registers: _Registers, bar: Bar) -> None:
    if bar.size < PAGE or bar.size & (bar.size - 1):
        raise ValueError(f"a BAR of {bar.size} bytes: the size has to be a power of two of at least {PAGE}")
    size = 8 if bar.is_64_bit else 4
    writable = (1 << 8 * size) - bar.size
    registers.put(BAR_0 + 4 * bar.index, size, BAR_64_BIT if bar.is_64_bit else 0, writable)


def _put_capabilities(registers: _Registers, capabilities: Sequence[Capability]) -> list[int]:
    """Chain the capabilities, each on a doubleword; where each begins."""
    offsets: list[int] = []
    link, start = CAPABILITIES_POINTER, FIRST_CAPABILITY
    for capability in capabilities:
        length = len(capability.body)
        end = start + 2 + length
        if end > CONFIG_SIZE:
            raise ValueError("the capabilities do not fit into configuration space")
        registers.put(link, 1, start)
        registers.put(start, 1, capability.kind)
        mask = capability.writable.ljust(length, b"\0")
        registers.put(start + 2, length, int.from_bytes(capability.body, "little"), int.from_bytes(mask, "little"))
        offsets.append(start)
        link, start = start + 1, -(-end // 4) * 4
    if offsets:
        registers.put(STATUS, 2, STATUS_CAPABILITIES)
    return offsets
