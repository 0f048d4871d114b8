"""A stop in the middle of an instruction has it done again from its start when the CPU goes on.

Expected: `inc dword ptr [device]` stores once, whatever stops come. Found: twice, and memory counts one too many.
Translated code looks for a stop after each load and store (check_exit_request), restores the state of the
instruction's beginning, and leaves. Here the store's own callback asks for the stop, so that it always happens; a stop
by another thread, or by `timeout=` of uc_emu_start, does the same to any instruction that reads and writes memory.
"""

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RIP

CODE, DEVICE = 0x1000, 0x10_0000
INC = b"\xff\x04\x25\x00\x00\x10\x00"           # inc dword ptr [DEVICE]

uc = Uc(UC_ARCH_X86, UC_MODE_64)
uc.mem_map(CODE, 0x1000)
uc.mem_write(CODE, INC)
stored = [0]


def write(uc, offset, size, value, data):
    stored.append(value)
    if len(stored) == 2:
        uc.emu_stop()


uc.mmio_map(DEVICE, 0x1000, lambda uc, offset, size, data: stored[-1], None, write, None)
uc.emu_start(CODE, CODE + len(INC))
print(f"stopped {uc.reg_read(UC_X86_REG_RIP) - CODE} bytes behind the start, after it has stored {stored[1:]}")
uc.emu_start(uc.reg_read(UC_X86_REG_RIP), CODE + len(INC))
print(f"stored by one INC: {stored[1:]}")
raise SystemExit(stored[1:] != [1, 2])
