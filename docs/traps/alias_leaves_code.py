"""Code that the guest rewrites through another, non-executable mapping of its page goes on as it was.

Expected: each call returns the number that was just stored into it. Found: 1 for ever. Kernels write programs' pages
that way: Linux maps all of memory a second time, without execution (its direct map), and a page that held one program
then holds another. The same with an executable alias, and with stores to the code's own address, is right. Stores are
noticed by virtual page: tlb_protect_code is empty, and the TLB entry of a page that is not executable is never marked
for tb_invalidate_phys_page_fast.
"""

import struct

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_INS_OUT, UC_X86_REG_CR0, UC_X86_REG_CR3, UC_X86_REG_CR4, UC_X86_REG_RSP

PML4, PDPT, PD, CODE, FUNCTION, STACK, LARGE = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x9000, 0x20_0000
NO_EXECUTE = 1 << 63
RETURN_0 = b"\xb8\x00\x00\x00\x00\xc3"          # mov eax, 0; ret


def loop(function):
    return (
        b"\xb9\x01\x00\x00\x00"                                     # mov ecx, 1
        b"\x89\x0c\x25" + struct.pack("<I", function + 1)           # again: mov [function + 1], ecx
        + b"\xb8" + struct.pack("<I", FUNCTION) + b"\xff\xd0"       # mov eax, FUNCTION; call rax
        + b"\xe7\x99"                                               # out 0x99, eax
        + b"\xff\xc1\x83\xf9\x04\x76\xe9"                           # inc ecx; cmp ecx, 4; jbe again
    )


def results(offset, flags):
    """What the calls return, if the function is written `offset` above its address, through a mapping with `flags`."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(0, LARGE)
    for table, entries in (PML4, (PDPT | 3,)), (PDPT, (PD | 3,)), (PD, (0x83, 0x83 | flags)):   # 2 MiB pages, twice 0
        uc.mem_write(table, struct.pack(f"<{len(entries)}Q", *entries))
    uc.msr_write(0xC000_0080, 0xD00)                                # EFER: LME, LMA, NXE
    uc.reg_write(UC_X86_REG_CR3, PML4)
    uc.reg_write(UC_X86_REG_CR4, 0x20)                              # PAE
    uc.reg_write(UC_X86_REG_CR0, 0x8000_0001)                       # PG, PE
    uc.reg_write(UC_X86_REG_RSP, STACK)
    uc.mem_write(FUNCTION, RETURN_0)
    program = loop(FUNCTION + offset)
    uc.mem_write(CODE, program)
    seen = []
    uc.hook_add(UC_HOOK_INSN, lambda uc, port, size, value, data: seen.append(value), None, 1, 0, UC_X86_INS_OUT)
    uc.emu_start(CODE, CODE + len(program))
    return seen


print("rewritten at its own address:", results(0, 0))
print("through an executable alias:", results(LARGE, 0))
print("through one that is not executable:", results(LARGE, NO_EXECUTE))
raise SystemExit(results(LARGE, NO_EXECUTE) == [1, 2, 3, 4])
