"""Interrupts that the guest ends in its own memory (PV EOI): it sees no difference, but has less to write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.lapic import POWER_ON, LapicState
from tests.devices.fakes import FakeClock
from tests.devices.lapic_bench import Guest

EOI, TPR, PPR, ISR = 0xB0, 0x80, 0xA0, 0x100


class Word:
    """In the guest's memory (devices.lapic_core.GuestEoi)."""

    def __init__(self) -> None:
        self.is_set = False

    def offer(self) -> bool:
        self.is_set = True
        return True

    def withdraw(self) -> bool:
        was_set, self.is_set = self.is_set, False
        return was_set


class PvGuest(Guest):
    """A guest that knows of the word.

    Attributes:
        written: how often it wrote EOI.
    """

    def __init__(self, state: LapicState = POWER_ON, clock: FakeClock | None = None, word: Word | None = None) -> None:
        super().__init__(state, clock)
        self.word = word or Word()
        self.apic.guest_eoi = self.word
        self.written = 0

    def end(self) -> None:
        """As Linux' kvm_guest_apic_eoi_write does it."""
        if self.word.is_set:
            self.word.is_set = False
        else:
            self.written += 1
            self.put(EOI, 0)

    def restored(self) -> PvGuest:
        return PvGuest(self.apic.save(), FakeClock(self.clock.time_ns), self.word)


@pytest.fixture
def guest() -> PvGuest:
    return PvGuest()


def test_a_lonely_interrupt_ends_without_a_write(guest: PvGuest) -> None:
    for _ in range(3):
        guest.apic.deliver(0x40)
        assert guest.apic.acknowledge() == 0x40
        guest.end()
    assert guest.written == 0 and guest.vectors(ISR) == set()


def test_the_next_one_waits_for_the_end_of_one_that_has_begun(guest: PvGuest) -> None:
    guest.apic.deliver(0x41)
    guest.apic.acknowledge()
    guest.apic.deliver(0x40)
    assert not guest.intr.level
    guest.end()
    assert guest.written == 1 and guest.intr.level and guest.apic.acknowledge() == 0x40


def test_the_next_one_finds_that_the_one_before_has_ended(guest: PvGuest) -> None:
    guest.apic.deliver(0x41)
    guest.apic.acknowledge()
    guest.end()
    guest.apic.deliver(0x40)
    assert guest.intr.level and guest.apic.acknowledge() == 0x40


def test_one_that_interrupts_another_is_ended_by_a_write_as_that_is(guest: PvGuest) -> None:
    guest.apic.deliver(0x40)
    guest.apic.acknowledge()
    guest.apic.deliver(0x80)
    assert guest.apic.acknowledge() == 0x80
    guest.end()
    guest.end()
    assert guest.written == 2 and guest.vectors(ISR) == set()


def test_the_io_apic_hears_of_every_end(guest: PvGuest) -> None:
    guest.apic.deliver(0x40, level_triggered=True)
    guest.apic.acknowledge()
    guest.end()
    assert guest.written == 1 and guest.seen == [0x40]


def test_a_guest_that_writes_all_the_same_ends_one_interrupt(guest: PvGuest) -> None:
    """Another kernel may have been started in its place, which knows nothing of the word."""
    for _ in range(2):
        guest.apic.deliver(0x40)
        guest.apic.acknowledge()
        guest.put(EOI, 0)
        assert guest.vectors(ISR) == set() and not guest.word.is_set


def test_a_restored_apic_knows_of_its_offer(guest: PvGuest) -> None:
    guest.apic.deliver(0x40)
    guest.apic.acknowledge()
    guest = guest.restored()
    guest.end()
    assert guest.written == 0 and guest.vectors(ISR) == set()


def test_an_apic_that_is_disabled_takes_its_offer_back(guest: PvGuest) -> None:
    guest.apic.deliver(0x40)
    guest.apic.acknowledge()
    base = guest.apic.read_msr(0x1B)
    guest.apic.write_msr(0x1B, base & ~0x800)
    assert not guest.word.is_set


STEPS = st.one_of(
    st.tuples(st.just("deliver"), st.sampled_from([0x40, 0x41, 0x52, 0x90]), st.booleans()),
    st.tuples(st.just("tpr"), st.sampled_from([0, 0x45, 0x90, 0xFF]), st.just(False)),
    *(st.tuples(st.just(what), st.just(0), st.just(False)) for what in ("take", "end", "look", "restore")),
)


@given(st.lists(STEPS, max_size=60))
def test_the_guest_sees_what_it_would_see_without(sequence: list[tuple[str, int, bool]]) -> None:
    plain, guest = Guest(), PvGuest()
    for what, number, level in sequence:
        if what == "deliver":
            plain.apic.deliver(number, level)
            guest.apic.deliver(number, level)
        elif what == "take":
            if plain.intr.level:
                assert guest.apic.acknowledge() == plain.apic.acknowledge()
        elif what == "end":
            if plain.vectors(ISR):              # a handler ends what it was called for
                plain.put(EOI, 0)
                guest.end()
        elif what == "tpr":
            plain.put(TPR, number)
            guest.put(TPR, number)
        elif what == "look":
            assert guest.vectors(ISR) == plain.vectors(ISR) and guest.get(PPR) == plain.get(PPR)
        else:
            plain, seen, guest = plain.restored(), guest.seen, guest.restored()
            plain.seen[:] = guest.seen[:] = seen
        assert guest.intr.level == plain.intr.level
        assert guest.seen == plain.seen
