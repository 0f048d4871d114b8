"""Loading guest kernels: images, their compression, and the ways to start them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BootState"]


@dataclass(frozen=True)
class BootState:
    """The registers a loaded kernel starts with: long mode, paging on, CS = 0x10, DS = ES = SS = 0x18, all flat.

    `cr3`, `gdt_base`, `rsi` and `rsp` are guest-physical addresses; `gdt_limit` is the limit as LGDT takes it.
    """

    rip: int
    rsi: int
    rsp: int
    cr3: int
    gdt_base: int
    gdt_limit: int
