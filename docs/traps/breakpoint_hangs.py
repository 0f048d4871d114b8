"""A guest hangs the process by a hardware breakpoint in a code segment whose base is not 0.

Expected: #DB, vector 1. Found: uc_emu_start never returns; neither its timeout nor uc_emu_stop ends it.
breakpoint_handler looks for a guest's breakpoint at EIP, but QEMU keeps them by linear address. It finds none, so the
exception is taken for one of a debugger's, and the CPU starts again at the same place, for ever.
"""

import os
import signal
import struct
import time

from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MILISECOND_SCALE, UC_MODE_32, Uc
from unicorn.x86_const import UC_X86_REG_CR0, UC_X86_REG_GDTR

CODE, GDT, SIZE, BREAKPOINT, BASE = 0x1000, 0x2000, 0x4000, 0x1100, 0x1000
DESCRIPTORS = (
    0,
    0x00CF_9B00_0000_FFFF,                      # 0x08: code
    0x00CF_9300_0000_FFFF,                      # 0x10: data
    0x00CF_9B00_1000_FFFF,                      # 0x18: code with the base BASE
)
PATIENCE_S = 1.0


def program(selector, offset):
    return (
        b"\xb8" + struct.pack("<I", BREAKPOINT) + b"\x0f\x23\xc0"   # mov eax, BREAKPOINT; mov dr0, eax
        + b"\xb8\x01\x00\x00\x00\x0f\x23\xf8"                       # mov eax, 1; mov dr7, eax
        + b"\xea" + struct.pack("<IH", offset, selector)            # jmp selector:offset
    )


def run(code):
    uc = Uc(UC_ARCH_X86, UC_MODE_32)
    uc.mem_map(0, SIZE)
    uc.mem_write(GDT, struct.pack("<4Q", *DESCRIPTORS))
    uc.mem_write(CODE, code)
    uc.mem_write(BREAKPOINT, b"\x90\xf4")       # nop; hlt
    uc.reg_write(UC_X86_REG_GDTR, (0, GDT, 8 * len(DESCRIPTORS) - 1, 0))
    uc.reg_write(UC_X86_REG_CR0, 1)
    vectors = []
    uc.hook_add(UC_HOOK_INTR, lambda uc, vector, data: (vectors.append(vector), uc.emu_stop()))
    uc.emu_start(CODE, 0, timeout=100 * UC_MILISECOND_SCALE)
    return vectors


print("breakpoint in a segment with the base 0: exceptions", run(program(0x08, BREAKPOINT)))
child = os.fork()
if child == 0:
    try:
        run(program(0x18, BREAKPOINT - BASE))
    finally:
        os._exit(0)
time.sleep(PATIENCE_S)
hangs = os.waitpid(child, os.WNOHANG) == (0, 0)
if hangs:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(f"with the base {BASE:#x}: a run of 0.1 s still goes on after {PATIENCE_S:g} s: {hangs}")
raise SystemExit(not hangs)
