"""A machine for the length of one command, and signals that end both at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import emu
from emu.cli import Interrupted
from emu.cli.options import GuestOptions, RestoreOptions
from emu.errors import GuestStopped
from emu.phases import Phases
from emu.terminal import restore_terminal

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["booted", "ending_signals", "log_to_stderr", "restored", "run_shown", "show", "stats_at_end"]

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def log_to_stderr() -> None:
    """Show what the machine's parts tell: who was asked for what, and why nobody answered."""
    import logging

    logging.basicConfig(level=logging.INFO, format="emu: %(name)s: %(message)s")


class _Signals:
    """Ends the command at the first of ENDING_SIGNALS.

    While a machine runs, a handler may run below a callback from native code, where an exception is lost: so it
    asks the machine to stop, and the exception is raised when it has.
    """

    def __init__(self) -> None:
        self.machine: Machine | None = None
        self.received = 0

    def handle(self, number: int, _frame: FrameType | None) -> None:
        restore_terminal()
        if self.received:
            os._exit(128 + number)      # the first one had no effect
        self.received = number
        if self.machine is None:
            raise Interrupted(number)
        self.machine.request_stop()


@contextmanager
def ending_signals() -> Iterator[_Signals]:
    """Raise `Interrupted` when a signal says that the command is to end, or when the machine given has stopped then."""
    signals = _Signals()
    usual = {number: signal.signal(number, signals.handle) for number in ENDING_SIGNALS}
    try:
        yield signals
    except GuestStopped:
        if signals.received:
            raise Interrupted(signals.received) from None
        raise
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if signals.received:
        raise Interrupted(signals.received)


def show(stream: TextIO, data: bytes) -> None:
    """Pass bytes on to one of our outputs, as they are and at once."""
    stream.buffer.write(data)
    stream.buffer.flush()


def run_shown(machine: Machine, words: Sequence[str], timeout: float | None, phases: Phases) -> int:
    """Run a command in the guest, show its outputs as they come, and time it; its exit status."""
    started = phases.elapsed_s()
    stdout, stderr = partial(show, sys.stdout), partial(show, sys.stderr)
    result = machine.run(list(words), timeout=timeout, stdout=stdout, stderr=stderr)
    ended = phases.elapsed_s()
    phases.add("run", started, ended - result.read_s)
    phases.add("read result", ended - result.read_s, ended)
    return result.status


@contextmanager
def stats_at_end(machine: Machine, wanted: bool) -> Iterator[None]:
    """Show a machine's statistics on standard error when the body of a `with` has ended, however it did."""
    try:
        yield
    finally:
        if wanted:
            print(machine.stats().table(), file=sys.stderr)


@contextmanager
def booted(options: GuestOptions, phases: Phases, accounting: bool = False) -> Iterator[Machine]:
    """A machine with its guest loaded, closed at the end; raises `Interrupted` after a signal."""
    with ending_signals() as signals:
        with emu.boot("alpine", phases=phases, accounting=accounting, **vars(options)) as machine:
            signals.machine = machine
            try:
                yield machine
            finally:
                signals.machine = None


@contextmanager
def restored(snapshot: Path, options: RestoreOptions, phases: Phases) -> Iterator[Machine]:
    """A snapshot's machine, closed at the end; raises `Interrupted` after a signal."""
    from emu.snapshot.machine import restore

    with ending_signals() as signals:
        with restore(snapshot, phases=phases, **vars(options)) as machine:
            signals.machine = machine
            try:
                yield machine
            finally:
                signals.machine = None
