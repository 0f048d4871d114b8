"""Root file systems that are not initramfs files yet: an Alpine minirootfs or another tar archive, a directory, or
just a static busybox. Each becomes a cpio archive with this package's init in it.

Nothing is unpacked on the host: owners, modes, links and device nodes go from one archive to the other.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from emu.cache import Cache, content_key
from emu.errors import BadImage
from emu.images.cpio import Entry, write_archive
from emu.images.inside import DEVICES, DIRECTORY, INIT_SCRIPT, own_files, program, scripts
from emu.loader.decompress import decompress, identify
from emu.loader.kernel import map_file

if TYPE_CHECKING:
    import tarfile

__all__ = ["INIT_SCRIPT", "PROMPT", "busybox_initramfs", "read_tar", "rootfs_to_initramfs"]

PROMPT = "# "
"""How the guest's prompt ends; before it stand the working directory and a space (PS1 in shrc.sh)."""

KIND = "rootfs"
FORMAT = b"rootfs 2"
EXPANDED_MAX = 4 << 30

OWN_DIRECTORY = "usr/lib/emu"
# Besides mount points, lib: that is where an archive of modules belongs.
STANDARD_DIRECTORIES = ("dev", "lib", "mnt", "proc", "root", "run", "sys", "tmp")
BUSYBOX_DIRECTORIES = ("bin", "etc", "sbin", "usr", "usr/bin", "usr/sbin")
BUSYBOX_FILES = (("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"), ("etc/group", b"root:x:0:\n"))

Files = dict[str, Entry]


def rootfs_to_initramfs(source: Path | str, cache: Cache) -> memoryview:
    """Make an initramfs of a root file system.

    Args:
        source: a tar archive, plain or compressed, or a directory. A directory is read each time; files in it that
            belong to the calling user, unless that is root, become root's.
        cache: keeps what was made of an archive for the next time.

    Raises:
        BadImage: missing, damaged, unreadable, or with names that lead out of the root.
    """
    name = os.path.basename(os.path.abspath(source))
    if os.path.isdir(source):
        return memoryview(_archive(_read_directory(os.fspath(source))))
    packed = map_file(source)
    key = content_key(FORMAT, scripts(), packed)
    found = cache.find(KIND, key)
    if found is None:
        archive = _archive(read_tar(packed, name))
        found = cache.store(KIND, key, lambda handle: handle.write(archive))
    return map_file(found)


def busybox_initramfs(busybox: Path | str, cache: Cache) -> memoryview:
    """Make an initramfs that holds a static busybox and nothing else, for want of a better root.

    Args:
        busybox: a statically linked x86-64 busybox; its init installs its applets' names when it starts.
        cache: keeps it for the next time.

    Raises:
        BadImage: missing, or no x86-64 program.
    """
    executable = map_file(busybox)
    if bytes(executable[:5]) != b"\x7fELF\x02" or bytes(executable[18:20]) != b"\x3e\0":
        raise BadImage(f"{busybox} is not an x86-64 program")
    key = content_key(FORMAT, b"busybox", scripts(), executable)
    found = cache.find(KIND, key)
    if found is None:
        files = {name: Entry(name, DIRECTORY) for name in BUSYBOX_DIRECTORIES}
        files["bin/busybox"] = program("bin/busybox", executable)
        files["bin/sh"] = Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
        files.update((name, Entry(name, stat.S_IFREG | 0o644, data)) for name, data in BUSYBOX_FILES)
        archive = _archive(files)
        found = cache.store(KIND, key, lambda handle: handle.write(archive))
    return map_file(found)


def _archive(files: Files) -> bytes:
    """Add what every guest needs, and write the archive."""
    for name in STANDARD_DIRECTORIES:
        files.setdefault(name, Entry(name, DIRECTORY))
    for device in DEVICES:
        files.setdefault(device.name, device)
    files.update((entry.name, entry) for entry in own_files(OWN_DIRECTORY))
    files["init"] = program("init", INIT_SCRIPT.read_bytes())
    output = BytesIO()
    write_archive(_parents_first(files), output)
    return output.getvalue()


def _parents_first(files: Files) -> Iterator[Entry]:
    """In the order given, for a directory may be reached by a symbolic link made before; parents pulled forward."""
    done: set[str] = set()
    for name in files:
        ancestors = [str(parent) for parent in reversed(PurePosixPath(name).parents)][1:]
        for path in (*ancestors, name):
            if path not in done:
                done.add(path)
                yield files.get(path) or Entry(path, DIRECTORY)


def read_tar(packed: memoryview, name: str) -> Files:
    """Return the files of a tar archive, plain or compressed, by their paths.

    Args:
        name: names the archive in error messages.

    Raises:
        BadImage: damaged, or with names that lead out of the root.
    """
    import tarfile

    plain: bytes | memoryview = decompress(packed, EXPANDED_MAX, name).data if identify(packed) else packed
    files: Files = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=BytesIO(plain), mode="r:") as tar:
            for member in tar:
                path = _inside(member.name, name)
                if not path:
                    continue
                links.pop(path, None)
                files.pop(path, None)
                if member.islnk():
                    links[path] = _inside(member.linkname, name)
                elif (entry := _tar_entry(tar, member, path)) is not None:
                    files[path] = entry
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise BadImage(f"{name} is no tar archive, or a damaged one ({error})") from None
    _resolve_links(files, links, name)
    return files


def _tar_entry(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> Entry | None:
    """The member as an archive entry; None for the kinds that have no place in a file system."""
    kind, data, device = 0, b"", (0, 0)
    if member.isreg():
        kind = stat.S_IFREG
        content = tar.extractfile(member)
        assert content is not None
        data = content.read()
        if len(data) != member.size:
            raise EOFError("unexpected end of data")
    elif member.isdir():
        kind = stat.S_IFDIR
    elif member.issym():
        kind, data = stat.S_IFLNK, os.fsencode(member.linkname)
    elif member.isfifo():
        kind = stat.S_IFIFO
    elif member.ischr() or member.isblk():
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        device = (member.devmajor, member.devminor)
    else:
        return None
    mode = kind | stat.S_IMODE(member.mode)
    return Entry(path, mode, data, member.uid, member.gid, int(member.mtime), device)


def _resolve_links(files: Files, links: dict[str, str], name: str) -> None:
    """Give each hard link, and what it leads to, the same content and the same group."""
    for number, path in enumerate(links, start=1):
        target, seen = path, set()
        while target in links and target not in seen:
            seen.add(target)
            target = links[target]
        if target not in files or not stat.S_ISREG(files[target].mode):
            raise BadImage(f"{name} is damaged: the hard link {path} leads to no file")
        group = files[target].link_group or number
        files[target] = dataclasses.replace(files[target], link_group=group)
        files[path] = dataclasses.replace(files[target], name=path)


def _inside(path: str, name: str) -> str:
    """A member's path below the root, without leading slashes and dots; "" for the root itself."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadImage(f"{name} is refused: its member {path!r} leads out of the root")
    return "/".join(parts)


def _read_directory(root: str) -> Files:
    files: Files = {}
    groups: dict[tuple[int, int], int] = {}
    user, group = os.getuid(), os.getgid()
    try:
        for path, status in _walk(root, ""):
            entry = _directory_entry(os.path.join(root, path), path, status)
            if entry is None:
                continue
            number = 0
            if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                number = groups.setdefault((status.st_dev, status.st_ino), len(groups) + 1)
            files[path] = dataclasses.replace(
                entry,
                # A tree unpacked by a plain user has lost its owners; root's is the best guess.
                uid=0 if status.st_uid == user else status.st_uid,
                gid=0 if status.st_gid == group else status.st_gid,
                link_group=number,
            )
    except OSError as error:
        raise BadImage(f"cannot read {error.filename or root}: {error.strerror}") from None
    return files


def _walk(root: str, below: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(os.path.join(root, below)) as found:
        children = sorted(found, key=lambda child: child.name)
    for child in children:
        path = f"{below}/{child.name}" if below else child.name
        yield path, child.stat(follow_symlinks=False)
        if child.is_dir(follow_symlinks=False):
            yield from _walk(root, path)


def _directory_entry(full: str, path: str, status: os.stat_result) -> Entry | None:
    """The file as an archive entry; None for sockets."""
    mode, data, device = status.st_mode, b"", (0, 0)
    if stat.S_ISREG(mode):
        with open(full, "rb") as handle:
            data = handle.read()
    elif stat.S_ISLNK(mode):
        data = os.fsencode(os.readlink(full))
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    elif stat.S_ISSOCK(mode):
        return None
    return Entry(path, mode, data, mtime=int(status.st_mtime), device=device)
