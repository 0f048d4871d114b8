"""Hypercalls in the guest that unit tests of them use, and what bad handlers do to it: nothing."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.p9.export import Export
from devices.p9.whole_files import WholeFiles
from emu import GuestException, MicroGuest
from emu.assembler import NOP, UD2, WRMSR, load, mov, repeat, store
from emu.memory import MIB
from emu.micro import GP, PF
from emu.micro_system import MEMORY_SIZE, SYSTEM, SYSTEM_SIZE
from emu.microguest import CODE
from hypercalls import Call, GuestFault, Hypercall, hypercall
from hypercalls.buffer import buffer_value
from hypercalls.builtin import BUILT_IN
from hypercalls.files import IN_MAILBOX, REQUEST
from hypercalls.numbers import (
    FIRST_USER,
    LAST,
    PV_CONSOLE,
    PV_EXIT,
    PV_IDLE,
    PV_INFORMATION,
    PV_MAILBOX,
    PV_MARK,
    PV_READ,
)
from tests.test_microguest import SPIN, wrmsr

PAGE = 4096


def hypercall_of(handler: object, access: str = "w") -> Hypercall:
    """A hypercall with the first number of users."""
    return Hypercall(FIRST_USER, "PV_MINE", access, handler)  # type: ignore[arg-type]


@hypercall(FIRST_USER, "PV_ZERO_PAGE")
def pv_zero_page(call: Call) -> None:
    """Zero the page at the guest-physical address written."""
    call.memory.write(call.value, bytes(PAGE))


@pytest.fixture
def guest() -> Iterator[MicroGuest]:
    with MicroGuest() as guest:
        yield guest


def test_built_in_hypercalls_answer(guest: MicroGuest) -> None:
    guest.memory.write(0x5000, b"ello")
    guest.wrmsr(PV_CONSOLE, ord("h"))
    guest.wrmsr(PV_CONSOLE, buffer_value(0x5000, 4))
    guest.wrmsr(PV_MARK, 2**64 - 1)
    guest.wrmsr(PV_IDLE, 0)
    assert (guest.console, guest.marks, guest.idles) == (b"hello", [2**64 - 1], 1)
    assert guest.rdmsr(PV_INFORMATION) >> 48 == 0x5056
    guest.wrmsr(PV_MAILBOX, 2**63)
    assert guest.rdmsr(PV_MAILBOX) == 2**63


def test_files_can_be_given(guest: MicroGuest, tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"content")
    with pytest.raises(GuestException):
        guest.wrmsr(PV_READ, IN_MAILBOX)
    files = WholeFiles(Export(tmp_path, "hypercalls"))
    guest.machine.files = files
    guest.memory.write(0x5000, REQUEST.pack(0x5100, 4, 0, 0, 0x6000, 100, 0))
    guest.memory.write(0x5100, b"name")
    guest.wrmsr(PV_READ, 0x5000)
    assert guest.memory.read(0x6000, 8) == b"content\0"
    files.close()


def test_nothing_behind_an_exit_is_executed(guest: MicroGuest) -> None:
    guest.run(wrmsr(PV_EXIT, 7) + mov("rbx", 5) + SPIN)
    assert (guest.exit_status, guest.registers.rbx) == (7, 0)
    guest.run(NOP)
    assert guest.exit_status is None


def test_an_unclaimed_number_is_gp(guest: MicroGuest) -> None:
    taken = {one.number for one in BUILT_IN}
    for number in {0x4B56_4D00, FIRST_USER, LAST, 0x4B56_4E00} - taken:
        for access in (lambda number=number: guest.wrmsr(number, 0), lambda number=number: guest.rdmsr(number)):
            with pytest.raises(GuestException) as raised:
                access()
            assert (raised.value.vector, raised.value.error_code) == (GP, 0)


def test_values_have_64_bits_both_ways(guest: MicroGuest) -> None:
    guest.add(hypercall_of(lambda call: call.value ^ 1))
    for value in (0, 2**31, 2**32, 2**63, 2**64 - 1, 0x1122_3344_5566_7788):
        guest.wrmsr(FIRST_USER, value)
        assert guest.rdmsr(FIRST_USER) == value ^ 1


def test_hypercalls_by_name_number_or_later(guest: MicroGuest) -> None:
    guest.add(pv_zero_page)
    guest.add(pv_zero_page)
    guest.memory.write(0x5000, b"\xff" * PAGE)
    guest.wrmsr(pv_zero_page, 0x5000)
    assert guest.memory.read(0x5000, PAGE) == bytes(PAGE)
    with pytest.raises(ValueError, match="belongs to PV_ZERO_PAGE"):
        guest.add(hypercall_of(lambda call: None))
    with pytest.raises(ValueError, match="PV_MINE: MSR 0x4b564d20 belongs to PV_ZERO_PAGE"):
        MicroGuest([pv_zero_page, hypercall_of(lambda call: None)])


def test_a_handler_chooses_the_exception(guest: MicroGuest) -> None:
    def handler(_call: Call) -> None:
        raise GuestFault(PF, 2)

    guest.add(hypercall_of(handler))
    with pytest.raises(GuestException) as raised:
        guest.wrmsr(FIRST_USER, 0)
    assert (raised.value.vector, raised.value.error_code) == (PF, 2)


def test_virtual_addresses_go_through_the_guest_s_tables(guest: MicroGuest) -> None:
    """They are physical ones, until the guest has tables of its own: here with the first 2 MiB once more at 1 TiB."""
    guest.add(hypercall_of(lambda call: call.memory.write_virtual(call.value, call.memory.read_virtual(0x5000, 4))))
    guest.memory.write(0x5000, b"abcd")
    guest.wrmsr(FIRST_USER, 0x6000)
    assert guest.memory.read(0x6000, 4) == b"abcd"
    with pytest.raises(GuestException):
        guest.wrmsr(FIRST_USER, 1 << 40)

    own_tables(guest, 0)
    guest.wrmsr(FIRST_USER, (1 << 40) + 0x7000)
    assert guest.memory.read(0x7000, 4) == b"abcd"


def own_tables(guest: MicroGuest, physical: int) -> None:
    """Have the guest use page tables of its own, in which 2 MiB from `physical` on are at 1 TiB."""
    guest.run(b"\x0f\x20\xd8" + load("rbx", "rax"))                 # mov rax, cr3
    guest.memory.write(0x20_0000, struct.pack("<QQQ", guest.registers.rbx, 0, 0x20_1003))
    guest.memory.write(0x20_1000, struct.pack("<Q", 0x20_2003))
    guest.memory.write(0x20_2000, struct.pack("<Q", physical | 0x83))
    guest.run(b"\x0f\x22\xd8", rax=0x20_0000)                      # mov cr3, rax


@pytest.mark.parametrize("physical", [MEMORY_SIZE, SYSTEM + 2 * MIB, 0xD000_0000, 1 << 39])
def test_where_there_is_no_ram_bits_are_set(guest: MicroGuest, physical: int) -> None:
    own_tables(guest, physical)
    guest.run(store("rax", "rax") + load("rbx", "rax"), rax=1 << 40)
    assert guest.registers.rbx == 2**64 - 1


BAD_HANDLERS = {
    "raises": lambda call: {}["missing"],
    "divides by zero": lambda call: 1 // call.value,
    "reads past RAM": lambda call: call.memory.read(MEMORY_SIZE - 4, 8),
    "writes past RAM": lambda call: call.memory.write(MEMORY_SIZE - 4, bytes(8)),
    "writes before RAM": lambda call: call.memory.write(-1, bytes(8)),
    "writes to the page tables": lambda call: call.memory.write(SYSTEM, bytes(SYSTEM_SIZE)),
    "writes to the page tables by virtual address": lambda call: call.memory.write_virtual(SYSTEM, bytes(SYSTEM_SIZE)),
    "writes to no page": lambda call: call.memory.write_virtual(1 << 40, b"x"),
    "recurses": lambda call: BAD_HANDLERS["recurses"](call),
}


@pytest.mark.parametrize("name", BAD_HANDLERS)
def test_a_bad_handler_leaves_the_guest_alive(
    guest: MicroGuest, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    guest.add(hypercall_of(BAD_HANDLERS[name]))
    before = guest.memory.read(MEMORY_SIZE - PAGE, PAGE)
    for _ in range(3):
        with pytest.raises(GuestException, match="#GP"):
            guest.wrmsr(FIRST_USER, 0)
    assert "the guest gets #GP" in caplog.text
    guest.wrmsr(PV_CONSOLE, ord("y"))
    guest.run(mov("rbx", 5), ring=3)
    assert (guest.console, guest.registers.rbx) == (b"y", 5)
    assert guest.memory.read(MEMORY_SIZE - PAGE, PAGE) == before


def test_a_handler_that_follows_a_loop_of_pointers_ends(
    guest: MicroGuest, caplog: pytest.LogCaptureFixture
) -> None:
    def follow(call: Call) -> None:
        at = call.value
        while at:
            at = int.from_bytes(call.memory.read(at, 8), "little")

    guest.add(hypercall_of(follow))
    guest.memory.write(0x5000, struct.pack("<Q", 0x5000))
    with pytest.raises(GuestException, match="#GP"):
        guest.wrmsr(FIRST_USER, 0x5000)
    assert "without end" in caplog.text
    guest.wrmsr(FIRST_USER, 0x6000)


def test_what_is_no_error_of_the_handler_comes_through(guest: MicroGuest) -> None:
    """As Ctrl-C does, and pytest.fail()."""
    guest.add(hypercall_of(lambda call: pytest.fail("by the handler")))
    with pytest.raises(pytest.fail.Exception, match="by the handler"):
        guest.wrmsr(FIRST_USER, 0)
    guest.run(mov("rbx", 5))
    assert guest.registers.rbx == 5


@pytest.mark.parametrize("what", ["run", "wrmsr", "rdmsr", "close"])
def test_a_handler_cannot_run_the_guest_it_is_called_by(
    guest: MicroGuest, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    arguments = {"run": (UD2,), "wrmsr": (PV_MARK, 1), "rdmsr": (PV_INFORMATION,), "close": ()}[what]
    guest.add(hypercall_of(lambda call: getattr(guest, what)(*arguments)))
    with pytest.raises(GuestException, match="#GP") as raised:
        guest.run(wrmsr(FIRST_USER, 0))
    assert raised.value.rip == CODE + 30
    assert "running" in caplog.text
    guest.run(mov("rbx", 5))
    assert guest.registers.rbx == 5


def test_a_million_calls_a_second_are_only_calls(guest: MicroGuest) -> None:
    calls = 0

    def count(_call: Call) -> None:
        nonlocal calls
        calls += 1

    guest.add(hypercall_of(count))
    guest.run(repeat("rbx", WRMSR), rbx=200_000, rcx=FIRST_USER, timeout=60)
    assert calls == 200_000
    guest.run(mov("rbx", 5))
    assert guest.registers.rbx == 5


def test_a_million_faults_a_second_are_logged_a_few_times(
    guest: MicroGuest, caplog: pytest.LogCaptureFixture
) -> None:
    guest.add(hypercall_of(lambda call: {}["missing"]))
    for _ in range(500):
        with pytest.raises(GuestException):
            guest.wrmsr(FIRST_USER, 0)
    assert 0 < len(caplog.records) < 50
    assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 2**64 - 1)
    | st.integers(-2 * PAGE, PAGE).map(lambda offset: (MEMORY_SIZE + offset) % 2**64)
    | st.integers(0, SYSTEM_SIZE).map(lambda offset: SYSTEM + offset)
    | st.integers(0, MEMORY_SIZE)
)
def test_any_page_is_zeroed_or_nothing_happens(address: int) -> None:
    with MicroGuest([pv_zero_page]) as guest:
        inside = address + PAGE <= MEMORY_SIZE
        first = max(min(address, MEMORY_SIZE - PAGE) - PAGE, 0)
        size = min(3 * PAGE, MEMORY_SIZE - first)
        guest.memory.write(first, b"\xff" * size)
        if inside:
            guest.wrmsr(pv_zero_page, address)
        else:
            with pytest.raises(GuestException) as raised:
                guest.wrmsr(pv_zero_page, address)
            assert raised.value.vector == GP
        around = bytearray(b"\xff" * size)
        if inside:
            around[address - first : address - first + PAGE] = bytes(PAGE)
        assert guest.memory.read(first, size) == around
        guest.run(mov("rbx", 1))
        assert guest.registers.rbx == 1
