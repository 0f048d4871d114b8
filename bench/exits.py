"""Every way out of the guest, over and over: what the micro-benchmarks time and the guard counts.

Those of `emu.selftest.costs`, and a load from a device, an RDMSR, and a HLT, with which a run of the CPU ends.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from devices.uart16550a import COM1
from emu.bus import MmioBus
from emu.cpu.platform import Exit
from emu.errors import EmuError
from emu.micro import MMIO, MMIO_PHYSICAL
from emu.selftest.check import Listing
from emu.selftest.costs import COSTS, Guest, Scenario, program_of
from hypercalls.numbers import FIRST_USER

__all__ = ["EXITS", "HALT", "Exits"]

TIMEOUT_S = 600.0                       # under an instrument a guest may take a hundred times as long
PAGE = 0x1000
MSR = FIRST_USER + 1

LOAD = Listing("""
  000  8b 04 25 <MMIO:4>  mov eax, dword ptr [MMIO]
""", MMIO=MMIO)
STORE = Listing("""
  000  89 04 25 <MMIO:4>  mov dword ptr [MMIO], eax
""", MMIO=MMIO)
MSR_NUMBER = Listing("""
  000  b9 <MSR:4>  mov ecx, MSR
""", MSR=MSR)
RDMSR = Listing("""
  000  0f 32  rdmsr
""")
LSR = Listing("""
  000  66 ba <LSR:2>  mov dx, LSR
""", LSR=COM1 + 5)
IN_DX = Listing("""
  000  ec  in al, dx
""")
HALTS = Listing("""
  000  f4     hlt
  001  eb fd  jmp 0
""")

HALT = "hlt"
EXITS = COSTS | {
    "uart status": Scenario("line status of the serial port, by bus and UART", IN_DX, LSR, prepare=COSTS[
        "uart byte"
    ].prepare),
    "mmio read": Scenario("a load from a device, by the bus", LOAD),
    "mmio write": Scenario("a store to a device, by the bus", STORE),
    "rdmsr": Scenario("an RDMSR, by the bus", RDMSR, MSR_NUMBER),
}
"""What an exit can be, by name; besides there is `HALT`."""


class _Register:
    """A device with one register of a page (devices.MmioDevice)."""

    def __init__(self) -> None:
        self._value = 0

    def read(self, _offset: int, _size: int) -> int:
        return self._value

    def write(self, _offset: int, _size: int, value: int) -> None:
        self._value = value


class _Guest(Guest):
    """As its class, with a device in memory and an MSR to read."""

    def __post_init__(self) -> None:
        bus = MmioBus(_Register())
        bus.add("register", MMIO_PHYSICAL, PAGE, _Register())
        self.mmio_read, self.mmio_write = bus.read, bus.write      # type: ignore[method-assign]
        super().__post_init__()
        self.msr_bus.add("register", MSR, lambda: 0)


class Exits:
    """A guest that leaves its code in one way.

    Args:
        name: one of `EXITS`, or `HALT`.
    """

    def __init__(self, name: str) -> None:
        self._guest = _Guest()
        self._halts = name == HALT
        if self._halts:
            self._guest.put(HALTS.code)
        else:
            self._scenario = EXITS[name]
            self._scenario.prepare(self._guest)
            self._program = program_of(self._scenario)

    def __call__(self, turns: int) -> None:
        """Leave so many times.

        Raises:
            EmuError: the guest does not do what it should.
        """
        guest = self._guest
        if self._halts:
            for _ in range(turns):
                self._go()
        else:
            guest.put(self._program, self._scenario.at, r15=turns, rax=0)
            self._go()
            if left := guest.registers.r15:
                raise EmuError(f"the guest halts {left} turns too soon")

    def _go(self) -> None:
        if self._guest.go(TIMEOUT_S) is not Exit.HALT:
            raise EmuError("the guest does not halt")

    def close(self) -> None:
        """Free the CPU."""
        self._guest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()
