"""virtio console device (Virtual I/O Device specification 1.2, section 5.3): a console, or many named ports."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from devices.frozen import frozen
from devices.log import Log
from devices.virtio.console_port import Port, PortState
from devices.virtio.device import BadRequest, VirtioDevice
from devices.virtio.queue import Queue

__all__ = ["Console", "ConsoleState"]

_log = Log(__name__)

F_SIZE, F_MULTIPORT, F_EMERG_WRITE = 1 << 0, 1 << 1, 1 << 2                     # feature bits

CONFIG = struct.Struct("<HHII")         # columns, rows, max_nr_ports, emerg_wr
EMERG_WR = 8                            # offset in it

CONTROL = struct.Struct("<IHH")         # port, event, value
DEVICE_READY, DEVICE_ADD, _DEVICE_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(8)
RESIZE_VALUE = struct.Struct("<HH")     # columns, rows; older Linux takes the rows first, and QEMU sends them so

CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3        # queues; port 0 has the two before, each other port two after
CONTROL_SIZES = 32, 32                  # entries
PORT_SIZES = 8, 16                      # Linux allocates a page for each entry of the first
LONGEST_NAME = 256
COMPLAINTS = 10                         # about the driver, that are logged


@frozen
class ConsoleState:
    """What a snapshot keeps of the device; `control` are messages (port, event) that the guest has not taken yet."""

    ports: tuple[PortState, ...] = ()
    control: tuple[tuple[int, int], ...] = ()
    driver_ready: bool = False
    columns: int = 0
    rows: int = 0


class Console(VirtioDevice):
    """Ports: consoles (Linux' /dev/hvc*), and pipes with names (/dev/vport*).

    They are added at any time, before or after the driver has come; the guest may be slow to make use of one. A
    device that can have only one port is a console, and there need be no control messages.

    Args:
        most_ports: how many there can be.
        state: of the device that this one goes on for; its ports are there again.

    Attributes:
        ports: by number, those that were added.
        driver_ready: the driver has said that it can be told of ports.
    """

    device_id = 3
    name = "virtio-console"
    pci_class = 0x07_80_00              # communication controller

    def __init__(self, most_ports: int = 1, state: ConsoleState | None = None) -> None:
        state = state or ConsoleState()
        self._most_ports = most_ports
        self.queue_sizes = PORT_SIZES
        self.features = F_SIZE | F_EMERG_WRITE
        if most_ports > 1:
            self.queue_sizes += CONTROL_SIZES + PORT_SIZES * (most_ports - 1)
            self.features |= F_MULTIPORT
        self.driver_ready = state.driver_ready
        self._columns, self._rows = state.columns, state.rows
        self._queues: Sequence[Queue | None] = ()
        self._has_control = False
        self._size_used = False
        self._complaints = 0
        self.ports = {port.id: Port(self, port) for port in state.ports}
        self._control: dict[tuple[int, int], None] = dict.fromkeys(state.control)

    def port(self, number: int, name: str = "", *, is_console: bool = False) -> Port:
        """A port, which is added if it is not there yet; the guest is told of it.

        Args:
            number: below `most_ports`.
            name: of a new port; what the guest finds it by, in /sys/class/virtio-ports/*/name.
            is_console: a new port is a console; one that is the device's only port is, in any case.

        Raises:
            ValueError: no such number, or the name is too long.
        """
        if number in self.ports:
            return self.ports[number]
        if not 0 <= number < self._most_ports:
            raise ValueError(f"there is no port {number} in {self._most_ports}")
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(f"a port's name has at most {LONGEST_NAME} bytes")
        port = self.ports[number] = Port(self, PortState(number, name, is_console))
        if self.driver_ready:
            self._note(port, DEVICE_ADD)
            self._guarded(self._send_control)
        return port

    def resize(self, columns: int, rows: int) -> None:
        """The console has another size, in characters."""
        if (columns, rows) == (self._columns, self._rows):
            return
        self._columns, self._rows = columns & 0xFFFF, rows & 0xFFFF
        if self._has_control:
            for port in self.ports.values():
                if port.is_console:
                    self._tell(port, RESIZE)
        elif self._queues:
            self.transport.config_changed()

    # --- the transport's side -----------------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        """Read the configuration: the console's size in characters, the number of ports."""
        config = CONFIG.pack(self._columns, self._rows, self._most_ports, 0)
        return int.from_bytes(config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write a character to the first port without a queue."""
        port = self.ports.get(0)
        if offset == EMERG_WR and port is not None and port.received is not None:
            port.received(bytes([value & 0xFF]))

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        """The driver is ready."""
        self._queues = queues
        self._has_control = bool(features & F_MULTIPORT)
        if not self._has_control and 0 in self.ports:
            self.ports[0].set_guest_open(True)
        if self._control or any(port.pending for port in self.ports.values()):
            self._guarded(self._give_all)

    def _give_all(self) -> None:
        self._send_control()
        for number in self.ports:
            self._notify_port(number, receive=True)

    def notify(self, index: int) -> None:
        """Take what the guest has written, or give it what it has made room for.

        Raises:
            BadRequest: a buffer cannot be what it should be.
        """
        if not self._has_control:
            self._notify_port(0, receive=not index)
            if index:
                self._remind_of_size()
        elif index == CONTROL_RECEIVE:
            self._send_control()
        elif index == CONTROL_TRANSMIT:
            self._receive_control()
        else:
            self._notify_port(index // 2 - (index > CONTROL_TRANSMIT), receive=not index % 2)

    def _remind_of_size(self) -> None:
        """Linux reads its only console's size only after a change, and from when it has begun to use the console."""
        if self._columns and not self._size_used:
            self._size_used = True
            self.transport.config_changed()

    def reset(self) -> None:
        """The driver starts over, and finds the same ports again."""
        self._queues = ()
        self._has_control = self.driver_ready = self._size_used = False
        self._control.clear()
        for port in tuple(self.ports.values()):     # who hears of it may ask for another
            port.ready = False
            port.set_guest_open(False)

    def close(self) -> None:
        """Let go of the queues."""
        self._queues = ()

    def save(self) -> ConsoleState:
        """The state to go on from."""
        ports = tuple(port.save() for port in self.ports.values())
        return ConsoleState(ports, tuple(self._control), self.driver_ready, self._columns, self._rows)

    # --- the ports' side ----------------------------------------------------------------------------------------

    def tell_open(self, port: Port) -> None:
        """Tell the driver that a port is open, or not, on the host."""
        self._tell(port, PORT_OPEN)

    def _tell(self, port: Port, event: int) -> None:
        """Send a control message about a port that the driver knows."""
        if port.ready:
            self._note(port, event)
            self._guarded(self._send_control)

    def _note(self, port: Port, event: int) -> None:
        """A control message is to be sent; its value is made then, so an older one of the same kind says nothing."""
        self._control.pop((port.id, event), None)
        self._control[port.id, event] = None

    def fill(self, port: Port) -> None:
        """Give the guest what is pending."""
        if port.guest_open:
            self._guarded(lambda: self._notify_port(port.id, receive=True))

    def drain(self, port: Port) -> None:
        """Take what the guest has written."""
        self._guarded(lambda: self._notify_port(port.id, receive=False))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Work that the host began: the guest's mistakes are the transport's to deal with."""
        try:
            work()
        except BadRequest as error:
            self.transport.fail(error)

    def _queue(self, index: int) -> Queue | None:
        return self._queues[index] if index < len(self._queues) else None

    def _notify_port(self, number: int, *, receive: bool) -> None:
        """Move data in one direction; `receive` is the guest's side of it."""
        queue = self._queue(2 * number + (CONTROL_RECEIVE if number else 0) + (not receive))
        port = self.ports.get(number)
        if queue is None or port is None:
            return
        try:
            if not receive:
                port.receive_from(queue)
            elif port.guest_open:
                port.send_to(queue)
        finally:
            queue.signal()

    # --- control messages ---------------------------------------------------------------------------------------

    def _send_control(self) -> None:
        queue = self._queue(CONTROL_RECEIVE) if self._has_control else None
        if queue is None:
            return
        try:
            while self._control and (chain := queue.pop()) is not None:
                number, event = next(iter(self._control))
                del self._control[number, event]
                queue.push(chain, chain.write(self._message(self.ports[number], event)))
        finally:
            queue.signal()

    def _message(self, port: Port, event: int) -> bytes:
        value = port.host_open if event == PORT_OPEN else 1
        message = CONTROL.pack(port.id, event, value)
        if event == PORT_NAME:
            message += port.name.encode()
        elif event == RESIZE:
            message += RESIZE_VALUE.pack(self._columns, self._rows)
        return message

    def _receive_control(self) -> None:
        queue = self._queue(CONTROL_TRANSMIT)
        if queue is None:
            return
        try:
            for chain in queue.chains():
                message = chain.read(CONTROL.size)
                queue.push(chain, 0)
                if chain.writable_size or len(message) < CONTROL.size:
                    raise BadRequest(f"a control message of {len(message)} bytes")
                self._control_event(*CONTROL.unpack(message))
        finally:
            queue.signal()
        self._send_control()

    def _control_event(self, number: int, event: int, value: int) -> None:
        port = self.ports.get(number)
        if event == DEVICE_READY:
            self._set_driver_ready(bool(value))
        elif port is None or event not in (PORT_READY, PORT_OPEN):
            self._complain(f"message {event} about port {number}")
        elif event == PORT_OPEN:
            port.set_guest_open(bool(value))
            self._notify_port(number, receive=True)
        elif value:
            self._introduce(port)
        else:
            self._complain(f"it could not make port {number}")

    def _set_driver_ready(self, is_ready: bool) -> None:
        self.driver_ready = is_ready
        if not is_ready:
            self._complain("it could not make use of the device")
            return
        for port in self.ports.values():
            self._note(port, DEVICE_ADD)

    def _introduce(self, port: Port) -> None:
        """Tell all there is to say about a port that the driver has made."""
        port.ready = True
        if port.is_console:
            self._note(port, CONSOLE_PORT)
            self._note(port, RESIZE)
        if port.name:
            self._note(port, PORT_NAME)
        self._note(port, PORT_OPEN)

    def _complain(self, what: str) -> None:
        """Log what the driver said, the first few times."""
        self._complaints += 1
        if self._complaints <= COMPLAINTS:
            _log.info("virtio console: the driver says: %s", what)
