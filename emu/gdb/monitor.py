"""What gdb's command `monitor` can ask of the machine, for what gdb itself has no words."""

from __future__ import annotations

from collections.abc import Callable

from devices import OutsideMemory
from emu.gdb.debugger import Debugger
from emu.machine import Machine

__all__ = ["Monitor"]

LINE = 16                               # bytes
LONGEST = 1024

HELP = """\
help                          this
mode                          ring, kind of code, halted or not, and where the page tables are
translate ADDRESS             guest-physical address of a virtual one
physical ADDRESS [LENGTH]     guest-physical memory in hexadecimal
stats                         what made the guest leave its code
"""


class Monitor:
    """Answers in text.

    Args:
        machine: asked.
        debugger: of the machine.
    """

    def __init__(self, machine: Machine, debugger: Debugger) -> None:
        self._machine, self._debugger = machine, debugger
        self._words: dict[str, Callable[..., str]] = {
            "help": lambda: HELP, "mode": self._mode, "translate": self._translate, "physical": self._physical,
            "stats": lambda: self._machine.stats().table() + "\n",
        }

    def answer(self, text: str) -> str:
        """Lines for gdb's user."""
        name, *arguments = text.split() or ["help"]
        if name not in self._words:
            return f"{name[:40]!r} is not known; there are: {', '.join(self._words)}\n"
        try:
            return self._words[name](*arguments)
        except OutsideMemory as error:
            return f"{error}\n"
        except (TypeError, ValueError):
            return f"that is not how to ask for {name}:\n{HELP}"

    def _mode(self) -> str:
        registers = self._machine.board.cpu.registers
        halted = ", halted" if self._machine.board.cpu.halted else ""
        return f"ring {registers.cpl}, {registers.code_bits}-bit code{halted}, CR3 {registers.cr(3):#x}\n"

    def _translate(self, address: str) -> str:
        return f"{self._debugger.memory.translate(int(address, 0)):#x}\n"

    def _physical(self, address: str, length: str = "64") -> str:
        start, size = int(address, 0), min(int(length, 0), LONGEST)
        data = self._machine.memory.read(start, size)
        return "".join(f"{start + at:#x}: {data[at : at + LINE].hex(' ')}\n" for at in range(0, size, LINE))
