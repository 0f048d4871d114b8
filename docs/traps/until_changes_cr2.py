"""uc_emu_start changes CR2 when it returns, if `until` is an address that no page has.

Expected: CR2 is the address of the last page fault. Found: it is `until` - 1. On the way out libunicorn looks for the
block at that address, and the page walk for it faults like the guest's own; the exception stays pending, too. With
uc_ctl's USE_EXITS, and no exits set, nothing is looked for.
"""

import struct

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_CR0, UC_X86_REG_CR2, UC_X86_REG_CR3, UC_X86_REG_CR4

PML4, PDPT, PD, CODE, LARGE = 0x1000, 0x2000, 0x3000, 0x4000, 0x20_0000
NOWHERE = 0x9000_0000


def cr2_after(use_exits):
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(0, LARGE)
    for table, entry in (PML4, PDPT | 3), (PDPT, PD | 3), (PD, 0x83):       # one 2 MiB page
        uc.mem_write(table, struct.pack("<Q", entry))
    uc.msr_write(0xC000_0080, 0x500)                # EFER: LME, LMA
    uc.reg_write(UC_X86_REG_CR3, PML4)
    uc.reg_write(UC_X86_REG_CR4, 0x20)              # PAE
    uc.reg_write(UC_X86_REG_CR0, 0x8000_0001)       # PG, PE
    uc.reg_write(UC_X86_REG_CR2, 0x1234)
    uc.mem_write(CODE, b"\xf4")                     # hlt
    uc.ctl_exits_enabled(use_exits)
    uc.emu_start(CODE, NOWHERE)
    return uc.reg_read(UC_X86_REG_CR2)


print(f"CR2 was 0x1234; after a HLT it is {cr2_after(False):#x}, with USE_EXITS {cr2_after(True):#x}")
raise SystemExit(cr2_after(False) == 0x1234)
