"""What a snapshot keeps of a board."""

from __future__ import annotations

from devices.acpi_pm import POWER_ON as ACPI_PM
from devices.acpi_pm import RESET_POWER_ON, AcpiPmState, ResetControlState
from devices.frozen import frozen
from devices.i8042 import POWER_ON as KEYBOARD
from devices.i8042 import I8042State
from devices.i8254 import POWER_ON as PIT
from devices.i8254 import PitState
from devices.i8259 import POWER_ON as PICS
from devices.i8259 import PicPairState
from devices.ioapic import POWER_ON as IOAPIC
from devices.ioapic import IoApicState
from devices.lapic_registers import POWER_ON as LAPIC
from devices.lapic_registers import LapicState
from devices.mc146818 import POWER_ON as RTC
from devices.mc146818 import RtcState
from devices.pci import POWER_ON as PCI
from devices.pci import PciBusState
from devices.uart16550a import POWER_ON as COM1
from devices.uart16550a import UartState
from devices.virtio.pci import VirtioPciState
from emu.cpu.state import CpuState
from hypercalls.dispatch import DispatcherState
from hypercalls.kvmclock import KvmClockState

__all__ = ["POWER_ON", "BoardState", "PeripheralsState"]


@frozen
class PeripheralsState:
    """Every device; what virtio devices keep themselves is not among it.

    Attributes:
        functions: the virtio devices' transports, in the order of their slots.
    """

    lapic: LapicState = LAPIC
    pics: PicPairState = PICS
    ioapic: IoApicState = IOAPIC
    pit: PitState = PIT
    rtc: RtcState = RTC
    i8042: I8042State = KEYBOARD
    com1: UartState = COM1
    acpi_pm: AcpiPmState = ACPI_PM
    reset_control: ResetControlState = RESET_POWER_ON
    pci: PciBusState = PCI
    functions: tuple[VirtioPciState, ...] = ()


POWER_ON = PeripheralsState()


@frozen
class BoardState:
    """A board, but for its memory.

    Attributes:
        now_ns: guest time.
        tsc: the guest's time-stamp counter at that moment.
        pv_eoi: guest-physical address of the word in which the guest ends interrupts, None without one.
    """

    now_ns: int
    tsc: int
    cpu: CpuState
    kvmclock: KvmClockState
    pv_eoi: int | None
    hypercalls: DispatcherState
    peripherals: PeripheralsState
