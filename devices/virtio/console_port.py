"""One port of a virtio console device (Virtual I/O Device specification 1.2, section 5.3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from devices.frozen import frozen
from devices.virtio.device import BadRequest
from devices.virtio.queue import Chain, Queue

__all__ = ["Port", "PortOwner", "PortState"]

LONGEST_WRITE = 1 << 20                 # bytes the driver may send in one buffer; Linux sends 64 KiB at most


@frozen
class PortState:
    """What a snapshot keeps of a port; `pending` are bytes that the guest has not taken yet."""

    id: int
    name: str = ""
    is_console: bool = False
    ready: bool = False
    guest_open: bool = False
    host_open: bool = False
    pending: bytes = b""


class PortOwner(Protocol):
    """What a port asks of its device."""

    def tell_open(self, port: Port) -> None:
        """Tell the driver that the port is open, or not, on the host."""

    def fill(self, port: Port) -> None:
        """Give the guest what is pending."""

    def drain(self, port: Port) -> None:
        """Take what the guest has written."""


class Port:
    """One port: a console of the guest, or a pipe each way that one program there may open.

    Attributes:
        id, name, is_console: as the guest sees it.
        ready: the guest has made a device of it.
        guest_open: a program in the guest has it open.
        host_open: set by `open`; while it is not, the guest's reads end at once and its writes wait.
        pending: bytes sent that the guest has not taken.
        received: called with what the guest writes; what it writes to nobody is dropped.
        opened: called when the guest opens (True) or closes (False) it; what was pending is dropped then.
        drained: called when nothing is pending any more.
    """

    def __init__(self, device: PortOwner, state: PortState) -> None:
        self.id = state.id
        self.name = state.name
        self.is_console = state.is_console
        self.ready = state.ready
        self.guest_open = state.guest_open
        self.host_open = state.host_open
        self.pending = 0
        self.received: Callable[[bytes], None] | None = None
        self.opened: Callable[[bool], None] | None = None
        self.drained: Callable[[], None] | None = None
        self._device = device
        self._paused = False
        self._outbox: deque[memoryview] = deque()
        if state.pending:
            self._keep(state.pending)

    def open(self) -> None:
        """Tell the guest that somebody is here."""
        if not self.host_open:
            self.host_open = True
            self._device.tell_open(self)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes to the guest: what it has room for at once, the rest as it makes room.

        They are not copied, so they must not change while they are `pending`.
        """
        if len(data):
            self._keep(data)
            self._device.fill(self)

    def pause(self) -> None:
        """Take nothing more from the guest; its writes wait once the queue is full. Not for a console: it spins."""
        self._paused = True

    def resume(self) -> None:
        """End that, and take what the guest has written since."""
        if self._paused:
            self._paused = False
            self._device.drain(self)

    def save(self) -> PortState:
        """Its state to go on from."""
        pending = b"".join(self._outbox)
        return PortState(
            self.id, self.name, self.is_console, self.ready, self.guest_open, self.host_open, pending
        )

    # --- for the device -----------------------------------------------------------------------------------------

    def set_guest_open(self, is_open: bool) -> None:
        """The guest has opened or closed it."""
        if is_open == self.guest_open:
            return
        self.guest_open = is_open
        if not is_open:
            self._outbox.clear()
            self.pending = 0
        if self.opened is not None:
            self.opened(is_open)

    def receive_from(self, queue: Queue) -> None:
        """Take what the guest has written; the caller signals the queue."""
        if self._paused:
            return
        for chain in queue.chains():
            if chain.writable_size or chain.readable_size > LONGEST_WRITE:
                raise BadRequest(f"{chain.readable_size} bytes for port {self.id}, and {chain.writable_size} to fill")
            data = chain.read()
            queue.push(chain, 0)
            if self.received is not None:
                self.received(data)
            if self._paused:
                return

    def send_to(self, queue: Queue) -> None:
        """Give the guest what it has room for; the caller signals the queue."""
        had = self.pending
        while self._outbox and (chain := queue.pop()) is not None:
            if chain.readable_size or not chain.writable_size:
                raise BadRequest(f"a buffer of {chain.writable_size} bytes for input to port {self.id}")
            queue.push(chain, self._fill(chain))
        if had and not self.pending and self.drained is not None:
            self.drained()

    def _fill(self, chain: Chain) -> int:
        done = 0
        while self._outbox and done < chain.writable_size:
            data = self._outbox.popleft()
            part = data[: chain.writable_size - done]
            done += chain.write(part, done)
            if len(part) < len(data):
                self._outbox.appendleft(data[len(part):])
        self.pending -= done
        return done

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        self._outbox.append(memoryview(data))
        self.pending += len(data)
