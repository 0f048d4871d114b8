"""Unicorn packages that are not as they should be, for processes that are to find them first."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from elftools.elf.elffile import ELFFile

from emu.cpu.abi import library_path

LIBRARY = "unicorn/lib/libunicorn.so.2"
INSTALLED = Path(library_path())

Change = Callable[[bytearray], None]


def package(directory: Path, change: Change, version: str = "2.1.4") -> Path:
    """Put a copy of the installed package in a directory, its library changed.

    Args:
        directory: empty; to be named in PYTHONPATH.
        change: gets the library's bytes.
        version: what the package says it is.
    """
    (directory / LIBRARY).parent.mkdir(parents=True)
    (directory / "unicorn/__init__.py").touch()
    content = bytearray(INSTALLED.read_bytes())
    change(content)
    (directory / LIBRARY).write_bytes(content)
    notes = metadata.distribution("unicorn")._path      # type: ignore[attr-defined]  # PathDistribution's
    copy = directory / f"unicorn-{version}.dist-info"
    shutil.copytree(notes, copy)
    (copy / "METADATA").write_text(f"Metadata-Version: 2.1\nName: unicorn\nVersion: {version}\n")
    return directory


def nothing(content: bytearray) -> None:
    """Leave the library as it is."""


def instead(other: bytes) -> Change:
    """Another file in its place."""

    def change(content: bytearray) -> None:
        content[:] = other

    return change


def cut(share: float) -> Change:
    """Only the first part of the file."""

    def change(content: bytearray) -> None:
        del content[int(len(content) * share) :]

    return change


def symbol(name: str) -> int:
    """Where an exported function stands in the file."""
    with open(INSTALLED, "rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".gnu.hash")
        address = table.get_symbol(name)["st_value"]
        (offset,) = elf.address_offsets(address)
        return int(offset)


def in_function(name: str, code: bytes) -> Change:
    """Other machine code at the start of a function."""
    at = symbol(name)

    def change(content: bytearray) -> None:
        content[at : at + len(code)] = code

    return change


def in_section(name: str, word: int) -> Change:
    """A section's 64-bit words all of one value."""
    with open(INSTALLED, "rb") as file:
        section = ELFFile(file).get_section_by_name(name)
        start, size = section["sh_offset"], section["sh_size"]

    def change(content: bytearray) -> None:
        content[start : start + size // 8 * 8] = struct.pack("<Q", word) * (size // 8)

    return change


def other_build_id(content: bytearray) -> None:
    """A build that nobody knows."""
    with open(INSTALLED, "rb") as file:
        section = ELFFile(file).get_section_by_name(".note.gnu.build-id")
        content[section["sh_offset"] + section["sh_size"] - 1] ^= 0xFF
