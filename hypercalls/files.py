"""PV_READ and PV_WRITE: a whole file in one exit, where 9p takes a walk, an open, a read and a clunk."""

from __future__ import annotations

import errno
import struct

from devices.frozen import frozen
from hypercalls.call import Call, Files, GuestFault
from hypercalls.mailbox import WORD
from hypercalls.numbers import PV_READ, PV_WRITE
from hypercalls.registry import hypercall

__all__ = ["APPEND", "CREATE", "IN_MAILBOX", "REQUEST", "TRUNCATE", "VIRTUAL", "pv_read", "pv_write"]

VIRTUAL, IN_MAILBOX = 1 << 0, 1 << 1    # of the value
VALUE_FLAGS = WORD - 1

REQUEST = struct.Struct("<QIIQQQq")     # path, its length, flags, offset, buffer, its length, result
RESULT = struct.Struct("<q")
RESULT_OFFSET = REQUEST.size - RESULT.size

CREATE, TRUNCATE, APPEND = 1 << 0, 1 << 1, 1 << 2     # of the request's flags
WRITE_FLAGS = CREATE | TRUNCATE | APPEND

LONGEST_PATH = 4096
MOST_BYTES = 1 << 20
LARGEST_OFFSET = (1 << 63) - 1


@frozen
class _Request:
    """A request block and where it came from.

    Attributes:
        value: what was written to the MSR.
        size: bytes to read or write.
        data: what stands behind the path in the mailbox.
    """

    value: int
    path: bytes
    flags: int
    offset: int
    buffer: int
    size: int
    data: bytes


@hypercall(PV_READ, "PV_READ")
def pv_read(call: Call) -> None:
    """Read a file of the directory that the machine exports for this.

    Guest ABI: WRMSR of the address of a request block of 48 bytes, aligned to 8. Bit 0 of the value set: this and
    all other addresses are virtual ones of the calling code; clear: guest-physical. All fields are little-endian:

        0   u64 path      address of the path, relative to the directory, without a final NUL
        8   u32           its length, 1 to 4,096
        12  u32 flags     0
        16  u64 offset    in the file
        24  u64 buffer    address of the buffer
        32  u64 length    of the buffer; no more than 1 MiB is read
        40  s64 result    set by the machine: bytes read, or a negative errno of Linux

    Bit 1 of the value set, and bit 0 clear: the rest of the value is no address but the size of the request, which is
    at the end of the mailbox (PV_MAILBOX): the block, the path, and whatever makes it a multiple of 8. The mailbox
    then holds the result, and behind it what was read. #GP if a block or buffer is not in memory, the mailbox holds
    less than it should, bit 2 is set, or the machine exports no directory for this.
    """
    request, files = _request(call), _files(call)
    try:
        _check(request, 0)
        data = files.read(request.path, request.offset, min(request.size, MOST_BYTES))
    except OSError as error:
        _answer(call, request, -_number(error))
    else:
        _answer(call, request, len(data), data)


@hypercall(PV_WRITE, "PV_WRITE")
def pv_write(call: Call) -> None:
    """Write a file of the directory that the machine exports for this.

    Guest ABI: as PV_READ, but the buffer, at most 1 MiB, holds what is to be written; in the mailbox that follows the
    path. Flags: bit 0 make the file if it is not there (its mode is 0644), bit 1 truncate it first, bit 2 write at
    its end, whatever the offset. The result is how many bytes were stored: fewer if the host's disk is full.
    """
    request, files = _request(call), _files(call)
    try:
        _check(request, WRITE_FLAGS)
        if request.size > MOST_BYTES:
            raise OSError(errno.EFBIG, "")
        data = _payload(call, request)
        create, truncate, append = (bool(request.flags & flag) for flag in (CREATE, TRUNCATE, APPEND))
        written = files.write(request.path, request.offset, data, create, truncate, append)
    except OSError as error:
        _answer(call, request, -_number(error))
    else:
        _answer(call, request, written)


def _files(call: Call) -> Files:
    if call.machine.files is None:
        raise GuestFault
    return call.machine.files


def _request(call: Call) -> _Request:
    """Take the request from where the value says it is.

    Raises:
        GuestFault: it is malformed.
        OutsideMemory: it is not in memory.
    """
    value, memory = call.value, call.memory
    where, how = value & ~VALUE_FLAGS, value & VALUE_FLAGS
    if how == IN_MAILBOX:
        content = bytes(call.mailbox[-where:]) if REQUEST.size <= where <= len(call.mailbox) else b""
        call.mailbox.clear()
        if not content:
            raise GuestFault
        _, length, flags, offset, buffer, size, _ = REQUEST.unpack_from(content)
        end = REQUEST.size + length
        if len(content) < end:
            raise GuestFault
        return _Request(value, content[REQUEST.size : end], flags, offset, buffer, size, content[end:])
    if how & ~VIRTUAL:
        raise GuestFault
    read = memory.read_virtual if how else memory.read
    path, length, flags, offset, buffer, size, _ = REQUEST.unpack(read(where, REQUEST.size))
    # One byte too many shows that it is too long
    return _Request(value, read(path, min(length, LONGEST_PATH + 1)), flags, offset, buffer, size, b"")


def _check(request: _Request, flags: int) -> None:
    if request.flags & ~flags or request.offset > LARGEST_OFFSET - MOST_BYTES:
        raise OSError(errno.EINVAL, "")
    if len(request.path) > LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, "")


def _payload(call: Call, request: _Request) -> bytes:
    """What is to be written."""
    if request.value & IN_MAILBOX:
        if len(request.data) < request.size:
            raise OSError(errno.EINVAL, "")
        return request.data[: request.size]
    read = call.memory.read_virtual if request.value & VIRTUAL else call.memory.read
    return read(request.buffer, request.size)


def _number(error: OSError) -> int:
    return error.errno or errno.EIO


def _answer(call: Call, request: _Request, result: int, data: bytes = b"") -> None:
    """Put data and the result where the guest looks for them."""
    if request.value & IN_MAILBOX:
        call.mailbox += RESULT.pack(result) + data
        return
    write = call.memory.write_virtual if request.value & VIRTUAL else call.memory.write
    if data:
        write(request.buffer, data)
    write((request.value & ~VALUE_FLAGS) + RESULT_OFFSET, RESULT.pack(result))
