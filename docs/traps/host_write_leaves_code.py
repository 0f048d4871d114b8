"""uc_mem_write leaves translated code in place: what runs is what was there before.

Expected: the second call returns 2. Found: 1, until uc_ctl_remove_cache is called for the range; Unicorn's FAQ tells of
it. A device model meets this with each file that a guest reads into a page in which another program was.
"""

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_INS_OUT, UC_X86_REG_RSP

CODE, FUNCTION, STACK = 0x1000, 0x3000, 0x5000
RETURN_1 = b"\xb8\x01\x00\x00\x00\xc3"          # mov eax, 1; ret
CALL_TWICE = (
    b"\xe8\xfb\x1f\x00\x00"                     # call FUNCTION
    b"\xe7\x99"                                 # out 0x99, eax; the host rewrites the function
    b"\xe8\xf4\x1f\x00\x00"                     # call FUNCTION
    b"\xe7\x99"                                 # out 0x99, eax; the host drops the code
    b"\xe8\xed\x1f\x00\x00"                     # call FUNCTION
    b"\xe7\x99"                                 # out 0x99, eax
)

results = []


def out(uc, port, size, value, data):
    results.append(value)
    uc.mem_write(FUNCTION + 1, b"\x02")
    if len(results) == 2:
        uc.ctl_remove_cache(FUNCTION, FUNCTION + len(RETURN_1))


uc = Uc(UC_ARCH_X86, UC_MODE_64)
uc.mem_map(CODE, STACK - CODE)
uc.mem_write(CODE, CALL_TWICE)
uc.mem_write(FUNCTION, RETURN_1)
uc.reg_write(UC_X86_REG_RSP, STACK)
uc.hook_add(UC_HOOK_INSN, out, None, 1, 0, UC_X86_INS_OUT)
uc.emu_start(CODE, CODE + len(CALL_TWICE))
print(f"returned before the write, after it, after ctl_remove_cache: {results}")
raise SystemExit(results != [1, 1, 2])
