"""Loading guest kernels: images, their compression, and the ways to start them."""

from __future__ import annotations

from devices.frozen import frozen

__all__ = ["BootState"]


@frozen
class BootState:
    """The registers a loaded kernel starts with: CS = 0x10, the data segments 0x18, all flat; interrupts are off.

    `rip` and `rsp` are what their names say; `gdt_base` and `cr3` are guest-physical addresses, `gdt_limit` the limit
    as LGDT takes it. With page tables the CPU is in long mode; without, `cr3` None, in 32-bit protected mode.
    """

    rip: int
    rsi: int
    rsp: int
    cr3: int | None
    gdt_base: int
    gdt_limit: int
    rax: int = 0
    rbx: int = 0
