"""The other end of a `MachineProcess`: a thread of the test that answers, and a process that ends when it should."""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from emu.process import messages as m
from emu.process.client import MachineProcess
from emu.process.wire import Wire, WireError

__all__ = ["PATIENCE_S", "FakeServer", "interrupt", "sleeper"]

PATIENCE_S = 60.0

Answer = Callable[["FakeServer", m.Request, bytes], None]


def sleeper() -> tuple[int, int, int]:
    """A process, its pidfd, and a descriptor at whose end it ends."""
    reader, writer = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=actions)
    os.close(reader)
    return pid, os.pidfd_open(pid), writer


class FakeServer:
    """Notes down what is asked, and has a function of the test answer. As the real one it never waits for the user.

    Args:
        answer: called with each request but `Took`, in the server's thread.
        reads: take requests from the beginning on.

    Attributes:
        process: the user's end.
        asked: the requests so far, with the data beside them.
        ended: set when the user's end is closed.
    """

    def __init__(self, answer: Answer = lambda *_: None, reads: bool = True) -> None:
        ours, theirs = socket.socketpair()
        pid, pidfd, self._life = sleeper()
        self.process = MachineProcess(ours, pid, pidfd, is_child=True)
        self.asked: queue.SimpleQueue[tuple[m.Request, bytes]] = queue.SimpleQueue()
        self.took: dict[int, int] = {}
        self.ended = threading.Event()
        self.lets_go = True
        self.may_read = threading.Event()
        self.failure: BaseException | None = None
        if reads:
            self.may_read.set()
        self._answer = answer
        self._wire = Wire(theirs, m.Request)
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def reply(self, request: m.Request | int, body: Any, data: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """Send a reply to a request, or to its number."""
        number = request if isinstance(request, int) else request.number
        with self._sending:
            self._wire.post(m.Reply(number, body), data, fds)

    def raw(self, data: bytes) -> None:
        """Send what may be no frame."""
        self._wire._sock.setblocking(True)
        self._wire._sock.sendall(data)

    def next(self) -> m.Request:
        """The next request that has come, or comes."""
        return self.asked.get(timeout=PATIENCE_S)[0]

    def die(self) -> None:
        """End as a process that crashes."""
        self._wire.shut_down()

    def _serve(self) -> None:
        try:
            self.may_read.wait(PATIENCE_S)
            while True:
                with self._sending:
                    is_sent = self._wire.flush()
                poll = select.poll()
                poll.register(self._wire.fileno(), select.POLLIN | (0 if is_sent else select.POLLOUT))
                if poll.poll(10):
                    self._take_in()
        except (EOFError, WireError, BrokenPipeError, ConnectionResetError):
            pass
        except BaseException as error:
            self.failure = error
        finally:
            self._wire.shut_down()
            if self.lets_go:
                self._end_process()
            self.ended.set()

    def _take_in(self) -> None:
        for frame in self._wire.receive():
            body = frame.message.body
            if isinstance(body, m.Took):
                self.took[body.request] = self.took.get(body.request, 0) + body.size
            else:
                self.asked.put((frame.message, frame.data))
                self._answer(self, frame.message, frame.data)

    def _end_process(self) -> None:
        life, self._life = self._life, -1
        if life >= 0:
            os.close(life)

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.may_read.set()
        self._wire.shut_down()
        self._end_process()
        self.process.close()
        self._thread.join(PATIENCE_S)
        self._wire.close()
        assert self.failure is None or _error is not None, self.failure
        assert not self._thread.is_alive()


def interrupt() -> None:
    """Ctrl-C: what handles SIGINT runs in the main thread."""
    with suppress(ProcessLookupError):
        os.kill(os.getpid(), signal.SIGINT)
