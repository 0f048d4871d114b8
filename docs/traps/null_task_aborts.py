"""A guest that loads a null task register, and calls through a gate to a more privileged ring, aborts the process.

Expected (Intel SDM, volume 3, CALL and LTR): #GP, at LTR already. Found: SIGABRT. LTR takes selector 0, and
get_ss_esp_from_tss calls cpu_abort where there is no task segment; in long mode get_rsp_from_tss does so.
"""

import os
import signal
import struct

from unicorn import UC_ARCH_X86, UC_MODE_32, Uc
from unicorn.x86_const import UC_X86_REG_CR0, UC_X86_REG_ESP, UC_X86_REG_GDTR

CODE, GDT, STACK = 0x1000, 0x2000, 0x4000
DESCRIPTORS = (
    0,
    0x00CF_9B00_0000_FFFF,                      # 0x08: ring 0, code
    0x00CF_9300_0000_FFFF,                      # 0x10: ring 0, data
    0x00CF_FB00_0000_FFFF,                      # 0x1b: ring 3, code
    0x00CF_F300_0000_FFFF,                      # 0x23: ring 3, data
    0x0000_EC00_0008_1000,                      # 0x2b: a call gate for ring 3, to 0x08:CODE
)
PROGRAM = (
    b"\x31\xc0\x0f\x00\xd8"                                         # xor eax, eax; ltr ax
    + b"\x6a\x23" + b"\x68" + struct.pack("<I", STACK)              # push SS; push ESP
    + b"\x6a\x1b" + b"\x68" + struct.pack("<I", CODE + 20)          # push CS; push EIP
    + b"\xcb"                                                       # retf, to ring 3
    + b"\x9a\x00\x00\x00\x00\x2b\x00"                               # call 0x2b:0
)


def run():
    uc = Uc(UC_ARCH_X86, UC_MODE_32)
    uc.mem_map(0, STACK)
    uc.mem_write(GDT, struct.pack("<6Q", *DESCRIPTORS))
    uc.mem_write(CODE, PROGRAM)
    uc.reg_write(UC_X86_REG_GDTR, (0, GDT, 8 * len(DESCRIPTORS) - 1, 0))
    uc.reg_write(UC_X86_REG_CR0, 1)
    uc.reg_write(UC_X86_REG_ESP, STACK)
    uc.emu_start(CODE, CODE + len(PROGRAM))


child = os.fork()
if child == 0:
    try:
        os.close(2)                             # cpu_abort shows the CPU's registers there
        run()
    finally:
        os._exit(0)
number = os.waitpid(child, 0)[1] & 0x7F
print("the process ended by", signal.Signals(number).name if number else "itself")
raise SystemExit(number == 0)
