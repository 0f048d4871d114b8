"""The board: which devices the machine has, and how their lines are wired."""

from __future__ import annotations

from collections.abc import Callable

from devices.i8042 import I8042
from devices.i8254 import Pit
from devices.i8259 import PicPair
from devices.mc146818 import Rtc
from devices.uart16550a import COM1, Uart16550A
from emu.bus import MsrBus, PortBus
from emu.clock import GuestClock
from emu.cpu.bypass import Bypass
from emu.cpu.check import check
from emu.cpu.constants import MSR_TSC
from emu.cpu.cpu import Cpu
from emu.cpu.platform import Platform
from emu.memory import HIGH_START, HOLE_START, GuestMemory
from hypercalls.kvmclock import KvmClock
from hypercalls.numbers import KVM_SYSTEM_TIME, KVM_SYSTEM_TIME_OLD, KVM_WALL_CLOCK, KVM_WALL_CLOCK_OLD

IRQ_PIT, IRQ_KEYBOARD, IRQ_COM1, IRQ_RTC, IRQ_AUX = 0, 1, 4, 8, 12

VMCB = 0xFD00_0000                      # 16 KiB in the hole below 4 GiB
VMCB_END = VMCB + 0x4000
ADDRESS_SPACE = 1 << 52


class IntrPin:
    """The wire from the interrupt controllers to the CPU.

    Attributes:
        level: what is on it.
    """

    def __init__(self, drive: Callable[[bool], None]) -> None:
        self.level = False
        self._drive = drive

    def set(self, level: bool) -> None:
        """Drive it (devices.IrqLine)."""
        if level != self.level:
            self.level = level
            self._drive(level)


class Board:
    """CPU, memory and devices, wired as on a PC of 1990: two 8259A, 8254, MC146818, 8042, one 16550A.

    Args:
        memory: the guest's RAM.
        clock: guest time.
        serial_output: gets what the guest sends on COM1.
        reset: called when the guest resets the machine.
        wait: lets a number of nanoseconds pass.
    """

    def __init__(
        self,
        memory: GuestMemory,
        clock: GuestClock,
        serial_output: Callable[[bytes], None],
        reset: Callable[[], None],
        wait: Callable[[int], None],
    ) -> None:
        self.memory = memory
        self.clock = clock
        self.ports = PortBus()
        self.msrs = MsrBus()
        check()
        platform = Platform(self.ports.read, self.ports.write, self.msrs.read, self.msrs.write, self._acknowledge)
        self.cpu = Cpu(platform, VMCB)
        try:
            self.intr = IntrPin(self.cpu.set_interrupt_line)
            self.pics = PicPair(self.intr)
            self.pit = Pit(self.pics.line(IRQ_PIT), clock)
            self.rtc = Rtc(self.pics.line(IRQ_RTC), clock, memory.low_size, memory.high_size)
            self.i8042 = I8042(self.pics.line(IRQ_KEYBOARD), self.pics.line(IRQ_AUX), reset)
            self.bypass = Bypass(self.cpu.context, COM1)
            self.com1 = Uart16550A(self.pics.line(IRQ_COM1), serial_output, self.bypass)
            for name, device in self.devices.items():
                self.ports.add(name, device)
            self._map_memory()
            self._add_msrs(wait)
        except BaseException:
            self.cpu.close()
            raise

    @property
    def devices(self) -> dict[str, PicPair | Pit | Rtc | I8042 | Uart16550A]:
        """Every device by name."""
        return {"i8259": self.pics, "i8254": self.pit, "rtc": self.rtc, "i8042": self.i8042, "com1": self.com1}

    def _acknowledge(self) -> int | None:
        pics = self.pics
        if not pics.pending:
            return None
        return pics.acknowledge()

    def _map_memory(self) -> None:
        for start, block in self.memory.blocks():
            self.cpu.map_ram(start, block)
        self.memory.drop_code = self.cpu.drop_code
        self.cpu.open_trap_door()
        # Open bus over all that is left: an access outside every region would end the run
        low, high = self.memory.low_size, HIGH_START + self.memory.high_size
        holes = [(low, HOLE_START), (HOLE_START, VMCB), (VMCB_END, HIGH_START), (high, ADDRESS_SPACE)]
        for start, end in holes:
            if start < end:
                self.cpu.map_mmio(start, end - start, _open_bus_read, _open_bus_write)

    def _add_msrs(self, wait: Callable[[int], None]) -> None:
        self.kvmclock = KvmClock(self.memory, self.clock, self._sample_time, wait)
        self.msrs.add("TSC", MSR_TSC, read=self.cpu.tsc)
        for number in (KVM_SYSTEM_TIME, KVM_SYSTEM_TIME_OLD):
            self.msrs.add(f"kvmclock {number:#x}", number, write=self.kvmclock.write_system_time)
        for number in (KVM_WALL_CLOCK, KVM_WALL_CLOCK_OLD):
            self.msrs.add(f"kvmclock {number:#x}", number, write=self.kvmclock.write_wall_clock)
        for number in (KVM_SYSTEM_TIME_OLD, KVM_WALL_CLOCK_OLD):
            self.cpu.trap_msr(number)

    def _sample_time(self) -> tuple[int, int]:
        """The guest's TSC and guest time at one moment: of five readings the one least disturbed."""
        best = None
        for _ in range(5):
            before = self.clock.now_ns()
            tsc = self.cpu.tsc()
            after = self.clock.now_ns()
            if best is None or after - before < best[0]:
                best = after - before, tsc, (before + after) // 2
        assert best is not None
        return best[1], best[2]

    def close(self) -> None:
        """Free the CPU."""
        self.cpu.close()


def _open_bus_read(_offset: int, size: int) -> int:
    return (1 << 8 * size) - 1


def _open_bus_write(_offset: int, _size: int, _value: int) -> None:
    pass
