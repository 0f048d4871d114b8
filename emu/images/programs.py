"""Programs of our own for guests, whose machine code is listed beside this module."""

from __future__ import annotations

import struct
from importlib import resources

from emu.cpu.thunks import assemble, listed_routines

__all__ = ["PROGRAMS", "listed_program"]

PROGRAMS = "renew", "vsock"

BASE = 0x40_0000
ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE = 64, 56
EXECUTABLE, X86_64, CURRENT = 2, 62, 1          # e_type, e_machine, e_version
LOADED, READ_EXECUTE = 1, 5                     # ELF: p_type, p_flags


def listed_program(name: str) -> bytes:
    """A statically linked ELF file (ELF-64 object file format, version 1.5).

    Args:
        name: one of PROGRAMS; NAME.lst has its only routine.
    """
    text = resources.files(__package__).joinpath(f"{name}.lst").read_text()
    (lines,) = listed_routines(text).values()
    code = assemble(lines, {})
    start = ELF_HEADER_SIZE + PROGRAM_HEADER_SIZE
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", EXECUTABLE, X86_64, CURRENT, BASE + start, ELF_HEADER_SIZE, 0, 0,
        ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE, 1, 0, 0, 0,
    )
    size = start + len(code)
    segment = struct.pack("<IIQQQQQQ", LOADED, READ_EXECUTE, 0, BASE, BASE, size, size, 0x1000)
    return header + segment + code
