"""One machine of a test: what users of the NixOS test driver know, on a machine in a process of its own."""

from __future__ import annotations

import os
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from emu.errors import EmuError, GuestTimeout, MachineDied
from emu.fittings import VsockNetwork
from emu.fleet.failures import MachineFailure, MachineTimeout, OutOfTime
from emu.fleet.origin import Origin
from emu.guest import Result

if TYPE_CHECKING:
    from emu.fleet.fleet import Fleet
    from emu.process.client import MachineProcess

__all__ = ["TIMEOUT_S", "FleetMachine", "retry"]

__tracebackhide__ = True                # pytest shows the test's own lines

T = TypeVar("T")

TIMEOUT_S = 900.0                       # for what is waited for, as in NixOS
START_S = 120.0
SHUTDOWN_S = 60.0
CRASH_S = 1.0                           # for the console of a machine that is to crash
FIRST_PAUSE_S, LONGEST_PAUSE_S, PAUSE_GROWTH = 0.02, 1.0, 1.5      # between attempts
SHORTEST_S = 0.1                        # for one of them
STRICT = "set -euo pipefail; "
NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
LONGEST_COMMAND = 100                   # characters of it that are shown in a line


class FleetMachine:
    """A machine with a name. It starts when something is first asked of it.

    Args:
        fleet: whose machine it is.
        name: also the guest's host name.
        origin: what it is made of, each time that it is started.
        network: its place.

    Attributes:
        name: as handed in.
        cid: its address for the others' vsock sockets.
        current: the machine itself; None if it was not started, or stopped by the test.
        last_console: the end of what it said before it was stopped or crashed by the test.
    """

    def __init__(self, fleet: Fleet, name: str, origin: Origin, network: VsockNetwork) -> None:
        if not NAME.fullmatch(name):
            raise EmuError(f"{name!r} is no machine's name: letters, digits and hyphens, beginning with a letter")
        self.name = name
        self.cid = network.cid
        self.origin = origin
        self.last_console = b""
        self._fleet = fleet
        self._network = network
        self.current: MachineProcess | None = None
        self._starting = threading.RLock()

    def __repr__(self) -> str:
        return f"<machine {self.name}>"

    # -- starting and stopping -------------------------------------------------------------------------------------

    @property
    def process(self) -> MachineProcess:
        """The machine itself, started if need be: for everything that is not here."""
        self.start()
        assert self.current is not None
        return self.current

    def start(self) -> None:
        """Start it, and wait until its guest answers; nothing happens if it runs.

        A machine that was stopped starts as it did the first time: only disks and shared directories are as it left
        them.

        Raises:
            EmuError: it cannot be made.
            MachineFailure: its guest does not come up.
        """
        with self._starting:
            if self.current is None:
                with self._doing("start"):
                    process = self.current = self._fleet.make(self.origin, self._network)
                    process.wait_ready(self._limit(START_S))
                    process.run(["hostname", self.name], timeout=self._limit(START_S), check=True)

    def shutdown(self) -> None:
        """Have the guest power off, and wait until it has.

        Raises:
            MachineFailure: it does not.
        """
        with self._doing("shutdown"):
            process = self.process
            self._attempt_poweroff(process)
            if process.wait_stopped(self._limit(SHUTDOWN_S)) is None:
                raise GuestTimeout(f"it has not powered off in {SHUTDOWN_S:g} s")
            self.last_console = process.console_output()
        self.close()

    def _attempt_poweroff(self, process: MachineProcess) -> None:
        try:
            process.run("poweroff", timeout=self._limit(SHUTDOWN_S))
        except GuestTimeout:
            raise
        except EmuError:
            pass                # it has stopped, and taken the command's end along

    def crash(self) -> None:
        """Take its power away, at once: the guest notices nothing."""
        self._fleet.log.note("crash", self.name)
        if self.current is not None:
            self.last_console = self._fleet.within(CRASH_S, self.current.console_output) or b""
            self.current.kill()
        self.close()

    def close(self) -> None:
        """End its process, if there is one."""
        process, self.current = self.current, None
        if process is not None:
            process.close()

    def block(self) -> None:
        """Take it off the network: its connections with other machines end, and new ones are refused."""
        with self._doing("block"):
            self.process.isolate(True)

    def unblock(self) -> None:
        """Put it back."""
        with self._doing("unblock"):
            self.process.isolate(False)

    # -- commands --------------------------------------------------------------------------------------------------

    def execute(self, command: str, timeout: float = TIMEOUT_S) -> tuple[int, str]:
        """Run a command in the guest.

        Args:
            command: text for `sh`, run with `set -euo pipefail`.
            timeout: host seconds.

        Returns:
            Its exit status, and what it wrote on stdout.

        Raises:
            MachineTimeout, MachineFailure: it did not end in time; the machine has stopped or died.
        """
        result = self._run("execute", command, timeout)
        return result.status, result.stdout

    def succeed(self, *commands: str, timeout: float = TIMEOUT_S) -> str:
        """Run commands one after another, which have to end with status 0; arguments as of `execute`.

        Returns:
            What they wrote on stdout.

        Raises:
            MachineTimeout, MachineFailure: as `execute`; one of them failed.
        """
        return "".join(self._run("succeed", command, timeout, _succeeded).stdout for command in commands)

    def fail(self, *commands: str, timeout: float = TIMEOUT_S) -> str:
        """Run commands one after another, which have to end with another status than 0; the rest as `succeed`."""
        return "".join(self._run("fail", command, timeout, _failed).stdout for command in commands)

    def wait_until_succeeds(self, command: str, timeout: float = TIMEOUT_S) -> str:
        """Run a command again and again until it ends with status 0; arguments as of `execute`.

        Returns:
            What it wrote on stdout the last time.

        Raises:
            MachineTimeout, MachineFailure: it did not succeed in time; as `execute`.
        """
        return self._until("wait until succeeds", command, timeout, _succeeded)

    def wait_until_fails(self, command: str, timeout: float = TIMEOUT_S) -> str:
        """Run a command again and again until it ends with another status than 0; the rest as `wait_until_succeeds`."""
        return self._until("wait until fails", command, timeout, _failed)

    def wait_for_file(self, path: str, timeout: float = TIMEOUT_S) -> None:
        """Wait until there is a file in the guest, of any kind; the rest as `wait_until_succeeds`."""
        self.wait_until_succeeds(f"test -e {shlex.quote(path)}", timeout)

    def wait_for_open_port(self, port: int, timeout: float = TIMEOUT_S) -> None:
        """Wait until a program of the guest listens on a TCP port; the rest as `wait_until_succeeds`."""
        self.wait_until_succeeds(f"nc -z 127.0.0.1 {port}", timeout)

    def wait_for_vsock_port(self, port: int, timeout: float = TIMEOUT_S) -> None:
        """Wait until a program of the guest accepts vsock connections; it sees one that ends at once.

        Args:
            port: which one.
            timeout: host seconds.

        Raises:
            MachineTimeout, MachineFailure: nobody did in time; the machine has stopped or died.
        """
        with self._doing(f"wait for vsock port {port}"):
            process, last = self.process, ""

            def attempt(left: float) -> bool:
                nonlocal last
                try:
                    process.vsock_connect(port, left).close()
                except MachineDied:
                    raise
                except EmuError as error:
                    last = str(error)
                    return False
                return True

            if not retry(attempt, self._limit(timeout)):
                raise GuestTimeout(f"{last}, for {timeout:g} s")

    # -- console and files -----------------------------------------------------------------------------------------

    def wait_for_console_text(self, pattern: str, timeout: float = TIMEOUT_S) -> str:
        """Wait until the console shows what no call before has seen.

        Args:
            pattern: a regular expression.
            timeout: host seconds.

        Returns:
            What the console showed since then, up to the match's end.

        Raises:
            MachineTimeout, MachineFailure: it did not in time; the machine has stopped or died.
        """
        with self._doing(f"wait for console text: {pattern}"):
            return self.process.console_expect(pattern, self._limit(timeout))

    def send_chars(self, text: str) -> None:
        """Type on the guest's console."""
        with self._doing(f"send to the console: {text}"):
            self.process.console_send(text.encode())

    def console_text(self) -> str:
        """The end of what the guest has written to its console."""
        with self._doing("console text"):
            return self.process.console_output().decode("utf-8", "replace")

    def copy_from_host(self, source: str | os.PathLike[str], target: str, timeout: float = TIMEOUT_S) -> None:
        """Copy a file or a directory of the host's into the guest.

        Args:
            source: path on the host.
            target: path in the guest: of the copy, or of a directory that it goes into.
            timeout: host seconds.

        Raises:
            MachineTimeout, MachineFailure: as `execute`; one of the paths cannot be used.
        """
        with self._doing(f"copy from host: {source} to {target}"):
            self.process.copy_in(source, target, timeout=self._limit(timeout))

    def copy_from_machine(self, source: str, target: str | os.PathLike[str] = ".", timeout: float = TIMEOUT_S) -> None:
        """Copy a file or a directory of the guest's out; the rest as `copy_from_host`, the other way."""
        with self._doing(f"copy from machine: {source} to {target}"):
            Path(target).mkdir(parents=True, exist_ok=True)
            self.process.copy_out(source, target, timeout=self._limit(timeout))

    # -- how it is done --------------------------------------------------------------------------------------------

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Log what is done inside; a failure gets the machine's name."""
        with self._fleet.log.section(what, self.name):
            try:
                yield
            except EmuError as error:
                raise self._failure(error) from None

    def _failure(self, error: EmuError, command: str | None = None, result: Result | None = None) -> MachineFailure:
        """The same, with all that is known."""
        if isinstance(error, MachineFailure) and (error.machine or isinstance(error, OutOfTime)):
            return error
        kind = MachineTimeout if isinstance(error, GuestTimeout) else MachineFailure
        if kind is MachineTimeout and self._fleet.is_out_of_time:
            return OutOfTime(f"{self._fleet.out_of_time()}: {error}", self.name, command, result)
        return kind(str(error), self.name, command, result)

    def _limit(self, timeout: float) -> float:
        """Host seconds for something that may take so many: no more than the test has left."""
        return min(timeout, self._fleet.seconds_left())

    def _run(self, what: str, command: str, timeout: float, holds: Callable[[int], bool] = lambda _: True) -> Result:
        with self._doing(f"{what}: {command}"):
            try:
                result = self.process.run(STRICT + command, timeout=self._limit(timeout))
            except EmuError as error:
                raise self._failure(error, command) from None
            if not holds(result.status):
                text = f"{_short(command)} ended with status {result.status}, and had to {what}"
                raise MachineFailure(text, self.name, command, result)
            return result

    def _until(self, what: str, command: str, timeout: float, holds: Callable[[int], bool]) -> str:
        last: Result | None = None

        def attempt(left: float) -> bool:
            nonlocal last
            last = self.process.run(STRICT + command, timeout=left)
            return holds(last.status)

        with self._doing(f"{what}: {command}"):
            try:
                has_come = retry(attempt, self._limit(timeout))
            except EmuError as error:
                raise self._failure(error, command, last) from None
            assert last is not None
            if not has_come:
                late = GuestTimeout(f"{_short(command)} still ended with status {last.status} after {timeout:g} s")
                raise self._failure(late, command, last)
            return last.stdout


def retry(attempt: Callable[[float], bool], timeout: float) -> bool:
    """Try something until it holds, at least once.

    Args:
        attempt: does it, given the host seconds that are left; whether it holds.
        timeout: host seconds.

    Returns:
        Whether it came to hold in time.
    """
    deadline, pause = monotonic() + timeout, FIRST_PAUSE_S
    while not attempt(max(deadline - monotonic(), SHORTEST_S)):
        left = deadline - monotonic()
        if left <= 0:
            return False
        sleep(min(pause, left))
        pause = min(pause * PAUSE_GROWTH, LONGEST_PAUSE_S)
    return True


def _succeeded(status: int) -> bool:
    return status == 0


def _failed(status: int) -> bool:
    return status != 0


def _short(command: str) -> str:
    return repr(command if len(command) <= LONGEST_COMMAND else f"{command[:LONGEST_COMMAND]}...")
