"""Which machines of this user run, and what each says of itself."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from devices.frozen import frozen
from emu.errors import BadSnapshot
from emu.presence import NAME
from emu.process.memory import MemoryUse, memory_of
from emu.snapshot.codec import decode
from emu.top.report import LONGEST, Report, peer

__all__ = ["Found", "find"]

SOCKETS = Path("/proc/net/unix")
PATIENCE_S = 0.5                        # for all of them together: who does not answer is not being run
MOST = 500                              # machines
LONGEST_COMMAND = 200                   # characters
CHILD = "emu.process.spawn"             # in the command line of a process that was made for a machine
GENERATIONS = 100                       # of such that descend from each other


@frozen
class Found:
    """A machine.

    Attributes:
        pid: of its process.
        number: which of the process' machines.
        command: what its user has started.
        report: None if it does not answer: it stands, since nothing drives it.
        memory: of the process; None if that has ended meanwhile.
    """

    pid: int
    number: int
    command: str
    report: Report | None
    memory: MemoryUse | None


def find() -> list[Found]:
    """All of them, by process."""
    names = _names()
    reports = _reports(names)
    found = (Found(pid, number, _command(pid), reports.get((pid, number)), memory_of(pid)) for pid, number in names)
    return [each for each in found if each.memory is not None]


def _names() -> list[tuple[int, int]]:
    """(process, number) of what listens as a machine of this user would."""
    pattern = re.compile(" @" + NAME.format(uid=os.geteuid(), pid="([0-9]{1,9})", number="([0-9]{1,9})") + "$", re.M)
    found = {(int(pid), int(number)) for pid, number in pattern.findall(SOCKETS.read_text(errors="replace"))}
    return sorted(found)[:MOST]


def _reports(names: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Report]:
    """Of those that answer in time."""
    asked: dict[int, tuple[tuple[int, int], socket.socket, bytearray]] = {}
    found: dict[tuple[int, int], Report] = {}
    poll = select.poll()
    for name in names:
        if (sock := _connected(*name)) is not None:
            asked[sock.fileno()] = name, sock, bytearray()
            poll.register(sock, select.POLLIN)
    deadline = time.monotonic() + PATIENCE_S
    while asked and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(1000 * left):
            name, sock, data = asked[fd]
            if not _is_whole(sock, data):
                continue
            poll.unregister(fd)
            del asked[fd]
            sock.close()
            with suppress(ValueError, RecursionError, BadSnapshot):     # what is no report is of another version
                found[name] = decode(Report, json.loads(data))
    for _, sock, _ in asked.values():
        sock.close()
    return found


def _connected(pid: int, number: int) -> socket.socket | None:
    """A connection to a machine: the name alone says nothing, since anybody may listen under any."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        sock.connect("\0" + NAME.format(uid=os.geteuid(), pid=pid, number=number))
        if peer(sock) == (pid, os.geteuid()):
            return sock
    except OSError:
        pass                            # it has ended, or more wait for it than it answers
    sock.close()
    return None


def _is_whole(sock: socket.socket, data: bytearray) -> bool:
    """Take what has come; whether nothing more will."""
    try:
        part = sock.recv(LONGEST)
    except BlockingIOError:
        return False
    except OSError:
        return True
    data += part
    return not part or len(data) > LONGEST


# -- of processes ------------------------------------------------------------------------------------------------------


def _command(pid: int) -> str:
    """What the user has started: the command line of the process, or of the one that it was made by."""
    words: list[str] = []
    with suppress(OSError, ValueError, IndexError):
        for _ in range(GENERATIONS):
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
            if not any(CHILD in word for word in words):
                break
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    if len(words) > 1 and os.path.basename(words[0]).startswith("python") and not words[1].startswith("-"):
        del words[0]
    text = " ".join([os.path.basename(words[0]), *words[1:]]) if words else ""
    return "".join(char if char.isprintable() else "�" for char in text[:LONGEST_COMMAND])
