"""The default guest's ready snapshot: made on first use, kept under what went into it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from emu import __version__
from emu.cache import Cache
from emu.errors import BadSnapshot
from emu.snapshot.files import Snapshot
from emu.snapshot.header import VERSION

__all__ = ["DEFAULT_MEMORY", "ready_snapshot"]

KIND = "snapshot"
LOCK = "lock"
KERNEL = "generic"
DEFAULT_MEMORY = 128 << 20
WARM_UP = 3                             # commands: their pages and programs are in the snapshot
SETTLE_S = 0.5                          # until nothing of them is under way

Phase = Callable[[str], AbstractContextManager[object]]


def ready_snapshot(memory: int, phase: Phase, say: Callable[[str], None]) -> Path:
    """Where the snapshot of a booted default guest is; it is made if need be, by one process at a time.

    Args:
        memory: bytes of the guest's RAM.
        phase: times each part (`emu.phases.Phases`).
        say: told in a line that it is being made.

    Raises:
        EmuError: the guest cannot be fetched or booted, or the snapshot cannot be saved.
    """
    cache = Cache()
    with phase("find the snapshot"):
        directory = cache.workspace(KIND)
        path = directory / _key(cache, memory)
        if _is_usable(path):
            return path
    with _alone(directory):
        if not _is_usable(path):        # another process may have made it meanwhile
            say("making the default guest's snapshot; this takes some seconds, once")
            with phase("make the snapshot"):
                _make(path, memory)
    return path


def _is_usable(path: Path) -> bool:
    try:
        Snapshot.open(path).close()
    except BadSnapshot:
        return False
    return True


def _key(cache: Cache, memory: int) -> str:
    """A name for all that the snapshot depends on: files by path, size and time, which change with their content."""
    from hashlib import sha256

    from emu.fetch import fetch_guest
    from emu.images.inside import scripts
    from emu.loader.linux import command_line

    guest = fetch_guest(cache, KERNEL)
    digest = sha256(scripts())
    for path in (guest.kernel_path, guest.package_path, guest.root_path):
        status = os.stat(path)
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    digest.update(f"{__version__} {VERSION} {memory} {command_line('', None, False)}\n".encode())
    return digest.hexdigest()[:32]


def _make(path: Path, memory: int) -> None:
    from emu.launch import boot

    with boot(kernel=KERNEL, memory=memory) as machine:
        machine.wait_ready()
        for _ in range(WARM_UP):
            machine.run("cat /etc/alpine-release", check=True)
        machine.run("sync")
        machine.drive(lambda: False, SETTLE_S)
        machine.snapshot(path)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; it goes with the process, however that ends."""
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
