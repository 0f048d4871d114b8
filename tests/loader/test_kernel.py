"""Kernels in all their packings, and what is refused."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu.cache import Cache
from emu.errors import BadImage
from emu.loader.kernel import Kernel, load_kernel
from tests.loader.fakes import CODE, COMPRESSIONS, LOAD_ADDRESS, bzimage, elf, elf32


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def load(image: bytes, cache: Cache, tmp_path: Path) -> Kernel:
    path = tmp_path / "vmlinuz"
    path.write_bytes(image)
    return load_kernel(path, cache)


def refusal(image: bytes, cache: Cache, tmp_path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        load(image, cache, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(cache.directory.rglob("*")) or not list((cache.directory / "kernel").iterdir())
    return str(caught.value)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_bzimage_of_each_compression_gives_its_segments(compression: str, cache: Cache, tmp_path: Path) -> None:
    kernel = load(bzimage(compression=compression), cache, tmp_path)
    assert kernel.entry == LOAD_ADDRESS
    assert kernel.end == LOAD_ADDRESS + len(CODE) + 4096
    assert [(s.address, bytes(s.data)) for s in kernel.segments] == [(LOAD_ADDRESS, CODE)]
    assert kernel.version == "9.9.9-test"
    assert kernel.command_line_max == 2047


def test_bzimage_header_is_kept_for_the_zero_page(cache: Cache, tmp_path: Path) -> None:
    image = bzimage()
    assert load(image, cache, tmp_path).setup_header == image[0x1F1:0x26C]


def test_second_load_is_the_same_and_needs_no_decoder(cache: Cache, tmp_path: Path) -> None:
    first = load(bzimage(compression="xz"), cache, tmp_path)
    program = (
        "import sys; from emu.loader.kernel import load_kernel; from emu.cache import Cache;"
        f"kernel = load_kernel({str(tmp_path / 'vmlinuz')!r}, Cache({str(cache.directory)!r}));"
        "print(kernel.entry, {'lzma', 'elftools', 'zstandard', 'lz4'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [str(first.entry), "set()\n"]
    again = load_kernel(tmp_path / "vmlinuz", cache)
    assert again == first


def test_damaged_cache_entry_is_made_again(cache: Cache, tmp_path: Path) -> None:
    first = load(bzimage(), cache, tmp_path)
    expected = [bytes(s.data) for s in first.segments]
    for entry in (cache.directory / "kernel").iterdir():
        if entry.suffix != ".note":
            entry.write_bytes(entry.read_bytes()[:-100])
    assert [bytes(s.data) for s in load_kernel(tmp_path / "vmlinuz", cache).segments] == expected


def test_vmlinux_gets_the_header_linux_wants(cache: Cache, tmp_path: Path) -> None:
    kernel = load(elf([(LOAD_ADDRESS, 0, b"Linux version 6.6.6 (me)\n" + CODE, 9000)]), cache, tmp_path)
    page = bytes(0x1F1) + kernel.setup_header
    assert page[0x202:0x206] == b"HdrS"
    assert struct.unpack_from("<H", page, 0x1FE) == (0xAA55,)
    assert struct.unpack_from("<H", page, 0x206) == (0x20C,)
    assert struct.unpack_from("<H", page, 0x236)[0] & 1
    assert kernel.initrd_address_max == 0x7FFFFFFF
    assert kernel.command_line_max == 2047
    assert kernel.version == "6.6.6 (me)"


def test_virtual_entry_point_is_translated(cache: Cache, tmp_path: Path) -> None:
    assert load(elf(entry=0xFFFFFFFF81000040), cache, tmp_path).entry == LOAD_ADDRESS + 0x40


def test_long_zeroes_are_left_out_and_the_rest_keeps_its_place(cache: Cache, tmp_path: Path) -> None:
    data = b"start" + bytes(1 << 20) + b"end"
    kernel = load(elf([(LOAD_ADDRESS, 0, data, 2 << 20)]), cache, tmp_path)
    memory = bytearray(2 << 20)
    for segment in kernel.segments:
        offset = segment.address - LOAD_ADDRESS
        memory[offset : offset + len(segment.data)] = segment.data
    assert memory == data.ljust(2 << 20, b"\0")
    assert sum(len(segment.data) for segment in kernel.segments) < 1 << 18
    assert kernel.end == LOAD_ADDRESS + (2 << 20)


def test_segments_come_in_order_of_address(cache: Cache, tmp_path: Path) -> None:
    loads = [(0x3000000, 0, b"c", 1), (0x1000000, 0, b"a", 1), (0x2000000, 0, b"b", 1)]
    kernel = load(elf(loads, entry=0x2000000), cache, tmp_path)
    assert [bytes(segment.data) for segment in kernel.segments] == [b"a", b"b", b"c"]


def test_missing_file_directory_and_empty_file_are_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="No such file"):
        load_kernel(tmp_path / "nothing", cache)
    with pytest.raises(BadImage, match="is a directory"):
        load_kernel(tmp_path, cache)
    assert "is empty" in refusal(b"", cache, tmp_path)


def test_truncated_bzimage_is_refused_as_such(cache: Cache, tmp_path: Path) -> None:
    image = bzimage()
    for size in (0x210, 0x300, len(image) // 2, len(image) - 1):
        assert "truncated bzImage" in refusal(image[:size], cache, tmp_path)


def test_32_bit_kernels_are_refused_as_such(cache: Cache, tmp_path: Path) -> None:
    assert "32-bit kernel" in refusal(bzimage(xloadflags=0), cache, tmp_path)
    assert "32-bit kernel" in refusal(elf32(), cache, tmp_path)
    assert "32-bit kernel" in refusal(elf(machine=3), cache, tmp_path)


def test_kernels_for_arm64_are_refused_as_such(cache: Cache, tmp_path: Path) -> None:
    image = bytearray(4096)
    image[0x38:0x3C] = b"ARM\x64"
    assert "arm64" in refusal(bytes(image), cache, tmp_path)
    assert "another processor (aarch64)" in refusal(elf(machine=183), cache, tmp_path)


def test_old_boot_protocol_is_refused_with_its_number(cache: Cache, tmp_path: Path) -> None:
    assert "protocol 2.10" in refusal(bzimage(version=0x20A), cache, tmp_path)


def test_garbage_is_refused(cache: Cache, tmp_path: Path) -> None:
    assert "neither a bzImage, an ELF" in refusal(b"garbage" * 1000, cache, tmp_path)
    assert "not an ELF file" in refusal(bzimage(vmlinux=b"garbage" * 100), cache, tmp_path)


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "none"])
def test_damaged_payload_is_refused(compression: str, cache: Cache, tmp_path: Path) -> None:
    image = bytearray(bzimage(compression=compression))
    image[-4] ^= 1  # the size behind the stream
    assert "damaged" in refusal(bytes(image), cache, tmp_path)


def test_overlapping_segments_are_refused(cache: Cache, tmp_path: Path) -> None:
    loads = [(0x1000000, 0, b"a", 8192), (0x1001000, 0, b"b", 1)]
    assert "overlap" in refusal(elf(loads), cache, tmp_path)


def test_segments_of_impossible_place_are_refused(cache: Cache, tmp_path: Path) -> None:
    assert "impossible" in refusal(elf([(1 << 60, 0, b"a", 1)], entry=1 << 60), cache, tmp_path)
    assert "impossible" in refusal(elf([(LOAD_ADDRESS, 0, b"abc", 2)]), cache, tmp_path)
    assert "without loadable" in refusal(elf([]), cache, tmp_path)


def test_entry_outside_the_segments_is_refused(cache: Cache, tmp_path: Path) -> None:
    assert "entry point" in refusal(elf(entry=0x10), cache, tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    image=st.sampled_from([elf(), *(bzimage(compression=name) for name in COMPRESSIONS)]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=8),
    cut=st.none() | st.integers(0, 1 << 13),
)
def test_damage_of_any_kind_gives_a_kernel_or_one_line(
    image: bytes, changes: list[tuple[int, int]], cut: int | None, cache: Cache, tmp_path: Path
) -> None:
    damaged = bytearray(image)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    try:
        kernel = load(bytes(damaged[:cut]), cache, tmp_path)
    except BadImage as error:
        assert "\n" not in str(error)
    else:
        assert kernel.start <= kernel.entry < kernel.end or kernel.segments
