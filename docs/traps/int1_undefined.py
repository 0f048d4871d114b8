"""INT1 (0xf1, also called ICEBP) is an undefined instruction.

Expected (AMD64 manual, volume 3, INT1): #DB, vector 1. Found: UC_ERR_INSN_INVALID, and no exception.
"""

from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_64, Uc, UcError

CODE = 0x1000

uc = Uc(UC_ARCH_X86, UC_MODE_64)
uc.mem_map(CODE, 0x1000)
uc.mem_write(CODE, b"\xf1\x90")                 # int1; nop
vectors = []
uc.hook_add(UC_HOOK_INTR, lambda uc, vector, data: vectors.append(vector))
try:
    uc.emu_start(CODE, CODE + 2)
    error = "none"
except UcError as raised:
    error = str(raised)
print(f"exceptions: {vectors}, error: {error}")
raise SystemExit(vectors != [])
