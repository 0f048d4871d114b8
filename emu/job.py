"""A command that runs in the guest, as `emu.channel.Channel.start` gives it out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Protocol

from emu.errors import GuestError, GuestTimeout

__all__ = ["KILLED", "MOST_OUTPUT", "Job", "JobKeeper", "Output", "shown"]

KILLED = 128 + 9                # status of what SIGKILL ended
MOST_OUTPUT = 256 << 20         # bytes of either output that are kept for somebody to ask for
WINDOW = 1 << 20                # of one that is read as it comes; then the guest waits
INPUT_WINDOW = 256 << 10        # on their way to the guest before `write` waits
LOST_S = 1.0                    # for a guest that is about to stop or panic to do so: its devices go before it does


class JobKeeper(Protocol):
    """What a job asks of its channel."""

    def drive(self, until: Callable[[], bool], timeout: float | None, /) -> bool:
        """Run the guest until a condition holds (True) or a time in seconds has passed (False)."""

    def kill(self, job: Job, /) -> None:
        """End it and everything it started."""

    def resume(self, job: Job, /) -> None:
        """Take output again that did not fit before."""

    def feed(self, job: Job, /) -> None:
        """Send input; there is more of it, or it has ended."""


class Output:
    """One output of a job. Iterating over it runs the guest, and yields what the job writes as it comes.

    That raises what `Job.wait` does, `GuestTimeout` if the job was started with a timeout.
    """

    def __init__(self, job: Job, sink: Callable[[bytes], object] | None) -> None:
        self._job = job
        self._sink = sink
        self._kept = bytearray()
        self._limit = MOST_OUTPUT

    @property
    def is_full(self) -> bool:
        """Whether the guest has to wait until somebody reads."""
        return len(self._kept) >= self._limit

    @property
    def is_stuck(self) -> bool:
        """Whether it is full, and nobody has begun to read it as it comes."""
        return len(self._kept) >= MOST_OUTPUT

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come that was not read."""
        return not self._kept

    def stream(self) -> None:
        """Let the guest wait from now on while WINDOW bytes were not read."""
        self._limit = WINDOW

    def take(self, data: bytes) -> None:
        """More of it has come from the guest."""
        if self._sink is not None:
            self._sink(data)
        elif not self._job.killed:
            self._kept += data

    def read(self) -> bytes:
        """What has come so far and was not read yet, without waiting."""
        data, was_full = bytes(self._kept), self.is_full
        self._kept.clear()
        if was_full:
            self._job.keeper.resume(self._job)
        return data

    def __iter__(self) -> Iterator[bytes]:
        self.stream()
        while True:
            self._job.drive(lambda: bool(self._kept) or self._job.cannot_go_on)
            if not self._kept:
                self._job.check()
                return
            yield self.read()


class Job:
    """A command in the guest. Nothing of it happens but while the machine is driven.

    Attributes:
        status: exit status, 128 + n if signal n ended it; None until it is over.
        stdout, stderr: what it writes, unless that goes to a function.
    """

    def __init__(
        self,
        keeper: JobKeeper,
        text: bytes,
        input: bytes | None,
        is_written: bool,
        timeout: float | None,
        stdout: Callable[[bytes], object] | None,
        stderr: Callable[[bytes], object] | None,
    ) -> None:
        self.status: int | None = None
        self.keeper = keeper
        self.text = text
        self.killed = False
        self._timeout = timeout
        self._deadline = None if timeout is None else monotonic() + timeout
        self.failure: str | None = None
        self._lost_at = 0.0
        self.stdout = Output(self, stdout)
        self.stderr = Output(self, stderr)
        self.has_input = input is not None or is_written
        self.input_ended = not is_written
        self.input: deque[memoryview] = deque([memoryview(input)] if input else [])

    def __repr__(self) -> str:
        return f"<Job {shown(self.text)}: {'running' if self.status is None else self.status}>"

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or was lost."""
        return self.status is not None or self.failure is not None

    @property
    def cannot_go_on(self) -> bool:
        """Whether it is over, or waits for somebody to read its output."""
        return self.is_over or self.stdout.is_stuck or self.stderr.is_stuck

    def wait(self, timeout: float | None = None) -> int:
        """Run the guest until the command has ended and all of its output is here.

        Args:
            timeout: host seconds, None for as long as the job was given at its start; the command runs on after that.

        Returns:
            The exit status.

        Raises:
            GuestTimeout, GuestStopped: see above; the guest stopped before.
            GuestError: the guest's kernel panicked; it was lost with its shell in the guest; it wrote more than
                MOST_OUTPUT and nobody reads that.
        """
        if timeout is not None:
            self._timeout, self._deadline = timeout, monotonic() + timeout
        self.drive(lambda: self.cannot_go_on)
        self.check()
        assert self.status is not None
        return self.status

    def check(self) -> None:
        """Raise `GuestError` if it was lost, or waits for somebody to read its output.

        If the whole guest's end is what it was lost by, that is raised.
        """
        if self.failure is not None:
            self.keeper.drive(lambda: False, max(self._lost_at + LOST_S - monotonic(), 0))
            raise GuestError(self.failure)
        if self.status is None and (self.stdout.is_stuck or self.stderr.is_stuck):
            raise GuestError(f"{shown(self.text)} wrote more than {MOST_OUTPUT >> 20} MiB that nobody has read")

    def kill(self) -> None:
        """End the command and everything it started; what they wrote and was not read is dropped. Does not wait."""
        if not self.is_over:
            self.keeper.kill(self)

    def write(self, data: bytes) -> None:
        """Send more input to a command started for that; runs the guest while much is on its way.

        After the command's end this does nothing. Raises what `wait` does, and `GuestTimeout` as iterating does.
        """
        if self.input_ended:
            raise ValueError("the command's input has ended")
        if data and not self.is_over:
            self.input.append(memoryview(bytes(data)))
            self.keeper.feed(self)
            self.drive(lambda: self.is_over or self._on_their_way() < INPUT_WINDOW)

    def drive(self, until: Callable[[], bool]) -> None:
        """Run the guest until a condition holds; raises `GuestTimeout` once the time given for all of it is over."""
        left = None if self._deadline is None else max(self._deadline - monotonic(), 0)
        if not self.keeper.drive(until, left):
            raise GuestTimeout(f"{shown(self.text)} did not end within {self._timeout:g} s")

    def _on_their_way(self) -> int:
        return sum(map(len, self.input))

    def end_input(self) -> None:
        """The command has all of its input."""
        self.input_ended = True
        self.keeper.feed(self)

    def end(self, status: int) -> None:
        """It has ended."""
        self.status = status

    def fail(self, message: str) -> None:
        """How it ended will never be known."""
        self.failure = message
        self._lost_at = monotonic()


def shown(text: bytes) -> str:
    """A command for a message of one line."""
    line = repr(text.decode("utf-8", "replace"))
    return line if len(line) <= 80 else line[:77] + "..."
