"""The machines of a test, and what they have in common."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from emu.errors import EmuError, GuestTimeout
from emu.fittings import FIRST_CID, VsockNetwork
from emu.fleet.failures import OutOfTime
from emu.fleet.log import Log
from emu.fleet.machine import TIMEOUT_S, FleetMachine, retry
from emu.fleet.origin import Origin, Templates
from emu.process.client import MachineProcess

__all__ = ["DEFAULT_TIMEOUT_S", "Fleet"]

__tracebackhide__ = True                # pytest shows the test's own lines

T = TypeVar("T")
Path_ = str | os.PathLike[str]

DEFAULT_TIMEOUT_S = 3600.0              # for a whole test, as in NixOS
SHARED_DIRECTORY = "shared"

_subtests: ContextVar[tuple[str, ...]] = ContextVar("subtests", default=())


def show(line: str) -> None:
    """Print a line of the log, on standard error."""
    print(line, file=sys.stderr, flush=True)


class Fleet:
    """Machines by name, on a private network, with a directory that all of them have at /mnt/shared.

    A context manager: at its end every machine is gone, and so is what was made on the host for them. An exception
    that leaves it gets the failure report as a note.

    Args:
        names: of machines that are the default guest.
        shared: a directory of the host for all machines; None: an empty one, as long as the fleet lives.
        timeout: host seconds for the whole test.
        sink: called with each line of the log; None: it is shown on standard error.

    Raises:
        EmuError: a name that is none; the host has no room for the directory.

    Attributes:
        machines: by name, in the order in which they were added.
        shared: the directory that all have.
        directory: where the machines' vsock sockets are, each by its CID (docs/fleet.md).
        timeout: as handed in; may be changed.
        log: what was done.
        added: called with each machine before it is one of them.
        failed_in: the subtests that the last failure passed through, the outermost first.
    """

    def __init__(
        self,
        *names: str,
        shared: Path_ | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        sink: Callable[[str], object] | None = None,
    ) -> None:
        self.machines: dict[str, FleetMachine] = {}
        self.timeout = timeout
        self.log = Log(sink or show)
        self.added: Callable[[FleetMachine], None] | None = None
        self.failed_in: tuple[str, ...] = ()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._processes: set[MachineProcess] = set()
        self._is_closed = False
        if shared is not None and not os.path.isdir(shared):
            raise EmuError(f"{os.fspath(shared)} is no directory")
        try:
            self._temporary = Path(tempfile.mkdtemp(prefix="emu-fleet-"))
        except OSError as error:
            raise EmuError(f"cannot make a directory for the fleet: {error.strerror}") from None
        self.directory = self._temporary / "vsock"
        self.directory.mkdir()
        self.shared = Path(os.path.abspath(shared)) if shared is not None else self._temporary / SHARED_DIRECTORY
        self.shared.mkdir(exist_ok=True)
        self._templates = Templates(self.shared, self.log.note)
        try:
            for name in names:
                self.add(name)
        except BaseException:
            self.close()
            raise

    # -- machines --------------------------------------------------------------------------------------------------

    def add(
        self, name: str, *, snapshot: Path_ | None = None, memory: int | None = None, **options: Any
    ) -> FleetMachine:
        """Add a machine; it starts when it is used, or by `start_all`.

        Args:
            name: also the guest's host name.
            snapshot: what it starts from; None: the default guest, ready to use, or one that is booted.
            memory: bytes of RAM of a guest without a snapshot.
            options: of `emu.restore` with a snapshot; else of `emu.boot`, and then it boots.

        Raises:
            EmuError: there is such a machine, the name is none, or the options do not go together.
        """
        if name in self.machines:
            raise EmuError(f"there is a machine {name} already")
        origin = Origin(None if snapshot is None else Path(os.path.abspath(snapshot)), memory, options)
        network = VsockNetwork(os.fspath(self.directory), FIRST_CID + len(self.machines))
        machine = FleetMachine(self, name, origin, network)
        if self.added is not None:
            self.added(machine)
        self.machines[name] = machine
        return machine

    def __getitem__(self, name: str) -> FleetMachine:
        """The machine of a name.

        Raises:
            EmuError: there is none.
        """
        if name not in self.machines:
            raise EmuError(f"there is no machine {name}; there are {', '.join(self.machines) or 'none'}")
        return self.machines[name]

    def __iter__(self) -> Iterator[FleetMachine]:
        return iter(list(self.machines.values()))

    def __len__(self) -> int:
        return len(self.machines)

    def start_all(self) -> None:
        """Start all machines that do not run, at the same time, and wait until all guests answer.

        Raises:
            EmuError, MachineFailure: as `FleetMachine.start`.
        """
        with self.log.section("start all machines"):
            for machine in self:
                if not (machine.current or machine.origin.boots):
                    self._templates.prepare(machine.origin)
            self.wait_all(self, FleetMachine.start)

    def wait_all(self, machines: Iterable[FleetMachine], do: Callable[[FleetMachine], T]) -> list[T]:
        """Do something on several machines at the same time.

        Args:
            machines: which ones.
            do: called with each, in a thread of its own.

        Returns:
            What it returned for each of them, in their order.

        Raises:
            Exception: what it raised for the first machine for which it did; failures of others are notes of that.
        """
        outcomes: list[_Outcome[T]] = [_Outcome(partial(do, machine)) for machine in machines]
        for outcome in outcomes:
            outcome.start()
        for outcome in outcomes:
            outcome.thread.join()           # Ctrl-C gets through; the threads end when the fleet is closed
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"and {other}")
            raise errors[0]
        return [outcome.value[0] for outcome in outcomes]

    def make(self, origin: Origin, network: VsockNetwork) -> MachineProcess:
        """Make a machine; it ends with the fleet.

        Raises:
            EmuError: it cannot be made; the fleet is closed.
        """
        process = self._templates.make(origin, network)
        with self._lock:
            self._processes = {one for one in self._processes if one.alive}
            if not self._is_closed:
                self._processes.add(process)
                return process
        process.close()
        raise EmuError("the fleet is closed")

    # -- tests -----------------------------------------------------------------------------------------------------

    @contextmanager
    def subtest(self, name: str) -> Iterator[None]:
        """Name a part of the test, for the log and the failure report."""
        token = _subtests.set((*_subtests.get(), name))
        try:
            with self.log.section(f"subtest: {name}"):
                yield
        except BaseException as error:
            if self._failure is not error:          # the innermost subtest knows best
                self._failure, self.failed_in = error, _subtests.get()
            raise
        finally:
            _subtests.reset(token)

    def retry(self, attempt: Callable[[], object], timeout: float = TIMEOUT_S) -> None:
        """Call something until what it returns is true.

        Args:
            attempt: is called at least once.
            timeout: host seconds.

        Raises:
            GuestTimeout: it never was.
        """
        with self.log.section("retry"):
            if not retry(lambda _left: bool(attempt()), min(timeout, self.seconds_left())):
                raise GuestTimeout(f"what was tried again and again did not come true in {timeout:g} s")

    @property
    def is_out_of_time(self) -> bool:
        """Whether the time for the test is over."""
        return self.log.seconds >= self.timeout

    def out_of_time(self) -> str:
        """What to say then."""
        return f"the {self.timeout:g} s for the test are over"

    def seconds_left(self) -> float:
        """How much time the test has left.

        Raises:
            OutOfTime: none.
        """
        if self.is_out_of_time:
            raise OutOfTime(self.out_of_time())
        return self.timeout - self.log.seconds

    def within(self, seconds: float, ask: Callable[[], T]) -> T | None:
        """What a machine's process answers, None if it does not in so many seconds, or cannot."""
        outcome = _Outcome(ask)
        outcome.start()
        outcome.thread.join(seconds)
        return outcome.value[0] if outcome.value else None

    def report(self, error: BaseException) -> str:
        """What somebody needs to find out why a test failed: the failure itself, and the state of every machine.

        Args:
            error: what the test ended with; it has to be called while the machines are there.
        """
        from emu.fleet.report import failure_report

        return failure_report(self, error)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all machines at once, and remove what was made for them."""
        self.log.close()
        with self._lock:
            self._is_closed = True
            processes, self._processes = self._processes, set()
        for process in processes:
            process.kill()
        self._templates.close()
        for process in processes:
            process.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            if isinstance(error, Exception):
                error.add_note(self.report(error))
        finally:
            self.close()


class _Outcome(Generic[T]):
    """Something done in a thread, which does not keep the program from ending.

    Attributes:
        value: what it returned, alone in a list.
        error: what it raised.
    """

    def __init__(self, do: Callable[[], T]) -> None:
        self.value: list[T] = []
        self.error: BaseException | None = None
        self._do = do
        self.thread = threading.Thread(target=copy_context().run, args=(self._run,), daemon=True)

    def start(self) -> None:
        """Do it."""
        self.thread.start()

    def _run(self) -> None:
        try:
            self.value.append(self._do())
        except BaseException as error:      # to be raised where the outcome is looked at
            self.error = error
