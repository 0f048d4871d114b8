"""The binding to libunicorn and libc: cffi in ABI mode, nothing compiled.

libunicorn.so exports its internals beside its public API. Those called here from Python cannot longjmp; those that can
are only ever called by the machine code of `thunks.lst`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata
from typing import Any

import cffi

from emu.errors import UnsupportedHost

UNICORN_VERSION = "2.1.4"

ffi = cffi.FFI()
ffi.cdef("""
    int uc_open(int arch, int mode, void **uc);
    int uc_close(void *uc);
    int uc_ctl(void *uc, int control, ...);
    int uc_reg_read(void *uc, int register_id, void *value);
    int uc_reg_write(void *uc, int register_id, const void *value);
    int uc_mem_map_ptr(void *uc, uint64_t address, size_t size, uint32_t permissions, void *host);
    int uc_mmio_map(void *uc, uint64_t address, size_t size, void *read, void *read_data, void *write, void *write_data);
    int uc_hook_add(void *uc, size_t *hook, int kind, void *callback, void *data, uint64_t begin, uint64_t end, ...);
    int uc_emu_start(void *uc, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
    int uc_emu_stop(void *uc);
    const char *uc_strerror(int error);
    int64_t cpu_get_ticks_x86_64(void);
    uint64_t helper_cc_compute_all_x86_64(uint64_t dst, uint64_t src1, uint64_t src2, int op);
    void tb_invalidate_phys_range_x86_64(void *uc, uint64_t start, uint64_t end);

    void *dlopen(const char *path, int flags);
    void *dlsym(void *library, const char *name);
    int mprotect(void *address, size_t length, int protection);
    int sigaction(int signal, const void *action, void *old);
    int timer_create(int clock, void *event, void **timer);
    int timer_settime(void *timer, int flags, const int64_t value[4], void *old);
    int timer_delete(void *timer);
""")

libc: Any = ffi.dlopen(None)


def library_path() -> str:
    """Path of the installed libunicorn.

    Raises:
        UnsupportedHost: unicorn is missing, is not version 2.1.4, or this is not Linux on x86-64.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UnsupportedHost(f"this machine is {platform.machine()} {sys.platform}; the CPU layer knows x86-64 Linux only")
    spec = importlib.util.find_spec("unicorn")
    if spec is None or spec.origin is None:
        raise UnsupportedHost(f"unicorn is not installed; pip install unicorn=={UNICORN_VERSION}")
    version = metadata.version("unicorn")
    if version != UNICORN_VERSION:
        raise UnsupportedHost(
            f"unicorn {version} is installed; its internals are known for {UNICORN_VERSION} only: pip install unicorn=={UNICORN_VERSION}"
        )
    return os.path.join(os.path.dirname(spec.origin), "lib", "libunicorn.so.2")


def open_library(path: str) -> Any:
    """Load libunicorn.

    Raises:
        UnsupportedHost: the file is missing or is not a shared library for this host.
    """
    try:
        return ffi.dlopen(path)
    except OSError as error:
        raise UnsupportedHost(f"cannot load libunicorn: {error}") from None


class Symbols:
    """Host addresses of libunicorn's exported functions, by their plain name."""

    def __init__(self, path: str) -> None:
        self._handle = libc.dlopen(path.encode(), os.RTLD_NOW)

    def __getitem__(self, name: str) -> int:
        """Address of `name`, or of its x86-64 instance.

        Raises:
            UnsupportedHost: the library does not export it.
        """
        for candidate in (f"{name}_x86_64", name):
            found = libc.dlsym(self._handle, candidate.encode())
            if found != ffi.NULL:
                return address(found)
        raise UnsupportedHost(f"this libunicorn does not export {name}; pip install --force-reinstall unicorn=={UNICORN_VERSION}")


def address(pointer: Any) -> int:
    """Host address that a cffi pointer holds."""
    return int(ffi.cast("uintptr_t", pointer))
