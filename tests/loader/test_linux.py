"""Memory as the 64-bit boot protocol wants it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from emu.cache import Cache
from emu.errors import BadImage
from emu.loader import BootState
from emu.loader.kernel import Kernel, load_kernel
from emu.loader.linux import command_line, load_linux
from tests.loader.fakes import CODE, LOAD_ADDRESS, FakeMemory, bzimage, elf

MIB = 1 << 20


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return make(tmp_path, bzimage())


def make(tmp_path: Path, image: bytes) -> Kernel:
    (tmp_path / "vmlinuz").write_bytes(image)
    return load_kernel(tmp_path / "vmlinuz", Cache(tmp_path / "cache"))


def boot(
    kernel: Kernel, *archives: bytes, cmdline: str = "", rsdp: int = 0, **sizes: int
) -> tuple[FakeMemory, BootState]:
    memory = FakeMemory(sizes.get("low_size", 64 * MIB), sizes.get("high_size", 0))
    return memory, load_linux(memory, kernel, archives, cmdline, rsdp)


def u32(memory: FakeMemory, address: int) -> int:
    return int(struct.unpack_from("<I", memory.ram, address)[0])


def u64(memory: FakeMemory, address: int) -> int:
    return int(struct.unpack_from("<Q", memory.ram, address)[0])


def test_kernel_lies_where_its_segments_say_and_starts_at_its_entry(kernel: Kernel) -> None:
    memory, state = boot(kernel)
    assert memory.ram[LOAD_ADDRESS : LOAD_ADDRESS + len(CODE)] == CODE
    assert state.rip == LOAD_ADDRESS


def test_zero_page_holds_the_header_and_names_the_loader(kernel: Kernel) -> None:
    memory, state = boot(kernel)
    assert memory.ram[state.rsi + 0x202 : state.rsi + 0x206] == b"HdrS"
    assert memory.ram[state.rsi + 0x210] == 0xFF
    assert memory.ram[state.rsi + 0x1EF] == 0  # the sentinel: else Linux wipes what is behind


def test_command_line_is_terminated_and_pointed_to(kernel: Kernel) -> None:
    memory, state = boot(kernel, cmdline="console=ttyS0 name=ä")
    pointer = u32(memory, state.rsi + 0x228)
    text = "console=ttyS0 name=ä".encode() + b"\0"
    assert memory.ram[pointer : pointer + len(text)] == text


def test_longest_command_line_fits_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    kernel = make(tmp_path, bzimage(command_line_max=255))
    boot(kernel, cmdline="x" * 255)
    with pytest.raises(BadImage, match="256 bytes; vmlinuz takes 255"):
        boot(kernel, cmdline="x" * 256)


def test_command_line_with_nul_is_refused(kernel: Kernel) -> None:
    with pytest.raises(BadImage, match="NUL"):
        boot(kernel, cmdline="a\0b")


def test_initramfs_lies_at_the_top_page_aligned(kernel: Kernel) -> None:
    initrd = b"cpio" * 1500
    memory, state = boot(kernel, initrd)
    address, size = u32(memory, state.rsi + 0x218), u32(memory, state.rsi + 0x21C)
    assert size == len(initrd)
    assert address % 4096 == 0
    assert 64 * MIB - 8192 < address + size <= 64 * MIB
    assert memory.ram[address : address + size] == initrd


def test_initramfs_stays_below_the_kernels_limit(tmp_path: Path) -> None:
    image = bytearray(bzimage())
    struct.pack_into("<I", image, 0x22C, 40 * MIB - 1)
    memory, state = boot(make(tmp_path, bytes(image)), b"x" * 5000)
    assert u32(memory, state.rsi + 0x218) == 40 * MIB - 8192


def test_initramfs_may_fill_all_memory_above_the_bss_and_no_more(kernel: Kernel) -> None:
    room = 32 * MIB - (kernel.end + 4095) // 4096 * 4096
    boot(kernel, bytes(room), low_size=32 * MIB)
    with pytest.raises(BadImage, match="does not fit"):
        boot(kernel, bytes(room + 1), low_size=32 * MIB)


def test_memory_too_small_for_the_bss_is_refused(tmp_path: Path) -> None:
    kernel = make(tmp_path, elf([(LOAD_ADDRESS, 0, CODE, 100 * MIB)]))
    with pytest.raises(BadImage, match="64 MiB of memory is too small for vmlinuz: it needs 116 MiB"):
        boot(kernel)


def test_kernel_below_one_mebibyte_is_refused(tmp_path: Path) -> None:
    kernel = make(tmp_path, elf([(0x7000, 0, CODE, 8192)], entry=0x7000))
    with pytest.raises(BadImage, match="below 1 MiB"):
        boot(kernel)


def e820(memory: FakeMemory, page: int) -> list[tuple[int, int, int]]:
    return [struct.unpack_from("<QQI", memory.ram, page + 0x2D0 + 20 * n) for n in range(memory.ram[page + 0x1E8])]


def test_memory_map_of_a_small_machine(kernel: Kernel) -> None:
    memory, state = boot(kernel)
    assert e820(memory, state.rsi) == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xF0000, 0x10000, 2),
        (0x100000, 63 * MIB, 1),
    ]


def test_memory_above_the_hole_is_in_the_map(kernel: Kernel) -> None:
    memory, state = boot(kernel, high_size=5 << 30)
    assert e820(memory, state.rsi)[-1] == (1 << 32, 5 << 30, 1)


def test_page_tables_map_four_gibibytes_one_to_one(kernel: Kernel) -> None:
    memory, state = boot(kernel)

    def translate(address: int) -> int:
        table = state.cr3
        for shift in (39, 30):
            entry = u64(memory, table + 8 * (address >> shift & 511))
            assert entry & 3 == 3
            table = entry & ~0xFFF
        entry = u64(memory, table + 8 * (address >> 21 & 511))
        assert entry & 0x83 == 0x83
        return (entry & ~0x1FFFFF) | (address & 0x1FFFFF)

    for address in (0, 0x1FFFFF, 0x200000, 0x12345678, 0xC0000000, 0xFFFFFFFF):
        assert translate(address) == address


def test_gdt_has_flat_code_at_0x10_and_data_at_0x18(kernel: Kernel) -> None:
    memory, state = boot(kernel)
    assert state.gdt_limit == 31
    assert u64(memory, state.gdt_base + 0x10) == 0x00AF9B000000FFFF
    assert u64(memory, state.gdt_base + 0x18) == 0x00CF93000000FFFF


def test_stack_grows_into_nothing_of_the_loaders(kernel: Kernel) -> None:
    _, state = boot(kernel)
    assert state.rsi + 4096 < state.rsp <= state.cr3


def test_users_settings_come_last_and_so_win() -> None:
    assert command_line(extra="mitigations=auto").endswith(" mitigations=auto")
    assert "console=ttyS0" in command_line() and "norandmaps" in command_line()


def test_as_shipped_leaves_only_what_the_board_needs() -> None:
    line = command_line(as_shipped=True)
    assert "console=ttyS0" in line and "norandmaps" not in line and "mitigations" not in line


def test_replaced_settings_are_all_there_is() -> None:
    assert command_line(replace="console=ttyS0") == "console=ttyS0"
    assert command_line(extra="quiet", replace="console=ttyS0") == "console=ttyS0 quiet"
    assert command_line(replace="") == ""


def test_archives_lie_one_behind_the_other_four_byte_aligned(kernel: Kernel) -> None:
    memory, state = boot(kernel, b"first", b"", b"second!")
    start, size = u32(memory, state.rsi + 0x218), u32(memory, state.rsi + 0x21C)
    assert memory.ram[start : start + size] == b"first\0\0\0second!\0"


def test_the_acpi_tables_are_pointed_to(kernel: Kernel) -> None:
    memory, state = boot(kernel, rsdp=0xF0000)
    assert u64(memory, state.rsi + 0x70) == 0xF0000
