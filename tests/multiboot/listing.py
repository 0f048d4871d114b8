"""Kernels written as listings: every line has its address, its bytes, what they are, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["KERNELS", "START", "Line", "assemble", "read"]

HERE = Path(__file__).parent
KERNELS = tuple(sorted(path.stem for path in HERE.glob("*.lst")))
START = 0x10_0020                       # where each begins

LINE = re.compile(r'  ([0-9a-f]{6})  ((?:[0-9a-f]{2} )+) *((?:[^;"]|"[^"]*")+?) *(?:; (.*))?')


class Line(NamedTuple):
    """One line; `bits` is the kind of code that it is in, `text` an instruction, a string or "data"."""

    address: int
    data: bytes
    text: str
    bits: int


def read(name: str) -> Iterator[Line]:
    """The lines of a listing that stand for bytes.

    Raises:
        ValueError: one is neither that nor a comment, a label or a change of the code's width.
    """
    bits = 0
    for line in (HERE / f"{name}.lst").read_text().splitlines():
        if match := LINE.fullmatch(line):
            yield Line(int(match[1], 16), bytes.fromhex(match[2]), match[3], bits)
        elif match := re.fullmatch(r"\.code(16|32|64)", line):
            bits = int(match[1])
        elif line and not re.fullmatch(r";.*|\w+:(?:  ;.*)?", line):
            raise ValueError(f"{name}.lst: {line}")


def assemble(name: str) -> bytes:
    """The bytes from START on."""
    return b"".join(line.data for line in read(name))
