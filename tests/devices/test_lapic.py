"""The local APIC: priorities, virtual wire, messages, errors, both interfaces; and priorities against a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.lapic import MSRS, ReservedRegister
from tests.devices.lapic_bench import APIC_BASE, PIC_VECTOR, TSC_DEADLINE, X2APIC, Guest

ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x320, 0x380, 0x10)
INITIAL, CURRENT, DIVIDE, SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0
LVTS = range(LVT_TIMER, LVT_ERROR + 1, 0x10)
MASKED, LEVEL, REMOTE_IRR, NMI, EXTINT = 0x1_0000, 0x8000, 0x4000, 0x400, 0x700
SEND_ILLEGAL, RECEIVE_ILLEGAL, ILLEGAL_REGISTER = 0x20, 0x40, 0x80
DISABLED, XAPIC = 0xFEE0_0100, 0xFEE0_0900      # IA32_APIC_BASE
ALL_ONES = (1 << 64) - 1


def msr(offset: int) -> int:
    """The x2APIC's number of a register."""
    return 0x800 + (offset >> 4)


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def x2apic() -> Guest:
    guest = Guest()
    guest.enter_x2apic()
    return guest


def errors(guest: Guest) -> int:
    guest.put(ESR, 0)
    return guest.get(ESR)


# --- priorities -------------------------------------------------------------------------------------------------


def test_interrupt_is_requested_acknowledged_and_ended(guest: Guest) -> None:
    guest.apic.deliver(0x41)
    assert guest.intr.level and guest.apic.pending and guest.vectors(IRR) == {0x41}
    assert guest.apic.acknowledge() == 0x41
    assert not guest.intr.level and not guest.apic.pending
    assert guest.vectors(IRR) == set() and guest.vectors(ISR) == {0x41}
    guest.put(EOI, 0)
    assert guest.vectors(ISR) == set()


def test_nothing_is_acknowledged_when_nothing_is_requested(guest: Guest) -> None:
    assert guest.apic.acknowledge() is None


def test_higher_vector_interrupts_and_one_of_the_same_class_waits(guest: Guest) -> None:
    guest.apic.deliver(0x41)
    assert guest.apic.acknowledge() == 0x41
    guest.apic.deliver(0x4F)
    assert not guest.intr.level
    guest.apic.deliver(0x50)
    assert guest.apic.acknowledge() == 0x50
    guest.put(EOI, 0)
    assert not guest.intr.level and guest.vectors(ISR) == {0x41}
    guest.put(EOI, 0)
    assert guest.intr.level and guest.apic.acknowledge() == 0x4F


def test_one_request_of_a_vector_waits_while_it_is_served(guest: Guest) -> None:
    guest.apic.deliver(0x41)
    guest.apic.acknowledge()
    guest.apic.deliver(0x41)
    guest.apic.deliver(0x41)
    guest.put(EOI, 0)
    assert guest.apic.acknowledge() == 0x41
    guest.put(EOI, 0)
    assert guest.apic.acknowledge() is None


def test_task_priority_holds_its_class_and_those_below_back(guest: Guest) -> None:
    guest.put(TPR, 0x45)
    guest.apic.deliver(0x4F)
    assert not guest.intr.level
    guest.put(TPR, 0x3F)
    assert guest.intr.level
    guest.put(TPR, 0x40)
    assert not guest.intr.level


def test_spurious_vector_when_the_task_priority_rose_before_the_acknowledge(guest: Guest) -> None:
    guest.put(SVR, 0x1EF)
    guest.apic.deliver(0x41)
    guest.put(TPR, 0xF0)
    assert guest.apic.acknowledge() == 0xEF
    assert guest.vectors(ISR) == set() and guest.vectors(IRR) == {0x41}


def test_processor_priority_is_the_greater_of_task_and_service(guest: Guest) -> None:
    guest.put(TPR, 0x35)
    assert guest.get(PPR) == 0x35
    guest.apic.deliver(0x41)
    guest.apic.acknowledge()
    assert guest.get(PPR) == 0x40
    guest.put(TPR, 0x47)
    assert guest.get(PPR) == 0x47


def test_cr8_is_the_task_priority_class(guest: Guest) -> None:
    guest.apic.deliver(0x41)
    guest.apic.cr8 = 4
    assert guest.get(TPR) == 0x40 and not guest.intr.level
    guest.put(TPR, 0x3F)
    assert guest.apic.cr8 == 3 and guest.intr.level


def test_eoi_with_nothing_in_service_does_nothing(guest: Guest) -> None:
    before = guest.apic.save()
    guest.put(EOI, 0xFFFF_FFFF)
    assert guest.apic.save() == before


def test_end_of_level_triggered_interrupts_only_is_told_the_io_apic(guest: Guest) -> None:
    for vector, level in ((0x41, True), (0x52, False)):
        guest.apic.deliver(vector, level)
    assert guest.vectors(TMR) == {0x41}
    for _ in range(2):
        guest.apic.acknowledge()
        guest.put(EOI, 0)
    assert guest.seen == [0x41]
    guest.apic.deliver(0x41, False)
    assert guest.vectors(TMR) == set()


def test_io_apic_may_deliver_again_from_within_the_eoi(guest: Guest) -> None:
    guest.apic.eoi_broadcast = lambda vector: guest.apic.deliver(vector, True)
    guest.apic.deliver(0x41, True)
    guest.apic.acknowledge()
    guest.put(EOI, 0)
    assert guest.intr.level and guest.apic.acknowledge() == 0x41


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("deliver"), st.integers(0x10, 0xFF), st.booleans()),
            st.tuples(st.just("acknowledge"), st.just(0), st.just(False)),
            st.tuples(st.just("eoi"), st.just(0), st.just(False)),
            st.tuples(st.just("tpr"), st.integers(0, 0xFF), st.just(False)),
            st.tuples(st.just("restore"), st.just(0), st.just(False)),
        ),
        max_size=60,
    )
)
def test_priorities_are_the_models(sequence: list[tuple[str, int, bool]]) -> None:
    guest = Guest()
    requested: set[int] = set()
    serving: set[int] = set()
    level_triggered: set[int] = set()
    task = 0
    ended: list[int] = []
    for what, number, level in sequence:
        floor = max(task >> 4, max(serving, default=0) >> 4)
        due = [vector for vector in requested if vector >> 4 > floor]
        if what == "deliver":
            guest.apic.deliver(number, level)
            requested.add(number)
            (level_triggered.add if level else level_triggered.discard)(number)
        elif what == "acknowledge":
            expected = max(due) if due else 0xFF if requested else None
            assert guest.apic.acknowledge() == expected
            if due:
                requested.remove(max(due))
                serving.add(max(due))
        elif what == "eoi":
            guest.put(EOI, 0)
            if serving:
                ended += {max(serving)} & level_triggered
                serving.remove(max(serving))
        elif what == "tpr":
            guest.put(TPR, number)
            task = number
        else:
            restored = guest.restored()
            restored.seen[:] = guest.seen
            guest = restored
        floor = max(task >> 4, max(serving, default=0) >> 4)
        assert guest.intr.level == any(vector >> 4 > floor for vector in requested)
        assert (guest.vectors(IRR), guest.vectors(ISR), guest.vectors(TMR)) == (requested, serving, level_triggered)
        assert guest.get(PPR) >> 4 == floor
    assert guest.seen == ended


# --- the 8259A's way --------------------------------------------------------------------------------------------


def test_firmware_leaves_the_8259as_interrupts_passing(guest: Guest) -> None:
    guest.apic.lint0.set(True)
    assert guest.intr.level and guest.apic.acknowledge() == PIC_VECTOR
    guest.apic.lint0.set(False)
    assert not guest.intr.level and guest.vectors(ISR) == set()


def test_8259a_passes_whatever_the_priority_and_after_the_apics_own(guest: Guest) -> None:
    guest.put(TPR, 0xFF)
    guest.apic.lint0.set(True)
    assert guest.apic.acknowledge() == PIC_VECTOR
    guest.put(TPR, 0)
    guest.apic.deliver(0x41)
    assert [guest.apic.acknowledge(), guest.apic.acknowledge()] == [0x41, PIC_VECTOR]


@pytest.mark.parametrize("entry", [EXTINT | MASKED, NMI, 0x200, 0x500])
def test_lint0_in_another_mode_lets_no_8259a_interrupt_through(guest: Guest, entry: int) -> None:
    guest.apic.lint0.set(True)
    guest.put(LVT_LINT0, entry)
    assert not guest.intr.level
    guest.put(LVT_LINT0, EXTINT)
    assert guest.intr.level


def test_globally_disabled_apic_connects_lint0_with_the_processor(guest: Guest) -> None:
    guest.put(LVT_LINT0, MASKED)
    guest.apic.lint0.set(True)
    assert not guest.intr.level
    guest.apic.write_msr(APIC_BASE, DISABLED)
    assert guest.intr.level and guest.apic.acknowledge() == PIC_VECTOR
    guest.apic.lint0.set(False)
    assert not guest.intr.level


def test_software_disabled_apic_masks_lint0(guest: Guest) -> None:
    guest.apic.lint0.set(True)
    guest.put(SVR, 0xFF)
    assert not guest.intr.level
    guest.put(LVT_LINT0, EXTINT)
    assert guest.get(LVT_LINT0) == EXTINT | MASKED and not guest.intr.level


def test_lint0_with_a_vector_is_edge_triggered(guest: Guest) -> None:
    guest.put(LVT_LINT0, 0x31)
    guest.apic.lint0.set(True)
    guest.apic.lint0.set(True)
    assert guest.apic.acknowledge() == 0x31
    guest.put(EOI, 0)
    assert not guest.intr.level and guest.seen == []


def test_lint0_with_a_vector_and_level_triggered_waits_for_the_eoi(guest: Guest) -> None:
    guest.apic.lint0.set(True)
    guest.put(LVT_LINT0, 0x31 | LEVEL)
    assert guest.get(LVT_LINT0) == 0x31 | LEVEL | REMOTE_IRR
    assert guest.apic.acknowledge() == 0x31
    assert not guest.intr.level
    guest.put(EOI, 0)
    assert guest.apic.acknowledge() == 0x31
    guest.apic.lint0.set(False)
    guest.put(EOI, 0)
    assert not guest.intr.level and guest.get(LVT_LINT0) == 0x31 | LEVEL


def test_end_of_another_level_triggered_interrupt_is_not_lint0s(guest: Guest) -> None:
    guest.apic.lint0.set(True)
    guest.put(LVT_LINT0, 0x31 | LEVEL)
    guest.apic.deliver(0x41, True)
    assert guest.apic.acknowledge() == 0x41
    guest.apic.lint0.set(False)
    guest.put(EOI, 0)
    assert guest.get(LVT_LINT0) & REMOTE_IRR


def test_lint0_made_edge_triggered_forgets_that_it_waits_for_an_eoi(guest: Guest) -> None:
    guest.apic.lint0.set(True)
    guest.put(LVT_LINT0, 0x31 | LEVEL)
    guest.put(LVT_LINT0, 0x31)
    assert guest.get(LVT_LINT0) == 0x31


def test_lint0_in_nmi_mode_is_an_nmi_a_rise(guest: Guest) -> None:
    guest.put(LVT_LINT0, NMI)
    for level in (True, True, False, True):
        guest.apic.lint0.set(level)
    assert guest.seen == ["nmi", "nmi"] and not guest.intr.level


# --- enabling ---------------------------------------------------------------------------------------------------


def test_software_disabled_apic_accepts_nothing_and_gives_what_it_had(guest: Guest) -> None:
    guest.apic.deliver(0x41)
    guest.put(SVR, 0xFF)
    guest.apic.deliver(0x52)
    assert guest.vectors(IRR) == {0x41}
    assert all(guest.get(offset) & MASKED for offset in LVTS)
    assert guest.apic.acknowledge() == 0x41
    guest.put(SVR, 0x1FF)
    assert all(guest.get(offset) & MASKED for offset in LVTS)
    guest.apic.deliver(0x52)
    assert guest.intr.level


def test_globally_disabled_apic_is_not_mapped_and_accepts_nothing(guest: Guest) -> None:
    guest.apic.write_msr(APIC_BASE, DISABLED)
    assert guest.get(VERSION) == 0xFFFF_FFFF and guest.apic.read(VERSION, 1) == 0xFF
    before = guest.apic.save()
    guest.put(TPR, 0x20)
    guest.apic.deliver(0x41)
    guest.apic.accept_message(0xFEE0_0000, NMI)
    guest.apic.accept_message(0xFEE0_0000, EXTINT)
    assert guest.apic.save() == before and guest.seen == []


def test_disabling_forgets_everything_but_the_pins(guest: Guest) -> None:
    guest.put(LVT_TIMER, 0x2_0041)
    guest.put(INITIAL, 1_000_000)
    guest.put(DIVIDE, 0xB)
    guest.apic.deliver(0x41)
    guest.apic.lint0.set(True)
    guest.apic.write_msr(APIC_BASE, DISABLED)
    guest.apic.write_msr(APIC_BASE, XAPIC)
    registers = [guest.get(offset) for offset in (TPR, SVR, DFR, INITIAL, DIVIDE, *LVTS)]
    assert registers == [0, 0xFF, 0xFFFF_FFFF, 0, 0, *[MASKED] * 6]
    assert guest.vectors(IRR) == set() and not guest.intr.level
    assert all(timer.deadline_ns is None for timer in guest.clock.timers)
    assert guest.apic.save().lint0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((DISABLED,), X2APIC),                      # from disabled straight to x2APIC
        ((X2APIC,), XAPIC),                         # and back without being disabled
        ((), 0xFEE0_0500),                          # x2APIC without being enabled
        ((DISABLED,), 0xFEE0_0500),
        ((X2APIC,), 0xFEE0_0500),
        ((), XAPIC | 0x200),
        ((), XAPIC | 0x01),
        ((), XAPIC | 1 << 52),
        ((), 0xFEC0_0900),                          # elsewhere
        ((), 0x1_FEE0_0900),
    ],
)
def test_apic_base_refuses_what_is_illegal(guest: Guest, path: tuple[int, ...], value: int) -> None:
    for step in path:
        guest.apic.write_msr(APIC_BASE, step)
    before = guest.apic.save()
    with pytest.raises(ReservedRegister, match="IA32_APIC_BASE"):
        guest.apic.write_msr(APIC_BASE, value)
    assert guest.apic.save() == before


def test_apic_base_reads_what_was_written_along_the_legal_ways(guest: Guest) -> None:
    assert guest.apic.read_msr(APIC_BASE) == XAPIC
    for value in (XAPIC, X2APIC, X2APIC, DISABLED, DISABLED, XAPIC, DISABLED):
        guest.apic.write_msr(APIC_BASE, value)
        assert guest.apic.read_msr(APIC_BASE) == value


# --- messages ---------------------------------------------------------------------------------------------------


def message(destination: int, *, logical: bool = False) -> int:
    return 0xFEE0_0000 | destination << 12 | (4 if logical else 0)


@pytest.mark.parametrize("mode", [0x000, 0x100])
def test_message_with_a_vector_is_delivered(guest: Guest, mode: int) -> None:
    guest.apic.accept_message(message(0), 0x41 | mode)
    guest.apic.accept_message(message(0), 0x52 | mode | LEVEL | 0x4000)
    assert guest.vectors(IRR) == {0x41, 0x52} and guest.vectors(TMR) == {0x52}


def test_message_that_takes_a_level_back_is_ignored(guest: Guest) -> None:
    guest.apic.accept_message(message(0), 0x52 | LEVEL)
    assert guest.vectors(IRR) == set()


@pytest.mark.parametrize("address", [0, 0xFED0_0000, 0x1_FEE0_0000, 0xFEF0_0000, 1 << 64])
def test_message_to_another_address_is_ignored(guest: Guest, address: int) -> None:
    guest.apic.accept_message(address, 0x41)
    assert guest.vectors(IRR) == set()


def test_nmi_message_is_an_nmi(guest: Guest) -> None:
    guest.apic.accept_message(message(0), NMI)
    assert guest.seen == ["nmi"] and guest.vectors(IRR) == set()


@pytest.mark.parametrize("mode", [0x200, 0x300, 0x500, 0x600])
def test_message_for_another_state_of_the_processor_is_ignored(guest: Guest, mode: int) -> None:
    before = guest.apic.save()
    guest.apic.accept_message(message(0), 0x41 | mode)
    assert guest.apic.save() == before and guest.seen == []


def test_extint_message_asks_the_8259a_once(guest: Guest) -> None:
    guest.put(LVT_LINT0, MASKED)
    guest.apic.accept_message(message(0), EXTINT)
    assert guest.intr.level
    restored = guest.restored()
    assert restored.intr.level
    assert guest.apic.acknowledge() == PIC_VECTOR
    assert not guest.intr.level


@pytest.mark.parametrize(
    ("identity", "destination", "arrives"), [(0, 0, True), (0, 1, False), (0, 0xFF, True), (7, 7, True), (7, 0, False)]
)
def test_physical_destination_is_the_id_or_everybody(
    guest: Guest, identity: int, destination: int, arrives: bool
) -> None:
    guest.put(ID, identity << 24)
    guest.apic.accept_message(message(destination), 0x41)
    assert guest.intr.level == arrives
    assert guest.get(ID) == identity << 24


@pytest.mark.parametrize(
    ("model", "own", "destination", "arrives"),
    [
        (0xF, 0x01, 0x01, True),
        (0xF, 0x01, 0x03, True),
        (0xF, 0x01, 0x02, False),
        (0xF, 0x00, 0xFF, True),
        (0x0, 0x21, 0x23, True),
        (0x0, 0x21, 0x31, False),
        (0x0, 0x21, 0x22, False),
        (0x0, 0x21, 0xFF, True),
        (0x5, 0x21, 0x21, False),
    ],
)
def test_logical_destination_is_a_bit_of_ldr_or_of_a_cluster(
    guest: Guest, model: int, own: int, destination: int, arrives: bool
) -> None:
    guest.put(DFR, model << 28)
    guest.put(LDR, own << 24)
    guest.apic.accept_message(message(destination, logical=True), 0x41)
    assert guest.intr.level == arrives
    assert guest.get(DFR) == model << 28 | 0x0FFF_FFFF


@pytest.mark.parametrize(
    ("destination", "logical", "arrives"),
    [(0, False, True), (1, False, False), (0xFF, False, True), (1, True, True), (2, True, False), (0xFF, True, True)],
)
def test_message_to_an_x2apic(x2apic: Guest, destination: int, logical: bool, arrives: bool) -> None:
    x2apic.apic.accept_message(message(destination, logical=logical), 0x41)
    assert x2apic.intr.level == arrives


# --- interrupt commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("high", "low", "arrives"),
    [
        (0, 0x41, True),
        (1, 0x41, False),
        (0xFF, 0x41, True),
        (1, 0x4_0041, True),                        # self
        (1, 0x8_0041, True),                        # all
        (0, 0xC_0041, False),                       # all but self
        (0, 0x841, False),                          # logical, and LDR is 0
        (0, 0x141, True),                           # lowest priority
        (0, 0x541, False),                          # INIT
        (0, 0x641, False),                          # start-up
    ],
)
def test_command_reaches_this_processor_or_nobody(guest: Guest, high: int, low: int, arrives: bool) -> None:
    guest.put(ICR_HIGH, high << 24)
    guest.put(ICR, low | 0x1000)
    assert guest.intr.level == arrives
    assert guest.get(ICR) == low and guest.get(ICR_HIGH) == high << 24
    assert guest.seen == []


def test_command_for_an_nmi(guest: Guest) -> None:
    guest.put(ICR, 0x402)
    assert guest.seen == ["nmi"]


def test_command_is_edge_triggered_and_no_extint(guest: Guest) -> None:
    guest.put(ICR, 0x41 | LEVEL | 0x4000)
    assert guest.vectors(TMR) == set()
    guest.put(ICR, 0x700)
    assert guest.apic.acknowledge() == 0x41 and not guest.intr.level


@pytest.mark.parametrize(
    ("command", "arrives"),
    [
        (0x41, True),
        (1 << 32 | 0x41, False),
        (0xFFFF_FFFF << 32 | 0x41, True),
        (0xFF << 32 | 0x41, False),
        (1 << 32 | 0x841, True),
        (3 << 32 | 0x841, True),
        (2 << 32 | 0x841, False),
        (1 << 48 | 1 << 32 | 0x841, False),
        (5 << 32 | 0x4_0041, True),
        (0xC_0041, False),
    ],
)
def test_x2apic_command_has_a_32_bit_destination(x2apic: Guest, command: int, arrives: bool) -> None:
    x2apic.apic.write_msr(msr(ICR), command)
    assert x2apic.intr.level == arrives
    assert x2apic.apic.read_msr(msr(ICR)) == command


def test_self_ipi(x2apic: Guest) -> None:
    x2apic.apic.write_msr(msr(SELF_IPI), 0x41)
    assert x2apic.apic.acknowledge() == 0x41


# --- errors -----------------------------------------------------------------------------------------------------


def test_error_status_shows_what_happened_before_it_was_last_written(guest: Guest) -> None:
    guest.apic.deliver(15)
    assert guest.get(ESR) == 0
    guest.put(ESR, 0)
    assert guest.get(ESR) == RECEIVE_ILLEGAL
    guest.put(ESR, 0)
    assert guest.get(ESR) == 0


@pytest.mark.parametrize("vector", [0, 15])
def test_illegal_vectors_are_not_delivered(guest: Guest, vector: int) -> None:
    guest.put(ICR, 0x4_0000 | vector)
    assert errors(guest) == SEND_ILLEGAL
    guest.apic.accept_message(message(0), vector)
    assert errors(guest) == RECEIVE_ILLEGAL
    guest.enter_x2apic()
    guest.apic.write_msr(msr(SELF_IPI), vector)
    guest.apic.write_msr(msr(ESR), 0)
    assert guest.apic.read_msr(msr(ESR)) == SEND_ILLEGAL
    assert guest.apic.save().irr == 0


@pytest.mark.parametrize("offset", [0x00, 0x10, 0x40, 0xC0, 0x290, 0x2F0, 0x3A0, SELF_IPI, 0x400, 0xFF0])
def test_register_that_does_not_exist_is_an_error(guest: Guest, offset: int) -> None:
    assert guest.get(offset) == 0
    assert errors(guest) == ILLEGAL_REGISTER
    guest.put(offset, 1)
    assert errors(guest) == ILLEGAL_REGISTER


@pytest.mark.parametrize("offset", [VERSION, APR, PPR, ISR, TMR + 0x70, IRR, CURRENT])
def test_read_only_registers_stay_and_are_no_error(guest: Guest, offset: int) -> None:
    before = guest.apic.save()
    guest.put(offset, 0xFFFF_FFFF)
    assert guest.apic.save() == before


def test_error_interrupt_comes_once_until_the_status_is_written(guest: Guest) -> None:
    guest.put(LVT_ERROR, 0xFE)
    for _ in range(2):
        guest.get(0x40)
        guest.apic.deliver(3)
    assert guest.apic.acknowledge() == 0xFE
    guest.put(EOI, 0)
    assert not guest.intr.level
    assert errors(guest) == ILLEGAL_REGISTER | RECEIVE_ILLEGAL
    guest.get(0x40)
    assert guest.intr.level


def test_error_interrupt_with_an_illegal_vector_is_one_more_error(guest: Guest) -> None:
    guest.put(LVT_ERROR, 0x01)
    guest.get(0x40)
    assert errors(guest) == ILLEGAL_REGISTER | RECEIVE_ILLEGAL and not guest.intr.level


# --- registers in memory ----------------------------------------------------------------------------------------


def test_registers_as_firmware_leaves_them(guest: Guest) -> None:
    assert [guest.get(offset) for offset in (ID, VERSION, TPR, LDR, DFR, SVR)] == [
        0, 0x0005_0014, 0, 0, 0xFFFF_FFFF, 0x1FF,
    ]
    assert [guest.get(offset) for offset in LVTS] == [MASKED, MASKED, MASKED, 0x8700, 0x8400, MASKED]


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (ID, 0xFF00_0000), (TPR, 0xFF), (LDR, 0xFF00_0000), (DFR, 0xFFFF_FFFF), (SVR, 0x3FF), (ICR, 0x000C_CFFF),
        (ICR_HIGH, 0xFF00_0000), (LVT_TIMER, 0x7_00FF), (LVT_THERMAL, 0x1_07FF), (LVT_PERFORMANCE, 0x1_07FF),
        (LVT_LINT0, 0x1_A7FF), (LVT_LINT1, 0x1_A7FF), (LVT_ERROR, 0x1_00FF), (DIVIDE, 0xB), (INITIAL, 0xFFFF_FFFF),
    ],
)
def test_registers_keep_the_bits_that_exist(guest: Guest, offset: int, value: int) -> None:
    guest.put(offset, 0xFFFF_FFFF)
    assert guest.get(offset) == value


@pytest.mark.parametrize(("offset", "size"), [(TPR, 1), (TPR, 2), (TPR, 8), (TPR + 4, 4), (TPR + 1, 4)])
def test_accesses_other_than_aligned_32_bits_do_nothing(guest: Guest, offset: int, size: int) -> None:
    guest.put(TPR, 0x20)
    guest.apic.write(offset, size, 0x55)
    assert guest.apic.read(offset, size) == 0
    assert guest.get(TPR) == 0x20 and errors(guest) == 0


# --- MSRs -------------------------------------------------------------------------------------------------------

READABLE = {
    ID, VERSION, TPR, PPR, LDR, SVR, *range(ISR, ESR, 0x10), ESR, ICR, *LVTS, INITIAL, CURRENT, DIVIDE,
}
WRITABLE = {
    TPR: 0xFF, EOI: 0, SVR: 0x3FF, ESR: 0, ICR: 0xFFFF_FFFF_000C_DFFF, LVT_TIMER: 0x7_10FF, LVT_THERMAL: 0x1_17FF,
    LVT_PERFORMANCE: 0x1_17FF, LVT_LINT0: 0x1_F7FF, LVT_LINT1: 0x1_F7FF, LVT_ERROR: 0x1_10FF, INITIAL: 0xFFFF_FFFF,
    DIVIDE: 0xB, SELF_IPI: 0xFF,
}


@pytest.mark.parametrize("offset", range(0, 0x400, 0x10))
def test_x2apic_register_can_be_accessed_as_the_manual_says(x2apic: Guest, offset: int) -> None:
    if offset in READABLE:
        assert x2apic.apic.read_msr(msr(offset)) >= 0
    else:
        with pytest.raises(ReservedRegister, match="read"):
            x2apic.apic.read_msr(msr(offset))
    for bit in range(64):
        if offset in WRITABLE and WRITABLE[offset] >> bit & 1:
            x2apic.apic.write_msr(msr(offset), 1 << bit)
        else:
            with pytest.raises(ReservedRegister, match="written"):
                x2apic.apic.write_msr(msr(offset), 1 << bit)
    if offset not in WRITABLE:
        with pytest.raises(ReservedRegister, match="written"):
            x2apic.apic.write_msr(msr(offset), 0)


@pytest.mark.parametrize("base", [DISABLED, XAPIC])
def test_x2apic_registers_are_not_there_in_the_other_modes(guest: Guest, base: int) -> None:
    guest.apic.write_msr(APIC_BASE, base)
    for number in range(0x800, 0x840):
        with pytest.raises(ReservedRegister):
            guest.apic.read_msr(number)
        with pytest.raises(ReservedRegister):
            guest.apic.write_msr(number, 0)


def test_x2apic_is_not_mapped(x2apic: Guest) -> None:
    x2apic.put(TPR, 0x20)
    assert x2apic.get(TPR) == 0xFFFF_FFFF
    assert x2apic.apic.read_msr(msr(TPR)) == 0


def test_x2apic_id_and_logical_id_are_the_processors(guest: Guest) -> None:
    guest.put(ID, 0x0700_0000)
    guest.put(LDR, 0x0200_0000)
    guest.enter_x2apic()
    assert guest.apic.read_msr(msr(ID)) == 0 and guest.apic.read_msr(msr(LDR)) == 1


def test_state_goes_over_into_x2apic_but_for_the_commands_destination(guest: Guest) -> None:
    guest.put(TPR, 0x20)
    guest.put(ICR_HIGH, 0x0500_0000)
    guest.put(ICR, 0x52)
    guest.apic.deliver(0x41)
    guest.enter_x2apic()
    assert guest.apic.read_msr(msr(TPR)) == 0x20 and guest.apic.read_msr(msr(ICR)) == 0x52
    assert guest.apic.acknowledge() == 0x41
    assert guest.apic.read_msr(msr(ISR + 0x20)) == 1 << 1
    guest.apic.write_msr(msr(EOI), 0)
    assert guest.apic.read_msr(msr(ISR + 0x20)) == 0


VALUES = st.sampled_from([0, 0x41, 0x141, 0x1FF, 0x8041, 0x2_0041, 0x4_0041, EXTINT, 3_000_000])
ACCESSES = st.one_of(
    st.tuples(st.just("mmio"), st.integers(0, 0xFFF), st.integers(0, ALL_ONES)),
    st.tuples(st.just("mmio"), st.integers(0, 0x3F).map(lambda n: n << 4), VALUES | st.integers(0, 0xFFFF_FFFF)),
    st.tuples(st.just("msr"), st.sampled_from(MSRS), VALUES | st.integers(0, ALL_ONES)),
    st.tuples(st.just("msr"), st.just(APIC_BASE), st.sampled_from([DISABLED, XAPIC, X2APIC])),
    st.tuples(st.just("msr"), st.just(TSC_DEADLINE), st.integers(0, ALL_ONES)),
    st.tuples(st.just("message"), st.integers(0, ALL_ONES) | st.just(0xFEE0_0000), st.integers(0, 0xFFFF_FFFF)),
    st.tuples(st.just("lint0"), st.just(0), st.integers(0, 1)),
    st.tuples(st.just("acknowledge"), st.just(0), st.just(0)),
    st.tuples(st.just("wind"), st.just(0), st.integers(0, 10_000_000)),
)


def attempt(guest: Guest, what: str, where: int, value: int) -> object:
    """Do it; the answer, or that it was refused."""
    if what == "mmio":
        guest.apic.write(where, 4, value & 0xFFFF_FFFF)
        return guest.apic.read(where, 4)
    if what == "msr":
        try:
            guest.apic.write_msr(where, value)
            return guest.apic.read_msr(where)
        except ReservedRegister:
            return ReservedRegister
    if what == "message":
        guest.apic.accept_message(where, value)
    elif what == "lint0":
        guest.apic.lint0.set(bool(value))
    elif what == "wind":
        guest.clock.advance(value)
    else:
        return guest.apic.acknowledge()
    return None


@given(st.lists(ACCESSES, max_size=40), st.lists(ACCESSES, max_size=20))
def test_nothing_a_guest_does_fails_and_a_restored_apic_does_the_same(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    guest = Guest()
    for step in before:
        answer = attempt(guest, *step)
        assert not isinstance(answer, int) or 0 <= answer <= ALL_ONES
    guest.seen.clear()
    restored = guest.restored()
    assert restored.intr.level == guest.intr.level == guest.apic.pending
    for step in after:
        assert attempt(restored, *step) == attempt(guest, *step)
        assert restored.intr.level == guest.intr.level
    assert restored.seen == guest.seen
    assert restored.apic.save() == guest.apic.save()
