"""Every device of the machine, by name, built on fakes: the table that test_every_device.py runs over.

To add a device, write a factory that builds it from a state (None: at power-on) and add a line to DEVICES; if
something besides the bus reaches it, such as a wire or the host, add a line to STIMULI, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from devices import Device, i8042, i8254, i8259, mc146818, uart16550a
from tests.devices.fakes import FakeClock, FakeLine

__all__ = ["DEVICES", "STIMULI", "Bench", "Factory", "Stimulus"]


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


DEVICES: dict[str, Factory] = {
    "i8042": keyboard_controller,
    "i8254": interval_timer,
    "i8259": interrupt_controllers,
    "mc146818": real_time_clock,
    "uart16550a": uart,
}

STIMULI: dict[str, Stimulus] = {
    "i8259": stimulate_interrupt_controllers,
    "uart16550a": stimulate_uart,
}
