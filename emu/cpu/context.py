"""The block of memory that a CPU's machine code shares with Python.

`thunks.lst` names its fields by these offsets; `struct_declaration` gives them to cffi, and tests/cpu/test_thunks.py
compares the two.
"""

from __future__ import annotations

from emu.cpu.abi import ffi

HYPERVISOR_ROWS = 3                 # leaves 0x40000000, 0x40000001, and one of zeros for all that follow
NO_PORT = 0xFFFF_FFFF               # a port number no access has: the bypass is disarmed

ffi.cdef("""
    struct context {
        uint64_t cpu;                           // 0x00: CPUState
        uint64_t env;                           // 0x08: CPUX86State
        uint64_t vmexit;                        // 0x10: Python: uint64_t(uint32_t code, uint32_t length)
        uint64_t port_in;                       // 0x18: Python: IN
        uint64_t port_out;                      // 0x20: Python: OUT
        uint64_t buffer;                        // 0x28: bytes taken by the putchar bypass
        uint32_t used, capacity;                // 0x30, 0x34
        uint32_t thr_port, lsr_port, lsr, pad;  // 0x38: NO_PORT while disarmed
        uint64_t exceptions;                    // 0x48: events counted by the machine code
        uint64_t undefined;                     // 0x50
        uint64_t syscalls;                      // 0x58
        uint64_t cpuids;                        // 0x60
        uint64_t lsr_reads;                     // 0x68
        uint64_t ram_base, ram_bytes;           // 0x70, 0x78: the guest's RAM in the host, in order of ram addresses
        uint32_t leaf[4];                       // 0x80: where CPUID's answer is put together
        uint32_t hypervisor_leaves[3][4];       // 0x90: EAX, EBX, ECX, EDX a row
        uint64_t code_pages;                    // 0xc0: a byte a page of RAM, 1 where code was translated from it
        uint64_t low_bytes;                     // 0xc8: RAM at guest-physical 0, the first of ram_bytes
    };
""")
