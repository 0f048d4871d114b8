"""A stand-in for a machine with the guest's agent in it: the agent's real script under a shell of the host, with a PTY
for each port of the virtio console. It cannot use cgroups here, and does as in a kernel that has none.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import tty
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from emu.channel import Channel
from emu.console import Console
from emu.errors import GuestStopped

IMAGES = Path(__file__).parent.parent / "emu" / "images"
AGENT = IMAGES / "agent.sh"
SLICE_S = 0.005     # between looks at conditions and Python's signals, as a machine
READ_SIZE = 4096


class PtyPort:
    """A port whose guest side is a terminal, which several programs can open at once."""

    def __init__(self, path: Path) -> None:
        self.ready = True
        self.guest_open = False
        self.received: Callable[[bytes], None] | None = None
        self.opened: Callable[[bool], None] | None = None
        self.drained: Callable[[], None] | None = None
        self._paused = False
        self._outbox = bytearray()
        self.fd, slave = pty.openpty()
        tty.setraw(slave)
        self._slave = os.ttyname(slave)
        path.symlink_to(self._slave)
        os.close(slave)
        os.set_blocking(self.fd, False)

    @property
    def pending(self) -> int:
        return len(self._outbox)

    def open(self) -> None:
        """The guest's programs do not notice."""

    def send(self, data: bytes | bytearray | memoryview) -> None:
        self._outbox += data

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def turn(self) -> None:
        """Move what can be moved."""
        events = dict(self._poll())
        hung_up = bool(events.get(self.fd, 0) & select.POLLHUP)
        if not hung_up and not self.guest_open:
            self._set_open(True)
        if self._outbox and self.guest_open and events.get(self.fd, 0) & select.POLLOUT and not hung_up:
            del self._outbox[: os.write(self.fd, self._outbox[:READ_SIZE])]
            if not self._outbox and self.drained is not None:
                self.drained()
        if not self._paused and self.guest_open:
            self._receive()

    def _poll(self) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN | select.POLLOUT)
        return poll.poll(0)

    def _receive(self) -> None:
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._forget_input()
            self._set_open(False)
            return
        if self.received is not None:
            self.received(data)

    def _forget_input(self) -> None:
        """As a port, drop what nobody has read when it is closed."""
        self._outbox.clear()
        slave = os.open(self._slave, os.O_RDWR | os.O_NOCTTY)
        termios.tcflush(slave, termios.TCIOFLUSH)
        os.close(slave)

    def _set_open(self, is_open: bool) -> None:
        self.guest_open = is_open
        if self.opened is not None:
            self.opened(is_open)

    def busy(self) -> bool:
        return self.guest_open and not self._paused


class AgentOnPtys:
    """Runs the agent under `shell`."""

    def __init__(self, shell: Sequence[str], home: Path, script: str | None = None) -> None:
        self.driver_ready = True
        self.stopped = False
        self.ports: dict[int, PtyPort] = {}
        self._home = home
        self._dev = home / "dev"
        self._names = home / "sys"
        self._dev.mkdir()
        self._names.mkdir()
        self.console = Console(lambda data: None, self.drive, lambda fd, callback: None, lambda fd: None)
        self.channel = Channel(self, self.console)
        text = script or AGENT.read_text()
        for old, new in (
            ("/sys/class/virtio-ports", str(self._names)),
            ("/dev/$", f"{self._dev}/$"),
            ("=/run/emu-channel", f"={home}/run"),
            ("mount -t cgroup2", "false"),
            ("setsid sh ", f"setsid {' '.join(shell)} "),
        ):
            assert script is not None or old in text
            text = text.replace(old, new)
        agent = home / "agent"
        agent.write_text(text)
        (home / "command").write_text((IMAGES / "command.sh").read_text())
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(home)}
        self._process = subprocess.Popen(
            [*shell, str(agent)], stdin=subprocess.DEVNULL, start_new_session=True, env=environment, umask=0o022
        )

    def port(self, number: int, name: str = "") -> PtyPort:
        if number not in self.ports:
            self.ports[number] = PtyPort(self._dev / f"vport0p{number}")
            if name:
                (self._names / f"vport0p{number}").mkdir()
                (self._names / f"vport0p{number}" / "name").write_text(name + "\n")
        return self.ports[number]

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        deadline = None if timeout is None else monotonic() + timeout
        while not until():
            if self.stopped:
                raise GuestStopped("the guest powered off")
            if deadline is not None and monotonic() >= deadline:
                return False
            for port in list(self.ports.values()):
                port.turn()
            select.select([port.fd for port in self.ports.values() if port.busy()], [], [], SLICE_S)
        return True

    def close(self) -> None:
        """End the agent, its slots, and what runs in them."""
        self._process.kill()
        self._process.wait()
        for session in self._home.glob("run/*/session"):
            leader = session.read_text().strip()
            # That process may have ended long ago, and another one have its number
            if leader and _directory_of(leader) == os.path.realpath(session.parent):
                with suppress(ProcessLookupError):      # it may end just now
                    os.killpg(int(leader), signal.SIGKILL)
        for port in self.ports.values():
            os.close(port.fd)


def _directory_of(pid: str) -> str:
    """Where a process works; "" if it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""
