"""The C declarations of the CPU layer; `python -m emu.cpu.declarations` makes `_abi.py` of them.

cffi's ABI mode, out of line: what cffi would parse at each start is a Python module beside this one. Nothing is
compiled. tests/cpu/test_abi.py compares the two.
"""

from __future__ import annotations

from pathlib import Path

LIBUNICORN = """
    int uc_open(int arch, int mode, void **uc);
    int uc_close(void *uc);
    int uc_ctl(void *uc, int control, ...);
    int uc_reg_read(void *uc, int register_id, void *value);
    int uc_reg_write(void *uc, int register_id, const void *value);
    int uc_mem_map_ptr(void *uc, uint64_t address, size_t size, uint32_t permissions, void *host);
    int uc_mmio_map(void *uc, uint64_t address, size_t size, void *read, void *read_data,
                    void *write, void *write_data);
    int uc_hook_add(void *uc, size_t *hook, int kind, void *callback, void *data, uint64_t begin, uint64_t end, ...);
    int uc_emu_start(void *uc, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
    int uc_emu_stop(void *uc);
    const char *uc_strerror(int error);
    int64_t cpu_get_ticks_x86_64(void);
    uint64_t helper_cc_compute_all_x86_64(uint64_t dst, uint64_t src1, uint64_t src2, int op);
    void tb_invalidate_phys_range_x86_64(void *uc, uint64_t start, uint64_t end);
    void cpu_x86_update_dr7_x86_64(void *env, uint32_t value);
    int cpu_breakpoint_insert_x86_64(void *cpu, uint64_t pc, int flags, void **made);
    void cpu_breakpoint_remove_by_ref_x86_64(void *cpu, void *breakpoint);
"""

LIBC = """
    void *dlopen(const char *path, int flags);
    void *dlsym(void *library, const char *name);
    int mprotect(void *address, size_t length, int protection);
    int sigaction(int signal, const void *action, void *old);
    int timer_create(int clock, void *event, void **timer);
    int timer_settime(void *timer, int flags, const int64_t value[4], void *old);
    int timer_delete(void *timer);
    int fork(void);
    int prctl(int option, unsigned long value, unsigned long, unsigned long, unsigned long);
    int socket(int domain, int type, int protocol);
    int bind(int fd, const void *address, unsigned size);
    int listen(int fd, int backlog);
    int ppoll(void *files, unsigned long count, const int64_t timeout[2], const void *signals);

    struct sigaction_ { uint64_t handler; uint64_t mask[16]; int flags; uint64_t restorer; };
    struct pollfd_ { int fd; short events; short revents; };
    struct sigevent_ { uint64_t value; int signal; int notify; uint64_t pad[6]; };
"""

STRUCTURES = """
    struct descriptor_table { uint16_t selector; uint64_t base; uint32_t limit; uint32_t flags; };
    struct msr { uint32_t number; uint64_t value; };
    struct cpu_breakpoint { uint64_t pc; int flags; };
    struct watch { uint64_t address, mask, value; };
"""

CONTEXT = """
    struct context {
        uint64_t cpu;                           // 0x00: CPUState
        uint64_t env;                           // 0x08: CPUX86State
        uint64_t vmexit;                        // 0x10: Python: uint64_t(uint32_t code, uint32_t length)
        uint64_t port_in;                       // 0x18: Python: IN
        uint64_t port_out;                      // 0x20: Python: OUT
        uint64_t buffer;                        // 0x28: bytes taken by the putchar bypass
        uint32_t used, capacity;                // 0x30, 0x34
        uint32_t thr_port, lsr_port, lsr;       // 0x38: NO_PORT while disarmed
        uint32_t intercepting;                  // 0x44: not 0: `syscall` answers some system calls
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
        uint64_t exit_label;                    // 0xd0: of the block being translated: where its exit check jumps to
        uint64_t intercepted;                   // 0xd8: system calls that never reached the guest's kernel
        uint64_t syscall;                       // 0xe0: Python: uint32_t(uint64_t number); 1: answered, RAX is set
        uint64_t intercepted_numbers[8];        // 0xe8: a bit for each number it is asked for
        uint64_t blocks;                        // 0x128: 65,536 translated blocks by where they begin, or 0
        uint32_t block_flags;                   // 0x130: what to look for one with
        uint32_t stepping;                      // 0x134: not 0: blocks get one instruction, and a call of STEP
        uint64_t uc;                            // 0x138: the engine
        uint64_t steps;                         // 0x140: instructions that such blocks may still run
        uint64_t breakpoints;                   // 0x148: a debugger's, linear addresses
        uint32_t breakpoint_count;              // 0x150
        uint32_t watch_count;                   // 0x154
        uint64_t watches;                       // 0x158: struct watch: host memory that is looked at
        uint32_t stopped_by;                    // 0x160: 1: steps are over; 2: a watch; 3: a breakpoint
    };
"""
"""The block of memory that a CPU's machine code shares with Python; `thunks.lst` names its fields by these offsets."""

OUTPUT = Path(__file__).with_name("_abi.py")


def generate(output: Path = OUTPUT) -> None:
    """Write the module."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(LIBUNICORN + LIBC + STRUCTURES + CONTEXT)
    ffi.set_source("emu.cpu._abi", None)
    ffi.emit_python_code(str(output))


if __name__ == "__main__":
    generate()
