"""The 8254: what Linux does with it, each mode's waveform, and the lazy counters against one that ticks."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devices.i8254 import CONTROL, FREQUENCY_HZ, MIN_IRQ_CLOCKS, SYSTEM_CONTROL, Pit
from tests.devices.fakes import FakeClock, FakeLine

NS_PER_S = 1_000_000_000


def at(tick: int) -> int:
    """The first nanosecond at which CLK pulse `tick` has happened."""
    return -(-tick * NS_PER_S // FREQUENCY_HZ)


def tick_of(time_ns: int) -> int:
    return time_ns * FREQUENCY_HZ // NS_PER_S


class TimedLine(FakeLine):
    """A line that notes at which CLK pulse it rose."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.rise_ticks: list[int] = []

    def set(self, level: bool) -> None:
        if level and not self.level:
            self.rise_ticks.append(tick_of(self.clock.now_ns()))
        super().set(level)


@pytest.fixture
def line(clock: FakeClock) -> TimedLine:
    return TimedLine(clock)


@pytest.fixture
def pit(line: TimedLine, clock: FakeClock) -> Pit:
    return Pit(line, clock)


def program(pit: Pit, channel: int, mode: int, count: int, bcd: bool = False) -> None:
    pit.write(CONTROL, channel << 6 | 0x30 | mode << 1 | bcd)
    pit.write(channel, count & 0xFF)
    pit.write(channel, count >> 8)


def read_count(pit: Pit, channel: int) -> int:
    pit.write(CONTROL, channel << 6)
    return pit.read(channel) | pit.read(channel) << 8


def wave(pit: Pit, clock: FakeClock, length: int) -> str:
    """Channel 2's output after each of the next CLK pulses, as a string of 0 and 1."""
    start = tick_of(clock.now_ns())
    levels = []
    for pulse in range(1, length + 1):
        clock.advance_to(at(start + pulse))
        levels.append("1" if pit.read(SYSTEM_CONTROL) & 0x20 else "0")
    return "".join(levels)


# --- as Linux uses it -------------------------------------------------------------------------------------------


def test_nothing_is_armed_before_a_guest_programs_it(pit: Pit, clock: FakeClock, line: TimedLine) -> None:
    clock.advance(NS_PER_S)
    assert line.changes == []
    assert all(timer.deadline_ns is None for timer in clock.timers)


def test_one_shot_raises_the_line_once_after_the_count(pit: Pit, clock: FakeClock, line: TimedLine) -> None:
    program(pit, 0, 0, 1000)
    clock.advance(NS_PER_S)
    assert line.rise_ticks == [1001]                # one pulse loads the count
    pit.write(0, 100)
    assert not line.level                           # the next event's first byte lowers it already
    pit.write(0, 0)
    clock.advance(NS_PER_S)
    assert line.rise_ticks == [1001, tick_of(NS_PER_S) + 101]


def test_one_shot_is_called_off_by_a_control_word(pit: Pit, clock: FakeClock, line: TimedLine) -> None:
    program(pit, 0, 0, 1000)
    pit.write(CONTROL, 0x30)
    clock.advance(NS_PER_S)
    assert line.changes == []


def test_late_one_shot_edge_is_not_lost_when_the_guest_writes_first(
    pit: Pit, clock: FakeClock, line: TimedLine
) -> None:
    program(pit, 0, 0, 1000)
    clock.time_ns = at(2000)                        # past the deadline, the timer was not served yet
    pit.write(0, 0x10)
    assert line.rises == 1


@pytest.mark.parametrize("mode", [2, 3, 6, 7])
def test_periodic_edges_come_at_every_multiple_of_the_count(
    pit: Pit, clock: FakeClock, line: TimedLine, mode: int
) -> None:
    program(pit, 0, mode, 4773)
    line.rise_ticks.clear()                         # the control word made the output high
    clock.advance(NS_PER_S)
    assert line.rise_ticks == [1 + 4773 * n for n in range(1, 250)]


def test_late_machine_merges_missed_edges_and_keeps_the_phase(
    pit: Pit, clock: FakeClock, line: TimedLine
) -> None:
    program(pit, 0, 2, 1000)
    line.rise_ticks.clear()
    clock.skip(at(3500))
    assert line.rise_ticks == [3500]
    clock.advance_to(at(6000))
    assert line.rise_ticks == [3500, 4001, 5001]


def test_edges_too_close_together_are_merged_in_phase(pit: Pit, clock: FakeClock, line: TimedLine) -> None:
    program(pit, 0, 2, 7)
    line.rise_ticks.clear()
    clock.advance_to(at(1000))
    gaps = [after - before for before, after in zip(line.rise_ticks, line.rise_ticks[1:], strict=False)]
    assert len(line.rise_ticks) > 5
    assert all((tick - 1) % 7 == 0 for tick in line.rise_ticks)
    assert min(gaps) >= MIN_IRQ_CLOCKS


def test_illegal_count_of_one_in_mode_2_arms_nothing(pit: Pit, clock: FakeClock, line: TimedLine) -> None:
    program(pit, 0, 2, 1)
    clock.advance(NS_PER_S)
    assert line.rises == 1                          # by the control word


def test_at_most_one_timer_event_a_period(pit: Pit, clock: FakeClock) -> None:
    program(pit, 0, 3, 10_000)
    deadlines = []
    while (deadline_ns := clock.timers[0].deadline_ns) is not None and deadline_ns <= at(100_001):
        deadlines.append(deadline_ns)
        clock.advance_to(deadline_ns)
    assert len(deadlines) == 10


def test_tsc_calibration_sees_channel_2_end_in_port_61(pit: Pit, clock: FakeClock) -> None:
    pit.write(SYSTEM_CONTROL, pit.read(SYSTEM_CONTROL) & ~0x02 | 0x01)
    program(pit, 2, 0, 0xE90B)                      # 50 ms
    assert pit.read(SYSTEM_CONTROL) & 0x20 == 0
    clock.advance_to(at(0xE90B))
    assert pit.read(SYSTEM_CONTROL) & 0x20 == 0
    clock.advance_to(at(0xE90B + 1))
    assert pit.read(SYSTEM_CONTROL) & 0x20


def test_quick_calibration_sees_the_high_byte_count_down_unlatched(pit: Pit, clock: FakeClock) -> None:
    pit.write(SYSTEM_CONTROL, 0x01)
    program(pit, 2, 0, 0xFFFF)
    clock.advance_to(at(1))
    highs = []
    for _ in range(4):
        pit.read(2)
        highs.append(pit.read(2))
        clock.advance_to(at(tick_of(clock.now_ns()) + 256))
    assert highs == [0xFF, 0xFE, 0xFD, 0xFC]


# --- port 0x61 --------------------------------------------------------------------------------------------------


def test_low_bits_of_port_61_read_back_and_the_rest_does_not(pit: Pit) -> None:
    pit.write(SYSTEM_CONTROL, 0xFF)
    assert pit.read(SYSTEM_CONTROL) == 0x0F


def test_refresh_bit_toggles_every_15_microseconds(pit: Pit, clock: FakeClock) -> None:
    levels = []
    for tick in range(0, 18 * 6, 6):
        clock.advance_to(at(tick))
        levels.append(pit.read(SYSTEM_CONTROL) >> 4 & 1)
    assert levels == [0, 0, 0, 1, 1, 1] * 3


# --- access -----------------------------------------------------------------------------------------------------


def test_latched_count_is_read_low_byte_first(pit: Pit, clock: FakeClock) -> None:
    program(pit, 0, 2, 0x1234)
    clock.advance_to(at(1 + 0x34))
    pit.write(CONTROL, 0x00)
    clock.advance_to(at(1 + 0x234))
    pit.write(CONTROL, 0x00)                        # ignored: the first latch was not read
    assert (pit.read(0), pit.read(0)) == (0x00, 0x12)
    assert (pit.read(0), pit.read(0)) == (0x00, 0x10)


@pytest.mark.parametrize(("access", "count"), [(1, 0x0056), (2, 0x5600)])
def test_single_byte_access_leaves_the_other_byte_zero(pit: Pit, clock: FakeClock, access: int, count: int) -> None:
    pit.write(CONTROL, access << 4 | 4)
    pit.write(0, 0x56)
    clock.advance_to(at(1))
    pit.write(CONTROL, 0xD2)                        # read back count
    assert pit.read(0) == 0x56
    clock.advance_to(at(1 + count))
    assert pit.read(0) == 0x56                      # one whole period later


def test_bcd_counts_in_decimal_and_zero_is_ten_thousand(pit: Pit, clock: FakeClock) -> None:
    program(pit, 0, 2, 0, bcd=True)
    clock.advance_to(at(2))
    assert read_count(pit, 0) == 0x9999
    clock.advance_to(at(2 + 999))
    assert read_count(pit, 0) == 0x9000


def test_zero_is_65536_in_binary(pit: Pit, clock: FakeClock, line: TimedLine) -> None:
    program(pit, 0, 2, 0)
    line.rise_ticks.clear()
    clock.advance(at(65537))
    assert line.rise_ticks == [65537]


def test_status_tells_output_null_count_and_control(pit: Pit, clock: FakeClock) -> None:
    program(pit, 0, 2, 100)
    pit.write(CONTROL, 0xE2)
    assert pit.read(0) == 0x80 | 0x40 | 0x34        # null until a pulse loads it
    clock.advance_to(at(1))
    pit.write(CONTROL, 0xE2)
    assert pit.read(0) == 0x80 | 0x34
    pit.write(0, 50)
    pit.write(0, 0)
    pit.write(CONTROL, 0xE2)
    assert pit.read(0) & 0x40                       # the new count waits for the end of the period
    clock.advance_to(at(101))
    pit.write(CONTROL, 0xE2)
    assert not pit.read(0) & 0x40


def test_read_back_of_both_gives_status_first_for_each_chosen_channel(pit: Pit, clock: FakeClock) -> None:
    for channel in (0, 1):
        program(pit, channel, 2, 0x0201)
    clock.advance_to(at(1))
    pit.write(CONTROL, 0xC6)
    for channel in (0, 1):
        assert [pit.read(channel) for _ in range(3)] == [0xB4, 0x01, 0x02]


def test_control_word_register_is_write_only(pit: Pit) -> None:
    assert pit.read(CONTROL) == 0xFF


# --- waveforms of the datasheet ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "count", "expected"),
    [
        (0, 4, "0000111111"),
        (2, 3, "1101101101"),
        (3, 4, "1100110011"),
        (3, 5, "1110011100"),
        (4, 3, "1110111111"),
    ],
)
def test_waveform_with_the_gate_high(pit: Pit, clock: FakeClock, mode: int, count: int, expected: str) -> None:
    pit.write(SYSTEM_CONTROL, 1)
    program(pit, 2, mode, count)
    assert wave(pit, clock, 10) == expected


@pytest.mark.parametrize(("mode", "expected"), [(1, "0001111111"), (5, "1110111111")])
def test_waveform_after_a_rising_gate(pit: Pit, clock: FakeClock, mode: int, expected: str) -> None:
    program(pit, 2, mode, 3)
    assert wave(pit, clock, 5) == "11111"           # armed, waits for the trigger
    pit.write(SYSTEM_CONTROL, 1)
    assert wave(pit, clock, 10) == expected


def test_one_shot_is_retriggered_while_low(pit: Pit, clock: FakeClock) -> None:
    program(pit, 2, 1, 3)
    pit.write(SYSTEM_CONTROL, 1)
    assert wave(pit, clock, 2) == "00"
    pit.write(SYSTEM_CONTROL, 0)
    pit.write(SYSTEM_CONTROL, 1)
    assert wave(pit, clock, 5) == "00011"


def test_gate_low_pauses_mode_0_and_restarts_mode_2(pit: Pit, clock: FakeClock) -> None:
    pit.write(SYSTEM_CONTROL, 1)
    program(pit, 2, 0, 4)
    assert wave(pit, clock, 3) == "000"
    pit.write(SYSTEM_CONTROL, 0)
    assert wave(pit, clock, 5) == "00000"
    pit.write(SYSTEM_CONTROL, 1)
    assert wave(pit, clock, 3) == "011"
    program(pit, 2, 2, 3)
    assert wave(pit, clock, 3) == "110"
    pit.write(SYSTEM_CONTROL, 0)
    assert pit.read(SYSTEM_CONTROL) & 0x20          # at once, without a pulse
    assert wave(pit, clock, 4) == "1111"
    pit.write(SYSTEM_CONTROL, 1)
    assert wave(pit, clock, 5) == "11011"


@pytest.mark.parametrize(("mode", "count", "expected"), [(2, 5, "01111011"), (3, 6, "00011100")])
def test_new_count_takes_over_at_the_end_of_the_period_or_half_wave(
    pit: Pit, clock: FakeClock, mode: int, count: int, expected: str
) -> None:
    pit.write(SYSTEM_CONTROL, 1)
    program(pit, 2, mode, 4)
    assert wave(pit, clock, 5 - mode) == "1" * (5 - mode)
    pit.write(2, count)
    pit.write(2, 0)
    assert wave(pit, clock, 8) == expected


# --- against a counter that ticks -------------------------------------------------------------------------------


class Ticking:
    """One counter, a pulse at a time, by the datasheet's description of each mode."""

    def __init__(self, gate: bool) -> None:
        self.gate = gate
        self.program(0x30)
        self.counter = 0

    def program(self, control: int) -> None:
        self.control = control & 0x3F
        self.access = self.control >> 4
        self.mode = (0, 1, 2, 3, 4, 5, 2, 3)[control >> 1 & 7]
        self.modulus = 10_000 if control & 1 else 65_536
        self.out = self.mode != 0
        self.register: int | None = None
        self.null, self.load, self.counting, self.strobe, self.extra = True, False, False, False, False
        self.low: int | None = None
        self.high_next = False
        self.count_latch: int | None = None
        self.status_latch: int | None = None

    def write(self, value: int) -> None:
        if self.access == 3 and self.low is None:
            self.low = value
            if self.mode == 0:
                self.out = False
            return
        count = {1: value, 2: value << 8, 3: value << 8 | (self.low or 0)}[self.access]
        self.low = None
        if self.control & 1:
            count = from_bcd(count)
        self.register = count % self.modulus or self.modulus
        self.null = True
        if self.mode == 0:
            self.out = False
        if self.mode in (0, 4) or (self.mode in (2, 3) and not self.counting):
            self.load = True

    def shown(self) -> int:
        count = self.counter % self.modulus
        return int(f"{count:04d}", 16) if self.control & 1 else count

    def read(self) -> int:
        if self.status_latch is not None:
            status, self.status_latch = self.status_latch, None
            return status
        count = self.shown() if self.count_latch is None else self.count_latch
        if self.access == 3 and not self.high_next:
            self.high_next = True
            return count & 0xFF
        self.high_next, self.count_latch = False, None
        return count & 0xFF if self.access == 1 else count >> 8

    def latch(self, count: bool, status: bool) -> None:
        if count and self.count_latch is None:
            self.count_latch = self.shown()
        if status and self.status_latch is None:
            self.status_latch = self.out << 7 | self.null << 6 | self.control

    def set_gate(self, level: bool) -> None:
        if level and not self.gate and self.mode in (1, 2, 3, 5) and self.register:
            self.load = True
        if not level and self.gate and self.mode in (2, 3):
            self.out = True
        self.gate = level

    def reload(self) -> None:
        assert self.register is not None
        self.null = False
        self.counter = self.register & ~1 if self.mode == 3 else self.register
        self.extra = self.mode == 3 and self.register % 2 == 1

    def pulse(self) -> None:
        if self.mode in (4, 5):
            self.out = True
        if self.load:
            self.reload()
            self.load, self.counting, self.strobe = False, True, True
            self.out = self.mode not in (0, 1)
        elif self.counting and (self.gate or self.mode in (1, 5)) and not (self.mode == 0 and self.low is not None):
            (self.down, self.down, self.rate, self.square, self.down, self.down)[self.mode]()

    def down(self) -> None:
        self.counter = (self.counter - 1) % self.modulus
        if self.counter == 0 and self.mode in (0, 1):
            self.out = True
        elif self.counter == 0 and self.strobe:
            self.out = self.strobe = False

    def rate(self) -> None:
        if self.counter == 1:
            self.reload()
        else:
            self.counter -= 1
        self.out = self.counter != 1

    def square(self) -> None:
        if self.out and self.extra and self.counter == 0:
            self.extra = False
            self.turn()
            return
        self.counter = (self.counter or self.modulus) - 2       # zero only for a count of 1
        if self.counter == 0 and not (self.out and self.extra):
            self.turn()

    def turn(self) -> None:
        self.out = not self.out
        self.reload()
        if not self.out and self.counter == 0:
            self.counter = self.modulus


def from_bcd(count: int) -> int:
    """Digits above 9 carry."""
    return (count >> 12) * 1000 + (count >> 8 & 15) * 100 + (count >> 4 & 15) * 10 + (count & 15)


CHANNELS = st.integers(0, 2)
SMALL_COUNTS = st.one_of(st.integers(0, 12), st.integers(0, 255))
OPERATIONS = st.one_of(
    st.tuples(st.just("program"), CHANNELS, st.integers(1, 3), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("count"), CHANNELS, SMALL_COUNTS, st.sampled_from([0, 0, 0, 1, 255])),
    st.tuples(st.just("byte"), CHANNELS, SMALL_COUNTS),
    st.tuples(st.just("read"), CHANNELS),
    st.tuples(st.just("latch"), CHANNELS),
    st.tuples(st.just("read back"), st.integers(0, 31)),
    st.tuples(st.just("gate"), st.booleans()),
    st.tuples(st.just("advance"), st.one_of(st.integers(1, 8), st.integers(1, 700))),
    st.tuples(st.just("restore")),
)


class Lockstep:
    """A Pit and three ticking counters given the same program."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.line = TimedLine(self.clock)
        self.pit = Pit(self.line, self.clock)
        self.models = [Ticking(True), Ticking(True), Ticking(False)]
        self.tick = 0

    def take(self, operation: tuple[object, ...]) -> None:
        match operation:
            case ("program", int(channel), int(access), int(mode), bool(bcd)):
                control = access << 4 | mode << 1 | bcd
                self.pit.write(CONTROL, channel << 6 | control)
                self.models[channel].program(control)
            case ("count", int(channel), int(low), int(high)):
                for value in (low, high) if self.models[channel].access == 3 else (low,):
                    self.take(("byte", channel, value))
            case ("byte", int(channel), int(value)):
                self.pit.write(channel, value)
                self.models[channel].write(value)
            case ("read", int(channel)):
                assert self.pit.read(channel) == self.models[channel].read()
            case ("latch", int(channel)):
                self.pit.write(CONTROL, channel << 6)
                self.models[channel].latch(True, False)
            case ("read back", int(choice)):
                self.pit.write(CONTROL, 0xC0 | choice << 1)
                for channel in range(3):
                    if choice & 1 << channel:
                        self.models[channel].latch(not choice & 0x10, not choice & 0x08)
            case ("gate", bool(level)):
                self.pit.write(SYSTEM_CONTROL, level)
                self.models[2].set_gate(level)
            case ("advance", int(pulses)):
                self.advance(pulses)
            case ("restore",):
                self.restore()

    def advance(self, pulses: int) -> None:
        rises = []
        for _ in range(pulses):
            before = self.models[0].out
            for model in self.models:
                model.pulse()
            self.tick += 1
            if self.models[0].out and not before:
                rises.append(self.tick)
        self.line.rise_ticks.clear()
        self.clock.advance_to(at(self.tick))
        fast = self.models[0].mode in (2, 3) and (self.models[0].register or MIN_IRQ_CLOCKS) < MIN_IRQ_CLOCKS
        if fast:
            assert set(self.line.rise_ticks) <= set(rises)
        else:
            assert self.line.rise_ticks == rises

    def restore(self) -> None:
        state = self.pit.save()
        self.clock.timers.clear()
        level = self.line.level
        self.line = TimedLine(self.clock)
        self.pit = Pit(self.line, self.clock, state)
        assert self.pit.save() == state
        assert self.line.level == level

    def compare(self) -> None:
        assert bool(self.pit.read(SYSTEM_CONTROL) & 0x20) == self.models[2].out
        for channel in range(3):
            self.take(("read back", 1 << channel | 0x10))       # the status only


@given(st.lists(OPERATIONS, max_size=30))
@example([("program", 0, 1, 3, False), ("byte", 0, 1), ("advance", 70_000), ("read", 0)])
@example([("program", 0, 3, 5, True), ("gate", True), ("program", 2, 3, 3, True), ("count", 2, 0, 0),
          ("advance", 12_345), ("latch", 2), ("read", 2), ("read", 2)])
def test_lazy_counters_agree_with_ticking_ones(operations: list[tuple[object, ...]]) -> None:
    lockstep = Lockstep()
    for operation in operations:
        lockstep.take(operation)
    lockstep.compare()
    for channel in range(3):
        for _ in range(4):
            lockstep.take(("read", channel))
