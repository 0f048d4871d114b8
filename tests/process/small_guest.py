"""A guest that takes no time to start: a multiboot kernel of a few instructions, which answers on its serial line."""

from __future__ import annotations

from pathlib import Path

from tests.multiboot.images import BASE, elf, header

__all__ = ["SPINNING", "WAITING", "small_kernel"]

READY = (                                   # say that it is there, and read no interrupts
    b"\x66\xba\xfc\x03\xb0\x03\xee"         # mov dx, 0x3fc; mov al, 3; out dx, al: DTR and RTS, go ahead
    b"\x66\xba\xf8\x03\xb0\x3e\xee"         # mov dx, 0x3f8; mov al, '>'; out dx, al
    b"\x31\xc9"                             # xor ecx, ecx
)
COUNTING = READY + (                        # answers each byte with how many there were, as a digit or what follows
    b"\x66\xba\xfd\x03"                     # mov dx, 0x3fd
    b"\xec\xa8\x01\x74\xfb"                 # in al, dx; test al, 1; jz to in
    b"\xb2\xf8\xec"                         # mov dl, 0xf8; in al, dx
    b"\x84\xc0\x74\x09"                     # test al, al; jz to the end
    b"\x41"                                 # inc ecx
    b"\x88\xc8\x04\x30\xee"                 # mov al, cl; add al, '0'; out dx, al
    b"\xeb\xe8"                             # jmp to mov dx, 0x3fd
    b"\xfa\xf4"                             # cli; hlt: the end of the machine
)
WAITING = READY + (                         # the same, and waits for interrupts between two looks
    b"\xfb\xf4"                             # sti; hlt
    b"\x66\xba\xfd\x03"                     # mov dx, 0x3fd
    b"\xec\xa8\x01\x74\xf5"                 # in al, dx; test al, 1; jz to sti
    b"\xb2\xf8\xec"                         # mov dl, 0xf8; in al, dx
    b"\x41"                                 # inc ecx
    b"\x88\xc8\x04\x30\xee"                 # mov al, cl; add al, '0'; out dx, al
    b"\xeb\xea"                             # jmp to sti
)
SPINNING = READY + b"\xeb\xfe"              # jmp to itself


def small_kernel(directory: Path, code: bytes = COUNTING) -> Path:
    """A file with such a kernel."""
    image = header().ljust(32, b"\0") + code
    path = directory / "kernel.elf"
    path.write_bytes(elf([(BASE, BASE, image, len(image))]))
    return path
