"""Multiboot kernels: how they are told, what is refused, and what lies in memory for them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emu.errors import BadImage
from emu.loader import BootState
from emu.loader.multiboot import (
    Module,
    MultibootKernel,
    is_multiboot,
    load_multiboot,
    parse_multiboot,
    read_modules,
    read_multiboot,
)
from tests.loader.fakes import FakeMemory, bzimage
from tests.loader.fakes import elf as vmlinux
from tests.multiboot.images import ADDRESSES, ALIGNED, BASE, ENTRY, MEMORY, VIDEO, elf, flat, header, kernel

MIB = 1 << 20
RAM = 4 * MIB
CODE = kernel("protected")
LOAD = (BASE, BASE, CODE, len(CODE) + 0x3000)
IMAGES = {"ELF32": elf([LOAD]), "ELF64": elf([LOAD], 64), "flat": flat("protected", bss_end=BASE + LOAD[3])}
INFORMATION = struct.Struct("<29I")     # section 3.3, up to color_info
FLAGS, LOWER, UPPER, _, COMMAND_LINE, MODULES, MODULES_AT = range(7)
MAP_SIZE, MAP_AT, LOADER_NAME = 11, 12, 16


def parse(image: bytes) -> MultibootKernel:
    return parse_multiboot(memoryview(image), "kernel.elf")


def refusal(image: bytes) -> str:
    with pytest.raises(BadImage, match=r"kernel\.elf") as caught:
        parse(image)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(
    image: bytes = IMAGES["ELF32"], *modules: Module, line: str = "", low_size: int = RAM, high_size: int = 0
) -> tuple[FakeMemory, BootState]:
    memory = FakeMemory(low_size, high_size)
    return memory, load_multiboot(memory, parse(image), modules, line)


def information(memory: FakeMemory, state: BootState) -> tuple[int, ...]:
    return INFORMATION.unpack_from(memory.ram, state.rbx)


def text(memory: FakeMemory, address: int) -> bytes:
    return bytes(memory.ram[address : memory.ram.index(0, address)])


# -- telling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_a_kernel_is_told_by_its_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel.elf"
    path.write_bytes(IMAGES[name])
    assert is_multiboot(path)
    assert is_multiboot(str(path))
    assert read_multiboot(path).name == "kernel.elf"


@pytest.mark.parametrize("image", [vmlinux(), bzimage(), b"", b"\x02\xb0\xad", bytes(9000)])
def test_other_files_are_not(image: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(image)
    assert not is_multiboot(path)


def test_a_bzimage_that_has_the_number_in_it_is_linux(tmp_path: Path) -> None:
    image = bytearray(bzimage())
    image[0x100:0x10C] = header()
    (tmp_path / "vmlinuz").write_bytes(image)
    assert not is_multiboot(tmp_path / "vmlinuz")


def test_what_cannot_be_read_is_for_others_to_refuse(tmp_path: Path) -> None:
    assert not is_multiboot(tmp_path)
    assert not is_multiboot(tmp_path / "nowhere")


@pytest.mark.parametrize(("offset", "found"), [(0, True), (4, True), (2, False), (8180, True), (8184, False)])
def test_the_header_is_searched_at_multiples_of_4_in_8192_bytes(offset: int, found: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(offset) + header() + bytes(9000))
    assert is_multiboot(path) is found


def test_the_number_alone_is_no_header() -> None:
    assert "wrong checksum" in refusal(elf([(BASE, BASE, header(checksum=1) + CODE[12:], len(CODE))]))


def test_the_first_header_with_a_right_checksum_counts() -> None:
    code = header(checksum=1) + header(ALIGNED) + CODE[24:]
    assert parse(elf([(BASE, BASE, code, len(code))])).entry == ENTRY


# -- what is asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, ALIGNED, MEMORY, ALIGNED | MEMORY, 0xFFFE_0000])
def test_flags_that_ask_for_what_there_is(flags: int) -> None:
    assert parse(elf([(BASE, BASE, kernel("protected", header(flags)), len(CODE))])).entry == ENTRY


@pytest.mark.parametrize("bit", range(3, 16))
def test_unknown_requirements_are_refused(bit: int) -> None:
    assert f"bits {1 << bit:#x}" in refusal(elf([(BASE, BASE, kernel("protected", header(3 | 1 << bit)), len(CODE))]))


def test_a_video_mode_is_refused() -> None:
    assert "no graphics" in refusal(elf([(BASE, BASE, kernel("protected", header(VIDEO)), len(CODE))]))


# -- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_segments_and_entry(name: str) -> None:
    made = parse(IMAGES[name])
    (segment,) = made.segments
    assert (made.entry, made.end) == (ENTRY, BASE + LOAD[3])
    assert (segment.address, bytes(segment.data[32:]), segment.size) == (BASE, CODE[32:], LOAD[3])


def test_an_entry_point_in_virtual_memory_is_entered_at_its_physical_address() -> None:
    high = 0xC000_0000
    assert parse(elf([(BASE, high + BASE, CODE, len(CODE))], entry=high + ENTRY)).entry == ENTRY


def test_the_header_s_addresses_count_more_than_elf() -> None:
    """The ELF header itself comes along, in front of what the header says that it is at BASE + 84."""
    addresses = (BASE + 84, BASE, 0, 0, ENTRY + 84)
    code = header(ADDRESSES, addresses).ljust(32, b"\0") + CODE[32:]
    image = elf([(0x20_0000, 0x20_0000, code, len(code))], machine=40)
    (segment,) = parse(image).segments
    assert (segment.address, bytes(segment.data)) == (BASE, image)


def test_a_flat_file_s_ends() -> None:
    (segment,) = parse(flat("protected", load_end=BASE + 100, bss_end=BASE + 200)).segments
    assert (len(segment.data), segment.size) == (100, 200)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (elf([LOAD], machine=40), "another processor (arm)"),
        (elf([LOAD], 64, machine=183), "another processor (aarch64)"),
        (elf([LOAD], machine=62), "another processor (x86_64)"),
        (elf([LOAD], kind=1), "cannot be started"),
        (elf([LOAD], entry=0x5000), "entry point"),
        (elf([LOAD, (BASE + 16, 0, b"x", 1)]), "overlap"),
        (elf([(BASE, BASE, CODE, len(CODE) - 1)]), "impossible size"),
        (IMAGES["ELF32"][:-1], "truncated"),
        (header() + bytes(100), "bit 16"),
        (header(ADDRESSES, (BASE,)), "truncated"),
        (flat("protected", load=BASE + 4), "not at"),
        (flat("protected", place=BASE + 4), "not at"),
        (flat("protected", load_end=BASE + len(CODE) + 1), "truncated"),
        (flat("protected", load_end=BASE - 1), "before their beginnings"),
        (flat("protected", load_end=BASE), "before their beginnings"),
        (flat("protected", bss_end=BASE + 8), "before their beginnings"),
        (flat("protected", entry=BASE - 1), "entry point"),
        (flat("protected", entry=BASE + len(CODE)), "entry point"),
    ],
)
def test_what_is_refused(image: bytes, message: str) -> None:
    assert message in refusal(image)


@pytest.mark.parametrize(
    ("address", "size", "message"),
    [
        (0x9_F000, 0x1000, "0x9f000 to 0x9ffff"),
        (0xF_0000, 0x1000, "not all RAM"),
        (0xF_E000, 0x3000, "not all RAM"),
        (BASE, RAM, "needs 5 MiB"),
        (0xC000_0000, 0x1000, "not all RAM"),
        (0xFEE0_0000, 0x1000, "not all RAM"),
    ],
)
def test_places_that_are_no_ram_are_refused(address: int, size: int, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        load(elf([(address, address, CODE, size)], entry=address + 32))


def test_the_elf_header_may_lie_in_the_last_page_below_1_mib() -> None:
    """ld -Ttext 0x100000 puts it there, as a segment of its own."""
    memory, _ = load(elf([LOAD, (0xF_F000, 0xF_F000, b"\x7fELF", 0x94)]))
    assert memory.ram[0xF_F000:0xF_F004] == b"\x7fELF"


def test_a_segment_below_the_bios_area_is_loaded() -> None:
    low = (0x1_0000, 0x1_0000, b"low", 0x8_FC00)
    memory, state = load(elf([LOAD, low]))
    assert memory.ram[0x1_0000:0x1_0003] == b"low"
    assert state.gdt_base >= BASE + LOAD[3], "the information has to lie elsewhere"


@settings(deadline=None)
@given(st.data())
def test_nothing_but_bad_image_comes_of_damage(data: st.DataObject) -> None:
    image = bytearray(IMAGES[data.draw(st.sampled_from(sorted(IMAGES)))])
    places = st.integers(0, 200) | st.integers(0, len(image) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])), max_size=8)):
        image[place] = value
    cut = data.draw(st.integers(0, len(image)) | st.just(len(image)))
    try:
        load(bytes(image[:cut]))
    except BadImage as error:
        assert "\n" not in str(error)


WORDS = st.integers(0, 0xFFFF_FFFF) | st.builds(lambda near: BASE + near, st.integers(-64, 0x4000))


@settings(deadline=None)
@given(st.tuples(WORDS, WORDS, WORDS, WORDS, WORDS), st.integers(0, 2048).map(lambda word: 4 * word))
@example((BASE, BASE, 0, 0, ENTRY), 0)
@example((0, 0, 0xFFFF_FFFF, 0xFFFF_FFFF, 0), 0)
@example((0, 0, 1, 0, 0), 0)
def test_a_header_that_lies_is_refused_or_harmless(addresses: tuple[int, ...], offset: int) -> None:
    image = bytes(offset) + header(ADDRESSES, addresses) + CODE[32:]
    try:
        memory, state = load(image)
    except BadImage:
        return
    place, address, end, _, entry = addresses
    start = offset - (place - address)
    stored = image[start : start + end - address] if end else image[start:]
    assert state.rip == entry
    assert memory.ram[address : address + len(stored)] == stored


# -- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_the_machine_s_state(name: str) -> None:
    """Section 3.2: EAX, EBX, and a flat GDT for the selectors that the CPU starts with; no paging."""
    memory, state = load(IMAGES[name])
    assert (state.rip, state.rax, state.cr3) == (ENTRY, 0x2BAD_B002, None)
    assert memory.ram[BASE + 32 : BASE + len(CODE)] == CODE[32:]
    gdt = struct.unpack_from("<4Q", memory.ram, state.gdt_base)
    assert state.gdt_limit == 31
    assert gdt[2:] == (0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)


def test_information_without_modules() -> None:
    memory, state = load(line="one  two ä")
    found = information(memory, state)
    assert found[FLAGS] == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (found[LOWER], found[UPPER], found[MODULES]) == (639, 3 * 1024, 0)
    assert text(memory, found[COMMAND_LINE]) == "one  two ä".encode()
    assert text(memory, found[LOADER_NAME]) == b"pvemu"


@pytest.mark.parametrize("high_size", [0, 1 << 30])
def test_memory_map(high_size: int) -> None:
    memory, state = load(high_size=high_size)
    found = information(memory, state)
    at, end = found[MAP_AT], found[MAP_AT] + found[MAP_SIZE]
    regions = []
    while at < end:
        size, *region = struct.unpack_from("<IQQI", memory.ram, at)
        regions.append(tuple(region))
        at += size + 4
    assert at == end
    assert regions[:4] == [
        (0, 0x9_FC00, 1), (0x9_FC00, 0x400, 2), (0xF_0000, 0x1_0000, 2), (0x10_0000, 3 * MIB, 1),
    ]  # fmt: skip
    assert regions[4:] == ([(1 << 32, 1 << 30, 1)] if high_size else [])


def test_modules_lie_page_aligned_behind_the_kernel() -> None:
    first, second = Module(memoryview(b"1" * 5000), "a.bin x"), Module(memoryview(b"2"), "b.bin")
    memory, state = load(IMAGES["ELF32"], first, second)
    found = information(memory, state)
    assert found[MODULES] == 2
    ends = BASE + LOAD[3]
    for number, module in enumerate((first, second)):
        start, end, string, reserved = struct.unpack_from("<4I", memory.ram, found[MODULES_AT] + 16 * number)
        assert (start % 4096, reserved) == (0, 0)
        assert start >= ends
        assert memory.ram[start:end] == module.data
        assert text(memory, string) == module.text.encode()
        ends = end


def test_modules_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadImage, match=r"too small for .+ and its modules"):
        load(IMAGES["ELF32"], Module(memoryview(bytes(RAM)), "big"))


def test_modules_are_read_as_qemu_reads_them(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 3)
    given = f"{tmp_path}/a some  words,{tmp_path}/b"
    assert [(bytes(one.data), one.text) for one in read_modules(given)] == [
        (b"aaa", f"{tmp_path}/a some  words"), (b"bbb", f"{tmp_path}/b"),
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["nowhere", "nowhere words", "", "a,,b"])
def test_modules_that_are_not_there(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(BadImage, match="cannot read"):
        read_modules(given)


def test_a_long_command_line_goes_where_there_is_room() -> None:
    memory, state = load(IMAGES["ELF32"], Module(memoryview(b"m" * 5001), "m"), line="x" * 0x9_0000)
    assert state.gdt_base > BASE and state.gdt_base % 4096 == 0
    assert b"m" * 5001 in memory.ram
    assert text(memory, information(memory, state)[COMMAND_LINE]) == b"x" * 0x9_0000


@pytest.mark.parametrize(("line", "message"), [("x" * RAM, "do not fit"), ("a\0b", "NUL")])
def test_a_command_line_that_cannot_be_passed_on(line: str, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        load(line=line)
