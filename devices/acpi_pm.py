"""ACPI power management hardware (ACPI specification 6.4, section 4.8), and the reset register beside it.

The registers lie as in Intel's ICH9, from port 0x600. The machine is always in ACPI mode: there is no SMI command port.
"""

from __future__ import annotations

from collections.abc import Callable

from devices import Clock, IrqLine, PortRanges
from devices.frozen import frozen

__all__ = [
    "GPE0_BLOCK", "GPE0_LENGTH", "PM1A_CONTROL", "PM1A_CONTROL_LENGTH", "PM1A_EVENT", "PM1A_EVENT_LENGTH", "PM_TIMER",
    "PM_TIMER_LENGTH", "POWER_ON", "RESET_PORT", "RESET_POWER_ON", "RESET_VALUE", "SLEEP_TYPE_S5", "AcpiPm",
    "AcpiPmState", "ResetControl", "ResetControlState",
]

BASE = 0x600
PM1_STATUS, PM1_ENABLE, PM1_CONTROL, TIMER, GPE0_STATUS, GPE0_ENABLE = 0x00, 0x02, 0x04, 0x08, 0x20, 0x24
SIZES = {PM1_STATUS: 2, PM1_ENABLE: 2, PM1_CONTROL: 2, TIMER: 4, GPE0_STATUS: 4, GPE0_ENABLE: 4}

PM1A_EVENT, PM1A_EVENT_LENGTH = BASE + PM1_STATUS, 4        # blocks, as the FADT gives them
PM1A_CONTROL, PM1A_CONTROL_LENGTH = BASE + PM1_CONTROL, 2
PM_TIMER, PM_TIMER_LENGTH = BASE + TIMER, 4
GPE0_BLOCK, GPE0_LENGTH = BASE + GPE0_STATUS, 8

TMR_STS, GBL_STS, PWRBTN_STS, SLPBTN_STS, RTC_STS = TMR_EN, GBL_EN, PWRBTN_EN, SLPBTN_EN, RTC_EN = (
    1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10
)
ENABLES = TMR_EN | GBL_EN | PWRBTN_EN | SLPBTN_EN | RTC_EN
SCI_EN, BM_RLD = 1 << 0, 1 << 1
SLP_TYP, SLP_TYP_SHIFT = 0b111 << 10, 10
SLP_EN = 1 << 13                    # write only
SLEEP_TYPE_S5 = 5                   # the DSDT's _S5 says the same

TIMER_HZ = 3_579_545
TIMER_MASK = 0xFFFF_FFFF
CARRY_SHIFT = 31                    # TMR_STS is set whenever the counter's highest bit changes
NS_PER_S = 1_000_000_000
GPE_GENERATION = 0                  # the VM generation ID is another one
GPE_COUNT = 8 * SIZES[GPE0_STATUS]

RESET_PORT = 0xCF9
RST_CPU = 1 << 2
RESET_BITS = 0x0E                   # SYS_RST, RST_CPU, FULL_RST
RESET_VALUE = 0x06                  # what resets the machine


@frozen
class AcpiPmState:
    """What a snapshot keeps of the registers; the timer counts guest time."""

    status: int = 0                 # without TMR_STS
    enable: int = 0
    control: int = SCI_EN
    carries: int = 0                # changes of the timer's highest bit that the guest has cleared from TMR_STS
    gpe_status: int = 0
    gpe_enable: int = 0


POWER_ON = AcpiPmState()


class AcpiPm:
    """PM1a event and control blocks, the PM timer of 32 bits, and one general-purpose event block of 32 events.

    Args:
        sci: high while an enabled event's status bit is set.
        clock: guest time, which the PM timer counts.
        power_off: called when the guest enters S5.
        state: registers to start with.
    """

    ports: PortRanges = ((BASE, 0x0C), (BASE + GPE0_STATUS, GPE0_LENGTH))

    def __init__(
        self, sci: IrqLine, clock: Clock, power_off: Callable[[], None], state: AcpiPmState = POWER_ON
    ) -> None:
        self._sci = sci
        self._clock = clock
        self._power_off = power_off
        self._status = state.status
        self._enable = state.enable
        self._control = state.control
        self._carries = state.carries
        self._gpe_status = state.gpe_status
        self._gpe_enable = state.gpe_enable
        self._timer = clock.timer(self._update)
        self._update()

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes, of one register or of neighbours; zero between them."""
        value = 0
        for register, length in SIZES.items():
            if register < offset + size and offset < register + length:
                shift = 8 * (register - offset)
                bits = self._read(register)
                value |= bits << shift if shift >= 0 else bits >> -shift
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes, of one register or of neighbours; the rest of a register stays as it is."""
        written = (1 << 8 * size) - 1
        for register, length in SIZES.items():
            if register < offset + size and offset < register + length:
                shift = 8 * (offset - register)
                limit = (1 << 8 * length) - 1
                mask = (written << shift if shift >= 0 else written >> -shift) & limit
                bits = (value << shift if shift >= 0 else value >> -shift) & mask
                self._write(register, bits, mask)
        self._update()

    def press_power_button(self) -> None:
        """Ask the guest to shut down."""
        self._status |= PWRBTN_STS
        self._update()

    def trigger_gpe(self, number: int) -> None:
        """General-purpose event `number` has happened; it stays pending until the guest clears it.

        Raises:
            ValueError: there is no such event.
        """
        if not 0 <= number < GPE_COUNT:
            raise ValueError(f"no general-purpose event {number}: there are {GPE_COUNT}")
        self._gpe_status |= 1 << number
        self._update()

    def save(self) -> AcpiPmState:
        """The registers."""
        return AcpiPmState(
            status=self._status, enable=self._enable, control=self._control, carries=self._carries,
            gpe_status=self._gpe_status, gpe_enable=self._gpe_enable,
        )

    def _read(self, register: int) -> int:
        if register == PM1_STATUS:
            return self._pm1_status()
        if register == PM1_ENABLE:
            return self._enable
        if register == PM1_CONTROL:
            return self._control
        if register == TIMER:
            return self._count() & TIMER_MASK
        return self._gpe_status if register == GPE0_STATUS else self._gpe_enable

    def _write(self, register: int, bits: int, mask: int) -> None:
        """Write the bits of a register that are in `mask`; the others of `bits` are zero."""
        if register == PM1_STATUS:
            self._status &= ~bits
            if bits & TMR_STS:
                self._carries = self._count() >> CARRY_SHIFT
        elif register == PM1_ENABLE:
            self._enable = (self._enable & ~mask | bits) & ENABLES
        elif register == PM1_CONTROL:
            self._write_control(self._control & ~mask | bits)
        elif register == GPE0_STATUS:
            self._gpe_status &= ~bits
        elif register == GPE0_ENABLE:
            self._gpe_enable = self._gpe_enable & ~mask | bits

    def _write_control(self, value: int) -> None:
        self._control = value & (SLP_TYP | BM_RLD) | SCI_EN
        if value & SLP_EN and (value & SLP_TYP) >> SLP_TYP_SHIFT == SLEEP_TYPE_S5:
            self._power_off()

    def _count(self) -> int:
        """The PM timer's ticks since guest time 0, unlimited."""
        return self._clock.now_ns() * TIMER_HZ // NS_PER_S

    def _pm1_status(self) -> int:
        carried = self._count() >> CARRY_SHIFT != self._carries
        return self._status | (TMR_STS if carried else 0)

    def _update(self) -> None:
        """Drive the line, and wake up for the timer's next carry if the guest wants to know of it."""
        status = self._pm1_status()
        self._sci.set(bool(status & self._enable or self._gpe_status & self._gpe_enable))
        if self._enable & TMR_EN and not status & TMR_STS:
            ticks = self._carries + 1 << CARRY_SHIFT
            self._timer.arm(-(-ticks * NS_PER_S // TIMER_HZ))
        else:
            self._timer.disarm()


@frozen
class ResetControlState:
    """What a snapshot keeps of the reset control register."""

    value: int = 0


RESET_POWER_ON = ResetControlState()


class ResetControl:
    """The reset control register at port 0xCF9 (Intel ICH9 datasheet, section 13.7.5), inside PCI's ports.

    Args:
        reset: called when RST_CPU rises.
        state: the register to start with.
    """

    def __init__(self, reset: Callable[[], None], state: ResetControlState = RESET_POWER_ON) -> None:
        self._reset = reset
        self._value = state.value

    def read(self) -> int:
        """Read the register's byte."""
        return self._value

    def write(self, value: int) -> None:
        """Write the register's byte."""
        before, self._value = self._value, value & RESET_BITS
        if self._value & RST_CPU and not before & RST_CPU:
            self._reset()

    def save(self) -> ResetControlState:
        """The register."""
        return ResetControlState(self._value)
