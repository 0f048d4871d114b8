"""What a command in another process' machine writes, on its way to who started it."""

from __future__ import annotations

from collections.abc import Callable

from emu.errors import GuestError
from emu.job import MOST_OUTPUT, shown
from emu.process import messages as m
from emu.process.requests import Requests
from emu.process.wire import Frame

__all__ = ["Outputs", "Sink"]

Sink = Callable[[bytes], object]


class Outputs:
    """What a command writes: to functions as it comes, else kept.

    Args:
        requests: told of what is dealt with, since the guest waits for that.
        text: the command.
        stdout, stderr: the functions.
    """

    def __init__(self, requests: Requests, text: bytes, stdout: Sink | None, stderr: Sink | None) -> None:
        self._requests = requests
        self._text = text
        self._kept = {1: bytearray(), 2: bytearray()}
        self._sinks: dict[int, Sink] = {1: stdout or self._kept[1].extend, 2: stderr or self._kept[2].extend}
        self._untold = 0

    def take(self, frame: Frame[m.Reply]) -> None:
        """A reply has come."""
        body, number = frame.message.body, frame.message.number
        if not isinstance(body, m.Output) or body.stream not in self._sinks:
            frame.drop()
            return
        self._sinks[body.stream](frame.data)
        if len(self._kept[body.stream]) > MOST_OUTPUT:
            raise GuestError(f"{shown(self._text)} wrote more than {MOST_OUTPUT >> 20} MiB that nobody has read")
        self._untold += len(frame.data)
        if self._untold >= m.AHEAD // 2:
            self._requests.took(number, self._untold)
            self._untold = 0

    def kept(self) -> tuple[bytes, bytes]:
        """What went to no function."""
        return bytes(self._kept[1]), bytes(self._kept[2])
