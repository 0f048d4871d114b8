"""The guest channel: commands in the guest, many at once, over ports of a virtio console device.

The guest's end is `emu/images/agent.sh`, which says what goes over the ports.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from devices.frozen import frozen
from devices.log import Log
from emu.console import Console
from emu.errors import GuestError, GuestStopped, GuestTimeout
from emu.guest import Result
from emu.job import KILLED, Job
from emu.slot import PortLike, Slot, SlotState

__all__ = ["PORTS", "Channel", "ChannelState", "PortDevice"]

_log = Log(__name__)

SLOTS = 24                      # commands that run at a time; more wait
PORTS = 2 + 2 * SLOTS           # that the device should have: two for each command, and those of the next lines
AGENT_PORT, AGENT_NAME = 0, "emu.agent"
RENEW_PORT, RENEW_NAME = PORTS - 1, "emu.renew"
VERSION = "1"
LONGEST_LINE = 4096             # of the agent's
COMPLAINTS = 10                 # about the agent, that are logged
SLOT_ATTEMPTS = 3               # in a row that may fail
KILL_S = 5.0                    # for what is killed to be gone
RESUME_S = 10.0                 # for a guest that is a copy to be set right, before commands run all the same
SETTLE_S = 0.005                # for a slot to be free after its command's end, before another one is asked for


class AgentPort(PortLike, Protocol):
    """A port, with what tells why nobody is there."""

    ready: bool


class PortDevice(Protocol):
    """What the channel uses of `devices.virtio.console.Console`."""

    driver_ready: bool

    @property
    def ports(self) -> Mapping[int, AgentPort]:
        """Those that there are."""

    def port(self, number: int, name: str = "", /) -> AgentPort:
        """The port of that number; it is added, with the name, if it is not there."""


@frozen
class ChannelState:
    """What a snapshot keeps: whether the agent is there, and (number, token) of the slots that were free."""

    alive: bool = False
    slots: tuple[tuple[int, str], ...] = ()


class Channel:
    """Runs commands through the agent in the guest.

    Args:
        device: has PORTS ports, all of them the channel's.
        console: of the same machine; drives it, and knows whether its kernel has panicked.
        state: of the channel that this one goes on for. What ran in the guest then is killed.
        has_shares: whether the guest of that state may have mounted what the host shares.
        look: has the run under way, if any, come back to who waits for a command's end.

    Attributes:
        alive: the agent is there.
    """

    def __init__(
        self,
        device: PortDevice,
        console: Console,
        state: ChannelState | None = None,
        has_shares: bool = False,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        state = state or ChannelState()
        self.alive = state.alive
        self._device = device
        self._console = console
        self._look = look
        self._waiting: deque[Job] = deque()
        self._slots: dict[int, Slot] = {}
        self._failed_slots = 0
        self._partial = bytearray()
        self._complaints = 0
        self._port = device.port(AGENT_PORT, AGENT_NAME)
        self._port.received = self._received
        self._port.opened = self._opened
        self._port.open()
        self._renewer = device.port(RENEW_PORT, RENEW_NAME)
        self._renewer.received = self._renewed
        self._renewer.opened = lambda _is_open: self._set_right(RENEW_NAME)
        self._renewer.open()
        self._awaited: set[str] = set()     # what has to set a copied guest right before commands run
        self._renews_again = False          # after what it does for the one that this is a copy of
        if self.alive:
            self._take_over(dict(state.slots))
            self._renew()
            if has_shares:
                self._awaited.add(AGENT_NAME)
                self._send("resume")

    def save(self) -> ChannelState:
        """The state to go on from."""
        free = tuple((slot.number, slot.token) for slot in self._slots.values() if slot.state is SlotState.FREE)
        return ChannelState(self.alive, free)

    def close(self) -> None:
        """The machine ends: that the agent goes with it is no news."""
        self._port.opened = None

    def forked(self) -> None:
        """The machine is a copy of another one: what ran in its guest for that one is killed, and forgotten.

        Commands wait until the guest's random numbers differ from the other's.
        """
        self._waiting.clear()
        for slot in self._slots.values():
            if slot.state is SlotState.BUSY and not slot.is_settling:
                slot.kill()
                self._send(f"kill {slot.number}")
        self._renews_again = RENEW_NAME in self._awaited
        self._renew()

    @property
    def is_starting(self) -> bool:
        """Whether the agent was asked for a slot that it has not made yet; who saves the machine now forgets it."""
        return any(slot.state is SlotState.STARTING for slot in self._slots.values())

    @property
    def renews(self) -> bool:
        """Whether a program in the guest re-seeds its random numbers when it is a copy."""
        return self._renewer.guest_open

    def _renew(self) -> None:
        """Have the guest differ from the one that it is a copy of, and its clock set."""
        if self.renews:
            self._awaited.add(RENEW_NAME)
            if not self._renews_again:
                self._renewer.send(b"\n")

    def _renewed(self, _data: bytes) -> None:
        if self._renews_again:
            self._renews_again = False
            self._renewer.send(b"\n")
        else:
            self._set_right(RENEW_NAME)

    def _set_right(self, name: str) -> None:
        """One of those that set a copied guest right has done so, or has gone."""
        if name in self._awaited:
            self._awaited.remove(name)
            if not self._awaited:
                self._dispatch()

    # --- is the agent there? ------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> bool:
        """Run the guest until its agent is there; whether it is.

        Args:
            timeout: host seconds, None for ever.

        Raises:
            GuestStopped, GuestError: the guest stopped; its kernel panicked.
        """
        if self.drive(lambda: self.alive, timeout):
            return True
        _log.info("no agent in the guest after %g s: %s", timeout, self.missing())
        return False

    def missing(self) -> str:
        """Why the agent is not there, as far as can be seen from outside."""
        if not self._device.driver_ready:
            return "its kernel has not started the virtio console's driver (virtio_console, on PCI virtio_pci)"
        if not self._port.ready:
            return f"its driver has not made the port {AGENT_NAME}"
        if not self._port.guest_open:
            return f"no program has the port {AGENT_NAME} open; /usr/lib/emu/agent of our images would"
        if self._partial:
            return f"what has the port {AGENT_NAME} open sent no greeting but {bytes(self._partial[:80])!r}"
        return f"what has the port {AGENT_NAME} open says nothing"

    # --- commands -----------------------------------------------------------------------------------------------

    def start(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | None = None,
        writes: bool = False,
        timeout: float | None = None,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
    ) -> Job:
        """Start a command, or have it wait until one of those that run has ended; it goes on while the guest runs.

        Args:
            command: text for `sh`, or a program and its arguments, passed on as they are. It runs in root's
                directory with a login shell's environment.
            input: the command's standard input; else that is /dev/null.
            writes: its standard input will be given by `Job.write` and `Job.end_input`, after `input` if any.
            timeout: host seconds after which waiting for it in any way raises `GuestTimeout`; it runs on.
            stdout, stderr: called with that output as it comes, inside whatever drives the machine.

        Raises:
            GuestError: the agent is not there.
            ValueError: the command holds a NUL, which no shell can take.
        """
        text = (command if isinstance(command, str) else shlex.join(command)).encode("utf-8", "surrogateescape")
        if b"\0" in text:
            raise ValueError("a command cannot hold a NUL byte")
        if not self.alive:
            raise GuestError(f"the guest's agent is not there: {self.missing()}")
        job = Job(self, text, input, writes, timeout, stdout, stderr)
        self._waiting.append(job)
        self._failed_slots = 0
        self._dispatch()
        return job

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | None = None,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
    ) -> Result:
        """Run a command in the guest and wait for its end.

        Args:
            command, input, stdout, stderr: as for `start`; what goes to a function is not in the result.
            timeout: host seconds; after that the command is killed with everything it started. None: for ever.
            check: raise `GuestError` unless the exit status is 0.

        Raises:
            GuestTimeout, GuestStopped: see above; the guest stopped before the command ended.
            GuestError: the guest's kernel panicked, or `check`, or the agent is not there.
            ValueError: the command holds a NUL.
        """
        job = self.start(command, input=input, stdout=stdout, stderr=stderr, timeout=timeout)
        with self.killing(job):
            status = job.wait()
        ended = monotonic()
        result = Result(status, job.stdout.read(), job.stderr.read(), monotonic() - ended)
        if check:
            result.check(job.text)
        return result

    @contextmanager
    def killing(self, job: Job) -> Iterator[None]:
        """Kill a job if what is done inside fails; when it took too long, wait until nothing of the job is left."""
        try:
            yield
        except GuestTimeout as error:
            job.kill()
            gone = "" if self.drive(lambda: self._is_gone(job), KILL_S) else ", nor on SIGKILL"
            raise GuestTimeout(f"{error}{gone}") from None
        except BaseException:
            job.kill()
            raise

    def drive(self, until: Callable[[], bool], timeout: float | None) -> bool:
        """Drive the guest as the console does; also raises `GuestError` if its kernel panics."""
        if self._awaited:
            if not self._drive(lambda: not self._awaited, RESUME_S):
                names = " and ".join(sorted(self._awaited))
                _log.info("the guest has not been set right in %g s: nothing comes from %s", RESUME_S, names)
            self._awaited.clear()
            self._dispatch()
        if self._waiting:
            self._drive(lambda: not self._waiting or until(), SETTLE_S)
            self._ask_for_slots()
        return self._drive(until, timeout)

    def _drive(self, until: Callable[[], bool], timeout: float | None) -> bool:
        panics = self._console.panics
        try:
            self._console.drive(lambda: until() or panics.line is not None, timeout)
        except GuestStopped:
            if panics.line is None:
                raise
        if until():
            return True
        if panics.line is not None:
            raise GuestError(panics.line)
        return False

    # --- jobs' side ---------------------------------------------------------------------------------------------

    def kill(self, job: Job) -> None:
        """End a job and everything it started."""
        job.killed = True
        if job in self._waiting:
            self._waiting.remove(job)
            job.end(KILLED)
        elif (slot := self._slot_of(job)) is not None and slot.state is SlotState.BUSY:
            slot.kill()
            self._send(f"kill {slot.number}")

    def resume(self, job: Job) -> None:
        """Somebody has read what a job wrote."""
        if (slot := self._slot_of(job)) is not None:
            slot.resume()

    def feed(self, job: Job) -> None:
        """There is more input for a job, or it has ended."""
        if (slot := self._slot_of(job)) is not None:
            slot.feed()

    def _slot_of(self, job: Job) -> Slot | None:
        return next((slot for slot in self._slots.values() if slot.job is job), None)

    def _is_gone(self, job: Job) -> bool:
        """Whether the job is over, and nothing of it is left if it was killed."""
        slot = self._slot_of(job)
        return job.is_over and (slot is None or slot.state is SlotState.BUSY)

    # --- slots --------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Start what waits, in slots that are free, or else if none will soon be."""
        if self._awaited:
            return
        for slot in self._slots.values():
            if self._waiting and slot.state is SlotState.FREE:
                slot.run(self._waiting.popleft())
        if not any(slot.is_settling for slot in self._slots.values()):
            self._ask_for_slots()

    def _ask_for_slots(self) -> None:
        """Ask the agent for as many slots as there are jobs waiting."""
        starting = sum(slot.state is SlotState.STARTING for slot in self._slots.values())
        for number in range(SLOTS):
            if starting >= len(self._waiting) or not self.alive or self._awaited:
                return
            slot = self._slot(number)
            if slot.state is SlotState.CLOSED:
                starting += 1
                out, err = _ports_of(number)
                self._send(f"slot {number} {out} {err} {slot.start()}")

    def _slot(self, number: int, token: str = "") -> Slot:
        if number not in self._slots:
            out, err = (self._device.port(port) for port in _ports_of(number))
            self._slots[number] = Slot(number, out, err, self._slot_changed, token)
        return self._slots[number]

    def _slot_changed(self, has_failed: bool) -> None:
        self._look()        # the guest is about to start a shell for the next command
        self._failed_slots = self._failed_slots + 1 if has_failed else 0
        if self._failed_slots < SLOT_ATTEMPTS:
            self._dispatch()
            return
        while self._waiting:
            self._waiting.popleft().fail("the guest's agent cannot start commands")

    def _take_over(self, tokens: dict[int, str]) -> None:
        """Go on with the slots of a machine that was saved; end those in which something ran."""
        for number in range(SLOTS):
            # Asking for a port makes it, which takes the guest a millisecond
            ports = [self._device.ports[port] for port in _ports_of(number) if port in self._device.ports]
            if any(port.guest_open for port in ports):
                slot = self._slot(number, tokens.get(number, ""))
                if slot.state is not SlotState.FREE:
                    slot.kill()
                    self._send(f"kill {number}")

    # --- the agent ----------------------------------------------------------------------------------------------

    def _send(self, line: str) -> None:
        self._port.send(line.encode() + b"\n")

    def _opened(self, is_open: bool) -> None:
        self._partial.clear()
        if not is_open and self.alive:
            self.alive = False
            _log.info("the guest's agent has gone")
            while self._waiting:
                self._waiting.popleft().fail("the guest's agent has gone")

    def _received(self, data: bytes) -> None:
        if len(data) > LONGEST_LINE:
            self._complain("%d bytes at once", len(data))
            return
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        for line in lines:
            self._line(line.decode("ascii", "replace"))
        self._partial = bytearray(rest)
        if len(rest) > LONGEST_LINE:
            self._complain("a line of more than %d bytes", LONGEST_LINE)
            self._partial.clear()

    def _line(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "hello" and rest == VERSION:
            if not self.alive:
                _log.debug("the guest's agent is there")
                self.alive = True
        elif word == "resumed":
            self._set_right(AGENT_NAME)
        elif word == "hello":
            self._complain("a greeting of version %.20r; this channel speaks %s", rest, VERSION)
        else:
            self._complain("%.80r", line)

    def _complain(self, what: str, *details: object) -> None:
        """Log what the agent sent, the first few times."""
        self._complaints += 1
        if self._complaints <= COMPLAINTS:
            _log.info("the guest's agent sent " + what, *details)


def _ports_of(number: int) -> tuple[int, int]:
    """The ports of a slot: for requests and output, and for input and errors."""
    return 1 + 2 * number, 2 + 2 * number
