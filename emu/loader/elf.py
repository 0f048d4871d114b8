"""The segments and the physical entry point of an ELF kernel (ELF-64 object file format 1.5; ELF 1.2 for 32 bits)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

from emu.errors import BadImage

__all__ = ["ELF_MAGIC", "ElfKernel", "Segment", "parse_elf"]

ELF_MAGIC = b"\x7fELF"
PHYSICAL_LIMIT = 1 << 52  # the architecture's; whether the machine has memory there is for the loader to say


class Segment(NamedTuple):
    """Bytes to put at guest-physical `address`; from their end to `address + size` memory is zero."""

    address: int
    data: memoryview
    size: int


class ElfKernel(NamedTuple):
    """Segments in order of address, and the guest-physical address to start at."""

    segments: list[Segment]
    entry: int


def parse_elf(image: bytes | memoryview, what: str, widths: Sequence[int] = (64,)) -> ElfKernel:
    """Read the loadable segments of an x86 ELF executable.

    Args:
        image: the whole file.
        what: names the input in error messages.
        widths: which executables can be started: 64-bit ones, or 32-bit ones too.

    Raises:
        BadImage: not ELF, for another processor, or its program headers make no sense.
    """
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    try:
        # BytesIO shares a bytes object: the image is not copied.
        elf = ELFFile(BytesIO(image))
        _check_machine(elf, what, widths)
        headers = [elf.get_segment(number).header for number in range(elf.num_segments())]
        fields = ("p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz")
        loads = [
            {field: int(header[field]) for field in fields}
            for header in headers
            if header["p_type"] == "PT_LOAD" and header["p_memsz"]
        ]
        entry = int(elf["e_entry"])
    except (ELFError, ConstructError, ValueError, KeyError, AttributeError, TypeError, OverflowError, MemoryError):
        raise BadImage(f"{what} is a damaged ELF file") from None
    return ElfKernel(_segments(loads, memoryview(image), what), _physical_entry(entry, loads, what))


def _check_machine(elf: object, what: str, widths: Sequence[int]) -> None:
    machine, width = elf["e_machine"], elf.elfclass  # type: ignore[index, attr-defined]
    if (machine == "EM_386" or width == 32) and 32 not in widths:
        raise BadImage(f"{what} is a 32-bit kernel; this machine starts 64-bit ones")
    if (machine, width) not in (("EM_386", 32), ("EM_X86_64", 64)):
        name = str(machine).removeprefix("EM_").lower()
        raise BadImage(f"{what} is a kernel for another processor ({name}); this machine is x86-64")
    if elf["e_type"] not in ("ET_EXEC", "ET_DYN"):  # type: ignore[index]
        raise BadImage(f"{what} is an ELF file that cannot be started (neither executable nor shared)")


def _segments(loads: list[dict[str, int]], image: memoryview, what: str) -> list[Segment]:
    if not loads:
        raise BadImage(f"{what} is an ELF file without loadable segments")
    segments: list[Segment] = []
    for load in sorted(loads, key=lambda header: header["p_paddr"]):
        offset, stored, size, address = load["p_offset"], load["p_filesz"], load["p_memsz"], load["p_paddr"]
        if offset + stored > len(image):
            raise BadImage(f"{what} is truncated: a segment lies past its end")
        if stored > size or address + size > PHYSICAL_LIMIT:
            raise BadImage(f"{what} has a segment of impossible size or place ({size:#x} bytes at {address:#x})")
        if segments and address < segments[-1].address + segments[-1].size:
            raise BadImage(f"{what} has segments that overlap at {address:#x}")
        segments.append(Segment(address, image[offset : offset + stored], size))
    return segments


def _physical_entry(entry: int, loads: list[dict[str, int]], what: str) -> int:
    """Linux gives e_entry as a physical address (vmlinux.lds.S, phys_startup_64); other kernels a virtual one."""
    for load in loads:
        if load["p_paddr"] <= entry < load["p_paddr"] + load["p_memsz"]:
            return entry
    for load in loads:
        if load["p_vaddr"] <= entry < load["p_vaddr"] + load["p_memsz"]:
            return entry - load["p_vaddr"] + load["p_paddr"]
    raise BadImage(f"{what} has its entry point {entry:#x} outside its segments")
