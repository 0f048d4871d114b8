"""PUSHF stores the resume flag.

Expected (Intel SDM, volume 2, PUSHF): RF and VM are clear in the image on the stack. Found: RF is as it is in RFLAGS.
helper_read_eflags returns what cpu_compute_eflags gives, while IRET and the exceptions need RF and PUSHF does not.
"""

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RAX, UC_X86_REG_RFLAGS, UC_X86_REG_RSP

CODE, RF = 0x1000, 1 << 16

uc = Uc(UC_ARCH_X86, UC_MODE_64)
uc.mem_map(CODE, 0x2000)
uc.mem_write(CODE, b"\x9c\x58")                 # pushfq; pop rax
uc.reg_write(UC_X86_REG_RSP, CODE + 0x2000)
uc.reg_write(UC_X86_REG_RFLAGS, RF | 2)
uc.emu_start(CODE, CODE + 2)
print(f"PUSHF stored {uc.reg_read(UC_X86_REG_RAX):#x}")
raise SystemExit(not uc.reg_read(UC_X86_REG_RAX) & RF)
