"""8042 keyboard controller of a PS/2 (IBM Personal System/2 Hardware Interface Technical Reference, 1988).

Neither a keyboard nor a mouse is attached. A byte sent to either is answered as the real controller does when no
device clocks it in: 0xFE, with the time-out bit in the status. The real one waits some milliseconds before that;
this one does not, so that Linux' i8042, atkbd and psmouse drivers find both ports and give up on both at once.
"""

from __future__ import annotations

from collections.abc import Callable

from devices import IrqLine, PortRanges
from devices.frozen import frozen

__all__ = ["I8042", "POWER_ON", "I8042State"]

DATA, STATUS_COMMAND = 0, 4  # offsets from port 0x60

STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM = 0x04  # as in the command byte: the controller has been tested
STATUS_COMMAND_LAST = 0x08  # the last write was to the command port
STATUS_UNLOCKED = 0x10  # the keyboard lock is open
STATUS_AUX = 0x20  # the output buffer's byte is from the auxiliary port
STATUS_TIMEOUT = 0x40

COMMAND_KEYBOARD_IRQ = 0x01
COMMAND_AUX_IRQ = 0x02
COMMAND_SYSTEM = 0x04
COMMAND_KEYBOARD_OFF = 0x10
COMMAND_AUX_OFF = 0x20
COMMAND_TRANSLATE = 0x40
COMMAND_MASK = 0x7F

OUTPUT_NOT_RESET = 0x01
OUTPUT_A20 = 0x02
OUTPUT_KEYBOARD_IRQ = 0x10
OUTPUT_AUX_IRQ = 0x20
OUTPUT_IRQS = OUTPUT_KEYBOARD_IRQ | OUTPUT_AUX_IRQ

READ_COMMAND_BYTE = 0x20
WRITE_COMMAND_BYTE = 0x60
AUX_DISABLE = 0xA7
AUX_ENABLE = 0xA8
AUX_TEST = 0xA9
SELF_TEST = 0xAA
KEYBOARD_TEST = 0xAB
KEYBOARD_DISABLE = 0xAD
KEYBOARD_ENABLE = 0xAE
READ_OUTPUT_PORT = 0xD0
WRITE_OUTPUT_PORT = 0xD1
WRITE_KEYBOARD_BUFFER = 0xD2
WRITE_AUX_BUFFER = 0xD3
WRITE_AUX = 0xD4
PULSE_OUTPUT_PORT = 0xF0  # to 0xff: bits 3-0 say which output port bits stay high

SELF_TEST_PASSED = 0x55
INTERFACE_TEST_PASSED = 0x00
RESEND = 0xFE  # what the controller answers in place of a device that is not there

NO_COMMAND = 0  # bytes written to the data port are for the keyboard
TAKE_PARAMETER = {WRITE_COMMAND_BYTE, WRITE_OUTPUT_PORT, WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER, WRITE_AUX}


@frozen
class I8042State:
    """What a snapshot keeps; at power-on it is as firmware leaves it: tested, translating, mouse port off.

    Attributes:
        output: the byte that the data port reads, also after it was taken.
        output_status: status bits that come with it: full, auxiliary, time-out.
        awaiting: the command whose parameter the next byte at the data port is, or NO_COMMAND.
        command_last: the last write was to the command port.
    """

    command_byte: int = COMMAND_TRANSLATE | COMMAND_AUX_OFF | COMMAND_SYSTEM | COMMAND_KEYBOARD_IRQ
    output_port: int = 0xC0 | OUTPUT_A20 | OUTPUT_NOT_RESET  # keyboard clock and data idle
    output: int = 0
    output_status: int = 0
    awaiting: int = NO_COMMAND
    command_last: bool = False


POWER_ON = I8042State()


class I8042:
    """The controller; it has always taken what was written, so the status never says that its input is full.

    Args:
        keyboard_irq: IRQ 1, high while a byte waits that is not from the auxiliary port.
        aux_irq: IRQ 12, high while a byte from the auxiliary port waits.
        reset: called when the guest pulls the CPU's reset line.
        state: what `save()` returned.
    """

    ports: PortRanges = ((0x60, 1), (0x64, 1))

    def __init__(
        self,
        keyboard_irq: IrqLine,
        aux_irq: IrqLine,
        reset: Callable[[], None],
        state: I8042State = POWER_ON,
    ) -> None:
        self._keyboard_irq = keyboard_irq
        self._aux_irq = aux_irq
        self._reset = reset
        self._command_byte = state.command_byte
        self._output_port = state.output_port
        self._output = state.output
        self._output_status = state.output_status
        self._awaiting = state.awaiting
        self._command_last = state.command_last
        self._update()

    def read(self, offset: int) -> int:
        """Read the status (offset 4), or take the byte from the output buffer (offset 0)."""
        if offset == STATUS_COMMAND:
            return self._status()
        self._output_status = 0
        self._update()
        return self._output

    def write(self, offset: int, value: int) -> None:
        """Give a command (offset 4), or its parameter or a byte for the keyboard (offset 0)."""
        self._command_last = offset == STATUS_COMMAND
        if self._command_last:
            self._awaiting = value if value in TAKE_PARAMETER else NO_COMMAND
            self._command(value)
        else:
            command, self._awaiting = self._awaiting, NO_COMMAND
            self._parameter(command, value)
        self._update()

    def save(self) -> I8042State:
        """The whole state."""
        return I8042State(
            command_byte=self._command_byte,
            output_port=self._output_port,
            output=self._output,
            output_status=self._output_status,
            awaiting=self._awaiting,
            command_last=self._command_last,
        )

    def _status(self) -> int:
        value = STATUS_UNLOCKED | self._output_status
        if self._command_byte & COMMAND_SYSTEM:
            value |= STATUS_SYSTEM
        if self._command_last:
            value |= STATUS_COMMAND_LAST
        return value

    def _command(self, command: int) -> None:
        if command == READ_COMMAND_BYTE:
            self._answer(self._command_byte)
        elif command == AUX_DISABLE:
            self._command_byte |= COMMAND_AUX_OFF
        elif command == AUX_ENABLE:
            self._command_byte &= ~COMMAND_AUX_OFF
        elif command == KEYBOARD_DISABLE:
            self._command_byte |= COMMAND_KEYBOARD_OFF
        elif command == KEYBOARD_ENABLE:
            self._command_byte &= ~COMMAND_KEYBOARD_OFF
        elif command == SELF_TEST:
            self._command_byte |= COMMAND_SYSTEM
            self._answer(SELF_TEST_PASSED)
        elif command in (AUX_TEST, KEYBOARD_TEST):
            self._answer(INTERFACE_TEST_PASSED)
        elif command == READ_OUTPUT_PORT:
            self._answer(self._output_port)
        elif command >= PULSE_OUTPUT_PORT and not command & OUTPUT_NOT_RESET:
            self._reset()

    def _parameter(self, command: int, value: int) -> None:
        if command == WRITE_COMMAND_BYTE:
            self._command_byte = value & COMMAND_MASK
        elif command == WRITE_OUTPUT_PORT:
            self._output_port = value
            if not value & OUTPUT_NOT_RESET:
                self._reset()
        elif command == WRITE_KEYBOARD_BUFFER:
            self._answer(value)
        elif command == WRITE_AUX_BUFFER:
            self._answer(value, STATUS_AUX)
        elif command == WRITE_AUX:
            self._command_byte &= ~COMMAND_AUX_OFF  # sending to a port switches it on
            self._answer(RESEND, STATUS_AUX | STATUS_TIMEOUT)
        else:
            self._command_byte &= ~COMMAND_KEYBOARD_OFF
            self._answer(RESEND, STATUS_TIMEOUT)

    def _answer(self, value: int, flags: int = 0) -> None:
        """Put a byte into the output buffer; one that was not read is lost."""
        self._output = value
        self._output_status = STATUS_OUTPUT_FULL | flags

    def _update(self) -> None:
        """Drive the interrupt lines, which two pins of the output port are."""
        full = self._output_status & (STATUS_OUTPUT_FULL | STATUS_AUX)
        keyboard = full == STATUS_OUTPUT_FULL and self._command_byte & COMMAND_KEYBOARD_IRQ != 0
        aux = full == STATUS_OUTPUT_FULL | STATUS_AUX and self._command_byte & COMMAND_AUX_IRQ != 0
        self._output_port = (
            self._output_port & ~OUTPUT_IRQS | (OUTPUT_KEYBOARD_IRQ if keyboard else 0) | (OUTPUT_AUX_IRQ if aux else 0)
        )
        self._keyboard_irq.set(keyboard)
        self._aux_irq.set(aux)
