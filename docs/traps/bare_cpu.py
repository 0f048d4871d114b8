"""What a bare CPU does not do: Unicorn's design, and no fault of it, but all that a machine has to bring.

An exception of the guest is told to UC_HOOK_INTR, and not delivered through its descriptor table; without a hook the
run ends. An undefined instruction is told to another hook, and an address without memory to a third. SYSCALL does
nothing without a hook. What WRMSR writes is stored or forgotten, and no hook hears of it.
"""

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc, UcError

CODE = 0x1000
PROGRAMS = {
    "div by zero": b"\x31\xc9\xf7\xf1",                             # xor ecx, ecx; div ecx
    "int 0x80": b"\xcd\x80",
    "ud2": b"\x0f\x0b",
    "no memory": b"\x8b\x04\x25\x00\x00\x90\x00",                   # mov eax, [0x900000]
    "syscall": b"\x0f\x05",
    "wrmsr": b"\xb9\x10\x4d\x56\x4b\x0f\x30",                       # mov ecx, 0x4b564d10; wrmsr
}


def end_of(program):
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(CODE, 0x1000)
    uc.mem_write(CODE, program)
    try:
        uc.emu_start(CODE, CODE + len(program))
    except UcError as error:
        return str(error)
    return "nothing happens"


ends = {name: end_of(program) for name, program in PROGRAMS.items()}
for name, end in ends.items():
    print(f"{name}: {end}")
raise SystemExit("nothing happens" not in ends["syscall"])
