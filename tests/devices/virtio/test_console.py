"""The virtio console device: what its driver sees, and what it can do to it."""

from __future__ import annotations

import struct
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.virtio.console import Console, ConsoleState
from devices.virtio.console_port import LONGEST_WRITE, Port
from tests.devices.virtio.driver import EVERYTHING, Driver

F_MULTIPORT = 1 << 1
DEVICE_READY, DEVICE_ADD, DEVICE_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(8)
RECEIVE, TRANSMIT, CONTROL_RECEIVE, CONTROL_TRANSMIT = range(4)

Message = tuple[int, int, int, bytes]


class Guest:
    """A driver of ports as Linux' is one, with buffers for control messages always there."""

    def __init__(self, device: Console, features: int = EVERYTHING, continues: Driver | None = None) -> None:
        self.driver = Driver(device, features, continues=continues)
        if not continues:
            for _ in range(16):
                self.driver.send(CONTROL_RECEIVE, writable=[64])

    def told(self) -> list[Message]:
        """Control messages since the last call: port, event, value, what follows."""
        found = []
        for used in self.driver.used(CONTROL_RECEIVE):
            port, event, value = struct.unpack_from("<IHH", used.data)
            found.append((port, event, value, used.data[8:]))
            self.driver.send(CONTROL_RECEIVE, writable=[64])
        return found

    def tell(self, port: int, event: int, value: int = 1) -> None:
        self.driver.send(CONTROL_TRANSMIT, [struct.pack("<IHH", port, event, value)])
        self.driver.used(CONTROL_TRANSMIT)

    def start(self, *ports: int) -> None:
        """Make and open ports."""
        self.tell(0xFFFF_FFFF, DEVICE_READY)
        for port in ports:
            self.tell(port, PORT_READY)
            self.tell(port, PORT_OPEN)
        self.told()


def queue(port: int, direction: int) -> int:
    return direction if port == 0 else 2 + 2 * port + direction


def collect(port: Port) -> list[bytes]:
    """Everything the guest will write."""
    seen: list[bytes] = []
    port.received = seen.append
    return seen


# A console alone


def test_lone_console_needs_no_control_messages_and_has_two_queues() -> None:
    device = Console()
    seen = collect(device.port(0))
    assert not device.features & F_MULTIPORT
    assert len(device.queue_sizes) == 2
    driver = Driver(device)
    driver.send(TRANSMIT, [b"hel", b"lo"])
    assert [used.written for used in driver.used(TRANSMIT)] == [0]
    assert seen == [b"hello"]


def test_input_waits_for_buffers_and_fills_them() -> None:
    device = Console()
    port = device.port(0)
    driver = Driver(device)
    port.send(b"abcdefgh")
    assert port.pending == 8
    driver.send(RECEIVE, writable=[3])
    driver.send(RECEIVE, writable=[2, 2])
    driver.send(RECEIVE, writable=[100])
    assert [used.data for used in driver.used(RECEIVE)] == [b"abc", b"defg", b"h"]
    assert port.pending == 0


def test_several_sends_share_a_buffer() -> None:
    device = Console()
    port = device.port(0)
    driver = Driver(device)
    for part in (b"a", bytearray(b"bc"), memoryview(b"d")):
        port.send(part)
    driver.send(RECEIVE, writable=[100])
    assert [used.data for used in driver.used(RECEIVE)] == [b"abcd"]


def test_input_sent_before_the_driver_is_there_reaches_it() -> None:
    device = Console()
    device.port(0).send(b"early")
    driver = Driver(device)
    driver.send(RECEIVE, writable=[10])
    assert [used.data for used in driver.used(RECEIVE)] == [b"early"]


def test_large_input_is_not_copied_time_and_again() -> None:
    device = Console()
    port = device.port(0)
    driver = Driver(device)
    data = bytes(range(256)) * 4096
    port.send(data)
    taken = bytearray()
    while port.pending:
        driver.send(RECEIVE, writable=[4096])
        taken += b"".join(used.data for used in driver.used(RECEIVE))
    assert taken == data


def test_drained_is_called_once_the_guest_has_all() -> None:
    device = Console()
    port = device.port(0)
    calls: list[int] = []
    port.drained = lambda: calls.append(port.pending)
    driver = Driver(device)
    port.send(b"abcd")
    driver.send(RECEIVE, writable=[3])
    assert not calls
    driver.send(RECEIVE, writable=[3])
    assert calls == [0]


def test_size_is_in_the_configuration_and_a_change_is_told() -> None:
    device = Console()
    device.port(0)
    device.resize(80, 25)
    driver = Driver(device)
    assert (device.read_config(0, 2), device.read_config(2, 2), device.read_config(4, 4)) == (80, 25, 1)
    assert driver.config_changes == 0
    device.resize(132, 43)
    device.resize(132, 43)
    assert driver.config_changes == 1
    assert device.read_config(0, 4) == 43 << 16 | 132
    assert device.read_config(12, 4) == 0


def test_only_console_s_size_is_told_again_when_the_guest_first_uses_it() -> None:
    device = Console()
    device.port(0)
    driver = Driver(device)
    driver.send(TRANSMIT, [b"no size yet"])
    assert driver.config_changes == 0
    device = Console()
    device.port(0)
    device.resize(80, 25)
    driver = Driver(device)
    for _ in range(3):
        driver.send(TRANSMIT, [b"text"])
        assert driver.config_changes == 1
    device.reset()
    Driver(device).send(TRANSMIT, [b"text"])
    assert isinstance(device.transport, Driver) and device.transport.config_changes == 1


def test_emergency_write_needs_no_queue() -> None:
    device = Console()
    seen = collect(device.port(0))
    device.write_config(8, 4, 0x141)
    device.write_config(0, 4, 0x42)
    assert seen == [b"A"]


def test_driver_without_multiport_uses_the_first_port_as_console() -> None:
    device = Console(3)
    seen = collect(device.port(0))
    driver = Driver(device, EVERYTHING & ~F_MULTIPORT)
    driver.send(TRANSMIT, [b"x"])
    assert seen == [b"x"]
    device.port(0).send(b"y")
    driver.send(RECEIVE, writable=[1])
    assert [used.data for used in driver.used(RECEIVE)] == [b"y"]


# Named ports


def test_ports_are_announced_when_the_driver_is_ready() -> None:
    device = Console(4)
    device.port(0, "zero").open()
    device.port(2, "two")
    guest = Guest(device)
    assert guest.told() == []
    guest.tell(0xFFFF_FFFF, DEVICE_READY)
    assert device.driver_ready
    assert guest.told() == [(0, DEVICE_ADD, 1, b""), (2, DEVICE_ADD, 1, b"")]
    guest.tell(0, PORT_READY)
    guest.tell(2, PORT_READY)
    assert guest.told() == [
        (0, PORT_NAME, 1, b"zero"), (0, PORT_OPEN, 1, b""), (2, PORT_NAME, 1, b"two"), (2, PORT_OPEN, 0, b""),
    ]


def test_port_added_later_is_announced_at_once() -> None:
    device = Console(4)
    guest = Guest(device)
    guest.start()
    port = device.port(3, "late")
    assert guest.told() == [(3, DEVICE_ADD, 1, b"")]
    assert device.port(3) is port
    guest.tell(3, PORT_READY)
    port.open()
    assert guest.told() == [(3, PORT_NAME, 1, b"late"), (3, PORT_OPEN, 0, b""), (3, PORT_OPEN, 1, b"")]


@pytest.mark.parametrize("number", [-1, 4])
def test_a_port_beyond_the_last_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="no port"):
        Console(4).port(number)


def test_console_port_is_told_so_with_its_size_columns_first() -> None:
    device = Console(2)
    device.resize(80, 25)
    device.port(0, is_console=True)
    guest = Guest(device)
    guest.start(0)
    device.resize(100, 30)
    assert guest.told() == [(0, RESIZE, 1, struct.pack("<HH", 100, 30))]
    guest.tell(0, PORT_READY)
    assert guest.told()[:2] == [(0, CONSOLE_PORT, 1, b""), (0, RESIZE, 1, struct.pack("<HH", 100, 30))]


def test_each_port_has_queues_of_its_own() -> None:
    device = Console(3)
    seen = [collect(device.port(number)) for number in range(3)]
    guest = Guest(device)
    guest.start(0, 1, 2)
    for number in range(3):
        guest.driver.send(queue(number, TRANSMIT), [b"out %d" % number])
        device.port(number).send(b"in %d" % number)
        guest.driver.send(queue(number, RECEIVE), writable=[10])
        assert [used.data for used in guest.driver.used(queue(number, RECEIVE))] == [b"in %d" % number]
    assert seen == [[b"out 0"], [b"out 1"], [b"out 2"]]


def test_input_waits_until_a_program_has_opened_the_port() -> None:
    device = Console(2)
    port = device.port(1)
    guest = Guest(device)
    guest.start()
    guest.tell(1, PORT_READY)
    guest.driver.send(queue(1, RECEIVE), writable=[10])
    port.send(b"data")
    assert guest.driver.used(queue(1, RECEIVE)) == []
    guest.tell(1, PORT_OPEN)
    assert [used.data for used in guest.driver.used(queue(1, RECEIVE))] == [b"data"]


def test_closing_drops_input_and_is_told() -> None:
    device = Console(2)
    port = device.port(1)
    events: list[bool] = []
    port.opened = events.append
    guest = Guest(device)
    guest.start(1)
    port.send(b"never read")
    guest.tell(1, PORT_OPEN, 0)
    guest.tell(1, PORT_OPEN, 0)
    assert (port.pending, port.guest_open, events) == (0, False, [True, False])
    guest.tell(1, PORT_OPEN)
    port.send(b"new")
    guest.driver.send(queue(1, RECEIVE), writable=[10])
    assert [used.data for used in guest.driver.used(queue(1, RECEIVE))] == [b"new"]


def test_paused_port_leaves_output_with_the_guest() -> None:
    device = Console(2)
    port = device.port(1)
    seen = collect(port)
    guest = Guest(device)
    guest.start(1)
    port.pause()
    guest.driver.send(queue(1, TRANSMIT), [b"a"])
    guest.driver.send(queue(1, TRANSMIT), [b"b"])
    assert (seen, guest.driver.used(queue(1, TRANSMIT))) == ([], [])
    port.resume()
    assert seen == [b"a", b"b"]
    assert len(guest.driver.used(queue(1, TRANSMIT))) == 2
    guest.driver.send(queue(1, TRANSMIT), [b"c"])
    assert seen == [b"a", b"b", b"c"]


def test_pausing_while_output_is_taken_stops_after_that_buffer() -> None:
    device = Console(2)
    port = device.port(1)
    seen: list[bytes] = []

    def take(data: bytes) -> None:
        seen.append(data)
        port.pause()

    port.received = take
    guest = Guest(device)
    guest.start(1)
    for data in (b"1", b"2", b"3"):
        guest.driver.send(queue(1, TRANSMIT), [data])
    assert seen == [b"1"]
    port.resume()
    assert seen == [b"1", b"2"]


def test_output_of_nobody_is_dropped() -> None:
    device = Console(2)
    device.port(1)
    guest = Guest(device)
    guest.start(1)
    guest.driver.send(queue(1, TRANSMIT), [b"x"])
    assert len(guest.driver.used(queue(1, TRANSMIT))) == 1


def test_messages_wait_for_buffers_and_only_the_last_of_a_kind_is_sent() -> None:
    device = Console(2)
    device.port(0, is_console=True)
    driver = Driver(device)
    driver.send(CONTROL_TRANSMIT, [struct.pack("<IHH", 0, DEVICE_READY, 1)])
    driver.send(CONTROL_TRANSMIT, [struct.pack("<IHH", 0, PORT_READY, 1)])
    for rows in range(1000):
        device.resize(80, rows)
        driver.send(CONTROL_TRANSMIT, [struct.pack("<IHH", 0, DEVICE_READY, 1)])
        driver.used(CONTROL_TRANSMIT)
    assert len(device.save().control) <= 8
    for _ in range(8):
        driver.send(CONTROL_RECEIVE, writable=[64])
    resizes = [used.data[8:] for used in driver.used(CONTROL_RECEIVE) if used.data[4] == RESIZE]
    assert resizes == [struct.pack("<HH", 80, 999)]


def test_reset_closes_ports_and_announces_them_again() -> None:
    device = Console(2)
    port = device.port(1, "one")
    events: list[bool] = []
    port.opened = events.append
    Guest(device).start(1)
    device.reset()
    assert events == [True, False]
    assert not device.driver_ready
    assert not port.ready
    guest = Guest(device)
    guest.tell(0, DEVICE_READY)
    assert guest.told() == [(1, DEVICE_ADD, 1, b"")]


def test_who_hears_of_a_reset_may_ask_for_another_port() -> None:
    device = Console(3)
    device.port(1).opened = lambda is_open: None if is_open else device.port(2)
    Guest(device).start(1)
    device.reset()
    assert [*device.ports] == [1, 2]


# State


def test_restored_device_goes_on_with_pending_input_and_messages() -> None:
    device = Console(2)
    device.port(0, "zero")
    guest = Guest(device)
    guest.start(0)
    device.port(0).send(b"pending")
    device.resize(1, 2)
    state = device.save()
    restored = Console(2, state)
    assert restored.save() == state
    Guest(restored, continues=guest.driver)
    restored_driver = restored.transport
    assert isinstance(restored_driver, Driver)
    restored_driver.send(RECEIVE, writable=[100])
    assert [used.data for used in restored_driver.used(RECEIVE)] == [b"pending"]
    assert hash(state)
    with pytest.raises(FrozenInstanceError):
        state.rows = 3  # type: ignore[misc]


def test_restored_device_fills_buffers_that_were_there_before() -> None:
    device = Console()
    device.port(0)
    driver = Driver(device)
    driver.send(RECEIVE, writable=[10])
    state = ConsoleState((device.port(0).save(),), rows=1)
    restored = Console(state=state)
    restored.port(0).send(b"typed before the machine was whole")
    after = Driver(restored, continues=driver)
    assert [used.data for used in after.used(RECEIVE)] == [b"typed befo"]


# A driver that breaks the rules


@pytest.mark.parametrize(
    ("index", "readable", "writable"),
    [
        (TRANSMIT, [b"x"], [4]),
        (CONTROL_TRANSMIT, [b"short"], []),
        (CONTROL_TRANSMIT, [bytes(8)], [4]),
        (CONTROL_TRANSMIT, [], []),
        (RECEIVE, [b"x"], [4]),
    ],
)
def test_wrong_buffers_break_the_device(index: int, readable: list[bytes], writable: list[int]) -> None:
    device = Console(2)
    port = device.port(0)
    guest = Guest(device)
    guest.start(0)
    port.send(b"input")
    guest.driver.rings[index].send(readable or [b""], writable)
    guest.driver.notify(index)
    assert guest.driver.failure is not None


def test_wrong_buffer_found_by_the_host_breaks_the_device_without_an_exception() -> None:
    device = Console()
    port = device.port(0)
    driver = Driver(device)
    driver.send(RECEIVE, [b"readable"])
    port.send(b"x")
    assert driver.failure is not None


def test_a_message_that_does_not_fit_breaks_the_device() -> None:
    device = Console(2)
    device.port(0)
    driver = Driver(device)
    driver.send(CONTROL_RECEIVE, writable=[7])
    driver.send(CONTROL_TRANSMIT, [struct.pack("<IHH", 0, DEVICE_READY, 1)])
    assert driver.failure is not None


def test_endless_output_in_one_buffer_is_refused() -> None:
    device = Console()
    seen = collect(device.port(0))
    driver = Driver(device)
    chunk = driver.memory.allocate(1 << 20)
    for slot in range(2):
        driver.rings[TRANSMIT].describe(slot, chunk, LONGEST_WRITE, 1 - slot, 1)
    driver.rings[TRANSMIT].offer(0)
    driver.notify(TRANSMIT)
    assert driver.failure is not None
    assert not seen


def test_messages_about_ports_that_are_not_there_are_ignored() -> None:
    device = Console(2)
    device.port(0)
    guest = Guest(device)
    guest.start(0)
    for port in (1, 2, 0xFFFF_FFFF):
        for event in range(9):
            if event != DEVICE_READY:
                guest.tell(port, event)
    guest.tell(0, 77)
    guest.tell(0, PORT_READY, 0)
    assert guest.driver.failure is None
    assert guest.told() == []
    assert set(device.ports) == {0}


Step = tuple[str, int, object, object]

STEPS = st.one_of(
    st.tuples(st.just("control"), st.integers(0, 4) | st.just(0xFFFF_FFFF), st.integers(0, 9), st.integers(0, 2)),
    st.tuples(st.just("raw"), st.integers(0, 9), st.binary(max_size=20), st.lists(st.integers(0, 30), max_size=2)),
    st.tuples(st.just("write"), st.integers(0, 3), st.binary(min_size=1, max_size=20), st.just(0)),
    st.tuples(st.just("room"), st.integers(0, 9), st.integers(1, 64), st.just(0)),
    st.tuples(st.sampled_from(["send", "pause", "resume", "open", "add", "save"]), st.integers(0, 3), st.just(0),
              st.just(0)),
)


class Play:
    """A driver without sense, and a host that does what hosts do."""

    def __init__(self) -> None:
        self.device = Console(4)
        self.taken: list[bytes] = []
        self.device.port(0, "zero").received = self.taken.append
        self.driver = Driver(self.device)

    def step(self, kind: str, number: int, what: object, more: object) -> None:
        driver, ports = self.driver, self.device.ports
        if kind == "control":
            self._offer(CONTROL_TRANSMIT, [struct.pack("<IHH", number, what, more)], [])
        elif kind == "raw":
            assert isinstance(what, bytes)
            assert isinstance(more, list)
            self._offer(number, [what] if what else [], more)
        elif kind == "write":
            assert isinstance(what, bytes)
            self._offer(queue(number, TRANSMIT), [what], [])
        elif kind == "room":
            assert isinstance(what, int)
            self._offer(number, [], [what])
        elif kind == "add":
            self.device.port(number, "name").received = self.taken.append
        elif kind == "save":
            assert Console(4, self.device.save()).save() == self.device.save()
        elif number in ports and kind == "send":
            ports[number].send(b"input")
        elif number in ports:
            getattr(ports[number], kind)()
        assert not driver.memory.unreported()

    def _offer(self, index: int, readable: list[bytes], writable: list[int]) -> None:
        ring = self.driver.rings[index]
        if len(ring._free) > 4 and (readable or writable):
            ring.send(readable, writable)
            self.driver.notify(index)


@settings(deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_no_driver_makes_the_device_raise_or_store_where_it_should_not(steps: list[Step]) -> None:
    play = Play()
    for step in steps:
        play.step(*step)
    assert len(play.device.save().control) <= 4 * 8
