"""16550A serial port (National Semiconductor PC16550D datasheet, June 1995), as wired in a PC.

The host end of the line is infinitely fast: a byte written is sent at once, so the transmitter is always empty, and
what the host sends fills the receive FIFO as soon as there is room; fewer characters than the trigger level are
reported at once as a character timeout. The host honours RTS like any wired terminal: it holds its characters back
while the guest has RTS low, which is how Linux' probing and clearing of an unopened port loses none of them.
The word length is not applied: every byte travels whole, whatever LCR says, so that a guest that never
programs the line is still readable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from devices import IrqLine, PortRanges
from devices.frozen import frozen

__all__ = ["COM1", "POWER_ON", "PutcharBypass", "Uart16550A", "UartState"]

COM1 = 0x3F8
FIFO_SIZE = 16

# Register offsets; DATA and IER are the divisor latch while LCR_DLAB is set.
DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)

IER_RDI = 0x01  # received data available, character timeout
IER_THRI = 0x02  # transmitter holding register empty
IER_RLSI = 0x04  # receiver line status
IER_MSI = 0x08  # modem status
IER_MASK = 0x0F

# Interrupt identification, highest priority first.
IIR_LINE_STATUS = 0x06
IIR_DATA = 0x04
IIR_TIMEOUT = 0x0C
IIR_THRE = 0x02
IIR_MODEM = 0x00
IIR_NONE = 0x01
IIR_FIFO = 0xC0

FCR_ENABLE = 0x01
FCR_CLEAR_RX = 0x02
FCR_TRIGGER_SHIFT = 6
TRIGGER_LEVELS = (1, 4, 8, 14)

LCR_BREAK = 0x40
LCR_DLAB = 0x80

MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
MCR_MASK = 0x1F

LSR_DR, LSR_OE, LSR_PE, LSR_FE, LSR_BI, LSR_THRE, LSR_TEMT, LSR_FIFO_ERROR = (1 << bit for bit in range(8))
LSR_CHARACTER_ERRORS = LSR_PE | LSR_FE | LSR_BI
LSR_IDLE = LSR_THRE | LSR_TEMT

MSR_DCTS, MSR_DDSR, MSR_TERI, MSR_DDCD, MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = (1 << bit for bit in range(8))
MSR_DELTAS = MSR_DCTS | MSR_DDSR | MSR_TERI | MSR_DDCD
MSR_LINES = MSR_CTS | MSR_DSR | MSR_RI | MSR_DCD
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD

# A character on its way to the guest: the byte, and above it the LSR error bits that come with it.
ERROR_SHIFT = 8
BREAK_CHARACTER = (LSR_BI | LSR_FE) << ERROR_SHIFT  # a break has no stop bit either

ONE_BYTE = tuple(bytes([value]) for value in range(256))  # spares an allocation for each byte written
LOOPED_INPUTS = tuple(
    (MSR_CTS if mcr & MCR_RTS else 0)
    | (MSR_DSR if mcr & MCR_DTR else 0)
    | (MSR_RI if mcr & MCR_OUT1 else 0)
    | (MSR_DCD if mcr & MCR_OUT2 else 0)
    for mcr in range(MCR_MASK + 1)
)


class PutcharBypass(Protocol):
    """A short cut past `Uart16550A.write` and `read` for the two accesses that printing consists of."""

    def arm(self, lsr: int | None) -> None:
        """Allow the short cut, or forbid it.

        Args:
            lsr: what every read of LSR answers while bytes written to THR are only collected;
                None sends both accesses to the UART again.
        """

    def take(self) -> bytes:
        """The bytes collected since the last call, in order."""


@frozen
class UartState:
    """What a snapshot keeps. A character is its byte with the LSR error bits it brings shifted left by 8.

    Attributes:
        fcr: FIFO enable and trigger level as last written; the self-clearing bits are zero.
        divisor: both halves of the divisor latch.
        line_errors: LSR bits 4-1, not read yet.
        thre_pending: the transmitter interrupt is due; never while IER forbids it.
        fifo: received characters the guest can read, oldest first.
        backlog: characters the host has sent that are still on the line.
    """

    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    scr: int = 0
    divisor: int = 12
    line_errors: int = 0
    msr: int = MSR_CONNECTED
    thre_pending: bool = False
    fifo: tuple[int, ...] = ()
    backlog: tuple[int, ...] = ()


POWER_ON = UartState()


class Uart16550A:
    """One serial port; see the module's text for what the line at its other end does.

    Args:
        irq: the interrupt request; as on every PC it is connected only while OUT2 is on.
        output: gets the bytes the guest sends, in order.
        bypass: armed whenever it cannot be told from the full path.
        base: first port; COM1 by default.
        state: what `save()` returned.
    """

    def __init__(
        self,
        irq: IrqLine,
        output: Callable[[bytes], None],
        bypass: PutcharBypass | None = None,
        base: int = COM1,
        state: UartState = POWER_ON,
    ) -> None:
        self.ports: PortRanges = ((base, 8),)
        self._irq = irq
        self._output = output
        self._bypass = bypass
        self._ier = state.ier
        self._fcr = state.fcr
        self._lcr = state.lcr
        self._mcr = state.mcr
        self._scr = state.scr
        self._divisor = state.divisor
        self._line_errors = state.line_errors
        self._msr = state.msr
        self._thre_pending = state.thre_pending
        self._fifo = deque(state.fifo)
        self._backlog = deque(state.backlog)
        self._quiet_lsr: int | None = None
        if bypass is not None:
            bypass.arm(None)
        self._update()

    def read(self, offset: int) -> int:
        """Read the register at `offset` (0..7), with the side effects the datasheet gives it."""
        if offset == LSR and self._quiet_lsr is not None:
            return self._quiet_lsr
        return self._READERS[offset](self)

    def write(self, offset: int, value: int) -> None:
        """Write `value` (0..0xff) to the register at `offset` (0..7)."""
        if offset == DATA and self._quiet_lsr is not None:
            if self._bypass is not None:
                self.flush_bypass()
            self._output(ONE_BYTE[value])
            return
        self._WRITERS[offset](self, value)

    def receive(self, data: bytes) -> None:
        """Send `data` from the host to the guest; it waits on the line, without limit, until the guest has room."""
        self._backlog.extend(data)
        self._feed()

    def send_break(self) -> None:
        """Send a break from the host, after everything sent before."""
        self._backlog.append(BREAK_CHARACTER)
        self._feed()

    def flush_bypass(self) -> None:
        """Pass on what the bypass has collected; nothing to do without one."""
        if self._bypass is not None and (collected := self._bypass.take()):
            self._output(collected)

    def save(self) -> UartState:
        """The whole state; what the bypass has collected is sent first, as it is no longer part of it."""
        self.flush_bypass()
        return UartState(
            ier=self._ier,
            fcr=self._fcr,
            lcr=self._lcr,
            mcr=self._mcr,
            scr=self._scr,
            divisor=self._divisor,
            line_errors=self._line_errors,
            msr=self._msr,
            thre_pending=self._thre_pending,
            fifo=tuple(self._fifo),
            backlog=tuple(self._backlog),
        )

    # Registers

    def _read_data(self) -> int:
        if self._lcr & LCR_DLAB:
            return self._divisor & 0xFF
        if not self._fifo:
            return 0
        character = self._fifo.popleft()
        if self._fifo:
            self._reveal_errors()
        self._update()
        if not self._fifo:
            # Refilled only now, after the interrupt line was seen low: a guest that leaves its handler before a long
            # backlog is through gets the new edge that an edge-triggered interrupt controller needs.
            self._feed()
        return character

    def _write_data(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        if self._mcr & MCR_LOOP:
            if not self._lcr & LCR_BREAK:
                self._push(value)
        elif not self._lcr & LCR_BREAK:  # while the line is held in a break, what is sent goes nowhere
            self.flush_bypass()
            self._output(ONE_BYTE[value])
        self._thre_pending = self._ier & IER_THRI != 0  # full for no time at all, and empty again
        self._update()

    def _read_ier(self) -> int:
        return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier

    def _write_ier(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = value << 8 | self._divisor & 0xFF
            return
        # Enabling the interrupt while the transmitter is empty raises it; Linux tests for that.
        enabled = value & IER_THRI != 0
        self._thre_pending = enabled and (self._thre_pending or not self._ier & IER_THRI)
        self._ier = value & IER_MASK
        self._update()

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_THRE:
            self._thre_pending = False
            self._update()
        return cause | IIR_FIFO if self._fcr & FCR_ENABLE else cause

    def _write_fcr(self, value: int) -> None:
        if not value & FCR_ENABLE:
            value = 0  # the other bits are not programmed without it
        if value & FCR_CLEAR_RX or (value ^ self._fcr) & FCR_ENABLE:
            self._fifo.clear()
        self._fcr = value & (FCR_ENABLE | 0b11 << FCR_TRIGGER_SHIFT)
        self._update()
        self._feed()

    def _read_lcr(self) -> int:
        return self._lcr

    def _write_lcr(self, value: int) -> None:
        self._change_line(value, self._mcr)

    def _read_mcr(self) -> int:
        return self._mcr

    def _write_mcr(self, value: int) -> None:
        self._change_line(self._lcr, value & MCR_MASK)

    def _read_lsr(self) -> int:
        value = self._line_status()
        self._line_errors = 0
        self._update()
        return value

    def _read_msr(self) -> int:
        value = self._msr
        self._msr &= MSR_LINES
        self._update()
        return value

    def _read_scr(self) -> int:
        return self._scr

    def _write_scr(self, value: int) -> None:
        self._scr = value

    def _ignore(self, value: int) -> None:
        """LSR and MSR are read-only here; the datasheet keeps writing them for factory tests."""

    _READERS = (_read_data, _read_ier, _read_iir, _read_lcr, _read_mcr, _read_lsr, _read_msr, _read_scr)
    _WRITERS = (_write_data, _write_ier, _write_fcr, _write_lcr, _write_mcr, _ignore, _ignore, _write_scr)

    # The line

    def _change_line(self, lcr: int, mcr: int) -> None:
        looped_break = self._lcr & LCR_BREAK and self._mcr & MCR_LOOP
        self._lcr, self._mcr = lcr, mcr
        self._change_modem_inputs(LOOPED_INPUTS[mcr] if mcr & MCR_LOOP else MSR_CONNECTED)
        if lcr & LCR_BREAK and mcr & MCR_LOOP and not looped_break:
            self._push(BREAK_CHARACTER)
        self._update()
        self._feed()

    def _change_modem_inputs(self, inputs: int) -> None:
        changed = self._msr & MSR_LINES ^ inputs
        if inputs & MSR_RI:
            changed &= ~MSR_RI  # only the end of ringing is reported
        self._msr = inputs | self._msr & MSR_DELTAS | changed >> 4

    def _feed(self) -> None:
        """Move characters off the line while there is room; loopback disconnects the line and drops RTS."""
        if not self._backlog or self._mcr & (MCR_LOOP | MCR_RTS) != MCR_RTS:
            return
        room = (FIFO_SIZE if self._fcr & FCR_ENABLE else 1) - len(self._fifo)
        if room <= 0:
            return
        for _ in range(min(room, len(self._backlog))):
            self._push(self._backlog.popleft())
        self._update()

    def _push(self, character: int) -> None:
        """A character has arrived in the shift register."""
        if self._fcr & FCR_ENABLE:
            if len(self._fifo) == FIFO_SIZE:
                self._line_errors |= LSR_OE  # the character is lost, the FIFO is not touched
                return
        elif self._fifo:
            self._line_errors |= LSR_OE
            self._fifo.clear()  # without a FIFO it is the older character that is lost
        self._fifo.append(character)
        if len(self._fifo) == 1:
            self._reveal_errors()

    def _reveal_errors(self) -> None:
        """The errors of the character that is now next go to LSR."""
        self._line_errors |= self._fifo[0] >> ERROR_SHIFT
        self._fifo[0] &= 0xFF

    # What the registers add up to

    def _line_status(self) -> int:
        value = LSR_IDLE | self._line_errors
        if self._fifo:
            value |= LSR_DR
        if self._fcr & FCR_ENABLE and (
            self._line_errors & LSR_CHARACTER_ERRORS or max(self._fifo, default=0) >> ERROR_SHIFT
        ):
            value |= LSR_FIFO_ERROR
        return value

    def _cause(self) -> int:
        """The pending interrupt of the highest priority, as IIR bits 3-0."""
        ier = self._ier
        if ier & IER_RLSI and self._line_errors:
            return IIR_LINE_STATUS
        if ier & IER_RDI and self._fifo:
            full = not self._fcr & FCR_ENABLE or len(self._fifo) >= TRIGGER_LEVELS[self._fcr >> FCR_TRIGGER_SHIFT]
            return IIR_DATA if full else IIR_TIMEOUT
        if self._thre_pending:
            return IIR_THRE
        if ier & IER_MSI and self._msr & MSR_DELTAS:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        """Drive the interrupt line, and arm or disarm the bypass, after any change.

        The short cut is open while a THR write changes nothing but the output (no DLAB, loopback or break, and an
        interrupt that it would raise is off or due already) and an LSR read clears nothing (no error in it).
        """
        self._irq.set(self._cause() != IIR_NONE and self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2)
        quiet = (
            not self._line_errors
            and not self._lcr & (LCR_DLAB | LCR_BREAK)
            and not self._mcr & MCR_LOOP
            and (self._thre_pending or not self._ier & IER_THRI)
        )
        lsr = self._line_status() if quiet else None
        if lsr != self._quiet_lsr:
            self._quiet_lsr = lsr
            if self._bypass is not None:
                self._bypass.arm(lsr)
