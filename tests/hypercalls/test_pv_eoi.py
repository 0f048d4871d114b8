"""The word in which a guest ends interrupts."""

from __future__ import annotations

import pytest

from emu.memory import MIB, GuestMemory, OutsideMemory
from hypercalls import GuestFault
from hypercalls.pv_eoi import PvEoi

WORD = 0x5004


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(64 * MIB)


@pytest.fixture
def eoi(memory: GuestMemory) -> PvEoi:
    eoi = PvEoi(memory)
    eoi.write_msr(WORD | 1)
    return eoi


def test_off_nothing_is_offered(memory: GuestMemory) -> None:
    eoi = PvEoi(memory)
    assert eoi.address is None and not eoi.offer() and eoi.withdraw()


def test_a_bit_is_set_for_the_guest_to_clear(eoi: PvEoi, memory: GuestMemory) -> None:
    memory.write(WORD, b"\0\1\2\3")
    assert eoi.address == WORD and eoi.offer()
    assert memory.read(WORD, 4) == b"\1\1\2\3"
    memory.write(WORD, b"\0")
    assert not eoi.withdraw()


def test_what_the_guest_did_not_take_is_taken_back(eoi: PvEoi, memory: GuestMemory) -> None:
    eoi.offer()
    assert eoi.withdraw()
    assert memory.read(WORD, 4) == bytes(4)


def test_it_can_be_turned_off(eoi: PvEoi, memory: GuestMemory) -> None:
    eoi.write_msr(0)
    assert eoi.address is None and not eoi.offer()
    assert memory.read(WORD, 4) == bytes(4)


@pytest.mark.parametrize("value", [WORD | 3, (1 << 40) | 1, 64 * MIB | 1, (1 << 64) - 3])
def test_what_cannot_be_is_a_fault_and_changes_nothing(eoi: PvEoi, value: int) -> None:
    with pytest.raises(GuestFault):
        eoi.write_msr(value)
    assert eoi.address == WORD


def test_a_snapshot_with_a_word_outside_memory_is_refused(memory: GuestMemory) -> None:
    assert PvEoi(memory, WORD).offer()
    with pytest.raises(OutsideMemory):
        PvEoi(memory, 64 * MIB)
