"""The 8259A pair: initialisation, priorities, triggering, ends of interrupt, cascade; and one chip against a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.i8259 import COMMAND, DATA, EDGE_LEVEL, I8259, POWER_ON, I8259State, PicPair
from tests.devices.fakes import FakeLine

MASTER, MASTER_DATA, SLAVE, SLAVE_DATA, MASTER_ELCR, SLAVE_ELCR = 0x00, 0x01, 0x80, 0x81, 0x4B0, 0x4B1
EOI, SPECIFIC_EOI, ROTATE_EOI, ROTATE_SPECIFIC_EOI, SET_LOWEST = 0x20, 0x60, 0xA0, 0xE0, 0xC0
ROTATE_AEOI_ON, ROTATE_AEOI_OFF = 0x80, 0x00
READ_IRR, READ_ISR, POLL, SPECIAL_MASK_ON, SPECIAL_MASK_OFF = 0x0A, 0x0B, 0x0C, 0x68, 0x48


def make_pair(output: FakeLine, *, icw1: int = 0x11, icw4: int = 0x01, master_icw4: int | None = None) -> PicPair:
    """A pair set up as Linux does it: vectors 0x30 and 0x38, nothing masked."""
    pair = PicPair(output)
    master = (icw1, 0x30, 0x04, icw4 if master_icw4 is None else master_icw4)
    for command, data, words in ((MASTER, MASTER_DATA, master), (SLAVE, SLAVE_DATA, (icw1, 0x38, 0x02, icw4))):
        pair.write(command, words[0])
        for word in words[1:]:
            pair.write(data, word)
    return pair


@pytest.fixture
def pair(line: FakeLine) -> PicPair:
    return make_pair(line)


def in_service(pair: PicPair, command: int = MASTER) -> int:
    pair.write(command, READ_ISR)
    return pair.read(command)


def requests(pair: PicPair, command: int = MASTER) -> int:
    pair.write(command, READ_IRR)
    return pair.read(command)


def test_mask_written_before_initialisation_reads_back_as_linux_probes(line: FakeLine) -> None:
    pair = PicPair(line)
    pair.write(SLAVE_DATA, 0xFF)
    pair.write(MASTER_DATA, 0xFB)
    assert pair.read(MASTER_DATA) == 0xFB
    assert pair.read(SLAVE_DATA) == 0xFF


def test_nothing_is_requested_at_power_on_because_all_is_masked(line: FakeLine) -> None:
    pair = PicPair(line)
    for number in (0, 1, 8, 15):
        pair.line(number).set(True)
    assert not pair.pending
    assert line.changes == []


def test_vectors_follow_icw2_on_both_chips(pair: PicPair) -> None:
    pair.line(3).set(True)
    assert pair.acknowledge() == 0x33
    pair.write(MASTER, EOI)
    pair.line(12).set(True)
    assert pair.acknowledge() == 0x3C


def test_intr_follows_requests_and_masks(pair: PicPair, line: FakeLine) -> None:
    pair.line(4).set(True)
    assert pair.pending and line.level
    pair.write(MASTER_DATA, 0x10)
    assert not pair.pending and not line.level
    pair.write(MASTER_DATA, 0x00)
    assert pair.pending and line.level
    assert pair.acknowledge() == 0x34
    assert not pair.pending and not line.level


@pytest.mark.parametrize("number", [-1, 2, 16])
def test_line_that_does_not_exist_is_refused(pair: PicPair, number: int) -> None:
    with pytest.raises(ValueError, match="IRQ"):
        pair.line(number)


def test_interrupts_wait_until_the_initialisation_is_complete(line: FakeLine) -> None:
    pair = PicPair(line)
    pair.write(MASTER, 0x11)
    for word in (0x30, 0x04):
        pair.line(1).set(True)
        pair.write(MASTER_DATA, word)
        assert not pair.pending
    pair.write(MASTER_DATA, 0x01)
    assert pair.pending


def test_icw1_clears_mask_services_requests_and_read_select(pair: PicPair) -> None:
    pair.write(MASTER_DATA, 0x40)
    pair.line(1).set(True)
    pair.acknowledge()
    pair.line(6).set(True)
    pair.write(MASTER, READ_ISR)
    pair.write(MASTER, 0x11)
    assert pair.read(MASTER) == 0 and pair.read(MASTER_DATA) == 0
    assert in_service(pair) == 0


def test_line_high_over_icw1_has_to_rise_again(pair: PicPair) -> None:
    pair.line(5).set(True)
    for offset, word in ((MASTER, 0x11), (MASTER_DATA, 0x30), (MASTER_DATA, 0x04), (MASTER_DATA, 0x01)):
        pair.write(offset, word)
    assert not pair.pending
    pair.line(5).set(False)
    pair.line(5).set(True)
    assert pair.acknowledge() == 0x35


def test_without_icw4_the_mask_is_written_next(line: FakeLine) -> None:
    pair = PicPair(line)
    for offset, word in ((MASTER, 0x10), (MASTER_DATA, 0x30), (MASTER_DATA, 0x04), (MASTER_DATA, 0xA5)):
        pair.write(offset, word)
    assert pair.read(MASTER_DATA) == 0xA5


def test_single_chip_expects_no_icw3_and_answers_for_its_input_2(line: FakeLine) -> None:
    chip = I8259(line, I8259State())
    chip.write(COMMAND, 0x13)
    chip.write(DATA, 0x40)
    chip.write(DATA, 0x01)
    chip.write(DATA, 0xFB)
    assert chip.read(DATA) == 0xFB
    chip.line(2).set(True)
    assert chip.requesting and chip.cascade_inputs == 0


def test_lower_priority_waits_and_higher_interrupts(pair: PicPair) -> None:
    pair.line(4).set(True)
    assert pair.acknowledge() == 0x34
    pair.line(5).set(True)
    assert not pair.pending
    pair.line(1).set(True)
    assert pair.acknowledge() == 0x31
    assert in_service(pair) == 0x12
    pair.write(MASTER, EOI)
    assert in_service(pair) == 0x10 and not pair.pending
    pair.write(MASTER, EOI)
    assert pair.acknowledge() == 0x35


def test_edge_is_served_once_though_the_line_stays_high(pair: PicPair) -> None:
    pair.line(0).set(True)
    pair.acknowledge()
    pair.write(MASTER, EOI)
    assert not pair.pending and requests(pair) == 0
    pair.line(0).set(False)
    pair.line(0).set(True)
    assert pair.pending


def test_edge_during_service_is_served_afterwards(pair: PicPair) -> None:
    pair.line(0).set(True)
    pair.acknowledge()
    pair.line(0).set(False)
    pair.line(0).set(True)
    assert not pair.pending
    pair.write(MASTER, EOI)
    assert pair.acknowledge() == 0x30


def test_request_gone_before_the_acknowledge_is_spurious_ir7_without_service(pair: PicPair) -> None:
    pair.line(4).set(True)
    pair.line(4).set(False)
    assert not pair.pending
    assert pair.acknowledge() == 0x37
    assert in_service(pair) == 0


def test_slave_request_gone_between_the_acknowledge_pulses_is_spurious_ir15_with_the_cascade_in_service() -> None:
    master_state, slave_state = POWER_ON.master, POWER_ON.slave
    latched = I8259State(**{**vars(master_state), "lines": 4, "latched": 4, "mask": 0, "vector_base": 0x30})
    silent = I8259State(**{**vars(slave_state), "vector_base": 0x38})
    pair = PicPair(FakeLine(), type(POWER_ON)(latched, silent))
    assert pair.acknowledge() == 0x3F
    assert in_service(pair, SLAVE) == 0
    assert in_service(pair, MASTER) == 0x04


def test_cascade_nobody_answers_reads_the_floating_bus(line: FakeLine) -> None:
    pair = make_pair(line)
    for word, offset in ((0x11, SLAVE), (0x38, SLAVE_DATA), (0x05, SLAVE_DATA), (0x01, SLAVE_DATA)):
        pair.write(offset, word)
    pair.line(9).set(True)
    assert pair.acknowledge() == 0xFF


def test_level_triggered_input_requests_until_it_falls(pair: PicPair) -> None:
    pair.write(SLAVE_ELCR, 0x08)
    pair.line(11).set(True)
    for _ in range(2):
        assert pair.acknowledge() == 0x3B
        assert not pair.pending
        pair.write(SLAVE, EOI)
        pair.write(MASTER, EOI)
        assert pair.pending
    pair.line(11).set(False)
    assert not pair.pending


def test_ltim_makes_every_input_level_triggered(line: FakeLine) -> None:
    pair = make_pair(line, icw1=0x19)
    pair.line(3).set(True)
    pair.acknowledge()
    pair.write(MASTER, EOI)
    assert pair.acknowledge() == 0x33


def test_elcr_keeps_the_pc_inputs_edge_triggered(pair: PicPair) -> None:
    pair.write(MASTER_ELCR, 0xFF)
    pair.write(SLAVE_ELCR, 0xFF)
    assert pair.read(MASTER_ELCR) == 0xF8
    assert pair.read(SLAVE_ELCR) == 0xDE


def test_specific_eoi_ends_only_its_level(pair: PicPair) -> None:
    for number in (5, 3):
        pair.line(number).set(True)
        pair.acknowledge()
    pair.write(MASTER, SPECIFIC_EOI | 5)
    assert in_service(pair) == 0x08


def test_automatic_eoi_leaves_nothing_in_service(line: FakeLine) -> None:
    pair = make_pair(line, icw4=0x03)
    pair.line(3).set(True)
    pair.line(4).set(True)
    assert pair.acknowledge() == 0x33
    assert in_service(pair) == 0
    assert pair.acknowledge() == 0x34


def test_two_slave_requests_with_automatic_eoi_are_both_delivered(line: FakeLine) -> None:
    pair = make_pair(line, icw4=0x03)
    pair.line(9).set(True)
    pair.line(12).set(True)
    assert [pair.acknowledge(), pair.acknowledge()] == [0x39, 0x3C]
    assert not pair.pending


def test_rotation_on_eoi_makes_the_served_level_the_lowest(pair: PicPair) -> None:
    pair.line(4).set(True)
    pair.acknowledge()
    pair.write(MASTER, ROTATE_EOI)
    pair.line(4).set(False)
    for number in (4, 5, 3):
        pair.line(number).set(True)
    order = []
    while pair.pending:
        order.append(pair.acknowledge())
        pair.write(MASTER, EOI)
    assert order == [0x35, 0x33, 0x34]


def test_rotation_on_specific_eoi_and_set_priority(pair: PicPair) -> None:
    pair.line(6).set(True)
    pair.acknowledge()
    pair.write(MASTER, ROTATE_SPECIFIC_EOI | 6)
    assert in_service(pair) == 0
    pair.line(7).set(True)
    pair.line(0).set(True)
    assert pair.acknowledge() == 0x37
    pair.write(MASTER, EOI)
    pair.write(MASTER, SET_LOWEST | 7)
    pair.line(7).set(False)
    pair.line(7).set(True)
    assert pair.acknowledge() == 0x30


def test_rotation_in_automatic_eoi_mode(line: FakeLine) -> None:
    pair = make_pair(line, icw4=0x03)
    pair.write(MASTER, ROTATE_AEOI_ON)
    for number in (0, 1):
        pair.line(number).set(True)
    pair.acknowledge()
    pair.line(0).set(False)
    pair.line(0).set(True)
    assert [pair.acknowledge(), pair.acknowledge()] == [0x31, 0x30]
    pair.write(MASTER, ROTATE_AEOI_OFF)
    for number in (5, 1):
        pair.line(number).set(False)
        pair.line(number).set(True)
    assert pair.acknowledge() == 0x31       # 0 is the lowest now, and stays so
    assert pair.acknowledge() == 0x35


def test_poll_acknowledges_and_tells_the_level(pair: PicPair) -> None:
    pair.write(MASTER, POLL)
    assert pair.read(MASTER) == 0x00
    pair.line(6).set(True)
    pair.write(MASTER, POLL)
    assert pair.read(MASTER) == 0x86
    assert not pair.pending
    assert in_service(pair) == 0x40


def test_special_mask_lets_lower_levels_through_and_keeps_masked_services(pair: PicPair) -> None:
    pair.line(3).set(True)
    pair.acknowledge()
    pair.write(MASTER_DATA, 0x08)
    pair.line(6).set(True)
    assert not pair.pending
    pair.write(MASTER, SPECIAL_MASK_ON)
    assert pair.acknowledge() == 0x36
    pair.write(MASTER, EOI)
    pair.write(MASTER, EOI)
    assert in_service(pair) == 0x08         # a non-specific EOI does not end a masked service
    pair.write(MASTER, SPECIAL_MASK_OFF)
    pair.write(MASTER, EOI)
    assert in_service(pair) == 0x00


def test_urgent_slave_request_during_slave_service_needs_special_fully_nested_mode(line: FakeLine) -> None:
    for icw4, expected in ((0x01, False), (0x11, True)):
        pair = make_pair(line, master_icw4=icw4)
        pair.line(12).set(True)
        assert pair.acknowledge() == 0x3C
        pair.line(9).set(True)
        assert pair.pending is expected
        pair.line(3).set(True)              # lower than the slave: waits in either mode
        assert pair.acknowledge() == (0x39 if expected else 0x37)


def test_special_fully_nested_mode_does_not_let_a_slave_interrupt_what_is_more_urgent(line: FakeLine) -> None:
    pair = make_pair(line, master_icw4=0x11)
    pair.line(1).set(True)
    assert pair.acknowledge() == 0x31
    pair.line(9).set(True)
    assert not pair.pending


def test_buffered_mode_takes_the_role_from_icw4(line: FakeLine) -> None:
    chip = I8259(line, I8259State(), master=False)
    for register, word in ((COMMAND, 0x11), (DATA, 0x40), (DATA, 0x04), (DATA, 0x0D)):
        chip.write(register, word)
    assert chip.is_master and chip.cascade_inputs == 0x04


def test_slave_requests_rank_between_1_and_3_of_the_master(pair: PicPair) -> None:
    for number in (3, 8, 15, 1):
        pair.line(number).set(True)
    order = []
    while pair.pending:
        vector = pair.acknowledge()
        order.append(vector)
        if vector >= 0x38:
            pair.write(SLAVE, EOI)
        pair.write(MASTER, EOI)
    assert order == [0x31, 0x38, 0x3F, 0x33]


# --- one chip against a model that is written for reading, not for speed ---------------------------------------


class Model:
    """A lone master in 8086 mode with an ELCR."""

    def __init__(self) -> None:
        self.high = [False] * 8
        self.edge = [False] * 8
        self.service = [False] * 8
        self.masked = [True] * 8
        self.level_mode = [False] * 8
        self.order = list(range(8))         # highest priority first
        self.aeoi = self.rotate_aeoi = self.special = False

    def requests(self) -> list[int]:
        return [n for n in range(8) if self.edge[n] or (self.level_mode[n] and self.high[n])]

    def winner(self) -> int | None:
        for n in self.order:
            if self.service[n] and not (self.special and self.masked[n]):
                return None
            if n in self.requests() and not self.masked[n]:
                return n
        return None

    def make_lowest(self, n: int) -> None:
        while self.order[-1] != n:
            self.order.append(self.order.pop(0))

    def drive(self, n: int, level: bool) -> None:
        if level != self.high[n]:
            self.high[n] = self.edge[n] = level

    def acknowledge(self) -> int:
        n = self.winner()
        if n is None:
            return 7
        self.edge[n] = False
        self.service[n] = not self.aeoi
        if self.aeoi and self.rotate_aeoi:
            self.make_lowest(n)
        return n

    def ocw2(self, value: int) -> None:
        rotate, specific, eoi = value >> 7 & 1, value >> 6 & 1, value >> 5 & 1
        if not specific and not eoi:
            self.rotate_aeoi = bool(rotate)
            return
        served = [n for n in self.order if self.service[n] and not (self.special and self.masked[n])]
        targets = [value & 7] if specific else served[:1]
        for n in targets:
            if eoi:
                self.service[n] = False
            if rotate:
                self.make_lowest(n)

    def initialise(self, aeoi: bool) -> None:
        self.edge, self.service, self.masked = [False] * 8, [False] * 8, [False] * 8
        self.order = list(range(8))
        self.aeoi, self.rotate_aeoi, self.special = aeoi, False, False


def bits(flags: list[bool]) -> int:
    return sum(1 << n for n in range(8) if flags[n])


STEPS = st.one_of(
    st.tuples(st.just("drive"), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("acknowledge")),
    st.tuples(st.just("poll")),
    st.tuples(st.just("ocw2"), st.integers(0, 7), st.sampled_from(range(0, 0x100, 0x20))),
    st.tuples(st.just("mask"), st.integers(0, 255)),
    st.tuples(st.just("elcr"), st.integers(0, 255)),
    st.tuples(st.just("special"), st.booleans()),
    st.tuples(st.just("initialise"), st.booleans()),
)


def take(step: tuple[object, ...], chip: I8259, model: Model) -> None:
    match step:
        case ("drive", int(n), bool(level)):
            chip.line(n).set(level)
            model.drive(n, level)
        case ("acknowledge",):
            assert chip.acknowledge() == model.acknowledge()
        case ("poll",):
            chip.write(COMMAND, POLL)
            expected = 0 if model.winner() is None else 0x80 | model.acknowledge()
            assert chip.read(COMMAND) == expected
        case ("ocw2", int(n), int(action)):
            chip.write(COMMAND, action | n)
            model.ocw2(action | n)
        case ("mask", int(value)):
            chip.write(DATA, value)
            model.masked = [bool(value >> n & 1) for n in range(8)]
        case ("elcr", int(value)):
            chip.write(EDGE_LEVEL, value)
            model.level_mode = [bool(value >> n & 1) for n in range(8)]
        case ("special", bool(on)):
            chip.write(COMMAND, SPECIAL_MASK_ON if on else SPECIAL_MASK_OFF)
            model.special = on
        case ("initialise", bool(aeoi)):
            for register, word in ((COMMAND, 0x13), (DATA, 0x20), (DATA, 0x03 if aeoi else 0x01)):
                chip.write(register, word)
            model.initialise(aeoi)


@given(st.lists(STEPS, max_size=60))
def test_chip_behaves_as_the_model_and_as_its_own_replay(steps: list[tuple[object, ...]]) -> None:
    output, model = FakeLine(), Model()
    chip = I8259(output, I8259State())
    for step in steps:
        take(step, chip, model)
        chip.write(COMMAND, READ_IRR)
        assert chip.read(COMMAND) == sum(1 << n for n in model.requests())
        chip.write(COMMAND, READ_ISR)
        assert chip.read(COMMAND) == bits(model.service)
        assert output.level == chip.requesting == (model.winner() is not None)
        output = FakeLine()
        chip = I8259(output, chip.save())


@given(st.lists(st.tuples(st.sampled_from([n for n in range(16) if n != 2]), st.booleans()), max_size=40))
def test_served_in_order_every_edge_is_delivered_once(pulses: list[tuple[int, bool]]) -> None:
    pair = make_pair(FakeLine())
    levels = dict.fromkeys(range(16), False)
    waiting: set[int] = set()
    for number, level in pulses:
        pair.line(number).set(level)
        if level and not levels[number]:
            waiting.add(number)
        elif not level:
            waiting.discard(number)
        levels[number] = level
    delivered = []
    while pair.pending:
        vector = pair.acknowledge()
        delivered.append(vector - 0x30)
        if vector >= 0x38:
            pair.write(SLAVE, EOI)
        pair.write(MASTER, EOI)
    assert sorted(delivered) == sorted(waiting)
