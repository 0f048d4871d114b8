"""The messages of 9P2000.L, and the one place where they are encoded and decoded.

Sources: the 9P2000.L protocol document of the diod project, and Linux' `include/net/9p/9p.h`. A reply's type is its
request's plus one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from devices.p9.codec import HEADER, QID, U8, U16, U32, U64, Codec, Malformed, Message, Qid, Qids, String, Strings

__all__ = [
    "HEADER", "MESSAGES", "NO_FID", "NO_ID", "QID", "QT_DIR", "QT_FILE", "QT_SYMLINK", "REQUESTS", "RLERROR",
    "TYPE_OF", "VERSION", "Empty", "Malformed", "Message", "Rattach", "Rgetattr", "Rgetlock", "Rlerror", "Rlock",
    "Rlopen", "Rread", "Rreaddir", "Rreadlink", "Rstatfs", "Rversion", "Rwalk", "Rwrite", "Rxattrwalk", "Tattach",
    "Tauth", "Tclunk", "Tflush", "Tfsync", "Tgetattr", "Tgetlock", "Tlcreate", "Tlink", "Tlock", "Tlopen", "Tmkdir",
    "Tmknod", "Tread", "Treaddir", "Treadlink", "Tremove", "Trename", "Trenameat", "Tsetattr", "Tstatfs",
    "Tsymlink", "Tunlinkat", "Tversion", "Twalk", "Twrite", "Txattrcreate", "Txattrwalk", "decode", "encode",
]

VERSION = b"9P2000.L"
NO_FID = 0xFFFF_FFFF
NO_ID = 0xFFFF_FFFF                     # a user or group id that leaves things as they are

QT_DIR, QT_SYMLINK, QT_FILE = 0x80, 0x02, 0x00     # types of a qid


class Empty(NamedTuple):
    """The body of replies that say only that it was done."""


class Rlerror(NamedTuple):
    ecode: U32


class Tstatfs(NamedTuple):
    fid: U32


class Rstatfs(NamedTuple):
    type: U32
    bsize: U32
    blocks: U64
    bfree: U64
    bavail: U64
    files: U64
    ffree: U64
    fsid: U64
    namelen: U32


class Tlopen(NamedTuple):
    fid: U32
    flags: U32


class Rlopen(NamedTuple):
    qid: Qid
    iounit: U32


class Tlcreate(NamedTuple):
    fid: U32
    name: String
    flags: U32
    mode: U32
    gid: U32


class Tsymlink(NamedTuple):
    dfid: U32
    name: String
    target: String
    gid: U32


class Tmknod(NamedTuple):
    dfid: U32
    name: String
    mode: U32
    major: U32
    minor: U32
    gid: U32


class Trename(NamedTuple):
    fid: U32
    dfid: U32
    name: String


class Treadlink(NamedTuple):
    fid: U32


class Rreadlink(NamedTuple):
    target: String


class Tgetattr(NamedTuple):
    fid: U32
    request_mask: U64


class Rgetattr(NamedTuple):
    valid: U64
    qid: Qid
    mode: U32
    uid: U32
    gid: U32
    nlink: U64
    rdev: U64
    size: U64
    blksize: U64
    blocks: U64
    atime_sec: U64
    atime_nsec: U64
    mtime_sec: U64
    mtime_nsec: U64
    ctime_sec: U64
    ctime_nsec: U64
    btime_sec: U64
    btime_nsec: U64
    gen: U64
    data_version: U64


class Tsetattr(NamedTuple):
    fid: U32
    valid: U32
    mode: U32
    uid: U32
    gid: U32
    size: U64
    atime_sec: U64
    atime_nsec: U64
    mtime_sec: U64
    mtime_nsec: U64


class Txattrwalk(NamedTuple):
    fid: U32
    newfid: U32
    name: String


class Rxattrwalk(NamedTuple):
    size: U64


class Txattrcreate(NamedTuple):
    fid: U32
    name: String
    size: U64
    flags: U32


class Treaddir(NamedTuple):
    fid: U32
    offset: U64
    size: U32


class Rreaddir(NamedTuple):
    """Followed by `size` bytes of entries: qid, offset[8] of the next one, type[1], name."""

    size: U32


class Tfsync(NamedTuple):
    fid: U32
    datasync: U32


class Tlock(NamedTuple):
    fid: U32
    type: U8
    flags: U32
    start: U64
    length: U64
    proc_id: U32
    client_id: String


class Rlock(NamedTuple):
    status: U8


class Tgetlock(NamedTuple):
    fid: U32
    type: U8
    start: U64
    length: U64
    proc_id: U32
    client_id: String


class Rgetlock(NamedTuple):
    type: U8
    start: U64
    length: U64
    proc_id: U32
    client_id: String


class Tlink(NamedTuple):
    dfid: U32
    fid: U32
    name: String


class Tmkdir(NamedTuple):
    dfid: U32
    name: String
    mode: U32
    gid: U32


class Trenameat(NamedTuple):
    olddirfid: U32
    oldname: String
    newdirfid: U32
    newname: String


class Tunlinkat(NamedTuple):
    dirfid: U32
    name: String
    flags: U32


class Tversion(NamedTuple):
    msize: U32
    version: String


class Rversion(NamedTuple):
    msize: U32
    version: String


class Tauth(NamedTuple):
    afid: U32
    uname: String
    aname: String
    n_uname: U32


class Tattach(NamedTuple):
    fid: U32
    afid: U32
    uname: String
    aname: String
    n_uname: U32


class Rattach(NamedTuple):
    """Also the reply to Tsymlink, Tmknod and Tmkdir, which give a qid and nothing else."""

    qid: Qid


class Tflush(NamedTuple):
    oldtag: U16


class Twalk(NamedTuple):
    fid: U32
    newfid: U32
    names: Strings


class Rwalk(NamedTuple):
    qids: Qids


class Tread(NamedTuple):
    fid: U32
    offset: U64
    size: U32


class Rread(NamedTuple):
    """Followed by `size` bytes of data."""

    size: U32


class Twrite(NamedTuple):
    """Followed by `size` bytes of data."""

    fid: U32
    offset: U64
    size: U32


class Rwrite(NamedTuple):
    size: U32


class Tclunk(NamedTuple):
    fid: U32


class Tremove(NamedTuple):
    fid: U32



REQUESTS: dict[int, tuple[type[Any], type[Any]]] = {
    8: (Tstatfs, Rstatfs),
    12: (Tlopen, Rlopen),
    14: (Tlcreate, Rlopen),
    16: (Tsymlink, Rattach),
    18: (Tmknod, Rattach),
    20: (Trename, Empty),
    22: (Treadlink, Rreadlink),
    24: (Tgetattr, Rgetattr),
    26: (Tsetattr, Empty),
    30: (Txattrwalk, Rxattrwalk),
    32: (Txattrcreate, Empty),
    40: (Treaddir, Rreaddir),
    50: (Tfsync, Empty),
    52: (Tlock, Rlock),
    54: (Tgetlock, Rgetlock),
    70: (Tlink, Empty),
    72: (Tmkdir, Rattach),
    74: (Trenameat, Empty),
    76: (Tunlinkat, Empty),
    100: (Tversion, Rversion),
    102: (Tauth, Rattach),
    104: (Tattach, Rattach),
    108: (Tflush, Empty),
    110: (Twalk, Rwalk),
    116: (Tread, Rread),
    118: (Twrite, Rwrite),
    120: (Tclunk, Empty),
    122: (Tremove, Empty),
}
RLERROR = 7

MESSAGES: dict[int, type[Any]] = {RLERROR: Rlerror}
"""The class of each type; classes of replies stand for several."""
for _type, (_request, _reply) in REQUESTS.items():
    MESSAGES[_type], MESSAGES[_type + 1] = _request, _reply
TYPE_OF: dict[type[Any], int] = {request: type_ for type_, (request, _) in REQUESTS.items()}

CODECS: dict[type[Any], Codec] = {message: Codec(message) for message in set(MESSAGES.values())}


def decode(type_: int, frame: bytes) -> Message:
    """The message of that type in a frame that begins with its header; what follows it is not looked at.

    Raises:
        KeyError: there is no such type.
        Malformed: the frame is too short for it.
    """
    return CODECS[MESSAGES[type_]].decode(frame)


def encode(type_: int, tag: int, message: Message, extra: int = 0) -> bytes:
    """A message with its header, whose size counts `extra` more bytes that the caller puts behind it."""
    return CODECS[type(message)].encode(type_, tag, message, extra)
