"""Loads the machine code of a listing into executable memory, its placeholders filled in, once a process.

`thunks.lst` is for x86-64 hosts, `thunks_aarch64.lst` for aarch64 ones.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping

from emu.cpu.abi import ffi, libc
from emu.errors import UnsupportedHost

LISTINGS = {"x86_64": "thunks.lst", "aarch64": "thunks_aarch64.lst"}       # by what os.uname calls the host
ALIGNMENT = 64                      # a cache line each
LONGEST = 16                        # bytes of a line, at most

_LINE = re.compile(r"  [0-9a-f]{3}  ((?:(?:[0-9a-f]{2}|<\w+:\d>) ?)+)")
_PLACEHOLDER = re.compile(r"<(\w+):(\d)>")


def read_listing(host: str | None = None) -> dict[str, list[str]]:
    """The routines for a kind of host, by default this one."""
    # importlib.resources would do the same, and take 5 ms to import
    listing = LISTINGS[host or os.uname().machine]
    with open(os.path.join(os.path.dirname(__file__), listing), encoding="ascii") as file:
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
    """The routines in executable memory, which lasts as long as the process: a late signal may still run one.

    Args:
        values: what each placeholder stands for; a routine's name stands for one that was listed before.
    """

    def __init__(self, values: Mapping[str, int]) -> None:
        listing = read_listing()
        most = sum(LONGEST * len(lines) + ALIGNMENT for lines in listing.values())
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS        # a process that was forked cannot change its parent's
        self._memory = mmap.mmap(-1, most, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        base = int(ffi.cast("uintptr_t", ffi.from_buffer(self._memory)))
        self.addresses: dict[str, int] = {}
        known, at = dict(values), 0
        for name, lines in listing.items():
            known[name] = self.addresses[name] = base + at
            code = assemble(lines, known)
            code += b"\xcc" * (-len(code) % ALIGNMENT)
            self._memory[at : at + len(code)] = code
            at += len(code)
        _make_executable(base, at)

    def __getitem__(self, name: str) -> int:
        """Host address of a routine."""
        return self.addresses[name]


def _make_executable(base: int, size: int) -> None:
    """Let written memory be run, and no more be written."""
    start = ffi.cast("void *", base)
    if libc.mprotect(start, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise UnsupportedHost("this system does not let memory be made executable")
    if os.uname().machine != "x86_64":          # whose caches agree without being told
        _synchronize_caches(base, size)


def _synchronize_caches(base: int, size: int) -> None:
    """Have instructions fetched as they were written (Arm ARM, B2.4.4)."""
    library = libc.dlopen(b"libgcc_s.so.1", os.RTLD_NOW)
    clear = libc.dlsym(library, b"__clear_cache") if library != ffi.NULL else ffi.NULL
    if clear == ffi.NULL:
        raise UnsupportedHost("libgcc_s.so.1 is missing, or has no __clear_cache")
    ffi.cast("void(*)(char *, char *)", clear)(ffi.cast("char *", base), ffi.cast("char *", base + size))
