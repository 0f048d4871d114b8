"""Directory trees with everything in them that a copy can get wrong, and what a copy of one is compared by."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from emu.memory import KIB, MIB

__all__ = ["SPARSE_FILE", "Entry", "describe", "make_tree"]

DIRECTORIES, NESTED_DIRECTORIES, EMPTY_DIRECTORIES, DEPTH = 40, 20, 20, 12
SYMLINKS, HARD_LINKS = 8, 6             # in a hundred files
SPARSE_FILE = b"sparse"
LARGE_BYTES, SPARSE_BYTES = 3 * MIB, 2 * MIB
NS_PER_S = 1_000_000_000
FILE_MODES = 0o644, 0o600, 0o400, 0o755, 0o555, 0o640, 0o444, 0o666, 0o777, 0o711 | 0o400
DIRECTORY_MODES = 0o755, 0o700, 0o750, 0o1777, 0o711
FIRST_TIME, LAST_TIME = 1, (1 << 32) - 1    # seconds: 1970 to 2106, past what 32 bits with a sign hold

ODD_DIRECTORY = b"odd \n\xff directory"
ODD_NAMES = [
    b" ", b"  two  blanks  ", b"trailing ", b"new\nline", b"\n", b"\ttab", b"carriage\rreturn", b"-n", b"--", b"-rf *",
    b"...", b"..hidden", b".hidden", b"~", b"*", b"?", b"[a]", b"{1..3}", b"$HOME", b"`id`", b"$(id)", b"!", b"#no",
    b"a;b|c&d>e<f", b"it's", b'"double"', b"back\\slash", b"\\n", b"\\", b"%s%d", b"a:b", b"a=b", b"@file", b"\x7f",
    "grüße".encode(), "世界 🐧".encode(), "e\u0301 and \u00e9".encode(), "\u202eright to left".encode(),
    b"latin-1 gr\xfc\xdfe", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x01\x02\x1b[31m",
    b"x" * 255, "ü".encode() * 127, b"\xfe" * 255, b"-" * 255,
]  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What a copy of a name keeps.

    Attributes:
        mode: with the file type.
        content: a file's SHA-256 in hexadecimal digits, a symbolic link's target.
        size: in bytes; 0 of directories and links.
        names: all that the inode has in the tree.
        mtime_ns: cut to the precision asked for; 0 of symbolic links, whose times few tools keep.
    """

    mode: int
    content: bytes
    size: int
    names: tuple[bytes, ...]
    mtime_ns: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


def describe(root: Path, precision_ns: int = 1) -> dict[bytes, Entry]:
    """Everything below a directory, by its path there.

    Args:
        root: not described itself.
        precision_ns: of times.
    """
    top = os.fsencode(root)
    found: dict[bytes, os.stat_result] = {}
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = os.lstat(path)
    names: defaultdict[int, list[bytes]] = defaultdict(list)
    for path, status in found.items():
        names[status.st_ino].append(path)
    entries = {}
    for path, status in found.items():
        regular, link = stat.S_ISREG(status.st_mode), stat.S_ISLNK(status.st_mode)
        full = os.path.join(top, path)
        content = os.readlink(full) if link else _digest(full) if regular else b""
        mtime_ns = 0 if link else status.st_mtime_ns // precision_ns * precision_ns
        others = tuple(sorted(names[status.st_ino]))
        entries[path] = Entry(status.st_mode, content, status.st_size if regular else 0, others, mtime_ns)
    return entries


def _digest(path: bytes) -> bytes:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest().encode()


def make_tree(root: Path, files: int, seed: int = 1) -> None:
    """Fill an empty directory: with the same tree for the same arguments.

    Args:
        root: the directory.
        files: names in it that are not directories, several hundred.
        seed: of sizes, modes, times and places.
    """
    _Maker(os.fsencode(root), files, random.Random(seed)).make()


class _Maker:
    def __init__(self, top: bytes, total: int, chance: random.Random) -> None:
        self.top = top
        self.total = total
        self.chance = chance
        self.directories = [top]
        self.files: list[bytes] = []
        self.count = 0

    def make(self) -> None:
        chance = self.chance
        for number in range(DIRECTORIES):
            self._directory(os.path.join(self.top, b"directory-%d" % number))
        for number in range(NESTED_DIRECTORIES):
            self._directory(self._place(b"nested-%d" % number))
        self._deep()
        self._odd()
        self._large()
        self._sparse(SPARSE_FILE, (0, MIB + 5, SPARSE_BYTES - 3))
        self._sparse(b"one hole", ())
        self._file(os.path.join(self.top, b"empty"), b"")
        for number in range(SYMLINKS * self.total // 100):
            self._symlink(self._place(b"link-%d" % number), self._target())
        hard_links = HARD_LINKS * self.total // 100
        while self.count < self.total - hard_links:
            size = int(chance.paretovariate(0.7)) % (12 * KIB)
            self._file(self._place(b"file-%d" % self.count), chance.randbytes(size))
        for number in range(hard_links):
            os.link(chance.choice(self.files), self._place(b"hard-%d" % number), follow_symlinks=False)
        for number in range(EMPTY_DIRECTORIES):
            os.mkdir(path := self._place(b"empty-%d" % number))
            self._finish(path, chance.choice((*DIRECTORY_MODES, 0o555)))
        for path in reversed(self.directories[1:]):
            self._finish(path, chance.choice(DIRECTORY_MODES))

    def _place(self, name: bytes) -> bytes:
        return os.path.join(self.chance.choice(self.directories), name)

    def _directory(self, path: bytes) -> None:
        os.mkdir(path)
        self.directories.append(path)

    def _odd(self) -> None:
        self._directory(directory := os.path.join(self.top, ODD_DIRECTORY))
        for name in ODD_NAMES:
            self._file(os.path.join(directory, name), name)
            self._symlink(os.path.join(self.top, b"to " + name[:252]), os.path.join(ODD_DIRECTORY, name))

    def _deep(self) -> None:
        path, own = self.top, []
        for number in range(DEPTH):
            path = os.path.join(path, b"deep-%d" % number)
            os.mkdir(path)
            own.append(path)
            self._file(os.path.join(path, b"file"), b"%d" % number)
        for path in reversed(own):
            self._finish(path, 0o755)

    def _file(self, path: bytes, data: bytes) -> None:
        with open(path, "xb") as handle:
            handle.write(data)
        self._done(path)

    def _large(self) -> None:
        block = self.chance.randbytes(MIB)
        parts = (bytes((number,)) + block for number in range(LARGE_BYTES // MIB))
        self._file(os.path.join(self.top, b"large"), b"".join(parts))

    def _sparse(self, name: bytes, offsets: tuple[int, ...]) -> None:
        path = os.path.join(self.top, name)
        with open(path, "xb") as handle:
            for offset in offsets:
                handle.seek(offset)
                handle.write(b"data")
            handle.truncate(SPARSE_BYTES)
        self._done(path)

    def _done(self, path: bytes) -> None:
        self._finish(path, self.chance.choice(FILE_MODES))
        self.files.append(path)
        self.count += 1

    def _finish(self, path: bytes, mode: int) -> None:
        os.chmod(path, mode)
        nanoseconds = self.chance.randrange(FIRST_TIME * NS_PER_S, LAST_TIME * NS_PER_S)
        os.utime(path, ns=(nanoseconds, nanoseconds))

    def _target(self) -> bytes:
        kind = self.chance.randrange(4)
        if kind == 0:
            return b"no/such/file"
        if kind == 1:
            return b"/" + self.chance.randbytes(self.chance.randrange(1, 2000)).replace(b"\0", b"/")
        if kind == 2:
            return b"../" * self.chance.randrange(1, 5) + b"file-7"
        return self.chance.choice(self.files)[len(self.top) + 1 :]

    def _symlink(self, path: bytes, target: bytes) -> None:
        os.symlink(target, path)
        self.count += 1
