"""Ends machines that take too long or too much: their processes are killed, whatever their guests are doing."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from emu.errors import EmuError, GuestTimeout, MachineDied, MemoryLimit
from emu.process.client import MachineProcess

__all__ = ["Limits", "Watch", "Watched"]

MIB = 1 << 20
LOOK_S = 0.05                           # between two looks at memory
SHARE = 25                              # looks take no more than one part in so many of the time
IDLE_S = 3600.0


@dataclass(frozen=True)
class Limits:
    """What a job may take; None is without limit.

    Attributes:
        seconds: of the host, from when it has its machine.
        memory: bytes that its machine's process has for itself alone.
        output: bytes of stdout and stderr together.
    """

    seconds: float | None = None
    memory: int | None = None
    output: int | None = None

    def __post_init__(self) -> None:
        for name in "seconds", "memory", "output":
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"a limit of {value} {name} leaves nothing")


@dataclass(eq=False)
class Watched:
    """A machine that is watched.

    Attributes:
        error: why it was killed, None if it was not.
    """

    machine: MachineProcess
    what: str
    limits: Limits
    deadline: float | None
    error: EmuError | None = None


class Watch:
    """Watches machines in a thread of its own, which is there from the first limit on.

    A look at a process' memory takes the host's kernel a millisecond or two, so memory is looked at 20 times a second
    at most; a guest cannot take more than its RAM meanwhile.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()   # of all below
        self._watched: set[Watched] = set()
        self._due = 0.0                         # when the thread wakes up by itself
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def begin(self, machine: MachineProcess, limits: Limits, what: str) -> Watched:
        """Watch a machine.

        Args:
            machine: to be killed when it is over a limit.
            limits: seconds from now, and memory.
            what: it does, for the error.
        """
        deadline = None if limits.seconds is None else monotonic() + limits.seconds
        watched = Watched(machine, what, limits, deadline)
        if deadline is None and limits.memory is None:
            return watched
        with self._changed:
            if not self._is_closed:
                self._watched.add(watched)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="emu-pool-watch", daemon=True)
                    self._thread.start()
                elif min(deadline or math.inf, monotonic() + LOOK_S if limits.memory else math.inf) < self._due:
                    self._changed.notify()
        return watched

    def end(self, watched: Watched) -> None:
        """Watch it no longer."""
        with self._changed:
            self._watched.discard(watched)

    @contextmanager
    def over(self, machine: MachineProcess, limits: Limits, what: str) -> Iterator[None]:
        """Watch a machine inside; if it was killed, that is raised in place of whatever came of it."""
        watched = self.begin(machine, limits, what)
        try:
            yield
        except Exception:
            if watched.error is not None:
                raise watched.error from None
            raise
        finally:
            self.end(watched)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._watched.clear()
            self._changed.notify()

    def _run(self) -> None:
        looked, pause = monotonic(), 0.0
        while True:
            with self._changed:
                while not self._is_closed and (now := monotonic()) < self._next_due(looked + pause):
                    self._changed.wait(self._due - now)
                if self._is_closed:
                    return
                watched = list(self._watched)
            began = monotonic()
            for one in watched:
                self._look(one)
            looked = monotonic()
            pause = max(LOOK_S, SHARE * (looked - began))

    def _next_due(self, look: float) -> float:
        """When something is to be done next, given when memory would be looked at."""
        deadlines = (one.deadline for one in self._watched if one.deadline is not None)
        looks = (look for one in self._watched if one.limits.memory is not None)
        self._due = min(*deadlines, *looks, monotonic() + IDLE_S, math.inf)
        return self._due

    def _look(self, one: Watched) -> None:
        error: EmuError | None = None
        if one.deadline is not None and monotonic() >= one.deadline:
            error = GuestTimeout(f"{one.what} did not end within {one.limits.seconds:g} s")
        elif one.limits.memory is not None:
            try:
                private = one.machine.use().private_bytes
            except (MachineDied, OSError, KeyError):    # it is ending, and the kernel may show half of it
                return
            if private > one.limits.memory:
                most = one.limits.memory / MIB
                error = MemoryLimit(f"{one.what} took {private / MIB:.1f} MiB of memory, and may take {most:.1f}")
        with self._changed:
            if error is not None and one in self._watched:
                self._watched.discard(one)
                one.error = error
                one.machine.kill()
