"""A guest's root, whatever it was given as: told apart by content, never by file name."""

from __future__ import annotations

import os
from pathlib import Path

from emu.cache import Cache
from emu.images.cpio import is_cpio
from emu.loader.decompress import identify, peek
from emu.loader.kernel import map_file

__all__ = ["is_disk_image", "load_root"]

ELF_MAGIC = b"\x7fELF"
TAR_MAGIC = b"ustar"
TAR_MAGIC_OFFSET = 257
PEEK_SIZE = 512
EXT_MAGIC = b"\x53\xef"             # of ext2, ext3 and ext4: s_magic, in the superblock at 1024
EXT_MAGIC_OFFSET = 1024 + 56


def is_disk_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a file system of the ext family; False also for what cannot be read."""
    try:
        with open(path, "rb") as handle:
            handle.seek(EXT_MAGIC_OFFSET)
            return handle.read(len(EXT_MAGIC)) == EXT_MAGIC
    except OSError:
        return False


def load_root(path: Path | str, cache: Cache) -> memoryview:
    """Return the initramfs that boots a root.

    Args:
        path: an initramfs, plain or compressed; a root file system as a tar archive, plain or compressed, or as a
            directory; or a static busybox. The last three get this package's init.
        cache: keeps what was expanded or made for the next time.

    Raises:
        BadImage: none of these, missing or damaged.
    """
    from emu.images import alpine, initramfs

    if os.path.isdir(path):
        return alpine.rootfs_to_initramfs(path, cache)
    packed = map_file(path)
    if bytes(packed[:4]) == ELF_MAGIC:
        return alpine.busybox_initramfs(path, cache)
    head = peek(packed, PEEK_SIZE) if identify(packed) else bytes(packed[:PEEK_SIZE])
    if not is_cpio(head) and head[TAR_MAGIC_OFFSET:].startswith(TAR_MAGIC):
        return alpine.rootfs_to_initramfs(path, cache)
    return initramfs.load_initramfs(path, cache)
