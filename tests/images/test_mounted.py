"""The tiny initramfs that mounts the guest's root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from emu.cache import Cache
from emu.errors import BadImage
from emu.images.cpio import Entry, read_archive
from emu.images.inside import INIT_SCRIPT
from emu.images.mounted import ROOT_SCRIPT, mounted_root_initramfs
from tests.images.fakes import executable, tar

LOADER = "/lib/ld-musl-x86_64.so.1"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def made(content: bytes, cache: Cache, tmp_path: Path) -> dict[str, Entry]:
    source = tmp_path / "tools"
    source.write_bytes(content)
    entries = list(read_archive(mounted_root_initramfs(source, cache)))
    names = [entry.name for entry in entries]
    assert len(names) == len(set(names))
    for number, name in enumerate(names):
        parent = os.path.dirname(name)
        assert not parent or parent in names[:number], f"{name} comes before its directory"
    return {entry.name: entry for entry in entries}


def test_busybox_finds_its_loader_beside_it_in_every_root(cache: Cache, tmp_path: Path) -> None:
    files = made(tar({"./bin/busybox": executable(LOADER), "." + LOADER: b"loader"}), cache, tmp_path)
    busybox = bytes(files["run/emu/busybox"].data)
    assert len(busybox) == len(executable(LOADER))
    assert busybox.replace(b"/run/emu/ld".ljust(len(LOADER), b"\0"), LOADER.encode()) == executable(LOADER)
    assert files["run/emu/ld"].data == b"loader"
    assert all(files[name].mode == stat.S_IFREG | 0o755 for name in ("run/emu/busybox", "run/emu/ld", "init"))


def test_loader_may_be_reached_by_a_hard_link(cache: Cache, tmp_path: Path) -> None:
    content = tar({"bin/busybox": executable(LOADER), "lib/libc.so": b"loader"}, {LOADER[1:]: "lib/libc.so"})
    assert made(content, cache, tmp_path)["run/emu/ld"].data == b"loader"


@pytest.mark.parametrize("packed", [True, False])
def test_static_busybox_is_taken_as_it_is(packed: bool, cache: Cache, tmp_path: Path) -> None:
    content = tar({"bin/busybox": executable()}) if packed else executable()
    files = made(content, cache, tmp_path)
    assert files["run/emu/busybox"].data == executable()
    assert "run/emu/ld" not in files


def test_both_first_processes_and_the_names_they_call_are_there(cache: Cache, tmp_path: Path) -> None:
    files = made(executable(), cache, tmp_path)
    assert files["init"].data == ROOT_SCRIPT.read_bytes()
    assert files["run/emu/init"].data == INIT_SCRIPT.read_bytes()
    for name in ("bin/sh", "bin/mount", "bin/modprobe", "sbin/modprobe", "bin/switch_root", "bin/cp", "bin/poweroff"):
        assert files[name].data == b"/run/emu/busybox" and stat.S_ISLNK(files[name].mode)
    assert all(stat.S_ISDIR(files[name].mode) for name in ("newroot", "proc", "sys", "dev", "lib"))
    assert stat.S_ISCHR(files["dev/console"].mode)


@pytest.mark.parametrize(
    "content",
    [
        tar({"bin/sh": b"x"}),
        tar({"bin/busybox": b"#!/bin/sh"}),
        tar({"bin/busybox": executable(LOADER)}),
        tar({"bin/busybox": executable("/ld"), "ld": b"loader"}),
        executable(LOADER),
        executable()[:70],
        b"garbage",
    ],
)
def test_tools_that_cannot_be_taken_along_are_refused(content: bytes, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadImage):
        made(content, cache, tmp_path)
