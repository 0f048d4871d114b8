"""virtio block device (Virtual I/O Device specification 1.2, section 5.2)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence

from devices.disk import SECTOR, Disk, DiskError
from devices.frozen import frozen
from devices.log import Log
from devices.overlay import branched, settle
from devices.virtio.device import BadRequest, VirtioDevice
from devices.virtio.queue import Chain, Queue

__all__ = ["Blk", "BlkState"]

_log = Log(__name__)

F_SIZE_MAX, F_SEG_MAX, F_RO, F_BLK_SIZE = 1 << 1, 1 << 2, 1 << 5, 1 << 6        # feature bits
F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 1 << 9, 1 << 13, 1 << 14

T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13  # request types
S_OK, S_IOERR, S_UNSUPP = range(3)                                              # the answer's last byte

HEADER = struct.Struct("<IIQ")          # type, reserved, sector
SEGMENT = struct.Struct("<QII")         # sector, sectors, flags: of T_DISCARD and T_WRITE_ZEROES
SEGMENT_UNMAP = 1
ID_SIZE = 20

CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
QUEUE_SIZE = 128
SEG_MAX = QUEUE_SIZE - 2                # each request has a header and a status beside its data
SIZE_MAX = 128 << 10
MOST_DATA = SEG_MAX * SIZE_MAX          # bytes; the machine stands still while a request is served
DISCARD_SECTORS, DISCARD_SEGMENTS = (128 << 20) // SECTOR, 32
DISCARD_ALIGNMENT = 4096 // SECTOR      # what host file systems give back
ZEROES_SECTORS, ZEROES_SEGMENTS = (16 << 20) // SECTOR, 1      # may have to be written


@frozen
class BlkState:
    """What a snapshot keeps: the disk the driver has seen. Its contents are not the device's to save."""

    size: int
    read_only: bool


class Blk(VirtioDevice):
    """A disk of the guest; requests are served in order, straight between guest RAM and the disk.

    What the host refuses is an error in the guest, and logged the first time.

    Args:
        disk: where the data is; the device closes it.
        serial: what the guest reads in /sys/block/*/serial; only 20 bytes of UTF-8 are told.
        state: of the device that this one goes on for.

    Raises:
        DiskError: the disk is not the one in `state`.

    Attributes:
        disk: where the data is.
    """

    device_id = 2
    name = "virtio-blk"
    pci_class = 0x01_80_00              # mass storage
    queue_sizes = (QUEUE_SIZE,)

    def __init__(self, disk: Disk, serial: str = "", state: BlkState | None = None) -> None:
        self.disk = disk
        self._name = serial or f"of {disk.size} bytes"
        self._id = serial.encode()[:ID_SIZE].ljust(ID_SIZE, b"\0")
        if state is not None and state != self.save():
            raise DiskError(f"the disk was {_describe(state)} and is {_describe(self.save())}")
        self.features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH
        self.features |= F_RO if disk.read_only else F_DISCARD | F_WRITE_ZEROES
        self._config = CONFIG.pack(
            disk.size // SECTOR, SIZE_MAX, SEG_MAX,
            0, 0, 0,                    # no geometry
            SECTOR,
            0, 0, 0, 0, 0, 0, 0,        # no topology, write cache switch or more queues
            DISCARD_SECTORS, DISCARD_SEGMENTS, DISCARD_ALIGNMENT, ZEROES_SECTORS, ZEROES_SEGMENTS, 1,
        )
        self._requests: dict[int, Callable[[Chain, int], int]] = {
            T_IN: self._in, T_OUT: self._out, T_FLUSH: self._flush, T_GET_ID: self._get_id,
            T_DISCARD: self._discard, T_WRITE_ZEROES: self._write_zeroes,
        }
        self._queue: Queue | None = None
        self._features = 0
        self._logged: set[int | None] = set()

    def read_config(self, offset: int, size: int) -> int:
        """Read the configuration: capacity and limits."""
        return int.from_bytes(self._config[offset : offset + size], "little")

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        """The driver is ready."""
        self._queue = queues[0]
        self._features = features

    def notify(self, index: int) -> None:
        """Serve what is in the queue.

        Raises:
            BadRequest: a chain is no request, or there are more than the queue has room for.
        """
        queue = self._queue
        if queue is None:
            return
        try:
            for chain in queue.chains():
                self._serve(chain)
                # The status is the last byte: what else was stored stands before it.
                queue.push(chain, chain.writable_size)
        finally:
            queue.signal()

    def reset(self) -> None:
        """Forget the queue."""
        self._queue = None

    def close(self) -> None:
        """Close the disk."""
        self._queue = None
        try:
            self.disk.close()
        except OSError as error:
            self._report(error)

    def prepare_fork(self) -> None:
        """Let what was written until now be the same for this process and the copies of it that come.

        Raises:
            DiskError: this disk cannot have copies that differ.
        """
        settle(self.disk)

    def forked(self) -> None:
        """This process is a copy: what is written from now on is its own.

        Raises:
            DiskError: there is no room for that.
        """
        self.disk = branched(self.disk)

    def save(self) -> BlkState:
        """The device has no state but what disk it is."""
        return BlkState(self.disk.size, self.disk.read_only)

    # --- requests -----------------------------------------------------------------------------------------------

    def _serve(self, chain: Chain) -> None:
        if chain.readable_size < HEADER.size or not chain.writable_size:
            raise BadRequest(f"{chain.readable_size} bytes of request, {chain.writable_size} for the answer")
        kind, _, sector = HEADER.unpack(chain.read(HEADER.size))
        request = self._requests.get(kind)
        status = S_UNSUPP
        if request is not None:
            try:
                status = request(chain, sector)
            except OSError as error:
                self._report(error)
                status = S_IOERR
        chain.write(bytes((status,)), chain.writable_size - 1)

    def _in(self, chain: Chain, sector: int) -> int:
        size = chain.writable_size - 1
        if not self._is_inside(sector, size):
            return S_IOERR
        self.disk.read(sector * SECTOR, chain.writable_views(0, size))
        return S_OK

    def _out(self, chain: Chain, sector: int) -> int:
        size = chain.readable_size - HEADER.size
        if self.disk.read_only or not self._is_inside(sector, size):
            return S_IOERR
        self.disk.write(sector * SECTOR, chain.readable_views(HEADER.size, size))
        self._write_through()
        return S_OK

    def _flush(self, chain: Chain, sector: int) -> int:
        self.disk.flush()
        return S_OK

    def _get_id(self, chain: Chain, sector: int) -> int:
        chain.write(self._id[: chain.writable_size - 1])
        return S_OK

    def _discard(self, chain: Chain, sector: int) -> int:
        if not self._features & F_DISCARD:
            return S_UNSUPP
        status, ranges = self._ranges(chain, DISCARD_SEGMENTS, DISCARD_SECTORS, flags=0)
        for offset, size, _ in ranges:
            self.disk.discard(offset, size)
        return status

    def _write_zeroes(self, chain: Chain, sector: int) -> int:
        if not self._features & F_WRITE_ZEROES:
            return S_UNSUPP
        status, ranges = self._ranges(chain, ZEROES_SEGMENTS, ZEROES_SECTORS, flags=SEGMENT_UNMAP)
        for offset, size, unmap in ranges:
            self.disk.write_zeroes(offset, size, unmap)
        self._write_through()
        return status

    def _ranges(
        self, chain: Chain, most_segments: int, most_sectors: int, flags: int
    ) -> tuple[int, list[tuple[int, int, bool]]]:
        """The status, and (offset, bytes, unmap) of each segment; none unless all can be done."""
        size = chain.readable_size - HEADER.size
        if size % SEGMENT.size or not 0 < size <= most_segments * SEGMENT.size:
            return S_IOERR, []
        ranges = []
        for sector, sectors, segment_flags in SEGMENT.iter_unpack(chain.read(size, HEADER.size)):
            if segment_flags & ~flags:
                return S_UNSUPP, []
            if sectors > most_sectors or not self._is_on_disk(sector, sectors * SECTOR):
                return S_IOERR, []
            ranges.append((sector * SECTOR, sectors * SECTOR, bool(segment_flags & SEGMENT_UNMAP)))
        return S_OK, ranges

    def _is_inside(self, sector: int, size: int) -> bool:
        """Whether a transfer is one that a driver may ask for."""
        return size % SECTOR == 0 and size <= MOST_DATA and self._is_on_disk(sector, size)

    def _is_on_disk(self, sector: int, size: int) -> bool:
        return sector * SECTOR + size <= self.disk.size

    def _write_through(self) -> None:
        """A driver without VIRTIO_BLK_F_FLUSH takes every finished write for durable."""
        if not self._features & F_FLUSH:
            self.disk.flush()

    def _report(self, error: OSError) -> None:
        if error.errno not in self._logged:
            self._logged.add(error.errno)
            what = os.strerror(error.errno or errno.EIO)
            _log.warning("disk %s: the host refuses a request, and the guest sees an I/O error: %s", self._name, what)


def _describe(state: BlkState) -> str:
    return f"{state.size} bytes{', read-only' if state.read_only else ''}"
