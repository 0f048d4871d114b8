"""The host's side of vsock: AF_UNIX sockets and Python's own, with the guest's packets written by hand."""

from __future__ import annotations

import logging
import os
import resource
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from devices.virtio.vsock_connection import BUFFER_SIZE, HOST_CID, SHUTDOWN_BOTH, SHUTDOWN_SEND, Op
from devices.virtio.vsock_state import VsockState
from emu import vsock
from emu.errors import EmuError, GuestError, GuestStopped, GuestTimeout
from emu.vsock import VsockHost
from tests.devices.fakes import FakeClock
from tests.devices.virtio.vsock_guest import GUEST_CID, FakeBackend, Guest, Packet
from tests.support.forks import in_fork

Callback = Callable[[], None]


class HandDrivenFiles:
    """devices.Files without a thread or a loop: the test says when to look."""

    def __init__(self) -> None:
        self.watched: dict[int, tuple[Callback | None, Callback | None]] = {}

    def watch(self, fd: int, readable: Callback | None = None, writable: Callback | None = None) -> None:
        assert fd >= 0
        self.watched[fd] = readable, writable

    def forget(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def look(self) -> bool:
        """Call back for what is ready now; whether anything was."""
        poll = select.poll()
        for fd, (readable, writable) in self.watched.items():
            poll.register(fd, (select.POLLIN if readable else 0) | (select.POLLOUT if writable else 0))
        ready = poll.poll(0)
        for fd, events in ready:
            readable, writable = self.watched.get(fd, (None, None))
            if readable and events & ~select.POLLOUT:
                readable()
            readable, writable = self.watched.get(fd, (None, None))
            if writable and events & ~select.POLLIN:
                writable()
        return bool(ready)

    def settle(self) -> None:
        """Look until nothing happens any more; fails if that is never."""
        for _ in range(10_000):
            if not self.look():
                return
        raise AssertionError("a file is ready for ever, and nobody does anything about it")


class Bench:
    """A host, its device, and a guest whose programs are the test.

    Attributes:
        program: what the guest does with each packet, while it is driven; None for a guest that does nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.files = HandDrivenFiles()
        self.clock = FakeClock()
        self.host = VsockHost(self.files, self.drive, path)
        device = self.host.device(self.clock, VsockState(GUEST_CID))
        self.guest = Guest(FakeBackend(), self.clock, size=64, device=device)
        self.program: Callable[[Packet], None] | None = None
        self.stopped = False

    def drive(self, until: Callable[[], bool], timeout: float | None) -> bool:
        for _ in range(1000):
            if until():
                return True
            if self.stopped:
                raise GuestStopped("the guest powered off")
            self.files.look()
            if self.program:
                for packet in self.guest.receive():
                    self.program(packet)
            if until():
                return until()          # as the machine's loop does: asked again
        return False

    def packets(self) -> list[Packet]:
        """What the guest has received after everything the host has to do."""
        self.files.settle()
        found = self.guest.receive()
        self.files.settle()
        return found + self.guest.receive()

    def ops(self) -> list[int]:
        return [packet.header.op for packet in self.packets()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.sock"


@pytest.fixture
def bench(path: Path) -> Iterator[Bench]:
    bench = Bench(path)
    yield bench
    bench.guest.device.close()
    bench.host.close()
    assert not bench.files.watched


def client(path: Path | str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(os.fspath(path))
    return sock


def server(path: str, backlog: int = 8) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.bind(path)
    sock.listen(backlog)
    return sock


def call(bench: Bench, path: Path, port: int = 22) -> tuple[socket.socket, int]:
    """A client of a port whose guest accepts; the host's port."""
    sock = client(path)
    sock.sendall(b"CONNECT %d\n" % port)
    (packet,) = bench.packets()
    assert (packet.header.op, packet.header.dst_port) == (Op.REQUEST, port)
    bench.guest.send(Op.RESPONSE, port, packet.header.src_port)
    assert sock.recv(100) == b"OK %d\n" % packet.header.src_port
    return sock, packet.header.src_port


# -- programs of the host connect ------------------------------------------------------------------------------------


def test_connect_line_is_answered_and_bytes_flow(bench: Bench, path: Path) -> None:
    sock, port = call(bench, path)
    sock.sendall(b"question")
    assert [packet.data for packet in bench.packets()] == [b"question"]
    bench.guest.send(Op.RW, 22, port, b"answer")
    assert sock.recv(100) == b"answer"


def test_bytes_behind_the_connect_line_are_the_guests(bench: Bench, path: Path) -> None:
    sock = client(path)
    sock.sendall(b"connect 22\nat once")
    (packet,) = bench.packets()
    bench.guest.send(Op.RESPONSE, 22, packet.header.src_port)
    assert [packet.data for packet in bench.packets()] == [b"at once"]
    assert sock.recv(100).startswith(b"OK ")


def test_connect_line_may_come_in_pieces(bench: Bench, path: Path) -> None:
    sock = client(path)
    for byte in b"CONNECT 22":
        sock.sendall(bytes([byte]))
        assert bench.packets() == []
    sock.sendall(b"\n")
    assert bench.ops() == [Op.REQUEST]


@pytest.mark.parametrize("line", [
    b"HELLO\n", b"CONNECT\n", b"CONNECT -1\n", b"CONNECT 4294967295\n", b"CONNECT 99999999999\n", b"CONNECT 1 2\n",
    b"CONNECT \xd9\xa1\n", b"x" * 100, b"\n",
])
def test_anything_else_is_closed_and_logged(
    bench: Bench, path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "emu.vsock")
    sock = client(path)
    sock.sendall(line)
    assert bench.packets() == []
    with suppress(ConnectionResetError):        # what was not read makes a reset of the end
        assert sock.recv(100) == b""
    assert "where CONNECT and a port were expected" in caplog.text
    call(bench, path)


def test_client_that_leaves_without_a_word_is_forgotten(bench: Bench, path: Path) -> None:
    client(path).close()
    assert bench.packets() == []
    assert len(bench.files.watched) == 1


def test_refusal_closes_without_ok_and_is_logged(
    bench: Bench, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "emu.vsock")
    sock = client(path)
    sock.sendall(b"CONNECT 22\n")
    (packet,) = bench.packets()
    bench.guest.send(Op.RST, 22, packet.header.src_port)
    assert sock.recv(100) == b""
    assert caplog.messages == ["a program of the host to guest port 22: refused by the guest"]


def test_client_before_the_guest_has_a_driver_is_closed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "emu.vsock")
    files = HandDrivenFiles()
    host = VsockHost(files, lambda until, timeout: until(), path)
    host.device(FakeClock(), VsockState(GUEST_CID))
    sock = client(path)
    sock.sendall(b"CONNECT 22\n")
    files.settle()
    assert sock.recv(100) == b""
    assert "the guest has no vsock driver, or not yet" in caplog.text
    host.close()


def test_client_that_leaves_before_the_guest_answers(bench: Bench, path: Path) -> None:
    sock = client(path)
    sock.sendall(b"CONNECT 22\n")
    (packet,) = bench.packets()
    sock.close()
    bench.guest.send(Op.RESPONSE, 22, packet.header.src_port)
    assert bench.ops() == [Op.SHUTDOWN]


def test_half_close_by_the_client(bench: Bench, path: Path) -> None:
    sock, port = call(bench, path)
    sock.sendall(b"all of it")
    sock.shutdown(socket.SHUT_WR)
    packets = bench.packets()
    assert [p.header.op for p in packets] == [Op.RW, Op.SHUTDOWN]
    assert packets[1].header.flags == SHUTDOWN_SEND
    bench.guest.send(Op.RW, 22, port, b"answer")
    bench.guest.send(Op.SHUTDOWN, 22, port, flags=SHUTDOWN_BOTH)
    assert sock.recv(100) == b"answer"
    assert sock.recv(100) == b""


def test_half_close_by_the_guest(bench: Bench, path: Path) -> None:
    sock, port = call(bench, path)
    bench.guest.send(Op.SHUTDOWN, 22, port, flags=SHUTDOWN_SEND)
    assert sock.recv(100) == b""
    sock.sendall(b"answer")
    assert [p.data for p in bench.packets()] == [b"answer"]
    sock.close()
    assert [p.header.flags for p in bench.packets()] == [SHUTDOWN_BOTH]


def test_close_by_the_client_after_its_bytes(bench: Bench, path: Path) -> None:
    sock, _port = call(bench, path)
    sock.sendall(b"all of it")
    sock.close()
    packets = bench.packets()
    assert [(p.header.op, p.header.flags) for p in packets] == [(Op.RW, 0), (Op.SHUTDOWN, SHUTDOWN_BOTH)]


def test_close_by_the_client_with_unread_bytes_resets(bench: Bench, path: Path) -> None:
    sock, port = call(bench, path)
    bench.guest.send(Op.RW, 22, port, b"never read")
    sock.close()
    assert bench.ops() == [Op.RST]


def test_reset_by_the_guest_closes(bench: Bench, path: Path) -> None:
    sock, port = call(bench, path)
    bench.guest.send(Op.RST, 22, port)
    assert sock.recv(100) == b""


def test_slow_reader_gets_everything_in_order_and_memory_is_bounded(bench: Bench, path: Path) -> None:
    sock, port = call(bench, path)
    connection = bench.guest.device._connections[22, port, HOST_CID]
    sent = taken = 0
    expected, received = bytearray(), bytearray()
    fwd_cnt = 0
    while len(received) < 1_000_000:
        credit = BUFFER_SIZE - (sent - fwd_cnt)
        if sent < 1_000_000 and credit:
            data = os.urandom(min(credit, 50_000, 1_000_000 - sent))
            expected += data
            sent += len(data)
            bench.guest.send(Op.RW, 22, port, data)
        else:
            received += sock.recv(30_000)
        assert len(connection._buffer) <= BUFFER_SIZE
        taken = max(taken, len(connection._buffer))
        for packet in bench.packets():
            fwd_cnt = packet.header.fwd_cnt
    assert received == expected
    assert taken > 0, "the socket took everything at once: nothing was tried"


def test_clients_leave_nothing_behind(bench: Bench, path: Path) -> None:
    for number in range(100):
        sock, port = call(bench, path, number)
        sock.close()
        assert bench.ops() == [Op.SHUTDOWN]
        bench.guest.send(Op.RST, number, port)
    assert not bench.guest.device._connections
    assert len(bench.files.watched) == 1


def test_without_file_descriptors_clients_wait(bench: Bench, path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    sock = client(path)
    sock.sendall(b"CONNECT 22\n")
    poll = select.poll()                    # of the test's own, before there are no descriptors
    poll.register(sock, select.POLLIN)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        bench.files.settle()
        bench.guest.send(Op.REQUEST, 1000, 80)
        ops = bench.ops()
        with pytest.raises(EmuError, match=r"^vsock: no socket: Too many open files$"):
            bench.host.connect(22)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ops == [Op.RST]
    bench.clock.advance(vsock.RETRY_NS)
    assert bench.ops() == [Op.REQUEST]


# -- programs of the guest connect -----------------------------------------------------------------------------------


def test_guest_reaches_the_socket_file_of_the_port(bench: Bench, path: Path) -> None:
    with server(f"{path}_80") as listening:
        bench.guest.send(Op.REQUEST, 1000, 80)
        assert bench.ops() == [Op.RESPONSE]
        sock, _ = listening.accept()
        bench.guest.send(Op.RW, 1000, 80, b"GET")
        assert sock.recv(100) == b"GET"
        sock.sendall(b"page")
        sock.close()
        packets = bench.packets()
        assert [(p.header.op, p.data) for p in packets] == [(Op.RW, b"page"), (Op.SHUTDOWN, b"")]


@pytest.mark.parametrize("kind", ["missing", "not listened on", "a file"])
def test_guest_is_refused_and_why_is_logged(
    bench: Bench, path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "emu.vsock")
    if kind == "not listened on":
        server(f"{path}_80").close()
    elif kind == "a file":
        Path(f"{path}_80").touch()
    bench.guest.send(Op.REQUEST, 1000, 80)
    assert bench.ops() == [Op.RST]
    reason = "No such file or directory" if kind == "missing" else "Connection refused"
    assert caplog.messages == [f"guest port 1000 to host port 80: refused: {path}_80: {reason}"]


def test_guest_waits_while_a_server_is_too_busy_to_accept(bench: Bench, path: Path) -> None:
    with server(f"{path}_80", backlog=0) as listening:
        with client(f"{path}_80"):
            bench.guest.send(Op.REQUEST, 1000, 80)
            bench.clock.advance(3 * vsock.RETRY_NS)
            assert bench.ops() == []
            listening.accept()[0].close()
            bench.clock.advance(vsock.RETRY_NS)
            assert bench.ops() == [Op.RESPONSE]


def test_guest_that_waits_for_a_busy_server_may_give_up(bench: Bench, path: Path) -> None:
    with server(f"{path}_80", backlog=0) as listening:
        with client(f"{path}_80"):
            bench.guest.send(Op.REQUEST, 1000, 80)
            bench.guest.send(Op.RST, 1000, 80)
            listening.accept()[0].close()
            bench.clock.advance(vsock.RETRY_NS)
            listening.settimeout(0)
            with pytest.raises(BlockingIOError):
                listening.accept()


def test_without_a_path_the_guest_reaches_python_only() -> None:
    bench = Bench(None)
    bench.guest.send(Op.REQUEST, 1000, 80)
    assert bench.ops() == [Op.RST]
    with bench.host.listen(80):
        bench.guest.send(Op.REQUEST, 1000, 80)
        assert bench.ops() == [Op.RESPONSE]
    bench.host.close()


# -- Python ----------------------------------------------------------------------------------------------------------


def echo(bench: Bench) -> Callable[[Packet], None]:
    """A program of the guest that accepts connections, answers with what it gets, and closes in the end."""
    received: dict[int, int] = {}

    def program(packet: Packet) -> None:
        header = packet.header
        port = header.src_port
        received[port] = received.get(port, 0) + len(packet.data)
        answers = {Op.REQUEST: Op.RESPONSE, Op.RW: Op.RW, Op.SHUTDOWN: Op.SHUTDOWN}
        if header.op in answers:
            bench.guest.send(
                answers[header.op], header.dst_port, port, packet.data, flags=SHUTDOWN_BOTH, fwd_cnt=received[port]
            )

    return program


def test_python_connects_and_talks(bench: Bench) -> None:
    bench.program = echo(bench)
    with bench.host.connect(22) as stream:
        assert stream.guest_port == 22
        assert select.select([stream], [], [], 0) == ([], [], [])
        assert stream.send(b"hello") == 5
        assert stream.recv(3) == b"hel"
        assert stream.recv(3) == b"lo"
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(3) == b""
    assert stream.fileno() == -1


def test_python_sends_more_than_the_sockets_hold(bench: Bench) -> None:
    received = bytearray()
    counts: dict[int, int] = {}

    def program(packet: Packet) -> None:
        header = packet.header
        received.extend(packet.data)
        counts[header.op] = counts.get(header.op, 0) + 1
        if header.op == Op.REQUEST:
            bench.guest.send(Op.RESPONSE, 22, header.src_port)
        elif header.op == Op.RW and len(received) // 60_000 > (len(received) - len(packet.data)) // 60_000:
            bench.guest.send(Op.CREDIT_UPDATE, 22, header.src_port, fwd_cnt=len(received))

    bench.program = program
    data = os.urandom(1_000_000)
    stream = bench.host.connect(22)
    stream.sendall(data)
    stream.close()
    bench.drive(lambda: Op.SHUTDOWN in counts, None)
    assert received == data


def test_connect_fails_with_the_reason(bench: Bench) -> None:
    bench.program = lambda packet: bench.guest.send(Op.RST, 22, packet.header.src_port)
    with pytest.raises(GuestError, match=r"^vsock: guest port 22: refused by the guest$"):
        bench.host.connect(22)
    bench.program = None
    with pytest.raises(GuestTimeout, match=r"no answer in 0\.1 s"):
        bench.host.connect(22, timeout=0.1)
    assert bench.ops() == [Op.REQUEST, Op.RST]
    with pytest.raises(EmuError, match="no port -1"):
        bench.host.connect(-1)
    bench.stopped = True
    with pytest.raises(GuestStopped):
        bench.host.connect(22)
    bench.guest.device.reset()
    with pytest.raises(GuestError, match="no vsock driver"):
        bench.host.connect(22)
    assert not bench.guest.device._connections


def test_recv_and_accept_time_out(bench: Bench) -> None:
    bench.program = echo(bench)
    stream = bench.host.connect(22)
    with pytest.raises(GuestTimeout, match=r"guest port 22: nothing in 0\.1 s"):
        stream.recv(1, timeout=0.1)
    with bench.host.listen(80) as listener, pytest.raises(GuestTimeout, match="nobody connected to port 80"):
        listener.accept(timeout=0.1)


def test_python_listens(bench: Bench, path: Path) -> None:
    with server(f"{path}_80"), bench.host.listen(80) as listener:
        bench.guest.send(Op.REQUEST, 1000, 80)
        bench.guest.send(Op.REQUEST, 1001, 80)
        first, second = listener.accept(), listener.accept()
        assert (first.guest_port, second.guest_port, second.host_port) == (1000, 1001, 80)
        bench.packets()
        bench.guest.send(Op.RW, 1001, 80, b"second")
        assert second.recv(100) == b"second"
        first.close()
        assert [p.summary for p in bench.packets()] == [(Op.SHUTDOWN, 80, 1000)]


def test_connections_nobody_accepts_are_bounded_and_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "PIPELINE", 2)
    listener = bench.host.listen(80)
    for port in range(3):
        bench.guest.send(Op.REQUEST, port, 80)
    assert bench.ops() == [Op.RST, Op.RESPONSE, Op.RESPONSE]
    listener.close()
    assert bench.ops() == [Op.SHUTDOWN, Op.SHUTDOWN]
    bench.guest.send(Op.REQUEST, 7, 80)
    assert bench.ops() == [Op.RST]


def test_a_port_is_listened_on_once(bench: Bench) -> None:
    with bench.host.listen(80), pytest.raises(EmuError, match="port 80 of the host is listened on already"):
        bench.host.listen(80)
    bench.host.listen(80).close()


# -- the socket file, and the machine's life -------------------------------------------------------------------------


def test_socket_file_is_removed_in_the_end(path: Path) -> None:
    host = VsockHost(HandDrivenFiles(), lambda until, timeout: until(), path)
    assert path.is_socket()
    host.close()
    assert not path.exists()


def test_stale_socket_file_is_replaced(path: Path) -> None:
    server(os.fspath(path)).close()
    bench = Bench(path)
    call(bench, path)[0].close()
    bench.guest.device.close()
    bench.host.close()


def test_another_machines_socket_file_is_left_alone(bench: Bench, path: Path) -> None:
    with pytest.raises(EmuError, match=r"v\.sock: another program listens there$"):
        VsockHost(HandDrivenFiles(), bench.drive, path)
    call(bench, path)


def test_file_that_took_the_path_meanwhile_is_not_removed(path: Path) -> None:
    host = VsockHost(HandDrivenFiles(), lambda until, timeout: until(), path)
    path.unlink()
    path.write_text("mine")
    host.close()
    assert path.read_text() == "mine"


@pytest.mark.parametrize("problem", ["file", "long", "no directory"])
def test_bad_path_is_one_line(tmp_path: Path, problem: str) -> None:
    path, expected = {
        "file": (tmp_path / "file", "exists and is not a socket"),
        "long": (tmp_path / ("x" * 100), "a socket's path can have 96 bytes"),
        "no directory": (tmp_path / "missing" / "v.sock", "No such file or directory"),
    }[problem]
    (tmp_path / "file").write_text("precious")
    with pytest.raises(EmuError) as raised:
        VsockHost(HandDrivenFiles(), lambda until, timeout: until(), path)
    assert str(raised.value) == f"vsock: {path}: {expected}"
    assert (tmp_path / "file").read_text() == "precious"


def test_host_outlives_a_reboot(bench: Bench, path: Path) -> None:
    old, _port = call(bench, path)
    listener = bench.host.listen(80)
    bench.guest.device.close()
    assert old.recv(100) == b""
    bench.clock = FakeClock()
    device = bench.host.device(bench.clock, bench.guest.device.save())
    bench.guest = Guest(FakeBackend(), bench.clock, size=64, device=device)
    call(bench, path)
    bench.guest.send(Op.REQUEST, 1000, 80)
    assert listener.accept().guest_port == 1000


def test_transport_reset_closes_sockets_and_goes_on_listening(bench: Bench, path: Path) -> None:
    old, _port = call(bench, path)
    bench.guest.device.transport_reset()
    assert old.recv(100) == b""
    call(bench, path)


# -- processes that fork -----------------------------------------------------------------------------------------------


def become_a_fork(bench: Bench, path: Path | None) -> None:
    """What a machine does with its sockets in a process that was forked."""
    bench.files.watched.clear()
    bench.guest.device.transport_reset()
    bench.host.forked(path)
    bench.guest.receive()


def test_a_fork_ends_no_connection_of_the_original(bench: Bench, path: Path) -> None:
    sock, port = call(bench, path)

    def child() -> list[int]:
        become_a_fork(bench, None)
        bench.files.settle()
        bench.guest.send(Op.RW, 22, port, b"to nobody")
        ops = bench.ops()
        bench.guest.device.close()
        bench.host.close()
        return ops

    assert in_fork(child) == [Op.RST]
    sock.sendall(b"question")
    assert [packet.data for packet in bench.packets()] == [b"question"]
    bench.guest.send(Op.RW, 22, port, b"answer")
    assert sock.recv(100) == b"answer"
    assert path.exists()


def test_a_fork_sends_nothing_of_what_the_original_still_has_to(bench: Bench, path: Path) -> None:
    """The guest has sent more than its peer reads, and closed: the rest is the original's to send, once."""
    sock, port = call(bench, path)
    data = os.urandom(BUFFER_SIZE)
    sent = 0
    while sent < len(data):
        bench.guest.send(Op.RW, 22, port, data[sent : sent + 60_000])
        sent += 60_000
    bench.guest.send(Op.SHUTDOWN, 22, port, flags=SHUTDOWN_BOTH)

    def child() -> None:
        become_a_fork(bench, None)
        bench.files.settle()
        bench.host.close()

    sock.settimeout(None)
    sock.setblocking(False)
    in_fork(child)
    came = bytearray()
    for _ in range(1000):
        bench.packets()
        with suppress(BlockingIOError):
            while part := sock.recv(1 << 16):
                came += part
            break
    assert bytes(came) == data


def test_a_fork_has_a_socket_file_of_its_own(bench: Bench, path: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.sock"

    def child() -> tuple[list[int], bool, bool]:
        become_a_fork(bench, own)
        assert bench.host.path == own
        sock, _port = call(bench, own)
        sock.close()
        bench.packets()
        with pytest.raises(BlockingIOError):
            stray.recv(1)
        bench.guest.device.close()
        bench.host.close()
        return [], own.exists(), path.exists()

    stray = client(path)                    # whom only the original may accept
    stray.setblocking(False)
    assert in_fork(child) == ([], False, True)
    stray.setblocking(True)
    stray.sendall(b"CONNECT 7\n")
    (packet,) = bench.packets()
    assert packet.header.dst_port == 7
    call(bench, path)


def test_in_a_fork_the_guests_calls_go_to_its_own_files(bench: Bench, path: Path, tmp_path: Path) -> None:
    listening = server(f"{path}_80")
    own = server(f"{tmp_path / 'own.sock'}_80")

    def child(place: Path | None) -> list[int]:
        become_a_fork(bench, place)
        bench.guest.send(Op.REQUEST, 1000, 80)
        ops = bench.ops()
        bench.guest.device.close()
        bench.host.close()
        return ops

    assert in_fork(lambda: child(None)) == [Op.RST]
    assert in_fork(lambda: child(tmp_path / "own.sock")) == [Op.RESPONSE]
    own.accept()[0].close()
    listening.setblocking(False)
    with pytest.raises(BlockingIOError):
        listening.accept()
    listening.close()
    own.close()


def test_a_fork_listens_to_nothing_that_pythons_original_listens_to(bench: Bench) -> None:
    with bench.host.listen(50) as listener:
        bench.guest.send(Op.REQUEST, 1000, 50)
        assert bench.ops() == [Op.RESPONSE]

        def child() -> list[int]:
            become_a_fork(bench, None)
            assert not listener.waiting
            bench.guest.send(Op.REQUEST, 1001, 50)
            ops = bench.ops()
            bench.host.listen(50).close()
            return ops

        assert in_fork(child) == [Op.RST]
        with listener.accept() as stream:
            bench.guest.send(Op.RW, 1000, 50, b"to the original")
            assert stream.recv(100) == b"to the original"


def test_a_fork_without_room_for_its_socket_file_says_so(bench: Bench, path: Path) -> None:
    def child() -> str:
        with pytest.raises(EmuError) as info:
            become_a_fork(bench, path)      # the original's
        return str(info.value)

    assert "another program listens there" in in_fork(child)
    call(bench, path)
