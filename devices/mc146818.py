"""MC146818 real-time clock and CMOS RAM (Motorola MC146818 datasheet, ADI-842), with a PC's contents.

The time is the clock's wall time plus what the guest's settings made of it; nothing happens once a second. Daylight
saving (register B, bit 0) and the square wave output are kept as bits only: a PC uses neither.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from devices import Clock, IrqLine, PortRanges
from devices.frozen import frozen

__all__ = ["POWER_ON", "Rtc", "RtcState"]

INDEX, DATA = range(2)              # offsets from port 0x70
INDEX_REGISTER = 0x7F               # bit 7 of the index masks NMI, which nothing here raises

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR = range(10)
REG_A, REG_B, REG_C, REG_D = range(10, 14)
CENTURY = 0x32                      # the PC's addition
TIME_REGISTERS = SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY
ALARM_REGISTERS = SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM

A_UIP = 0x80                        # update in progress: read only
A_DIVIDER, A_DIVIDER_RUNS = 0x70, 0x20      # values above the second stop or reset the divider
A_RATE = 0x0F
B_SET, B_PIE, B_AIE, B_UIE = 0x80, 0x40, 0x20, 0x10
B_BINARY, B_24H = 0x04, 0x02
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10       # the last three where B enables them
D_VRT = 0x80                        # the battery is good
HOURS_PM = 0x80
ALARM_ANY = 0xC0                    # an alarm register with both bits set matches everything

CRYSTAL_HZ = 32_768
NS_PER_S = 1_000_000_000
UPDATE_WARNING_NS = 244_000         # UIP rises this long before the registers change
FIRST_UPDATE_NS = NS_PER_S // 2     # after the divider's reset ends
DAY_S = 86_400

CMOS_SIZE = 128
EQUIPMENT = 0x14
EQUIPMENT_FPU = 0x02
BASE_MEMORY_KIB, EXTENDED_MEMORY_KIB, EXTENDED_MEMORY_KIB_2 = 0x15, 0x17, 0x30      # two bytes each, low first
MEMORY_ABOVE_16M, MEMORY_ABOVE_4G = 0x34, 0x5B          # in 64 KiB: two and three bytes
CHECKSUM, CHECKSUM_COVERS = 0x2E, range(0x10, 0x2E)     # high byte first
KIB, MIB = 1024, 1024 * 1024

DAYS_BEFORE_MONTH = 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334


@frozen
class RtcState:
    """What a snapshot keeps of the clock; "clock time" is nanoseconds since 1970 as the guest set it."""

    index: int = 0
    reg_a: int = 0x26                   # 32 kHz crystal, 1024 Hz
    reg_b: int = B_24H
    flags: int = 0                      # PF, AF and UF up to `seen_ns`
    seen_ns: int | None = None          # clock time up to which events are in `flags`, None: none yet
    offset_ns: int = 0                  # clock time minus wall time
    weekday_shift: int = 0              # days by which the guest's day of the week is off
    held: bytes | None = None           # TIME_REGISTERS while no update happens
    ram: bytes = b""                    # all registers; empty: as firmware sets up RAM for the machine's memory


POWER_ON = RtcState()


class Rtc:
    """The clock, its three interrupts, and 128 bytes of memory.

    Args:
        irq: high while an enabled interrupt's flag is set; reading register C lowers it.
        clock: guest time, wall time and one-shot timers.
        low_size: bytes of guest memory below 4 GiB, which CMOS tells the guest.
        high_size: bytes of guest memory above 4 GiB.
        state: registers to start with.
    """

    ports: PortRanges = ((0x70, 2),)

    def __init__(
        self, irq: IrqLine, clock: Clock, low_size: int, high_size: int = 0, state: RtcState = POWER_ON
    ) -> None:
        self._irq = irq
        self._clock = clock
        self._index = state.index
        self._reg_a = state.reg_a
        self._reg_b = state.reg_b
        self._flags = state.flags
        self._offset_ns = state.offset_ns
        self._weekday_shift = state.weekday_shift
        self._held = state.held
        self._ram = bytearray(state.ram or _firmware_ram(low_size, high_size))
        self._seen_ns = self._time_ns() if state.seen_ns is None else state.seen_ns
        self._timer = clock.timer(self._expired)
        self._update_irq()

    def read(self, offset: int) -> int:
        """Read the register that the index selects; the index itself cannot be read."""
        if offset == INDEX:
            return 0xFF
        register = self._index & INDEX_REGISTER
        if register == REG_A:
            return self._reg_a | (A_UIP if self._update_is_near() else 0)
        if register == REG_B:
            return self._reg_b
        if register == REG_C:
            return self._read_flags()
        if register == REG_D:
            return D_VRT
        if register in TIME_REGISTERS:
            return self._time_registers()[TIME_REGISTERS.index(register)]
        return self._ram[register]

    def write(self, offset: int, value: int) -> None:
        """Write the index, or the register it selects; registers C and D cannot be written."""
        if offset == INDEX:
            self._index = value
            return
        register = self._index & INDEX_REGISTER
        if register in (REG_C, REG_D):
            return
        self._collect()
        if register == REG_A:
            self._write_a(value)
        elif register == REG_B:
            self._write_b(value)
        elif register in TIME_REGISTERS:
            self._write_time(register, value)
        else:
            self._ram[register] = value
        self._update_irq()

    def save(self) -> RtcState:
        """The registers; wall time goes on from the clock the next machine has."""
        return RtcState(
            index=self._index, reg_a=self._reg_a, reg_b=self._reg_b, flags=self._flags, seen_ns=self._seen_ns,
            offset_ns=self._offset_ns, weekday_shift=self._weekday_shift, held=self._held, ram=bytes(self._ram),
        )

    # --- time ---------------------------------------------------------------------------------------------------

    def _time_ns(self) -> int:
        """Clock time. While updates are held, its second is meaningless but its fraction is the divider's."""
        return self._clock.wall_ns() + self._offset_ns

    def _divider_runs(self) -> bool:
        return self._reg_a & A_DIVIDER <= A_DIVIDER_RUNS

    def _updates(self) -> bool:
        """Whether the registers change every second."""
        return self._held is None

    def _update_is_near(self) -> bool:
        return self._updates() and self._time_ns() % NS_PER_S >= NS_PER_S - UPDATE_WARNING_NS

    def _time_registers(self) -> bytes:
        """TIME_REGISTERS as the guest reads them now, in the format that register B asks for."""
        if self._held is not None:
            return self._held
        now = time.gmtime(self._time_ns() // NS_PER_S)
        encode = self._encode
        weekday = (now.tm_wday + 1 + self._weekday_shift) % 7 + 1       # 1 is Sunday
        century, year = divmod(now.tm_year, 100)
        return bytes((
            encode(now.tm_sec), encode(now.tm_min), self._encode_hour(now.tm_hour), encode(weekday),
            encode(now.tm_mday), encode(now.tm_mon), encode(year), encode(century),
        ))

    def _write_time(self, register: int, value: int) -> None:
        """Set one time register; the running second goes on where it is, as the divider does not notice."""
        registers = bytearray(self._time_registers())
        registers[TIME_REGISTERS.index(register)] = value
        if self._held is not None:
            self._held = bytes(registers)
        else:
            self._set_time(registers)

    def _set_time(self, registers: bytes | bytearray) -> None:
        """Go on from these TIME_REGISTERS, at the divider's present fraction of a second."""
        seconds, weekday = self._decode_time(registers)
        now_ns = self._time_ns()
        self._offset_ns += (seconds - now_ns // NS_PER_S) * NS_PER_S
        self._weekday_shift = (weekday - 1 - (seconds // DAY_S + 4)) % 7        # 1970 began on a Thursday
        self._seen_ns = self._time_ns()

    def _hold_or_go_on(self) -> None:
        """Registers A and B may have stopped the updates, or let them happen again."""
        hold = bool(self._reg_b & B_SET) or not self._divider_runs()
        if not hold and self._held is not None:
            registers, self._held = self._held, None
            self._set_time(registers)

    def _write_a(self, value: int) -> None:
        registers = self._time_registers()
        ran = self._divider_runs()
        self._reg_a = value & ~A_UIP
        if not self._divider_runs():
            self._held = registers
        elif not ran:
            self._offset_ns += FIRST_UPDATE_NS - self._time_ns() % NS_PER_S
            self._seen_ns = self._time_ns()
        self._hold_or_go_on()

    def _write_b(self, value: int) -> None:
        if value & B_SET:
            self._held = self._time_registers()
            value &= ~B_UIE                 # the datasheet: SET going high clears it
        self._reg_b = value
        self._hold_or_go_on()

    # --- formats ------------------------------------------------------------------------------------------------

    def _encode(self, value: int) -> int:
        return value if self._reg_b & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._reg_b & B_BINARY else (value >> 4) * 10 + (value & 15)

    def _encode_hour(self, hour: int) -> int:
        if self._reg_b & B_24H:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (HOURS_PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._reg_b & B_24H:
            return self._decode(value)
        return self._decode(value & ~HOURS_PM) % 12 + (12 if value & HOURS_PM else 0)

    def _decode_time(self, registers: bytes | bytearray) -> tuple[int, int]:
        """Seconds since 1970, and the day of the week; what is out of range is moved into it."""
        second, minute, hour, weekday, day, month, year, century = registers
        month = min(max(self._decode(month), 1), 12)
        full_year = self._decode(century) % 100 * 100 + self._decode(year) % 100
        leap = full_year % 4 == 0 and (full_year % 100 != 0 or full_year % 400 == 0)
        length = (*DAYS_BEFORE_MONTH[1:], 365)[month - 1] - DAYS_BEFORE_MONTH[month - 1] + (leap and month == 2)
        day = min(max(self._decode(day), 1), length)
        days = _days_before_year(full_year) - _days_before_year(1970)
        days += DAYS_BEFORE_MONTH[month - 1] + (leap and month > 2) + day - 1
        seconds = min(self._decode_hour(hour), 23) * 3600 + min(self._decode(minute), 59) * 60
        return days * DAY_S + seconds + min(self._decode(second), 59), self._decode(weekday)

    # --- interrupts ---------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Set the flags of everything that happened since the last time."""
        now_ns, seen_ns = self._time_ns(), self._seen_ns
        self._seen_ns = now_ns
        for flag, event_ns in self._next_events(seen_ns):
            if event_ns <= now_ns:
                self._flags |= flag

    def _next_events(self, after_ns: int) -> Iterator[tuple[int, int]]:
        """Each interrupt's flag and when, in clock time, it is next set after `after_ns`."""
        shift = self._periodic_shift()
        if shift is not None:
            # Exact: the divider's pulses since 1970, so that rounding never moves an edge.
            pulses = (after_ns * CRYSTAL_HZ // NS_PER_S >> shift) + 1 << shift
            yield C_PF, -(-pulses * NS_PER_S // CRYSTAL_HZ)
        if self._updates():
            second = after_ns // NS_PER_S
            yield C_UF, (second + 1) * NS_PER_S
            alarm = self._next_alarm(second)
            if alarm is not None:
                yield C_AF, alarm * NS_PER_S

    def _periodic_shift(self) -> int | None:
        """Binary logarithm of the periodic interrupt's period in crystal pulses, None while it is off."""
        rate = self._reg_a & A_RATE
        if rate == 0 or not self._divider_runs():
            return None
        return rate - 1 if rate >= 3 else rate + 6      # the divider has no tap for the two fastest at 32 kHz

    def _next_alarm(self, after: int) -> int | None:
        """The first second later than `after` that the alarm registers match, None when no second can."""
        fields = []
        decoders = self._decode, self._decode, self._decode_hour
        units = (1, 60), (60, 60), (3600, 24)
        for register, decode, (unit, size) in zip(ALARM_REGISTERS, decoders, units, strict=True):
            raw = self._ram[register]
            if raw & ALARM_ANY == ALARM_ANY:
                continue
            value = decode(raw)
            if value >= size:
                return None
            fields.append((value, unit, size))
        second = after + 1
        # From hours down to seconds, going forward to each field's match; a carry undoes a coarser one, so again.
        while any(second // unit % size != value for value, unit, size in fields):
            for value, unit, size in reversed(fields):
                wait = (value - second // unit) % size
                if wait:
                    second += wait * unit - second % unit
        return second

    def _read_flags(self) -> int:
        self._collect()
        value = self._flags | (C_IRQF if self._flags & self._reg_b else 0)
        self._flags = 0
        self._update_irq()
        return value

    def _expired(self) -> None:
        self._collect()
        self._update_irq()

    def _update_irq(self) -> None:
        """Drive the line; arm the timer only when it is low and an enabled interrupt will raise it."""
        enabled = self._reg_b & (B_PIE | B_AIE | B_UIE)
        raised = bool(self._flags & enabled)
        self._irq.set(raised)
        deadlines = []
        if enabled and not raised:
            deadlines = [event_ns for flag, event_ns in self._next_events(self._seen_ns) if flag & enabled]
        if not deadlines:
            self._timer.disarm()
            return
        wait_ns = min(deadlines) - self._time_ns()
        self._timer.arm(self._clock.now_ns() + wait_ns)


def _days_before_year(year: int) -> int:
    """Days of the Gregorian calendar before `year`, counted from year 0."""
    past = year - 1
    return year * 365 + past // 4 - past // 100 + past // 400 + 1


def _firmware_ram(low_size: int, high_size: int) -> bytes:
    """CMOS RAM as a PC's firmware leaves it: equipment, memory sizes (in bytes here) and the checksum."""
    ram = bytearray(CMOS_SIZE)
    ram[EQUIPMENT] = EQUIPMENT_FPU
    extended = min(max(low_size - MIB, 0) // KIB, 0xFFFF)
    for register, value, length in (
        (BASE_MEMORY_KIB, min(low_size // KIB, 640), 2),
        (EXTENDED_MEMORY_KIB, extended, 2),
        (EXTENDED_MEMORY_KIB_2, extended, 2),
        (MEMORY_ABOVE_16M, max(low_size - 16 * MIB, 0) // (64 * KIB), 2),
        (MEMORY_ABOVE_4G, high_size // (64 * KIB), 3),
    ):
        ram[register : register + length] = value.to_bytes(length, "little")
    ram[CHECKSUM : CHECKSUM + 2] = sum(ram[i] for i in CHECKSUM_COVERS).to_bytes(2, "big")
    return bytes(ram)
