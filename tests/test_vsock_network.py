"""Guests that connect to each other: two hosts' sides with socket files in one directory, and packets by hand."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.virtio.vsock_connection import SHUTDOWN_BOTH, Op
from devices.virtio.vsock_state import VsockState
from emu import vsock
from emu.errors import EmuError
from emu.fittings import VsockNetwork
from emu.vsock import VsockHost
from tests.devices.fakes import FakeClock
from tests.devices.virtio.vsock_guest import FakeBackend, Guest, Packet
from tests.test_vsock import HandDrivenFiles

LEFT, RIGHT, NOBODY = 3, 4, 9


class Member:
    """A machine of the network.

    Attributes:
        guest: its guest, which is the test.
    """

    def __init__(self, directory: Path, cid: int, files: HandDrivenFiles, clock: FakeClock) -> None:
        self.cid = cid
        self.host = VsockHost(files, lambda until, timeout: until(), VsockNetwork(directory, cid))
        device = self.host.device(clock, VsockState(cid))
        self.guest = Guest(FakeBackend(), clock, size=64, device=device)

    def send(self, op: int, port: int, to_port: int, data: bytes = b"", *, to: int, flags: int = 0) -> None:
        """A packet of the guest's."""
        self.guest.send(op, port, to_port, data, src_cid=self.cid, dst_cid=to, flags=flags)

    def close(self) -> None:
        """The machine ends."""
        self.guest.device.close()
        self.host.close()


class Network:
    """Two machines, and what drives both."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files, self.clock = HandDrivenFiles(), FakeClock()
        self.left = Member(directory, LEFT, self.files, self.clock)
        self.right = Member(directory, RIGHT, self.files, self.clock)

    def packets(self, member: Member) -> list[Packet]:
        """What a guest has received when there is nothing left to do."""
        self.files.settle()
        found = member.guest.receive()
        self.files.settle()
        return found + member.guest.receive()

    def ops(self, member: Member) -> list[tuple[int, int]]:
        """The same: operations, and who they are from."""
        return [(packet.header.op, packet.header.src_cid) for packet in self.packets(member)]

    def connect(self) -> None:
        """Have port 1000 on the left connected to port 80 on the right."""
        self.left.send(Op.REQUEST, 1000, 80, to=RIGHT)
        (request,) = self.packets(self.right)
        header = request.header
        assert (header.op, header.src_cid, header.src_port) == (Op.REQUEST, LEFT, 1000)
        assert (header.dst_cid, header.dst_port) == (RIGHT, 80)
        assert self.ops(self.left) == [], "nobody has agreed yet"
        self.right.send(Op.RESPONSE, 80, 1000, to=LEFT)
        assert self.ops(self.left) == [(Op.RESPONSE, RIGHT)]


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    network = Network(tmp_path)
    yield network
    network.left.close()
    network.right.close()
    assert not network.files.watched
    assert os.listdir(tmp_path) == []


def test_bytes_go_both_ways_between_guests(network: Network) -> None:
    network.connect()
    network.left.send(Op.RW, 1000, 80, b"question", to=RIGHT)
    assert [packet.data for packet in network.packets(network.right)] == [b"question"]
    network.right.send(Op.RW, 80, 1000, b"answer", to=LEFT)
    assert [packet.data for packet in network.packets(network.left)] == [b"answer"]


def test_an_end_of_one_side_reaches_the_other(network: Network) -> None:
    network.connect()
    network.left.send(Op.RW, 1000, 80, b"last words", to=RIGHT)
    network.left.send(Op.SHUTDOWN, 1000, 80, to=RIGHT, flags=SHUTDOWN_BOTH)
    assert network.ops(network.right) == [(Op.RW, LEFT), (Op.SHUTDOWN, LEFT)]
    network.right.send(Op.RST, 80, 1000, to=LEFT)
    assert network.ops(network.left) == [(Op.RST, RIGHT)]
    assert not network.left.guest.device._connections and not network.right.guest.device._connections


def test_a_connection_that_the_other_guest_has_not_let_go_of_is_not_made_again(network: Network) -> None:
    network.connect()
    network.left.send(Op.RST, 1000, 80, to=RIGHT)
    assert network.ops(network.right) == [(Op.SHUTDOWN, LEFT)]      # which it has still to confirm
    network.left.send(Op.REQUEST, 1000, 80, to=RIGHT)
    assert network.ops(network.left) == [(Op.RST, RIGHT)]
    network.right.send(Op.RST, 80, 1000, to=LEFT)
    network.connect()


def test_a_guest_can_connect_to_itself(network: Network) -> None:
    network.left.send(Op.REQUEST, 1000, 80, to=LEFT)
    (request,) = network.packets(network.left)
    assert (request.header.op, request.header.src_cid, request.header.dst_port) == (Op.REQUEST, LEFT, 80)
    network.left.send(Op.RESPONSE, 80, request.header.src_port, to=LEFT)
    assert network.ops(network.left) == [(Op.RESPONSE, LEFT)]
    network.left.send(Op.RW, 1000, 80, b"hello me", to=LEFT)
    assert [(p.header.dst_port, p.data) for p in network.packets(network.left)] == [(80, b"hello me")]


def test_an_address_that_nobody_has_is_refused_at_once_and_why_is_logged(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "emu.vsock")
    network.left.send(Op.REQUEST, 1000, 80, to=NOBODY)
    assert network.ops(network.left) == [(Op.RST, NOBODY)]
    place = network.directory / str(NOBODY)
    assert caplog.messages == [
        f"guest port 1000 to CID 9 port 80: refused: no machine with CID 9: {place}: No such file or directory"
    ]


def test_a_port_without_a_listener_is_refused_by_its_guest(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "emu.vsock")
    network.left.send(Op.REQUEST, 1000, 81, to=RIGHT)
    (request,) = network.packets(network.right)
    network.right.send(Op.RST, 81, request.header.src_port, to=LEFT)
    assert network.ops(network.left) == [(Op.RST, RIGHT)]
    assert caplog.messages == [
        "CID 3 port 1000 to guest port 81: refused by the guest",
        "guest port 1000 to CID 4 port 81: refused: by that machine",
    ]


def test_a_guest_without_its_driver_yet_is_refused(network: Network) -> None:
    network.right.guest.device.reset()
    network.left.send(Op.REQUEST, 1000, 80, to=RIGHT)
    assert network.ops(network.left) == [(Op.RST, RIGHT)]


def test_a_guest_outside_of_any_network_reaches_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "emu.vsock")
    clock = FakeClock()
    host = VsockHost(HandDrivenFiles(), lambda until, timeout: until(), tmp_path / str(LEFT))
    guest = Guest(FakeBackend(), clock, device=host.device(clock, VsockState(LEFT)))
    guest.send(Op.REQUEST, 1000, 80, src_cid=LEFT, dst_cid=RIGHT)
    assert [packet.header.op for packet in guest.receive()] == [Op.RST]
    assert "the machine is in no network" in caplog.text
    host.close()


def test_a_machine_that_dies_before_it_answers(network: Network) -> None:
    network.left.send(Op.REQUEST, 1000, 80, to=RIGHT)
    assert network.ops(network.right) == [(Op.REQUEST, LEFT)]
    network.right.close()
    assert network.ops(network.left) == [(Op.RST, RIGHT)]


@pytest.mark.parametrize("answer", [b"", b"OK\n", b"HELLO\n", b"OK 12345678901\n", b"x" * 100])
def test_what_answers_otherwise_than_a_machine_is_no_connection(network: Network, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(network.directory / str(NOBODY)))
        impostor.listen()
        network.left.send(Op.REQUEST, 1000, 80, to=NOBODY)
        sock, _ = impostor.accept()
        assert sock.recv(100) == b"CONNECT 80 FROM 3 1000\n"
        sock.sendall(answer)
        sock.close()
        assert network.ops(network.left) == [(Op.RST, NOBODY)]
    os.unlink(network.directory / str(NOBODY))


def test_calls_that_the_guest_gave_up_are_hung_up_when_it_calls_again(network: Network) -> None:
    file = network.right.host._file                 # nobody looks at it: that process hangs
    assert file
    network.files.forget(file.sock.fileno())
    for number in range(20):
        network.left.send(Op.REQUEST, 1000 + number, 80, to=RIGHT)
        network.left.send(Op.RST, 1000 + number, 80, to=RIGHT)
    assert len(network.left.host._calls._asked) == 1
    network.left.send(Op.REQUEST, 2000, 80, to=RIGHT)
    assert network.ops(network.left) == []
    network.clock.advance(10_000_000_000)
    assert network.ops(network.left) == [(Op.RST, RIGHT)], "out of patience"


def test_a_machine_too_busy_to_accept_is_called_again(network: Network) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        path = network.directory / str(NOBODY)
        busy.bind(str(path))
        busy.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            network.left.send(Op.REQUEST, 1000, 80, to=NOBODY)
            network.clock.advance(3 * vsock.RETRY_NS)
            assert network.ops(network.left) == []
            busy.accept()[0].close()
            network.clock.advance(vsock.RETRY_NS)
            sock, _ = busy.accept()
            sock.sendall(b"OK 1\n")
            assert network.ops(network.left) == [(Op.RESPONSE, NOBODY)]
            sock.close()
    path.unlink()


@pytest.mark.parametrize("line", [
    b"CONNECT 80 FROM 1 9\n", b"CONNECT 80 FROM 4294967295 9\n", b"CONNECT 80 FROM\n", b"CONNECT 80 FROM 3\n",
    b"CONNECT 80 FROM x 9\n", b"CONNECT 80 FROM 3 4294967295\n", b"CONNECT FROM 3 9\n", b"CONNECT 80 FROM 3 9 \n",
])  # fmt: skip
def test_callers_that_are_no_machine_are_cut_off(network: Network, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(network.directory / str(LEFT)))
        sock.sendall(line)
        assert network.ops(network.left) == []
        sock.settimeout(5)
        assert sock.recv(100) == b""


def fork(network: Network, place: VsockNetwork | None) -> Member:
    """As the left machine is in a process that was forked; the original's file remains."""
    left = network.left
    left.guest.device.transport_reset(place.cid if place else None)
    file = left.host._file
    assert file
    network.files.forget(file.sock.fileno())        # as all of them are, there
    left.host.forked(place)
    return left


def test_a_fork_is_in_no_network(network: Network) -> None:
    fork(network, None)
    network.left.send(Op.REQUEST, 1000, 80, to=RIGHT)
    assert network.ops(network.left) == [(Op.RST, RIGHT)]
    (network.directory / str(LEFT)).unlink()


def test_a_fork_can_be_in_the_network_under_another_address(network: Network) -> None:
    clone = fork(network, VsockNetwork(network.directory, NOBODY))
    assert clone.guest.device.read_config(0, 8) == NOBODY
    clone.cid = NOBODY
    clone.send(Op.REQUEST, 1000, 80, to=RIGHT)
    assert network.ops(network.right) == [(Op.REQUEST, NOBODY)]
    assert sorted(os.listdir(network.directory)) == ["3", "4", "9"]
    (network.directory / str(LEFT)).unlink()


def test_a_machine_out_of_its_network_has_no_connections_there(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "emu.vsock")
    network.connect()
    network.right.host.isolate(True)
    assert network.right.host.missing() == "the machine is out of its network"
    assert network.ops(network.right) == [(Op.RST, LEFT)]
    assert network.ops(network.left) == [(Op.SHUTDOWN, RIGHT)]
    network.left.send(Op.RST, 1000, 80, to=RIGHT)
    network.left.send(Op.REQUEST, 1000, 80, to=RIGHT)
    network.right.send(Op.REQUEST, 1000, 80, to=LEFT)
    assert network.ops(network.left) == [(Op.RST, RIGHT)]
    assert network.ops(network.right) == [(Op.RST, LEFT)]
    assert caplog.messages == [
        "guest port 1000 to CID 3 port 80: refused: the machine is out of its network",
        "CID 3 port 1000 to guest port 80: the machine is out of its network",
        "guest port 1000 to CID 4 port 80: refused: by that machine",
    ]
    network.right.host.isolate(False)
    network.connect()


def test_a_machine_out_of_its_network_is_reached_from_the_host(network: Network) -> None:
    network.left.host.isolate(True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(network.directory / str(LEFT)))
        sock.sendall(b"CONNECT 80\n")
        assert network.ops(network.left) == [(Op.REQUEST, 2)]


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 0xFFFF_FFFF])
def test_addresses_that_no_guest_can_have(tmp_path: Path, cid: int) -> None:
    with pytest.raises(EmuError, match="no guest can have the CID"):
        VsockNetwork(tmp_path, cid)


def test_two_machines_cannot_have_one_address(network: Network) -> None:
    with pytest.raises(EmuError, match="another program listens there"):
        Member(network.directory, LEFT, network.files, network.clock)
