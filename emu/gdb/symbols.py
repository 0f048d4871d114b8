"""A file of a kernel's symbols for gdb, made of what the kernel itself tells: /proc/kallsyms, or its System.map.

Distributions' kernels come without debug information. With this file gdb knows the names of functions and variables,
not their types.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from devices.frozen import frozen
from emu.errors import EmuError, GuestError

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["Symbol", "kernel_symbols", "read_symbols", "write_symbols"]

KALLSYMS = "/proc/kallsyms"
LINE = re.compile(rb"([0-9a-f]{1,16}) ([A-Za-z?]) ([^\s\0]+)(?:[ \t]+\[(\w+)\])?[ \t]*\r?")
CODE = frozenset("tTwWiI")              # nm's letters: text, weak ones, indirect functions
GLOBAL, WEAK = "ABCDGRST", "vVwW"
MOST = 2_000_000                        # symbols
GAP = 1 << 20                           # no section goes on over more nothing than this

# ELF (System V ABI, chapter 4): of header, section header and symbol
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
IDENTITY = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
ET_EXEC, EM_X86_64, EV_CURRENT = 2, 62, 1
SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS = 2, 3, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_OBJECT, STT_FUNC = 1, 2
LAST_SECTION = 0xFEFF                   # below SHN_LORESERVE


@frozen
class Symbol:
    """A name for an address.

    Attributes:
        kind: nm's letter.
    """

    address: int
    kind: str
    name: str

    @property
    def is_code(self) -> bool:
        """Whether it is a function's."""
        return self.kind in CODE


def read_symbols(text: bytes) -> list[Symbol]:
    """Symbols of a listing: a line each of address, letter, name, and perhaps a module in brackets.

    Raises:
        EmuError: it is no such listing, or one whose addresses are hidden.
    """
    found = []
    for number, line in enumerate(text.split(b"\n"), start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None or number > MOST:
            raise EmuError(f"line {number} is no symbol: {line[:60]!r}")
        found.append(Symbol(int(match[1], 16), match[2].decode(), match[3].decode(errors="replace")))
    if not any(symbol.address for symbol in found):
        raise EmuError("it has no addresses: a kernel shows them to root only, and only if kptr_restrict is not 2")
    return found


def kernel_symbols(machine: Machine) -> list[Symbol]:
    """The symbols of a running guest's kernel and of its modules.

    Raises:
        GuestError: the guest cannot tell.
    """
    done = machine.run(["cat", KALLSYMS], timeout=120)
    if done.status:
        raise GuestError(f"{KALLSYMS} cannot be read in the guest: {done.stderr.strip()}")
    try:
        return read_symbols(done.stdout_bytes)
    except EmuError as error:
        raise GuestError(f"{KALLSYMS}: {error}") from None


def write_symbols(path: str | os.PathLike[str], symbols: Iterable[Symbol]) -> None:
    """Write an ELF file of symbols and of nothing else: gdb's `file` or `symbol-file` takes it.

    Where functions and variables take turns more than 65,000 times, what is behind is left out.

    Raises:
        OSError: it cannot be written.
    """
    ordered = sorted(symbols, key=lambda symbol: symbol.address)
    runs = list(_runs(ordered))[: LAST_SECTION - 4]
    names, table, strings = [b""], [SYMBOL.pack(0, 0, 0, 0, 0, 0)], bytearray(b"\0")
    local: list[bytes] = []
    shared: list[bytes] = []
    for index, (run, end) in enumerate(runs, start=1):
        names.append(b".text%d" % index if run[0].is_code else b".data%d" % index)
        ends = [symbol.address for symbol in run[1:]] + [end]
        for symbol, after in zip(run, ends, strict=True):
            binding = STB_WEAK if symbol.kind in WEAK else STB_GLOBAL if symbol.kind in GLOBAL else STB_LOCAL
            info = binding << 4 | (STT_FUNC if symbol.is_code else STT_OBJECT)
            entry = SYMBOL.pack(len(strings), info, 0, index, symbol.address, after - symbol.address)
            (local if binding == STB_LOCAL else shared).append(entry)
            strings += symbol.name.encode() + b"\0"
    Path(path).write_bytes(_file(runs, names, table + local, shared, bytes(strings)))


def _runs(ordered: list[Symbol]) -> Iterator[tuple[list[Symbol], int]]:
    """Symbols that are all functions, or all not, and where the last of them may end."""
    run: list[Symbol] = []
    for symbol in ordered:
        if run and (symbol.is_code != run[0].is_code or symbol.address - run[-1].address > GAP):
            yield run, min(symbol.address, run[-1].address + GAP)
            run = []
        run.append(symbol)
    if run:
        yield run, run[-1].address + GAP


def _file(
    runs: list[tuple[list[Symbol], int]], names: list[bytes], local: list[bytes], shared: list[bytes], strings: bytes
) -> bytes:
    """The parts in their order: header, symbols, names of symbols, names of sections, section headers."""
    names = [*names, b".symtab", b".strtab", b".shstrtab"]
    section_names = b"\0".join(names) + b"\0"
    place = {name: section_names.index(b"\0" + name + b"\0") + 1 for name in names[1:]}
    symbols = b"".join((*local, *shared))
    at = HEADER.size
    headers = [bytes(SECTION.size)]
    for name, (run, end) in zip(names[1:], runs, strict=False):
        flags = SHF_ALLOC | (SHF_EXECINSTR if run[0].is_code else SHF_WRITE)
        start = run[0].address
        headers.append(SECTION.pack(place[name], SHT_NOBITS, flags, start, at, end - start, 0, 0, 1, 0))
    string_table = len(headers) + 1
    for name, kind, data, link, info, entry in (
        (b".symtab", SHT_SYMTAB, symbols, string_table, len(local), SYMBOL.size),
        (b".strtab", SHT_STRTAB, strings, 0, 0, 0),
        (b".shstrtab", SHT_STRTAB, section_names, 0, 0, 0),
    ):
        headers.append(SECTION.pack(place[name], kind, 0, 0, at, len(data), link, info, 8 if entry else 1, entry))
        at += len(data)
    header = HEADER.pack(
        IDENTITY, ET_EXEC, EM_X86_64, EV_CURRENT, 0, 0, at, 0, HEADER.size, 0, 0, SECTION.size, len(headers),
        len(headers) - 1,
    )  # fmt: skip
    return b"".join((header, symbols, strings, section_names, *headers))
