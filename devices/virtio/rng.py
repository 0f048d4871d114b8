"""virtio entropy device (Virtual I/O Device specification 1.2, section 5.4)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from devices.frozen import frozen
from devices.log import Log
from devices.virtio.device import BadRequest, VirtioDevice
from devices.virtio.queue import Queue

__all__ = ["Rng", "RngState"]

_log = Log(__name__)

MOST_BYTES = 4096                       # in one buffer; the driver asks again for the rest of what it wants


@frozen
class RngState:
    """Nothing: what was read once is not to be read again."""


class Rng(VirtioDevice):
    """Random bytes for the guest, as many as it asks for, up to 4 KiB a buffer.

    Args:
        entropy: gives that many random bytes, or fewer; it must not wait.
        state: of the device that this one goes on for.
    """

    device_id = 4
    name = "virtio-rng"
    queue_sizes = (8,)

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom, state: RngState | None = None) -> None:
        self._entropy = entropy
        self._queue: Queue | None = None
        self._has_failed = False

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        """The driver is ready."""
        self._queue = queues[0]

    def notify(self, index: int) -> None:
        """Fill the buffers in the queue.

        Raises:
            BadRequest: a buffer cannot be filled, or is to be read, or there are more than the queue has room for.
        """
        queue = self._queue
        if queue is None:
            return
        try:
            for chain in queue.chains():
                if chain.readable_size or not chain.writable_size:
                    raise BadRequest(f"{chain.readable_size} bytes of request, {chain.writable_size} for the answer")
                queue.push(chain, chain.write(self._random(min(chain.writable_size, MOST_BYTES))))
        finally:
            queue.signal()

    def reset(self) -> None:
        """Forget the queue."""
        self._queue = None

    def save(self) -> RngState:
        """There is nothing to keep."""
        return RngState()

    def _random(self, size: int) -> bytes:
        try:
            return self._entropy(size)[:size]
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                _log.warning("the host gives no random bytes, and the guest gets none: %s", error.strerror)
            return b""
