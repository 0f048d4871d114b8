"""kvmclock: the page a guest reads, tried as a guest reads it, against a clock and a TSC wound by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercalls import GuestFault
from hypercalls.kvmclock import (
    ENABLE,
    GUEST_STOPPED,
    LARGEST_SLEW,
    REFRESH_NS,
    SECOND_NS,
    SYSTEM_TIME,
    TSC_STABLE,
    WALL_CLOCK,
    KvmClock,
    multiplier_and_shift,
    scale,
)
from tests.devices.fakes import FakeClock

PAGE = 0x5000
RAM_BYTES = 0x10000
frequencies = st.integers(1_000_000, 20_000_000_000)


class Ram:
    """64 KiB of guest memory."""

    def __init__(self) -> None:
        self.bytes = bytearray(RAM_BYTES)

    def write(self, address: int, data: bytes) -> None:
        if not 0 <= address <= RAM_BYTES - len(data):
            raise ValueError("not RAM")
        self.bytes[address : address + len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.bytes[address : address + size])


class Bench:
    """A KvmClock with its guest and a TSC of a known frequency.

    Args:
        hz: what the TSC really runs at.
        noise: added to each sample's guest time, in turn.
    """

    def __init__(self, hz: int = 2_500_000_000, noise: tuple[int, ...] = (0,)) -> None:
        self.hz = hz
        self.noise = noise
        self.samples = 0
        self.waits: list[int] = []
        self.clock = FakeClock(now_ns=1000, wall_epoch_ns=1_700_000_000 * SECOND_NS)
        self.ram = Ram()
        self.kvmclock = KvmClock(self.ram, self.clock, self.sample, self.wait)

    def tsc(self) -> int:
        return 77 + self.clock.now_ns() * self.hz // SECOND_NS

    def sample(self) -> tuple[int, int]:
        self.samples += 1
        return self.tsc(), self.clock.now_ns() + self.noise[self.samples % len(self.noise)]

    def wait(self, nanoseconds: int) -> None:
        self.waits.append(nanoseconds)
        self.clock.advance(nanoseconds)

    def page(self) -> tuple[int, int, int, int, int, int, int]:
        """Version, pad, TSC, time, multiplier, shift, flags."""
        return SYSTEM_TIME.unpack_from(self.ram.bytes, PAGE)    # type: ignore[return-value]

    def read(self) -> int:
        """The time as the guest's vDSO computes it (pvclock_read_cycles)."""
        version, _, tsc, time_ns, multiplier, shift, _ = self.page()
        assert version % 2 == 0
        return time_ns + scale(self.tsc() - tsc, multiplier, shift)


@given(frequencies)
def test_scale_is_right_to_a_nanosecond_a_second(hz: int) -> None:
    multiplier, shift = multiplier_and_shift(hz)
    assert 1 << 31 <= multiplier < 1 << 32
    assert -128 <= shift <= 127
    for seconds in (1, 10, 1000):
        error = abs(scale(hz * seconds, multiplier, shift) - seconds * SECOND_NS)
        assert error <= seconds + 1 if hz < 1 << 31 else error <= 2 * seconds + 1


@given(frequencies, st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_scale_never_goes_back(hz: int, first: int, second: int) -> None:
    rate = multiplier_and_shift(hz)
    first, second = sorted((first, second))
    assert scale(first, *rate) <= scale(second, *rate)


def test_page_has_the_layout_of_the_abi() -> None:
    """struct pvclock_vcpu_time_info: 32 bytes; version 0, TSC 8, time 16, multiplier 24, shift 28, flags 29."""
    bench = Bench(2_000_000_000)
    bench.clock.advance(SECOND_NS)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    raw = bytes(bench.ram.bytes[PAGE : PAGE + 32])
    assert int.from_bytes(raw[0:4], "little") == 2
    assert raw[4:8] == bytes(4)
    assert int.from_bytes(raw[8:16], "little") == bench.tsc()
    assert int.from_bytes(raw[16:24], "little") == bench.clock.now_ns()
    assert int.from_bytes(raw[24:28], "little") == 0x8000_0000
    assert int.from_bytes(raw[28:29], "little", signed=True) == 0
    assert raw[29] == TSC_STABLE
    assert raw[30:] == bytes(2)
    assert not any(bench.ram.bytes[:PAGE]) and not any(bench.ram.bytes[PAGE + 32 :])


@given(frequencies)
def test_guest_reads_the_time_of_the_moment(hz: int) -> None:
    bench = Bench(hz)
    bench.clock.advance(SECOND_NS)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    bench.clock.advance(500_000_000)
    assert abs(bench.read() - bench.clock.now_ns()) < 2000      # a TSC of 1 MHz has no finer ticks


def test_a_guest_that_asks_at_once_waits_for_the_calibration() -> None:
    bench = Bench()
    bench.clock.advance(3_000_000)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    assert bench.waits == [7_000_000]
    assert abs(bench.kvmclock.frequency_hz() - bench.hz) < 1000


@settings(max_examples=60)
@given(
    frequencies,
    st.lists(st.integers(-20_000, 20_000), min_size=1, max_size=7),
    st.lists(st.integers(1, 40), min_size=3, max_size=25),
)
def test_time_never_goes_back_over_refreshes(hz: int, noise: list[int], steps: list[int]) -> None:
    """However badly the samples are disturbed, and whatever the rate seemed to be before."""
    bench = Bench(hz, tuple(noise))
    bench.clock.advance(20_000_000)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    last = bench.read()
    for step in steps:
        bench.clock.advance(step * SECOND_NS // 10)
        assert bench.read() >= last
        last = bench.read()


def test_a_bad_first_rate_is_led_back_without_a_step() -> None:
    """A sample 50 µs off in the first 20 ms makes the rate 0.25 % wrong; it is led back to real time by small slews."""
    bench = Bench(noise=(0, 50_000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    bench.clock.advance(20_000_000)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    bench.noise = (0,)
    errors = []
    for _ in range(300):
        before = bench.read()
        bench.clock.advance(SECOND_NS)
        assert 1 - 0.01 < (bench.read() - before) / SECOND_NS < 1 + 0.01
        errors.append(abs(bench.read() - bench.clock.now_ns()))
    assert max(errors[-60:]) < 20_000 < max(errors)     # what is left comes from the start: 50 µs in 300 s


def test_each_refresh_changes_the_version_by_two() -> None:
    bench = Bench()
    bench.clock.advance(SECOND_NS)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    versions = [bench.page()[0]]
    for pause in (*REFRESH_NS, REFRESH_NS[-1], REFRESH_NS[-1]):
        bench.clock.advance(pause - 1)
        assert bench.page()[0] == versions[-1]
        bench.clock.advance(1)
        versions.append(bench.page()[0])
    assert versions == list(range(2, 2 + 2 * len(versions), 2))


def test_slew_is_limited() -> None:
    """A guest that is 100 ms behind is led forward by 0.05 %, not in a step."""
    bench = Bench()
    bench.clock.advance(1000 * SECOND_NS)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    bench.noise = (100_000_000,)                    # guest time as sampled is 100 ms ahead from now on
    bench.clock.advance(REFRESH_NS[0])
    before = bench.read()
    bench.clock.advance(SECOND_NS)
    rate = (bench.read() - before) / SECOND_NS
    measured = 100_000_000 / (1001 * SECOND_NS)     # by so much the frequency itself seems too low
    assert rate == pytest.approx(1 + LARGEST_SLEW + measured, abs=1e-6)


@pytest.mark.parametrize("address", [RAM_BYTES, RAM_BYTES - 16, 1 << 40, (1 << 64) - 32])
def test_a_page_outside_ram_faults_and_leaves_no_timer(address: int) -> None:
    bench = Bench()
    bench.clock.advance(SECOND_NS)
    with pytest.raises(GuestFault):
        bench.kvmclock.write_system_time(address | ENABLE)
    assert [timer.deadline_ns for timer in bench.clock.timers] == [None]


@pytest.mark.parametrize("address", [RAM_BYTES, RAM_BYTES - 8, 1 << 40, (1 << 64) - 12])
def test_a_wall_clock_outside_ram_faults(address: int) -> None:
    with pytest.raises(GuestFault):
        Bench().kvmclock.write_wall_clock(address)


def test_turned_off_it_writes_no_more() -> None:
    bench = Bench()
    bench.clock.advance(SECOND_NS)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    bench.kvmclock.write_system_time(0)
    before = bytes(bench.ram.bytes)
    bench.clock.advance(1000 * SECOND_NS)
    assert bench.ram.bytes == before


def test_turned_on_again_elsewhere_it_goes_on() -> None:
    bench = Bench()
    bench.clock.advance(SECOND_NS)
    bench.kvmclock.write_system_time(0x9000 | ENABLE)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    before = bytes(bench.ram.bytes[0x9000:0x9020])
    bench.clock.advance(10 * SECOND_NS)
    assert bytes(bench.ram.bytes[0x9000:0x9020]) == before
    assert abs(bench.read() - bench.clock.now_ns()) < 1000


def test_wall_clock_is_the_time_at_guest_time_zero() -> None:
    """struct pvclock_wall_clock: version, seconds, nanoseconds."""
    bench = Bench()
    bench.clock.advance(123_456_789)
    bench.kvmclock.write_wall_clock(PAGE)
    version, seconds, nanoseconds = WALL_CLOCK.unpack_from(bench.ram.bytes, PAGE)
    assert version % 2 == 0
    assert seconds * SECOND_NS + nanoseconds == 1_700_000_000 * SECOND_NS


def test_a_stop_is_told_until_the_guest_has_seen_it() -> None:
    bench = Bench()
    bench.kvmclock.guest_was_stopped()                              # no page yet: nobody to tell
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    assert bench.page()[-1] == TSC_STABLE
    bench.clock.advance(REFRESH_NS[0] // 2)
    before = bench.read()
    bench.kvmclock.guest_was_stopped()
    assert bench.page()[-1] == TSC_STABLE | GUEST_STOPPED
    assert bench.read() == before
    bench.clock.advance(REFRESH_NS[0])                              # a better rate meanwhile
    assert bench.page()[-1] == TSC_STABLE | GUEST_STOPPED
    bench.ram.bytes[PAGE + SYSTEM_TIME.size - 3] &= ~GUEST_STOPPED  # the guest has seen it
    bench.clock.advance(REFRESH_NS[1])
    assert bench.page()[-1] == TSC_STABLE


def test_bad_page_after_a_stop_is_the_guests_fault_and_turns_the_clock_off() -> None:
    bench = Bench(1_000_000_000)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    bench.kvmclock.guest_was_stopped()
    with pytest.raises(GuestFault):
        bench.kvmclock.write_system_time(RAM_BYTES | ENABLE)
    bench.kvmclock.guest_was_stopped()      # nothing to tell, nothing raised


def test_bad_wall_clock_address_leaves_the_system_time_on() -> None:
    bench = Bench(1_000_000_000)
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    before = bench.ram.bytes[PAGE : PAGE + SYSTEM_TIME.size]
    with pytest.raises(GuestFault):
        bench.kvmclock.write_wall_clock(RAM_BYTES)
    bench.kvmclock.guest_was_stopped()
    assert bench.ram.bytes[PAGE : PAGE + SYSTEM_TIME.size] != before


class RestoredBench(Bench):
    """Another host that goes on with the clock of a guest: time and TSC are what they were, then go at its own rate."""

    def __init__(self, before: Bench, hz: int) -> None:
        self.hz, self.noise, self.samples, self.waits = hz, (0,), 0, []
        self.start = before.tsc(), before.clock.now_ns()
        self.clock = FakeClock(now_ns=before.clock.now_ns(), wall_epoch_ns=1_800_000_000 * SECOND_NS)
        self.ram = before.ram
        self.kvmclock = KvmClock(self.ram, self.clock, self.sample, self.wait, before.kvmclock.save())

    def tsc(self) -> int:
        tsc, now = self.start
        return tsc + (self.clock.now_ns() - now) * self.hz // SECOND_NS


def a_guest_that_ran() -> Bench:
    """For 5 s."""
    bench = Bench()
    bench.kvmclock.write_system_time(PAGE | ENABLE)
    bench.clock.advance(5 * SECOND_NS)
    return bench


@pytest.mark.parametrize("hz", [2_500_000_000, 2_500_400_000])
def test_a_restored_clock_goes_on_where_it_stood(hz: int) -> None:
    before = a_guest_that_ran()
    page, shown = before.page(), before.read()
    after = RestoredBench(before, hz)
    assert after.kvmclock.save() == before.kvmclock.save()
    assert after.page() == page and after.read() == shown and after.waits == []
    for _ in range(300):
        after.clock.advance(SECOND_NS // 10)
        assert abs(after.read() - after.clock.now_ns()) < 200_000


@pytest.mark.parametrize("hz", [1_900_000_000, 4_200_000_000])
def test_on_a_host_with_another_tsc_it_is_right_after_20_ms(hz: int) -> None:
    after = RestoredBench(a_guest_that_ran(), hz)
    after.clock.advance(25_000_000)
    for _ in range(100):
        assert abs(after.read() - after.clock.now_ns()) < 50_000
        after.clock.advance(SECOND_NS // 10)


def test_a_clock_that_was_off_stays_off() -> None:
    after = RestoredBench(Bench(), 2_500_000_000)
    after.clock.advance(SECOND_NS)
    assert not any(after.ram.bytes)
    assert after.kvmclock.save().page is None
