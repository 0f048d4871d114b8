"""The guests of the benchmarks: Debian's kernels, and initramfs files that our machine and a rival can share."""

from __future__ import annotations

import gzip
import io
import os
import stat
from pathlib import Path

from bench.common import OUTPUT
from emu.cache import Cache
from emu.errors import EmuError
from emu.fetch import fetch_busybox, fetch_guest
from emu.images.cpio import Entry, write_archive
from emu.images.modules import load_modules
from emu.images.root import load_root

__all__ = ["KERNELS", "ROOTS", "initramfs_file", "kernel_file", "root_file"]

KERNELS = ("generic", "cloud")
ROOTS = ("alpine", "busybox")

EXECUTABLE = stat.S_IFREG | 0o755
GZIP_LEVEL = 6


def kernel_file(kernel: str) -> Path:
    """Debian's bzImage of a kind in `KERNELS`, fetched if the cache has none."""
    return fetch_guest(Cache(), kernel, say=print).kernel_path


def root_file(root: str) -> Path:
    """A root of `ROOTS`: Alpine's minirootfs, or Debian's static busybox; fetched if the cache has none.

    Raises:
        EmuError: no source has it.
    """
    if root == "busybox":
        return fetch_busybox(Cache(), say=print)
    path = fetch_guest(Cache(), "cloud", say=print).root_path     # the kernel that needs no other source
    if ".tar" not in path.name:
        raise EmuError(f"this machine has no Alpine minirootfs, only {path.name}")
    return path


def initramfs_file(
    root: str, scripts: dict[str, str] | None = None, compress: bool = True, modules: str | None = None
) -> Path:
    """Write an initramfs that any machine can boot, and return its path under bench/out.

    Args:
        root: of `ROOTS`; the package's init is in it.
        scripts: text by name, put in the root directory of the guest as executable files.
        compress: with gzip, as distributions ship theirs.
        modules: of `KERNELS`; that kernel's modules for virtio devices are in it.
    """
    archive = io.BytesIO()
    archive.write(load_root(root_file(root), Cache()))
    archive.write(bytes(-archive.tell() % 4))       # Linux takes archives one behind the other, four-byte aligned
    if modules:
        archive.write(load_modules(fetch_guest(Cache(), modules, say=print).package_path, Cache()))
    if scripts:
        write_archive([Entry(name, EXECUTABLE, text.encode()) for name, text in scripts.items()], archive)
    data = archive.getvalue()
    name = "-".join([root, *([modules] if modules else []), *(name.removesuffix(".sh") for name in scripts or {})])
    path = OUTPUT / f"{name}.cpio{'.gz' if compress else ''}"
    OUTPUT.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(gzip.compress(data, GZIP_LEVEL, mtime=0) if compress else data)
    os.replace(partial, path)
    return path
