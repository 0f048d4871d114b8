"""The putchar bypass: a UART's quick path in machine code (`PORT_OUT` and `PORT_IN` of thunks.lst)."""

from __future__ import annotations

from typing import Any

from emu.cpu.abi import address, ffi

BYPASS_BYTES = 4096
LSR_OFFSET = 5
NO_PORT = 0xFFFF_FFFF                   # a port number no access has: disarmed


class Bypass:
    """The putchar bypass of the UART at `port`: armed, THR writes and LSR reads never enter Python."""

    def __init__(self, context: Any, port: int) -> None:
        self._context = context
        self._port = port
        self.bytes_taken = 0
        self._memory = ffi.new("char[]", BYPASS_BYTES)
        context.buffer = address(self._memory)
        context.capacity = BYPASS_BYTES

    def arm(self, lsr: int | None) -> None:
        """Let THR writes be taken and LSR reads be answered by `lsr`; None sends both to the UART again."""
        context = self._context
        if lsr is None:
            context.thr_port = context.lsr_port = NO_PORT
        else:
            context.lsr = lsr
            context.thr_port = self._port
            context.lsr_port = self._port + LSR_OFFSET

    @property
    def is_empty(self) -> bool:
        """Whether no byte was taken since the last `take`."""
        return not self._context.used

    def take(self) -> bytes:
        """The bytes taken since the last call, in order."""
        used = self._context.used
        if not used:
            return b""
        data = ffi.buffer(self._memory, used)[:]
        self._context.used = 0
        self.bytes_taken += used
        return bytes(data)
