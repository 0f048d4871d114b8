"""PV_CONSOLE: output without a serial port, its registers and their waiting."""

from __future__ import annotations

from hypercalls.buffer import IS_BUFFER, buffer_at
from hypercalls.call import Call, GuestFault
from hypercalls.numbers import PV_CONSOLE
from hypercalls.registry import hypercall

LARGEST_BYTE = 0xFF


@hypercall(PV_CONSOLE, "PV_CONSOLE")
def pv_console(call: Call) -> None:
    """Write to the machine's console: one byte, or a buffer.

    Guest ABI: WRMSR. With bit 63 clear, bits 7-0 are the byte and the others are 0. With bit 63 set, bits 47-0 are
    the guest-physical address of a buffer and bits 62-48 its size, 1 to 32,767 bytes. #GP if the buffer is not all
    RAM, or other bits are set beside a byte.
    """
    value = call.value
    if value & IS_BUFFER:
        call.machine.console_write(call.memory.read(*buffer_at(value)))
    elif value <= LARGEST_BYTE:
        call.machine.console_write(value.to_bytes(1, "little"))
    else:
        raise GuestFault
