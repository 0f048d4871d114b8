"""Input that cannot be used: one line on standard error, exit status 2, no traceback."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from emu.cache import Cache
from emu.fetch import fetch_guest

pytestmark = pytest.mark.integration

XLOADFLAGS = 0x236              # of a bzImage's header (Linux: Documentation/arch/x86/boot.rst)
XLF_KERNEL_64 = 1 << 0
EM_AARCH64 = 183
ARM64_MAGIC = b"ARM\x64"        # at 0x38 of an arm64 Image (Documentation/arch/arm64/booting.rst)


@pytest.fixture(scope="session")
def bzimage() -> bytes:
    return fetch_guest(Cache(), "generic").kernel_path.read_bytes()


def run(*options: str | os.PathLike[str]) -> str:
    """Run `emu run OPTIONS -- true`, which has to be refused; what it said."""
    command = [sys.executable, "-m", "emu", "run", *map(os.fspath, options), "--", "true"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    assert process.stderr.startswith("emu: ") and process.stderr.count("\n") == 1
    assert "Traceback" not in process.stderr and "internal error" not in process.stderr
    return process.stderr


def thirty_two_bit(image: bytes) -> bytes:
    altered = bytearray(image)
    altered[XLOADFLAGS] &= ~XLF_KERNEL_64 & 0xFF
    return bytes(altered)


def arm64_image(_image: bytes) -> bytes:
    return b"\0" * 0x38 + ARM64_MAGIC + b"\0" * 0x10000


def elf(bits: int, machine: int) -> bytes:
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + b"\0" * 9
    return ident + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + (1).to_bytes(4, "little") + b"\0" * 4096


KERNELS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "of one sector": lambda image: image[:512],
    "truncated in its header": lambda image: image[:0x210],
    "truncated in its payload": lambda image: image[: len(image) // 2],
    "damaged in its payload": lambda image: image[:1_000_000] + b"\xa5" * 4096 + image[1_004_096:],
    "32-bit bzImage": thirty_two_bit,
    "32-bit ELF": lambda _: elf(32, 3),
    "arm64 ELF": lambda _: elf(64, EM_AARCH64),
    "arm64 Image": arm64_image,
    "text": lambda _: b"#!/bin/sh\necho I am no kernel\n" * 1000,
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_that_cannot_be_used(name: str, bzimage: bytes, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz-bad"
    kernel.write_bytes(KERNELS[name](bzimage))
    assert "vmlinuz-bad" in run("--kernel", kernel)


@pytest.mark.parametrize("option", ["--kernel", "--initrd", "--root"])
def test_missing_files_and_directories_in_their_place(option: str, tmp_path: Path) -> None:
    assert "nowhere" in run(option, tmp_path / "nowhere")
    if option != "--root":
        run(option, tmp_path)


@pytest.mark.parametrize("option", ["--initrd", "--root"])
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_gzip_that_is_damaged_or_cut(option: str, kept: float, tmp_path: Path) -> None:
    packed = gzip.compress(os.urandom(100_000))
    archive = tmp_path / "bad.gz"
    archive.write_bytes(packed[: int(len(packed) * kept)])
    assert "bad.gz" in run(option, archive)
    archive.write_bytes(packed[:5000] + b"\0" * 100 + packed[5100:])
    assert "bad.gz" in run(option, archive)


def test_an_initramfs_that_does_not_fit(tmp_path: Path) -> None:
    size = 120 << 20
    fields = [1, 0o100644, 0, 0, 1, 0, size, 0, 0, 0, 0, 4, 0]      # newc header: magic and thirteen fields in hex
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + b"big\0"
    trailer = b"070701" + b"%08X" * 13 % (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0) + b"TRAILER!!!\0"
    archive = tmp_path / "big.cpio"
    with open(archive, "wb") as file:
        file.write(header + b"\0" * (-len(header) % 4) + b"\0" * size + trailer + b"\0" * 3)
    assert "initramfs" in run("--memory", "128M", "--initrd", archive)


@pytest.mark.parametrize("option", ["--append", "--cmdline"])
def test_a_command_line_that_is_too_long(option: str) -> None:
    assert "command line" in run(option, "x" * 5000)


@pytest.mark.parametrize("memory", ["0", "63M", "8193M", "16G", "-1", "much"])
def test_impossible_memory(memory: str) -> None:
    assert "--memory" in run("--memory", memory)


def test_two_roots(tmp_path: Path) -> None:
    run("--initrd", tmp_path, "--root", tmp_path)


FITTINGS = {
    "a share of nothing": (["--share", "data={}/nowhere"], "nowhere"),
    "a share of a file": (["--share", "data={}/file"], "file"),
    "a share without a tag": (["--share", "{}"], "TAG=DIRECTORY"),
    "a tag that is ours": (["--share", "emu-root={}"], "emu-root"),
    "a tag that is too long": (["--share", "x" * 32 + "={}"], "tag"),
    "an unknown security model": (["--share", "data={},security=loose"], "loose"),
    "a disk of nothing": (["--disk", "{}/nowhere"], "nowhere"),
    "a disk of a directory": (["--disk", "{}"], "directory"),
    "an empty disk": (["--disk", "{}/empty"], "empty"),
    "a disk in use": (["--disk", "{}/file", "--disk", "{}/file"], "file"),
    "more disks than slots": (["--disk", "{}/file,ro"] * 32, "PCI"),
    "an overlay that is something else": (["--disk", "{}/file,overlay={}/other"], "other"),
    "a socket file in no directory": (["--vsock", "{}/nowhere/v.sock"], "nowhere"),
    "a socket file's path too long": (["--vsock", "{}/" + "x" * 120], "path"),
    "a socket file that is something else": (["--vsock", "{}/file"], "file"),
    "a configuration of nothing": (["--config", "{}/nowhere"], "nowhere"),
    "modules of nothing": (["--modules", "{}/nowhere"], "nowhere"),
    "modules of something else": (["--modules", "{}/file"], "file"),
    "a root over 9p that is a file": (["--root", "{}/file", "--root-over", "9p"], "file"),
    "a root over 9p of nothing": (["--root-over", "9p"], "directory"),
}


@pytest.mark.parametrize("name", FITTINGS)
def test_what_cannot_be_plugged_in(name: str, tmp_path: Path) -> None:
    for file, content in (("file", b"x" * 4096), ("other", b"y" * 4096), ("empty", b"")):
        (tmp_path / file).write_bytes(content)
    options, said = FITTINGS[name]
    assert said in run(*(option.replace("{}", str(tmp_path)) for option in options))
    assert (tmp_path / "file").read_bytes() == b"x" * 4096 and (tmp_path / "other").read_bytes() == b"y" * 4096


def test_a_guest_s_panic_is_its_line_and_status_125() -> None:
    command = [sys.executable, "-m", "emu", "run", "--append", "rdinit=/nothing panic=-1", "--", "true"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert process.returncode == 125
    assert process.stderr.startswith("emu: Kernel panic - not syncing: ") and process.stderr.count("\n") == 1
