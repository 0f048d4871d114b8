"""Sockets between an unmodified guest and the host: connections, bytes, ends of every kind, and the socket files.

The guest's side is programs of `tests.integration.programs` that connect a shell, or another program, to a socket.
"""

from __future__ import annotations

import errno
import hashlib
import random
import re
import select
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.errors import GuestError, GuestTimeout
from emu.job import Job
from emu.machine import Machine
from emu.memory import KIB, MIB
from emu.vsock import VsockStream
from tests.integration.programs import SHUTDOWN, VSOCK_CALL, VSOCK_SERVE

pytestmark = pytest.mark.integration

BOOT_S, END_S, LONG_S = 60.0, 60.0, 300.0
AT_ONCE = 25                    # connections
LEAST_BUFFERED = 256 * KIB      # Linux'
MOST_BUFFERED = 2 * MIB         # that, the device's 256 KiB, and socket buffers of the host's
CALL, SERVE, SHUTDOWN_ = "/tmp/call", "/tmp/serve", "/tmp/shutdown"
WAIT_AT_GATE = "read -r _ </tmp/gate"
ECHO, CHECKSUM, NOBODY, BY_FILE, BY_PYTHON = 100, 101, 102, 5000, 5001

full_size = (pytest.mark.soak, pytest.mark.timeout(600))
connections = pytest.mark.parametrize("count", [100, pytest.param(1000, marks=full_size)])
mebibytes = pytest.mark.parametrize("size", [4 * MIB, pytest.param(200 * MIB, marks=full_size)])


@dataclass
class Guest:
    """A machine and its socket file."""

    machine: Machine
    path: Path

    def run(self, command: str) -> str:
        """What a command says; it has to succeed."""
        return self.machine.run(command, timeout=END_S, check=True).stdout

    def serve(self, port: int, command: str) -> None:
        """Have the guest listen, and run a command for each connection."""
        self.run(f"{SERVE} {port} {command} </dev/null >/dev/null 2>&1")

    def start(self, port: int, script: str, timeout: float = END_S) -> Job:
        """Connect a script of the guest's to a port of the host's; its errors are the job's."""
        return self.machine.start_job([CALL, str(port), "/bin/sh", "-c", script], timeout=timeout)

    def stream(self, sock: socket.socket, port: int = 0) -> VsockStream:
        """A socket of a program of the host's, which runs the guest while it waits."""
        return VsockStream(sock, self.machine.drive, port, 0)

    def dial(self) -> VsockStream:
        """Connect to the socket file."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        return self.stream(sock)

    def connect(self, port: int) -> VsockStream:
        """Connect to a port of the guest's by way of the socket file."""
        stream = self.dial()
        stream.sendall(b"CONNECT %d\n" % port, END_S)
        assert re.fullmatch(rb"OK [0-9]+\n", line_of(stream))
        return stream

    def close_gate(self) -> None:
        """Scripts wait at the gate from now on."""
        self.run("rm -f /tmp/gate; mkfifo /tmp/gate")

    def open_gate(self) -> None:
        """Let the script at the gate pass."""
        self.run("echo pass >/tmp/gate")

    def eventually(self, condition: Callable[[], bool]) -> bool:
        """Whether it comes about."""
        return self.machine.drive(condition, END_S)


@dataclass
class Listener:
    """A socket file that the guest's connections to a port go to."""

    guest: Guest
    sock: socket.socket

    def accept(self, timeout: float = END_S) -> VsockStream:
        """The next of them."""
        assert self.guest.machine.drive(lambda: bool(select.select([self.sock], [], [], 0)[0]), timeout)
        return self.guest.stream(self.sock.accept()[0])


def line_of(stream: VsockStream) -> bytes:
    """One line, and not a byte more."""
    line = b""
    while not line.endswith(b"\n") and (byte := stream.recv(1, END_S)):
        line += byte
    return line


def rest_of(stream: VsockStream) -> bytes:
    """Everything up to the end."""
    return b"".join(iter(lambda: stream.recv(MIB, END_S), b""))


def send_until_stuck(stream: VsockStream) -> int:
    """How many bytes go in until nothing moves any more, for a second; on a busy host the first may take longer."""
    sent = 0
    try:
        while sent < 8 * MIB:
            sent += stream.send(bytes(64 * KIB), 1 if sent >= LEAST_BUFFERED else END_S)
    except GuestTimeout:
        pass
    return sent


def parts(size: int) -> Iterator[bytes]:
    """Bytes of which no two mebibytes are the same."""
    noise = random.Random(size).randbytes(MIB)
    for number in range(size // MIB):
        yield b"%07d\n" % number + noise[8:]


@contextmanager
def short_directory() -> Iterator[Path]:
    """A place for socket files: pytest's own can be too long for their paths."""
    with tempfile.TemporaryDirectory(prefix="emu-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A machine with sockets, and the programs; the kernel must not have complained in the end."""
    with short_directory() as directory:
        with emu.boot(kernel="cloud", vsock=directory / "v.sock", append=LOUD_SETTINGS) as machine:
            guest = Guest(machine, directory / "v.sock")
            prepare(guest)
            yield guest
            assert complaints(machine.run("dmesg", timeout=END_S).stdout) == []
        assert not guest.path.exists()


def prepare(guest: Guest) -> None:
    """Put the programs into the guest, and start those that listen."""
    for program, path in (VSOCK_CALL, CALL), (VSOCK_SERVE, SERVE), (SHUTDOWN, SHUTDOWN_):
        program.install(guest.machine, path)
    guest.serve(ECHO, "/bin/cat")
    guest.serve(CHECKSUM, "/usr/bin/sha256sum")


@pytest.fixture
def listener(guest: Guest) -> Iterator[Listener]:
    """A program of the host's that takes what the guest sends to port BY_FILE."""
    path = Path(f"{guest.path}_{BY_FILE}")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(AT_ONCE)
        yield Listener(guest, sock)
    path.unlink()


# -- connections and bytes ---------------------------------------------------------------------------------------


@connections
def test_connections_to_the_guest_each_get_their_own_bytes(guest: Guest, count: int) -> None:
    for first in range(0, count, AT_ONCE):
        numbers = range(first, first + AT_ONCE)
        ways = guest.connect, lambda port: guest.machine.vsock.connect(port, END_S)
        streams = [ways[number % 2](ECHO) for number in numbers]
        for number, stream in zip(numbers, streams, strict=True):
            stream.sendall(b"connection %d" % number, END_S)
            stream.shutdown(socket.SHUT_WR)
        for number, stream in zip(numbers, streams, strict=True):
            with stream:
                assert rest_of(stream) == b"connection %d" % number


@connections
def test_connections_from_the_guest_each_get_their_own_bytes(guest: Guest, listener: Listener, count: int) -> None:
    script = f"""
        for first in $(seq 1 {AT_ONCE} {count}); do
            for number in $(seq $first $((first + {AT_ONCE - 1}))); do
                {CALL} $(({BY_FILE} + number % 2)) /bin/cat &
            done
            wait
        done
    """
    with guest.machine.vsock.listen(BY_PYTHON) as python:
        job = guest.machine.start_job(script, timeout=LONG_S)
        for first in range(0, count, AT_ONCE):
            numbers = range(first + 1, first + AT_ONCE + 1)
            streams = [(python if number % 2 else listener).accept(END_S) for number in numbers]
            for number, stream in zip(numbers, streams, strict=True):
                stream.sendall(b"connection %d" % number, END_S)
                stream.shutdown(socket.SHUT_WR)
            for number, stream in zip(numbers, streams, strict=True):
                with stream:
                    assert rest_of(stream) == b"connection %d" % number
        assert (job.wait(), job.stderr.read()) == (0, b"")


@mebibytes
def test_bytes_to_the_guest_arrive_as_they_were_sent(guest: Guest, size: int) -> None:
    checksum = hashlib.sha256()
    with guest.connect(CHECKSUM) as stream:
        for part in parts(size):
            checksum.update(part)
            stream.sendall(part, END_S)
        stream.shutdown(socket.SHUT_WR)
        assert rest_of(stream).split()[0].decode() == checksum.hexdigest()


@mebibytes
def test_bytes_from_the_guest_arrive_as_they_were_sent(guest: Guest, listener: Listener, size: int) -> None:
    guest.machine.copy_in(next(parts(size))[8:], "/tmp/noise", timeout=END_S)
    script = f'n=0; while [ $n -lt {size // MIB} ]; do printf "%07d\\n" $n; cat /tmp/noise; n=$((n + 1)); done'
    job = guest.start(BY_FILE, script, LONG_S)
    sent, received = hashlib.sha256(), hashlib.sha256()
    with listener.accept() as stream:
        for part in iter(lambda: stream.recv(MIB, END_S), b""):
            received.update(part)
    for part in parts(size):
        sent.update(part)
    assert received.digest() == sent.digest()
    assert job.wait() == 0


def test_bytes_go_both_ways_at_once(guest: Guest) -> None:
    """Four times what all buffers hold: neither direction may wait for the other."""
    data = b"".join(parts(8 * MIB))
    echo = bytearray()
    with guest.connect(ECHO) as stream:
        sock = socket.socket(fileno=stream.fileno())
        unsent = memoryview(data)

        def pump() -> bool:
            nonlocal unsent
            try:
                unsent = unsent[sock.send(unsent) if unsent else 0 :]
            except BlockingIOError:
                pass
            try:
                echo.extend(sock.recv(MIB))
            except BlockingIOError:
                pass
            return len(echo) == len(data)

        try:
            assert guest.machine.drive(pump, END_S)
        finally:
            sock.detach()
    assert echo == data


# -- ends --------------------------------------------------------------------------------------------------------


def test_the_host_ends_its_direction_and_the_guest_goes_on(guest: Guest) -> None:
    with guest.machine.vsock.listen(BY_PYTHON) as listener:
        job = guest.start(BY_PYTHON, "cat >&2; echo 'end seen'; cat; echo 'still open'")
        with listener.accept(END_S) as stream:
            stream.sendall(b"all of it", END_S)
            stream.shutdown(socket.SHUT_WR)
            assert rest_of(stream) == b"end seen\nstill open\n"
        assert (job.wait(), job.stderr.read()) == (0, b"all of it")


def test_the_guest_ends_its_direction_and_the_host_goes_on(guest: Guest) -> None:
    with guest.machine.vsock.listen(BY_PYTHON) as listener:
        job = guest.start(BY_PYTHON, f"trap '' PIPE; echo mine; {SHUTDOWN_} 1 && cat >&2; echo too late")
        with listener.accept(END_S) as stream:
            assert rest_of(stream) == b"mine\n"
            stream.sendall(b"yours", END_S)
            stream.shutdown(socket.SHUT_WR)
            assert job.wait() == 1
        assert re.fullmatch(rb"yours.*Broken pipe\n", job.stderr.read())


def test_the_guest_reads_no_more_and_goes_on_writing(guest: Guest) -> None:
    guest.close_gate()
    with guest.machine.vsock.listen(BY_PYTHON) as listener:
        job = guest.start(BY_PYTHON, f"{SHUTDOWN_} 0 && cat >&2; echo ended; {WAIT_AT_GATE}; echo still writing")
        with listener.accept(END_S) as stream:
            assert line_of(stream) == b"ended\n"
            with pytest.raises(BrokenPipeError):
                stream.send(b"to nobody", END_S)
            guest.open_gate()
            assert rest_of(stream) == b"still writing\n"
        assert (job.wait(), job.stderr.read()) == (0, b"")


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_a_program_of_the_guest_that_ends_closes_its_connection(guest: Guest, signal: str) -> None:
    with guest.machine.vsock.listen(BY_PYTHON) as listener:
        job = guest.start(BY_PYTHON, "echo $$; exec sleep 1000")
        with listener.accept(END_S) as stream:
            guest.run(f"kill -{signal} {line_of(stream).decode()}")
            assert stream.recv(1, END_S) == b""
            with pytest.raises(BrokenPipeError):
                stream.send(b"to nobody", END_S)
        assert job.wait() > 128


def test_what_the_guest_wrote_before_it_closed_arrives_after_that(guest: Guest) -> None:
    with guest.machine.vsock.listen(BY_PYTHON) as listener:
        assert guest.start(BY_PYTHON, "head -c 100000 /dev/zero").wait() == 0
        with listener.accept(END_S) as stream:
            assert rest_of(stream) == bytes(100_000)


def test_what_the_host_wrote_before_it_closed_arrives_after_that(guest: Guest) -> None:
    guest.close_gate()
    with guest.machine.vsock.listen(BY_PYTHON) as listener:
        into_the_void = "while echo >&3; do usleep 1000; done 3>&1 >/dev/null 2>&1"     # until it hears of the end
        job = guest.start(BY_PYTHON, f"trap '' PIPE; {WAIT_AT_GATE}; {into_the_void}; cat >&2")
        with listener.accept(END_S) as stream:
            stream.sendall(b"parting words", END_S)
        guest.open_gate()
        assert (job.wait(), job.stderr.read()) == (0, b"parting words")


def test_a_host_that_closes_with_bytes_unread_resets_the_connection(guest: Guest) -> None:
    """Linux makes of a reset the end for who reads, and a broken pipe for who writes."""
    guest.close_gate()
    with guest.machine.vsock.listen(BY_PYTHON) as listener:
        job = guest.start(BY_PYTHON, f"trap '' PIPE; echo unread; {WAIT_AT_GATE}; cat; echo again")
        with listener.accept(END_S) as stream:
            assert guest.eventually(lambda: bool(select.select([stream], [], [], 0)[0]))
        guest.open_gate()
        assert job.wait() == 1
        assert job.stderr.read().count(b"Broken pipe") == 1


# -- refusals ----------------------------------------------------------------------------------------------------


def test_a_port_of_the_host_without_a_listener_refuses_at_once(guest: Guest) -> None:
    """By itself Linux gives up after two seconds, with ETIMEDOUT."""
    assert int(guest.run(f"{CALL} {NOBODY} /bin/cat; echo $?")) == errno.ECONNRESET


def test_a_port_of_the_guest_without_a_listener_refuses(guest: Guest) -> None:
    with pytest.raises(GuestError, match="guest port 102: refused by the guest"):
        guest.machine.vsock.connect(NOBODY, END_S)
    with guest.dial() as stream:
        stream.sendall(b"CONNECT %d\n" % NOBODY, END_S)
        assert rest_of(stream) == b""


@pytest.mark.parametrize("line", [b"CONNECT\n", b"CONNECT 4294967296\n", b"GET / HTTP/1.0\r\n\r\n", b"CONNECT " * 9])
def test_who_does_not_say_connect_is_cut_off(guest: Guest, line: bytes) -> None:
    with guest.dial() as stream:
        stream.sendall(line, END_S)
        try:
            assert rest_of(stream) == b""
        except ConnectionResetError:
            pass                            # not all of the line was read


def test_bytes_right_behind_connect_are_the_guest_s(guest: Guest) -> None:
    with guest.dial() as stream:
        stream.sendall(b"CONNECT %d\nhello" % ECHO, END_S)
        stream.shutdown(socket.SHUT_WR)
        assert re.fullmatch(rb"OK [0-9]+\nhello", rest_of(stream))


# -- who does not read -------------------------------------------------------------------------------------------


def test_a_guest_that_does_not_read_makes_the_host_wait_and_nobody_else(guest: Guest) -> None:
    guest.close_gate()
    with guest.machine.vsock.listen(BY_PYTHON) as listener:
        job = guest.start(BY_PYTHON, f"{WAIT_AT_GATE}; wc -c >&2")
        with listener.accept(END_S) as stream:
            sent = send_until_stuck(stream)
            assert LEAST_BUFFERED <= sent < MOST_BUFFERED
            with guest.connect(ECHO) as other:
                other.sendall(b"not held up", END_S)
                assert other.recv(100, END_S) == b"not held up"
            guest.open_gate()
            stream.shutdown(socket.SHUT_WR)
            assert (job.wait(), int(job.stderr.read())) == (0, sent)


def test_a_host_that_does_not_read_makes_the_guest_wait_and_nobody_else(guest: Guest) -> None:
    guest.run(">/tmp/written")
    with guest.machine.vsock.listen(BY_PYTHON) as listener:
        job = guest.start(BY_PYTHON, "for i in $(seq 16); do head -c 262144 /dev/zero; echo >>/tmp/written; done")
        with listener.accept(END_S) as stream:
            written, before = 0, -1
            while written != before or not written:
                guest.machine.drive(lambda: False, 0.5)
                before, written = written, int(guest.run("wc -l </tmp/written"))
            assert 1 <= written < 8
            with guest.connect(ECHO) as other:
                other.sendall(b"not held up", END_S)
                assert other.recv(100, END_S) == b"not held up"
            assert rest_of(stream) == bytes(16 * 256 * KIB)
        assert job.wait() == 0


# -- the machine starts over -------------------------------------------------------------------------------------


def test_a_reboot_ends_connections_and_leaves_what_listens(guest: Guest) -> None:
    machine = guest.machine
    assert complaints(guest.run("dmesg")) == []
    with machine.vsock.listen(BY_PYTHON) as listener:
        streams = [guest.connect(ECHO), machine.vsock.connect(ECHO, END_S)]
        board = machine.board
        machine.console.sendline("reboot -f")
        assert [stream.recv(1, END_S) for stream in streams] == [b"", b""]
        assert guest.eventually(lambda: machine.board is not board)
        with guest.dial() as stream:        # no driver yet
            stream.sendall(b"CONNECT %d\n" % ECHO, END_S)
            assert rest_of(stream) == b""
        machine.wait_prompt(BOOT_S)
        prepare(guest)
        job = guest.start(BY_PYTHON, "echo here again")
        with listener.accept(END_S) as stream:
            assert rest_of(stream) == b"here again\n"
        assert job.wait() == 0
    with guest.connect(ECHO) as stream:
        stream.sendall(b"and here", END_S)
        assert stream.recv(100, END_S) == b"and here"
