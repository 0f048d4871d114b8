"""A guest without a kernel, for unit tests of hypercalls on the real CPU: instructions as bytes, and RAM.

    with MicroGuest([pv_zero_page]) as guest:
        guest.memory.write(0x5000, b"\\xff" * 4096)
        guest.wrmsr(pv_zero_page, 0x5000)
        assert guest.memory.read(0x5000, 4096) == bytes(4096)

All of its RAM is the test's: what the CPU needs for itself (page tables, GDT, IDT, stubs) stands in 64 KiB elsewhere,
which hypercalls cannot write to.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterable

from devices import OutsideMemory
from emu.assembler import HLT
from emu.bus import MsrBus
from emu.cpu.check import check
from emu.cpu.constants import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, MSR_EFER, MSR_STAR
from emu.cpu.cpu import Cpu
from emu.cpu.entry import enter
from emu.cpu.platform import Exit, Platform
from emu.cpu.registers import GENERAL, Registers
from emu.disassembly import describe
from emu.errors import EmuError, GuestError, GuestTimeout
from emu.loader import BootState
from emu.memory import GuestMemory
from emu.micro import (
    ENTRY,
    EVENT,
    EVENT_PORT,
    FIXED,
    FRAME,
    GDT,
    GDT_LIMIT,
    GP,
    IRETQ,
    KERNEL_CS,
    KERNEL_CS32,
    KERNEL_DS,
    KERNEL_STACK,
    PF,
    PML4,
    USER_CS,
    USER_CS32,
    USER_DS,
    Event,
)
from emu.micro_system import MEMORY_SIZE, RDMSR_HLT, SYSTEM, SYSTEM_SIZE, WRMSR_HLT, Physical, system_image
from emu.paging import AddressSpace
from hypercalls.builtin import BUILT_IN
from hypercalls.call import CallMemory
from hypercalls.dispatch import Dispatcher
from hypercalls.fake import FakeClock, FakeMachine
from hypercalls.registry import Hypercall, Registry

__all__ = ["CODE", "STACK", "GuestException", "MicroGuest"]

CODE, CODE_LIMIT = 0x10_0000, 0x10_0000     # where `run` puts code, and how much there may be
STACK = 0x40_0000                           # RSP at its start

VMCB, VMCB_END = 0xFD00_0000, 0xFD00_4000
ADDRESS_SPACE = 1 << 52

TIMEOUT_S = 10.0
SLICE_NS = 20_000_000                       # longest run without a look at Python's signals

NAMES = {
    0: "#DE", 1: "#DB", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS",
    13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM",
}


class GuestException(GuestError):
    """The guest took an exception or an interrupt.

    Attributes:
        vector: its number: 13 is #GP, 14 #PF.
        error_code: 0 for those that have none.
        rip: of the instruction: at it for a fault, behind it for a trap.
        cr2: for #PF the address.
    """

    def __init__(self, vector: int, error_code: int, rip: int, cr2: int) -> None:
        address = f", CR2 {cr2:#x}" if vector == PF else ""
        name = NAMES.get(vector, "an interrupt")
        super().__init__(f"{name} (vector {vector}), error code {error_code:#x}, at RIP {rip:#x}{address}")
        self.vector = vector
        self.error_code = error_code
        self.rip = rip
        self.cr2 = cr2


class _Machine(FakeMachine):
    """As its class, but the guest does not go on behind PV_EXIT."""

    cpu: Cpu

    def exit(self, status: int) -> None:
        super().exit(status)
        self.cpu.stop()


class MicroGuest:
    """A CPU, 64 MiB of RAM and hypercalls; no kernel and no devices. Time stands still in it (`FakeClock`).

    Virtual addresses are physical ones, and code of both rings may use all RAM. What `run` executes is put at `CODE`,
    with a stack that ends at `STACK`. Each run begins with interrupts off and the general registers zero; memory,
    MSRs and control registers stay as the last one left them. After a triple fault, and a time-out anywhere but in
    64-bit code of ring 0, the next run is on a CPU that has been switched on anew: only memory stays.

    Args:
        hypercalls: besides the built-in ones.

    Raises:
        ValueError: two hypercalls have one number.
        UnsupportedHost: the installed libunicorn is not a known one.

    Attributes:
        memory: RAM; zero at first, and all of it the test's.
        machine: what hypercalls asked of it; its `files` are for PV_READ and PV_WRITE.
        clock: what hypercalls are told of the time.
    """

    def __init__(self, hypercalls: Iterable[Hypercall] = ()) -> None:
        check()
        self._registry = Registry((*BUILT_IN, *hypercalls))
        self.memory = GuestMemory(MEMORY_SIZE)
        self._system = mmap.mmap(-1, SYSTEM_SIZE)
        self._physical = Physical(self.memory, self._system)
        self.machine = _Machine()
        self.clock = FakeClock()
        self._cpu: Cpu | None = None
        self._running = self._is_dead = False
        self._event: Event | None = None
        self._code = range(0)
        try:
            self._power_on()
        except BaseException:
            self.close()
            raise

    @property
    def registers(self) -> Registers:
        """The CPU's registers: RIP and RSP of the interrupted code if the last run ended by an exception.

        Raises:
            EmuError: the guest is closed.
        """
        return self._open_cpu().registers

    @property
    def console(self) -> bytes:
        """What was written to the console (PV_CONSOLE)."""
        return bytes(self.machine.console)

    @property
    def marks(self) -> list[int]:
        """Values of PV_MARK, in order."""
        return self.machine.marks

    @property
    def idles(self) -> int:
        """How often the guest wanted to sleep (PV_IDLE); it goes on at once."""
        return self.machine.idles

    @property
    def exit_status(self) -> int | None:
        """The status that the last run ended with by PV_EXIT; None if it did not."""
        return self.machine.exit_status

    def add(self, hypercall: Hypercall) -> None:
        """One more hypercall; the same one twice is the same as once.

        Raises:
            ValueError: its number belongs to another.
        """
        if all(hypercall is not known for known in self._registry):
            self._registry.add(hypercall)
            self._bind(hypercall)

    # -- running -----------------------------------------------------------------------------------------------

    def wrmsr(self, msr: int | Hypercall, value: int) -> None:
        """Execute WRMSR in ring 0.

        Args:
            msr: its number, or the hypercall that answers there.
            value: 64 bits.

        Raises:
            GuestException: the guest sees one; #GP if nobody answers, or the handler did not like it.
        """
        __tracebackhide__ = True
        self._enter(WRMSR_HLT, 0, TIMEOUT_S, {"rcx": _number(msr), "rax": value, "rdx": value >> 32})

    def rdmsr(self, msr: int | Hypercall) -> int:
        """Execute RDMSR in ring 0; its result. Arguments and errors as `wrmsr`."""
        __tracebackhide__ = True
        self._enter(RDMSR_HLT, 0, TIMEOUT_S, {"rcx": _number(msr)})
        return self.registers.rdx << 32 | self.registers.rax

    def run(self, code: bytes, *, ring: int = 0, timeout: float = TIMEOUT_S, **registers: int) -> None:
        """Execute 64-bit code until its end, HLT (in ring 3 too, where it would be #GP), or PV_EXIT.

        Args:
            code: instructions, at most 1 MiB; `emu.assembler` has some.
            ring: 0 or 3.
            timeout: host seconds.
            registers: general registers by name; the others are 0, and RSP `STACK`.

        Raises:
            GuestException: the guest takes an exception or an interrupt.
            GuestTimeout: it has not come to its end in time.
            GuestError: triple fault.
            EmuError: the guest is running (a handler called this), or closed.
        """
        __tracebackhide__ = True
        if len(code) >= CODE_LIMIT:
            raise ValueError(f"{len(code)} bytes of code are too many: there is room for {CODE_LIMIT - 1}")
        if ring not in (0, 3):
            raise ValueError(f"ring {ring}: code runs in ring 0 or 3")
        self._check_idle()
        self.memory.write(CODE, code + HLT)
        self._enter(range(CODE, CODE + len(code) + 1), ring, timeout, registers)

    def _open_cpu(self) -> Cpu:
        if self._cpu is None:
            raise EmuError("the guest is closed")
        return self._cpu

    def _check_idle(self) -> None:
        self._open_cpu()
        if self._running:
            raise EmuError("the guest is running; a handler cannot have it run something else")

    def _enter(self, code: range, ring: int, timeout: float, values: dict[str, int]) -> None:
        """Run code that is in memory, with these general registers."""
        __tracebackhide__ = True            # pytest shows the line of the test
        self._check_idle()
        if self._is_dead or self.registers.cpl or self.registers.code_bits != 64:
            self._power_on()
        registers, general = self.registers, {"rsp": STACK} | values
        for index, name in enumerate(GENERAL):
            registers.general[index] = general.pop(name, 0) & (1 << 64) - 1
        if general:
            raise TypeError(f"no general register is called {', '.join(general)}")
        cs, ss = (USER_CS, USER_DS) if ring else (KERNEL_CS, KERNEL_DS)
        struct.pack_into("<5Q", self._system, FRAME, code.start, cs, FIXED, registers.rsp, ss)
        registers.rsp, registers.rip = SYSTEM + FRAME, SYSTEM + IRETQ
        self._code, self._event, self.machine.exit_status = code, None, None
        self._running = True
        try:
            exit_ = self._go(timeout)
        finally:
            self._running = False
        self._conclude(exit_)

    def _go(self, timeout: float) -> Exit:
        """Run until the guest ends somehow."""
        __tracebackhide__ = True
        cpu = self._open_cpu()
        end_ns = time.monotonic_ns() + int(timeout * 1e9)
        while (now := time.monotonic_ns()) < end_ns:
            exit_ = cpu.run(min(end_ns, now + SLICE_NS))
            if exit_ is not Exit.KICK or self.machine.exit_status is not None:
                return exit_
        raise GuestTimeout(f"the guest has not come to an end in {timeout:g} s; it is at RIP {cpu.registers.rip:#x}")

    def _conclude(self, exit_: Exit) -> None:
        """Raise what the guest did to itself."""
        __tracebackhide__ = True
        cpu, event = self._open_cpu(), self._event
        registers = cpu.registers
        if exit_ in (Exit.SHUTDOWN, Exit.ERROR):
            self._is_dead = True
            what = "triple fault" if exit_ is Exit.SHUTDOWN else cpu.error
            raise GuestError(f"the guest is dead: {what} at RIP {registers.rip:#x}")
        if event is None:
            return
        registers.rip, registers.rsp = event.rip, event.rsp
        if event.vector == GP and not event.error_code and self._starts_with_hlt(event.rip):    # in ring 3
            registers.rip += len(HLT)
            return
        raise GuestException(event.vector, event.error_code, event.rip, event.cr2)

    def _starts_with_hlt(self, address: int) -> bool:
        try:
            return self._virtual.read(address, len(HLT)) == HLT
        except OutsideMemory:
            return False

    def describe(self) -> str:
        """Where the last run ended: the registers, and the code around RIP."""
        registers, event = self.registers, self._event
        state, bits = registers.dump(), registers.code_bits
        if event is not None:           # the registers are those of the stub that it ended in
            state |= {"rflags": event.rflags, "cs": event.cs, "ss": event.ss}
            bits = 32 if event.cs in (KERNEL_CS32, USER_CS32) else 64
        code = self._code if self._code.start <= state["rip"] <= self._code.stop else None
        return describe(state, self._virtual.read, state["rip"], bits, code)

    # -- the board ---------------------------------------------------------------------------------------------

    def _power_on(self) -> None:
        """A new CPU and its board; memory stays."""
        if self._cpu is not None:
            self._cpu.close()
        self._is_dead = False
        image = system_image()
        self._system[: len(image)] = image
        self._msrs = MsrBus()
        self._cpu = cpu = self.machine.cpu = Cpu(self._platform(), VMCB)
        for start, block in (*self.memory.blocks(), (SYSTEM, self._system)):
            cpu.map_ram(start, block)
        self.memory.drop_code = cpu.drop_code
        cpu.open_trap_door()
        for start, end in ((MEMORY_SIZE, SYSTEM), (SYSTEM + SYSTEM_SIZE, VMCB), (VMCB_END, ADDRESS_SPACE)):
            cpu.map_mmio(start, end - start, _open_bus, lambda address, size, value: None)
        self._virtual = AddressSpace(self._physical, cpu.registers)
        memory = CallMemory(self.memory, self._virtual)
        self._dispatcher = Dispatcher(memory, self.clock, self.machine, cpu.registers.dump)
        for hypercall in self._registry:
            self._bind(hypercall)
        state = BootState(SYSTEM + ENTRY, 0, SYSTEM + KERNEL_STACK, SYSTEM + PML4, SYSTEM + GDT, GDT_LIMIT)
        enter(cpu, state)
        cpu.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE)
        cpu.write_msr(MSR_STAR, USER_CS32 << 48 | KERNEL_CS << 32)
        exit_ = self._go(TIMEOUT_S)
        assert exit_ is Exit.HALT, cpu.error

    def _platform(self) -> Platform:
        return Platform(
            port_in=_open_bus,
            port_out=self._port_out,
            rdmsr=self._msrs.read,
            wrmsr=self._msrs.write,
            acknowledge=lambda: None,
            read_cr8=lambda: 0,
            write_cr8=lambda priority: None,
        )

    def _bind(self, hypercall: Hypercall) -> None:
        self._msrs.add(hypercall.name, hypercall.number, *self._dispatcher.bind(hypercall))

    def _port_out(self, port: int, _size: int, _value: int) -> None:
        """A stub says what the CPU pushed; from elsewhere there is nobody to take it."""
        registers = self.registers
        pushed = registers.rsp - SYSTEM
        if port == EVENT_PORT and 0 <= pushed <= SYSTEM_SIZE - EVENT.size:
            vector, error_code, rip, cs, rflags, rsp, ss = EVENT.unpack_from(self._system, pushed)
            self._event = Event(vector, error_code, rip, cs, rflags, rsp, ss, registers.cr(2))

    def close(self) -> None:
        """Free the CPU and memory; once more does nothing.

        Raises:
            EmuError: it is running.
        """
        if self._cpu is not None:
            self._cpu.close()
            self._cpu = None
        if not self._system.closed:
            self._system.close()
            self.memory.close()

    def __enter__(self) -> MicroGuest:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and self._cpu is not None:
            error.add_note(self.describe())
        self.close()


def _number(msr: int | Hypercall) -> int:
    return msr.number if isinstance(msr, Hypercall) else msr


def _open_bus(_address: int, size: int) -> int:
    return (1 << 8 * size) - 1
