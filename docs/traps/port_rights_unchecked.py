"""A program in ring 3 reaches any port.

Expected (Intel SDM, volume 1, I/O Privilege Level): with CPL 3, IOPL 0 and no permission map in the TSS, OUT is #GP.
Found: the hook for OUT is called as for the kernel.
"""

import struct

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INTR, UC_MODE_32, Uc
from unicorn.x86_const import UC_X86_INS_OUT, UC_X86_REG_CR0, UC_X86_REG_CS, UC_X86_REG_ESP, UC_X86_REG_GDTR

CODE, GDT, STACK = 0x1000, 0x2000, 0x4000
DESCRIPTORS = (
    0,
    0x00CF_9B00_0000_FFFF,                      # 0x08: ring 0, code
    0x00CF_9300_0000_FFFF,                      # 0x10: ring 0, data
    0x00CF_FB00_0000_FFFF,                      # 0x1b: ring 3, code
    0x00CF_F300_0000_FFFF,                      # 0x23: ring 3, data
)
PROGRAM = (
    b"\x6a\x23" + b"\x68" + struct.pack("<I", STACK)                # push SS; push ESP
    + b"\x6a\x1b" + b"\x68" + struct.pack("<I", CODE + 15)          # push CS; push EIP
    + b"\xcb"                                                       # retf, to ring 3
    + b"\xe6\x99"                                                   # out 0x99, al
)

uc = Uc(UC_ARCH_X86, UC_MODE_32)
uc.mem_map(0, STACK)
uc.mem_write(GDT, struct.pack("<5Q", *DESCRIPTORS))
uc.mem_write(CODE, PROGRAM)
uc.reg_write(UC_X86_REG_GDTR, (0, GDT, 8 * len(DESCRIPTORS) - 1, 0))
uc.reg_write(UC_X86_REG_CR0, 1)
uc.reg_write(UC_X86_REG_ESP, STACK)
ports, vectors = [], []


def out(uc, port, size, value, data):
    ports.append((hex(port), f"ring {uc.reg_read(UC_X86_REG_CS) & 3}"))


uc.hook_add(UC_HOOK_INSN, out, None, 1, 0, UC_X86_INS_OUT)
uc.hook_add(UC_HOOK_INTR, lambda uc, vector, data: vectors.append(vector))
uc.emu_start(CODE, CODE + len(PROGRAM))
print(f"exceptions: {vectors}, ports written: {ports}")
raise SystemExit(vectors != [] or ports == [])
