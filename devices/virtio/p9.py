"""virtio-9p transport (Virtual I/O Device specification 1.2, section 5.8 and QEMU's `hw/9pfs/virtio-9p-device.c`).

One queue, one chain per request. Linux' driver packs a message into at most 128 descriptors of a page: with the
default ring its client caps msize at 512 KiB, whatever more the server agrees to.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from devices.p9.export import Export
from devices.p9.saved import P9State
from devices.p9.server import P9Server
from devices.virtio.device import BadRequest, VirtioDevice
from devices.virtio.queue import Queue

__all__ = ["Virtio9p"]

MOUNT_TAG = 1 << 0                      # feature bit: the configuration has the tag
QUEUE_SIZE = 128


class Virtio9p(VirtioDevice):
    """An export as the guest's driver `9pnet_virtio` sees it.

    Args:
        export: what is shared, and its mount tag.
        state: of a session to go on with.

    Raises:
        ExportError: the host does not let the directory be opened.
    """

    device_id = 9
    name = "virtio-9p"
    features = MOUNT_TAG
    queue_sizes = (QUEUE_SIZE,)
    refuses = True

    def __init__(self, export: Export, state: P9State | None = None) -> None:
        self._server = P9Server(export, state)
        self._queue: Queue | None = None
        tag = export.tag.encode()
        self._config = struct.pack("<H", len(tag)) + tag

    def read_config(self, offset: int, size: int) -> int:
        """The mount tag's length in 16 bits, and its bytes."""
        return int.from_bytes(self._config[offset : offset + size], "little")

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        """The driver is ready."""
        self._queue = queues[0]

    def notify(self, index: int) -> None:
        """Answer every request in the queue."""
        queue = self._queue
        if queue is None:
            return
        try:
            for chain in queue.chains():
                queue.push(chain, self._server.handle(chain))
        finally:
            queue.signal()

    def refuse_all(self, index: int) -> None:
        """Answer every request in the queue with EIO.

        Who waits for an answer of Linux' client cannot be killed, and no driver is unbound before it has them all.
        """
        queue = self._queue
        if queue is None:
            return
        for _ in range(queue.size):
            if queue.empty:
                break
            try:
                chain = queue.pop()
            except BadRequest:
                queue.skip()
                continue
            if chain is not None:
                queue.push(chain, self._server.refuse(chain))
        queue.signal()

    def reset(self) -> None:
        """The driver starts over: no session is left."""
        self._queue = None
        self._server.reset()

    def close(self) -> None:
        """Give the host's descriptors back."""
        self._queue = None
        self._server.close()

    def forked(self) -> None:
        """This process is a copy of the one that had the device: share no position and no lock with that."""
        self._server.forked()

    def save(self) -> P9State:
        """The session."""
        return self._server.save()
