"""Setting FS by uc_reg_write ends the host's process, if the guest's descriptor table is not in memory.

Expected: an error. Found: SIGSEGV. The API loads the segment as the guest would (load_segment), which reads the
descriptor table; a page fault there is raised as an exception of the guest's, by a longjmp to a place that exists only
while uc_emu_start runs. The table's address is the guest's to choose.
"""

import os
import signal
import struct

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import (
    UC_X86_REG_CR0,
    UC_X86_REG_CR3,
    UC_X86_REG_CR4,
    UC_X86_REG_FS,
    UC_X86_REG_GDTR,
)

PML4, PDPT, PD, LARGE, NOWHERE = 0x1000, 0x2000, 0x3000, 0x20_0000, 0x9000_0000


def set_fs():
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(0, LARGE)
    for table, entry in (PML4, PDPT | 3), (PDPT, PD | 3), (PD, 0x83):       # one 2 MiB page
        uc.mem_write(table, struct.pack("<Q", entry))
    uc.msr_write(0xC000_0080, 0x500)                # EFER: LME, LMA
    uc.reg_write(UC_X86_REG_CR3, PML4)
    uc.reg_write(UC_X86_REG_CR4, 0x20)              # PAE
    uc.reg_write(UC_X86_REG_CR0, 0x8000_0001)       # PG, PE
    uc.reg_write(UC_X86_REG_GDTR, (0, NOWHERE, 0x7F, 0))
    uc.reg_write(UC_X86_REG_FS, 0x10)


child = os.fork()
if child == 0:
    try:
        set_fs()
    finally:
        os._exit(0)
number = os.waitpid(child, 0)[1] & 0x7F
print("the process ended by", signal.Signals(number).name if number else "itself")
raise SystemExit(number == 0)
