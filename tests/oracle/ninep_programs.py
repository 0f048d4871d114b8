"""What the script needs and Alpine does not have: a system call from a shell, and a store to a mapped file."""

from __future__ import annotations

from tests.integration.programs import Program

__all__ = ["PROGRAMS"]

CALL = Program(64, """
    4c 8d 64 24 10            lea r12, [rsp + 0x10]         ; argv[1]
    6a 06                     push 6
    59                        pop rcx
    6a 00                     push 0                        ; 0x400080; the number and five arguments, zero
    ff c9                     dec ecx
    75 fa                     jne 0x400080
    48 89 e7                  mov rdi, rsp
    48 8d 6c 24 30            lea rbp, [rsp + 0x30]         ; their end
    49 8b 34 24               mov rsi, qword ptr [r12]      ; 0x40008e; the next word
    49 83 c4 08               add r12, 8
    48 85 f6                  test rsi, rsi
    74 35                     je 0x4000d0                   ; there is none
    48 39 ef                  cmp rdi, rbp
    74 30                     je 0x4000d0                   ; what follows is only there to be pointed at
    31 c0                     xor eax, eax
    8a 0e                     mov cl, byte ptr [rsi]
    80 f9 3d                  cmp cl, 0x3d                  ; =text: the text's address
    74 09                     je 0x4000b2
    80 f9 40                  cmp cl, 0x40                  ; @text: also, and it is written out in the end
    75 0a                     jne 0x4000b8
    4c 8d 6e 01               lea r13, [rsi + 1]
    48 8d 46 01               lea rax, [rsi + 1]            ; 0x4000b2
    eb 14                     jmp 0x4000cc
    0f b6 0e                  movzx ecx, byte ptr [rsi]     ; 0x4000b8; a decimal number
    48 ff c6                  inc rsi
    83 e9 30                  sub ecx, 0x30
    78 09                     js 0x4000cc
    48 6b c0 0a               imul rax, rax, 0xa
    48 01 c8                  add rax, rcx
    eb ec                     jmp 0x4000b8
    48 ab                     stosq qword ptr [rdi], rax    ; 0x4000cc
    eb be                     jmp 0x40008e
    58                        pop rax                       ; 0x4000d0
    5f                        pop rdi
    5e                        pop rsi
    5a                        pop rdx
    41 5a                     pop r10
    41 58                     pop r8
    0f 05                     syscall
    48 85 c0                  test rax, rax
    78 16                     js 0x4000f5
    31 db                     xor ebx, ebx
    4d 85 ed                  test r13, r13
    74 13                     je 0x4000f9
    89 c2                     mov edx, eax                  ; as many bytes as it returned
    4c 89 ee                  mov rsi, r13
    6a 01                     push 1
    5f                        pop rdi
    6a 01                     push 1                        ; write
    58                        pop rax
    0f 05                     syscall
    eb 04                     jmp 0x4000f9
    f7 d8                     neg eax                       ; 0x4000f5; errno
    89 c3                     mov ebx, eax
    89 df                     mov edi, ebx                  ; 0x4000f9
    6a 3c                     push 0x3c                     ; exit
    58                        pop rax
    0f 05                     syscall
""")
"""Words: a system call's number and arguments. Its exit status is the errno."""

STORE = Program(64, """
    48 8b 7c 24 10            mov rdi, qword ptr [rsp + 0x10]       ; argv[1]
    6a 02                     push 2                        ; O_RDWR
    5e                        pop rsi
    6a 02                     push 2                        ; open
    58                        pop rax
    0f 05                     syscall
    41 89 c0                  mov r8d, eax
    31 ff                     xor edi, edi
    be 00 10 00 00            mov esi, 0x1000
    6a 03                     push 3                        ; PROT_READ | PROT_WRITE
    5a                        pop rdx
    6a 01                     push 1                        ; MAP_SHARED
    41 5a                     pop r10
    45 31 c9                  xor r9d, r9d
    6a 09                     push 9                        ; mmap
    58                        pop rax
    0f 05                     syscall
    48 3d 00 f0 ff ff         cmp rax, -0x1000
    77 07                     ja 0x4000ad
    c6 00 4d                  mov byte ptr [rax], 0x4d      ; 'M'
    31 ff                     xor edi, edi
    eb 04                     jmp 0x4000b1
    f7 d8                     neg eax                       ; 0x4000ad; errno
    89 c7                     mov edi, eax
    6a 3c                     push 0x3c                     ; 0x4000b1; exit
    58                        pop rax
    0f 05                     syscall
""")
"""Maps the file argv[1] and stores a byte at its beginning."""

PROGRAMS = {"call": CALL, "store": STORE}
