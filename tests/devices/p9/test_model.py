"""A tree used over 9p against the same tree used on the host: what both have, and every error, is the same."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from devices.p9 import messages as m
from devices.p9.attributes import SET_MODE, SET_MTIME, SET_MTIME_TO, SET_SIZE
from devices.p9.export import Limits
from tests.devices.p9.client import ROOT, Guest

REMOVE_DIRECTORY = 0x200
NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
FIDS = st.integers(0, 3)
Names = tuple[bytes, ...]


class SameTree(RuleBasedStateMachine):
    """`host` is changed by system calls, `shared` over 9p; held fids of the one are open descriptors of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="p9-"))
        self.host, self.shared = self.directory / "host", self.directory / "shared"
        self.host.mkdir()
        self.shared.mkdir()
        self.guest = Guest(self.shared, limits=Limits(handles=2, opened=64))
        self.held: dict[int, tuple[int, int]] = {}

    def teardown(self) -> None:
        for _, fd in self.held.values():
            os.close(fd)
        self.guest.server.close()
        shutil.rmtree(self.directory)

    def path(self, names: Names) -> Path:
        return self.host.joinpath(*map(os.fsdecode, names))

    def parent(self, names: Names) -> int:
        """A fid of the directory of a path."""
        fid = self.guest.walk(*names[:-1])
        if not stat.S_ISDIR(self.guest.stat(fid).mode):
            raise NotADirectoryError(errno.ENOTDIR, "")
        return fid

    def both(self, host: Callable[[], Any], guest: Callable[[], Any]) -> tuple[Any, Any] | None:
        """Do it on both sides: both succeed, or both fail in the same way."""
        results: list[Any] = []
        for act in host, guest:
            try:
                results.append((None, act()))
            except OSError as error:
                # A walk that stops half-way does not say why.
                number = errno.ENOENT if error.errno == errno.ENOTDIR else error.errno
                results.append((number, None))
        assert results[0][0] == results[1][0]
        return None if results[0][0] is not None else (results[0][1], results[1][1])

    @rule(names=PATHS, data=st.binary(max_size=20))
    def create(self, names: Names, data: bytes) -> None:
        def host() -> None:
            os.close(os.open(self.path(names), os.O_CREAT | os.O_EXCL))
            self.path(names).write_bytes(data)
            self.path(names).chmod(0o644)

        def guest() -> None:
            fid = self.parent(names)
            self.guest.send(m.Tlcreate(fid, names[-1], os.O_RDWR | 0o200, 0o644, 0))
            self.guest.write(fid, data)
            self.guest.clunk(fid)

        self.both(host, guest)

    @rule(names=PATHS)
    def mkdir(self, names: Names) -> None:
        def host() -> None:
            self.path(names).mkdir()
            self.path(names).chmod(0o755)

        self.both(host, lambda: self.guest.send(m.Tmkdir(self.parent(names), names[-1], 0o755, 0)))

    @rule(names=PATHS, says=st.sampled_from([b"nowhere", b"../no/where"]))
    def symlink(self, names: Names, says: bytes) -> None:
        # Leading nowhere: the host's calls would follow one on the way, the server never does.
        self.both(
            lambda: os.symlink(says, os.fsencode(self.path(names))),
            lambda: self.guest.send(m.Tsymlink(self.parent(names), names[-1], says, 0)),
        )

    @rule(old=PATHS, new=PATHS)
    def link(self, old: Names, new: Names) -> None:
        self.both(
            lambda: os.link(self.path(old), self.path(new), follow_symlinks=False),
            lambda: self.guest.send(m.Tlink(self.parent(new), self.guest.walk(*old), new[-1])),
        )

    @rule(old=PATHS, new=PATHS, by_fid=st.booleans())
    def rename(self, old: Names, new: Names, by_fid: bool) -> None:
        def guest() -> None:
            if by_fid:
                self.guest.send(m.Trename(self.guest.walk(*old), self.parent(new), new[-1]))
            else:
                self.guest.send(m.Trenameat(self.parent(old), old[-1], self.parent(new), new[-1]))

        self.both(lambda: os.rename(self.path(old), self.path(new)), guest)

    @rule(names=PATHS, directory=st.booleans())
    def remove(self, names: Names, directory: bool) -> None:
        flags = REMOVE_DIRECTORY if directory else 0
        self.both(
            lambda: (os.rmdir if directory else os.unlink)(self.path(names)),
            lambda: self.guest.send(m.Tunlinkat(self.parent(names), names[-1], flags)),
        )

    @rule(names=PATHS, size=st.integers(0, 30), mode=st.integers(0o700, 0o777), seconds=st.integers(0, 1 << 31))
    def set(self, names: Names, size: int, mode: int, seconds: int) -> None:
        def host() -> None:
            path = self.path(names)
            if path.is_symlink():
                raise OSError(errno.EOPNOTSUPP, "")
            os.chmod(path, mode)
            if path.is_file():
                os.truncate(path, size)
            os.utime(path, ns=(0, seconds * 1_000_000_000))

        def guest() -> None:
            fid = self.guest.walk(*names)
            valid = SET_MODE | SET_MTIME | SET_MTIME_TO
            if stat.S_ISREG(self.guest.stat(fid).mode):
                valid |= SET_SIZE
            self.guest.set(fid, valid, mode=mode, size=size, mtime_sec=seconds)

        self.both(host, guest)

    @rule(number=FIDS, names=PATHS)
    def hold(self, number: int, names: Names) -> None:
        """Open a file, and keep it open."""
        self.release(number)

        def host() -> int:
            fd = os.open(self.path(names), os.O_RDWR | os.O_NOFOLLOW)
            assert stat.S_ISREG(os.fstat(fd).st_mode)
            return fd

        done = self.both(host, lambda: self.guest.open(*names, flags=os.O_RDWR))
        if done is not None:
            self.held[number] = done[1], done[0]

    def release(self, number: int) -> None:
        if number in self.held:
            fid, fd = self.held.pop(number)
            os.close(fd)
            self.guest.clunk(fid)

    @rule(number=FIDS, offset=st.integers(0, 40), data=st.binary(max_size=20))
    def write(self, number: int, offset: int, data: bytes) -> None:
        if number in self.held:
            fid, fd = self.held[number]
            self.both(lambda: os.pwrite(fd, data, offset), lambda: self.guest.write(fid, data, offset))

    @rule()
    def snapshot(self) -> None:
        """Fids go on in another server, but for those of files without a name."""
        for number in [number for number, (_, fd) in self.held.items() if os.fstat(fd).st_nlink == 0]:
            self.release(number)
        new = Guest(self.shared, state=self.guest.server.save(), limits=Limits(handles=2, opened=64))
        new.fid = self.guest.fid
        self.guest.server.close()
        self.guest = new

    @invariant()
    def same(self) -> None:
        for fid, fd in self.held.values():
            assert self.guest.read(fid) == os.pread(fd, 100, 0)
            assert self.guest.stat(fid).nlink == os.fstat(fd).st_nlink
        assert self.seen(()) == self.expected(self.host)
        held = {fid for fid, _ in self.held.values()}
        for fid in {saved.number for saved in self.guest.server.save().fids} - held - {ROOT}:
            self.guest.clunk(fid)

    def seen(self, names: Names) -> dict[bytes, Any]:
        """The tree over 9p."""
        tree = {}
        for name in self.guest.names(*names):
            fid = self.guest.walk(*names, name)
            status = self.guest.stat(fid)
            what: Any = None
            if stat.S_ISDIR(status.mode):
                what = self.seen((*names, name))
            elif stat.S_ISLNK(status.mode):
                what = self.guest.send(m.Treadlink(fid)).target
            else:
                what = self.guest.content(*names, name), status.nlink
            tree[name] = status.mode, what
        return tree

    def expected(self, path: Path) -> dict[bytes, Any]:
        """The tree on the host."""
        tree = {}
        for below in path.iterdir():
            status = below.lstat()
            what: Any = None
            if below.is_symlink():
                what = os.fsencode(os.readlink(below))
            elif below.is_dir():
                what = self.expected(below)
            else:
                what = below.read_bytes(), status.st_nlink
            tree[os.fsencode(below.name)] = status.st_mode, what
        return tree


def test_a_tree_over_9p_does_as_the_host_s() -> None:
    run_state_machine_as_test(
        SameTree, settings=settings(max_examples=15, stateful_step_count=20, deadline=None)
    )
