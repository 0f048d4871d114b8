"""virtio-vsock (Virtual I/O Device specification 1.2, section 5.10): stream sockets between guest and host.

The host's side of it all is a `Backend`; this device knows no sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from devices import Clock
from devices.frozen import replace
from devices.virtio.device import BadRequest, VirtioDevice
from devices.virtio.queue import Chain, Queue
from devices.virtio.vsock_connection import (
    HEADER,
    HOST_CID,
    STREAM,
    Connection,
    Header,
    Op,
    State,
    Stream,
)
from devices.virtio.vsock_state import VsockState

__all__ = ["MOST_CONNECTIONS", "Backend", "Connection", "NotReady", "State", "Stream", "Vsock"]

RX, TX, EVENT = range(3)            # queues; the first two are named from the driver's side
QUEUE_SIZE, EVENT_QUEUE_SIZE = 256, 16
F_STREAM = 1 << 0                   # VIRTIO_VSOCK_F_STREAM
COMMUNICATION_CONTROLLER = 0x07_8000
TRANSPORT_RESET = (0).to_bytes(4, "little")     # struct virtio_vsock_event
CID_ANY = 0xFFFF_FFFF               # VMADDR_CID_ANY: nobody's address

FIRST_HOST_PORT, HOST_PORTS = 1 << 30, 1 << 30  # of connections that the host asks for
MOST_CONNECTIONS = 2048             # at a time
MOST_RESETS = 256                   # RSTs waiting for a buffer before no packet is taken any more
PATIENCE_NS = 8_000_000_000         # for an answer from either side; Linux waits as long for the RST after its SHUTDOWN


class NotReady(Exception):
    """The guest cannot be asked for a connection now; the text says why."""


class Backend(Protocol):
    """The host's side of the device."""

    def open(self, connection: Connection) -> None:
        """The guest asks for a connection to `connection.host_port`: answer by `accept` or `refuse`, now or later.

        `connection.host_cid` says whose port it is: the host's own, or that of a machine which may not exist.
        """

    def note(self, text: str) -> None:
        """Something that whoever looks for a fault wants to know."""


class Vsock(VirtioDevice):
    """The device.

    Args:
        backend: the host's side.
        clock: ends what is not answered.
        state: the guest's address, and what is left to be said.
    """

    device_id = 19
    name = "virtio-vsock"
    pci_class = COMMUNICATION_CONTROLLER
    features = F_STREAM
    queue_sizes = QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE

    def __init__(self, backend: Backend, clock: Clock, state: VsockState) -> None:
        self._backend = backend
        self._clock = clock
        self._state = state
        self._queues: Sequence[Queue | None] = (None, None, None)
        self._working = False
        self._held_up = False           # packets wait in the tx queue until RSTs have gone
        self._connections: dict[tuple[int, int, int], Connection] = {}      # by `Connection.key`
        self._draining: set[Connection] = set()
        self._ready: deque[Connection] = deque()        # those with a packet for the guest, in turn
        self._resets: deque[bytes] = deque()            # whole packets
        self._deadlines: dict[Connection, int] = {}     # earliest first
        self._timer = clock.timer(self._out_of_patience)
        self._next_port = 0

    # -- for the transport ---------------------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        """guest_cid, 64 bits."""
        return int.from_bytes(self._state.guest_cid.to_bytes(8, "little")[offset : offset + size], "little")

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        """The driver is ready."""
        self._queues = queues
        if self._state.transport_reset:
            self._from_host()

    def notify(self, index: int) -> None:
        """Packets from the guest, or buffers for it."""
        self._work(take=index == TX)

    def reset(self) -> None:
        """The driver starts over: no connection outlives that."""
        self._queues = None, None, None
        self._state = replace(self._state, transport_reset=False)
        self._forget("the guest's driver was reset")

    def close(self) -> None:
        """End all connections."""
        self._queues = None, None, None
        self._forget("the machine ended")

    def save(self) -> VsockState:
        """Its address; the restored device is to be told to `transport_reset`."""
        return self._state

    # -- for the host --------------------------------------------------------------------------------------------

    @property
    def guest_cid(self) -> int:
        """The guest's address."""
        return self._state.guest_cid

    def transport_reset(self, guest_cid: int | None = None) -> None:
        """End all connections, on the guest's side too, as after a restore; what listens there goes on.

        Args:
            guest_cid: the guest's address from now on, which its driver asks for then; None: as it was.
        """
        self._forget("the machine was restored")
        self._state = VsockState(guest_cid or self.guest_cid, transport_reset=True)
        self._from_host()

    def connect(self, guest_port: int, stream: Stream, caller: tuple[int, int] | None = None) -> Connection:
        """Ask the guest for a connection; the stream hears that it is `established`, or `closed`.

        Args:
            guest_port: where.
            stream: the host's end.
            caller: CID and port of another machine whose end it is; None: the host's, with a port of its own.

        Raises:
            NotReady: no driver, one that takes no packets, or too many connections.
        """
        if obstacle := self.obstacle():
            raise NotReady(obstacle)
        cid, port = caller or (HOST_CID, self._free_port(guest_port))
        if (guest_port, port, cid) in self._connections:
            raise NotReady(f"port {port} of CID {cid} is connected there already")
        connection = Connection(guest_port, port, cid, State.ASKED_BY_HOST, stream)
        self._connections[connection.key] = connection
        self._from_host(connection)
        return connection

    def obstacle(self) -> str:
        """Why nobody can connect to the guest, as far as can be seen from here; nothing if one can."""
        if self._queues[RX] is None or self._queues[TX] is None:
            return "the guest has no vsock driver, or not yet"
        if len(self._resets) >= MOST_RESETS:
            return "the guest does not take packets"
        return f"{MOST_CONNECTIONS} connections are open" if self._full else ""

    def _free_port(self, guest_port: int) -> int:
        """A port of the host's that has no connection to a port of the guest's."""
        while True:
            port = FIRST_HOST_PORT + self._next_port
            self._next_port = (self._next_port + 1) % HOST_PORTS
            if (guest_port, port, HOST_CID) not in self._connections:
                return port

    def accept(self, connection: Connection, stream: Stream) -> None:
        """Agree to a connection that the guest asked for, unless it has changed its mind: the stream hears that."""
        if connection.state is not State.ASKED_BY_GUEST:
            stream.closed(connection.reason)
            return
        connection.accept(stream)
        self._from_host(connection)

    def refuse(self, connection: Connection, reason: str) -> None:
        """Do not agree to it."""
        if connection.state is State.ASKED_BY_GUEST:
            self._end(connection, reason)
            self._from_host()

    def abandon(self, connection: Connection, reason: str) -> None:
        """End a connection of any kind at once, the guest's unread bytes too."""
        if connection.state is not State.OVER:
            self._end(connection, reason)
        connection.release(reason)
        self._from_host(connection)

    def abandon_others(self, reason: str) -> None:
        """End all connections with other machines at once."""
        for connection in [*self._connections.values(), *self._draining]:
            if connection.host_cid != HOST_CID:
                self.abandon(connection, reason)

    def _readable(self, connection: Connection) -> None:
        connection.host_ready = connection.state is State.OPEN
        self._from_host(connection)

    def _writable(self, connection: Connection) -> None:
        connection.drain()
        self._from_host(connection)

    def _from_host(self, connection: Connection | None = None) -> None:
        """Do what an event outside of the guest makes possible."""
        if connection:
            self._settle(connection)
        try:
            self._work()
        except BadRequest as error:
            self.transport.fail(error)

    # -- connections ---------------------------------------------------------------------------------------------

    @property
    def _full(self) -> bool:
        return len(self._connections) + len(self._draining) >= MOST_CONNECTIONS

    def _settle(self, connection: Connection) -> None:
        """Something happened to a connection: put it where it belongs now."""
        if connection.state is State.OVER:
            if self._connections.get(connection.key) is connection:
                del self._connections[connection.key]
            if connection.draining:
                self._draining.add(connection)
            else:
                self._draining.discard(connection)
        if connection.state in (State.OVER, State.OPEN):
            self._deadlines.pop(connection, None)
        elif connection not in self._deadlines:
            self._deadlines[connection] = self._clock.now_ns() + PATIENCE_NS
            if self._timer.deadline_ns is None:
                self._timer.arm(self._deadlines[connection])
        if not connection.queued and connection.has_packet:
            connection.queued = True
            self._ready.append(connection)
        connection.watch(self._readable, self._writable)

    def _end(self, connection: Connection, reason: str) -> None:
        """End a connection, and tell the guest."""
        connection.end(reason)
        self._send_reset(connection.host_cid, self.guest_cid, connection.host_port, connection.guest_port, STREAM)
        self._settle(connection)

    def _forget(self, reason: str) -> None:
        """End everything; the guest learns of it elsewhere."""
        everything = [*self._connections.values(), *self._draining]
        for table in self._connections, self._draining, self._ready, self._resets, self._deadlines:
            table.clear()
        self._held_up = False
        self._timer.disarm()
        for connection in everything:
            connection.end(reason)
            connection.release(reason)

    def _out_of_patience(self) -> None:
        now_ns = self._clock.now_ns()
        for connection, deadline_ns in list(self._deadlines.items()):
            if deadline_ns > now_ns:
                self._timer.arm(deadline_ns)
                break
            who = "host" if connection.state is State.ASKED_BY_GUEST else "guest"
            self._end(connection, f"the {who} did not answer in {PATIENCE_NS // 1_000_000_000} s")
        self._from_host()

    # -- packets -------------------------------------------------------------------------------------------------

    def _work(self, take: bool = False) -> None:
        """Move what can be moved.

        Args:
            take: there may be packets in the tx queue.

        Raises:
            BadRequest: a queue holds something against the specification; all connections have ended.
        """
        if self._working:       # an answer from within: the work under way goes on with it
            return
        self._working = True
        try:
            self._tell_transport_reset()
            self._give_packets()
            if take or self._held_up:
                self._take_packets()
                self._give_packets()
        except BadRequest as error:
            self._queues = None, None, None
            self._forget(f"the guest's driver failed: {error}")
            raise
        finally:
            self._working = False

    def _tell_transport_reset(self) -> None:
        queue = self._queues[EVENT]
        if self._state.transport_reset and queue and (chain := queue.pop()):
            queue.push(chain, chain.write(TRANSPORT_RESET))
            queue.signal()
            self._state = replace(self._state, transport_reset=False)

    def _give_packets(self) -> None:
        """Packets into the rx queue, while there are both; each connection in turn."""
        queue = self._queues[RX]
        if queue is None:
            return
        for _ in range(queue.size + 1):         # one more: to find the queue empty asks for a notification
            connection = None if self._resets else self._next_ready()
            if not self._resets and not connection:
                break
            chain = queue.pop()
            if chain is None:
                break
            if chain.writable_size < HEADER.size:
                raise BadRequest(f"a buffer of {chain.writable_size} bytes for a packet")
            if connection:
                queue.push(chain, connection.transmit(chain, self.guest_cid))
                self._ready.rotate(-1)
                self._settle(connection)
            else:
                queue.push(chain, chain.write(self._resets.popleft()))
        queue.signal()

    def _next_ready(self) -> Connection | None:
        while self._ready:
            connection = self._ready[0]
            if connection.has_packet:
                return connection
            self._ready.popleft()
            connection.queued = False
        return None

    def _take_packets(self) -> None:
        """Everything out of the tx queue, unless the guest leaves too many answers unread."""
        queue = self._queues[TX]
        if queue is None:
            return
        for _ in range(queue.size + 1):
            self._held_up = len(self._resets) >= MOST_RESETS
            chain = None if self._held_up else queue.pop()
            if chain is None:
                break
            self._handle(chain)
            queue.push(chain, 0)
        queue.signal()

    def _handle(self, chain: Chain) -> None:
        if chain.readable_size < HEADER.size:
            raise BadRequest(f"a packet of {chain.readable_size} bytes")
        header = Header._make(HEADER.unpack(chain.read(HEADER.size)))
        if header.len > chain.readable_size - HEADER.size:
            raise BadRequest(f"a packet with {chain.readable_size - HEADER.size} of {header.len} bytes")
        connection = self._connections.get((header.src_port, header.dst_port, header.dst_cid))
        if header.src_cid != self.guest_cid or not HOST_CID <= header.dst_cid < CID_ANY or header.type != STREAM:
            self._answer_stray(header, "not a stream from the guest's address to another one")
        elif connection is None:
            self._handle_new(header)
        elif connection.handle(header, chain):
            self._end(connection, connection.reason)
        else:
            self._settle(connection)

    def _handle_new(self, header: Header) -> None:
        if header.op != Op.REQUEST:
            self._answer_stray(header, "no such connection")
        elif self._full:
            self._answer_stray(header, f"{MOST_CONNECTIONS} connections are open")
        else:
            connection = Connection(header.src_port, header.dst_port, header.dst_cid, State.ASKED_BY_GUEST)
            connection.note_credit(header)
            self._connections[connection.key] = connection
            self._settle(connection)
            self._backend.open(connection)

    def _answer_stray(self, header: Header, reason: str) -> None:
        """RST for what belongs to no connection, but never for an RST."""
        if header.op != Op.RST:
            self._backend.note(f"RST to guest port {header.src_port} for CID {header.dst_cid} port {header.dst_port}, "
                               f"operation {header.op}: {reason}")
            self._send_reset(header.dst_cid, header.src_cid, header.dst_port, header.src_port, header.type)

    def _send_reset(self, src_cid: int, dst_cid: int, src_port: int, dst_port: int, kind: int) -> None:
        self._resets.append(HEADER.pack(src_cid, dst_cid, src_port, dst_port, 0, kind, Op.RST, 0, 0, 0))
