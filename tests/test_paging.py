"""The page-table walker: against a model in every mode, and against the CPU itself."""

from __future__ import annotations

import itertools
import random
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu import micro
from emu.cpu.constants import EFER_LMA
from emu.cpu.platform import Exit
from emu.memory import MIB, GuestMemory
from emu.micro import CODE, PF, USER_CODE, MicroGuest
from emu.paging import (
    ACCESSED,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    DIRTY,
    ERROR_PRESENT,
    ERROR_RESERVED,
    ERROR_USER,
    ERROR_WRITE,
    LARGE,
    PRESENT,
    USER,
    WRITABLE,
    AddressSpace,
    NotMapped,
    OutsideMemory,
)

MEMORY = GuestMemory(64 * MIB)
TABLES = 0x10_0000                      # the model's, page after page
ROOT = TABLES
RIGHTS = WRITABLE | USER


@dataclass
class FakeRegisters:
    """CR0, CR3, CR4 and EFER."""

    paging: tuple[int, int, int, int]


@dataclass(frozen=True)
class Mode:
    """A kind of paging: the levels' shifts, at which a page may begin, and how the entries look."""

    shifts: tuple[int, ...]
    pages: tuple[int, ...]
    entry_bytes: int
    address_bits: int
    physical_bits: int
    cr4: int = 0
    efer: int = 0
    rootless: int = 0                   # shift of a level whose entries have no rights and no accessed bit

    def registers(self, wp: bool) -> FakeRegisters:
        """What selects it."""
        return FakeRegisters((CR0_PG | wp * CR0_WP, ROOT | 0x18 * bool(self.efer), self.cr4, self.efer))


MODES = {
    "32-bit": Mode((22, 12), (12,), 4, 32, 32),
    "32-bit, PSE": Mode((22, 12), (22, 12), 4, 32, 40, CR4_PSE),
    "PAE": Mode((30, 21, 12), (21, 12), 8, 32, 52, CR4_PAE, rootless=30),
    "4 levels": Mode((39, 30, 21, 12), (30, 21, 12), 8, 48, 52, CR4_PAE, EFER_LMA),
    "5 levels": Mode((48, 39, 30, 21, 12), (30, 21, 12), 8, 57, 52, CR4_PAE | CR4_LA57, EFER_LMA),
}


@dataclass
class Model:
    """What is mapped, in dictionaries; and in memory, the tables that say so."""

    mode: Mode
    entries: dict[tuple[int, int], int] = field(default_factory=dict)       # (shift, index from the top) -> place
    rights: dict[tuple[int, int], int] = field(default_factory=dict)
    frames: dict[tuple[int, int], int] = field(default_factory=dict)
    pages: int = 1

    def __post_init__(self) -> None:
        MEMORY.write(TABLES, bytes(0x20_0000))

    def add(self, address: int, page: int, physical: int, rights: list[int]) -> None:
        """Map the page of 2**page bytes at an address, unless something is in the way."""
        mode, table = self.mode, ROOT
        for shift, right in zip(mode.shifts, rights, strict=False):
            key = shift, address >> shift
            if key in self.frames or (shift == page and key in self.entries):
                return
            if key not in self.entries:
                size = mode.entry_bytes
                self.entries[key] = table + (address >> shift) % (4096 // size) * size
                self.rights[key] = RIGHTS if shift == mode.rootless else right
                if shift == page:
                    wide = size == 8 or page == 22                  # 32-bit tables: only large pages lie high
                    frame = self.frames[key] = (physical if wide else physical & 0xFFFF_FFFF) >> page << page
                    entry = (frame & 0xFFFF_FFFF | frame >> 32 << 13 if size == 4 else frame) | LARGE * (page != 12)
                else:
                    entry = TABLES + 4096 * self.pages
                    self.pages += 1
                self.put(key, entry | PRESENT | (0 if shift == mode.rootless else right))
            if shift == page:
                return
            table = self.get(key) & ~0xFFF

    def get(self, key: tuple[int, int]) -> int:
        """The entry in memory."""
        return int.from_bytes(MEMORY.read(self.entries[key], self.mode.entry_bytes), "little")

    def put(self, key: tuple[int, int], entry: int) -> None:
        """Store one."""
        MEMORY.write(self.entries[key], entry.to_bytes(self.mode.entry_bytes, "little"))

    def path(self, address: int) -> list[tuple[int, int]]:
        """Entries that a walk uses; the last one is a page's if anything is mapped there."""
        keys = [(shift, address >> shift) for shift in self.mode.shifts]
        used = list(itertools.takewhile(lambda key: key in self.entries, keys))
        return next((used[: i + 1] for i, key in enumerate(used) if key in self.frames), used)

    def expected(self, address: int, write: bool, user: bool, wp: bool) -> int | str:
        """Physical address, or the error code in words."""
        path = self.path(address)
        if not path or path[-1] not in self.frames:
            return "not present"
        rights = RIGHTS
        for key in path:
            rights &= self.rights[key]
        if user and not rights & USER:
            return "protected"
        if write and not rights & WRITABLE and (user or wp):
            return "protected"
        return self.frames[path[-1]] + address % (1 << path[-1][0])


@st.composite
def models(draw: st.DrawFn) -> tuple[Model, list[int]]:
    """A model with a few pages, and addresses worth a look."""
    mode = MODES[draw(st.sampled_from(sorted(MODES)))]
    model, addresses = Model(mode), []
    top = 1 << mode.address_bits
    for _ in range(draw(st.integers(1, 8))):
        near = draw(st.sampled_from([0, *addresses])) + draw(st.integers(-0x80_0000, 0x80_0000))
        address = draw(st.integers(0, top - 1) | st.just(near % top))
        physical = draw(st.integers(0, (1 << mode.physical_bits - 12) - 1)) << 12
        rights = [draw(st.sampled_from([0, WRITABLE, USER, RIGHTS, RIGHTS, RIGHTS])) for _ in mode.shifts]
        page = draw(st.sampled_from(mode.pages))
        model.add(address, page, physical, rights)
        addresses += [address, address ^ draw(st.integers(0, top - 1)) >> draw(st.integers(0, mode.address_bits))]
    return model, addresses


def signed(address: int, mode: Mode) -> int:
    """The canonical form of an address."""
    top = 1 << mode.address_bits
    return address | (1 << 64) - top if mode.efer and address & top >> 1 else address


@settings(max_examples=300, deadline=None)
@given(models(), st.booleans(), st.booleans(), st.booleans())
def test_every_mode_is_walked_as_the_manual_says(
    case: tuple[Model, list[int]], write: bool, user: bool, wp: bool
) -> None:
    model, addresses = case
    space = AddressSpace(MEMORY, model.mode.registers(wp))
    asked = write * ERROR_WRITE | user * ERROR_USER
    marks: dict[tuple[int, int], int] = {}
    before = {key: model.get(key) for key in model.entries}
    for address in addresses:
        expected = model.expected(address, write, user, wp)
        virtual = signed(address, model.mode)
        try:
            result: int | str = space.translate(virtual, write, user)
        except NotMapped as fault:
            result = {asked: "not present", asked | ERROR_PRESENT: "protected"}[fault.error_code]
            assert fault.address in (virtual, address)
        assert result == expected
        for key in model.path(address):
            if key not in model.frames:
                marks[key] = marks.get(key, 0) | (0 if key[0] == model.mode.rootless else ACCESSED)
            elif isinstance(expected, int):
                marks[key] = marks.get(key, 0) | (ACCESSED | DIRTY if write else ACCESSED)
    assert {key: model.get(key) for key in before} == {key: old | marks.get(key, 0) for key, old in before.items()}


def test_without_paging_an_address_is_its_own_translation() -> None:
    space = AddressSpace(MEMORY, FakeRegisters((0, 0, 0, 0)))
    assert space.translate(0x12345) == 0x12345
    assert space.translate((1 << 32) + 5) == 5
    space.write(0x5000, b"abc")
    assert space.read(0x5001, 2) == b"bc"


@pytest.mark.parametrize("address", [1 << 47, (1 << 64) - (1 << 47) - 1, 1 << 63, 1 << 64, -1])
def test_an_address_that_is_not_canonical_is_no_page_fault(address: int) -> None:
    space = AddressSpace(MEMORY, MODES["4 levels"].registers(wp=True))
    for user in (False, True):
        with pytest.raises(NotMapped) as raised:
            space.write(address, b"x", user)
        assert (raised.value.address, raised.value.error_code) == (address, 0)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("entry", [64 * MIB, 0xFFFF_F000, 0xD000_0000])
def test_tables_outside_of_ram_are_not_there(mode: Mode, entry: int) -> None:
    model = Model(mode)
    model.add(0, 12, 0x5000, [RIGHTS] * 5)
    model.put((mode.shifts[0], 0), entry | PRESENT | RIGHTS)
    space = AddressSpace(MEMORY, mode.registers(wp=True))
    with pytest.raises(NotMapped) as raised:
        space.read(0x123, 4, True)
    assert raised.value.error_code == ERROR_USER


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_root_outside_of_ram_is_no_table(mode: Mode) -> None:
    cr0, _, cr4, efer = mode.registers(wp=True).paging
    space = AddressSpace(MEMORY, FakeRegisters((cr0, 64 * MIB, cr4, efer)))
    with pytest.raises(NotMapped):
        space.translate(0x1000)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_table_that_is_its_own_entry_ends_the_walk(mode: Mode) -> None:
    Model(mode)
    size = mode.entry_bytes
    MEMORY.write(ROOT, (ROOT | PRESENT | RIGHTS).to_bytes(size, "little") * (4096 // size))
    assert AddressSpace(MEMORY, mode.registers(wp=True)).translate(0x123) == ROOT + 0x123


@pytest.mark.parametrize("shift", [39, 48])
def test_a_page_larger_than_the_cpu_has_is_a_reserved_bit(shift: int) -> None:
    mode = MODES["5 levels"]
    model = Model(mode)
    model.add(0, 12, 0x5000, [RIGHTS] * 5)
    model.put((shift, 0), model.get((shift, 0)) | LARGE)
    with pytest.raises(NotMapped) as raised:
        AddressSpace(MEMORY, mode.registers(wp=True)).translate(0)
    assert raised.value.error_code == ERROR_PRESENT | ERROR_RESERVED


def test_a_cpu_without_large_pages_takes_their_bit_for_nothing() -> None:
    mode = MODES["32-bit"]
    model = Model(mode)
    model.add(0x5000, 12, 0x9000, [RIGHTS] * 2)
    model.put((22, 0), model.get((22, 0)) | LARGE)
    assert AddressSpace(MEMORY, mode.registers(wp=True)).translate(0x5123) == 0x9123


# -- more than a page ----------------------------------------------------------------------------------------------


@pytest.fixture
def space() -> AddressSpace:
    """Virtual 0x1000, 0x2000, 0x3000 at physical 0x9000, 0x8000, 0x7000; 0x4000 is read-only, 0x5000 is no RAM."""
    mode = MODES["4 levels"]
    model = Model(mode)
    for page, frame, right in (1, 9, RIGHTS), (2, 8, RIGHTS), (3, 7, RIGHTS), (4, 6, USER), (5, 0xD0000, RIGHTS):
        model.add(page << 12, 12, frame << 12, [RIGHTS, RIGHTS, RIGHTS, right])
    MEMORY.write(0x6000, bytes(0x4000))
    return AddressSpace(MEMORY, mode.registers(wp=True))


def test_pages_next_to_each_other_need_not_be_so_in_ram(space: AddressSpace) -> None:
    data = random.Random(1).randbytes(0x2800)
    space.write(0x1800, data, True)
    assert MEMORY.read(0x9800, 0x800) + MEMORY.read(0x8000, 0x1000) + MEMORY.read(0x7000, 0x1000) == data
    assert space.read(0x1800, 0x2800, True) == data
    assert space.read(0x1FFF, 2) == data[0x7FF:0x801]


@pytest.mark.parametrize(("address", "size", "bad"), [(0x3F00, 0x200, 0x4000), (0x1000, 0x3001, 0x4000)])
def test_a_write_that_ends_in_a_page_it_may_not_write_writes_nothing(
    space: AddressSpace, address: int, size: int, bad: int
) -> None:
    with pytest.raises(NotMapped) as raised:
        space.write(address, b"x" * size, True)
    assert (raised.value.address, raised.value.error_code) == (bad, ERROR_USER | ERROR_WRITE | ERROR_PRESENT)
    assert not any(MEMORY.read(0x6000, 0x4000))


def test_a_write_that_ends_in_a_device_s_page_writes_nothing(space: AddressSpace) -> None:
    cr0, cr3, cr4, efer = MODES["4 levels"].registers(wp=False).paging
    with pytest.raises(OutsideMemory):
        AddressSpace(MEMORY, FakeRegisters((cr0, cr3, cr4, efer))).write(0x3F00, b"x" * 0x1200)
    assert not any(MEMORY.read(0x6000, 0x4000))


def test_a_huge_read_ends_where_nothing_is_mapped(space: AddressSpace) -> None:
    with pytest.raises(OutsideMemory):
        space.read(0x1000, 1 << 63)


def test_a_write_drops_the_code_translated_from_there() -> None:
    with MicroGuest() as guest:
        space = AddressSpace(guest.memory, guest.registers)
        guest.put(b"\xb0\x01\xf4")                      # mov al, 1; hlt
        assert guest.go() is Exit.HALT
        assert guest.registers.rax & 0xFF == 1
        space.write(CODE + 1, b"\x02")
        guest.put(b"")
        guest.go()
        assert guest.registers.rax & 0xFF == 2


# -- the CPU itself ------------------------------------------------------------------------------------------------

FAR = 0x7F12_3456_7000                  # its tables are its own, one a level
FAR_TABLES = 0x10_0000
FAR_PAGE = 0x18_0000
RELOAD = b"\x0f\x20\xd8\x0f\x22\xd8\xf4"                # mov rax, cr3; mov cr3, rax; hlt
LOAD, STORE = b"\x48\x8b\x0f\x0f\x0b", b"\x48\x89\x0f\x0f\x0b"      # mov rcx, [rdi], or the reverse; ud2
SET_WP, CLEAR_WP = b"\x0d\x00\x00\x01\x00", b"\x25\xff\xff\xfe\xff"      # or eax, WP; and eax, ~WP


def far_entries(flags: tuple[int, ...]) -> list[tuple[int, int]]:
    """(place, entry) of each level on the way to FAR; one for each of `flags`, the last of them the page's."""
    places = [micro.PML4, FAR_TABLES, FAR_TABLES + 0x1000, FAR_TABLES + 0x2000]
    shifts = (39, 30, 21, 12)[: len(flags)]
    frames = [*places[1 : len(flags)], FAR_PAGE]
    return [
        (place + (FAR >> shift & 511) * 8, frame | flag | (LARGE if shift != 12 and frame == FAR_PAGE else 0))
        for place, shift, frame, flag in zip(places, shifts, frames, flags, strict=False)
    ]


def by_the_cpu(guest: MicroGuest, write: bool, user: bool) -> tuple[int, int] | None:
    """What a load or store at FAR does: (CR2, error code) of its page fault, None if it is done."""
    guest.run(RELOAD)
    guest.events.clear()
    guest.run(STORE if write else LOAD, USER_CODE if user else CODE, rdi=FAR + 8, rcx=0)
    event = guest.event
    return (event.cr2, event.error_code) if event.vector == PF else None


def by_the_walker(guest: MicroGuest, write: bool, user: bool) -> tuple[int, int] | None:
    try:
        AddressSpace(guest.memory, guest.registers).translate(FAR + 8, write, user)
    except NotMapped as fault:
        return fault.address, fault.error_code
    return None


@pytest.mark.parametrize("wp", [False, True])
def test_it_faults_where_the_cpu_does_and_marks_what_the_cpu_marks(wp: bool) -> None:
    every = [0, WRITABLE | USER, *(PRESENT | right for right in (0, WRITABLE, USER, RIGHTS))]
    chance = random.Random(wp)
    cases = [[PRESENT | RIGHTS] * 4, [PRESENT | RIGHTS] * 3]
    cases += [[chance.choice(every[1:]) for _ in range(4)] for _ in range(30)]
    cases += [[PRESENT | RIGHTS] * i + [flag] + [PRESENT | RIGHTS] * (3 - i) for i in range(4) for flag in every]
    seen = set()
    with MicroGuest() as guest:
        guest.run(b"\x0f\x20\xc0" + (SET_WP if wp else CLEAR_WP) + b"\x0f\x22\xc0\xf4")    # to and from CR0; hlt
        assert bool(guest.registers.cr(0) & CR0_WP) is wp
        for flags, write, user in itertools.product(cases, (False, True), (False, True)):
            entries, answers = far_entries(tuple(flags)), []
            # 2 MiB pages have to be aligned: the page is then the one that FAR_PAGE is in
            entries[-1] = entries[-1][0], entries[-1][1] & ~(0x1F_F000 if len(flags) == 3 else 0)
            for ask in by_the_cpu, by_the_walker:
                for place, entry in entries:
                    guest.memory.write(place, struct.pack("<Q", entry))
                answers.append((ask(guest, write, user), [guest.quad(place) for place, _ in entries]))
            assert answers[0] == answers[1], (flags, write, user)
            seen.add(answers[0][0] and answers[0][0][1])
    assert seen >= {None, 0, 4, 5, 2, 6, 7} | ({3} if wp else set())
