"""Where this libunicorn keeps its private state: a table of known builds, and the way to recognise one.

Every offset into libunicorn's structures that the project uses stands here and nowhere else. `emu.cpu.derive` makes
a row of the table from a library file; `emu.cpu.check` tries a row on a live CPU before anything is run on it.
"""

from __future__ import annotations

import os
import struct

from devices.frozen import frozen
from emu.cpu.abi import REMEDY
from emu.errors import UnsupportedHost


@frozen
class Layout:
    """Byte offsets. `cpu` is QEMU's CPUState, `env` its CPUX86State (target/i386/cpu.h of QEMU 5.0.1)."""

    uc_cpu: int                 # from uc: pointer to cpu
    no_exit_request: int        # from uc: byte; 1 = stop at block starts only
    exit_request: int           # from cpu: byte; 1 = leave the CPU loop
    interrupt_request: int      # from cpu: u32
    icount_decr_ptr: int        # from cpu: pointer to what every block's start tests
    opaque: int                 # from cpu: pointer that libunicorn does not use; ours to a CPU's context
    halted: int                 # from cpu: u32
    exception_is_int: int       # from cpu: s32
    error_code: int             # from cpu: s32
    env: int                    # from cpu; everything below is from env
    tlb: int                    # negative; a pair for each MMU mode: mask u64, table pointer
    eip: int
    eflags: int
    cc_dst: int
    cc_src: int
    cc_src2: int
    cc_op: int
    df: int
    hflags: int
    segs: int                   # ES, CS, SS, DS, FS, GS: selector u32, base u64 at 8, limit u32 at 16, flags u32 at 20;
                                # and so LDTR, TR, GDTR, IDTR
    cr: int                     # CR0 to CR8, u64 each
    efer: int
    fpstt: int                  # top of the x87 stack u32, status u16 at 4, control u16 at 6, 8 tags u8 at 8
    fpregs: int                 # R0 to R7, 16 bytes each; at 128 opcode, CS, DS u16, at 136 the instruction's address,
                                # at 144 its operand's
    mxcsr: int
    xmm: int                    # 64 bytes each
    star: int
    lstar: int
    cstar: int
    fmask: int
    vm_vmcb: int
    tsc_offset: int
    intercept: int
    dr: int                     # DR0 to DR7, u64 each
    cpuid_version: int
    cpuid_features: int         # u64 each, in the order of FEATURE_WORDS
    jump_cache: int             # from cpu: 4,096 pointers to TranslationBlocks
    cluster_index: int          # from cpu: u32
    tb_page: int                # from a TranslationBlock: ram address of its page, u64; then of a second one, or -1
    tcg_uc: int                 # from tcg, QEMU's TCGContext: pointer to uc
    tcg_cpu_env: int            # from tcg: what stands for env in generated code
    tcg_operations: int         # from tcg: u32, how many operations the block being translated has
    uc_emu_stop: int            # from the library's start: tells where it was loaded
    slots: tuple[tuple[str, int], ...]  # our thunk, and where the address it replaces stands, from the library's start
    msrs: tuple[tuple[int, int, int], ...]      # first number, count, offset in env: u64 each; all but EFER and bases

    @property
    def cflags_next_tb(self) -> int:
        """Offset in cpu of what the next block alone is looked up and translated with, u32; -1: the usual."""
        return self.interrupt_request - 4

    @property
    def exception_index(self) -> int:
        """Offset of the pending exception's number in cpu."""
        return self.halted + 8

    @property
    def env_jump_cache(self) -> int:
        """Offset of cpu's `jump_cache` from env; negative."""
        return self.jump_cache - self.env

    @property
    def tb_second_page(self) -> int:
        """Offset of the second page in a TranslationBlock."""
        return self.tb_page + 8

    @property
    def hflags2(self) -> int:
        """Offset of more hidden flags in env."""
        return self.hflags + 4

    @property
    def env_opaque(self) -> int:
        """Offset of cpu's `opaque` from env; negative."""
        return self.opaque - self.env

    @property
    def tlb_mask(self) -> int:
        """Offset of the first MMU mode's TLB mask in env."""
        return self.tlb

    @property
    def tlb_table(self) -> int:
        """Offset of the first MMU mode's TLB table in env."""
        return self.tlb + 8

    @property
    def cs(self) -> int:
        """Offset of the CS descriptor cache in env."""
        return self.segs + SEGMENT_SIZE

    @property
    def cs_base(self) -> int:
        """Offset of CS' base in env."""
        return self.cs + 8

    @property
    def star_high(self) -> int:
        """Offset of STAR[63:32] in env."""
        return self.star + 4


SEGMENT_SIZE = 24
FEATURE_WORDS = (
    "1_EDX", "1_ECX", "7_0_EBX", "7_0_ECX", "7_0_EDX", "7_1_EAX", "80000001_EDX", "80000001_ECX", "80000007_EDX",
    "80000008_EBX", "C0000001_EDX", "KVM", "KVM_HINTS", "HYPERV_EAX", "HYPERV_EBX", "HYPERV_EDX", "HV_RECOMM_EAX",
    "HV_NESTED_EAX", "SVM", "XSAVE", "6_EAX",
)

X86_64_BUILDS: dict[str, Layout] = {
    # unicorn 2.1.4, x86-64 manylinux wheel
    "44285d3e80527122e9e361928189385906ec813e": Layout(
        uc_cpu=0x1b8,
        no_exit_request=0x7f2,
        exit_request=0x15,
        interrupt_request=0x1c,
        icount_decr_ptr=0x130,
        opaque=0x8170,
        halted=0x8198,
        exception_is_int=0x9f5c,
        error_code=0x9f58,
        env=0x8a50,
        tlb=-0x40,
        eip=0x80,
        eflags=0x88,
        cc_dst=0x90,
        cc_src=0x98,
        cc_src2=0xa0,
        cc_op=0xa8,
        df=0xac,
        hflags=0xb0,
        segs=0xb8,
        cr=0x1a8,
        efer=0x250,
        fpstt=0x25c,
        fpregs=0x270,
        mxcsr=0x330,
        xmm=0x338,
        star=0x12d8,
        lstar=0x12e8,
        cstar=0x12f0,
        fmask=0x12f8,
        vm_vmcb=0x1580,
        tsc_offset=0x1588,
        intercept=0x1590,
        dr=0x1518,
        cpuid_version=0x15fc,
        cpuid_features=0x1600,
        jump_cache=0x138,
        cluster_index=0x8194,
        tb_page=0x48,
        tcg_uc=0x9970,
        tcg_cpu_env=0x98f0,
        tcg_operations=0x38,
        uc_emu_stop=0x3c39c0,
        slots=(
            ("GENERATE_CALL", 0x14c0798),
            ("ABORT", 0x14c0f70),
            ("FLUSH_BLOCKS", 0x14c10c8),
            ("PROTECT_CODE", 0x14c22d8),
            ("UNPROTECT_CODE", 0x14c2a90),
            ("PAGE_WRITTEN", 0x14c4020),
            ("LOAD_PHYSICAL_64", 0x14c4350),
            ("RESET_DIRTY_BY_ADDRESS", 0x14c67f8),
            ("GENERATE_EXIT", 0x14c7be8),
            ("READ_FLAGS", 0x142e9f8),
            ("READ_CONTROL", 0x142ed40),
            ("WRITE_CONTROL", 0x142ed58),
            ("SYSENTER", 0x142ede8),
            ("FIND_BLOCK", 0x1431e60),
            ("STEP", 0x1433690),
            ("STORE_8", 0x14336c0),
            ("STORE_16", 0x14336c8),
            ("STORE_32", 0x14336d0),
            ("STORE_64", 0x14336d8),
            ("READ_FLAGS", 0x14ac248),
            ("READ_CONTROL", 0x14acf48),
            ("WRITE_CONTROL", 0x14b1318),
            ("SYSENTER", 0x14a38a0),
            ("FIND_BLOCK", 0x14a6668),
            ("STEP", 0x14a8c80),
            ("DEBUG_EXCEPTION", 0x14b3480),
        ),
        msrs=(
            (0x174, 0x3, 0x12c0),
            (0x17a, 0x1, 0x1330),
            (0x17b, 0x1, 0x19d8),
            (0x1a0, 0x1, 0x1338),
            (0x200, 0x10, 0x1910),
            (0x250, 0x1, 0x18b0),
            (0x258, 0x2, 0x18b8),
            (0x268, 0x8, 0x18c8),
            (0x277, 0x1, 0x14a0),
            (0x2ff, 0x1, 0x1908),
            (0x400, 0x28, 0x19e8),
            (0xd90, 0x1, 0x248),
            (0xc0000081, 0x1, 0x12d8),
            (0xc0000082, 0x3, 0x12e8),
            (0xc0000102, 0x1, 0x1300),
            (0xc0000103, 0x1, 0x1320),
            (0xc0010117, 0x1, 0x12e0),
        ),
    ),
}

AARCH64_BUILDS: dict[str, Layout] = {
    # unicorn 2.1.4, aarch64 manylinux wheel
    "0ca94f9db50b8ec0f19d911ea473b67f9f50f069": Layout(
        uc_cpu=0x1b8,
        no_exit_request=0x7f2,
        exit_request=0x15,
        interrupt_request=0x1c,
        icount_decr_ptr=0x1a0,
        opaque=0x81e0,
        halted=0x8208,
        exception_is_int=0x9fcc,
        error_code=0x9fc8,
        env=0x8ac0,
        tlb=-0x40,
        eip=0x80,
        eflags=0x88,
        cc_dst=0x90,
        cc_src=0x98,
        cc_src2=0xa0,
        cc_op=0xa8,
        df=0xac,
        hflags=0xb0,
        segs=0xb8,
        cr=0x1a8,
        efer=0x250,
        fpstt=0x25c,
        fpregs=0x270,
        mxcsr=0x330,
        xmm=0x338,
        star=0x12d8,
        lstar=0x12e8,
        cstar=0x12f0,
        fmask=0x12f8,
        vm_vmcb=0x1580,
        tsc_offset=0x1588,
        intercept=0x1590,
        dr=0x1518,
        cpuid_version=0x15fc,
        cpuid_features=0x1600,
        jump_cache=0x1a8,
        cluster_index=0x8204,
        tb_page=0x48,
        tcg_uc=0x9a90,
        tcg_cpu_env=0x99f8,
        tcg_operations=0x38,
        uc_emu_stop=0x3bc530,
        slots=(
            ("GENERATE_CALL", 0x1334698),
            ("ABORT", 0x1334e48),
            ("FLUSH_BLOCKS", 0x1334fa0),
            ("PROTECT_CODE", 0x1336188),
            ("UNPROTECT_CODE", 0x1336918),
            ("PAGE_WRITTEN", 0x1337e50),
            ("LOAD_PHYSICAL_64", 0x1338160),
            ("RESET_DIRTY_BY_ADDRESS", 0x133a580),
            ("GENERATE_EXIT", 0x133b910),
            ("STORE_8", 0x12a3cb0),
            ("STORE_16", 0x12a3cb8),
            ("STORE_32", 0x12a3cc0),
            ("STORE_64", 0x12a3cc8),
            ("READ_FLAGS", 0x12a3da8),
            ("READ_CONTROL", 0x12a40f0),
            ("WRITE_CONTROL", 0x12a4108),
            ("SYSENTER", 0x12a4198),
            ("FIND_BLOCK", 0x12a7210),
            ("STEP", 0x12a8a40),
            ("READ_FLAGS", 0x1320310),
            ("READ_CONTROL", 0x1321018),
            ("WRITE_CONTROL", 0x13253b0),
            ("SYSENTER", 0x13179d8),
            ("FIND_BLOCK", 0x131a778),
            ("STEP", 0x131cd68),
            ("DEBUG_EXCEPTION", 0x1327508),
        ),
        msrs=(
            (0x174, 0x3, 0x12c0),
            (0x17a, 0x1, 0x1330),
            (0x17b, 0x1, 0x19d8),
            (0x1a0, 0x1, 0x1338),
            (0x200, 0x10, 0x1910),
            (0x250, 0x1, 0x18b0),
            (0x258, 0x2, 0x18b8),
            (0x268, 0x8, 0x18c8),
            (0x277, 0x1, 0x14a0),
            (0x2ff, 0x1, 0x1908),
            (0x400, 0x28, 0x19e8),
            (0xd90, 0x1, 0x248),
            (0xc0000081, 0x1, 0x12d8),
            (0xc0000082, 0x3, 0x12e8),
            (0xc0000102, 0x1, 0x1300),
            (0xc0000103, 0x1, 0x1320),
            (0xc0010117, 0x1, 0x12e0),
        ),
    ),
}

BUILDS_BY_HOST = {"x86_64": X86_64_BUILDS, "aarch64": AARCH64_BUILDS}
"""For each kind of host, as `os.uname` names it, its known builds by their build ID."""


def known_builds() -> dict[str, Layout]:
    """Those for this kind of host."""
    return BUILDS_BY_HOST.get(os.uname().machine, {})


def build_id(path: str) -> str:
    """The GNU build ID of a shared library, in hexadecimal.

    Raises:
        UnsupportedHost: the file cannot be read, is not ELF64, is not all there, or has no build ID.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(64)
            if header[:5] != b"\x7fELF\x02":
                raise UnsupportedHost(f"{path} is not a 64-bit ELF library")
            (table,) = struct.unpack_from("<Q", header, 32)
            size, count = struct.unpack_from("<HH", header, 54)
            file.seek(table)
            table_bytes = file.read(size * count)
            segments = [_segment(table_bytes, i * size) for i in range(count)]
            end = max((offset + length for _, offset, length in segments), default=0)
            if end > os.fstat(file.fileno()).st_size:           # the loader would map it, and the process die of SIGBUS
                raise UnsupportedHost(f"{path} is cut short: {REMEDY}")
            for kind, offset, length in segments:
                if kind == PT_NOTE:
                    file.seek(offset)
                    if found := _gnu_build_id(file.read(length)):
                        return found
    except (OSError, struct.error) as error:
        raise UnsupportedHost(f"cannot read {path}: {error}") from None
    raise UnsupportedHost(f"{path} has no build ID: {REMEDY}")


PT_NOTE = 4
NT_GNU_BUILD_ID = 3


def _segment(table: bytes, at: int) -> tuple[int, int, int]:
    (kind,) = struct.unpack_from("<I", table, at)
    (offset,) = struct.unpack_from("<Q", table, at + 8)
    (length,) = struct.unpack_from("<Q", table, at + 32)
    return kind, offset, length


def _gnu_build_id(notes: bytes) -> str | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        data = at + 12 + (name_size + 3 & ~3)
        if kind == NT_GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0":
            return notes[data : data + size].hex()
        at = data + (size + 3 & ~3)
    return None


def layout_of(path: str) -> Layout:
    """The layout of a libunicorn file.

    Raises:
        UnsupportedHost: it is not one of the known builds for this kind of host.
    """
    identity = build_id(path)
    layout = known_builds().get(identity)
    if layout is None:
        raise UnsupportedHost(
            f"libunicorn build {identity[:16]} is not known: {REMEDY}, "
            "or add it with python -m emu.cpu.derive"
        )
    return layout
