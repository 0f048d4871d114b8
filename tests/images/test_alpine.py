"""Root file systems made into initramfs files."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from emu.cache import Cache
from emu.errors import BadImage
from emu.images.alpine import INIT_SCRIPT, busybox_initramfs, rootfs_to_initramfs
from emu.images.cpio import Entry, read_archive, write_archive
from emu.images.root import load_root


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, 0o644, 1234567890
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return output.getvalue()


def converted(content: bytes, cache: Cache, tmp_path: Path) -> dict[str, Entry]:
    path = tmp_path / "root.tar"
    path.write_bytes(content)
    entries = list(read_archive(rootfs_to_initramfs(path, cache)))
    names = [entry.name for entry in entries]
    assert len(names) == len(set(names))
    for number, name in enumerate(names):
        parent = os.path.dirname(name)
        assert not parent or parent in names[:number], f"{name} comes before its directory"
    return {entry.name: entry for entry in entries}


ROOT = tar(
    (member("./", tarfile.DIRTYPE, mode=0o755), b""),
    (member("./bin/", tarfile.DIRTYPE, mode=0o755), b""),
    (member("./bin/busybox", mode=0o4755, uid=3, gid=7), b"program"),
    (member("./bin/sh", tarfile.SYMTYPE, linkname="/bin/busybox", mode=0o777), b""),
    (member("./bin/link", tarfile.LNKTYPE, linkname="./bin/busybox"), b""),
    (member("./dev/sda", tarfile.BLKTYPE, devmajor=8, devminor=1), b""),
    (member("./var/pipe", tarfile.FIFOTYPE), b""),
)


def test_owners_modes_times_links_and_devices_are_kept(cache: Cache, tmp_path: Path) -> None:
    files = converted(ROOT, cache, tmp_path)
    busybox, link = files["bin/busybox"], files["bin/link"]
    assert (busybox.mode, busybox.uid, busybox.gid) == (stat.S_IFREG | 0o4755, 3, 7)
    assert busybox.mtime == 1234567890
    assert busybox.link_group == link.link_group != 0
    assert {busybox.data, link.data} == {b"", b"program"}
    assert files["bin/sh"].mode == stat.S_IFLNK | 0o777 and files["bin/sh"].data == b"/bin/busybox"
    assert files["dev/sda"].mode & stat.S_IFMT(0o177777) == stat.S_IFBLK and files["dev/sda"].device == (8, 1)
    assert stat.S_ISFIFO(files["var/pipe"].mode)


def test_init_consoles_and_mount_points_are_added(cache: Cache, tmp_path: Path) -> None:
    files = converted(ROOT, cache, tmp_path)
    assert files["init"].data == INIT_SCRIPT.read_bytes() and files["init"].mode == stat.S_IFREG | 0o755
    for name, device in (("console", (5, 1)), ("null", (1, 3)), ("ttyS0", (4, 64))):
        assert stat.S_ISCHR(files[f"dev/{name}"].mode) and files[f"dev/{name}"].device == device
    assert all(stat.S_ISDIR(files[name].mode) for name in ("proc", "sys", "run", "tmp", "dev", "var"))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, zstandard.compress])
def test_archive_may_be_compressed_and_is_found_in_the_cache(compress, cache: Cache, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "root"
    path.write_bytes(compress(ROOT))
    first = bytes(load_root(path, cache))
    assert b"program" in first
    assert bytes(rootfs_to_initramfs(path, cache)) == first


def test_absolute_names_are_taken_below_the_root(cache: Cache, tmp_path: Path) -> None:
    assert "etc/x" in converted(tar((member("/etc/x"), b"")), cache, tmp_path)


def test_names_that_lead_out_are_refused(cache: Cache, tmp_path: Path) -> None:
    for info in (member("a/../../x"), member("x", tarfile.LNKTYPE, linkname="../x")):
        with pytest.raises(BadImage, match="leads out of the root"):
            converted(tar((info, b"")), cache, tmp_path)


def test_hard_link_to_nothing_is_refused(cache: Cache, tmp_path: Path) -> None:
    loop = [(member(a, tarfile.LNKTYPE, linkname=b), b"") for a, b in (("a", "b"), ("b", "a"))]
    for content in (tar((member("x", tarfile.LNKTYPE, linkname="gone"), b"")), tar(*loop)):
        with pytest.raises(BadImage, match="leads to no file"):
            converted(content, cache, tmp_path)


def test_later_member_replaces_an_earlier_one(cache: Cache, tmp_path: Path) -> None:
    content = tar((member("x"), b"old"), (member("x"), b"new"))
    assert converted(content, cache, tmp_path)["x"].data == b"new"


def test_damaged_archives_are_refused(cache: Cache, tmp_path: Path) -> None:
    packed = gzip.compress(ROOT)
    for content in (b"garbage" * 200, packed[:-20], gzip.compress(ROOT[:2000]), packed[:200] + b"?" + packed[201:]):
        with pytest.raises(BadImage) as caught:
            converted(content, cache, tmp_path)
        assert "\n" not in str(caught.value)


def test_directory_becomes_an_initramfs(cache: Cache, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/name").write_bytes(b"content")
    (root / "etc/name").chmod(0o600)
    os.link(root / "etc/name", root / "etc/other")
    (root / "s").symlink_to("../../outside")
    files = {entry.name: entry for entry in read_archive(load_root(root, cache))}
    assert files["etc/name"].mode == stat.S_IFREG | 0o600
    assert files["etc/name"].uid == files["etc/name"].gid == 0
    assert files["etc/name"].link_group == files["etc/other"].link_group != 0
    assert files["s"].data == b"../../outside"
    assert files["init"].data == INIT_SCRIPT.read_bytes()


@pytest.mark.skipif(os.getuid() == 0, reason="root can read everything")
def test_unreadable_file_of_a_directory_is_named(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/secret").touch(0o000)
    with pytest.raises(BadImage, match=r"secret: Permission denied"):
        rootfs_to_initramfs(tmp_path / "root", cache)


def test_busybox_alone_makes_a_root(cache: Cache, tmp_path: Path) -> None:
    program = b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + b"\x3e\0" + bytes(100)
    (tmp_path / "busybox").write_bytes(program)
    files = {entry.name: entry for entry in read_archive(load_root(tmp_path / "busybox", cache))}
    assert files["bin/busybox"].data == program and files["bin/busybox"].mode == stat.S_IFREG | 0o755
    assert files["bin/sh"].data == b"busybox"
    assert {"usr/sbin", "sbin", "init"} <= set(files)


def test_program_for_another_processor_is_no_busybox(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + b"\xb7\0" + bytes(100))
    with pytest.raises(BadImage, match="not an x86-64 program"):
        busybox_initramfs(tmp_path / "busybox", cache)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_initramfs_keeps_its_own_init(compress, cache: Cache, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    output = io.BytesIO()
    write_archive([Entry("init", stat.S_IFREG | 0o755, b"its own")], output)
    (tmp_path / "initrd").write_bytes(compress(output.getvalue()))
    assert bytes(load_root(tmp_path / "initrd", cache)) == output.getvalue()


@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_init_script_is_one_that_small_shells_can_read(shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    command = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
    subprocess.run([*command, str(INIT_SCRIPT)], check=True)
