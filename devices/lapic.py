"""Local APIC of a machine with one processor (Intel SDM volume 3, "Advanced Programmable Interrupt Controller").

Both interfaces: memory-mapped (xAPIC) and MSRs (x2APIC). There is nobody on the bus but this APIC and the I/O APIC, so
every message is delivered, or goes to nobody, before the access that sent it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from devices import Clock, IrqLine
from devices import lapic_registers as reg
from devices.apic_message import (
    ADDRESS_DESTINATION_SHIFT,
    ADDRESS_LOGICAL,
    DELIVERY_MODE,
    EXTINT,
    FIXED,
    LEVEL_ASSERT,
    LEVEL_TRIGGERED,
    LOWEST_PRIORITY,
    MESSAGE_BASE,
    VECTOR,
)
from devices.frozen import replace
from devices.lapic_core import LapicCore
from devices.lapic_registers import BASE, LOW_HALF, MSRS, POWER_ON, SIZE, LapicState, ReservedRegister
from devices.lapic_timer import TscClock

__all__ = ["BASE", "MSRS", "POWER_ON", "SIZE", "LapicState", "LocalApic", "ReservedRegister"]

Reader = Callable[[], int]
Writer = tuple[Callable[[int], None], int]
"""What takes a value, and the bits of it that exist."""

NO_READING_BY_MSR = reg.APR, reg.EOI, reg.DFR, reg.ICR_HIGH
NO_WRITING_BY_MSR = reg.ID, reg.LDR, reg.DFR, reg.ICR_HIGH
ALL_BITS = (1 << 64) - 1


class LocalApic(LapicCore):
    """The processor's interrupt controller, its timer, and the way the 8259A's interrupts take.

    Software-disabled (SVR bit 8) it accepts no interrupt and masks its own; what was accepted before is still given
    to the processor. Globally disabled (IA32_APIC_BASE bit 11) it forgets everything, and LINT0 is the processor's
    INTR. Delivery modes SMI, INIT and start-up have nobody to go to. The registers cannot be moved from `BASE`.

    Args:
        intr: the processor's INTR, high while `acknowledge` has a vector.
        clock: guest time and one-shot timers.
        tsc: the guest's time-stamp counter.
        state: registers to start with.

    Attributes:
        lint0: the input that the 8259A's INTR drives.
        external: the INTA cycle at the 8259A: a vector, or None.
        eoi_broadcast: told the vector of every level triggered interrupt that ends.
        nmi: called when an NMI is delivered.
        guest_eoi: how the guest may end an interrupt without writing EOI.
    """

    def __init__(self, intr: IrqLine, clock: Clock, tsc: TscClock, state: LapicState = POWER_ON) -> None:
        super().__init__(intr, clock, tsc, state)
        self._readers = self._make_readers()
        self._writers = self._make_writers()
        self._msr_writers = self._make_msr_writers()

    def _load(self, state: LapicState) -> None:
        super()._load(state)
        self._identity, self._ldr, self._dfr, self._icr = state.identity, state.ldr, state.dfr, state.icr

    def save(self) -> LapicState:
        """The registers, the timer and the level of LINT0."""
        return LapicState(
            apic_base=self._apic_base, identity=self._identity, ldr=self._ldr, dfr=self._dfr, tpr=self._tpr,
            svr=self._svr, isr=self._isr, tmr=self._tmr, irr=self._irr, esr=self._esr, errors=self._errors,
            icr=self._icr, lvt=tuple(self._lvt), lint0=self._lint0_level, extint_message=self._extint_message,
            eoi_offered=self._eoi_offered, timer=self._timer.save(),
        )

    # -- memory-mapped registers -------------------------------------------------------------------------------

    def read(self, offset: int, size: int, /) -> int:
        """Read a memory-mapped register; only 32 bits at multiples of 16, anything else reads 0.

        All ones when the APIC is not there: globally disabled, or an x2APIC.
        """
        if not self._is_mapped():
            return (1 << 8 * size) - 1
        if size != 4 or offset & 0xF:
            return 0
        reader = self._readers.get(offset)
        if reader is None:
            self._error(reg.ESR_ILLEGAL_REGISTER)
            return 0
        return reader() & LOW_HALF

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Write a memory-mapped register; only 32 bits at multiples of 16, anything else is ignored."""
        if size != 4 or offset & 0xF or not self._is_mapped():
            return
        entry = self._writers.get(offset)
        if entry is not None:
            entry[0](value & entry[1])
        elif offset not in self._readers:
            self._error(reg.ESR_ILLEGAL_REGISTER)

    def _is_mapped(self) -> bool:
        return self._apic_base & reg.X2APIC == reg.XAPIC

    def _make_readers(self) -> dict[int, Reader]:
        """By offset, what each register reads: 32 bits, 64 for ICR."""
        timer = self._timer
        readers: dict[int, Reader] = {
            reg.ID: lambda: reg.X2APIC_ID if self._is_x2apic() else self._identity,
            reg.VERSION: lambda: reg.VERSION_VALUE,
            reg.TPR: lambda: self._tpr,
            reg.APR: lambda: 0,             # nobody to arbitrate with
            reg.PPR: self._read_ppr,
            reg.EOI: lambda: 0,
            reg.LDR: lambda: reg.X2APIC_LDR if self._is_x2apic() else self._ldr,
            reg.DFR: lambda: self._dfr,
            reg.SVR: lambda: self._svr,
            reg.ESR: lambda: self._esr,
            reg.ICR: lambda: self._icr,
            reg.ICR_HIGH: lambda: self._icr >> 32,
            reg.INITIAL_COUNT: lambda: timer.initial_count,
            reg.CURRENT_COUNT: lambda: timer.current_count,
            reg.DIVIDE: lambda: timer.divide,
        }
        for number in range(len(reg.LVT_BITS)):
            readers[reg.LVT + 16 * number] = partial(self._read_lvt, number)
        for part in range(8):
            readers[reg.ISR + 16 * part] = partial(self._read_isr, 32 * part)
            readers[reg.TMR + 16 * part] = partial(self._read_tmr, 32 * part)
            readers[reg.IRR + 16 * part] = partial(self._read_irr, 32 * part)
        return readers

    def _make_writers(self) -> dict[int, Writer]:
        """By offset, what takes 32 bits for each register."""
        writers: dict[int, Writer] = {
            reg.ID: (self._write_id, reg.HIGH_BYTE),
            reg.TPR: (self._write_tpr, 0xFF),
            reg.EOI: (self._write_eoi, 0),
            reg.LDR: (self._write_ldr, reg.HIGH_BYTE),
            reg.DFR: (self._write_dfr, reg.DFR_MODEL),
            reg.SVR: (self._write_svr, reg.SVR_BITS),
            reg.ESR: (self._write_esr, 0),
            reg.ICR: (self._write_icr_low, reg.ICR_LOW_BITS),
            reg.ICR_HIGH: (self._write_icr_high, reg.HIGH_BYTE),
            reg.INITIAL_COUNT: (self._timer.write_initial_count, LOW_HALF),
            reg.DIVIDE: (self._timer.write_divide, reg.DIVIDE_BITS),
        }
        for number, bits in enumerate(reg.LVT_BITS):
            writers[reg.LVT + 16 * number] = partial(self._write_lvt, number), bits
        return writers

    # -- MSRs --------------------------------------------------------------------------------------------------

    def read_msr(self, number: int) -> int:
        """RDMSR of one of `MSRS`.

        Raises:
            ReservedRegister: there is no such register now, or it cannot be read.
        """
        if number == reg.MSR_TSC_DEADLINE:
            return self._timer.tsc_deadline
        if number == reg.MSR_APIC_BASE:
            return self._apic_base
        offset = number - reg.MSR_X2APIC << 4
        reader = self._readers.get(offset)
        if reader is None or offset in NO_READING_BY_MSR or not self._is_x2apic():
            raise ReservedRegister(f"MSR {number:#x} cannot be read")
        return reader()

    def write_msr(self, number: int, value: int) -> None:
        """WRMSR to one of `MSRS`; `value` has 64 bits.

        Raises:
            ReservedRegister: there is no such register now, it cannot be written, or not with these bits set.
        """
        entry = self._msr_writers.get(number)
        if entry is None or value & ~entry[1] or (number >= reg.MSR_X2APIC and not self._is_x2apic()):
            raise ReservedRegister(f"MSR {number:#x} cannot be written with {value:#x}")
        entry[0](value)

    def _is_x2apic(self) -> bool:
        return bool(self._apic_base & reg.BASE_X2APIC)

    def _make_msr_writers(self) -> dict[int, Writer]:
        """By number, what takes each MSR."""
        writers = {
            reg.MSR_X2APIC + (offset >> 4): entry
            for offset, entry in self._writers.items()
            if offset not in NO_WRITING_BY_MSR
        }
        writers[reg.MSR_X2APIC + (reg.ICR >> 4)] = self._write_icr, reg.ICR_BITS
        writers[reg.MSR_X2APIC + (reg.SELF_IPI >> 4)] = self._write_self_ipi, VECTOR
        writers[reg.MSR_APIC_BASE] = self._write_apic_base, ALL_BITS
        writers[reg.MSR_TSC_DEADLINE] = self._timer.write_tsc_deadline, ALL_BITS
        return writers

    def _write_apic_base(self, value: int) -> None:
        old, new = (base & reg.X2APIC for base in (self._apic_base, value))
        if value & ~(reg.X2APIC | reg.BASE_BSP) != BASE or (old, new) not in reg.TRANSITIONS:
            raise ReservedRegister(f"IA32_APIC_BASE cannot go from {self._apic_base:#x} to {value:#x}")
        if new == reg.DISABLED:
            self.settle_eoi()
            self._timer.reset()
            self._load(replace(reg.RESET, apic_base=value, lint0=self._lint0_level))
            return
        if new != old:
            self._icr &= LOW_HALF           # the destination has another format
        self._apic_base = value
        self._enabled_changed()

    # -- registers ---------------------------------------------------------------------------------------------

    def _read_ppr(self) -> int:
        self.settle_eoi()
        return self._ppr()

    def _read_isr(self, shift: int) -> int:
        self.settle_eoi()
        return self._isr >> shift & LOW_HALF

    def _read_tmr(self, shift: int) -> int:
        return self._tmr >> shift & LOW_HALF

    def _read_irr(self, shift: int) -> int:
        return self._irr >> shift & LOW_HALF

    def _read_lvt(self, number: int) -> int:
        return self._lvt[number]

    def _write_id(self, value: int) -> None:
        self._identity = value

    def _write_ldr(self, value: int) -> None:
        self._ldr = value

    def _write_dfr(self, value: int) -> None:
        self._dfr = value | ~reg.DFR_MODEL & LOW_HALF

    # -- messages ----------------------------------------------------------------------------------------------

    def accept_message(self, address: int, data: int) -> None:
        """Take an interrupt message of a device or of the I/O APIC, if it is for this APIC.

        Args:
            address, data: as `devices.apic_message` has them.
        """
        if address >> 20 != MESSAGE_BASE >> 20:
            return
        destination = address >> ADDRESS_DESTINATION_SHIFT & 0xFF
        if destination != reg.BROADCAST and not self._is_addressed(destination, bool(address & ADDRESS_LOGICAL)):
            return
        if data & LEVEL_TRIGGERED and not data & LEVEL_ASSERT:
            return
        self._take(data & DELIVERY_MODE, data & VECTOR, bool(data & LEVEL_TRIGGERED))

    def _is_addressed(self, destination: int, logical: bool) -> bool:
        """Whether a destination that is not the broadcast is this APIC."""
        if self._is_x2apic():
            if not logical:
                return destination == reg.X2APIC_ID
            return destination >> 16 == reg.X2APIC_LDR >> 16 and bool(destination & reg.X2APIC_LDR & 0xFFFF)
        if not logical:
            return destination == self._identity >> 24
        own, model = self._ldr >> 24, self._dfr >> 28
        if model == reg.FLAT:
            return bool(own & destination)
        return model == reg.CLUSTER and own >> 4 == destination >> 4 and bool(own & destination & 0xF)

    def _write_icr_high(self, value: int) -> None:
        self._icr = value << 32 | self._icr & LOW_HALF

    def _write_icr_low(self, value: int) -> None:
        self._write_icr(self._icr & ~LOW_HALF | value)

    def _write_icr(self, value: int) -> None:
        """Send an interrupt, to this processor or to nobody; always edge triggered."""
        self._icr = value & ~reg.ICR_DELIVERY_STATUS
        mode, vector = value & DELIVERY_MODE, value & VECTOR
        if vector < reg.FIRST_VECTOR and mode in (FIXED, LOWEST_PRIORITY):
            self._error(reg.ESR_SEND_ILLEGAL_VECTOR)
        elif mode != EXTINT and self._is_own(value):
            self._take(mode, vector, False)

    def _is_own(self, command: int) -> bool:
        """Whether a command is for this APIC."""
        shorthand = command & reg.ICR_SHORTHAND
        if shorthand:
            return shorthand != reg.ICR_ALL_BUT_SELF
        if self._is_x2apic():
            destination, broadcast = command >> 32, reg.X2APIC_BROADCAST
        else:
            destination, broadcast = command >> 56, reg.BROADCAST
        return destination == broadcast or self._is_addressed(destination, bool(command & reg.ICR_LOGICAL))

    def _write_self_ipi(self, vector: int) -> None:
        if vector < reg.FIRST_VECTOR:
            self._error(reg.ESR_SEND_ILLEGAL_VECTOR)
        else:
            self.deliver(vector)
