"""SYSENTER does nothing.

Expected (Intel SDM, volume 2, SYSENTER): with IA32_SYSENTER_CS 0, #GP; else the jump to IA32_SYSENTER_EIP. Found: the
program goes on behind it as if it were a NOP. helper_sysenter calls the hooks, and adds the length to a RIP that need
not be the instruction's.
"""

from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_32, Uc
from unicorn.x86_const import UC_X86_REG_EBX

CODE = 0x1000
PROGRAM = b"\x0f\x34" + b"\xb3\x01"             # sysenter; mov bl, 1

uc = Uc(UC_ARCH_X86, UC_MODE_32)
uc.mem_map(CODE, 0x1000)
uc.mem_write(CODE, PROGRAM)
vectors = []
uc.hook_add(UC_HOOK_INTR, lambda uc, vector, data: vectors.append(vector))
uc.emu_start(CODE, CODE + len(PROGRAM))
print(f"exceptions: {vectors}; what stands behind SYSENTER was done: {bool(uc.reg_read(UC_X86_REG_EBX))}")
raise SystemExit(vectors != [] or not uc.reg_read(UC_X86_REG_EBX))
