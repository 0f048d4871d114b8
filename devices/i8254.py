"""8254 programmable interval timer (Intel 8254 datasheet, order number 231164), with the PC's port 0x61.

Nothing ticks: a counter keeps its registers as of some CLK pulse, and works out what any number of further pulses
would have made of them when somebody looks.
"""

from __future__ import annotations

from devices import Clock, IrqLine, PortRanges
from devices.frozen import frozen

__all__ = ["FREQUENCY_HZ", "POWER_ON", "CounterState", "Pit", "PitState"]

CHANNEL_0, CHANNEL_1, CHANNEL_2, CONTROL = range(4)     # offsets from port 0x40
SYSTEM_CONTROL = 0x21                                   # offset of port 0x61
FREQUENCY_HZ = 1_193_182
NS_PER_S = 1_000_000_000

READ_BACK = 0b11                # control word, bits 7-6
READ_BACK_NO_COUNT, READ_BACK_NO_STATUS = 0x20, 0x10
LATCH = 0b00                    # access bits
LOW, HIGH, BOTH = 1, 2, 3       # access bits: which bytes of the count are read and written
CONTROL_KEPT = 0x3F             # access, mode and BCD: what a counter keeps of a control word
CONTROL_BCD = 0x01
STATUS_OUT, STATUS_NULL = 0x80, 0x40

TERMINAL_COUNT, ONE_SHOT, RATE, SQUARE, SOFT_STROBE, HARD_STROBE = range(6)
PERIODIC = RATE, SQUARE
RETRIGGERED = ONE_SHOT, RATE, SQUARE, HARD_STROBE       # a rising gate loads the count

GATE_2 = 0x01                   # port 0x61
SYSTEM_CONTROL_KEPT = 0x0F      # gate, speaker and the parity enables read back as written
REFRESH_TOGGLE = 0x10
OUT_2 = 0x20
REFRESH_CLOCKS = 18             # 15.085 us: what firmware gives channel 1 to refresh the memory

# Periodic interrupts closer together than this (100 us) are merged: a count of 2 would keep the host in timer
# callbacks for good. The phase is kept, and 10 kHz is beyond what a PC of the time could serve.
MIN_IRQ_CLOCKS = 120


@frozen
class CounterState:
    """What a snapshot keeps of one counter."""

    tick: int = 0                       # CLK pulse, counted from guest time 0, that the rest is as of
    control: int = BOTH << 4            # bits 5-0 of the control word
    mode: int = TERMINAL_COUNT          # 0..5
    initial: int = 0                    # count register, 1..65536 (10000 in BCD); 0: none written yet
    null: bool = True                   # the count register was not loaded yet
    counter: int = 0                    # counting element, 0..65536
    gate: bool = True
    out: bool = False
    running: bool = False               # a count was loaded since the control word
    load_pending: bool = False          # the next CLK pulse loads the counting element
    armed: bool = False                 # modes 4 and 5: the strobe is still to come
    odd: bool = False                   # mode 3: this half of the wave was loaded from an odd count
    write_low: int | None = None        # the low byte, when the high one is awaited
    read_high: bool = False             # the next byte read is the high one
    latched_count: int | None = None
    latched_status: int | None = None


@frozen
class PitState:
    """What a snapshot keeps of the timer."""

    channels: tuple[CounterState, CounterState, CounterState]
    system_control: int = 0             # bits 3-0 of port 0x61
    irq: bool = False                   # level of the interrupt line
    irq_deadline_ns: int | None = None  # guest time of the next edge


# The datasheet leaves the counters undefined; these wait for a count, so nothing is due before a guest asks for it.
POWER_ON = PitState((CounterState(), CounterState(), CounterState(gate=False)))


class Counter:
    """One of the three counters; its attributes are those of CounterState."""

    tick: int
    control: int
    mode: int
    initial: int
    null: bool
    counter: int
    gate: bool
    out: bool
    running: bool
    load_pending: bool
    armed: bool
    odd: bool
    write_low: int | None
    read_high: bool
    latched_count: int | None
    latched_status: int | None

    def __init__(self, state: CounterState) -> None:
        vars(self).update(vars(state))

    def save(self) -> CounterState:
        """The registers as of the last CLK pulse looked at."""
        return CounterState(**vars(self))

    # --- the processor's side -----------------------------------------------------------------------------------

    def program(self, control: int) -> None:
        """A control word for this counter: it waits for a count."""
        self.control = control & CONTROL_KEPT
        mode = control >> 1 & 7
        self.mode = mode if mode <= HARD_STROBE else mode - 4       # modes 2 and 3 have two codes each
        self.initial = 0
        self.null = True
        self.out = self.mode != TERMINAL_COUNT
        self.running = self.load_pending = self.armed = self.odd = self.read_high = False
        self.write_low = self.latched_count = self.latched_status = None

    def write(self, value: int) -> None:
        """One byte of a count."""
        access = self.control >> 4
        if access == BOTH and self.write_low is None:
            self.write_low = value
            if self.mode == TERMINAL_COUNT:
                self.out = False                # and counting stops until the high byte comes
            return
        count = value if access == LOW else value << 8 | (self.write_low or 0)
        self.write_low = None
        self.initial = self._decode(count)
        self.null = True
        if self.mode == TERMINAL_COUNT:
            self.out = False
        if self.mode in (TERMINAL_COUNT, SOFT_STROBE) or (self.mode in PERIODIC and not self.running):
            self.load_pending = True

    def read(self) -> int:
        """One byte: a latched status, else of a latched count, else of the running one."""
        if self.latched_status is not None:
            status, self.latched_status = self.latched_status, None
            return status
        count = self.latched_count if self.latched_count is not None else self._visible_count()
        access = self.control >> 4
        if access == BOTH:
            self.read_high = not self.read_high
            if self.read_high:
                return count & 0xFF
        self.latched_count = None
        return count & 0xFF if access == LOW else count >> 8

    def latch_count(self) -> None:
        """Hold the count for the next reads; a count that is held already stays."""
        if self.latched_count is None:
            self.latched_count = self._visible_count()

    def latch_status(self) -> None:
        """Hold the status for the next read; a status that is held already stays."""
        if self.latched_status is None:
            self.latched_status = self.out * STATUS_OUT | self.null * STATUS_NULL | self.control

    def set_gate(self, level: bool) -> None:
        """Drive the GATE pin."""
        if level == self.gate:
            return
        self.gate = level
        if level:
            self.load_pending |= self.mode in RETRIGGERED and self.initial != 0
        elif self.mode in PERIODIC:
            self.out = True

    # --- the clock's side ---------------------------------------------------------------------------------------

    def advance_to(self, tick: int) -> None:
        """Let all CLK pulses up to number `tick` happen."""
        clocks = tick - self.tick
        if clocks <= 0:
            return
        self.tick = tick
        if self.load_pending:
            self._load()
            clocks -= 1
        if clocks and self.running:
            mode = self.mode
            if mode in (TERMINAL_COUNT, ONE_SHOT):
                self._count_down(clocks)
            elif mode == RATE:
                self._count_rate(clocks)
            elif mode == SQUARE:
                self._count_square(clocks)
            else:
                self._count_strobe(clocks)

    def clocks_to_rise(self) -> int | None:
        """CLK pulses until OUT next goes from low to high, None if that takes a write or the gate first."""
        strobe = self.mode in (SOFT_STROBE, HARD_STROBE)
        if strobe and not self.out:
            return 1
        if self._is_held() or (self.mode == RATE and self.initial == 1):    # that count, illegal, keeps OUT low
            return None
        if self.load_pending:
            return 1 + (self.period if self.mode in PERIODIC else self.initial + strobe)
        if not self.running:
            return None
        if self.mode == RATE:
            return self.counter
        if self.mode == SQUARE:
            return self._half_left() + (self._low_half() if self.out else 0)
        if strobe:
            return self.counter + 1 if self.armed else None
        return None if self.out else self.counter

    @property
    def period(self) -> int:
        """CLK pulses between rising edges in modes 2 and 3."""
        if self.mode == SQUARE:
            return (self.initial + 1) // 2 + self._low_half()
        return self.initial

    def _is_held(self) -> bool:
        """Whether CLK pulses are ignored."""
        if self.mode == TERMINAL_COUNT:
            return not self.gate or self.write_low is not None
        return not self.gate and self.mode in (RATE, SQUARE, SOFT_STROBE)

    def _load(self) -> None:
        self.load_pending = self.null = False
        self.running = self.armed = True
        self.odd = bool(self.initial & 1)
        self.counter = self.initial & ~1 if self.mode == SQUARE else self.initial
        self.out = self.mode >= RATE

    def _count_down(self, clocks: int) -> None:
        if self._is_held():
            return
        if clocks >= self.counter:
            self.out = True
        self.counter = (self.counter - clocks) % self._modulus()

    def _count_rate(self, clocks: int) -> None:
        if not self.gate:
            return
        if clocks < self.counter:
            self.counter -= clocks
        else:
            self.null = False
            self.counter = self.initial - (clocks - self.counter) % self.initial
        self.out = self.counter != 1

    def _count_square(self, clocks: int) -> None:
        if not self.gate:
            return
        left = self._half_left()
        if clocks >= left:
            self._next_half()
            clocks = (clocks - left) % self.period
            left = self._half_left()
            if clocks >= left:
                self._next_half()
                clocks -= left
        self.counter -= 2 * clocks

    def _count_strobe(self, clocks: int) -> None:
        self.out = True                         # the strobe is one pulse long, whatever the gate does
        if self._is_held():
            return
        if self.armed and clocks >= self.counter:
            self.armed = False
            self.out = clocks != self.counter
        self.counter = (self.counter - clocks) % self._modulus()

    def _half_left(self) -> int:
        """Mode 3: CLK pulses until OUT changes. It counts in twos; the high half of an odd count has one more."""
        return self.counter // 2 + (self.out and self.odd)

    def _low_half(self) -> int:
        """Mode 3: length of the low half; a count of 1, which is illegal, wraps round in it."""
        return (self.initial & ~1 or self._modulus()) // 2

    def _next_half(self) -> None:
        self.out = not self.out
        self.odd = bool(self.initial & 1)
        self.counter = self.initial & ~1 if self.out else 2 * self._low_half()
        self.null = False

    def _modulus(self) -> int:
        return 10_000 if self.control & CONTROL_BCD else 0x1_0000

    def _decode(self, count: int) -> int:
        modulus = self._modulus()
        if self.control & CONTROL_BCD:
            count = sum((count >> 4 * digit & 15) * 10**digit for digit in range(4))
        return count % modulus or modulus

    def _visible_count(self) -> int:
        count = self.counter % self._modulus()
        return int(str(count), 16) if self.control & CONTROL_BCD else count


class Pit:
    """Three counters; channel 0 drives IRQ 0, channel 2 and its gate are wired to port 0x61.

    Args:
        irq: rises when channel 0's output rises.
        clock: guest time and one-shot timers.
        state: registers to start with.
    """

    ports: PortRanges = ((0x40, 4), (0x61, 1))

    def __init__(self, irq: IrqLine, clock: Clock, state: PitState = POWER_ON) -> None:
        self._irq = irq
        self._clock = clock
        self._channels = tuple(Counter(channel) for channel in state.channels)
        self._system_control = state.system_control
        self._level = False
        self._timer = clock.timer(self._edge)
        self._drive_irq(state.irq)
        if state.irq_deadline_ns is not None:
            self._timer.arm(state.irq_deadline_ns)

    def read(self, offset: int) -> int:
        """Read a counter or port 0x61; the control word cannot be read."""
        if offset == SYSTEM_CONTROL:
            return self._read_system_control()
        if offset == CONTROL:
            return 0xFF
        channel = self._channels[offset]
        channel.advance_to(self._tick())
        return channel.read()

    def write(self, offset: int, value: int) -> None:
        """Write a counter, the control word or port 0x61."""
        if offset == SYSTEM_CONTROL:
            self._system_control = value & SYSTEM_CONTROL_KEPT
            self._present(CHANNEL_2).set_gate(bool(value & GATE_2))
        elif offset == CONTROL:
            self._write_control(value)
        else:
            self._present(offset).write(value)
            if offset == CHANNEL_0:
                self._schedule()

    def save(self) -> PitState:
        """The registers as of the last access; guest time goes on from there."""
        first, second, third = (channel.save() for channel in self._channels)
        return PitState((first, second, third), self._system_control, self._level, self._timer.deadline_ns)

    def _tick(self) -> int:
        return self._clock.now_ns() * FREQUENCY_HZ // NS_PER_S

    def _present(self, number: int) -> Counter:
        """The counter, as of now, with an edge of channel 0 that is due but late seen first."""
        deadline_ns = self._timer.deadline_ns
        if number == CHANNEL_0 and deadline_ns is not None and self._clock.now_ns() >= deadline_ns:
            self._edge()
        channel = self._channels[number]
        channel.advance_to(self._tick())
        return channel

    def _read_system_control(self) -> int:
        tick = self._tick()
        channel = self._channels[CHANNEL_2]
        channel.advance_to(tick)
        refresh = REFRESH_TOGGLE if tick // REFRESH_CLOCKS & 1 else 0
        return self._system_control | refresh | (OUT_2 if channel.out else 0)

    def _write_control(self, value: int) -> None:
        select = value >> 6
        if select == READ_BACK:
            for number in range(3):
                if value & 2 << number:
                    self._read_back(self._present(number), value)
        elif value >> 4 & 3 == LATCH:
            self._present(select).latch_count()
        else:
            self._present(select).program(value)
            if select == CHANNEL_0:
                self._schedule()

    def _read_back(self, channel: Counter, command: int) -> None:
        if not command & READ_BACK_NO_COUNT:
            channel.latch_count()
        if not command & READ_BACK_NO_STATUS:
            channel.latch_status()

    def _edge(self) -> None:
        """Channel 0's output has risen.

        The line was left high by the edge before, though the output has been low since (for one pulse in mode 2,
        half the period in mode 3). Lowering it just before it rises shows the controller, which is edge
        triggered, the same edges for one timer a period instead of two.
        """
        self._drive_irq(False)
        self._drive_irq(True)
        self._channels[CHANNEL_0].advance_to(self._tick())
        self._arm()

    def _schedule(self) -> None:
        """Channel 0 was written: only in mode 0 does that make its output low."""
        channel = self._channels[CHANNEL_0]
        self._drive_irq(channel.out or channel.mode != TERMINAL_COUNT)
        self._arm()

    def _arm(self) -> None:
        """Arm the timer for the next edge, which follows from the count: lateness neither adds up nor shifts it."""
        channel = self._channels[CHANNEL_0]
        clocks = channel.clocks_to_rise()
        if clocks is None:
            self._timer.disarm()
            return
        if channel.mode in PERIODIC and clocks < MIN_IRQ_CLOCKS and channel.period < MIN_IRQ_CLOCKS:
            clocks += -((clocks - MIN_IRQ_CLOCKS) // channel.period) * channel.period
        self._timer.arm(-(-(channel.tick + clocks) * NS_PER_S // FREQUENCY_HZ))

    def _drive_irq(self, level: bool) -> None:
        if level != self._level:
            self._level = level
            self._irq.set(level)
