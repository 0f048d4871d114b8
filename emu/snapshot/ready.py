"""The default guest's ready snapshot: made on first use, kept under what went into it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emu import __version__
from emu.cache import Cache
from emu.errors import BadSnapshot
from emu.snapshot.files import Snapshot
from emu.snapshot.header import VERSION

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["DEFAULT_MEMORY", "alone", "ready_snapshot"]

KIND = "snapshot"
LOCK = "lock"
OUR_INPUTS = "images/*.*", "loader/*.py", "snapshot/ready.py", "__init__.py"
KERNEL = "generic"
DEFAULT_MEMORY = 128 << 20
WARM_UP = 3                             # commands: their pages and programs are in the snapshot
SETTLE_S = 0.5                          # until nothing of them is under way
QUIET_NS = 300_000_000                  # that the guest is to sleep on when it is saved,
QUIET_LIMIT_S = 5.0                     # and the longest wait for such a moment
PACKAGE = Path(__file__).parents[1]

Phase = Callable[[str], AbstractContextManager[object]]


def ready_snapshot(memory: int, phase: Phase, say: Callable[[str], None], sharing: str | None = None) -> Path:
    """Where the snapshot of a booted default guest is; it is made if need be, by one process at a time.

    Args:
        memory: bytes of the guest's RAM.
        phase: times each part (`emu.phases.Phases`).
        say: told in a line that it is being made.
        sharing: the mount tag of a share that the guest has, beside sockets; None: it has neither. Which directory it
            is has to be said when the snapshot is restored.

    Raises:
        EmuError: the guest cannot be fetched or booted, or the snapshot cannot be saved.
    """
    cache = Cache()
    with phase("find the snapshot"):
        directory = cache.workspace(KIND)
        note = directory / f"ready-{memory}{f'-{sharing}' if sharing else ''}.json"
        path = _noted(note)
        if path is not None and _is_usable(path):
            return path
        inputs = _inputs(cache)
        path = directory / _key(inputs, memory, sharing)
    with alone(directory):
        if not _is_usable(path):        # another process may have made it meanwhile
            say("making the default guest's snapshot; this takes some seconds, once")
            with phase("make the snapshot"):
                _make(path, memory, sharing)
        _write_note(note, path, inputs)
    return path


def _is_usable(path: Path) -> bool:
    try:
        Snapshot.open(path).close()
    except BadSnapshot:
        return False
    return True


def _inputs(cache: Cache) -> list[Path]:
    """The files that the snapshot depends on."""
    from emu.fetch import fetch_guest

    guest = fetch_guest(cache, KERNEL)
    ours = sorted(path for pattern in OUR_INPUTS for path in PACKAGE.glob(pattern))
    return [guest.kernel_path, guest.package_path, guest.root_path, *ours]


def _stamp(path: Path | str) -> list[str | int]:
    status = os.stat(path)
    return [os.fspath(path), status.st_size, status.st_mtime_ns]


def _key(inputs: list[Path], memory: int, sharing: str | None) -> str:
    """A name for all that the snapshot depends on: ours by content, what was fetched by name, size and time."""
    from hashlib import sha256

    digest = sha256(f"{__version__} {VERSION} {memory} {sharing or ''}\n".encode())
    for path in inputs:
        if PACKAGE in path.parents:
            digest.update(path.read_bytes())
        else:
            digest.update(repr([path.name, *_stamp(path)[1:]]).encode())
    return digest.hexdigest()[:32]


def _noted(note: Path) -> Path | None:
    """The snapshot that was found last time, if nothing that it depends on has changed since: without any imports."""
    try:
        name, package, inputs = json.loads(note.read_bytes())
        if not isinstance(name, str) or package != os.fspath(PACKAGE):  # another installation's, with other inputs
            return None
        path = note.parent / str(os.path.basename(name))
        if all(_stamp(each) == [each, size, time_ns] for each, size, time_ns in inputs):
            return path
    except (OSError, ValueError, TypeError):
        pass
    return None


def _write_note(note: Path, path: Path, inputs: list[Path]) -> None:
    content = json.dumps([path.name, os.fspath(PACKAGE), [_stamp(each) for each in inputs]])
    partial = note.with_name(f".{note.name}.{os.getpid()}")
    partial.write_text(content)
    os.replace(partial, note)


def _make(path: Path, memory: int, sharing: str | None) -> None:
    from tempfile import TemporaryDirectory

    from emu.launch import boot

    with TemporaryDirectory() as empty:
        shares = {sharing: empty} if sharing else {}
        with boot(kernel=KERNEL, memory=memory, shares=shares, vsock=sharing is not None) as machine:
            machine.wait_ready()
            for _ in range(WARM_UP):
                machine.run("cat /proc/version", check=True)     # where no mirror answers it is no Alpine
            machine.run("sync")
            machine.drive(lambda: False, SETTLE_S)
            machine.drive(lambda: _is_quiet(machine), QUIET_LIMIT_S)
            machine.snapshot(path)


def _is_quiet(machine: Machine) -> bool:
    """Whether the guest sleeps, and will for a while: else each restore would begin with work of the guest's own."""
    clock = machine.clock
    return (
        machine.board.cpu.halted and not machine.board.intr.level and clock.next_ns - clock.now_ns() > QUIET_NS
    )


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; it goes with the process, however that ends."""
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
