"""One virtio-vsock connection: its states and its credit (Virtual I/O Device specification 1.2, section 5.10.6).

The host's end is a `Stream`, whatever that is: nothing here waits for it. Bytes go between it and guest memory without
a copy, but for those that the guest sent and the stream does not take yet: they wait here, at most `BUFFER_SIZE` of
them, because that is the credit the guest is given.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import partial
from typing import NamedTuple, Protocol

from devices.virtio.queue import Chain

__all__ = ["BUFFER_SIZE", "HEADER", "HOST_CID", "STREAM", "Connection", "Header", "Op", "State", "Stream"]

KIB = 1024
HOST_CID = 2                        # VMADDR_CID_HOST
STREAM = 1                          # VIRTIO_VSOCK_TYPE_STREAM

BUFFER_SIZE = 256 * KIB             # buf_alloc: what the guest may send and the stream has not taken
UPDATE_AFTER = BUFFER_SIZE // 2     # bytes of credit that the guest does not know of before a packet is sent for it

SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2          # flags of Op.SHUTDOWN: what its sender will not do any more
SHUTDOWN_BOTH = SHUTDOWN_RECEIVE | SHUTDOWN_SEND

COUNT = 0xFFFF_FFFF                 # byte counts wrap at 32 bits


class Op:
    """VIRTIO_VSOCK_OP_*."""

    REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)


HEADER = struct.Struct("<QQIIIHHIII")


class Header(NamedTuple):
    """struct virtio_vsock_hdr."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int


class Stream(Protocol):
    """The host's end of a connection; everything is called on the machine's thread."""

    def established(self) -> None:
        """The guest has accepted the connection that the host asked for."""

    def send(self, views: Sequence[memoryview]) -> int:
        """Take bytes from the guest; how many, 0 if none can be taken now.

        Raises:
            OSError: none will ever be taken again.
        """

    def receive(self, views: Sequence[memoryview]) -> int | None:
        """Store bytes for the guest; how many, None if there are none now, 0 if there will be none.

        Raises:
            OSError: the connection is broken.
        """

    def hung_up(self) -> bool:
        """Whether, after the end of what it sends, it takes no more bytes, either."""

    def watch(self, readable: Callable[[], None] | None, writable: Callable[[], None] | None) -> None:
        """Call back while `receive`, or `send`, would do something; replaces what was asked before."""

    def end_sending(self) -> None:
        """The guest has sent everything, and the stream has taken it."""

    def end_receiving(self) -> None:
        """The guest takes no more bytes."""

    def closed(self, reason: str) -> None:
        """The connection is over; the last call."""


class State(Enum):
    """Where a connection stands."""

    ASKED_BY_GUEST = auto()         # the host has to accept or to refuse
    ASKED_BY_HOST = auto()          # the guest has to
    OPEN = auto()
    CLOSING = auto()                # no stream any more; the guest has to confirm by RST
    OVER = auto()                   # gone for the guest; the stream may have to take the rest


class Connection:
    """A connection between a port of the guest and one of the host, or of another machine that the host speaks for.

    Args:
        guest_port, host_port, host_cid: what it is known by.
        state: ASKED_BY_GUEST or ASKED_BY_HOST.
        stream: the host's end, where the host asked.

    Attributes:
        reason: why it is over.
        host_ready: the stream has bytes, or its end, for the guest.
        queued: the device's mark: it is among those that have a packet for the guest.
    """

    def __init__(
        self, guest_port: int, host_port: int, host_cid: int, state: State, stream: Stream | None = None
    ) -> None:
        self.guest_port = guest_port
        self.host_port = host_port
        self.host_cid = host_cid
        self.state = state
        self.reason = ""
        self.host_ready = False
        self.queued = False
        self._stream = stream
        self._opening = Op.REQUEST if state is State.ASKED_BY_HOST else 0
        self._guest_ended = 0           # SHUTDOWN flags that the guest has sent
        self._stream_told = 0           # those of them that the stream knows of
        self._host_ended = 0            # SHUTDOWN flags of the host's end
        self._guest_told = 0            # those of them that the guest knows of
        self._buffer = bytearray()      # from the guest, not taken by the stream yet
        self._forwarded = 0             # bytes that left the buffer: fwd_cnt
        self._forwarded_told = 0
        self._credit_asked = False      # a CREDIT_REQUEST of the guest's is not answered yet
        self._asked_for_credit = False  # ours is not
        self._sent = 0
        self._watched = False, False    # what the stream was asked to watch
        self._peer_buf_alloc = 0
        self._peer_fwd_cnt = 0

    def __repr__(self) -> str:
        return f"guest port {self.guest_port}, port {self.host_port} of CID {self.host_cid}"

    @property
    def key(self) -> tuple[int, int, int]:
        """What it is known by."""
        return self.guest_port, self.host_port, self.host_cid

    # -- from the host -------------------------------------------------------------------------------------------

    def accept(self, stream: Stream) -> None:
        """The host agrees to what the guest asked for."""
        self.state = State.OPEN
        self._stream = stream
        self._opening = Op.RESPONSE
        self._pass_ends_on()

    def drain(self) -> None:
        """The stream takes bytes again."""
        if not self._buffer:
            return
        with memoryview(self._buffer) as view:
            count = self._offer([view], len(view))
        del self._buffer[:count]
        self._forwarded += count
        self._pass_ends_on()

    def end(self, reason: str) -> None:
        """It is over for the guest; what it sent before a proper end still goes to the stream."""
        self.state = State.OVER
        self.reason = reason
        if not (self._buffer and self._guest_ended & SHUTDOWN_SEND):
            self.release(reason)

    def release(self, reason: str) -> None:
        """Let go of the stream, and of what it has not taken."""
        stream, self._stream = self._stream, None
        self.host_ready = False
        self._forwarded += len(self._buffer)
        self._buffer.clear()
        if stream:
            stream.closed(reason)

    @property
    def draining(self) -> bool:
        """Whether the stream has to take bytes of a connection that is over."""
        return self.state is State.OVER and self._stream is not None

    def watch(self, readable: Callable[[Connection], None], writable: Callable[[Connection], None]) -> None:
        """Have the stream call back, by way of these, for what is of use now."""
        if self._stream is None:
            return
        wanted = self._receiving and not self.host_ready, bool(self._buffer)
        if wanted != self._watched:
            self._watched = wanted
            self._stream.watch(
                partial(readable, self) if wanted[0] else None, partial(writable, self) if wanted[1] else None
            )

    # -- from the guest ------------------------------------------------------------------------------------------

    def handle(self, header: Header, chain: Chain) -> bool:
        """Do what a packet of the guest's says.

        Returns:
            Whether the guest has to be sent an RST, the connection being over.
        """
        op = header.op
        self.note_credit(header)
        if op == Op.RST:
            self.end("refused by the guest" if self.state is State.ASKED_BY_HOST else "reset by the guest")
            return False
        if self.state is State.ASKED_BY_HOST:
            if op == Op.RESPONSE and not self._opening and self._stream:
                self.state = State.OPEN
                self._stream.established()
                return False
        elif op == Op.RW and self.state is not State.ASKED_BY_GUEST:
            return self._handle_data(chain, header.len)
        elif op == Op.SHUTDOWN:
            return self._handle_shutdown(header.flags)
        elif op in (Op.CREDIT_UPDATE, Op.CREDIT_REQUEST):
            self._credit_asked |= op == Op.CREDIT_REQUEST
            return False
        self.end(f"the guest sent operation {op} out of turn")
        return True

    def note_credit(self, header: Header) -> None:
        """Every packet says how much room the guest has."""
        self._peer_buf_alloc, self._peer_fwd_cnt = header.buf_alloc, header.fwd_cnt
        if self._credit:
            self._asked_for_credit = False

    def _handle_data(self, chain: Chain, size: int) -> bool:
        if self._guest_ended & SHUTDOWN_SEND or len(self._buffer) + size > BUFFER_SIZE:
            self.end("the guest sent more than its credit, or after its end")
            return True
        taken = size
        if self._stream and not self._host_ended & SHUTDOWN_RECEIVE:
            taken = 0
            if not self._buffer and size:
                taken = self._offer(chain.readable_views(HEADER.size, size), size)
            if taken < size:
                self._buffer += chain.read(size - taken, HEADER.size + taken)
        self._forwarded += taken
        self._pass_ends_on()
        return False

    def _handle_shutdown(self, flags: int) -> bool:
        self._guest_ended |= flags & SHUTDOWN_BOTH
        if self._guest_ended == SHUTDOWN_BOTH:
            self.end("closed by the guest")
            return True
        self._pass_ends_on()
        return False

    def _offer(self, views: Sequence[memoryview], size: int) -> int:
        """How many bytes are off our hands: all of them when the stream takes no more."""
        assert self._stream
        try:
            return self._stream.send(views)
        except OSError:
            self._host_ended |= SHUTDOWN_RECEIVE
            return size

    def _pass_ends_on(self) -> None:
        """Tell the stream what the guest has ended; close when neither direction goes on."""
        stream = self._stream
        if stream is None:
            return
        if self.state is State.OVER:
            if not self._buffer:
                self.release(self.reason)
            return
        sent_all = self._guest_ended & SHUTDOWN_SEND and not self._buffer
        news = (self._guest_ended & SHUTDOWN_RECEIVE | (SHUTDOWN_SEND if sent_all else 0)) & ~self._stream_told
        self._stream_told |= news
        if news & SHUTDOWN_SEND:
            stream.end_sending()
        if news & SHUTDOWN_RECEIVE:
            stream.end_receiving()
            self.host_ready = False
        if self.state is State.OPEN and not self._receiving and (sent_all or self._host_ended & SHUTDOWN_RECEIVE):
            self._host_ended = SHUTDOWN_BOTH
            self.state = State.CLOSING
            self.release("closed by the host")

    # -- to the guest --------------------------------------------------------------------------------------------

    @property
    def _receiving(self) -> bool:
        """Whether bytes of the stream's may still go to the guest."""
        ended = self._host_ended & SHUTDOWN_SEND or self._guest_ended & SHUTDOWN_RECEIVE
        return self.state is State.OPEN and not ended

    @property
    def _credit(self) -> int:
        """Bytes that the guest has room for."""
        return max(self._peer_buf_alloc - ((self._sent - self._peer_fwd_cnt) & COUNT), 0)

    @property
    def has_packet(self) -> bool:
        """Whether there is something to tell the guest."""
        if self._opening or self._host_ended & ~self._guest_told:
            return self.state is not State.OVER
        return self.state is State.OPEN and bool(
            self._credit_asked
            or self._forwarded - self._forwarded_told >= UPDATE_AFTER
            or (self.host_ready and (not self._asked_for_credit or self._credit))
        )

    def transmit(self, chain: Chain, guest_cid: int) -> int:
        """Store a packet; only where there `has_packet`.

        Args:
            chain: at least a header long.
            guest_cid: the guest's address.

        Returns:
            Its size. Where it says RST, the connection is over now.
        """
        op, flags, size = self._next_packet(chain)
        self._forwarded_told = self._forwarded
        chain.write(HEADER.pack(
            self.host_cid, guest_cid, self.host_port, self.guest_port, size, STREAM, op, flags,
            BUFFER_SIZE, self._forwarded & COUNT,
        ))
        return HEADER.size + size

    def _next_packet(self, chain: Chain) -> tuple[int, int, int]:
        """Operation, flags and payload size of the packet; the payload has been stored."""
        if self._opening:
            op, self._opening = self._opening, 0
            return op, 0, 0
        if self.host_ready and not self._host_ended & ~self._guest_told:
            if size := self._receive(chain):
                return Op.RW, 0, size
            if self.state is State.OVER:
                return Op.RST, 0, 0
        if self._host_ended & ~self._guest_told:
            self._guest_told = self._host_ended
            return Op.SHUTDOWN, self._host_ended, 0
        if self.host_ready and not self._credit and not self._asked_for_credit:
            self._asked_for_credit = True
            return Op.CREDIT_REQUEST, 0, 0
        self._credit_asked = False          # also what a buffer is used for when the stream turns out to have nothing
        return Op.CREDIT_UPDATE, 0, 0

    def _receive(self, chain: Chain) -> int:
        """Store bytes of the stream's behind the header; how many."""
        room = min(self._credit, chain.writable_size - HEADER.size)
        if not room or self._stream is None:
            return 0
        try:
            count = self._stream.receive(chain.writable_views(HEADER.size, room))
        except OSError as error:
            self.end(f"broken on the host: {error.strerror or error}")
            return 0
        self.host_ready = count == room
        if count == 0:
            self._host_ended |= SHUTDOWN_SEND
            if self._stream.hung_up():
                self._host_ended |= SHUTDOWN_RECEIVE
            self._pass_ends_on()
        self._sent += count or 0
        return count or 0
