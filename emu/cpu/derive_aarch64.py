"""What `derive` reads off a libunicorn for aarch64 hosts, on a host of any kind.

The file cannot be loaded where it does not belong, so single functions of it are run in an aarch64 engine of Unicorn's,
on objects that are all zero. Which memory such a function touches tells where a structure keeps what; what the register
accessors store tells it of the guest's registers. Nothing is initialised, and imports do nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import unicorn
from elftools.elf.elffile import ELFFile
from unicorn import arm64_const as arm64

from emu.cpu.constants import EFER_LME, EFER_NXE, EFER_SCE, EXIT_MSR, HF_GUEST, MODE_64, REGISTER_MSR, VM_EXIT
from emu.cpu.derive import AARCH64_RELOCATIONS, CPU_STATE_BYTES, MSR, RELOCATION, SYMBOL, TABLES, Places, Witness
from emu.cpu.layout import FEATURE_WORDS

R_AARCH64_RELATIVE = 1027

API: Any = unicorn                      # which has few types

MIB = 1 << 20
NULL, OBJECT, SCRATCH, STACK, STUBS, BASE = (n * MIB for n in (0, 1, 2, 3, 4, 16))
END = STUBS + 16                        # where a call returns to
RETURN_ZERO = struct.pack("<II", 0xD280_0000, 0xD65F_03C0)       # mov x0, #0; ret
LIMIT = 1_000_000                       # instructions; a function that needs more is not understood
MSR_MCG_CAP = 0x179
MCE_CAPABILITIES = 1 << 24 | 1 << 8 | 10        # target/i386/cpu.h: MCE_CAP_DEF, MCE_BANKS_DEF
FEATURES_FROM_VENDOR = 16
ARGUMENTS = tuple(range(arm64.UC_ARM64_REG_X0, arm64.UC_ARM64_REG_X0 + 8))


class Image:
    """A library in an engine's memory, relocated, with zeroed objects for its functions to work on.

    Besides OBJECT there is one at address 0, so that what a null pointer of it leads to can be seen, too.
    """

    def __init__(self, path: str) -> None:
        self.engine = API.Uc(API.UC_ARCH_ARM64, API.UC_MODE_ARM)
        for start in (NULL, OBJECT, SCRATCH, STACK, STUBS):
            self.engine.mem_map(start, MIB)
        self.engine.mem_write(STUBS, RETURN_ZERO)
        with open(path, "rb") as file:
            elf = ELFFile(file)
            self._load(elf)
            self._relocate(elf)

    def _load(self, elf: ELFFile) -> None:
        segments = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
        end = max(segment["p_vaddr"] + segment["p_memsz"] for segment in segments)
        self.engine.mem_map(BASE, -(-end // MIB) * MIB)
        for segment in segments:
            self.engine.mem_write(BASE + segment["p_vaddr"], segment.data())

    def _relocate(self, elf: ELFFile) -> None:
        content = {section.name: section.data() for section in elf.iter_sections() if section.name in TABLES}
        strings, symbols = content[".dynstr"], list(SYMBOL.iter_unpack(content[".dynsym"]))
        self.symbols = {
            strings[name : strings.index(b"\0", name)].decode(): (BASE + value, size)
            for name, _, _, section, value, size in symbols
            if section
        }
        for table in (".rela.dyn", ".rela.plt"):
            for offset, info, addend in RELOCATION.iter_unpack(content[table]):
                kind, (_, _, _, section, value, _) = info & 0xFFFF_FFFF, symbols[info >> 32]
                if kind == R_AARCH64_RELATIVE:
                    self.write(BASE + offset, BASE + addend)
                elif kind in AARCH64_RELOCATIONS:
                    self.write(BASE + offset, BASE + value + addend if section else STUBS)

    def write(self, at: int, value: int) -> None:
        """Store a 64-bit word, an address as it is in the engine."""
        self.engine.mem_write(at, struct.pack("<Q", value))

    def call(self, name: str, *arguments: int, until: str | None = None) -> int:
        """Run a function, to its end or until it enters another one.

        Returns:
            X0 at that time.

        Raises:
            unicorn.UcError: it touched what is not there.
        """
        engine = self.engine
        for register, value in zip(ARGUMENTS, arguments, strict=False):
            engine.reg_write(register, value)
        engine.reg_write(arm64.UC_ARM64_REG_SP, STACK + MIB // 2)
        engine.reg_write(arm64.UC_ARM64_REG_LR, END)
        engine.emu_start(self.symbols[name][0], END if until is None else self.symbols[until][0], count=LIMIT)
        return int(engine.reg_read(ARGUMENTS[0]))

    def touched(self, name: str, *arguments: int) -> list[int]:
        """Offsets in the objects of what the function's own instructions load and store, in order."""
        found: list[int] = []
        start, size = self.symbols[name]

        def on_access(engine: Any, _kind: int, address: int, _size: int, _value: int, _data: object) -> None:
            if start <= engine.reg_read(arm64.UC_ARM64_REG_PC) < start + size and address < SCRATCH:
                found.append(address % MIB)

        hook = self.engine.hook_add(API.UC_HOOK_MEM_READ | API.UC_HOOK_MEM_WRITE, on_access)
        try:
            self.call(name, *arguments)
        except API.UcError:         # behind what was looked for: an object that is all zero is not a sound one
            pass
        finally:
            self.engine.hook_del(hook)
        return found

    def clear(self) -> None:
        """Make the objects zero again."""
        for start in (NULL, OBJECT, SCRATCH):
            self.engine.mem_write(start, bytes(MIB))


class StoredState(Witness):
    """A CPUX86State that the library's own register accessors write to and read from.

    Its CPU has every feature, and as many machine check banks as QEMU gives one. It is not in long mode.
    """

    EFER = EFER_SCE | EFER_LME | EFER_NXE

    def __init__(self, image: Image) -> None:
        self.image = image
        image.clear()
        self._vendor = self._where(lambda: self._cpuid(0)[1])
        mcg_cap = self._where(lambda: self._read_msr(MSR_MCG_CAP))
        image.engine.mem_write(OBJECT, bytes(CPU_STATE_BYTES))
        image.write(OBJECT + mcg_cap, MCE_CAPABILITIES)
        image.engine.mem_write(OBJECT + self._vendor + FEATURES_FROM_VENDOR, b"\xff" * 8 * len(FEATURE_WORDS))

    def _where(self, read: Callable[[], int]) -> int:
        """Where in the state a 32-bit value is read from: each word of the state is its own offset."""
        words = CPU_STATE_BYTES // 4
        self.image.engine.mem_write(OBJECT, struct.pack(f"<{words}I", *range(0, CPU_STATE_BYTES, 4)))
        return read() & 0xFFFF_FFFF

    def _cpuid(self, leaf: int) -> tuple[int, ...]:
        answer = [SCRATCH + 4 * n for n in range(4)]
        self.image.call("cpu_x86_cpuid_x86_64", OBJECT, leaf, 0, *answer)
        return struct.unpack("<4I", self.image.engine.mem_read(SCRATCH, 16))

    def _read_msr(self, number: int) -> int:
        self._access("reg_read_x86_64", REGISTER_MSR, MSR.pack(number, 0))
        return int(MSR.unpack(self.image.engine.mem_read(SCRATCH + 16, MSR.size))[1])

    def _access(self, accessor: str, register: int, value: bytes) -> None:
        self.image.engine.mem_write(SCRATCH, struct.pack("<QQ", 16, 0) + value)     # its size, whether RIP was set
        self.image.call(accessor, OBJECT, MODE_64, register, SCRATCH + 16, SCRATCH, SCRATCH + 8)

    def store(self, register: int, value: bytes) -> None:
        self._access("reg_write_x86_64", register, value)

    def state(self) -> bytes:
        return bytes(self.image.engine.mem_read(OBJECT, CPU_STATE_BYTES))

    def vendor(self) -> int:
        return self._vendor


def look(path: str) -> tuple[Places, Witness]:
    """What the functions of the library at `path` tell, and a state to try its registers on."""
    image = Image(path)
    icount_decr_ptr, exit_request = image.touched("cpu_exit", OBJECT)[:2]
    exception_index, error_code, exception_is_int = image.touched("x86_cpu_do_interrupt_x86_64", OBJECT)[:3]
    image.write(OBJECT + exception_index, VM_EXIT)
    env = image.call("x86_cpu_do_interrupt_x86_64", OBJECT, until="do_vmexit_x86_64") - OBJECT
    image.clear()
    tcg_uc, no_exit_request = image.touched("check_exit_request_x86_64", OBJECT)[:2]
    (hflags,) = image.touched("cpu_svm_check_intercept_param_x86_64", OBJECT, EXIT_MSR)
    image.write(OBJECT + hflags, HF_GUEST)
    _, intercept = image.touched("cpu_svm_check_intercept_param_x86_64", OBJECT, EXIT_MSR)
    image.clear()
    lookup = image.touched("helper_lookup_tb_ptr_x86_64", OBJECT + env)
    image.clear()
    places = Places(
        uc_cpu=image.touched("cpu_stop_current_x86_64", OBJECT)[0],
        no_exit_request=no_exit_request,
        exit_request=exit_request,
        icount_decr_ptr=icount_decr_ptr,
        exception_index=exception_index,
        exception_is_int=exception_is_int,
        error_code=error_code,
        env=env,
        tlb=_first_tlb(image),
        hflags=hflags,
        intercept=intercept,
        jump_cache=lookup[lookup.index(hflags) + 1],        # the first of it: the guest's address is 0
        cluster_index=lookup[1],
        tb_page=image.touched("tb_phys_invalidate_x86_64", NULL, OBJECT, (1 << 64) - 1)[0],
        tcg_uc=tcg_uc,
        tcg_cpu_env=image.touched("tcg_gen_lookup_and_goto_ptr_x86_64", OBJECT)[0],
        tcg_operations=_operations(image),
    )
    return places, StoredState(image)


def _operations(image: Image) -> int:
    """Offset from tcg of the number of operations, which tcg_op_remove(tcg, operation) lessens."""
    image.clear()
    return next(offset for offset in image.touched("tcg_op_remove_x86_64", OBJECT, SCRATCH) if 0 < offset < 0x1000)


def _first_tlb(image: Image) -> int:
    """Offset from env of the first MMU mode's TLB, which tlb_reset_dirty(cpu) starts with."""
    image.clear()
    (env_ptr,) = image.touched("tlb_reset_dirty_x86_64", OBJECT)
    env = MIB // 2
    image.write(OBJECT + env_ptr, OBJECT + env)
    return image.touched("tlb_reset_dirty_x86_64", OBJECT)[1] - env
