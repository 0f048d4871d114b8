"""libunicorn's engine for one CPU, opened and made ready: its registers, its memory, its hooks."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

from emu.cpu import cpuid
from emu.cpu.abi import address, ffi
from emu.cpu.constants import (
    CONTROL_CPU_MODEL,
    CONTROL_TCG_BUFFER_SIZE,
    CONTROL_USE_EXITS,
    CPU_MODEL_QEMU64,
    MODE_64,
    PERMISSION_ALL,
    REGISTER_EFLAGS,
    REGISTER_FPCW,
    REGISTER_FPTAG,
    REGISTER_MSR,
    REGISTER_MXCSR,
    RFLAGS_FIXED,
    RFLAGS_IF,
    X86,
    control_write,
)
from emu.cpu.layout import FEATURE_WORDS
from emu.cpu.library import load
from emu.cpu.registers import MASK_64, Registers
from emu.errors import EmuError

__all__ = ["Engine"]

PAGE_SHIFT = 12
TCG_BUFFER_BYTES = 256 << 20

POWER_ON = (REGISTER_FPCW, 0x37F), (REGISTER_FPTAG, 0xFFFF), (REGISTER_MXCSR, 0x1F80)
"""libunicorn zeroes these; as firmware leaves them (Intel SDM volume 3, table 9-1, and FNINIT)."""


class Engine:
    """What a `Cpu` is made of.

    Attributes:
        registers: the guest's.
        context: what the machine code of ours knows.
        code_pages: a byte for each page of RAM, 1 where code was translated; None while that is not known.
        ram_bytes: of all RAM that is mapped.

    Raises:
        UnsupportedHost: this host, or its libunicorn, is not a known one.
    """

    def __init__(self) -> None:
        self._library = load()
        self._api = self._library.api
        self._failure: BaseException | None = None
        self._keep: list[object] = []   # what libunicorn points at
        self.code_pages: mmap.mmap | None = None
        self.ram_bytes = 0
        self._uc: Any = None

    def _open(self) -> None:
        layout = self._library.layout
        handle = ffi.new("void **")
        self._check(self._api.uc_open(X86, MODE_64, handle), "uc_open")
        self._uc = handle[0]
        self._control(CONTROL_CPU_MODEL, CPU_MODEL_QEMU64)
        self._control(CONTROL_USE_EXITS, 1)         # none set: leaving a run would probe `until`, and clobber CR2
        self._control(CONTROL_TCG_BUFFER_SIZE, TCG_BUFFER_BYTES)
        self.write_register(REGISTER_EFLAGS, RFLAGS_FIXED)     # the first call makes the CPU
        for register, value in POWER_ON:
            self.write_register(register, value)
        uc = address(self._uc)
        self._cpu = int(ffi.cast("uint64_t *", uc + layout.uc_cpu)[0])
        self._env = self._cpu + layout.env
        ffi.cast("uint8_t *", uc + layout.no_exit_request)[0] = 1   # else a stop restarts half-done instructions
        self.registers = Registers(self._api, layout, self._env)
        self._general = self.registers.general
        self._rip = ffi.cast("uint64_t *", self._env + layout.eip)
        self._eflags = ffi.cast("uint64_t *", self._env + layout.eflags)
        self._hflags = ffi.cast("uint32_t *", self._env + layout.hflags)
        self._halted = ffi.cast("uint32_t *", self._cpu + layout.halted)
        self._error_code = ffi.cast("int32_t *", self._cpu + layout.error_code)
        self._interrupt_request = ffi.cast("uint32_t *", self._cpu + layout.interrupt_request)
        decrementer = int(ffi.cast("uint64_t *", self._cpu + layout.icount_decr_ptr)[0])
        self._break_chain = ffi.cast("uint16_t *", decrementer + 2)
        self._tsc_offset = ffi.cast("int64_t *", self._env + layout.tsc_offset)
        self.context = ffi.new("struct context *")
        self.context.cpu, self.context.env, self.context.uc = self._cpu, self._env, uc

    def _present_features(self) -> None:
        words = ffi.cast("uint64_t *", self._env + self._library.layout.cpuid_features)
        adjusted = cpuid.adjust({name: int(words[i]) for i, name in enumerate(FEATURE_WORDS)})
        for i, name in enumerate(FEATURE_WORDS):
            words[i] = adjusted[name]

    def _add_hook(self, kind: int, thunk: str, instruction: int | None = None) -> None:
        extra = () if instruction is None else (ffi.cast("int", instruction),)
        code = ffi.cast("void *", self._library.thunks[thunk])
        # begin above end: everywhere
        self._check(self._api.uc_hook_add(self._uc, ffi.new("size_t *"), kind, code, self.context, 1, 0, *extra), thunk)

    def _check(self, error: int, what: str) -> None:
        if error:
            raise EmuError(f"libunicorn: {what}: {ffi.string(self._api.uc_strerror(error)).decode()}")

    def _control(self, control: int, value: int) -> None:
        self._check(self._api.uc_ctl(self._uc, control_write(control), ffi.cast("int", value)), f"control {control}")

    def _on_error(self, _kind: Any, error: BaseException, _trace: Any) -> None:
        """An exception left a callback, which returns 0: no frame below can take it, so keep it for `run`."""
        if self._failure is None:
            self._failure = error
        self.stop()

    def stop(self) -> None:
        """Make `run` come back soon, from inside an exit or from another thread; may be lost between runs."""
        if self._uc is not None:
            self._api.uc_emu_stop(self._uc)

    def _close_engine(self) -> None:
        """Free it, and let go of what it points at."""
        if self._uc is not None:
            uc, self._uc = self._uc, None
            self._api.uc_close(uc)
            self._keep.clear()

    # -- memory ------------------------------------------------------------------------------------------------

    def map_ram(self, guest: int, host: Any) -> int:
        """Make host memory visible to the guest.

        Args:
            guest: guest-physical address, page-aligned.
            host: a writable buffer of whole pages; it must outlive the CPU.

        Returns:
            Its ram address: where libunicorn's translation bookkeeping has it.
        """
        buffer = ffi.from_buffer(host)
        self._keep.append(buffer)
        error = self._api.uc_mem_map_ptr(self._uc, guest, len(buffer), PERMISSION_ALL, buffer)
        self._check(error, f"RAM at {guest:#x}")
        context, ram_address = self.context, self.ram_bytes
        if not context.ram_bytes:
            context.ram_base = address(buffer)
        if context.ram_base + context.ram_bytes == address(buffer):     # the quick paths know one stretch of the host
            context.ram_bytes += len(buffer)
            if guest == 0:
                context.low_bytes = len(buffer)
        self.ram_bytes += len(buffer)
        return ram_address

    def map_mmio(
        self, guest: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Give a guest-physical range to a device.

        Args:
            guest, size: the range, page-aligned.
            read: (guest-physical address, size in bytes) -> value.
            write: (guest-physical address, size in bytes, value).
        """

        def on_read(_uc: Any, offset: int, width: int, _data: Any) -> int:
            return read(guest + offset, width)

        def on_write(_uc: Any, offset: int, width: int, value: int, _data: Any) -> None:
            write(guest + offset, width, value)

        reader = ffi.callback("uint64_t(void *, uint64_t, unsigned, void *)", on_read, onerror=self._on_error)
        writer = ffi.callback("void(void *, uint64_t, unsigned, uint64_t, void *)", on_write, onerror=self._on_error)
        self._keep += [reader, writer]
        error = self._api.uc_mmio_map(self._uc, guest, size, reader, ffi.NULL, writer, ffi.NULL)
        self._check(error, f"MMIO at {guest:#x}")

    def drop_code(self, start: int, end: int) -> None:
        """Forget what was translated from the ram addresses start..end: their bytes have changed behind the CPU."""
        pages = self.code_pages
        if pages is None or pages.find(b"\1", start >> PAGE_SHIFT, -(-end >> PAGE_SHIFT)) >= 0:
            self._api.tb_invalidate_phys_range_x86_64(self._uc, start, end)

    # -- registers ---------------------------------------------------------------------------------------------

    def write_register(self, register: int, value: int) -> None:
        """Set a register by its number in libunicorn's API."""
        self._check(self._api.uc_reg_write(self._uc, register, ffi.new("uint64_t *", value)), f"register {register}")

    def write_table(self, register: int, table: tuple[int, int]) -> None:
        """Set GDTR or IDTR to a base and a limit."""
        value = ffi.new("struct descriptor_table *", (0, *table, 0))
        self._check(self._api.uc_reg_write(self._uc, register, value), f"register {register}")

    def write_msr(self, number: int, value: int) -> None:
        """Set an MSR that libunicorn keeps itself."""
        error = self._api.uc_reg_write(self._uc, REGISTER_MSR, ffi.new("struct msr *", (number, value)))
        self._check(error, f"MSR {number:#x}")

    def read_msr(self, number: int) -> int:
        """Value of an MSR that libunicorn keeps itself."""
        value = ffi.new("struct msr *", (number, 0))
        self._check(self._api.uc_reg_read(self._uc, REGISTER_MSR, value), f"MSR {number:#x}")
        return int(value.value)

    def tsc(self) -> int:
        """What RDTSC would read in the guest now."""
        return int(self._api.cpu_get_ticks_x86_64() + self._tsc_offset[0]) & MASK_64

    def set_tsc(self, value: int) -> None:
        """Have RDTSC go on from `value`."""
        self._tsc_offset[0] = ffi.cast("int64_t", value - self._api.cpu_get_ticks_x86_64())

    @property
    def halted(self) -> bool:
        """Whether the last run ended with HLT; the next one goes on behind it."""
        return bool(self._halted[0])

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF."""
        return bool(self._eflags[0] & RFLAGS_IF)
