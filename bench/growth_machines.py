"""Machines that are quickly made, with more and more of something: a kernel of a few instructions, no Linux."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import emu
from bench.hypercall import WRMSR, program
from devices.pci_function import COMMAND
from emu import micro
from emu.errors import EmuError
from emu.fittings import DiskImage, Fittings, Share
from emu.handlers import handlers
from emu.machine import Machine
from emu.memory import MIB
from emu.run_loop import StopReason
from hypercalls.numbers import FIRST_USER
from hypercalls.registry import Hypercall
from tests.process.small_guest import WAITING, small_kernel

__all__ = ["GROWTH", "Machines"]

GROWTH: dict[str, tuple[int, ...]] = {
    "memory_mib": (64, 128, 256, 512, 1024),
    "exports": (0, 1, 4, 12, 24),
    "disks": (0, 1, 4, 12, 24),
    "hypercalls": (1, 10, 50, 200),
}
"""What grows, besides clones, and its sizes."""

DISK_BYTES = 1 * MIB
TIMEOUT_S = 60.0
MEMORY_AND_BUS_MASTER = 6               # PCI command register
LOAD = b"\x8b\x04\x25"                  # mov eax, [imm32]
HYPERCALLS = '''from hypercalls import Call, hypercall

def _empty(_call: Call) -> None:
    """Do nothing."""

globals().update({{f"pv_{{n}}": hypercall({first} + n, f"PV_{{n}}")(_empty) for n in range({count})}})
'''


class Machines:
    """Machines of one kind.

    Args:
        directory: an empty one, for the files that they need.
        grows: of `GROWTH`.
        size: how much of it they have.
    """

    def __init__(self, directory: Path, grows: str, size: int) -> None:
        count = {name: size if name == grows else 0 for name in GROWTH}
        self._memory = max(count["memory_mib"], 64) * MIB
        self._kernel = small_kernel(directory, WAITING)
        self._shares: dict[str, Share] = {}
        self._disks: list[DiskImage] = []
        for number in range(count["exports"]):
            export = directory / f"export{number}"
            export.mkdir()
            self._shares[export.name] = Share(export, read_only=True)
        for number in range(count["disks"]):
            image = directory / f"disk{number}"
            image.write_bytes(bytes(DISK_BYTES))
            self._disks.append(DiskImage(image, read_only=True))
        self._handlers = directory / "handlers.py"
        self._handlers.write_text(HYPERCALLS.format(first=FIRST_USER, count=max(count["hypercalls"], 1)))
        self._snapshot = directory / "snapshot"
        self._stack = ExitStack()

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "kernel": self._kernel, "memory": self._memory, "shares": self._shares, "disks": self._disks,
            "hypercalls": [str(self._handlers)],
        }  # fmt: skip

    def boot(self) -> Machine:
        """From nothing until the guest has said its first word."""
        machine = self._stack.enter_context(emu.boot(**self._options))
        machine.console.expect(">", timeout=TIMEOUT_S)
        return machine

    def save(self) -> None:
        """Make the snapshot that `restore` needs."""
        self.boot().snapshot(self._snapshot)
        self.close()

    def restore(self) -> None:
        """From a snapshot until the machine can be driven."""
        self._stack.enter_context(emu.restore(self._snapshot, hypercalls=[str(self._handlers)]))

    def template(self) -> emu.MachineProcess:
        """One in a process of its own, to be forked."""
        return emu.spawn(**self._options)

    def fork(self, template: emu.MachineProcess) -> None:
        """From the call until the clone is in hand."""
        self._stack.enter_context(template.fork())

    def close(self) -> None:
        """End the machines that were made, and not yet ended."""
        self._stack.close()

    def exits(self, kind: str, count: int) -> Callable[[], None]:
        """A new machine whose guest leaves its code so many times when this is called, and halts.

        Args:
            kind: "hypercall", or "device_load", from the registers of the last virtio device.
            count: how often.
        """
        shares = self._shares or {"data": Share(self._kernel.parent, read_only=True)}
        fittings = Fittings(shares, tuple(self._disks), hypercalls=tuple(handlers([str(self._handlers)], Hypercall)))
        machine = self._stack.enter_context(Machine(self._memory, fittings))
        for each in machine.board.virtio:
            each.config_write(COMMAND, 2, MEMORY_AND_BUS_MASTER)
        last = machine.board.virtio[-1]
        place = micro.DEVICES + last.bar_address(last.bars[0]) - micro.DEVICES_PHYSICAL[0]
        code = WRMSR if kind == "hypercall" else LOAD + struct.pack("<I", place)
        machine.start(micro.install(machine.memory, program(code, count, ecx=FIRST_USER)))

        def run() -> None:
            if machine.run_to_end(TIMEOUT_S) is not StopReason.HALTED:
                raise EmuError(f"the guest does not halt: {machine.stop_detail}")

        return run
