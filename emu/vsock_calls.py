"""The guest's connections out of its machine: to socket files of programs, and to other machines of a network."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
from pathlib import Path
from typing import Protocol

from devices import Files
from devices.virtio.vsock import Connection, State
from devices.virtio.vsock_connection import HOST_CID
from emu.fittings import VsockNetwork
from emu.vsock_sockets import GreetingStream, SocketStream

__all__ = ["Answers", "GuestCalls"]

AGREED = re.compile(rb"OK [0-9]{1,10}\n")


class Answers(Protocol):
    """Where the outcome of a call goes."""

    def accept(self, connection: Connection, stream: SocketStream) -> None:
        """It has come about."""

    def refuse(self, connection: Connection, reason: str) -> None:
        """It has not."""

    def later(self) -> None:
        """Call `GuestCalls.again` in a moment: who was called is too busy to accept."""


class GuestCalls:
    """Calls that go to socket files.

    Args:
        files: watches sockets on the machine's thread.
        answers: see there.
        path: of the machine's own socket file: calls to port N of the host go to PATH_N; None: nobody is there.
        network: where other machines are; None: there are none.
    """

    def __init__(self, files: Files, answers: Answers, path: Path | None, network: VsockNetwork | None) -> None:
        self._files = files
        self._answers = answers
        self._path = path
        self._network = network
        self._busy: list[Connection] = []
        self._asked: set[PeerCall] = set()

    def dial(self, connection: Connection) -> None:
        """Call who the guest wants to be connected to."""
        path, name = self._place(connection)
        if path is None:
            self._answers.refuse(connection, name)
            return
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._answers.refuse(connection, f"no socket: {error.strerror}")
            return
        result = sock.connect_ex(path)
        if result == 0:
            self._connected(connection, sock, name)
            return
        sock.close()
        if result == errno.EAGAIN:
            self._busy.append(connection)
            self._answers.later()
        else:
            self._answers.refuse(connection, f"{name}: {os.strerror(result)}")

    def again(self) -> None:
        """Try once more what nobody had time for."""
        busy, self._busy = self._busy, []
        for connection in busy:
            if connection.state is State.ASKED_BY_GUEST:
                self.dial(connection)

    def forget_busy(self) -> None:
        """The guest has started over, and waits for nobody."""
        self._busy.clear()

    def close(self) -> None:
        """Hang up where nobody has answered yet."""
        self._busy.clear()
        for call in list(self._asked):
            call.closed("the machine ended")

    def _place(self, connection: Connection) -> tuple[str | None, str]:
        """The socket file to call, None if there is none, and its name or the reason."""
        if connection.host_cid == HOST_CID:
            path = f"{self._path}_{connection.host_port}" if self._path else None
            return path, path or "nobody listens there"
        if self._network is None:
            return None, f"CID {connection.host_cid} is nobody's: the machine is in no network"
        path = os.fspath(self._network.path(connection.host_cid))
        return path, f"no machine with CID {connection.host_cid}: {path}"

    def _connected(self, connection: Connection, sock: socket.socket, name: str) -> None:
        if connection.host_cid == HOST_CID:
            name = f"guest to {name} (from {connection.guest_port})"
            self._answers.accept(connection, SocketStream(self._files, sock, name, lambda _reason: None))
            return
        assert self._network
        for call in list(self._asked):
            if call.connection.state is not State.ASKED_BY_GUEST:
                call.closed(call.connection.reason)
        self._asked.add(PeerCall(self._files, sock, connection, self._network.cid, self))

    def answered(self, call: PeerCall, reason: str) -> None:
        """The other machine has agreed to a call, or else there is a reason why not."""
        self._asked.discard(call)
        if not reason:
            self._answers.accept(call.connection, call)
        elif call.connection.state is State.ASKED_BY_GUEST:
            self._answers.refuse(call.connection, reason)


class PeerCall(GreetingStream):
    """A connection to another machine, which has to agree before the guest hears that it has one.

    Args:
        files: watches the socket.
        sock: connected to the other machine's socket file; taken over.
        connection: what the guest wants.
        cid: this machine's.
        calls: told of the answer.

    Attributes:
        connection: as handed in.
    """

    failure_level = logging.DEBUG       # why the guest is refused is told anyway

    def __init__(
        self, files: Files, sock: socket.socket, connection: Connection, cid: int, calls: GuestCalls
    ) -> None:
        who = f"port {connection.host_port} of CID {connection.host_cid}"
        super().__init__(files, sock, f"guest to {who} (from {connection.guest_port})", self._hung_up)
        self.connection = connection
        self._calls = calls
        self._is_answered = False
        try:
            greeting = b"CONNECT %d FROM %d %d\n" % (connection.host_port, cid, connection.guest_port)
            sock.send(greeting, socket.MSG_NOSIGNAL)
        except OSError:
            pass                    # it has gone, which is read below
        self.watch(self._greet, None)

    def _greeted(self) -> None:
        if not AGREED.fullmatch(self.greeting):
            self.closed("by that machine" if not self.greeting else f"it answers {self.greeting!r}")
            return
        self.watch(None, None)
        self._is_answered = True
        self._calls.answered(self, "")

    def _hung_up(self, reason: str) -> None:
        if not self._is_answered:
            self._is_answered = True
            self._calls.answered(self, reason)
