"""Registers of the local APIC (Intel SDM volume 3, "Advanced Programmable Interrupt Controller")."""

from __future__ import annotations

from devices.apic_message import DELIVERY_MODE, EXTINT, LEVEL_TRIGGERED, MASKED, NMI, REMOTE_IRR, VECTOR
from devices.frozen import frozen, replace
from devices.lapic_timer import TIMER_RESET, LapicTimerState

BASE = 0xFEE0_0000
SIZE = 0x1000                           # bytes of address space

MSR_APIC_BASE, MSR_TSC_DEADLINE = 0x1B, 0x6E0
MSR_X2APIC = 0x800                      # + offset / 16
MSRS = MSR_APIC_BASE, MSR_TSC_DEADLINE, *range(MSR_X2APIC, MSR_X2APIC + 0x40)

BASE_BSP, BASE_X2APIC, BASE_ENABLE = 0x100, 0x400, 0x800
DISABLED, XAPIC, X2APIC = 0, BASE_ENABLE, BASE_ENABLE | BASE_X2APIC
# Figure "Local x2APIC State Transitions": an x2APIC becomes an xAPIC only by way of being disabled.
TRANSITIONS = {
    (DISABLED, DISABLED), (DISABLED, XAPIC), (XAPIC, XAPIC), (XAPIC, X2APIC), (XAPIC, DISABLED), (X2APIC, X2APIC),
    (X2APIC, DISABLED),
}

# Offsets of the memory-mapped registers
ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR = 0x100, 0x180, 0x200     # eight registers each
ESR, ICR, ICR_HIGH = 0x280, 0x300, 0x310
LVT = 0x320                             # six registers, numbered so:
LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(6)
INITIAL_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0

VERSION_VALUE = LVT_ERROR << 16 | 0x14  # the greatest LVT number; an integrated APIC
X2APIC_ID, X2APIC_LDR = 0, 1 << 0       # cluster 0, its first processor
HIGH_BYTE, LOW_HALF = 0xFF00_0000, 0xFFFF_FFFF
DFR_MODEL = 0xF000_0000                 # the other bits are ones
FLAT, CLUSTER = 0xF, 0x0                # DFR bits 31-28
SVR_ENABLE = 0x100
SVR_BITS = SVR_ENABLE | VECTOR | 0x200  # focus checking, which does nothing here, as on newer processors
ESR_SEND_ILLEGAL_VECTOR, ESR_RECEIVE_ILLEGAL_VECTOR, ESR_ILLEGAL_REGISTER = 0x20, 0x40, 0x80
FIRST_VECTOR = 16                       # those below are illegal
DIVIDE_BITS = 0b1011

ICR_LOGICAL = 0x800
ICR_DELIVERY_STATUS = 0x1000            # never set: everything is delivered at once
ICR_SHORTHAND, ICR_ALL_BUT_SELF = 0xC_0000, 0xC_0000     # the other shorthands include this processor
ICR_LOW_BITS = VECTOR | DELIVERY_MODE | ICR_LOGICAL | 0xC000 | ICR_SHORTHAND
ICR_BITS = LOW_HALF << 32 | ICR_DELIVERY_STATUS | ICR_LOW_BITS
BROADCAST, X2APIC_BROADCAST = 0xFF, 0xFFFF_FFFF

LVT_STATUS = 0x1000                     # read-only as REMOTE_IRR is: an x2APIC write with them set is no fault
LVT_MODE_SHIFT = 17                     # the timer's mode
LVT_PLAIN = VECTOR | LVT_STATUS | MASKED
LVT_LINT = LVT_PLAIN | DELIVERY_MODE | 0x2000 | REMOTE_IRR | LEVEL_TRIGGERED
LVT_BITS = (LVT_PLAIN | 0x6_0000, LVT_PLAIN | DELIVERY_MODE, LVT_PLAIN | DELIVERY_MODE, LVT_LINT, LVT_LINT, LVT_PLAIN)


class ReservedRegister(ValueError):
    """An MSR that does not exist, cannot be accessed so, or has no such bits: the guest sees #GP."""


@frozen
class LapicState:
    """What a snapshot keeps of the local APIC; by default as section "Local APIC State After Power-Up" has it.

    `isr`, `tmr` and `irr` have 256 bits, one a vector.
    """

    apic_base: int = BASE | BASE_BSP | BASE_ENABLE
    identity: int = 0                   # these three as xAPIC registers
    ldr: int = 0
    dfr: int = LOW_HALF
    tpr: int = 0
    svr: int = 0xFF
    isr: int = 0
    tmr: int = 0
    irr: int = 0
    esr: int = 0                        # what can be read
    errors: int = 0                     # seen since ESR was last written
    icr: int = 0
    lvt: tuple[int, ...] = (MASKED,) * len(LVT_BITS)
    lint0: bool = False                 # level of the input
    extint_message: bool = False        # an ExtINT message came and was not acknowledged
    eoi_offered: bool = False           # the guest may end the interrupt in service in its memory
    timer: LapicTimerState = TIMER_RESET


RESET = LapicState()
# As a PC's firmware leaves it, the 8259A's interrupts passing through LINT0 ("virtual wire mode")
POWER_ON = replace(
    RESET,
    svr=SVR_ENABLE | 0xFF,
    lvt=(MASKED, MASKED, MASKED, LEVEL_TRIGGERED | EXTINT, LEVEL_TRIGGERED | NMI, MASKED),
)
