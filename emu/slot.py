"""Where one command at a time runs in the guest: two ports of the channel, and what comes out of them.

`emu/images/agent.sh` says what goes over them.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from functools import partial
from typing import Protocol

from devices.log import Log
from emu.job import KILLED, Job, Output, shown

__all__ = ["Marks", "PortLike", "Slot", "SlotState"]

_log = Log("emu.channel")

MARK = b"\x1e"
CODE_SIZE = 4                   # of what follows a mark's token
READY, EOF = b"rdy\n", b"eof\n"
NEXT = b"n\n"                   # a shell for the next command is to be started
LONGEST_INLINE = 2000           # bytes of a command that go as lines, which the guest reads byte by byte
PLAIN = bytes([9, 10, *range(32, 127)])
COMPLAINTS = 10                 # about a slot, that are logged
FRAME = 256 << 10               # of input; the guest starts a process for each


class PortLike(Protocol):
    """What a slot uses of `devices.virtio.console_port.Port`."""

    guest_open: bool
    pending: int
    received: Callable[[bytes], None] | None
    opened: Callable[[bool], None] | None
    drained: Callable[[], None] | None

    def open(self) -> None:
        """Tell the guest that somebody is here."""

    def send(self, data: bytes | bytearray | memoryview, /) -> None:
        """Send bytes to the guest."""

    def pause(self) -> None:
        """Take nothing more from the guest."""

    def resume(self) -> None:
        """End that."""


class SlotState(enum.Enum):
    """What a slot can be asked to do."""

    CLOSED = enum.auto()        # nothing is there
    STARTING = enum.auto()      # the agent has been asked for it
    FREE = enum.auto()
    BUSY = enum.auto()          # a command runs, or something that it left behind can still write
    ENDING = enum.auto()        # it has been killed


class Marks:
    """Tells a slot's marks from the output between them, wherever the stream is cut.

    Args:
        token: what makes them marks.
        data: called with output.
        mark: called with the code of a mark.
    """

    def __init__(self, token: str, data: Callable[[bytes], None], mark: Callable[[bytes], None]) -> None:
        self._start = MARK + token.encode()
        self._size = len(self._start) + CODE_SIZE
        self._data = data
        self._mark = mark
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Take more of the stream."""
        if self._held:
            data, self._held = self._held + data, b""
        done = 0
        while (found := data.find(self._start, done)) >= 0 and found + self._size <= len(data):
            self._give(data, done, found)
            done = found + self._size
            self._mark(data[done - CODE_SIZE : done])
        keep = found if found >= 0 else self._incomplete(data, done)
        self._give(data, done, keep)
        self._held = data[keep:]

    def _give(self, data: bytes, start: int, end: int) -> None:
        if start < end:
            self._data(data[start:end])

    def _incomplete(self, data: bytes, done: int) -> int:
        """Where a mark may begin whose rest has not come."""
        at = data.find(MARK, max(done, len(data) - len(self._start) + 1))
        while at >= 0 and not self._start.startswith(data[at:]):
            at = data.find(MARK, at + 1)
        return at if at >= 0 else len(data)


class Slot:
    """One of the channel's places for a command.

    Args:
        number: what the agent knows it by.
        out, err: its ports: requests and output, input and errors.
        changed: called when it has become free or closed; told whether it could not even be started.
        token: of a slot that was free in a machine that this one goes on for.
    """

    def __init__(
        self, number: int, out: PortLike, err: PortLike, changed: Callable[[bool], None], token: str = ""
    ) -> None:
        self.number = number
        self.state = SlotState.CLOSED
        self.token = token
        self.job: Job | None = None
        self._ports = out, err
        self._changed = changed
        self._seen: tuple[set[str], set[str]] = (set(), set())
        self._input_ended = True
        self._is_feeding = False
        self._unknown_marks = 0
        for port in self._ports:
            port.opened = self._opened
            port.open()
        err.drained = self.feed
        if token and out.guest_open and err.guest_open:
            self.state = SlotState.FREE
            self._listen()

    @property
    def is_settling(self) -> bool:
        """Whether its command has ended, but might have left something behind."""
        return self.state is SlotState.BUSY and self._job_is_over()

    def start(self) -> str:
        """The agent is being asked for it; its new token."""
        self.token = os.urandom(8).hex()
        self.state = SlotState.STARTING
        self._seen = (set(), set())
        self._listen()
        return self.token

    def _listen(self) -> None:
        for side, port in enumerate(self._ports):
            port.received = Marks(self.token, partial(self._output, side), partial(self._marked, side)).feed
            port.resume()

    # --- a command ----------------------------------------------------------------------------------------------

    def run(self, job: Job) -> None:
        """Start a command in a free slot."""
        self.state = SlotState.BUSY
        self.job = job
        self._seen = (set(), set())
        self._input_ended = not job.has_input
        self._ports[0].send(_request(job))
        self.feed()

    def feed(self) -> None:
        """Send the job's input as the guest takes it."""
        err, job = self._ports[1], self.job
        if self._is_feeding:            # sending may drain the port, which calls this
            return
        self._is_feeding = True
        while not self._input_ended and not err.pending:
            if job is None or job.is_over or (job.input_ended and not job.input):
                self._input_ended = True
                err.send(b"0\n")
            elif not job.input:
                break
            else:
                data = job.input.popleft()
                if len(data) > FRAME:
                    job.input.appendleft(data[FRAME:])
                    data = data[:FRAME]
                err.send(b"%d\n" % len(data))
                err.send(data)
        self._is_feeding = False

    def kill(self) -> None:
        """The agent is being asked to end everything in it; output is dropped until it has."""
        self.state = SlotState.ENDING
        for port in self._ports:
            port.resume()

    def resume(self) -> None:
        """Somebody has read output: take more if there was too much."""
        for port, output in zip(self._ports, self._outputs(), strict=True):
            if not output.is_full:
                port.resume()

    # --- what comes out -----------------------------------------------------------------------------------------

    def _outputs(self) -> tuple[Output, ...]:
        return (self.job.stdout, self.job.stderr) if self.job is not None else ()

    def _output(self, side: int, data: bytes) -> None:
        """Output of the job; after its end it is of nobody who is asked about it."""
        if self.job is None or "end" in self._seen[side] or self.state is SlotState.ENDING:
            return
        output = self._outputs()[side]
        output.take(data)
        if output.is_full:
            self._ports[side].pause()

    def _marked(self, side: int, code: bytes) -> None:
        if code in (READY, EOF):
            self._seen[side].add(code.decode().rstrip())
        elif code[:3].isdigit() and int(code[:3]) <= 255:
            self._seen[side].add("end")
            if all("end" in seen for seen in self._seen) and self.job is not None:
                self.job.end(int(code[:3]))
                self.feed()
        else:
            self._unknown_marks += 1
            if self._unknown_marks <= COMPLAINTS:
                _log.info("slot %d of the guest's agent sent an unknown mark, %r", self.number, code)
        if self._has_both("rdy", SlotState.STARTING) or (self._has_both("eof", SlotState.BUSY) and self._job_is_over()):
            self.state = SlotState.FREE
            self.job = None
            self._ports[0].send(NEXT)
            self._changed(False)

    def _has_both(self, mark: str, state: SlotState) -> bool:
        return self.state is state and all(mark in seen for seen in self._seen)

    def _job_is_over(self) -> bool:
        return self.job is None or self.job.is_over

    def _opened(self, is_open: bool) -> None:
        """The guest has opened or closed one of the ports."""
        if is_open or any(port.guest_open for port in self._ports) or self.state is SlotState.CLOSED:
            return
        job, self.job = self.job, None
        has_failed = self.state is SlotState.STARTING
        self.state = SlotState.CLOSED
        self._input_ended = True
        for port in self._ports:
            port.received = None
        if job is not None and not job.is_over:
            if job.killed:
                job.end(KILLED)
            else:
                job.fail(f"{shown(job.text)} was lost: its shell in the guest has ended")
        self._changed(has_failed)


def _request(job: Job) -> bytes:
    """What tells the guest to run a command."""
    text = job.text
    if len(text) <= LONGEST_INLINE and not text.translate(None, PLAIN):
        return b"l %d %d\n%b\n" % (text.count(b"\n") + 1, job.has_input, text)
    return b"b %d %d\n%b" % (len(text), job.has_input, text)
