"""The smallest Linux programs: statically linked ELF files of a few instructions, in 64 and in 32 bits."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from emu.machine import Machine

EXECUTABLE, I386, X86_64 = 2, 3, 62     # ELF: e_type, e_machine
LOAD, READ_EXECUTE = 1, 5               # ELF: p_type, p_flags
BASE = {64: 0x400000, 32: 0x8048000}
CODE = {64: BASE[64] + 64 + 56, 32: BASE[32] + 52 + 32}     # behind the two headers
DATA_OFFSET = 0x200


@dataclass(frozen=True)
class Program:
    """A program.

    Args:
        bits: 64 or 32.
        listing: a line for each instruction: its bytes, two blanks or more, its text, and `;` with a reason.
        data: what lies at `DATA_OFFSET` behind the base; read-only.
    """

    bits: int
    listing: str
    data: bytes = b""

    def lines(self) -> list[tuple[bytes, str]]:
        """Bytes and text of each instruction."""
        found = [re.split(r"  +", line.partition(";")[0].strip(), maxsplit=1) for line in self.listing.splitlines()]
        return [(bytes.fromhex(pair[0]), pair[1]) for pair in found if len(pair) == 2]

    @property
    def code(self) -> bytes:
        """The instructions, which start at CODE[bits]."""
        return b"".join(code for code, _ in self.lines())

    @property
    def elf(self) -> bytes:
        """The file: one segment that holds all of it, headers too (ELF-64 object file format; System V ABI)."""
        wide = self.bits == 64
        ident = struct.pack("<4s5B7x", b"\x7fELF", 2 if wide else 1, 1, 1, 0, 0)
        base, entry = BASE[self.bits], CODE[self.bits]
        size = DATA_OFFSET + len(self.data)
        if wide:
            header = struct.pack("<HHIQQQI6H", EXECUTABLE, X86_64, 1, entry, 64, 0, 0, 64, 56, 1, 64, 0, 0)
            segment = struct.pack("<IIQQQQQQ", LOAD, READ_EXECUTE, 0, base, base, size, size, 4096)
        else:
            header = struct.pack("<HHIIIII6H", EXECUTABLE, I386, 1, entry, 52, 0, 0, 52, 32, 1, 40, 0, 0)
            segment = struct.pack("<8I", LOAD, 0, base, base, size, size, READ_EXECUTE, 4096)
        return (ident + header + segment + self.code).ljust(DATA_OFFSET, b"\0") + self.data

    def install(self, machine: Machine, path: str) -> None:
        """Put it into a guest, executable."""
        machine.run(f"cat >{path}; chmod 755 {path}", input=self.elf, check=True, timeout=60)


ILLEGAL = Program(64, """
    90                        nop
    0f 0b                     ud2
""")

NULL_POINTER = Program(64, """
    90                        nop
    31 c0                     xor eax, eax
    8b 40 08                  mov eax, dword ptr [rax + 8]
""")

DIVIDE = Program(64, """
    90                        nop
    31 c9                     xor ecx, ecx
    f7 f1                     div ecx
""")

BREAKPOINT = Program(64, """
    90                        nop
    cc                        int3
    0f 0b                     ud2                   ; SIGTRAP has ended it
""")

HANDLER, RESTORER = 0x40009E, 0x4000A7
SA_SIGINFO, SA_RESTORER = 4, 0x0400_0000
SURVIVOR = Program(64, """
    6a 04                     push 4                ; SIGILL
    5f                        pop rdi
    be 00 02 40 00            mov esi, 0x400200     ; struct sigaction
    31 d2                     xor edx, edx
    6a 08                     push 8                ; bytes of a signal mask
    41 5a                     pop r10
    6a 0d                     push 0xd              ; rt_sigaction
    58                        pop rax
    0f 05                     syscall
    bb e8 03 00 00            mov ebx, 0x3e8
    0f 0b                     ud2                   ; 0x400090; a thousand times
    ff cb                     dec ebx
    75 fa                     jne 0x400090
    6a 2a                     push 0x2a
    5f                        pop rdi
    6a 3c                     push 0x3c             ; exit(42)
    58                        pop rax
    0f 05                     syscall
    48 83 82 a8 00 00 00 02   add qword ptr [rdx + 0xa8], 2     ; HANDLER: RIP in the ucontext, behind the ud2
    c3                        ret
    6a 0f                     push 0xf              ; RESTORER: rt_sigreturn
    58                        pop rax
    0f 05                     syscall
""", struct.pack("<4Q", HANDLER, SA_SIGINFO | SA_RESTORER, RESTORER, 0))
"""Goes on behind an undefined instruction, by a signal handler."""

INT_80 = Program(32, """
    6a 04                     push 4                ; write
    58                        pop eax
    6a 01                     push 1
    5b                        pop ebx
    b9 00 82 04 08            mov ecx, 0x8048200    ; the data
    6a 0e                     push 0xe              ; 14 bytes
    5a                        pop edx
    cd 80                     int 0x80
    6a 01                     push 1                ; exit(42)
    58                        pop eax
    6a 2a                     push 0x2a
    5b                        pop ebx
    cd 80                     int 0x80
""", b"from int 0x80\n")

# The kernel leaves a 32-bit SYSCALL through the vDSO, whose code pops EBP, EDX and ECX and returns (Linux,
# arch/x86/entry/vdso/vdso32/system_call.S): the caller has to look like that code's own beginning.
SYSCALL_32 = Program(32, """
    6a 04                     push 4                ; write
    58                        pop eax
    6a 01                     push 1
    5b                        pop ebx
    b9 00 82 04 08            mov ecx, 0x8048200    ; the data
    6a 0d                     push 0xd              ; 13 bytes
    5a                        pop edx
    e8 0b 00 00 00            call 0x8048072
    6a 01                     push 1                ; exit(42)
    58                        pop eax
    6a 2a                     push 0x2a
    5b                        pop ebx
    e8 00 00 00 00            call 0x8048072
    51                        push ecx              ; 0x8048072
    52                        push edx
    55                        push ebp
    89 cd                     mov ebp, ecx          ; SYSCALL overwrites ECX
    0f 05                     syscall
    0f 0b                     ud2                   ; it returns to the vDSO
""", b"from SYSCALL\n")

CONTROL_BYTES = 8 << 20
WARNER = Program(64, """
    6a 02                     push 2                ; AF_INET
    5f                        pop rdi
    6a 02                     push 2                ; SOCK_DGRAM
    5e                        pop rsi
    31 d2                     xor edx, edx
    6a 29                     push 0x29             ; socket
    58                        pop rax
    0f 05                     syscall
    89 c7                     mov edi, eax
    be 00 02 40 00            mov esi, 0x400200     ; struct msghdr
    31 d2                     xor edx, edx
    6a 2e                     push 0x2e             ; sendmsg
    58                        pop rax
    0f 05                     syscall
    89 c7                     mov edi, eax
    f7 df                     neg edi
    6a 3c                     push 0x3c             ; exit(errno)
    58                        pop rax
    0f 05                     syscall
""", struct.pack("<7Q", 0, 0, 0, 0, 0, CONTROL_BYTES, 0))
"""Makes the kernel allocate more in one piece than it ever can, which it finds worth a warning."""

COUNTING_LOOP, COUNTING_TURNS = CODE[64] + 7, 42
COUNTER = Program(64, """
    31 ff                     xor edi, edi
    b9 2a 00 00 00            mov ecx, 0x2a
    83 c7 01                  add edi, 1            ; COUNTING_LOOP
    e2 fb                     loop 0x40007f
    6a 3c                     push 0x3c             ; exit(turns)
    58                        pop rax
    0f 05                     syscall
""")

_NUMBER = """
    58                        pop rax               ; argc
    5b                        pop rbx               ; argv[0]
    5e                        pop rsi               ; argv[1]: a number in decimal
    4c 8d 6c c4 f8            lea r13, [rsp + rax*8 - 8]    ; the environment, behind argv and its null
    49 89 e4                  mov r12, rsp          ; argv + 2: the program to run, and its arguments
    31 db                     xor ebx, ebx          ; becomes the number
    31 c0                     xor eax, eax
    ac                        lodsb al, byte ptr [rsi]      ; 0x400087
    2c 30                     sub al, 0x30          ; '0'
    72 07                     jb 0x400093           ; the end
    6b db 0a                  imul ebx, ebx, 0xa
    01 c3                     add ebx, eax
    eb f4                     jmp 0x400087
"""
_SOCKET = """
    6a 28                     push 0x28             ; 0x400093; AF_VSOCK
    5f                        pop rdi
    be 01 00 08 00            mov esi, 0x80001      ; SOCK_STREAM | SOCK_CLOEXEC
    31 d2                     xor edx, edx
    6a 29                     push 0x29             ; socket
    58                        pop rax
    0f 05                     syscall
    89 c5                     mov ebp, eax
    48 c1 e3 20               shl rbx, 0x20         ; struct sockaddr_vm: the port, and before it
    48 83 cb 28               or rbx, 0x28          ; AF_VSOCK
"""
_EXECUTE = """
    31 f6                     xor esi, esi
    6a 21                     push 0x21             ; dup2(EDI, 0)
    58                        pop rax
    0f 05                     syscall
    ff c6                     inc esi
    6a 21                     push 0x21             ; dup2(EDI, 1)
    58                        pop rax
    0f 05                     syscall
    49 8b 3c 24               mov rdi, qword ptr [r12]
    4c 89 e6                  mov rsi, r12
    4c 89 ea                  mov rdx, r13
    6a 3b                     push 0x3b             ; execve
    58                        pop rax
    0f 05                     syscall
"""

VSOCK_CALL = Program(64, f"""
    {_NUMBER}
    {_SOCKET}
    6a 02                     push 2                ; VMADDR_CID_HOST
    53                        push rbx
    89 ef                     mov edi, ebp
    48 89 e6                  mov rsi, rsp
    6a 10                     push 0x10             ; sizeof(struct sockaddr_vm)
    5a                        pop rdx
    6a 2a                     push 0x2a             ; connect
    58                        pop rax
    0f 05                     syscall
    f7 d8                     neg eax
    75 1f                     jne 0x4000df
    {_EXECUTE}
    f7 d8                     neg eax
    89 c7                     mov edi, eax          ; 0x4000df
    6a 3c                     push 0x3c             ; exit(errno)
    58                        pop rax
    0f 05                     syscall
""")
"""PORT PROGRAM ARGUMENT...: connects to a port of the host; that is the program's standard input and output."""

VSOCK_SERVE = Program(64, f"""
    {_NUMBER}
    {_SOCKET}
    b8 ff ff ff ff            mov eax, 0xffffffff   ; VMADDR_CID_ANY; zeroes behind it
    50                        push rax
    53                        push rbx
    89 ef                     mov edi, ebp
    48 89 e6                  mov rsi, rsp
    6a 10                     push 0x10             ; sizeof(struct sockaddr_vm)
    5a                        pop rdx
    6a 31                     push 0x31             ; bind
    58                        pop rax
    0f 05                     syscall
    be 80 00 00 00            mov esi, 0x80         ; connections that wait
    6a 32                     push 0x32             ; listen, which fails if bind did
    58                        pop rax
    0f 05                     syscall
    f7 d8                     neg eax
    75 60                     jne 0x40012e
    6a 39                     push 0x39             ; fork
    58                        pop rax
    0f 05                     syscall
    97                        xchg edi, eax
    85 ff                     test edi, edi
    75 54                     jne 0x40012c          ; the parent ends once there is a listener
    89 ef                     mov edi, ebp          ; 0x4000d8
    31 f6                     xor esi, esi
    31 d2                     xor edx, edx
    41 ba 00 00 08 00         mov r10d, 0x80000     ; SOCK_CLOEXEC
    b8 20 01 00 00            mov eax, 0x120        ; accept4
    0f 05                     syscall
    89 c3                     mov ebx, eax
    6a 39                     push 0x39             ; fork
    58                        pop rax
    0f 05                     syscall
    89 df                     mov edi, ebx
    85 c0                     test eax, eax
    74 17                     je 0x40010f
    6a 03                     push 3                ; close
    58                        pop rax
    0f 05                     syscall
    6a ff                     push -1               ; any child
    5f                        pop rdi
    31 f6                     xor esi, esi
    6a 01                     push 1                ; WNOHANG: one for each that is started leaves few behind
    5a                        pop rdx
    45 31 d2                  xor r10d, r10d
    6a 3d                     push 0x3d             ; wait4
    58                        pop rax
    0f 05                     syscall
    eb c9                     jmp 0x4000d8
    {_EXECUTE}
    31 c0                     xor eax, eax          ; 0x40012c
    89 c7                     mov edi, eax          ; 0x40012e
    6a 3c                     push 0x3c             ; exit(0 or errno)
    58                        pop rax
    0f 05                     syscall
""")
"""PORT PROGRAM ARGUMENT...: goes on in the background, and runs the program for each connection to the port."""

SHUTDOWN = Program(64, f"""
    {_NUMBER}
    31 ff                     xor edi, edi          ; standard input
    89 de                     mov esi, ebx
    6a 30                     push 0x30             ; shutdown
    58                        pop rax
    0f 05                     syscall
    f7 d8                     neg eax
    89 c7                     mov edi, eax
    6a 3c                     push 0x3c             ; exit(errno)
    58                        pop rax
    0f 05                     syscall
""")
"""HOW: ends one direction of the connection that is its standard input, or both: SHUT_RD 0, SHUT_WR 1, SHUT_RDWR 2."""

GETRANDOM = Program(64, """
    6a 00                     push 0                ; sixteen bytes on the stack
    6a 00                     push 0
    48 89 e7                  mov rdi, rsp
    6a 10                     push 0x10
    5e                        pop rsi
    31 d2                     xor edx, edx
    b8 3e 01 00 00            mov eax, 0x13e        ; getrandom
    0f 05                     syscall
    89 c2                     mov edx, eax          ; as many as came
    48 89 e6                  mov rsi, rsp
    6a 01                     push 1
    5f                        pop rdi
    6a 01                     push 1                ; write
    58                        pop rax
    0f 05                     syscall
    31 ff                     xor edi, edi
    6a 3c                     push 0x3c             ; exit(0)
    58                        pop rax
    0f 05                     syscall
""")
"""Writes 16 random bytes to its standard output."""

PROGRAMS = {
    "illegal": ILLEGAL, "null": NULL_POINTER, "divide": DIVIDE, "breakpoint": BREAKPOINT, "survivor": SURVIVOR,
    "int80": INT_80, "syscall32": SYSCALL_32, "warner": WARNER, "counter": COUNTER,
    "vsock call": VSOCK_CALL, "vsock serve": VSOCK_SERVE, "shutdown": SHUTDOWN, "getrandom": GETRANDOM,
}  # fmt: skip
