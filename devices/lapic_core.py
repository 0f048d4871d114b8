"""What the local APIC does with interrupts (Intel SDM volume 3, section "Handling Interrupts").

Where the registers are found, and which messages are for this APIC, is devices.lapic's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from devices import Clock, IrqLine
from devices.apic_message import (
    DELIVERY_MODE,
    EXTINT,
    FIXED,
    LEVEL_TRIGGERED,
    LOWEST_PRIORITY,
    MASKED,
    NMI,
    REMOTE_IRR,
    VECTOR,
)
from devices.lapic_registers import (
    BASE_ENABLE,
    ESR_RECEIVE_ILLEGAL_VECTOR,
    FIRST_VECTOR,
    LVT_ERROR,
    LVT_LINT0,
    LVT_MODE_SHIFT,
    LVT_STATUS,
    LVT_TIMER,
    SVR_ENABLE,
    LapicState,
)
from devices.lapic_timer import LapicTimer, TscClock

__all__ = ["GuestEoi", "LapicCore"]


class GuestEoi(Protocol):
    """How a guest may end an interrupt in its own memory, where the APIC looks when it has to know."""

    def offer(self) -> bool:
        """Allow it for the interrupt that the processor takes now; False if the guest does not know how."""

    def withdraw(self) -> bool:
        """Allow it no longer; False if the guest has ended the interrupt."""


class _NoGuestEoi:
    """The guest writes to the EOI register."""

    def offer(self) -> bool:
        return False

    def withdraw(self) -> bool:
        return True


class _Input:
    """The LINT0 pin (devices.IrqLine)."""

    __slots__ = ("_drive",)

    def __init__(self, drive: Callable[[bool], None]) -> None:
        self._drive = drive

    def set(self, level: bool) -> None:
        self._drive(level)


class LapicCore:
    """Priorities, local sources, and the processor's INTR; arguments and attributes as `devices.lapic.LocalApic`."""

    def __init__(self, intr: IrqLine, clock: Clock, tsc: TscClock, state: LapicState) -> None:
        self.lint0: IrqLine = _Input(self._drive_lint0)
        self.external: Callable[[], int | None] = _nobody
        self.eoi_broadcast: Callable[[int], None] = _no_ioapic
        self.nmi: Callable[[], None] = _nobody
        self.guest_eoi: GuestEoi = _NoGuestEoi()
        self._intr = intr
        self._level = False
        self._threshold = 0                 # only vectors above it interrupt: PPR with its low bits set
        self._timer = LapicTimer(self._timer_expired, clock, tsc, state.timer)
        self._load(state)

    def _load(self, state: LapicState) -> None:
        """Take every register but the timer's."""
        self._apic_base = state.apic_base
        self._tpr, self._svr = state.tpr, state.svr
        self._isr, self._tmr, self._irr = state.isr, state.tmr, state.irr
        self._esr, self._errors = state.esr, state.errors
        self._lvt = list(state.lvt)
        self._lint0_level, self._extint_message = state.lint0, state.extint_message
        self._eoi_offered = state.eoi_offered
        self._enabled_changed()

    # -- accepting, acknowledging, ending ----------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """The level of INTR."""
        return self._level

    def deliver(self, vector: int, level_triggered: bool = False) -> None:
        """Accept a fixed interrupt, if the APIC is enabled.

        Args:
            vector: 0..255; those below 16 are an error that ESR reports.
            level_triggered: the I/O APIC is told of its end.
        """
        if not self._accepts:
            return
        if vector < FIRST_VECTOR:
            self._error(ESR_RECEIVE_ILLEGAL_VECTOR)
            return
        if self._eoi_offered:
            self.settle_eoi()
        bit = 1 << vector
        self._irr |= bit
        if level_triggered:
            self._tmr |= bit
        elif self._tmr & bit:
            self._tmr ^= bit
        if vector > self._threshold and not self._level:
            self._level = True
            self._intr.set(True)

    def acknowledge(self) -> int | None:
        """The processor takes an interrupt: its vector, now in service.

        The APIC's own come first, then the 8259A's. The spurious vector when what is requested is not urgent enough
        (any more); None when nothing is requested.
        """
        vector = self._irr.bit_length() - 1
        if vector > self._threshold:
            bit = 1 << vector
            self._irr ^= bit
            # One that nothing waits for, that interrupts nothing, and whose end the I/O APIC need not hear of
            if not (self._irr or self._isr or self._tmr & bit):
                self._eoi_offered = self.guest_eoi.offer()
            self._isr |= bit
            self._threshold = vector | 0xF
            self._update()
            return vector
        if self._external_level:
            if self._extint_message:
                self._extint_message = False
                self._external_changed()
            return self.external()
        return self._svr & VECTOR if self._irr else None

    @property
    def cr8(self) -> int:
        """The processor's task priority register: bits 7-4 of TPR."""
        return self._tpr >> 4

    @cr8.setter
    def cr8(self, priority: int) -> None:
        self._write_tpr((priority & 0xF) << 4)

    def settle_eoi(self) -> None:
        """The guest may have ended an interrupt in its memory: from now on the registers say so."""
        if self._eoi_offered:
            self._eoi_offered = False
            if not self.guest_eoi.withdraw() and self._isr:     # a damaged snapshot may have none
                self._end_of_interrupt()

    def _write_eoi(self, _value: int) -> None:
        if self._eoi_offered:
            self.settle_eoi()
        if self._isr:
            self._end_of_interrupt()

    def _end_of_interrupt(self) -> None:
        vector = self._isr.bit_length() - 1
        bit = 1 << vector
        self._isr ^= bit
        self._priority_changed()
        if self._tmr & bit:
            entry = self._lvt[LVT_LINT0]
            if entry & REMOTE_IRR and entry & VECTOR == vector:
                self._lvt[LVT_LINT0] = entry & ~REMOTE_IRR
                self._lint0_changed()
            self.eoi_broadcast(vector)

    def _take(self, mode: int, vector: int, level_triggered: bool) -> None:
        """Accept an interrupt of any delivery mode."""
        if mode in (FIXED, LOWEST_PRIORITY):
            self.deliver(vector, level_triggered)
        elif mode == NMI and self._apic_base & BASE_ENABLE:
            self.nmi()
        elif mode == EXTINT and self._accepts:
            self._extint_message = True
            self._external_changed()

    def _error(self, bit: int) -> None:
        first = not self._errors
        self._errors |= bit
        if first and not self._lvt[LVT_ERROR] & MASKED:     # the next comes after ESR has been written
            self.deliver(self._lvt[LVT_ERROR] & VECTOR)

    # -- priorities --------------------------------------------------------------------------------------------

    def _ppr(self) -> int:
        serving = self._isr.bit_length() - 1 & 0xF0 if self._isr else 0
        return self._tpr if self._tpr & 0xF0 >= serving else serving

    def _priority_changed(self) -> None:
        """TPR or ISR has changed."""
        self._threshold = self._ppr() | 0xF
        self._update()

    def _update(self) -> None:
        level = self._irr.bit_length() - 1 > self._threshold or self._external_level
        if level != self._level:
            self._level = level
            self._intr.set(level)

    def _write_tpr(self, value: int) -> None:
        self._tpr = value
        self._priority_changed()

    def _write_svr(self, value: int) -> None:
        self._svr = value
        if not value & SVR_ENABLE:
            self._lvt = [entry | MASKED for entry in self._lvt]
        self._enabled_changed()

    def _enabled_changed(self) -> None:
        self._accepts = bool(self._svr & SVR_ENABLE and self._apic_base & BASE_ENABLE)
        self._threshold = self._ppr() | 0xF
        self._external_changed()

    def _write_esr(self, _value: int) -> None:
        self._esr, self._errors = self._errors, 0

    # -- local sources -----------------------------------------------------------------------------------------

    def _write_lvt(self, number: int, value: int) -> None:
        value &= ~(LVT_STATUS | REMOTE_IRR)
        if not self._svr & SVR_ENABLE:
            value |= MASKED
        if value & (DELIVERY_MODE | LEVEL_TRIGGERED) == FIXED | LEVEL_TRIGGERED:
            value |= self._lvt[number] & REMOTE_IRR
        self._lvt[number] = value
        if number == LVT_TIMER:
            self._timer.set_mode(value >> LVT_MODE_SHIFT)
        elif number == LVT_LINT0:
            self._lint0_changed()

    def _timer_expired(self) -> None:
        if not self._lvt[LVT_TIMER] & MASKED:
            self.deliver(self._lvt[LVT_TIMER] & VECTOR)

    def _drive_lint0(self, level: bool) -> None:
        if level == self._lint0_level:
            return
        self._lint0_level = level
        entry = self._lvt[LVT_LINT0]
        if level and not entry & MASKED:
            mode = entry & DELIVERY_MODE
            if mode == NMI:
                self.nmi()
            elif mode == FIXED and not entry & LEVEL_TRIGGERED:
                self.deliver(entry & VECTOR)
        self._lint0_changed()

    def _lint0_changed(self) -> None:
        """LINT0's level or its LVT entry has changed: what follows from the level as such."""
        entry = self._lvt[LVT_LINT0]
        fixed = entry & (MASKED | DELIVERY_MODE | LEVEL_TRIGGERED | REMOTE_IRR) == FIXED | LEVEL_TRIGGERED
        if self._lint0_level and fixed:
            self._lvt[LVT_LINT0] = entry | REMOTE_IRR
            self.deliver(entry & VECTOR, True)
        self._external_changed()

    def _external_changed(self) -> None:
        """Find out whether the 8259A's request reaches the processor."""
        through = not self._apic_base & BASE_ENABLE or self._lvt[LVT_LINT0] & (MASKED | DELIVERY_MODE) == EXTINT
        self._external_level = self._extint_message or (self._lint0_level and through)
        self._update()


def _nobody() -> None:
    """No 8259A, no NMI."""


def _no_ioapic(_vector: int) -> None:
    """No I/O APIC."""
