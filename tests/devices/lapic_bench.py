"""A local APIC on the bench, for its tests."""

from __future__ import annotations

from devices.lapic import POWER_ON, LapicState, LocalApic
from tests.devices.fakes import FakeClock, FakeLine, FakeTsc

__all__ = ["APIC_BASE", "PIC_VECTOR", "TSC_DEADLINE", "X2APIC", "Guest"]

APIC_BASE, TSC_DEADLINE = 0x1B, 0x6E0       # MSRs
X2APIC = 0xFEE0_0D00                        # IA32_APIC_BASE: x2APIC mode, on the boot processor
PIC_VECTOR = 0x38


class Guest:
    """The APIC, what is around it, and what a guest does with it.

    Attributes:
        intr: the processor's INTR.
        seen: EOIs that the I/O APIC is told (their vectors), and "nmi".
    """

    def __init__(self, state: LapicState = POWER_ON, clock: FakeClock | None = None) -> None:
        self.intr = FakeLine()
        self.clock = clock or FakeClock()
        self.tsc = FakeTsc(self.clock)
        self.seen: list[int | str] = []
        self.apic = LocalApic(self.intr, self.clock, self.tsc, state)
        self.apic.external = lambda: PIC_VECTOR
        self.apic.eoi_broadcast = self.seen.append
        self.apic.nmi = lambda: self.seen.append("nmi")

    def restored(self) -> Guest:
        """Another guest with the APIC's state and the time of this one."""
        return Guest(self.apic.save(), FakeClock(self.clock.time_ns))

    def get(self, offset: int) -> int:
        """Load a memory-mapped register."""
        return self.apic.read(offset, 4)

    def put(self, offset: int, value: int) -> None:
        """Store to a memory-mapped register."""
        self.apic.write(offset, 4, value)

    def vectors(self, first: int) -> set[int]:
        """What the eight registers from `first` (ISR, TMR or IRR) have set."""
        bits = sum(self.get(first + 16 * part) << 32 * part for part in range(8))
        return {vector for vector in range(256) if bits >> vector & 1}

    def enter_x2apic(self) -> None:
        """Switch to the MSR interface."""
        self.apic.write_msr(APIC_BASE, X2APIC)
