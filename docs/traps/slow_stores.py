"""Stores are ten times as slow on a page that may be executed, and with any hook of memory.

Expected: a page costs something once code was translated from it, and a hook where it applies. Found: a page with the
right to execute stays on the slow path of stores (TLB_NOTDIRTY), whatever is in it; and with a hook of any
UC_HOOK_MEM_* kind, that for unmapped memory too, every store leaves translated code for a helper. Who wants to hear
of unmapped addresses maps them instead, by uc_mmio_map.
"""

import struct
import time

from unicorn import UC_ARCH_X86, UC_HOOK_MEM_UNMAPPED, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_CR0, UC_X86_REG_CR3, UC_X86_REG_CR4, UC_X86_REG_RCX

PML4, PDPT, PD, CODE, LARGE = 0x1000, 0x2000, 0x3000, 0x4000, 0x20_0000
DATA = LARGE + 0x6000
TURNS, ROUNDS, NO_EXECUTE = 300_000, 5, 1 << 63
LOOP = (b"\x89\x04\x25" + struct.pack("<I", DATA)) * 8 + b"\x48\xff\xc9\x75\xc3"    # mov [DATA], eax ...; dec rcx; jnz


def seconds(flags, hooked):
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(0, LARGE)
    for table, entries in (PML4, (PDPT | 3,)), (PDPT, (PD | 3,)), (PD, (0x83, 0x83 | flags)):   # 2 MiB pages, twice 0
        uc.mem_write(table, struct.pack(f"<{len(entries)}Q", *entries))
    uc.msr_write(0xC000_0080, 0xD00)                # EFER: LME, LMA, NXE
    uc.reg_write(UC_X86_REG_CR3, PML4)
    uc.reg_write(UC_X86_REG_CR4, 0x20)              # PAE
    uc.reg_write(UC_X86_REG_CR0, 0x8000_0001)       # PG, PE
    uc.mem_write(CODE, LOOP)
    if hooked:
        uc.hook_add(UC_HOOK_MEM_UNMAPPED, lambda *arguments: False)
    uc.reg_write(UC_X86_REG_RCX, TURNS)
    started = time.perf_counter()
    uc.emu_start(CODE, CODE + len(LOOP))
    return time.perf_counter() - started


def best(flags, hooked):
    return min(seconds(flags, hooked) for _ in range(ROUNDS))


quick = best(NO_EXECUTE, False)
executable, hooked = best(0, False) / quick, best(NO_EXECUTE, True) / quick
print(f"stores take {executable:.0f} times as long on an executable page, {hooked:.0f} times with a hook never called")
raise SystemExit(min(executable, hooked) < 2)
