"""Loads the machine code of `thunks.lst` into executable memory, its placeholders filled in, once a process."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping

from emu.cpu.abi import ffi

LISTING = "thunks.lst"
ALIGNMENT = 64                      # a cache line each

_LINE = re.compile(r"  [0-9a-f]{3}  ((?:(?:[0-9a-f]{2}|<\w+:\d>) ?)+)")
_PLACEHOLDER = re.compile(r"<(\w+):(\d)>")


def read_listing() -> dict[str, list[str]]:
    """The routines of `thunks.lst`."""
    # importlib.resources would do the same, and take 5 ms to import
    with open(os.path.join(os.path.dirname(__file__), LISTING), encoding="ascii") as file:
        return listed_routines(file.read())


def listed_routines(text: str) -> dict[str, list[str]]:
    """A listing's instruction lines by routine, in order."""
    routines: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("["):
            lines = routines[line.strip("[]")] = []
        elif line.startswith("  "):
            lines.append(line)
    return routines


def assemble(lines: list[str], values: Mapping[str, int]) -> bytes:
    """Machine code of one routine.

    Args:
        lines: its lines in the listing.
        values: what each placeholder stands for.
    """

    def filled_in(placeholder: re.Match[str]) -> str:
        size = int(placeholder[2])
        return (values[placeholder[1]] & (1 << 8 * size) - 1).to_bytes(size, "little").hex()

    code = []
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"not a line of machine code: {line}")
        code.append(_PLACEHOLDER.sub(filled_in, match[1]) if "<" in match[1] else match[1])
    return bytes.fromhex("".join(code))


class Thunks:
    """The routines in executable memory, which lasts as long as the process: a late signal may still run one."""

    def __init__(self, values: Mapping[str, int]) -> None:
        code = bytearray()
        starts: dict[str, int] = {}
        for name, lines in read_listing().items():
            starts[name] = len(code)
            code += assemble(lines, values)
            code += b"\xcc" * (-len(code) % ALIGNMENT)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS        # a process that was forked cannot change its parent's
        rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._memory = mmap.mmap(-1, len(code), flags=flags, prot=rights)
        self._memory[: len(code)] = bytes(code)
        base = int(ffi.cast("uintptr_t", ffi.from_buffer(self._memory)))
        self.addresses = {name: base + start for name, start in starts.items()}

    def __getitem__(self, name: str) -> int:
        """Host address of a routine."""
        return self.addresses[name]
