"""What snapshots ask of libc and Python has no call for; `python -m emu.snapshot.declarations` makes `_libc.py` of it.

As in `emu.cpu.declarations`: cffi's ABI mode, out of line, nothing compiled. tests/snapshot/test_libc.py compares.
"""

from __future__ import annotations

from pathlib import Path

DECLARATIONS = """
    uintptr_t mmap(uintptr_t address, size_t length, int protection, int flags, int fd, int64_t offset);
    int renameat2(int old_directory, const char *old, int new_directory, const char *new, unsigned int flags);
"""

OUTPUT = Path(__file__).with_name("_libc.py")


def generate(output: Path = OUTPUT) -> None:
    """Write the module."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source("emu.snapshot._libc", None)
    ffi.emit_python_code(str(output))


if __name__ == "__main__":
    generate()
