"""The files of an export that a guest has fids of, as a tree of names, and the host descriptors that stand for them.

A fid must not cost a host descriptor for as long as it lives: a guest holds one for every name in its cache. So a
node knows its parent and its name there, and the identity of the file that stood there; its descriptor (`O_PATH`: it
names the file but opens nothing) is opened when needed, one component from the parent's, never through a symbolic
link, and only accepted if it is still that inode. Descriptors least recently used are closed between messages.

A rename moves one node, and everything below follows; an unlinked file's node keeps its descriptor.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict

from devices.p9 import guards

__all__ = ["Node", "Tree"]

MOST_NODES = 1 << 18
DEEPEST = 2048                          # components of a path that is walked again
NO_DESCRIPTOR = -1
PATH_FLAGS = os.O_PATH | os.O_CLOEXEC


class Node:
    """A file of the export; who keeps one calls `Tree.keep`, and `Tree.drop` when done.

    Attributes:
        parent: None for the root, and for what has no name any more.
        name: in the parent.
        identity: device, inode number and file type (`S_IFMT` of its mode) on the host.
        children: those that are kept, by name.
        fd: its `O_PATH` descriptor; only `Tree.handle` may be used to get at it.
    """

    __slots__ = ("children", "fd", "identity", "is_root", "name", "parent", "users")

    def __init__(self, parent: Node | None, name: bytes, identity: guards.Identity) -> None:
        self.parent = parent
        self.name = name
        self.identity = identity
        self.children: dict[bytes, Node] = {}
        self.fd = NO_DESCRIPTOR
        self.users = 0                  # fids and children
        self.is_root = False

    @property
    def kind(self) -> int:
        """The host's file type."""
        return self.identity[2]

    def path(self) -> tuple[bytes, ...] | None:
        """Its components below the root; None if it has no name any more."""
        components = []
        node = self
        while node.parent is not None:
            components.append(node.name)
            node = node.parent
        return tuple(reversed(components)) if node.is_root else None


class Tree:
    """The nodes of one export.

    Args:
        path: of the directory exported; the only path that the host resolves as usual.
        handles: most descriptors kept open between messages, besides the same number of files without a name.

    Raises:
        OSError: it is no directory, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], handles: int) -> None:
        fd = os.open(path, PATH_FLAGS | os.O_DIRECTORY)
        status = os.fstat(fd)
        self.root = Node(None, b"", guards.identity(status))
        self.root.fd = fd
        self.root.users = 1
        self.root.is_root = True
        self.count = 1
        self._handles = handles
        self._recent: OrderedDict[Node, None] = OrderedDict()      # those whose descriptor may be closed, oldest first
        self._nameless: set[Node] = set()                           # those that could not be opened again

    # --- nodes --------------------------------------------------------------------------------------------------

    def keep(self, node: Node) -> Node:
        """One more user; the node."""
        node.users += 1
        return node

    def drop(self, node: Node) -> None:
        """One user less; without any, the node goes, and so do parents kept only for it."""
        at: Node | None = node
        while at is not None:
            at.users -= 1
            if at.users:
                return
            self._close(at)
            self.count -= 1
            parent = at.parent
            if parent is not None:
                del parent.children[at.name]
            at = parent

    def child(self, parent: Node, name: bytes, status: os.stat_result) -> Node:
        """The node of what was found under that name, kept for the caller.

        Raises:
            OSError: ENFILE, the guest has too many.
        """
        identity = guards.identity(status)
        node = parent.children.get(name)
        if node is not None:
            if node.identity == identity:
                return self.keep(node)
            self.detach(node)           # the host put another file there
        guards.room(self.count, MOST_NODES)
        node = Node(parent, name, identity)
        self.attach(node, parent, name)
        self.count += 1
        return self.keep(node)

    def nameless(self, identity: guards.Identity) -> Node:
        """A node that stands for a file which is not there, kept for the caller."""
        self.count += 1
        return self.keep(Node(None, b"", identity))

    def attach(self, node: Node, parent: Node, name: bytes) -> None:
        """Give a node without a name one that no other node has."""
        node.parent, node.name = parent, name
        parent.children[name] = node
        self.keep(parent)

    def detach(self, node: Node) -> None:
        """The node has no name any more; if it has a descriptor, that stays."""
        parent = node.parent
        if parent is None:
            return
        del parent.children[node.name]
        node.parent, node.name = None, b""
        self.drop(parent)
        if node.fd != NO_DESCRIPTOR and len(self._nameless) < self._handles:
            self._recent.pop(node, None)
            self._nameless.add(node)

    def hold(self, parent: Node, name: bytes) -> Node | None:
        """The node of that name, if any, with its descriptor opened while it still can be."""
        node = parent.children.get(name)
        if node is not None:
            try:
                self.handle(node)
            except OSError:
                pass                    # it is another file already: the fid is stale anyway
        return node

    def moved(self, node: Node | None, parent: Node, name: bytes) -> None:
        """A rename was done: what was called so has lost its name, and `node`, if there is one, has that name now."""
        over = parent.children.get(name)
        if over is not None and over is node:
            return
        if over is not None:
            self.detach(over)
        if node is None:
            return
        above: Node | None = parent
        while above is not None and above is not node:
            above = above.parent
        self.keep(parent)
        if node.parent is not None:
            self.detach(node)
            self._nameless.discard(node)
            if node.fd != NO_DESCRIPTOR:
                self._recent[node] = None
        if above is None:               # else the host moved directories meanwhile: no circle of nodes
            self.attach(node, parent, name)
        self.drop(parent)

    # --- descriptors --------------------------------------------------------------------------------------------

    def handle(self, node: Node) -> int:
        """Its `O_PATH` descriptor, good until the next `trim`.

        Raises:
            OSError: ESTALE, there is another file now, or none, or it has no name; or what the host says.
        """
        if node.fd != NO_DESCRIPTOR:
            if node in self._recent:
                self._recent.move_to_end(node)
            return node.fd
        way = []
        at: Node = node
        while at.fd == NO_DESCRIPTOR:
            if at.parent is None:
                raise guards.refuse(errno.ESTALE)
            way.append(at)
            at = at.parent
            if len(way) > DEEPEST:
                raise guards.refuse(errno.ENAMETOOLONG)
        fd = at.fd
        for place, at in enumerate(reversed(way)):
            fd = self._open(fd, at)
            if place > 1:               # directories on the way are not worth their descriptor, but for the last
                self._close(way[len(way) - place + 1])
        return fd

    def _open(self, parent_fd: int, node: Node) -> int:
        try:
            fd = os.open(node.name, PATH_FLAGS | guards.NOFOLLOW, dir_fd=parent_fd)
        except (FileNotFoundError, NotADirectoryError):
            raise guards.refuse(errno.ESTALE) from None
        try:
            guards.same_file(node.identity, os.fstat(fd))
        except OSError:
            os.close(fd)
            raise
        node.fd = fd
        self._recent[node] = None
        return fd

    def directory(self, node: Node) -> int:
        """The descriptor of a directory, for names in it.

        Raises:
            OSError: ENOTDIR, or as `handle`.
        """
        if node.kind != stat.S_IFDIR:
            raise guards.refuse(errno.ENOTDIR)
        return self.handle(node)

    def place(self, node: Node) -> tuple[int, bytes | None]:
        """A descriptor of its directory and its name there; or its own and None, if it has no name."""
        if node.parent is None:
            return self.handle(node), None
        return self.handle(node.parent), node.name

    def look(self, parent: Node, name: bytes) -> os.stat_result:
        """What the host says of a name in a directory, a symbolic link itself included.

        Raises:
            OSError: ENOENT, ENOTDIR, or as `handle`.
        """
        return os.stat(name, dir_fd=self.directory(parent), follow_symlinks=not guards.NOFOLLOW)

    def is_gone(self, node: Node) -> bool:
        """Whether it has no name any more, or there is nothing of that name."""
        if node.parent is None:
            return True
        try:
            self.look(node.parent, node.name)
        except FileNotFoundError:
            return True
        except OSError:
            pass
        return False

    def status(self, node: Node) -> os.stat_result:
        """What the host says of it.

        Raises:
            OSError: ENOENT, it is not there any more. (Not ESTALE: a Linux client looks the name up again after it.)
        """
        parent = node.parent
        if parent is None:
            if node.fd == NO_DESCRIPTOR:
                raise guards.refuse(errno.ENOENT)
            return os.fstat(node.fd)
        try:
            status = self.look(parent, node.name)
            guards.same_file(node.identity, status)
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise guards.refuse(errno.ENOENT) from None
            raise
        return status

    def trim(self, handles: int | None = None) -> None:
        """Close descriptors least recently used, down to `handles`, or to as many as are kept between messages."""
        most = self._handles if handles is None else handles
        while len(self._recent) > most:
            node, _ = self._recent.popitem(last=False)
            os.close(node.fd)
            node.fd = NO_DESCRIPTOR

    @property
    def open_handles(self) -> int:
        """Host descriptors in use."""
        return 1 + len(self._recent) + len(self._nameless)

    def _close(self, node: Node) -> None:
        if node.fd != NO_DESCRIPTOR:
            self._recent.pop(node, None)
            self._nameless.discard(node)
            os.close(node.fd)
            node.fd = NO_DESCRIPTOR

    def close(self) -> None:
        """Close every descriptor; no method may be called after."""
        self.trim(0)
        for node in [*self._nameless, self.root]:
            self._close(node)
