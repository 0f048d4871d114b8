"""Every device of the machine, by name, built on fakes: the table that test_every_device.py runs over.

To add a device, write a factory that builds it from a state (None: at power-on) and add a line to DEVICES; if
something besides the bus reaches it, such as a wire or the host, add a line to STIMULI, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from devices import (
    Device,
    MmioDevice,
    PortRanges,
    i8042,
    i8254,
    i8259,
    ioapic,
    isa_debug_exit,
    lapic,
    mc146818,
    uart16550a,
)
from tests.devices.fakes import FakeClock, FakeLine, FakeTsc

__all__ = ["DEVICES", "STIMULI", "Bench", "Factory", "MmioRegisters", "Stimulus"]


@dataclass
class Bench:
    """Everything outside a device that it can reach; what is seen there is compared, too.

    Attributes:
        clock: guest time; the battery winds it between accesses.
        lines: interrupt lines by name, created when first asked for.
        seen: anything else that the device does to the outside, in order.
    """

    clock: FakeClock = field(default_factory=FakeClock)
    lines: dict[str, FakeLine] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)

    def line(self, name: str) -> FakeLine:
        """The line of that name."""
        return self.lines.setdefault(name, FakeLine())

    def levels(self) -> dict[str, bool]:
        """What every line carries now."""
        return {name: line.level for name, line in self.lines.items()}


Factory = Callable[[Bench, Any], Device]
"""Builds a device on a bench from its state; None stands for the state at power-on."""

Stimulus = Callable[[Any, int], None]
"""Does something to a device that is not a bus access; the number (0..0xff) says what."""


class MmioRegisters:
    """A memory-mapped device as the battery reaches it: 32-bit registers with numbers in place of bytes with ports.

    Args:
        device: it, with a `save`.
        offsets: of its registers.

    Attributes:
        width: bits of a register; a device on ports has 8.
    """

    width = 32

    def __init__(self, device: MmioDevice, offsets: Sequence[int]) -> None:
        self.device: Any = device
        self.offsets = offsets
        self.ports: PortRanges = ((0, len(offsets)),)

    def read(self, offset: int) -> int:
        """Read a whole register; `offset` is its number."""
        value: int = self.device.read(self.offsets[offset], 4)
        return value

    def write(self, offset: int, value: int) -> None:
        """Write a whole register."""
        self.device.write(self.offsets[offset], 4, value)

    def save(self) -> Any:
        """The device's state."""
        return self.device.save()


def uart(bench: Bench, state: Any) -> Device:
    """COM1; its output is what is seen."""
    return uart16550a.Uart16550A(bench.line("irq"), bench.seen.append, state=state or uart16550a.POWER_ON)


def stimulate_uart(device: uart16550a.Uart16550A, number: int) -> None:
    """The host types, or sends a break."""
    if number == 0xFF:
        device.send_break()
    else:
        device.receive(bytes([number]) * (1 + number % 20))


def keyboard_controller(bench: Bench, state: Any) -> Device:
    """The 8042; a reset of the CPU is what is seen."""
    return i8042.I8042(
        bench.line("keyboard"), bench.line("aux"), lambda: bench.seen.append("reset"), state=state or i8042.POWER_ON
    )


def interrupt_controllers(bench: Bench, state: Any) -> Device:
    """The pair of 8259A."""
    return i8259.PicPair(bench.line("intr"), state or i8259.POWER_ON)


def stimulate_interrupt_controllers(device: i8259.PicPair, number: int) -> None:
    """A device drives its line (bits 3-0) to bit 4, or the processor acknowledges."""
    if number & 0x0F == i8259.CASCADE:
        device.acknowledge()
    else:
        device.line(number & 0x0F).set(bool(number & 0x10))


def interval_timer(bench: Bench, state: Any) -> Device:
    """The 8254."""
    return i8254.Pit(bench.line("irq"), bench.clock, state or i8254.POWER_ON)


def real_time_clock(bench: Bench, state: Any) -> Device:
    """The MC146818 of a machine with 256 MiB."""
    return mc146818.Rtc(bench.line("irq"), bench.clock, 256 << 20, state=state or mc146818.POWER_ON)


def local_apic(bench: Bench, state: Any) -> Device:
    """The local APIC in memory; EOIs of level triggered interrupts, NMIs and INTA cycles are what is seen."""
    device = lapic.LocalApic(bench.line("intr"), bench.clock, FakeTsc(bench.clock), state or lapic.POWER_ON)
    device.eoi_broadcast = bench.seen.append
    device.nmi = lambda: bench.seen.append("nmi")

    def external() -> int:
        bench.seen.append("inta")
        return 0x30

    device.external = external
    return MmioRegisters(device, range(0, 0x400, 0x10))


def stimulate_local_apic(device: MmioRegisters, number: int) -> None:
    """An interrupt comes, edge or level triggered; below 4 the 8259A drives LINT0, below 16 one is acknowledged."""
    if number < 4:
        device.device.lint0.set(bool(number & 1))
    elif number < 16:
        device.device.acknowledge()
    else:
        device.device.deliver(number, bool(number & 1))


class IoApicRegisters(MmioRegisters):
    """The I/O APIC and two wires into each of its pins."""

    def __init__(self, device: ioapic.IoApic) -> None:
        super().__init__(device, (0x00, 0x10, 0x40))
        self.wires = [(device.line(pin), device.line(pin)) for pin in range(ioapic.PINS)]


def io_apic(bench: Bench, state: Any) -> Device:
    """The I/O APIC; its messages are what is seen."""
    return IoApicRegisters(
        ioapic.IoApic(lambda address, data: bench.seen.append((address, data)), state or ioapic.POWER_ON)
    )


def stimulate_io_apic(device: IoApicRegisters, number: int) -> None:
    """One of two devices (bit 6) drives its wire to pin `number` (bits 4-0) to bit 5."""
    device.wires[number % 32 % ioapic.PINS][number >> 6 & 1].set(bool(number & 0x20))


def debug_exit(bench: Bench, state: Any) -> Device:
    """The debug exit; the status is what is seen."""
    return isa_debug_exit.IsaDebugExit(bench.seen.append, state=state or isa_debug_exit.POWER_ON)


DEVICES: dict[str, Factory] = {
    "i8042": keyboard_controller,
    "i8254": interval_timer,
    "i8259": interrupt_controllers,
    "ioapic": io_apic,
    "isa_debug_exit": debug_exit,
    "lapic": local_apic,
    "mc146818": real_time_clock,
    "uart16550a": uart,
}

STIMULI: dict[str, Stimulus] = {
    "i8259": stimulate_interrupt_controllers,
    "ioapic": stimulate_io_apic,
    "lapic": stimulate_local_apic,
    "uart16550a": stimulate_uart,
}
