"""SYSCALL does nothing, and is passed over, while a stop is due and another instruction's hook is in the list before.

Expected: the hook for SYSCALL is called, or the run ends in front of the instruction. Found: RIP is behind it and
nobody was told. helper_syscall walks the list of UC_HOOK_INSN and leaves the loop at the first hook after which
stop_request is set, be it for SYSCALL or not; then it adds the instruction's length. Here the stop comes from a port's
callback, so that it always happens; with stops from another thread a program loses a system call in some thousands.
"""

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_INS_OUT, UC_X86_INS_SYSCALL, UC_X86_REG_RIP

CODE = 0x1000
PROGRAM = b"\xe6\x99" + b"\x0f\x05" + b"\x90"   # out 0x99, al; syscall; nop



def system_calls(first, second):
    """How many are seen, with hooks for these instructions in this order."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(CODE, 0x1000)
    uc.mem_write(CODE, PROGRAM)
    calls = []
    callbacks = {
        UC_X86_INS_OUT: lambda uc, port, size, value, data: uc.emu_stop(),
        UC_X86_INS_SYSCALL: lambda uc, data: calls.append(1),
    }
    for instruction in first, second:
        uc.hook_add(UC_HOOK_INSN, callbacks[instruction], None, 1, 0, instruction)
    uc.emu_start(CODE, CODE + len(PROGRAM))
    uc.emu_start(uc.reg_read(UC_X86_REG_RIP), CODE + len(PROGRAM))
    return len(calls)


print("SYSCALL hooked first, then OUT:", system_calls(UC_X86_INS_SYSCALL, UC_X86_INS_OUT))
print("OUT hooked first, then SYSCALL:", system_calls(UC_X86_INS_OUT, UC_X86_INS_SYSCALL))
raise SystemExit(system_calls(UC_X86_INS_OUT, UC_X86_INS_SYSCALL) != 0)
