"""Guest code as text (Capstone), around the place where the CPU is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from devices import OutsideMemory
from devices.frozen import frozen
from emu.cpu.registers import Registers
from hypercalls.dispatch import format_registers

__all__ = ["Instruction", "around", "describe", "disassemble", "linear_rip", "listing"]

PAGE_SIZE = 4096
ADDRESS_MAX = 1 << 64
LONGEST = 15                            # bytes of an instruction
BEFORE, AFTER = 6, 6                    # instructions shown beside the current one
NO_INSTRUCTION = ".byte"                # Capstone's word for bytes that are none

Read = Callable[[int, int], bytes]
"""(virtual address, size) -> bytes; OutsideMemory for what cannot be read."""


@frozen
class Instruction:
    """One instruction, or a byte that is none.

    Attributes:
        address: of its first byte.
        code: its bytes.
        text: mnemonic and operands, in Intel's syntax.
    """

    address: int
    code: bytes
    text: str


def linear_rip(registers: Registers) -> int:
    """Virtual address of the next instruction: RIP behind the base of CS, which 64-bit code has none of."""
    base = 0 if registers.code_bits == 64 else registers.segment("cs")[1]
    return base + registers.rip


def disassemble(code: bytes, address: int, bits: int = 64) -> list[Instruction]:
    """The instructions in some bytes, one after the other; a byte that begins none is listed alone.

    Args:
        code: the bytes.
        address: of the first one.
        bits: 16, 32 or 64.
    """
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    engine = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    engine.skipdata = True
    return [
        Instruction(at, code[at - address : at - address + size], f"{mnemonic} {operands}".rstrip())
        for at, size, mnemonic, operands in engine.disasm_lite(code, address)
    ]


def around(read: Read, address: int, bits: int, code: range | None = None) -> list[Instruction]:
    """The instruction at an address, and some before and behind it; none if it cannot be read.

    x86 code can be read in one direction only. Where it begins is guessed, if nobody knows: so that the instructions
    fit and end where the current one begins.

    Args:
        read: gives guest memory.
        address: virtual.
        bits: 16, 32 or 64.
        code: where the code is, if that is known.
    """
    first, last = (code.start, code.stop) if code else (0, ADDRESS_MAX)
    behind = _read_some(read, address, min(LONGEST * (AFTER + 1), last - address))
    is_known = code is not None and address - first <= PAGE_SIZE
    before = _read_before(read, address, min(PAGE_SIZE if is_known else LONGEST * BEFORE, address - first))
    shown: list[Instruction] = []
    for skip in range(1 if is_known else len(before)):
        shown = disassemble(before[skip:], address - len(before) + skip, bits)
        if not any(one.text.startswith(NO_INSTRUCTION) for one in shown):
            break
    return shown[-BEFORE:] + disassemble(behind, address, bits)[: AFTER + 1]


def _read_some(read: Read, address: int, size: int) -> bytes:
    """As much of that as can be read, to the end of its page at least."""
    for length in (size, min(size, PAGE_SIZE - address % PAGE_SIZE)):
        try:
            return read(address, length)
        except OutsideMemory:
            continue
    return b""


def _read_before(read: Read, address: int, size: int) -> bytes:
    """What ends at an address, from its page's start at least."""
    for length in (size, min(size, address % PAGE_SIZE)):
        try:
            return read(address - length, length)
        except OutsideMemory:
            continue
    return b""


def listing(instructions: list[Instruction], address: int) -> str:
    """Instructions as text: addresses, bytes, mnemonics; an arrow marks the one at `address`."""
    width = max((len(one.code.hex(" ")) for one in instructions), default=0)
    return "\n".join(
        f"{'=>' if one.address == address else '  '} {one.address:#x}  {one.code.hex(' '):<{width}}  {one.text}"
        for one in instructions
    )


def describe(registers: Mapping[str, int], read: Read, address: int, bits: int, code: range | None = None) -> str:
    """Where a CPU is, for a report: its registers, and the code there.

    Args:
        registers: by name.
        read, address, bits, code: see `around`.
    """
    text = listing(around(read, address, bits, code), address) or f"there is no memory at {address:#x}"
    return f"{format_registers(registers)}\n\n{text}"
