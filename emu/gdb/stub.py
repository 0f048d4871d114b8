"""The commands of gdb's remote serial protocol (Debugging with GDB, appendix E) that are answered.

The guest is one process with one thread: its CPU. What is not here is answered with an empty packet, as the protocol
wants it for what a stub does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from devices import OutsideMemory
from devices.frozen import replace
from emu.errors import EmuError
from emu.gdb.connection import Connection
from emu.gdb.debugger import Cause, Debugger, Watch
from emu.gdb.monitor import Monitor
from emu.gdb.packets import PACKET_SIZE, Packet, unescape
from emu.gdb.registers import Register, description, registers

__all__ = ["Stub"]

OK, UNKNOWN = b"OK", b""
EFAULT, EINVAL, ENOSPC = b"E0e", b"E16", b"E1c"     # errno, in hexadecimal
SIGINT, SIGABRT, SIGTRAP = 2, 6, 5
MOST_BREAKPOINTS, MOST_WATCHES = 1000, 16
LONGEST_WATCH = 256                     # bytes; all of them are compared at each instruction
THREAD = b"thread:01;"
SUPPORTED = b"PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+" % PACKET_SIZE
SOFTWARE, HARDWARE, WRITE = 0, 1, 2     # kinds of Z packets
RANGE = re.compile(rb"([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,16})")
POINT = re.compile(rb"([0-9]),([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,8})(?:;.*)?", re.DOTALL)
ACTIONS = {b"c": False, b"C": False, b"s": True, b"S": True}        # of vCont: whether it is a step


class _Refused(Exception):
    """What is asked for cannot be; `reply` says so to gdb."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply


class Stub:
    """Answers one gdb.

    Args:
        debugger: of the machine.
        monitor: answers gdb's command `monitor`.
        end_machine: has it stop for good.
        detached: called when gdb leaves.
    """

    def __init__(
        self, debugger: Debugger, monitor: Monitor, end_machine: Callable[[], None], detached: Callable[[], None]
    ) -> None:
        self._debugger, self._monitor = debugger, monitor
        self._end_machine, self._detached = end_machine, detached
        self.connection: Connection | None = None
        self._registers = registers(True)
        self._is_long = True
        self._tells_kinds = False       # of breakpoints, in stop replies
        self._commands: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": self._why, b"g": self._read_all, b"G": self._write_all, b"p": self._read_one, b"P": self._write_one,
            b"m": self._read_memory, b"M": self._write_memory, b"X": self._write_binary, b"Z": self._insert,
            b"z": self._remove, b"c": self._go_on, b"C": self._go_on_with_signal, b"s": self._step,
            b"S": self._step_with_signal, b"D": self._detach, b"k": self._kill, b"H": self._one_thread,
            b"T": self._one_thread, b"q": self._query, b"Q": self._set, b"v": self._verbose,
        }  # fmt: skip

    def connected(self, connection: Connection) -> None:
        """A gdb is there; the guest stands."""
        self.connection = connection
        # gdb reads the description once: what a guest's code is then, it stays for this connection
        self._is_long = self._debugger.is_long
        self._registers = registers(self._is_long)

    # -- from the connection -----------------------------------------------------------------------------------

    def received(self, packet: Packet) -> None:
        """A packet has come."""
        if not self._debugger.stands:
            return                      # in all-stop mode gdb sends nothing while the guest runs, but Ctrl-C
        command = self._commands.get(packet[:1])
        try:
            reply = UNKNOWN if command is None else command(packet[1:])
        except _Refused as refused:
            reply = refused.reply
        except OutsideMemory:
            reply = EFAULT
        except (EmuError, ValueError):
            reply = EINVAL
        if reply is not None:
            self._send(reply)

    def interrupted(self) -> None:
        """Ctrl-C."""
        if not self._debugger.stands:
            self._debugger.pause()
            self._send(self._stop_reply(SIGINT))

    def stopped(self) -> None:
        """The guest has come to stand by itself."""
        self._send(self._stop_reply())

    def ended(self, status: int | None) -> None:
        """The guest will not run any more; with a status if it has ended well."""
        self._send(b"X%02x" % SIGABRT if status is None else b"W%02x" % (status & 0xFF))

    def _send(self, content: bytes) -> None:
        if self.connection is not None:
            self.connection.send(content)

    def _why(self, _arguments: bytes) -> bytes:
        return self._stop_reply()

    def _one_thread(self, _arguments: bytes) -> bytes:
        return OK

    def _stop_reply(self, signal: int = SIGTRAP) -> bytes:
        debugger = self._debugger
        why = b""
        if debugger.cause is Cause.BREAKPOINT and self._tells_kinds:
            why = b"hwbreak:;" if debugger.is_hardware_breakpoint else b"swbreak:;"
        elif debugger.cause is Cause.WATCH and debugger.watch is not None:
            why = b"watch:%x;" % debugger.watch.address
        return b"T%02x" % signal + why + THREAD

    # -- registers ---------------------------------------------------------------------------------------------

    def _read_all(self, _arguments: bytes) -> bytes:
        state = self._debugger.state
        return b"".join(register.read(state) for register in self._registers).hex().encode()

    def _write_all(self, arguments: bytes) -> bytes:
        data, state, at = _hex(arguments), self._debugger.state, 0
        if len(data) != sum(register.size for register in self._registers):
            raise _Refused(EINVAL)
        for register in self._registers:
            state = register.write(state, data[at : at + register.size])
            at += register.size
        self._debugger.state = state
        return OK

    def _register(self, number: bytes) -> Register:
        index = _number(number)
        if index >= len(self._registers):
            raise _Refused(EINVAL)
        return self._registers[index]

    def _read_one(self, arguments: bytes) -> bytes:
        return self._register(arguments).read(self._debugger.state).hex().encode()

    def _write_one(self, arguments: bytes) -> bytes:
        number, _, value = arguments.partition(b"=")
        register, data = self._register(number), _hex(value)
        if len(data) != register.size:
            raise _Refused(EINVAL)
        self._debugger.state = register.write(self._debugger.state, data)
        return OK

    # -- memory ------------------------------------------------------------------------------------------------

    def _read_memory(self, arguments: bytes) -> bytes:
        address, size = _range(arguments)
        return self._debugger.memory.read(address, min(size, PACKET_SIZE // 2)).hex().encode()

    def _write_memory(self, arguments: bytes) -> bytes:
        place, _, digits = arguments.partition(b":")
        return self._store(place, _hex(digits))

    def _write_binary(self, arguments: bytes) -> bytes:
        place, _, data = arguments.partition(b":")
        return self._store(place, unescape(data))

    def _store(self, place: bytes, data: bytes) -> bytes:
        address, size = _range(place)
        if size != len(data):
            raise _Refused(EINVAL)
        self._debugger.memory.write(address, data)
        return OK

    # -- breakpoints and watchpoints ---------------------------------------------------------------------------

    def _insert(self, arguments: bytes) -> bytes:
        kind, address, size = _point(arguments)
        debugger = self._debugger
        if kind in (SOFTWARE, HARDWARE):
            if len(debugger.breakpoints) >= MOST_BREAKPOINTS:
                return ENOSPC
            debugger.breakpoints[address] = debugger.breakpoints.get(address, frozenset()) | {kind}
            return OK
        if kind == WRITE:
            if len(debugger.watches) >= MOST_WATCHES:
                return ENOSPC
            if not 0 < size <= LONGEST_WATCH:
                return EINVAL
            debugger.add_watch(Watch(address, size))
            return OK
        return UNKNOWN                  # reads cannot be watched: gdb says so, or steps by itself

    def _remove(self, arguments: bytes) -> bytes:
        kind, address, size = _point(arguments)
        debugger = self._debugger
        if kind in (SOFTWARE, HARDWARE):
            if kinds := debugger.breakpoints.pop(address, frozenset()) - {kind}:
                debugger.breakpoints[address] = kinds
            return OK
        if kind == WRITE:
            debugger.watches.pop(Watch(address, size), None)
            return OK
        return UNKNOWN

    # -- running -----------------------------------------------------------------------------------------------

    def _go_on(self, address: bytes, is_step: bool = False) -> None:
        if address:
            self._debugger.state = replace(self._debugger.state, rip=_number(address), halted=False)
        self._debugger.go_on(is_step)

    def _step(self, address: bytes) -> None:
        self._go_on(address, is_step=True)

    def _go_on_with_signal(self, arguments: bytes) -> None:
        self._go_on(arguments.partition(b";")[2])       # signals mean nothing to a whole machine

    def _step_with_signal(self, arguments: bytes) -> None:
        self._step(arguments.partition(b";")[2])

    def _verbose(self, arguments: bytes) -> bytes | None:
        if arguments == b"Cont?":
            return b"vCont;c;C;s;S"
        if arguments.startswith(b"Cont;"):
            action = arguments[5:6]     # the first that is for the only thread, whichever it names
            if action not in ACTIONS:
                return EINVAL
            self._debugger.go_on(ACTIONS[action])
            return None
        if arguments.startswith(b"Kill"):
            self._end_machine()
            return OK
        return UNKNOWN

    def _detach(self, _arguments: bytes) -> None:
        self._send(OK)
        self._detached()

    def _kill(self, _arguments: bytes) -> None:
        self._end_machine()

    # -- questions ---------------------------------------------------------------------------------------------

    def _query(self, arguments: bytes) -> bytes:
        name, _, rest = arguments.partition(b":")
        if name == b"Supported":
            self._tells_kinds = b"swbreak+" in rest.split(b";")
            return SUPPORTED
        if name == b"Xfer":
            return self._transfer(rest)
        if arguments.startswith(b"Rcmd,"):
            answer = self._monitor.answer(_hex(arguments[5:]).decode(errors="replace"))
            return answer.encode()[: PACKET_SIZE // 2].hex().encode() or OK
        answers = {
            b"Attached": b"1", b"C": b"QC01", b"fThreadInfo": b"m01", b"sThreadInfo": b"l",
            b"Symbol": OK,
        }
        if arguments.startswith(b"ThreadExtraInfo,"):
            return b"CPU".hex().encode()
        return answers.get(name, UNKNOWN)

    def _transfer(self, arguments: bytes) -> bytes:
        """qXfer:features:read:target.xml:offset,length."""
        what, _, place = arguments.rpartition(b":")
        if what != b"features:read:target.xml":
            return UNKNOWN
        offset, size = _range(place)
        document = description(self._is_long)
        part = document[offset : offset + min(size, PACKET_SIZE // 2)]
        return (b"m" if offset + len(part) < len(document) else b"l") + part

    def _set(self, arguments: bytes) -> bytes | None:
        if arguments == b"StartNoAckMode" and self.connection is not None:
            self.connection.send(OK)
            self.connection.acknowledges = False
            return None
        return UNKNOWN


def _hex(digits: bytes) -> bytes:
    """Bytes written as pairs of digits; ValueError if they are not."""
    return bytes.fromhex(digits.decode("ascii"))


def _number(digits: bytes) -> int:
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", digits):
        raise _Refused(EINVAL)
    return int(digits, 16)


def _range(text: bytes) -> tuple[int, int]:
    found = RANGE.fullmatch(text)
    if found is None:
        raise _Refused(EINVAL)
    return int(found[1], 16), int(found[2], 16)


def _point(text: bytes) -> tuple[int, int, int]:
    found = POINT.fullmatch(text)
    if found is None:
        raise _Refused(EINVAL)
    return int(found[1]), int(found[2], 16), int(found[3], 16)
