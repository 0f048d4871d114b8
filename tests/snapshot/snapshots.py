"""Small machines' memories and states, for tests of snapshots."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emu.memory import MIB, GuestMemory
from emu.snapshot.pages import PAGE

__all__ = ["PAGES", "SIZE", "State", "content", "copy_snapshots", "new_memory", "scribble", "tree"]

SIZE = 64 * MIB
PAGES = SIZE // PAGE


@dataclass(frozen=True)
class State:
    """Stands for a machine's."""

    name: str = "machine"
    registers: tuple[int, ...] = (1, 2, 3)
    rom: bytes = b"\0\xff"


def content(page: int, salt: int) -> bytes:
    """What a page is filled with."""
    return f"{page} {salt} ".encode().ljust(16, b"+") * (PAGE // 16)


def scribble(memory: GuestMemory, seed: int, runs: int = 60, longest: int = 40) -> None:
    """Write to runs of pages, short and long; one in four is zeros."""
    rng = random.Random(seed)
    for _ in range(runs):
        first = rng.randrange(PAGES)
        zero = rng.random() < 0.25
        for page in range(first, min(PAGES, first + rng.randrange(1, longest))):
            memory.ram[page * PAGE : (page + 1) * PAGE] = bytes(PAGE) if zero else content(page, seed)


def new_memory(seed: int = 1) -> GuestMemory:
    """Memory with something in it; its first and last page are not zero."""
    memory = GuestMemory(SIZE)
    scribble(memory, seed)
    for page in (0, PAGES - 1):
        memory.ram[page * PAGE : (page + 1) * PAGE] = content(page, seed)
    return memory


def copy_snapshots(source: Path, target: Path) -> Path:
    """Copy a directory; holes stay holes, so it is quick."""

    def copy_file(old: str, new: str) -> None:
        subprocess.run(["cp", "--sparse=always", old, new], check=True)

    shutil.copytree(source, target, copy_function=copy_file)
    return target


def tree(directory: Path, checksums: bool = False) -> dict[str, tuple[object, ...]]:
    """What is below a directory: which file, its size and modification time, perhaps its SHA-256."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        status = os.lstat(path)
        content = hashlib.sha256(path.read_bytes()).digest() if checksums and path.is_file() else b""
        name = path.relative_to(directory).as_posix()
        found[name] = status.st_ino, status.st_size, status.st_mtime_ns, content
    return found
