"""A root that the guest mounts, over 9p or from a block device, instead of having it unpacked into its memory.

The kernel starts with a tiny initramfs: a busybox, and a script that loads the drivers, mounts the root and hands
over to this package's init in there. The busybox stays in memory below /run/emu, so that init works in every
distribution's root, and nothing has to be written into that.
"""

from __future__ import annotations

import os
import stat
import struct
from io import BytesIO
from pathlib import Path

from emu.cache import Cache, content_key
from emu.errors import BadImage
from emu.images.alpine import read_tar
from emu.images.cpio import Entry, write_archive
from emu.images.inside import DEVICES, DIRECTORY, INIT_SCRIPT, LINK, own_files, program, scripts
from emu.loader.kernel import map_file

__all__ = ["CONFIGURATION_TAG", "ROOT_TAG", "mounted_root_initramfs"]

ROOT_SCRIPT = Path(__file__).with_name("root.sh")
MODPROBE_SCRIPT = Path(__file__).with_name("modprobe.sh")

ROOT_TAG = "emu-root"
"""Mount tag of the share that is the guest's root, unless its command line says root=."""
CONFIGURATION_TAG = "emu-config"
"""Mount tag of the directory that configures the guest."""

KIND = "mounted"
FORMAT = b"mounted root 1"

HOME = "run/emu"
BUSYBOX = f"{HOME}/busybox"
LOADER = f"{HOME}/ld"
# The names under which root.sh and the kernel, which looks for /sbin/modprobe, call the busybox.
APPLETS = ("bin/sh", *(f"bin/{name}" for name in ("cp", "modprobe", "mount", "poweroff", "switch_root")))
DIRECTORIES = ("bin", "dev", "lib", "newroot", "proc", "run", "sbin", "sys")

ELF64 = b"\x7fELF\x02"
PROGRAM_TABLE_OFFSET = 0x20
PROGRAM_COUNTS_OFFSET = 0x36  # e_phentsize, e_phnum
PROGRAM_HEADER = struct.Struct("<IIQQQQ")  # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz
INTERPRETER = 3  # PT_INTERP


def mounted_root_initramfs(tools: Path | str, cache: Cache) -> memoryview:
    """Make the initramfs that mounts the guest's root; put the archive of `load_modules` behind it.

    The root is the 9p share with the tag `ROOT_TAG`, or what the kernel's command line says: root=TAG or
    root=/dev/vda, rootfstype= (ext4), rootflags= (added to those of a share), ro. It needs a /bin/sh, and the
    directories /dev, /proc, /run, /sys and /tmp.

    Args:
        tools: where a busybox is taken from: Alpine's minirootfs or another tar archive with bin/busybox and no
            library besides its loader, or a static busybox itself.
        cache: keeps what was made for the next time.

    Raises:
        BadImage: no such archive or program, or a damaged one.
    """
    packed = map_file(tools)
    key = content_key(FORMAT, scripts(), packed)
    found = cache.find(KIND, key)
    if found is None:
        archive = _archive(packed, os.path.basename(tools))
        found = cache.store(KIND, key, lambda handle: handle.write(archive))
    return map_file(found)


def _archive(packed: memoryview, name: str) -> bytes:
    entries = [Entry(directory, DIRECTORY) for directory in DIRECTORIES]
    entries += DEVICES
    entries += own_files(HOME)
    entries.append(program(f"{HOME}/bin/modprobe", MODPROBE_SCRIPT.read_bytes()))
    # modprobe.sh makes this directory a root, in which the busybox has to find its loader under the same name.
    entries += [Entry(f"{HOME}/{name}", DIRECTORY) for name in ("lib", "run")]
    entries.append(Entry(f"{HOME}/{HOME}", LINK, b"/"))
    entries += _busybox(packed, name)
    entries += [Entry(applet, LINK, f"/{BUSYBOX}".encode()) for applet in (*APPLETS, "sbin/modprobe")]
    entries.append(program(f"{HOME}/init", INIT_SCRIPT.read_bytes()))
    entries.append(program("init", ROOT_SCRIPT.read_bytes()))
    output = BytesIO()
    write_archive(entries, output)
    return output.getvalue()


def _busybox(packed: memoryview, name: str) -> list[Entry]:
    """The busybox, and its dynamic loader if it has one: in a root that is another's, it is not where it should be."""
    if bytes(packed[: len(ELF64)]) == ELF64:
        executable, files = bytes(packed), {}
    else:
        files = read_tar(packed, name)
        if "bin/busybox" not in files:
            raise BadImage(f"{name} has no bin/busybox")
        executable = bytes(files["bin/busybox"].data)
    start, size = _interpreter(executable, name)
    if not size:
        return [program(BUSYBOX, executable)]
    path = executable[start : start + size].rstrip(b"\0").decode("utf-8", "surrogateescape")
    loader = files.get(path.lstrip("/"))
    if loader is None or not stat.S_ISREG(loader.mode) or len(LOADER) + 2 > size:
        raise BadImage(f"the busybox of {name} needs {path}, which cannot be taken along")
    moved = f"/{LOADER}".encode().ljust(size, b"\0")
    return [
        program(BUSYBOX, executable[:start] + moved + executable[start + size :]),
        program(LOADER, loader.data),
    ]


def _interpreter(executable: bytes, name: str) -> tuple[int, int]:
    """Offset and size of the dynamic loader's name in an ELF file; size 0 if it is static."""
    try:
        if not executable.startswith(ELF64):
            raise ValueError
        (table,) = struct.unpack_from("<Q", executable, PROGRAM_TABLE_OFFSET)
        size, count = struct.unpack_from("<HH", executable, PROGRAM_COUNTS_OFFSET)
        for number in range(count):
            kind, _, offset, _, _, length = PROGRAM_HEADER.unpack_from(executable, table + number * size)
            if kind == INTERPRETER:
                return offset, length
    except (ValueError, struct.error, OverflowError):
        raise BadImage(f"the busybox of {name} is no 64-bit ELF program") from None
    return 0, 0
