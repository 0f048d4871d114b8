"""The kernel modules that the machine's devices need, out of a kernel package, as an archive beside the initramfs.

Distribution kernels have virtio, 9p and ext4 as modules. Wanted ones, and what those depend on, go into a cpio
archive with the two lists that busybox' modprobe reads. Whatever the kernel has built in or lacks is left out.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from emu.cache import Cache, content_key
from emu.errors import BadImage
from emu.images.cpio import Entry, write_archive
from emu.loader.decompress import decompress, identify

__all__ = ["WANTED", "Module", "load_modules", "read_module"]

WANTED = (
    *("virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "vmw_vsock_virtio_transport"),
    *("9p", "9pnet_virtio"),
    # ext4 asks for a crc32c by an alias, which is no dependency; the generic one does on every CPU.
    *("ext4", "crc32c_generic", "crc32c_intel"),
    *("overlay", "msr"),
)
"""Names of modules, underscores for hyphens."""

# What the wanted modules of known kernels depend on. A package is read from front to end, and what a dependency is
# named is known too late: another kernel's dependencies cost a second reading.
USUAL = (
    *("virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev"),
    *("vmw_vsock_virtio_transport_common", "vsock", "9pnet", "netfs", "fscache", "jbd2", "mbcache", "crc16"),
)

KIND = "modules"
FORMAT = b"modules 1"
MODULE_MAX = 64 << 20
MODULE_PATH = re.compile(r"(?:usr/)?lib/modules/([^/]+)/(?:.*/)?([^/]+)\.ko(?:\.gz|\.xz|\.zst)?")
# A package's first bytes hold its description with every file's checksum, its last ones its compressor's checksum.
KEY_BYTES = 256 << 10

ELF64 = b"\x7fELF\x02"
SECTION_TABLE_OFFSET = 0x28
SECTION_COUNTS_OFFSET = 0x3A  # e_shentsize, e_shnum, e_shstrndx
SECTION = struct.Struct("<IIQQQQ")  # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size

DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644


class Module(NamedTuple):
    """A module's file, expanded, with the names of the modules it depends on directly and the aliases it answers to."""

    name: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def load_modules(source: Path | str, cache: Cache) -> memoryview:
    """Make an archive of a kernel's modules, to be put behind the initramfs.

    It holds lib/modules/RELEASE with the modules, modules.dep and modules.alias, but not lib itself, which the
    initramfs has and which may be a symbolic link there. Its length is a multiple of four, as Linux wants it of
    archives put one behind the other. It is empty if there are no such modules.

    Args:
        source: a kernel package (.deb, .apk), or a directory lib/modules/RELEASE.
        cache: keeps what was made of a package for the next time. A directory is read each time.

    Raises:
        BadImage: missing, damaged, neither of these, or with modules of several kernels.
    """
    if os.path.isdir(source):
        return memoryview(_archive(_Directory(os.fspath(source))))
    key = _package_key(source)
    found = cache.find(KIND, key)
    if found is None:
        archive = _archive(_Package(Path(source)))
        found = cache.store(KIND, key, lambda handle: handle.write(archive))
    if os.path.getsize(found) == 0:
        return memoryview(b"")
    from emu.loader.kernel import map_file

    return map_file(found)


def read_module(name: str, data: bytes) -> Module:
    """Read a module's description, the section .modinfo of its ELF file.

    Raises:
        BadImage: no 64-bit ELF file, or a damaged one.
    """
    fields = [field.partition(b"=")[::2] for field in _modinfo(name, data).split(b"\0")]
    depends = [_plain(part) for key, value in fields if key == b"depends" for part in _text(value).split(",") if part]
    return Module(name, data, tuple(depends), tuple(_text(value) for key, value in fields if key == b"alias"))


def _modinfo(name: str, data: bytes) -> bytes:
    try:
        if not data.startswith(ELF64):
            raise ValueError
        (table,) = struct.unpack_from("<Q", data, SECTION_TABLE_OFFSET)
        size, count, names = struct.unpack_from("<HHH", data, SECTION_COUNTS_OFFSET)
        sections = [SECTION.unpack_from(data, table + number * size) for number in range(count)]
        strings = sections[names][4]
        for section_name, _, _, _, offset, length in sections:
            if data.startswith(b".modinfo\0", strings + section_name):
                return data[offset : offset + length]
    except (ValueError, IndexError, struct.error, OverflowError):
        raise BadImage(f"the module {name} is no 64-bit ELF file, or a damaged one") from None
    raise BadImage(f"the module {name} has no description of itself")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _plain(name: str) -> str:
    return name.replace("-", "_")


# ---- where modules come from


class _Package:
    """A kernel package."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.release = ""
        self._path = path

    def read(self, wanted: set[str]) -> Iterator[Module]:
        """Yield the modules of these names, as far as there are any."""
        from emu.fetch.packages import package_files

        missing = set(wanted)
        for path, data in package_files(self._path, lambda path: self._wants(path, missing)):
            match = MODULE_PATH.fullmatch(path)
            assert match is not None
            missing.discard(_plain(match[2]))
            yield read_module(_plain(match[2]), _expanded(data, match[2]))
            if not missing:
                return

    def _wants(self, path: str, missing: set[str]) -> bool:
        match = MODULE_PATH.fullmatch(path)
        if match is None:
            return False
        if self.release not in ("", match[1]):
            raise BadImage(f"{self.name} holds modules of several kernels")
        self.release = match[1]
        return _plain(match[2]) in missing


class _Directory:
    """A directory lib/modules/RELEASE."""

    def __init__(self, path: str) -> None:
        self.name = path
        self.release = os.path.basename(os.path.abspath(path))
        self._paths: dict[str, str] = {}
        for directory, _, names in os.walk(path):
            for name in names:
                if match := MODULE_PATH.fullmatch(f"lib/modules/-/{name}"):
                    self._paths[_plain(match[2])] = os.path.join(directory, name)

    def read(self, wanted: set[str]) -> Iterator[Module]:
        """Yield the modules of these names, as far as there are any."""
        for name in sorted(wanted & self._paths.keys()):
            try:
                data = Path(self._paths[name]).read_bytes()
            except OSError as error:
                raise BadImage(f"cannot read {self._paths[name]}: {error.strerror}") from None
            yield read_module(name, _expanded(data, name))


def _expanded(data: bytes, name: str) -> bytes:
    return decompress(data, MODULE_MAX, f"the module {name}").data if identify(data) else data


def _package_key(path: Path | str) -> str:
    try:
        with open(path, "rb") as handle:
            head = handle.read(KEY_BYTES)
            size = os.fstat(handle.fileno()).st_size
            handle.seek(max(len(head), size - KEY_BYTES))
            return content_key(FORMAT, repr((WANTED, size)).encode(), head, handle.read())
    except OSError as error:
        raise BadImage(f"cannot read {path}: {error.strerror}") from None


# ---- the archive


def _archive(source: _Package | _Directory) -> bytes:
    modules: dict[str, Module] = {}
    asked: set[str] = set()
    wanted = {*WANTED, *USUAL}
    while wanted:
        modules.update((module.name, module) for module in source.read(wanted))
        asked |= wanted
        wanted = {name for module in modules.values() for name in module.depends} - asked
    chosen = {name: _dependencies(name, modules) for name in _closure(WANTED, modules)}
    output = BytesIO()
    if chosen:
        write_archive(_entries(source.release, modules, chosen), output)
    return output.getvalue()


def _closure(names: Iterable[str], modules: dict[str, Module]) -> list[str]:
    """These modules and all that they depend on, each once and behind what needs it."""
    found: dict[str, None] = {}
    todo = [name for name in names if name in modules]
    for name in todo:
        found[name] = None
        todo += [needed for needed in modules[name].depends if needed in modules and needed not in found]
    return list(found)


def _dependencies(name: str, modules: dict[str, Module]) -> list[str]:
    """All modules that this one needs; those that need others stand before those."""
    order: list[str] = []

    def visit(current: str, path: tuple[str, ...]) -> None:
        for needed in modules[current].depends:
            if needed in modules and needed not in order and needed not in path:
                visit(needed, (*path, needed))
        order.append(current)

    visit(name, (name,))
    return order[-2::-1]


def _entries(release: str, modules: dict[str, Module], chosen: dict[str, list[str]]) -> Iterator[Entry]:
    root = f"lib/modules/{release}"
    yield Entry("lib/modules", DIRECTORY)
    yield Entry(root, DIRECTORY)
    for name in chosen:
        yield Entry(f"{root}/{name}.ko", FILE, modules[name].data)
    lines = (f"{name}.ko:{''.join(f' {needed}.ko' for needed in needs)}\n" for name, needs in chosen.items())
    yield Entry(f"{root}/modules.dep", FILE, "".join(lines).encode())
    aliases = (f"alias {alias} {name}\n" for name in chosen for alias in modules[name].aliases)
    yield Entry(f"{root}/modules.alias", FILE, "".join(aliases).encode("utf-8", "surrogateescape"))
