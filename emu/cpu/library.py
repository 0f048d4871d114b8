"""libunicorn made ready for whole machines, once a process: machine code loaded, some of its functions replaced."""

from __future__ import annotations

import mmap
from functools import cache
from typing import Any

from emu.cpu.abi import Symbols, ffi, libc, library_path, open_library
from emu.cpu.layout import Layout, layout_of
from emu.cpu.thunks import Thunks
from emu.errors import UnsupportedHost

FUNCTIONS = (
    "x86_cpu_do_interrupt",
    "cpu_ldub_code",
    "do_interrupt_x86_hardirq",
    "raise_exception_err",
    "raise_exception_err_ra",
    "helper_rechecking_single_step",
    "cpu_vmexit",
    "cpu_abort",
    "breakpoint_handler",
    "helper_sysenter",
    "helper_write_crN",
    "helper_read_crN",
    "helper_read_eflags",
    "helper_check_iob",
    "helper_check_iow",
    "helper_check_iol",
    "cpu_x86_cpuid",
    "helper_cc_compute_all",
    "uc_emu_stop",
    "tb_invalidate_phys_page_fast",
    "qemu_map_ram_ptr",
    "tlb_reset_dirty",
    "tlb_reset_dirty_by_vaddr",
    "x86_ldq_phys",
    "helper_ret_stb_mmu",
    "helper_le_stw_mmu",
    "helper_le_stl_mmu",
    "helper_le_stq_mmu",
    "helper_check_exit_request",
    "tcg_temp_new_internal",
    "tcg_gen_op3",
    "gen_new_label",
    "tcg_gen_brcondi_i32",
    "tcg_temp_free_internal",
    "tcg_gen_callN",
    "tcg_gen_op1",
    "tcg_gen_exit_tb",
    "helper_lookup_tb_ptr",
    "tb_htable_lookup",
    "tb_flush",
)
OFFSETS = (
    *("exception_is_int", "error_code", "eip", "eflags", "cs", "cs_base"),
    *("cc_dst", "cc_src", "cc_src2", "cc_op", "df", "hflags"),
    *("efer", "star", "star_high", "lstar", "cstar", "fmask", "uc_cpu"),
    *("opaque", "env", "env_opaque", "env_jump_cache", "exception_index", "tlb_mask", "tlb_table"),
    *("tb_page", "tb_second_page", "tcg_uc", "tcg_cpu_env", "tcg_operations"),
)


class Library:
    """The loaded library.

    Attributes:
        api: its functions, by cffi.
        layout: where it keeps its private state.
        thunks: the machine code.
    """

    def __init__(self, path: str) -> None:
        self.layout: Layout = layout_of(path)
        self.api: Any = open_library(path)
        symbols = Symbols(path)
        values = {name: symbols[name] for name in FUNCTIONS}
        values |= {name: getattr(self.layout, name) for name in OFFSETS}
        self.thunks = Thunks(values)
        self._replace_functions(values["uc_emu_stop"] - self.layout.uc_emu_stop)

    def _replace_functions(self, base: int) -> None:
        """Put thunks where libunicorn looks up some functions of its own.

        Two of them make it sound: it notices writes to code by virtual page only, and after the first store through a
        non-executable alias (Linux' direct map) no more, so that reused pages would run old code. With two a hostile
        guest cannot end or block the process (ABORT, DEBUG_EXCEPTION), with one SYSENTER is never skipped. The others
        make it quick. Engines of the process that are not ours are served as before, or better.
        """
        for thunk, slot in self.layout.slots:
            at = base + slot
            page = at & ~(mmap.PAGESIZE - 1)
            if libc.mprotect(ffi.cast("void *", page), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE):
                raise UnsupportedHost("this system does not let libunicorn's link table be changed")
            ffi.cast("uint64_t *", at)[0] = self.thunks[thunk]


@cache
def load() -> Library:
    """The process' libunicorn.

    Raises:
        UnsupportedHost: another version or build, or another kind of host.
    """
    return Library(library_path())
