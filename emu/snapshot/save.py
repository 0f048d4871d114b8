"""Saving a snapshot: all of a machine's memory, or what differs from the snapshot that it was restored from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emu.errors import EmuError
from emu.memory import MIB, GuestMemory
from emu.snapshot.files import FILES, HEADER, LONGEST_CHAIN, RAM, Snapshot, file_digest, no_progress
from emu.snapshot.header import LARGEST_HEADER, BaseLink, FileEntry, Header, RamEntry, pack, pairs
from emu.snapshot.pages import PAGE
from emu.snapshot.ram import Layer, Progress, plan_delta, plan_whole, trailer, write_ram
from emu.snapshot.replace import replacing, sync_directory

__all__ = ["save_snapshot"]

START = b'{"format": "pvemu snapshot"'          # of every version's header

WriteFile = Callable[[Path], object]


def save_snapshot(
    path: str | os.PathLike[str],
    state: Any,
    memory: GuestMemory,
    *,
    base: Snapshot | None = None,
    files: Mapping[str, WriteFile] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Save a machine that stands still.

    Args:
        path: directory to make; a snapshot that is there is replaced.
        state: of everything but memory; a dataclass that `emu.snapshot.codec` takes.
        memory: the guest's RAM.
        base: the snapshot that the memory was mapped from: only what differs is saved, and the base is needed ever
            after; None saves all.
        files: others to save, by name; each is called with the path to write to, and raises OSError or ValueError if
            it cannot.
        progress: called with bytes of RAM done, and in all.

    Raises:
        EmuError: it cannot be saved; what was there before is whole, and nothing else is left.
    """
    target = os.path.realpath(path)
    _check_target(target)
    if base is not None:
        _check_base(target, memory, base)
    try:
        with replacing(target) as aside:
            _write(aside, target, state, memory, base, files or {}, progress)
    except OSError as error:
        raise EmuError(f"cannot save {target}: {error.strerror}") from None


def _write(
    aside: str,
    target: str,
    state: Any,
    memory: GuestMemory,
    base: Snapshot | None,
    files: Mapping[str, WriteFile],
    progress: Progress,
) -> None:
    """Fill the directory that becomes the snapshot."""
    entries = _write_files(Path(aside), files)
    fd = os.open(os.path.join(aside, RAM), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        layer = _plan(memory, base)
        os.ftruncate(fd, layer.size)
        header = _header(target, memory, layer, write_ram(fd, memory, layer, progress), base, entries)
        content, digest = pack(header, state)
        if len(content) > LARGEST_HEADER:
            raise EmuError(f"cannot save {target}: the machine's state has {len(content) // MIB} MiB")
        os.pwrite(fd, trailer(header.id, digest), layer.size)
        os.fsync(fd)
    finally:
        os.close(fd)
    with open(os.path.join(aside, HEADER), "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _check_target(target: str) -> None:
    """Refuse to replace what is no snapshot."""
    if not os.path.lexists(target):
        return
    try:
        names = set(os.listdir(target))
        if not names:
            return
        with open(os.path.join(target, HEADER), "rb") as file:
            if file.read(len(START)) == START and names <= {HEADER, RAM, FILES}:
                return
    except OSError:
        pass
    raise EmuError(f"cannot save {target}: something else than a snapshot is there")


def _check_base(target: str, memory: GuestMemory, base: Snapshot) -> None:
    if memory.origin != base.id:
        raise EmuError(f"cannot save {target}: the machine does not go on from {base.path}, or was reset since")
    if base.depth >= LONGEST_CHAIN:
        raise EmuError(f"cannot save {target}: {LONGEST_CHAIN} snapshots build on each other already; save a whole one")
    link: Snapshot | None = base
    while link is not None:
        if os.path.realpath(link.path) == target:
            raise EmuError(f"cannot save {target}: the new snapshot would build on the one there")
        link = link.base


def _plan(memory: GuestMemory, base: Snapshot | None) -> Layer:
    if base is None:
        return plan_whole(memory)
    before = base.map_memory()
    try:
        return plan_delta(memory, before.ram)
    finally:
        before.close()


def _header(
    target: str, memory: GuestMemory, layer: Layer, sha256: str, base: Snapshot | None, files: tuple[FileEntry, ...]
) -> Header:
    ram = RamEntry(memory.size, memory.low_size, PAGE, pairs(layer.held), pairs(layer.zero), sha256)
    link = BaseLink(os.path.relpath(base.path, target), base.id, base.digest) if base else None
    return Header(os.urandom(16).hex(), time.time_ns(), ram, link, files)


def _write_files(aside: Path, files: Mapping[str, WriteFile]) -> tuple[FileEntry, ...]:
    if not files:
        return ()
    directory = aside / FILES
    directory.mkdir()
    entries = []
    for name, write in files.items():
        path = directory / name
        try:
            write(path)
        except ValueError as error:         # a disk's
            raise EmuError(f"cannot save {path.name}: {error}") from None
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        entries.append(FileEntry(name, path.stat().st_size, file_digest(path)))
    sync_directory(str(directory))
    return tuple(entries)
