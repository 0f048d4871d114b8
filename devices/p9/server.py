"""A 9P2000.L server for one export: a request's frame in, a reply's frame out; without threads, and without waiting.

Errors are errno values, as the host has them: Linux' numbers are the protocol's. Whatever a guest sends is answered;
only where not even an error fits is it `BadRequest`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from devices.p9 import attributes, files, guards, names
from devices.p9.export import Export, Limits
from devices.p9.messages import (
    CODECS,
    HEADER,
    NO_FID,
    REQUESTS,
    RLERROR,
    TYPE_OF,
    VERSION,
    Empty,
    Malformed,
    Message,
    Rattach,
    Rlerror,
    Rversion,
    Rwrite,
    Tattach,
    Tauth,
    Tclunk,
    Tflush,
    Tfsync,
    Tgetattr,
    Tgetlock,
    Tlcreate,
    Tlink,
    Tlock,
    Tlopen,
    Tmkdir,
    Tmknod,
    Tread,
    Treaddir,
    Treadlink,
    Tremove,
    Trename,
    Trenameat,
    Tsetattr,
    Tstatfs,
    Tsymlink,
    Tunlinkat,
    Tversion,
    Twalk,
    Twrite,
    Txattrcreate,
    Txattrwalk,
    encode,
)
from devices.p9.saved import P9State
from devices.p9.session import LARGEST_MSIZE, SMALLEST_MSIZE, Session
from devices.p9.state import restore, save
from devices.virtio.device import BadRequest

if TYPE_CHECKING:
    from devices.virtio.queue import Chain

__all__ = ["P9Server"]

SMALLEST_REPLY = 11                     # Rlerror
LENGTH = struct.Struct("<I")            # of the frame, which it begins with
SHORT_FRAME = 64                        # read at once: holds every frequent message, and not a Twrite's data


def version(session: Session, message: Tversion) -> Rversion:
    """Begin a session; every fid of the one before is gone."""
    if message.msize < SMALLEST_MSIZE:
        raise guards.refuse(errno.EMSGSIZE)
    msize = min(message.msize, LARGEST_MSIZE)
    known = message.version == VERSION
    session.start(msize if known else 0)
    return Rversion(msize, VERSION if known else b"unknown")


def auth(session: Session, message: Tauth) -> Rattach:
    """Refused: who can reach the device may use it."""
    raise guards.refuse(errno.EOPNOTSUPP)


def attach(session: Session, message: Tattach) -> Rattach:
    """A fid of the export's root for one of the guest's users. There is one tree, whatever name is asked for."""
    if message.afid != NO_FID:
        raise guards.refuse(errno.EINVAL)
    session.fids.require_free(message.fid)
    root = session.tree.root
    status, seen = session.describe_node(root)
    session.fids.add(message.fid, session.tree.keep(root), message.n_uname)
    return Rattach(session.qid(status, seen.mode))


def flush(session: Session, message: Tflush) -> Empty:
    """Every request was answered before this one was read."""
    return Empty()


HANDLERS: dict[type[Any], Callable[[Session, Any], Message]] = {
    Tversion: version,
    Tauth: auth,
    Tattach: attach,
    Tflush: flush,
    Twalk: names.walk,
    Tlcreate: names.lcreate,
    Tsymlink: names.symlink,
    Tmknod: names.mknod,
    Tmkdir: names.mkdir,
    Tlink: names.link,
    Trename: names.rename,
    Trenameat: names.renameat,
    Tunlinkat: names.unlinkat,
    Tremove: names.remove,
    Tgetattr: attributes.getattr_,
    Tsetattr: attributes.setattr_,
    Tstatfs: attributes.statfs,
    Treadlink: attributes.readlink,
    Txattrwalk: attributes.xattrwalk,
    Txattrcreate: attributes.xattrcreate,
    Tlopen: files.lopen,
    Tclunk: files.clunk,
    Tfsync: files.fsync,
    Tlock: files.lock,
    Tgetlock: files.getlock,
}
Route = Callable[[Session, "Chain", bytes, int], int]
"""Answers a frame of one type, whose tag is the last argument; how many bytes the reply is."""


def _route(type_: int, handler: Callable[[Session, Any], Message]) -> Route:
    """Decode, handle, encode."""
    request, reply = (CODECS[message] for message in REQUESTS[type_])

    def answer(session: Session, chain: Chain, frame: bytes, tag: int) -> int:
        answered = reply.encode(type_ + 1, tag, handler(session, request.decode(frame)))
        if len(answered) > min(chain.writable_size, session.msize or SMALLEST_MSIZE):
            raise guards.refuse(errno.EMSGSIZE)
        return chain.write(answered)

    return answer


def _route_data(type_: int, handler: Callable[[Session, Any, Chain], int]) -> Route:
    """Decode, let the handler put data into the reply, put the header before them."""
    request, reply = (CODECS[message] for message in REQUESTS[type_])

    def answer(session: Session, chain: Chain, frame: bytes, tag: int) -> int:
        done = handler(session, request.decode(frame), chain)
        chain.write(reply.encode(type_ + 1, tag, (done,), extra=done))
        return files.READ_DATA + done

    return answer


def _write(session: Session, chain: Chain, frame: bytes, tag: int) -> int:
    """Decode, and let the handler take data from the request."""
    message = CODECS[Twrite].decode(frame)
    (length,) = LENGTH.unpack_from(frame)
    if files.WRITE_DATA + message.size > length:
        raise Malformed(f"Twrite of {message.size} bytes in {length}")
    return chain.write(CODECS[Rwrite].encode(TWRITE + 1, tag, files.write(session, message, chain)))


TVERSION, TREAD, TWRITE, TREADDIR = TYPE_OF[Tversion], TYPE_OF[Tread], TYPE_OF[Twrite], TYPE_OF[Treaddir]
ROUTES = {TYPE_OF[message]: _route(TYPE_OF[message], handler) for message, handler in HANDLERS.items()}
ROUTES |= {TREAD: _route_data(TREAD, files.read), TREADDIR: _route_data(TREADDIR, files.readdir), TWRITE: _write}


class P9Server:
    """Serves an export to one guest.

    Args:
        export: what is shared.
        state: of a session to go on with.
        limits: on what the guest may cost; None: as this process's limits are.

    Raises:
        ExportError: the host does not let the directory be opened.
    """

    def __init__(self, export: Export, state: P9State | None = None, limits: Limits | None = None) -> None:
        self._session = Session(export, limits or Limits.of_process())
        if state is not None:
            try:
                restore(self._session, state)
            except BaseException:
                self.close()
                raise

    def handle(self, chain: Chain) -> int:
        """Answer a request; how many bytes of the chain's writable part the reply is.

        Args:
            chain: with the request's frame, and room for the reply.

        Raises:
            BadRequest: there is no frame, or no room to say so.
        """
        size = chain.readable_size
        if size < HEADER.size or chain.writable_size < SMALLEST_REPLY:
            raise BadRequest(f"9p: request of {size} bytes with {chain.writable_size} for the reply")
        frame = chain.read(min(size, SHORT_FRAME))
        length, type_, tag = HEADER.unpack_from(frame)
        try:
            return self._answer(chain, frame, length, type_, tag)
        except OSError as error:
            number = error.errno or errno.EIO
        except (ValueError, OverflowError):     # Malformed, or a number that the host has no room for
            number = errno.EINVAL
        finally:
            self._session.tree.trim()
        return chain.write(encode(RLERROR, tag, Rlerror(number)))

    def refuse(self, chain: Chain) -> int:
        """Answer a request with EIO, whatever it asks for; how many bytes, 0 if not even that fits."""
        if chain.readable_size < HEADER.size or chain.writable_size < SMALLEST_REPLY:
            return 0
        _, _, tag = HEADER.unpack(chain.read(HEADER.size))
        return chain.write(encode(RLERROR, tag, Rlerror(errno.EIO)))

    def _answer(self, chain: Chain, frame: bytes, length: int, type_: int, tag: int) -> int:
        session = self._session
        if not HEADER.size <= length <= chain.readable_size or length > (session.msize or SMALLEST_MSIZE):
            raise Malformed(f"frame of {length} bytes in {chain.readable_size}")
        if not session.msize and type_ != TVERSION:
            raise guards.refuse(errno.EPROTO)
        route = ROUTES.get(type_)
        if route is None:
            raise guards.refuse(errno.EOPNOTSUPP)
        if length > len(frame) and type_ != TWRITE:
            frame = chain.read(length)
        elif length < len(frame):
            frame = frame[:length]
        try:
            return route(session, chain, frame, tag)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            session.tree.trim(0)        # what is only kept for speed makes room
            return route(session, chain, frame, tag)

    def reset(self) -> None:
        """The guest starts over: no session, no fids."""
        self._session.start(0)

    def save(self) -> P9State:
        """The session; `P9Server(export, server.save())` goes on with it."""
        return save(self._session)

    def forked(self) -> None:
        """This process is a copy of the one that had the session: share no position and no lock with that."""
        self._session.fids.forked()

    def close(self) -> None:
        """Give every descriptor back; nothing may be asked after."""
        self._session.start(0)
        self._session.tree.close()
