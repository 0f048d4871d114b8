"""What a machine says of itself to whoever may know, as JSON."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from devices.frozen import frozen
from emu.snapshot.codec import encode
from emu.stats import ExitRow, ExitStats, Kind

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["LONGEST", "Report", "Row", "answer", "peer"]

LONGEST = 128 << 10                     # bytes, which a socket takes at once
MOST_ROWS = 500
LONGEST_NAME = 60                       # characters
CREDENTIALS = struct.Struct("3i")       # struct ucred of socket(7): process, user, group


@frozen
class Row:
    """`emu.stats.ExitRow` without the times' distribution."""

    kind: Kind
    handler: str
    count: int
    total_ns: int


@frozen
class Report:
    """How a machine stands.

    Attributes:
        now_ns: host monotonic time.
        memory: bytes of the guest's RAM.
        snapshot: the name of the one that it was restored from.
        rows, driven_ns, run_ns, idle_ns, timed: of `emu.stats.ExitStats`.
    """

    now_ns: int
    memory: int
    snapshot: str
    rows: tuple[Row, ...]
    driven_ns: int
    run_ns: int
    idle_ns: int
    timed: bool

    def stats(self) -> ExitStats:
        """The statistics in it."""
        rows = tuple(ExitRow(row.kind, row.handler, row.count, row.total_ns) for row in self.rows)
        return ExitStats(rows, self.driven_ns, self.run_ns, self.idle_ns, self.timed)


def report(machine: Machine) -> Report:
    """That of a machine, now."""
    stats = machine.stats()
    rows = tuple(Row(row.kind, row.handler[:LONGEST_NAME], row.count, row.total_ns) for row in stats.rows()[:MOST_ROWS])
    snapshot = machine.snapshot_path.name if machine.snapshot_path is not None else ""
    return Report(
        time.monotonic_ns(), machine.memory.size, snapshot, rows, stats.driven_ns, stats.run_ns, stats.idle_ns,
        stats.timed,
    )  # fmt: skip


def answer(fd: int, machine: Machine) -> None:
    """Somebody connects: send the report, if it is the same user, or root; never waits.

    Args:
        fd: of the socket that listens.
        machine: to report of.
    """
    listener = socket.socket(fileno=fd)
    try:
        with suppress(OSError):             # gone meanwhile, or no descriptor is left; so much for that
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)
                if peer(connection)[1] in (0, os.geteuid()):
                    connection.send(json.dumps(encode(report(machine)), separators=(",", ":")).encode())
    finally:
        listener.detach()


def peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the host's kernel says."""
    pid, uid, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return pid, uid
