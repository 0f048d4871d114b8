"""The vsock device: connections, credit, ends, and what a hostile driver may try."""

from __future__ import annotations

import dataclasses

import pytest

from devices.virtio import vsock
from devices.virtio.vsock import EVENT, RX, TX, NotReady, Vsock
from devices.virtio.vsock_connection import BUFFER_SIZE, HEADER, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, Op
from devices.virtio.vsock_state import VsockState
from tests.devices.fakes import FakeClock
from tests.devices.virtio.driver import EVERYTHING, Driver
from tests.devices.virtio.vsock_guest import GUEST_CID, FakeBackend, FakeStream, Guest, make_guest

SECOND_NS = 1_000_000_000


@pytest.fixture
def guest() -> Guest:
    return make_guest()


def ops(guest: Guest) -> list[int]:
    return [packet.header.op for packet in guest.receive()]


def data(guest: Guest) -> bytes:
    return b"".join(packet.data for packet in guest.receive() if packet.header.op == Op.RW)


# -- configuration ---------------------------------------------------------------------------------------------------


def test_configuration_is_the_guests_cid() -> None:
    device = Vsock(FakeBackend(), FakeClock(), VsockState(0x1_2345_6789))
    assert device.read_config(0, 8) == 0x1_2345_6789
    assert device.read_config(4, 4) == 1
    assert device.read_config(1, 1) == 0x67
    assert device.read_config(8, 4) == 0


# -- connections that the guest asks for -----------------------------------------------------------------------------


def test_accepted_request_is_answered_with_our_credit(guest: Guest) -> None:
    guest.backend.streams[80] = FakeStream()
    guest.send(Op.REQUEST, 1000, 80)
    (packet,) = guest.receive()
    header = packet.header
    assert (header.src_cid, header.dst_cid, header.src_port, header.dst_port) == (2, GUEST_CID, 80, 1000)
    assert (header.op, header.type, header.buf_alloc, header.fwd_cnt) == (Op.RESPONSE, 1, BUFFER_SIZE, 0)


def test_request_is_refused_by_rst_and_can_be_made_again(guest: Guest) -> None:
    guest.send(Op.REQUEST, 1000, 80)
    guest.device.refuse(guest.backend.asked.pop(), "nobody there")
    assert [p.summary for p in guest.receive()] == [(Op.RST, 80, 1000)]
    guest.open(FakeStream())


def test_answer_may_come_later(guest: Guest) -> None:
    stream = FakeStream()
    guest.send(Op.REQUEST, 1000, 80)
    assert ops(guest) == []
    guest.device.accept(guest.backend.asked.pop(), stream)
    assert ops(guest) == [Op.RESPONSE]
    guest.send(Op.RW, 1000, 80, b"hello")
    assert stream.taken == b"hello"


def test_host_that_never_answers_refuses(guest: Guest) -> None:
    guest.send(Op.REQUEST, 1000, 80)
    guest.clock.advance(7 * SECOND_NS)
    assert ops(guest) == []
    guest.clock.advance(2 * SECOND_NS)
    assert ops(guest) == [Op.RST]
    stream = FakeStream()
    guest.device.accept(guest.backend.asked.pop(), stream)
    assert stream.events == ["closed: the host did not answer in 8 s"]


@pytest.mark.parametrize("op, answer", [(Op.RST, []), (Op.SHUTDOWN, [Op.RST]), (Op.RW, [Op.RST])])
def test_guest_that_gives_up_asking_is_not_accepted(guest: Guest, op: int, answer: list[int]) -> None:
    guest.send(Op.REQUEST, 1000, 80)
    guest.send(op, 1000, 80, flags=SHUTDOWN_BOTH)
    assert ops(guest) == answer
    stream = FakeStream()
    guest.device.accept(guest.backend.asked.pop(), stream)
    assert stream.is_closed
    assert ops(guest) == []


def test_more_connections_than_the_limit_are_refused(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "MOST_CONNECTIONS", 2)
    guest.open(FakeStream(), guest_port=1)
    guest.open(FakeStream(), guest_port=2)
    guest.send(Op.REQUEST, 3, 80)
    assert [p.summary for p in guest.receive()] == [(Op.RST, 80, 3)]
    with pytest.raises(NotReady, match="2 connections"):
        guest.device.connect(22, FakeStream())


# -- connections that the host asks for ------------------------------------------------------------------------------


def test_host_connects(guest: Guest) -> None:
    stream = FakeStream()
    connection = guest.device.connect(22, stream)
    (packet,) = guest.receive()
    assert packet.summary == (Op.REQUEST, connection.host_port, 22)
    assert packet.header.buf_alloc == BUFFER_SIZE
    guest.send(Op.RESPONSE, 22, connection.host_port)
    assert stream.events == ["established"]
    stream.put(b"to the guest")
    guest.send(Op.RW, 22, connection.host_port, b"to the host")
    assert data(guest) == b"to the guest"
    assert stream.taken == b"to the host"


def test_two_connections_to_one_port_have_different_host_ports(guest: Guest) -> None:
    ports = {guest.device.connect(22, FakeStream()).host_port for _ in range(3)}
    assert len(ports) == 3
    assert {p.header.src_port for p in guest.receive()} == ports


def test_guest_refuses(guest: Guest) -> None:
    stream = FakeStream()
    connection = guest.device.connect(22, stream)
    assert ops(guest) == [Op.REQUEST]
    guest.send(Op.RST, 22, connection.host_port)
    assert stream.events == ["closed: refused by the guest"]
    assert ops(guest) == []


def test_guest_that_never_answers_is_given_up(guest: Guest) -> None:
    stream = FakeStream()
    guest.device.connect(22, stream)
    assert ops(guest) == [Op.REQUEST]
    guest.clock.advance(9 * SECOND_NS)
    assert stream.events == ["closed: the guest did not answer in 8 s"]
    assert ops(guest) == [Op.RST]


def test_each_request_has_its_own_time(guest: Guest) -> None:
    first, second = FakeStream(), FakeStream()
    guest.device.connect(22, first)
    guest.clock.advance(5 * SECOND_NS)
    guest.device.connect(22, second)
    guest.clock.advance(5 * SECOND_NS)
    assert (first.is_closed, second.is_closed) == (True, False)
    guest.clock.advance(5 * SECOND_NS)
    assert second.is_closed


def test_nothing_is_sent_before_the_guest_accepts(guest: Guest) -> None:
    stream = FakeStream()
    guest.device.connect(22, stream)
    stream.put(b"early")
    assert ops(guest) == [Op.REQUEST]
    assert stream.waiting == b"early"


def test_connecting_needs_a_driver() -> None:
    device = Vsock(FakeBackend(), FakeClock(), VsockState(GUEST_CID))
    with pytest.raises(NotReady, match="no vsock driver"):
        device.connect(22, FakeStream())


@pytest.mark.parametrize("op", [Op.RW, Op.REQUEST, Op.SHUTDOWN, Op.CREDIT_UPDATE, 99])
def test_anything_but_an_answer_to_our_request_ends_it(guest: Guest, op: int) -> None:
    stream = FakeStream()
    connection = guest.device.connect(22, stream)
    guest.receive()
    guest.send(op, 22, connection.host_port)
    assert stream.is_closed
    assert ops(guest) == [Op.RST]


# -- bytes to the host -----------------------------------------------------------------------------------------------


def test_bytes_that_the_stream_does_not_take_wait_in_order(guest: Guest) -> None:
    stream = FakeStream(room=3)
    guest.open(stream)
    guest.send(Op.RW, 1000, 80, b"abcde")
    stream.room = 4
    guest.send(Op.RW, 1000, 80, b"fgh")
    assert stream.taken == b"abc"
    stream.poll()
    assert stream.taken == b"abcdefg"
    stream.room = 100
    stream.poll()
    assert stream.taken == b"abcdefgh"
    assert stream.writable is None


def test_credit_is_given_back_when_the_stream_has_taken_half(guest: Guest) -> None:
    stream = FakeStream(room=0)
    guest.open(stream)
    for _ in range(4):
        guest.send(Op.RW, 1000, 80, bytes(BUFFER_SIZE // 4))
    assert ops(guest) == []
    stream.room = BUFFER_SIZE // 2 - 1
    stream.poll()
    assert ops(guest) == []
    stream.room = 1
    stream.poll()
    (packet,) = guest.receive()
    assert (packet.header.op, packet.header.fwd_cnt) == (Op.CREDIT_UPDATE, BUFFER_SIZE // 2)


def test_credit_is_told_when_asked(guest: Guest) -> None:
    guest.open(FakeStream())
    guest.send(Op.RW, 1000, 80, b"12345")
    guest.send(Op.CREDIT_REQUEST, 1000, 80)
    (packet,) = guest.receive()
    assert (packet.header.op, packet.header.fwd_cnt, packet.header.buf_alloc) == (Op.CREDIT_UPDATE, 5, BUFFER_SIZE)


def test_data_packets_tell_credit_so_that_no_update_is_needed(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.send(Op.RW, 1000, 80, b"123")
    stream.put(b"x")
    (packet,) = guest.receive()
    assert (packet.header.op, packet.header.fwd_cnt) == (Op.RW, 3)


def test_guest_that_overruns_its_credit_is_reset(guest: Guest) -> None:
    stream = FakeStream(room=0)
    guest.open(stream)
    for _ in range(4):
        guest.send(Op.RW, 1000, 80, bytes(BUFFER_SIZE // 4))
    guest.send(Op.RW, 1000, 80, b"!")
    assert ops(guest) == [Op.RST]
    assert stream.is_closed


def test_fwd_cnt_wraps_at_32_bits(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    (connection,) = guest.device._connections.values()
    connection._forwarded = connection._forwarded_told = 0xFFFF_FFFE
    guest.send(Op.RW, 1000, 80, b"1234")
    guest.send(Op.CREDIT_REQUEST, 1000, 80)
    assert guest.receive()[0].header.fwd_cnt == 2


def test_empty_data_packet_is_harmless(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.send(Op.RW, 1000, 80)
    guest.send(Op.RW, 1000, 80, b"x")
    assert stream.taken == b"x"


# -- bytes to the guest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("features", [EVERYTHING, vsock.F_STREAM])
def test_bytes_fill_the_guests_buffers(split: bool, features: int) -> None:
    guest = Guest(FakeBackend(), FakeClock(), buffers=1000, split=split, features=features)
    stream = FakeStream()
    guest.open(stream)
    stream.put(bytes(range(256)) * 10)
    packets = [packet for packet in guest.receive() if packet.header.op == Op.RW]
    assert [len(packet.data) for packet in packets] == [956, 956, 648]
    assert b"".join(packet.data for packet in packets) == bytes(range(256)) * 10


def test_one_interrupt_for_many_packets(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.give()
    before = guest.driver.interrupts[RX]
    stream.put(bytes(40000))
    assert len(guest.receive()) >= 10
    assert guest.driver.interrupts[RX] == before + 1


def test_no_more_is_sent_than_the_guest_has_room_for(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream, buf_alloc=10)
    stream.put(b"0123456789abcdefghij")
    first, second = guest.receive()
    assert (first.data, second.header.op) == (b"0123456789", Op.CREDIT_REQUEST)
    assert stream.readable is None                      # it would be called back for ever
    guest.send(Op.CREDIT_UPDATE, 1000, 80, buf_alloc=10, fwd_cnt=4)
    assert [(p.header.op, p.data) for p in guest.receive()] == [(Op.RW, b"abcd"), (Op.CREDIT_REQUEST, b"")]
    guest.send(Op.CREDIT_UPDATE, 1000, 80, buf_alloc=10, fwd_cnt=4)
    assert ops(guest) == []                             # asked once, and the answer was no
    guest.send(Op.CREDIT_UPDATE, 1000, 80, buf_alloc=100, fwd_cnt=14)
    assert data(guest) == b"efghij"


def test_impossible_credit_is_none(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream, buf_alloc=10, fwd_cnt=11)        # more than we sent
    stream.put(b"x")
    assert ops(guest) == [Op.CREDIT_REQUEST]


def test_bytes_wait_for_buffers_of_the_guest(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.driver.used(RX)
    while guest.given:                                  # the test takes all buffers away
        stream.put(b"-")
        guest.collect()
    guest.inbox.clear()
    stream.put(b"later")
    assert stream.waiting == b"later"
    assert stream.readable is None
    assert data(guest) == b"later"


def test_connections_take_turns(guest: Guest) -> None:
    streams = [FakeStream(), FakeStream()]
    for number, stream in enumerate(streams):
        guest.open(stream, guest_port=number)
    while guest.given:
        streams[0].put(b"-")
        guest.collect()
    guest.inbox.clear()
    for stream in streams:
        stream.put(bytes(20000))
    assert [p.header.dst_port for p in guest.receive()][:6] in ([0, 1] * 3, [1, 0] * 3)


def test_stream_that_has_nothing_after_all_costs_a_credit_update(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    assert stream.readable is not None
    stream.readable()
    assert ops(guest) == [Op.CREDIT_UPDATE]
    assert stream.readable is not None


# -- ends ------------------------------------------------------------------------------------------------------------


def test_guest_closes(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.send(Op.SHUTDOWN, 1000, 80, flags=SHUTDOWN_BOTH)
    assert ops(guest) == [Op.RST]
    assert stream.events == ["closed: closed by the guest"]


def test_what_the_guest_sent_before_it_closed_still_arrives(guest: Guest) -> None:
    stream = FakeStream(room=2)
    guest.open(stream)
    guest.send(Op.RW, 1000, 80, b"abcdef")
    guest.send(Op.SHUTDOWN, 1000, 80, flags=SHUTDOWN_BOTH)
    assert ops(guest) == [Op.RST]
    guest.open(FakeStream())                            # the same ports again: the old one does not matter
    assert not stream.is_closed
    stream.room = 100
    stream.poll()
    assert stream.taken == b"abcdef"
    assert stream.events == ["closed: closed by the guest"]


def test_what_was_sent_before_a_reset_is_dropped(guest: Guest) -> None:
    stream = FakeStream(room=2)
    guest.open(stream)
    guest.send(Op.RW, 1000, 80, b"abcdef")
    guest.send(Op.RST, 1000, 80)
    assert stream.events == ["closed: reset by the guest"]
    assert stream.taken == b"ab"
    assert ops(guest) == []


def test_guest_ends_sending_once_all_is_taken_and_still_receives(guest: Guest) -> None:
    stream = FakeStream(room=2)
    guest.open(stream)
    guest.send(Op.RW, 1000, 80, b"abcdef")
    guest.send(Op.SHUTDOWN, 1000, 80, flags=SHUTDOWN_SEND)
    assert stream.events == []
    stream.room = 100
    stream.poll()
    assert stream.events == ["end sending"]
    stream.put(b"answer")
    assert data(guest) == b"answer"
    stream.finish()
    assert [p.header.flags for p in guest.receive()] == [SHUTDOWN_BOTH]
    assert stream.is_closed
    guest.send(Op.RST, 1000, 80)
    assert ops(guest) == []
    assert not guest.device._connections


def test_guest_ends_receiving_and_still_sends(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.send(Op.SHUTDOWN, 1000, 80, flags=SHUTDOWN_RECEIVE)
    assert stream.events == ["end receiving"]
    assert stream.readable is None
    guest.send(Op.RW, 1000, 80, b"more")
    assert stream.taken == b"more"
    guest.send(Op.SHUTDOWN, 1000, 80, flags=SHUTDOWN_SEND)          # flags add up
    assert ops(guest) == [Op.RST]
    assert stream.is_closed


def test_host_ends_sending_after_its_bytes_and_still_receives(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    stream.put(b"last words")
    stream.finish()
    packets = guest.receive()
    assert b"".join(p.data for p in packets) == b"last words"
    assert (packets[-1].header.op, packets[-1].header.flags) == (Op.SHUTDOWN, SHUTDOWN_SEND)
    guest.send(Op.RW, 1000, 80, b"answer")
    assert stream.taken == b"answer"
    guest.send(Op.SHUTDOWN, 1000, 80, flags=SHUTDOWN_BOTH)
    assert ops(guest) == [Op.RST]


def test_host_hangs_up(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    stream.finish("hang up")
    assert [(p.header.op, p.header.flags) for p in guest.receive()] == [(Op.SHUTDOWN, SHUTDOWN_BOTH)]
    assert stream.is_closed
    guest.send(Op.RW, 1000, 80, b"crossed our shutdown")            # is swallowed
    assert ops(guest) == []
    guest.send(Op.RST, 1000, 80)
    assert not guest.device._connections


def test_guest_that_does_not_confirm_a_shutdown_is_reset(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    stream.finish("hang up")
    guest.receive()
    guest.clock.advance(9 * SECOND_NS)
    assert ops(guest) == [Op.RST]
    assert not guest.device._connections


def test_host_that_takes_no_more_is_a_shutdown_and_can_still_send(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    stream.broken = True
    guest.send(Op.RW, 1000, 80, b"into the void")
    stream.broken = False
    assert [(p.header.op, p.header.flags) for p in guest.receive()] == [(Op.SHUTDOWN, SHUTDOWN_RECEIVE)]
    stream.put(b"goodbye")
    assert data(guest) == b"goodbye"
    stream.finish()
    assert [(p.header.op, p.header.flags) for p in guest.receive()] == [(Op.SHUTDOWN, SHUTDOWN_BOTH)]


def test_broken_stream_resets(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    stream.broken = True
    stream.poll()
    assert ops(guest) == [Op.RST]
    assert stream.is_closed
    assert not guest.device._connections


def test_data_after_the_guests_end_resets(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.send(Op.SHUTDOWN, 1000, 80, flags=SHUTDOWN_SEND)
    guest.send(Op.RW, 1000, 80, b"still here")
    assert ops(guest) == [Op.RST]
    assert stream.is_closed
    assert not stream.taken


def test_host_abandons(guest: Guest) -> None:
    stream = FakeStream(room=0)
    connection = guest.device.connect(22, stream)
    guest.receive()
    guest.send(Op.RESPONSE, 22, connection.host_port)
    guest.send(Op.RW, 22, connection.host_port, b"unread")
    guest.device.abandon(connection, "enough")
    assert ops(guest) == [Op.RST]
    assert stream.events == ["established", "closed: enough"]


# -- strays and hostile packets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [Op.RESPONSE, Op.RW, Op.SHUTDOWN, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, 0, 8, 0xFFFF])
def test_unknown_connection_is_reset(guest: Guest, op: int) -> None:
    guest.send(op, 1000, 80)
    assert [p.summary for p in guest.receive()] == [(Op.RST, 80, 1000)]
    assert "no such connection" in guest.backend.notes[0]


def test_rst_is_never_answered(guest: Guest) -> None:
    guest.send(Op.RST, 1000, 80)
    guest.send(Op.RST, 1000, 80, dst_cid=7)
    guest.send(Op.RST, 1000, 80, kind=9)
    assert ops(guest) == []


def test_other_addresses_and_types_are_reset_as_they_came(guest: Guest) -> None:
    nobody = 0, 1, 0xFFFF_FFFF, 1 << 32 | 2
    for cid in nobody:
        guest.send(Op.REQUEST, 1000, 80, dst_cid=cid)
    guest.send(Op.REQUEST, 1000, 80, src_cid=GUEST_CID | 1 << 32)
    guest.send(Op.REQUEST, 1000, 80, kind=2)
    headers = [packet.header for packet in guest.receive()]
    assert [(h.op, h.src_cid, h.dst_cid, h.type) for h in headers] == [
        *((Op.RST, cid, GUEST_CID, 1) for cid in nobody),
        (Op.RST, 2, GUEST_CID | 1 << 32, 1), (Op.RST, 2, GUEST_CID, 2),
    ]
    assert guest.backend.asked == []


@pytest.mark.parametrize("op", [Op.REQUEST, Op.RESPONSE, 0, 8])
def test_operation_out_of_turn_ends_an_open_connection(guest: Guest, op: int) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.send(op, 1000, 80)
    assert ops(guest) == [Op.RST]
    assert stream.is_closed


def test_response_to_a_request_not_sent_yet_is_out_of_turn(guest: Guest) -> None:
    stream = FakeStream()
    connection = guest.device.connect(22, stream)       # no buffer: it waits
    guest.send(Op.RESPONSE, 22, connection.host_port)
    assert stream.is_closed


@pytest.mark.parametrize("chain", [[b"short"], [bytes(HEADER.size - 1)], []])
def test_packet_without_a_whole_header_breaks_the_device(guest: Guest, chain: list[bytes]) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.driver.send(TX, chain, [16] if not chain else [])
    assert guest.driver.failure
    assert stream.is_closed
    with pytest.raises(NotReady):
        guest.device.connect(22, FakeStream())


def test_packet_longer_than_its_buffers_breaks_the_device(guest: Guest) -> None:
    guest.send(Op.RW, 1000, 80, b"abc", length=4)
    assert guest.driver.failure


def test_receive_buffer_without_room_for_a_header_breaks_the_device_also_in_a_host_event(guest: Guest) -> None:
    guest.driver.send(RX, (), [HEADER.size - 1])
    assert guest.driver.failure is None
    stream = FakeStream()
    guest.device.connect(22, stream)
    assert guest.driver.failure
    assert stream.is_closed


def test_receive_buffers_for_headers_only_carry_no_data(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    while guest.given:
        stream.put(b"-")
        guest.collect()
    guest.inbox.clear()
    stream.put(b"data")
    guest.buffers = [HEADER.size]
    guest.give(5)
    guest.collect()
    assert all(packet.header.op == Op.CREDIT_UPDATE for packet in guest.inbox)
    guest.buffers = [4096]
    assert data(guest) == b"data"


def test_packets_are_not_taken_while_too_many_answers_wait(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "MOST_RESETS", 5)
    for port in range(10):
        guest.send(Op.RW, port, 80)
    assert len(guest.device._resets) == 5
    with pytest.raises(NotReady, match="does not take"):
        guest.device.connect(22, FakeStream())
    assert [p.summary for p in guest.receive()] == [(Op.RST, 80, port) for port in range(10)]
    guest.open(FakeStream())


def test_bytes_left_over_by_a_full_ring_follow_when_buffers_come() -> None:
    guest = make_guest(size=4)
    stream = FakeStream()
    guest.open(stream)
    for turn in range(1, 8):
        guest.give()
        assert guest.given == 4
        stream.put(bytes(4 * (4096 - HEADER.size)) + b"x")
        guest.collect()
        assert guest.given == 0
        assert len(data(guest)) == 4 * (4096 - HEADER.size) + 1
        guest.send(Op.CREDIT_UPDATE, 1000, 80, fwd_cnt=turn * (4 * (4096 - HEADER.size) + 1))


# -- reset, snapshot, end --------------------------------------------------------------------------------------------


def test_reset_of_the_driver_closes_streams_and_a_new_driver_works(guest: Guest) -> None:
    stream = FakeStream()
    guest.open(stream)
    guest.device.reset()
    assert stream.events == ["closed: the guest's driver was reset"]
    again = Guest(guest.backend, guest.clock, device=guest.device)
    again.open(FakeStream())


def test_connections_can_be_made_after_a_restore_and_the_guest_is_told(guest: Guest) -> None:
    old = FakeStream()
    guest.open(old)
    guest.driver.send(EVENT, (), [4])
    backend = FakeBackend()
    backend.device = device = Vsock(backend, guest.clock, guest.device.save())
    guest.driver = Driver(device, size=16, continues=guest.driver)
    device.transport_reset()
    (event,) = guest.driver.used(EVENT)
    assert event.data == bytes(4)
    assert guest.driver.interrupts[EVENT] == 1
    guest.device, guest.backend = device, backend
    guest.send(Op.RW, 1000, 80, b"to a connection of the past")
    assert ops(guest) == [Op.RST]
    guest.open(FakeStream())


def test_transport_reset_ends_streams_and_waits_for_a_buffer_even_in_a_snapshot(guest: Guest) -> None:
    stream = FakeStream(room=0)
    guest.open(stream)
    guest.send(Op.RW, 1000, 80, b"lost")
    guest.device.transport_reset()
    assert stream.events == ["closed: the machine was restored"]
    assert guest.device.save() == VsockState(GUEST_CID, transport_reset=True)
    device = Vsock(guest.backend, guest.clock, guest.device.save())
    assert device.save() == guest.device.save()
    driver = Driver(device, size=16, continues=guest.driver)
    driver.send(EVENT, (), [4])
    assert driver.used(EVENT)[0].data == bytes(4)
    assert device.save() == VsockState(GUEST_CID)


def test_transport_reset_handed_in_as_state_is_told_at_once(guest: Guest) -> None:
    guest.driver.send(EVENT, (), [4])
    state = dataclasses.replace(guest.device.save(), transport_reset=True)
    driver = Driver(Vsock(guest.backend, guest.clock, state), size=16, continues=guest.driver)
    assert driver.used(EVENT)[0].data == bytes(4)


def test_driver_that_starts_over_needs_no_transport_reset(guest: Guest) -> None:
    guest.device.transport_reset()
    guest.device.reset()
    assert guest.device.save() == VsockState(GUEST_CID)


def test_close_ends_streams(guest: Guest) -> None:
    open_, asked = FakeStream(), FakeStream()
    guest.open(open_)
    guest.device.connect(22, asked)
    guest.device.close()
    assert open_.is_closed
    assert asked.is_closed
    guest.clock.advance(20 * SECOND_NS)


def test_state_is_plain() -> None:
    assert dataclasses.asdict(VsockState(3)) == {"guest_cid": 3, "transport_reset": False}


# -- other machines --------------------------------------------------------------------------------------------------


def test_guest_asks_for_another_machine_and_hears_from_that_one(guest: Guest) -> None:
    guest.send(Op.REQUEST, 1000, 80, dst_cid=7)
    (connection,) = guest.backend.asked
    assert (connection.host_cid, connection.host_port, connection.guest_port) == (7, 80, 1000)
    stream = FakeStream()
    guest.device.accept(connection, stream)
    stream.put(b"from afar")
    packets = guest.receive()
    assert [(p.header.op, p.header.src_cid) for p in packets] == [(Op.RESPONSE, 7), (Op.RW, 7)]
    guest.send(Op.RW, 1000, 80, b"to the host", dst_cid=2)
    assert [p.header.src_cid for p in guest.receive()] == [2], "that is another connection, which there is not"
    guest.send(Op.RW, 1000, 80, b"to that one", dst_cid=7)
    assert stream.taken == b"to that one"


def test_refused_on_behalf_of_another_machine(guest: Guest) -> None:
    guest.send(Op.REQUEST, 1000, 80, dst_cid=7)
    guest.device.refuse(guest.backend.asked[0], "no such machine")
    assert [(p.header.op, p.header.src_cid) for p in guest.receive()] == [(Op.RST, 7)]
    assert not guest.device._connections


def test_the_same_ports_of_two_machines_are_two_connections(guest: Guest) -> None:
    streams = {cid: FakeStream() for cid in (2, 7, 8)}
    for cid in streams:
        guest.send(Op.REQUEST, 1000, 80, dst_cid=cid)
    for connection in guest.backend.asked:
        guest.device.accept(connection, streams[connection.host_cid])
    for cid in streams:
        guest.send(Op.RW, 1000, 80, b"%d" % cid, dst_cid=cid)
    assert {cid: bytes(stream.taken) for cid, stream in streams.items()} == {2: b"2", 7: b"7", 8: b"8"}
    guest.receive()
    guest.send(Op.RST, 1000, 80, dst_cid=7)
    assert [stream.is_closed for stream in streams.values()] == [False, True, False]


def test_another_machine_asks_the_guest_under_its_own_address(guest: Guest) -> None:
    stream = FakeStream()
    guest.device.connect(22, stream, (7, 1000))
    (packet,) = guest.receive()
    assert (packet.header.op, packet.header.src_cid, packet.header.src_port) == (Op.REQUEST, 7, 1000)
    guest.send(Op.RESPONSE, 22, 1000, dst_cid=2)
    assert stream.events == [], "the host has not asked"
    guest.receive()
    guest.send(Op.RESPONSE, 22, 1000, dst_cid=7)
    assert stream.events == ["established"]
    with pytest.raises(NotReady, match="port 1000 of CID 7 is connected there already"):
        guest.device.connect(22, FakeStream(), (7, 1000))
