"""Numbers of Unicorn's API (its headers, version 2.1.4) and of the x86 architecture that the CPU layer uses."""

from __future__ import annotations

# uc_open
X86 = 4                             # UC_ARCH_X86
MODE_64 = 8                         # UC_MODE_64

# uc_ctl
CONTROL_USE_EXITS = 4               # UC_CTL_UC_USE_EXITS
CONTROL_CPU_MODEL = 7               # UC_CTL_CPU_MODEL
CONTROL_TLB_FLUSH = 11              # UC_CTL_TLB_FLUSH
CONTROL_TCG_BUFFER_SIZE = 13        # UC_CTL_TCG_BUFFER_SIZE
CPU_MODEL_QEMU64 = 0                # UC_CPU_X86_QEMU64


def control_write(control: int, arguments: int = 1) -> int:
    """UC_CTL_WRITE(control, number of arguments)."""
    return control | arguments << 26 | 1 << 30


# Registers of uc_reg_read and uc_reg_write (unicorn/x86.h)
REGISTER_EFLAGS = 25
REGISTER_RIP = 41
REGISTER_CR0, REGISTER_CR3, REGISTER_CR4 = 50, 53, 54
REGISTER_DR0, REGISTER_FP0, REGISTER_XMM0 = 66, 82, 122
REGISTER_IDTR, REGISTER_GDTR = 242, 243
REGISTER_FPCW, REGISTER_FPTAG, REGISTER_MSR, REGISTER_MXCSR = 246, 247, 248, 249

# Hooks (unicorn/unicorn.h)
HOOK_INTERRUPT = 1 << 0             # UC_HOOK_INTR
HOOK_INSTRUCTION = 1 << 1           # UC_HOOK_INSN
HOOK_INVALID = 1 << 14              # UC_HOOK_INSN_INVALID
INSTRUCTION_IN, INSTRUCTION_OUT, INSTRUCTION_SYSCALL = 218, 500, 699

PERMISSION_ALL = 7                  # UC_PROT_ALL
PERMISSION_READ_WRITE = 3

# MSRs (AMD64 manual volume 2, appendix A)
MSR_TSC = 0x10
MSR_APIC_BASE = 0x1B
MSR_TSC_DEADLINE = 0x6E0
MSR_X2APIC_START, MSR_X2APIC_END = 0x800, 0x840
MSR_EFER = 0xC000_0080
MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK = 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084
MSR_FS_BASE, MSR_GS_BASE = 0xC000_0100, 0xC000_0101
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11

# SVM exit codes (AMD64 manual volume 2, appendix C); libunicorn reports 0x100 + code
EXIT_READ_CR8, EXIT_WRITE_CR8 = 0x08, 0x18
EXIT_VINTR = 0x64
EXIT_CPUID = 0x72
EXIT_MSR = 0x7C
EXIT_SHUTDOWN = 0x7F
INTERCEPT_BASE = 0x60               # bit 0 of the intercept word is exit 0x60
VM_EXIT = 0x100

# VMCB control area (AMD64 manual volume 2, appendix B)
VMCB_MSRPM_BASE = 0x48
MSRPM_SIZE = 0x2000

# hflags (QEMU 5.0.1, target/i386/cpu.h)
HF_CPL = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32, HF_SS32, HF_ADDSEG, HF_PE = 1 << 4, 1 << 5, 1 << 6, 1 << 7
HF_MP_SHIFT = 9                     # MP, EM, TS
HF_LMA, HF_CS64 = 1 << 14, 1 << 15
HF_GUEST, HF_OSFXSR = 1 << 21, 1 << 22
HF2_GIF, HF2_NMI = 1 << 0, 1 << 2

INTERRUPT_WINDOW = 0x100            # CPU_INTERRUPT_VIRQ: exits as VINTR at the first block with IF=1 and no shadow

RFLAGS_FIXED, RFLAGS_IF = 1 << 1, 1 << 9      # bit 1 is always set
CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
