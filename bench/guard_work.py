"""What the guard counts: the exits of a guest, device models without a CPU, a machine's start, the imports.

    python -m bench.guard_work

It is run under an instrument (bench/callgrind.py); by itself it says which part is where, and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from bench.callgrind import Parts

__all__ = ["REFERENCE"]

REFERENCE = "reference"
TURNS = 400
MACHINES = 3
MEMORY_ADDRESS = 0x1_0003
LAPIC_EOI = 0xFEE0_00B0
CONFIG_ADDRESS, CONFIG_DATA, ENABLED = 0xCF8, 0xCFC, 1 << 31
PAGE = 4096


def imports() -> None:
    """What `emu exec` is made of."""
    import emu.cli.exec
    import emu.snapshot.machine
    import emu.snapshot.ready  # noqa: F401


class _Reference:
    """A few lines of the kind that handlers are made of, and none of the project's."""

    def __init__(self) -> None:
        self._count = 0
        self._table = {number: (number, self._add) for number in range(64)}
        self._view = memoryview(bytearray(64))

    def _add(self, value: int) -> int:
        self._count += value & 0xFF
        return self._count

    def call(self) -> bytes:
        """One of them."""
        entry = self._table.get(13)
        if entry is not None:
            entry[1](entry[0])
        return bytes(self._view[8:16])


def reference(parts: Parts) -> None:
    """What this interpreter takes for a little Python: ratios to that hold elsewhere, more or less."""
    parts.repeated(REFERENCE, _times(_Reference().call), TURNS)


def exits(parts: Parts) -> None:
    """The ways out of a guest, instructions of the guest and of libunicorn included."""
    from bench.exits import EXITS, HALT, Exits

    for name in (*EXITS, HALT):
        with Exits(name) as guest:
            parts.repeated(f"exit_{name.replace(' ', '_')}", guest, TURNS)


def memory(parts: Parts) -> None:
    """Guest memory as devices and handlers see it."""
    from emu.memory import MIB, GuestMemory
    from hypercalls.call import ACCESS_BUDGET, CallMemory

    with closing(GuestMemory(64 * MIB)) as ram:
        calls = CallMemory(ram, ram)
        for size in 4, 8:
            data = bytes(size)
            parts.repeated(f"memory_read_{size}", _times(partial(ram.read, MEMORY_ADDRESS, size)), TURNS)
            parts.repeated(f"memory_write_{size}", _times(partial(ram.write, MEMORY_ADDRESS, data)), TURNS)
        calls.left = ACCESS_BUDGET
        parts.repeated("call_memory_read_8", _times(partial(calls.read, MEMORY_ADDRESS, 8)), TURNS)


def devices(parts: Parts) -> None:
    """Device models as the CPU calls them, with no CPU that runs."""
    from devices.uart16550a import COM1
    from emu.machine import Machine
    from emu.memory import MIB

    with Machine(64 * MIB) as machine:
        ports, mmio = machine.board.ports, machine.board.mmio
        parts.repeated("device_serial_byte", _times(partial(ports.write, COM1, 1, 0x41)), TURNS)
        parts.repeated("device_lapic_eoi", _times(partial(mmio.write, LAPIC_EOI, 4, 0)), TURNS)

        def configuration() -> None:
            ports.write(CONFIG_ADDRESS, 4, ENABLED)
            ports.read(CONFIG_DATA, 4)

        parts.repeated("device_pci_configuration", _times(configuration), TURNS)
    with _page() as file:
        from bench.ninep_host import Reader

        with closing(Reader(file)) as reader:
            parts.repeated("device_p9_read", reader.read_again, TURNS)


def machines(parts: Parts) -> None:
    """A machine from nothing, and its end."""
    from emu.machine import Machine
    from emu.memory import MIB

    def make() -> None:
        Machine(64 * MIB).close()

    parts.repeated("machine", _times(make), MACHINES)


def _times(do: Callable[[], object]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            do()

    return run


@contextmanager
def _page() -> Iterator[Path]:
    """A file of a page."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "page"
        file.write_bytes(bytes(PAGE))
        yield file


def main() -> None:
    """Do everything, imports first."""
    parts = Parts()
    parts.once("imports", imports)
    for work in reference, exits, memory, devices, machines:
        work(parts)
    parts.report()


if __name__ == "__main__":
    main()
