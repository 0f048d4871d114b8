"""The board: which devices the machine has, and how their lines are wired."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from devices import Device, IrqLine, MmioDevice
from devices.acpi_pm import GPE_GENERATION, AcpiPm, ResetControl
from devices.frozen import frozen
from devices.i8042 import I8042
from devices.i8254 import Pit
from devices.i8259 import PicPair
from devices.ioapic import IoApic
from devices.lapic import LocalApic, ReservedRegister
from devices.mc146818 import Rtc
from devices.pci import PciBus
from devices.pci_function import PciFunction
from devices.uart16550a import COM1, Uart16550A
from devices.virtio.device import VirtioDevice
from devices.virtio.pci import VirtioPci
from emu.accounting import Accounting
from emu.acpi.wiring import GENERATION_ID, GENERATION_ID_SIZE, gsi_of
from emu.board_state import POWER_ON, BoardState, PeripheralsState
from emu.bus import MmioBus, MsrBus, PortBus
from emu.clock import GuestClock
from emu.cpu.bypass import Bypass
from emu.cpu.check import check
from emu.cpu.constants import MSR_APIC_BASE, MSR_TSC, MSR_TSC_DEADLINE, MSR_X2APIC_END, MSR_X2APIC_START
from emu.cpu.cpu import Cpu
from emu.cpu.platform import Platform
from emu.errors import EmuError
from emu.memory import HIGH_START, HOLE_START, GuestMemory
from emu.paging import AddressSpace
from emu.stats import UNCLAIMED, Kind
from emu.wires import Branch, Junction
from hypercalls.call import CallMemory, GuestFault, Services
from hypercalls.dispatch import POWER_ON as NO_HYPERCALLS
from hypercalls.dispatch import Dispatcher
from hypercalls.kvmclock import KvmClock
from hypercalls.numbers import (
    KVM_PV_EOI_EN,
    KVM_SYSTEM_TIME,
    KVM_SYSTEM_TIME_OLD,
    KVM_WALL_CLOCK,
    KVM_WALL_CLOCK_OLD,
)
from hypercalls.pv_eoi import PvEoi
from hypercalls.registry import Hypercall
from hypercalls.syscall_dispatch import SyscallDispatcher
from hypercalls.syscalls import SyscallTable

IRQ_PIT, IRQ_KEYBOARD, IRQ_COM1, IRQ_RTC, IRQ_SCI, IRQ_AUX = 0, 1, 4, 8, 9, 12
PCI_SLOTS = 31                          # besides the host bridge's
IRQ_PCI = 10, 11                        # INTx of even and of odd slots on the 8259A
GSI_PIT = 2                             # as on every PC: pin 0 is the 8259A's

LAPIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000
PAGE = 0x1000
VMCB = 0xFD00_0000                      # 16 KiB in the hole below 4 GiB; PCI's window ends here
VMCB_END = VMCB + 0x4000
PCI_CONFIG, PCI_CONFIG_SIZE = 0xFD10_0000, 0x10_0000    # of one bus
ADDRESS_SPACE = 1 << 52
LAPIC_MSRS = (
    ("x2apic", MSR_X2APIC_START, MSR_X2APIC_END),
    ("TSC deadline", MSR_TSC_DEADLINE, MSR_TSC_DEADLINE + 1),
    ("APIC base", MSR_APIC_BASE, MSR_APIC_BASE + 1),
)
SECOND_NS = 1_000_000_000
ANNOUNCEMENT_NS = SECOND_NS             # until a guest that is renewed anyhow hears that it is a copy


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


@frozen
class Page:
    """A page of PCI memory made of functions."""

    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]


class Board:
    """CPU, memory and devices, wired as on a PC: ISA devices, local and I/O APIC, ACPI, PCI with virtio functions.

    Args:
        memory: the guest's RAM, zeroed.
        clock: guest time.
        serial_output: gets what the guest sends on COM1.
        reset: called when the guest resets the machine.
        power_off: called when the guest powers it off.
        wait: lets a number of nanoseconds pass.
        virtio: the virtio devices, for PCI slots 1, 2, ... in this order; they outlive the board.
        accounting: counts what the handlers do, and times it if it is to.
        state: what to go on with, with the memory as it was then; None: power-on. `resumed` has to follow.
    """

    def __init__(
        self,
        memory: GuestMemory,
        clock: GuestClock,
        serial_output: Callable[[bytes], None],
        reset: Callable[[], None],
        power_off: Callable[[], None],
        wait: Callable[[int], None],
        virtio: Sequence[VirtioDevice] = (),
        accounting: Accounting | None = None,
        state: BoardState | None = None,
    ) -> None:
        self._parts = state.peripherals if state else POWER_ON
        self._hypercalls = state.hypercalls if state else NO_HYPERCALLS
        accounting = accounting or Accounting()
        self.memory = memory
        self.clock = clock
        self._announcement = clock.timer(self._announce)
        self._accounting = accounting
        self._interrupts = accounting.tally(Kind.INTERRUPT, "lapic")
        self.ports = PortBus(accounting)
        self.msrs = MsrBus(accounting)
        self.virtio: list[VirtioPci] = []
        self._names: dict[PciFunction, str] = {}
        check()
        platform = Platform(
            port_in=self.ports.read,
            port_out=self.ports.write,
            rdmsr=self.msrs.read,
            wrmsr=self.msrs.write,
            acknowledge=accounting.timed(self._interrupts, self._acknowledge),
            read_cr8=accounting.counted(accounting.tally(Kind.CR8_READ, "lapic"), lambda: self.lapic.cr8),
            write_cr8=accounting.counted(
                accounting.tally(Kind.CR8_WRITE, "lapic"), lambda priority: setattr(self.lapic, "cr8", priority)
            ),
        )
        self.cpu = Cpu(platform, VMCB)
        try:
            self._map_ram()
            if state:
                self.cpu.restore(state.cpu)
                since_ns = clock.now_ns() - state.now_ns
                self.cpu.set_tsc(state.tsc + since_ns * state.kvmclock.hz // SECOND_NS)
            clock_state = state.kvmclock if state else None
            self.kvmclock = KvmClock(memory, clock, self._sample_time, wait, clock_state)
            self._pv_eoi = PvEoi(memory, state.pv_eoi if state else None)
            self._add_interrupt_controllers()
            self.bypass = Bypass(self.cpu.context, COM1)
            self._add_isa_devices(serial_output, reset, power_off)
            self.reset_control = ResetControl(reset, self._parts.reset_control)
            self.pci = PciBus(self.reset_control, self._parts.pci, self._metered)
            self.ports.add_wide("pci", self.pci)
            self._add_virtio(virtio)
            self._map_mmio()
            self._add_msrs()
            if not state:
                self._write_tables()
        except BaseException:
            self.close()
            raise

    # -- interrupts --------------------------------------------------------------------------------------------

    def _add_interrupt_controllers(self) -> None:
        self.intr = IntrPin(self.cpu.set_interrupt_line)
        self.lapic = LocalApic(self.intr, self.clock, self, self._parts.lapic)
        self.lapic.guest_eoi = self._pv_eoi
        self.pics = PicPair(self.lapic.lint0, self._parts.pics)
        self.lapic.external = self._acknowledge_pics
        self.ioapic = IoApic(self.lapic.accept_message, self._parts.ioapic)
        self.lapic.eoi_broadcast = self.ioapic.eoi
        self.ports.add("i8259", self.pics)

    def _isa_line(self, irq: int) -> IrqLine:
        return Branch(self.pics.line(irq), self.ioapic.line(GSI_PIT if irq == IRQ_PIT else irq))

    def _acknowledge(self) -> int | None:
        self._interrupts.count += 1
        return self.lapic.acknowledge()

    def _acknowledge_pics(self) -> int | None:
        return self.pics.acknowledge() if self.pics.pending else None

    # -- devices -----------------------------------------------------------------------------------------------

    def _add_isa_devices(
        self, serial_output: Callable[[bytes], None], reset: Callable[[], None], power_off: Callable[[], None]
    ) -> None:
        memory, clock, parts = self.memory, self.clock, self._parts
        self.pit = Pit(self._isa_line(IRQ_PIT), clock, parts.pit)
        self.rtc = Rtc(self._isa_line(IRQ_RTC), clock, memory.low_size, memory.high_size, parts.rtc)
        self.i8042 = I8042(self._isa_line(IRQ_KEYBOARD), self._isa_line(IRQ_AUX), reset, parts.i8042)
        self.com1 = Uart16550A(self._isa_line(IRQ_COM1), serial_output, self.bypass, state=parts.com1)
        self.acpi_pm = AcpiPm(self._isa_line(IRQ_SCI), clock, power_off, parts.acpi_pm)
        self.ports.add("i8254", self.pit)
        self.ports.add("rtc", self.rtc)
        self.ports.add("i8042", self.i8042)
        self.ports.add("com1", self.com1)
        self.ports.add_wide("acpi", self.acpi_pm)

    def _add_virtio(self, devices: Sequence[VirtioDevice]) -> None:
        if len(devices) > PCI_SLOTS:
            raise EmuError(f"{len(devices)} devices are too many: PCI has slots for {PCI_SLOTS}")
        states = self._parts.functions or (None,) * len(devices)
        on_pic = [Junction(self.pics.line(irq)) for irq in IRQ_PCI]
        for slot, (device, state) in enumerate(zip(devices, states, strict=True), start=1):
            intx = Branch(on_pic[slot % 2].wire(), self.ioapic.line(gsi_of(slot, 0)))
            function = VirtioPci(device, self.memory, intx, self.lapic.accept_message, IRQ_PCI[slot % 2], state)
            self._names[function] = f"{device.name} slot {slot}"
            self.pci.add(slot, function)
            self.virtio.append(function)

    def add_device(self, name: str, device: Device) -> None:
        """Give a device its ports; once the board is there.

        Raises:
            EmuError: another device has one of them.
        """
        try:
            self.ports.add(name, device)
        except ValueError as error:
            self.close()
            raise EmuError(str(error)) from None

    def _metered(self, function: PciFunction | None, page: MmioDevice) -> MmioDevice:
        """A page of PCI memory whose accesses are counted under its function's name."""
        name = UNCLAIMED if function is None else self._names[function]
        accounting = self._accounting
        return Page(
            accounting.counted(accounting.tally(Kind.MMIO_READ, name), page.read),
            accounting.counted(accounting.tally(Kind.MMIO_WRITE, name), page.write),
        )

    # -- address space -----------------------------------------------------------------------------------------

    def _map_ram(self) -> None:
        for start, block in self.memory.blocks():
            self.cpu.map_ram(start, block)
        self.memory.drop_code = self.cpu.drop_code
        self.cpu.open_trap_door()
        self.memory.code_pages = self.cpu.code_pages

    def _map_mmio(self) -> None:
        self.mmio = MmioBus(self.pci.memory, self._accounting)
        self.mmio.add("pci configuration", PCI_CONFIG, PCI_CONFIG_SIZE, self.pci.configuration)
        self.mmio.add("ioapic", IOAPIC, PAGE, self.ioapic)
        self.mmio.add("lapic", LAPIC, PAGE, self.lapic)
        # All that is not RAM: an access outside every region would end the run
        low, high = self.memory.low_size, HIGH_START + self.memory.high_size
        holes = [(low, HOLE_START), (HOLE_START, VMCB), (VMCB_END, HIGH_START), (high, ADDRESS_SPACE)]
        for start, end in holes:
            if start < end:
                self.cpu.map_mmio(start, end - start, self.mmio.read, self.mmio.write)

    def _write_tables(self) -> None:
        from emu.acpi.tables import AcpiConfig, build_tables  # a machine that is restored has them

        config = AcpiConfig(pci_memory=(HOLE_START, VMCB - HOLE_START), pci_config=PCI_CONFIG)
        for address, table in build_tables(config):
            self.memory.write(address, table)
        self.memory.write(GENERATION_ID, os.urandom(GENERATION_ID_SIZE))

    def new_generation(self, is_renewed: bool) -> None:
        """Tell the guest that it is a copy: its kernel re-seeds its random numbers.

        Args:
            is_renewed: a program in the guest does that sooner. Then the event, for which ACPI's interpreter has to
                work, comes later, when what the machine was made for may be done.
        """
        self.memory.write(GENERATION_ID, os.urandom(GENERATION_ID_SIZE))
        if is_renewed:
            self._announcement.arm(self.clock.now_ns() + ANNOUNCEMENT_NS)
        else:
            self._announce()

    def _announce(self) -> None:
        self.acpi_pm.trigger_gpe(GPE_GENERATION)

    # -- MSRs --------------------------------------------------------------------------------------------------

    def _add_msrs(self) -> None:
        self.msrs.add("TSC", MSR_TSC, read=self.cpu.tsc)
        for number in (KVM_SYSTEM_TIME, KVM_SYSTEM_TIME_OLD):
            self.msrs.add(f"kvmclock {number:#x}", number, write=self.kvmclock.write_system_time)
        for number in (KVM_WALL_CLOCK, KVM_WALL_CLOCK_OLD):
            self.msrs.add(f"kvmclock {number:#x}", number, write=self.kvmclock.write_wall_clock)
        self.msrs.add("PV EOI", KVM_PV_EOI_EN, write=self._write_pv_eoi)
        for number in (KVM_SYSTEM_TIME_OLD, KVM_WALL_CLOCK_OLD):
            self.cpu.trap_msr(number)
        for name, first, end in LAPIC_MSRS:
            self.msrs.add_range(name, first, end, self._read_lapic, self._write_lapic)
            for number in range(first, end):
                self.cpu.trap_msr(number)

    def add_hypercalls(self, hypercalls: Iterable[Hypercall], services: Services) -> None:
        """Claim the MSRs of hypercalls; call once.

        Raises:
            ValueError: one is claimed already.
        """
        memory = CallMemory(self.memory, AddressSpace(self.memory, self.cpu.registers))
        self._dispatcher = Dispatcher(memory, self.clock, services, self.cpu.registers.dump, self._hypercalls)
        for hypercall in hypercalls:
            read, write = self._dispatcher.bind(hypercall)
            self.msrs.add(hypercall.name, hypercall.number, read, write)

    def add_syscalls(self, syscalls: SyscallTable) -> None:
        """Answer system calls of the guest's 64-bit programs; call once."""
        accounting, registers = self._accounting, self.cpu.registers
        dispatcher = SyscallDispatcher(AddressSpace(self.memory, registers), self.clock, registers)
        answers = {
            one.number: accounting.counted(accounting.tally(Kind.SYSCALL, one.name), dispatcher.bind(one))
            for one in syscalls
        }
        if answers:
            self.cpu.intercept_syscalls(answers)

    def _write_pv_eoi(self, value: int) -> None:
        self.lapic.settle_eoi()             # in the word that was good until now
        self._pv_eoi.write_msr(value)

    def _read_lapic(self, number: int) -> int:
        try:
            return self.lapic.read_msr(number)
        except ReservedRegister:
            raise GuestFault from None

    def _write_lapic(self, number: int, value: int) -> None:
        try:
            self.lapic.write_msr(number, value)
        except ReservedRegister:
            raise GuestFault from None

    # -- time --------------------------------------------------------------------------------------------------

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

    def now(self) -> int:
        """The guest's TSC (devices.lapic.TscClock)."""
        return self.cpu.tsc()

    def ns_at(self, tsc: int) -> int:
        """Guest time in nanoseconds at which the guest's TSC reads `tsc` (devices.lapic.TscClock)."""
        # Rounded up: an interrupt before its time would only make the guest set the timer once more
        return self.clock.now_ns() - (self.cpu.tsc() - tsc) * SECOND_NS // self.kvmclock.hz

    # -- the rest ----------------------------------------------------------------------------------------------

    def save(self) -> BoardState:
        """The state to go on with; between runs of the CPU. Guest memory and the virtio devices are saved by others."""
        self.com1.flush_bypass()
        tsc, now_ns = self._sample_time()
        peripherals = PeripheralsState(
            lapic=self.lapic.save(), pics=self.pics.save(), ioapic=self.ioapic.save(), pit=self.pit.save(),
            rtc=self.rtc.save(), i8042=self.i8042.save(), com1=self.com1.save(), acpi_pm=self.acpi_pm.save(),
            reset_control=self.reset_control.save(), pci=self.pci.save(),
            functions=tuple(function.save() for function in self.virtio),
        )
        calls = self._dispatcher.save()
        return BoardState(now_ns, tsc, self.cpu.save(), self.kvmclock.save(), self._pv_eoi.address, calls, peripherals)

    def resumed(self, is_renewed: bool) -> None:
        """The machine around a restored board is whole: do what was asked of its devices, and tell the guest.

        Args:
            is_renewed: as for `new_generation`.
        """
        self.kvmclock.guest_was_stopped()
        self.new_generation(is_renewed)
        for function in self.virtio:
            function.kick_all()

    def close(self) -> None:
        """Free the CPU, and guest memory of its users; the virtio devices stay."""
        for function in self.virtio:
            function.close()
        self.cpu.close()
