"""The multiboot kernels of tests/multiboot on QEMU and here: what they print, and the status they end with.

    python -m tests.oracle.multiboot

Left out of the comparison is what describes the machine: the memory map, and the kernel's path, which QEMU puts before
its command line. The exit status is 1 if anything else differs, and 2 without QEMU.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from bench.serial_guest import QEMU, QEMU_MISSING, have_qemu
from tests.multiboot.images import BASE, elf, kernel
from tests.multiboot.listing import KERNELS

__all__ = ["Ending", "ours", "qemu", "write_files"]

WORDS = 'one  two=3 "four"'
MEGABYTES = 64
TIMEOUT_S = 60.0


class Ending(NamedTuple):
    """How a kernel has ended: the status of its process, and what it printed, as far as that can be compared."""

    status: int
    lines: list[str]


def write_files(directory: Path, name: str) -> tuple[Path, str]:
    """A kernel as an ELF32 file, and the module for it with its words."""
    path, module = directory / f"{name}.elf", directory / "module"
    path.write_bytes(elf([(BASE, BASE, kernel(name), 0x1000)]))
    module.write_text("what is in the module")
    return path, f"{module} its words"


def qemu(path: Path, module: str) -> Ending:
    """Run a kernel on QEMU."""
    return _run(
        path, QEMU, "-accel", "tcg", "-m", str(MEGABYTES), "-display", "none", "-serial", "stdio", "-no-reboot",
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        *("-kernel", str(path), "-append", WORDS, "-initrd", module),
    )  # fmt: skip


def ours(path: Path, module: str) -> Ending:
    """Run a kernel here."""
    return _run(
        path, sys.executable, "-m", "emu", "boot", "--memory", f"{MEGABYTES}M",
        *("--kernel", str(path), "--append", WORDS, "--initrd", module),
    )  # fmt: skip


def _run(path: Path, *command: str) -> Ending:
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    text = ended.stdout.decode("utf-8", "replace").replace(f"command line: {path} ", "command line: ")
    return Ending(ended.returncode, [line for line in text.splitlines() if not line.startswith("memory ")])


def main() -> int:
    """Compare all of them, and say how that went."""
    if not have_qemu():
        print(QEMU_MISSING)
        return 2
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        for name in KERNELS:
            files = write_files(Path(directory), name)
            theirs, own = qemu(*files), ours(*files)
            failed += theirs != own
            print(f"{name:<12} {'the same' if theirs == own else 'DIFFERENT'}, status {own.status}")
            if theirs != own:
                print(f"  QEMU: {theirs}\n  here: {own}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
