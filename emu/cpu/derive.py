"""Make a row of the layout table from a libunicorn: `python -m emu.cpu.derive [PATH]`.

The library may be one for x86-64 hosts, which is loaded, or one for aarch64 hosts, which is not: `derive_aarch64` looks
at that. Offsets come from the first memory operands of small exported functions (Capstone reads them), from values
written through the public API and found again in the CPU's state, and from the ELF relocations. What has no such
witness follows from the order of the fields in QEMU 5.0.1's target/i386/cpu.h. `emu.cpu.check` tries the result.
"""

from __future__ import annotations

import platform
import struct
import sys
from dataclasses import fields
from typing import Any

import capstone
from elftools.elf.elffile import ELFFile

from devices.frozen import frozen
from emu.cpu import abi
from emu.cpu.abi import ffi
from emu.cpu.constants import (
    CONTROL_CPU_MODEL,
    CPU_MODEL_QEMU64,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    MODE_64,
    MSR_CSTAR,
    MSR_EFER,
    MSR_FS_BASE,
    MSR_GS_BASE,
    MSR_LSTAR,
    MSR_SFMASK,
    MSR_STAR,
    REGISTER_CR3,
    REGISTER_DR0,
    REGISTER_FP0,
    REGISTER_FPCW,
    REGISTER_MSR,
    REGISTER_MXCSR,
    REGISTER_RIP,
    REGISTER_XMM0,
    X86,
    control_write,
)
from emu.cpu.layout import Layout, build_id
from emu.errors import UnsupportedHost

CPU_STATE_BYTES = 0x1C00                # what lies behind is not the CPU's, but may be a copy of it that was made here
MSR_RANGES = range(0x2000), range(0xC000_0000, 0xC000_2000), range(0xC001_0000, 0xC001_2000)
TABLES = (".dynstr", ".dynsym", ".rela.dyn", ".rela.plt")
WORDS = struct.Struct(f"<{CPU_STATE_BYTES // 8}Q")
MSR = struct.Struct("<I4xQ")            # struct msr
SYMBOL = struct.Struct("<IBBHQQ")       # Elf64_Sym: name, info, other, section, value, size
RELOCATION = struct.Struct("<QQq")      # Elf64_Rela: offset, symbol << 32 | type, addend
X86_64_RELOCATIONS = 7, 1, 6            # R_X86_64_JUMP_SLOT, _64, _GLOB_DAT
AARCH64_RELOCATIONS = 1026, 257, 1025   # R_AARCH64_JUMP_SLOT, _ABS64, _GLOB_DAT
REPLACED = {
    "PAGE_WRITTEN": "tb_invalidate_phys_page_fast_x86_64",
    "PROTECT_CODE": "tlb_protect_code_x86_64",
    "UNPROTECT_CODE": "tlb_unprotect_code_x86_64",
    "RESET_DIRTY_BY_ADDRESS": "tlb_reset_dirty_by_vaddr_x86_64",
    "LOAD_PHYSICAL_64": "x86_ldq_phys_x86_64",
    "GENERATE_CALL": "tcg_gen_callN_x86_64",
    "GENERATE_EXIT": "tcg_gen_exit_tb_x86_64",
    "ABORT": "cpu_abort_x86_64",
    "FLUSH_BLOCKS": "tb_flush_x86_64",
}
"""Called through the procedure linkage table, by the thunk that replaces them."""

REPLACED_HELPERS = {
    "STORE_8": "helper_ret_stb_mmu_x86_64",
    "STORE_16": "helper_le_stw_mmu_x86_64",
    "STORE_32": "helper_le_stl_mmu_x86_64",
    "STORE_64": "helper_le_stq_mmu_x86_64",
    "SYSENTER": "helper_sysenter_x86_64",
    "WRITE_CONTROL": "helper_write_crN_x86_64",
    "READ_CONTROL": "helper_read_crN_x86_64",
    "READ_FLAGS": "helper_read_eflags_x86_64",
    "FIND_BLOCK": "helper_lookup_tb_ptr_x86_64",
    "STEP": "helper_check_exit_request_x86_64",
}
"""Called by translated code, from the code generator's table of helpers."""

REPLACED_POINTERS = {
    "DEBUG_EXCEPTION": "breakpoint_handler_x86_64",
    "SYSENTER": "helper_sysenter_x86_64",
    "WRITE_CONTROL": "helper_write_crN_x86_64",
    "READ_CONTROL": "helper_read_crN_x86_64",
    "READ_FLAGS": "helper_read_eflags_x86_64",
    "FIND_BLOCK": "helper_lookup_tb_ptr_x86_64",
    "STEP": "helper_check_exit_request_x86_64",
}
"""Taken as an address: by the CPU's class, by the translator."""


class Functions:
    """Disassembly of exported functions of a loaded library."""

    def __init__(self, symbols: abi.Symbols) -> None:
        self.symbols = symbols
        self.engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self.engine.detail = True

    def displacements(self, name: str, size: int = 400) -> list[tuple[str, int]]:
        """(mnemonic, displacement) of each memory operand with a base register, in order."""
        at = self.symbols[name]
        code = bytes(ffi.buffer(ffi.cast("char *", at), size))
        found = []
        for instruction in self.engine.disasm(code, at):
            if instruction.mnemonic in ("nop", "lea"):
                continue
            for operand in instruction.operands:
                if operand.type == capstone.x86.X86_OP_MEM and operand.mem.base not in (0, capstone.x86.X86_REG_RIP):
                    found.append((instruction.mnemonic, operand.mem.disp))
        return found

    def compared(self, name: str, size: int = 0x200) -> list[int]:
        """Displacements of what the function that `name` hands on by its address compares memory with."""
        at = self.symbols[name]
        for instruction in self.engine.disasm(bytes(ffi.buffer(ffi.cast("char *", at), size)), at):
            if instruction.mnemonic == "lea" and instruction.operands[1].mem.base == capstone.x86.X86_REG_RIP:
                start = instruction.address + instruction.size + instruction.operands[1].mem.disp
                code = bytes(ffi.buffer(ffi.cast("char *", start), 0x60))
                return [
                    int(each.operands[0].mem.disp) for each in self.engine.disasm(code, start)
                    if each.mnemonic == "cmp" and each.operands[0].type == capstone.x86.X86_OP_MEM
                ]
        raise LookupError(name)

    def lea(self, name: str) -> int:
        """Displacement of the first LEA."""
        at = self.symbols[name]
        for instruction in self.engine.disasm(bytes(ffi.buffer(ffi.cast("char *", at), 160)), at):
            if instruction.mnemonic == "lea":
                return int(instruction.operands[1].mem.disp)
        raise LookupError(name)


class Witness:
    """A CPU whose state is searched for values written through the public API."""

    EFER = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE

    def __init__(self, library: Any, uc_cpu: int, env: int) -> None:
        self.library = library
        handle = ffi.new("void **")
        if library.uc_open(X86, MODE_64, handle):
            raise OSError("uc_open failed")
        self.uc = handle[0]
        library.uc_ctl(self.uc, control_write(CONTROL_CPU_MODEL), ffi.cast("int", CPU_MODEL_QEMU64))
        self.write(REGISTER_CR3, 0)                         # the first call makes the CPU
        self.env = ffi.cast("char *", ffi.cast("uint64_t *", abi.address(self.uc) + uc_cpu)[0] + env)

    def store(self, register: int, value: bytes) -> None:
        self.library.uc_reg_write(self.uc, register, ffi.from_buffer(value))

    def state(self) -> bytes:
        return bytes(ffi.buffer(self.env, CPU_STATE_BYTES))

    def vendor(self) -> int:
        return self.state().index(b"AuthenticAMD")

    def write(self, register: int, value: int) -> None:
        self.store(register, value.to_bytes(16, "little"))      # none is wider

    def register(self, register: int, value: int = 0x5A5A_1234_5000) -> int:
        self.write(register, value)
        at = self.state().index(struct.pack("<Q", value))
        self.write(register, 0)
        return at

    def register_16(self, register: int) -> int:
        self.write(register, 0)
        before = self.state()
        self.write(register, 0x7F7F)
        pairs = zip(before, self.state(), strict=True)
        at = next(i for i, (old, new) in enumerate(pairs) if (old, new) == (0, 0x7F))
        self.write(register, 0)
        return at

    def msr(self, number: int, value: int | None = None) -> int:
        value = 0x5A5A << 32 | number if value is None else value
        self.store(REGISTER_MSR, MSR.pack(number, value))
        return self.state().index(struct.pack("<Q", value))

    def kept_msrs(self) -> tuple[tuple[int, int, int], ...]:
        """(first number, count, offset) of all MSRs that change the state when they are written."""
        runs: list[tuple[int, int, int]] = []
        for number in (number for numbers in MSR_RANGES for number in numbers):
            if number in (MSR_EFER, MSR_FS_BASE, MSR_GS_BASE):
                continue
            found = self._msr_word(number)
            if found is None:
                continue
            first, count, offset = runs[-1] if runs else (0, 0, 0)
            if runs and (number, found) == (first + count, offset + 8 * count):
                runs[-1] = first, count + 1, offset
            else:
                runs.append((number, 1, found))
        return tuple(runs)

    def _msr_word(self, number: int) -> int | None:
        states = []
        for value in 0, (1 << 64) - 1:
            self.store(REGISTER_MSR, MSR.pack(number, value))
            states.append(self.state())
        if states[0] == states[1]:
            return None
        bits = [clear ^ set_ for clear, set_ in zip(*map(WORDS.unpack, states), strict=True)]
        return 8 * max(range(len(bits)), key=lambda i: bits[i].bit_count())     # some change a hidden flag too


@frozen
class Places:
    """What is read off a library's functions."""

    uc_cpu: int
    no_exit_request: int
    exit_request: int
    icount_decr_ptr: int
    exception_index: int
    exception_is_int: int
    error_code: int
    env: int
    tlb: int
    hflags: int
    intercept: int
    jump_cache: int
    cluster_index: int
    tb_page: int
    tcg_uc: int
    tcg_cpu_env: int
    tcg_operations: int


def machine(path: str) -> str:
    """The kind of host that the library at `path` is for, as `os.uname` names it."""
    with open(path, "rb") as file:
        return {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}.get(ELFFile(file).header["e_machine"], "unknown")


def derive(path: str) -> Layout:
    """The layout of the library at `path`.

    Raises:
        UnsupportedHost: it is for another kind of host.
    """
    kind = machine(path)
    if kind == "aarch64":
        from emu.cpu import derive_aarch64  # needs this module

        return layout_from(*derive_aarch64.look(path), _link_addresses(path, *AARCH64_RELOCATIONS))
    if kind != platform.machine():
        raise UnsupportedHost(f"{path} is not for this host, nor for aarch64")
    places = _look(path)
    witness = Witness(abi.open_library(path), places.uc_cpu, places.env)
    return layout_from(places, witness, _link_addresses(path, *X86_64_RELOCATIONS))


def _look(path: str) -> Places:
    functions = Functions(abi.Symbols(path))
    (icount_decr_ptr, exit_request) = (disp for _, disp in functions.displacements("cpu_exit", 31)[:2])
    exception_index, error_code, exception_is_int = (d for _, d in functions.displacements("x86_cpu_do_interrupt")[:3])
    svm = functions.displacements("cpu_svm_check_intercept_param")
    jump = functions.displacements("tcg_gen_lookup_and_goto_ptr", 102)
    check = functions.displacements("check_exit_request")
    block = [disp for _, disp in functions.displacements("helper_lookup_tb_ptr", 0xC8)]
    operations = functions.displacements("tcg_emit_op", 0x80)
    env = functions.lea("x86_cpu_do_interrupt")
    return Places(
        uc_cpu=functions.displacements("cpu_stop_current")[0][1],
        no_exit_request=check[1][1],
        exit_request=exit_request,
        icount_decr_ptr=icount_decr_ptr,
        exception_index=exception_index,
        exception_is_int=exception_is_int,
        error_code=error_code,
        env=env,
        tlb=functions.lea("tlb_reset_dirty"),
        hflags=svm[0][1] & ~3,
        intercept=next(disp for mnemonic, disp in svm if mnemonic in ("mov", "and", "bt") and _wide(svm, disp)),
        jump_cache=env + next(disp for disp in block if disp < -CPU_STATE_BYTES and disp not in block[:2]),
        cluster_index=env + block[1],
        tb_page=functions.compared("tb_htable_lookup")[1],
        tcg_uc=check[0][1],
        tcg_cpu_env=next(disp for _, disp in jump if disp > CPU_STATE_BYTES),
        tcg_operations=next(disp for mnemonic, disp in operations if mnemonic == "add"),
    )


def layout_from(places: Places, witness: Witness, link_addresses: dict[str, Any]) -> Layout:
    """The row, from what functions, the CPU's state and the file tell."""
    eip = witness.register(REGISTER_RIP)
    vendor = witness.vendor()
    return Layout(
        uc_cpu=places.uc_cpu,
        no_exit_request=places.no_exit_request,
        exit_request=places.exit_request,
        interrupt_request=0x1C,
        icount_decr_ptr=places.icount_decr_ptr,
        opaque=places.exception_index - 8 - 0x28,
        halted=places.exception_index - 8,
        exception_is_int=places.exception_is_int,
        error_code=places.error_code,
        env=places.env,
        tlb=places.tlb,
        eip=eip,
        eflags=eip + 8,
        cc_dst=eip + 16,
        cc_src=eip + 24,
        cc_src2=eip + 32,
        cc_op=eip + 40,
        df=eip + 44,
        hflags=places.hflags,
        segs=places.hflags + 8,
        cr=witness.register(REGISTER_CR3) - 3 * 8,
        efer=witness.msr(MSR_EFER, witness.EFER),
        fpstt=witness.register_16(REGISTER_FPCW) - 6,
        fpregs=witness.register_16(REGISTER_FP0),
        mxcsr=witness.register_16(REGISTER_MXCSR),
        xmm=witness.register_16(REGISTER_XMM0),
        star=witness.msr(MSR_STAR),
        lstar=witness.msr(MSR_LSTAR),
        cstar=witness.msr(MSR_CSTAR),
        fmask=witness.msr(MSR_SFMASK),
        vm_vmcb=places.intercept - 16,
        tsc_offset=places.intercept - 8,
        intercept=places.intercept,
        dr=witness.register(REGISTER_DR0),
        cpuid_version=vendor + 12,
        cpuid_features=vendor + 16,
        jump_cache=places.jump_cache,
        cluster_index=places.cluster_index,
        tb_page=places.tb_page,
        tcg_uc=places.tcg_uc,
        tcg_cpu_env=places.tcg_cpu_env,
        tcg_operations=places.tcg_operations,
        msrs=witness.kept_msrs(),
        **link_addresses,
    )


def _wide(operands: list[tuple[str, int]], disp: int) -> bool:
    """Whether `disp` is the 64-bit mask, which the four 16-bit ones follow at once."""
    return {disp + 8, disp + 10, disp + 12, disp + 14} <= {d for _, d in operands}


def _link_addresses(path: str, jump_slot: int, absolute: int, global_data: int) -> dict[str, Any]:
    replaced = (
        (".rela.plt", jump_slot, REPLACED),
        (".rela.dyn", absolute, REPLACED_HELPERS),
        (".rela.dyn", global_data, REPLACED_POINTERS),
    )
    slots: list[tuple[str, int]] = []
    with open(path, "rb") as file:
        elf = ELFFile(file)
        content = {section.name: section.data() for section in elf.iter_sections() if section.name in TABLES}
        strings = content[".dynstr"]
        symbols = list(SYMBOL.iter_unpack(content[".dynsym"]))
        names = [strings[symbol[0] : strings.index(b"\0", symbol[0])].decode() for symbol in symbols]
        for section, kind, functions in replaced:
            thunks = {names.index(name): thunk for thunk, name in functions.items()}
            for offset, info, _ in RELOCATION.iter_unpack(content[section]):
                if info & 0xFFFF_FFFF == kind and info >> 32 in thunks:
                    slots.append((thunks[info >> 32], offset))
    return {"uc_emu_stop": symbols[names.index("uc_emu_stop")][4], "slots": tuple(slots)}


def _literal(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:#x}"
    rows = (", ".join(f'"{item}"' if isinstance(item, str) else f"{item:#x}" for item in row) for row in value)
    return "(\n" + "".join(f"            ({row}),\n" for row in rows) + "        )"


def main() -> None:
    """Print the row for a library, by default the installed one."""
    path = sys.argv[1] if len(sys.argv) > 1 else abi.library_path()
    layout = derive(path)
    shown = {field.name: getattr(layout, field.name) for field in fields(layout)}
    values = ",\n        ".join(f"{name}={_literal(value)}" for name, value in shown.items())
    print(f'    "{build_id(path)}": Layout(\n        {values},\n    ),')


if __name__ == "__main__":
    main()
