"""A gdb of a few lines, beside a machine that is driven here; and small guests to debug."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Self

from emu import micro
from emu.gdb.packets import PacketReader, frame
from emu.machine import Machine
from emu.memory import MIB

PATIENCE_S = 60.0
LOOP = b"\xff\xc0" * 4 + b"\xeb\xf6"            # inc eax, four times; jmp to the first
# nop; inc dword [DATA + 8]; nop; jmp to the first
STORES = b"\x90\xff\x04\x25" + (micro.DATA + 8).to_bytes(4, "little") + b"\x90\xeb\xf5"
IDLE = b"\xfb\xf4\xeb\xfd"                      # sti; hlt; jmp to hlt
POWER_OFF = b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xeb\xfe"      # mov dx, 0x604; mov ax, 0x3400; out dx, ax; jmp
RESET = b"\x66\xba\xf9\x0c\xb0\x06\xee"          # mov dx, 0xcf9; mov al, 6; out dx, al


def small_machine(code: bytes) -> Machine:
    """A machine that runs a few instructions at CODE, in ring 0."""
    machine = Machine(64 * MIB)
    machine.start(micro.install(machine.memory, code))
    return machine


class Client:
    """Talks to a server while it drives the machine.

    Args:
        machine: driven here.
        address: HOST:PORT, or a socket file's path.
    """

    def __init__(self, machine: Machine, address: str) -> None:
        self.machine = machine
        host, _, port = address.rpartition(":")
        if host:
            self.sock = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(address)
        self.sock.setblocking(False)
        self.reader = PacketReader()
        self.packets: list[bytes] = []
        self.raw = b""
        self.is_closed = False
        machine.watch_fd(self.sock.fileno(), self.look)

    def look(self) -> None:
        """Take what has come."""
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.is_closed = True
            self.machine.unwatch_fd(self.sock.fileno())
        self.raw += data
        self.packets += [each for each in self.reader.feed(data) if isinstance(each, bytes)]

    def wait(self, until: Callable[[], bool]) -> None:
        """Drive until something has come that makes a condition hold."""
        assert self.machine.drive(until, PATIENCE_S), self.raw

    def reply(self) -> bytes:
        """The next packet."""
        self.wait(lambda: bool(self.packets))
        return self.packets.pop(0)

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.sock.setblocking(True)
        self.sock.sendall(data)
        self.sock.setblocking(False)

    def ask(self, content: bytes) -> bytes:
        """Send a packet; what is answered."""
        self.send(frame(content))
        return self.reply()

    def rip(self) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(b"p10").decode()), "little")

    def close(self) -> None:
        if self.machine.run_loop.is_open:
            self.machine.unwatch_fd(self.sock.fileno())
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
