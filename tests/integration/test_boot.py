"""Unmodified kernels, whatever they and their root are packed in, up to a shell or a first program."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import re
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import lz4.block
import lz4.frame
import pytest
import zstandard

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.images.cpio import Entry, write_archive
from emu.loader.bzimage import parse_bzimage, unpack_payload
from emu.loader.decompress import LZ4_LEGACY_BLOCK, LZ4_LEGACY_MAGIC, identify
from emu.loader.kernel import map_file
from emu.loader.linux import BOARD_SETTINGS, THROW_AWAY_SETTINGS
from emu.machine import Machine
from emu.memory import GIB, MIB
from emu.run_loop import StopReason
from emu.stats import Kind

pytestmark = pytest.mark.integration

BOOT_S = 60.0
PAYLOADS = {"generic": "xz", "cloud": "lz4 legacy"}     # what Debian packs them with
DIRECTORY, EXECUTABLE, CONSOLE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFCHR | 0o600


# ---- to Alpine's shell


@pytest.fixture(scope="module", params=PAYLOADS)
def booted(request: pytest.FixtureRequest) -> Iterator[tuple[str, Machine]]:
    """A kernel's name, and it at Alpine's shell."""
    with emu.boot(kernel=request.param, append=LOUD_SETTINGS) as machine:
        machine.wait_prompt(BOOT_S)
        yield request.param, machine


def test_kernel_boots_to_the_shell_of_alpine(booted: tuple[str, Machine], kernels: dict[str, Path]) -> None:
    name, machine = booted
    assert identify(parse_bzimage(map_file(kernels[name]), name).payload) == PAYLOADS[name]
    assert re.fullmatch(r"3\.\d+\.\d+\n", machine.run("cat /etc/alpine-release", timeout=60).stdout)
    system, release, architecture = machine.run("uname -srm", timeout=60).stdout.split()
    assert (system, architecture) == ("Linux", "x86_64")
    assert release.endswith("-amd64") and release.endswith("-cloud-amd64") == (name == "cloud")
    settings = machine.run("cat /proc/cmdline", timeout=60).stdout.strip()
    assert settings == f"{BOARD_SETTINGS} {THROW_AWAY_SETTINGS} {LOUD_SETTINGS}"


def test_clock_source_is_kvm_clock(booted: tuple[str, Machine]) -> None:
    question = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert booted[1].run(question, timeout=60).stdout == "kvm-clock\n"


def test_interrupts_end_without_an_exit(booted: tuple[str, Machine]) -> None:
    machine = booted[1]
    before = machine.stats()
    machine.run("i=0; while [ $i -lt 50 ]; do /bin/true; i=$((i + 1)); done", timeout=60)
    stats = machine.stats() - before
    interrupts = stats.count(Kind.INTERRUPT)
    assert interrupts and stats.count(Kind.WRMSR, "x2apic") <= interrupts // 2


def test_kernel_has_nothing_to_complain_of(booted: tuple[str, Machine]) -> None:
    messages = booted[1].run("dmesg", timeout=60).stdout
    assert "Linux version" in messages and "Run /init as init process" in messages      # all of them are there
    assert complaints(messages) == []


# ---- to a first program


def small_root(programs: dict[str, Entry], *lines: str) -> bytes:
    """An archive whose init, of these lines, runs with /proc there, and powers off."""
    script = ["#!/bin/busybox sh", "/bin/busybox mount -t proc proc /proc", *lines, "/bin/busybox poweroff -f", ""]
    entries = [
        *(Entry(name, DIRECTORY) for name in ("bin", "dev", "lib", "proc")),
        Entry("dev/console", CONSOLE, device=(5, 1)),
        *programs.values(),
        Entry("init", EXECUTABLE, "\n".join(script).encode()),
    ]
    output = io.BytesIO()
    write_archive(entries, output)
    return output.getvalue()


def output_of(kernel: Path, initrd: Path, memory: int = 128 * MIB) -> str:
    """Boot to the end; what was on the console."""
    with emu.boot(kernel=kernel, initrd=initrd, memory=memory) as machine:
        assert machine.run_to_end(BOOT_S) is StopReason.POWER_OFF, machine.console.tail()
        return machine.console.history.decode("utf-8", "replace")


def lz4_legacy(data: bytes) -> bytes:
    """As `lz4 -l` does, which is what Linux reads."""
    packed = LZ4_LEGACY_MAGIC
    for start in range(0, len(data), LZ4_LEGACY_BLOCK):
        block = lz4.block.compress(data[start : start + LZ4_LEGACY_BLOCK], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


PACKINGS: dict[str, tuple[str | None, Callable[[bytes], bytes]]] = {
    "plain": (None, bytes),
    "gzip": ("gzip", gzip.compress),
    "xz": ("xz", lambda data: lzma.compress(data, check=lzma.CHECK_CRC32, preset=1)),
    "lzma": ("lzma", lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE, preset=1)),
    "zstd": ("zstd", lambda data: zstandard.ZstdCompressor().compress(data)),
    "lz4": ("lz4 legacy", lz4_legacy),
    "lz4 frame": ("lz4", lz4.frame.compress),
    "bzip2": ("bzip2", bz2.compress),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_initramfs_in_any_packing(
    packing: str, kernels: dict[str, Path], programs: dict[str, Entry], empty_cache: Path, tmp_path: Path
) -> None:
    name, pack = PACKINGS[packing]
    word = secrets.token_hex(8)
    initrd = tmp_path / "initrd"
    initrd.write_bytes(pack(small_root(programs, f"echo the word is {word}")))
    assert identify(initrd.read_bytes()[:16]) == name
    assert f"the word is {word}\r\n" in output_of(kernels["cloud"], initrd)


def test_initramfs_of_a_plain_archive_and_a_packed_one(
    kernels: dict[str, Path], programs: dict[str, Entry], empty_cache: Path, tmp_path: Path
) -> None:
    """As distributions do it: microcode first."""
    first = io.BytesIO()
    write_archive([Entry("early", stat.S_IFREG | 0o644, b"read early\n")], first)
    initrd = tmp_path / "initrd"
    initrd.write_bytes(first.getvalue() + gzip.compress(small_root(programs, "/bin/busybox cat /early")))
    assert "read early\r\n" in output_of(kernels["cloud"], initrd)


@pytest.mark.parametrize("name", PAYLOADS)
def test_kernel_given_as_elf(
    name: str, kernels: dict[str, Path], programs: dict[str, Entry], empty_cache: Path, tmp_path: Path
) -> None:
    image = parse_bzimage(map_file(kernels[name]), name)
    kernel, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    kernel.write_bytes(unpack_payload(image.payload, name))
    assert kernel.read_bytes()[:4] == b"\x7fELF"
    initrd.write_bytes(small_root(programs, "/bin/busybox uname -v"))
    version = image.version.partition(" #")[2]
    assert version and f"#{version}" in output_of(kernel, initrd)


# ---- memory


def ram(iomem: str) -> list[tuple[int, int]]:
    """First and last addresses of the RAM in /proc/iomem."""
    found = re.findall(r"([0-9a-f]{8,})-([0-9a-f]{8,}) : System RAM", iomem)
    return [(int(first, 16), int(last, 16)) for first, last in found]


def check_memory(shown: str, size: int) -> None:
    """Compare /proc/iomem and /proc/meminfo with the machine's memory in bytes."""
    regions = [(0x1000, 0x9FBFF), (MIB, min(size, 3 * GIB) - 1)]
    if size > 3 * GIB:
        regions.append((4 * GIB, size + GIB - 1))
    assert ram(shown) == regions
    total = int(re.search(r"MemTotal: +(\d+) kB", shown)[1])    # type: ignore[index]
    # What is missing is the kernel, a 64th for its list of pages, and bounce buffers where there is high memory.
    assert size * 63 // 64 - 128 * MIB < total * 1024 < size * 63 // 64 - 24 * MIB


@pytest.mark.parametrize("mebibytes", [72, 3072, 3073])
def test_memory_is_where_it_should_be(
    mebibytes: int, kernels: dict[str, Path], programs: dict[str, Entry], tmp_path: Path
) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(small_root(programs, "/bin/busybox cat /proc/iomem /proc/meminfo"))
    check_memory(output_of(kernels["cloud"], initrd, mebibytes * MIB), mebibytes * MIB)


def test_debian_s_kernel_itself_finds_64_mib_too_little(
    kernels: dict[str, Path], programs: dict[str, Entry], tmp_path: Path
) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(small_root(programs))
    with emu.boot(kernel=kernels["cloud"], initrd=initrd, memory=64 * MIB) as machine:
        assert machine.run_to_end(BOOT_S) is not None
        assert machine.panic == "Kernel panic - not syncing: System is deadlocked on memory"


def test_memory_above_4_gib_keeps_what_is_put_there() -> None:
    copies, block = 40, b"".join(b"%d\n" % number for number in range(1, 100_001))
    with emu.boot(kernel="cloud", memory=8 * GIB) as machine:
        machine.wait_prompt(BOOT_S)
        check_memory(machine.run("cat /proc/iomem /proc/meminfo", timeout=60).stdout, 8 * GIB)
        script = f"""
            used() {{ awk '/zone/ {{ zone = $4 }} zone == "Normal" && /nr_free_pages/ {{ print $2 }}' /proc/zoneinfo; }}
            cd /tmp; seq 100000 >block
            used; for i in $(seq {copies}); do cat block; done >blocks; used; md5sum <blocks
        """
        before, after, digest, _ = machine.run(script, check=True, timeout=60).stdout.split()
    assert (int(before) - int(after)) * 4096 > 0.9 * copies * len(block)
    assert digest == hashlib.md5(copies * block).hexdigest()
