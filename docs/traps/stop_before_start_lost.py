"""A stop that comes just before uc_emu_start is lost.

Expected, by whoever stops from a timer or another thread: the run ends at once. Found: it goes on, since uc_emu_start
begins with clearing the request. A caller cannot close this window; it has to repeat the stop until the run ends.
"""

from unicorn import UC_ARCH_X86, UC_MILISECOND_SCALE, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RCX

CODE = 0x1000

uc = Uc(UC_ARCH_X86, UC_MODE_64)
uc.mem_map(CODE, 0x1000)
uc.mem_write(CODE, b"\x48\xff\xc1\xeb\xfb")     # again: inc rcx; jmp again
uc.emu_stop()
uc.emu_start(CODE, 0, timeout=20 * UC_MILISECOND_SCALE)
print(f"the loop ran: {uc.reg_read(UC_X86_REG_RCX) > 0}")
raise SystemExit(uc.reg_read(UC_X86_REG_RCX) == 0)
