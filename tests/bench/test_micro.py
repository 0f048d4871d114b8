"""What the micro-benchmarks do is what they say that they do."""

from __future__ import annotations

from pathlib import Path

import pytest
from capstone import CS_ARCH_X86, CS_MODE_64, Cs

from bench.common import Report
from bench.exits import EXITS, HALT, Exits
from bench.growth import measure
from bench.growth_machines import GROWTH, Machines
from bench.micro.__main__ import add_rows
from bench.micro.access import CLOSE, MOVES, PLACES, SIDES, UNROLLED, GuestAccess, access, places_of
from emu.errors import EmuError
from emu.micro import ALIAS, DATA

POINTERS = {1: "byte", 2: "word", 4: "dword", 8: "qword"}
REGISTERS = {1: "al", 2: "ax", 4: "eax", 8: "rax"}


def disassembled(code: bytes) -> list[str]:
    decoder = Cs(CS_ARCH_X86, CS_MODE_64)
    return [f"{line.mnemonic} {line.op_str}".strip() for line in decoder.disasm(code, 0)]


@pytest.mark.parametrize(("kind", "size"), MOVES)
def test_the_guests_moves_are_of_their_size(kind: str, size: int) -> None:
    place, register = f"{POINTERS[size]} ptr [rdi]", REGISTERS[size]
    operands = f"{register}, {place}" if kind == "read" else f"{place}, {register}"
    assert disassembled(bytes.fromhex(MOVES[kind, size])) == [f"mov {operands}"]


def test_the_guests_loop() -> None:
    assert disassembled(bytes.fromhex(CLOSE.format(back="f8ffffff"))) == ["dec ecx", "jne 0", "hlt"]
    guest = GuestAccess("write", 8, "aligned")
    try:
        guest(UNROLLED * 5)
        registers = guest._guest.registers
        assert (registers.rcx, registers.rdi) == (0, ALIAS + DATA)
        assert disassembled(guest._program)[:UNROLLED] == ["mov qword ptr [rdi], rax"] * UNROLLED
        back = disassembled(guest._program)[-2]
        assert back == "jne 0"
    finally:
        guest.close()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_places(size: int) -> None:
    first, last = ({name: at(size) + more for name, at in PLACES.items()} for more in (0, size - 1))
    assert first["aligned"] % size == 0 and first["unaligned"] % size != 0
    assert first["unaligned"] // 64 == last["unaligned"] // 64
    assert first["across lines"] // 64 != last["across lines"] // 64
    assert first["across lines"] // 4096 == last["across lines"] // 4096
    assert first["across pages"] // 4096 != last["across pages"] // 4096


@pytest.mark.parametrize("side", SIDES)
def test_every_side_can_do_every_access(side: str) -> None:
    for kind, size in MOVES:
        for place in places_of(size):
            with access(side, kind, size, place) as do:
                do(2)


@pytest.mark.parametrize("name", [*EXITS, HALT])
def test_every_exit_is_left_as_often_as_asked(name: str) -> None:
    with Exits(name) as leave:
        leave(3)
        leave(1)


def test_an_exit_that_goes_wrong_is_noticed() -> None:
    with Exits("rdmsr") as leave:
        leave._guest.msr_bus._msrs.clear()
        with pytest.raises(EmuError, match="3 turns too soon"):
            leave(3)


@pytest.mark.parametrize("grows", GROWTH)
def test_machines_that_grow(tmp_path: Path, grows: str) -> None:
    machines = Machines(tmp_path, grows, GROWTH[grows][1])
    try:
        machines.save()
        machines.restore()
        for kind in "hypercall", "device_load":
            machines.exits(kind, 3)()
    finally:
        machines.close()


def test_outliers_and_variation_are_told() -> None:
    def benchmark(key: str, rounds: list[float]) -> dict[str, object]:
        return {"extra_info": {"key": key, "count": 10}, "stats": {"data": rounds}}

    report = Report("micro", "")
    add_rows(report, [
        benchmark("steady_ns", [1e-6] * 99 + [9e-6]),
        benchmark("wild_ns", [1e-6, 3e-6] * 50),
        benchmark("far_ns", [1e-6, 1.01e-6] * 45 + [2e-6] * 10),
    ])  # fmt: skip
    assert report.figures["steady_ns"] == 100.0
    assert report.figures["wild_ns_variation"] == pytest.approx(0.5, abs=0.01)
    remarks = {key: remark for key, _, remark in report._rows}
    assert "outliers" not in remarks["steady_ns"]               # one of a hundred
    assert "10% outliers" in remarks["far_ns"]


def test_growth_is_the_largest_over_the_smallest() -> None:
    report = Report("growth", "")
    by_size = {0: {"boot_ms": lambda: 2.0}, 4: {"boot_ms": lambda: 3.0}, 24: {"boot_ms": lambda: 5.0}}
    measure(report, "disks", by_size, 3)
    assert report.figures == {
        "boot_ms_disks_0": 2.0, "boot_ms_disks_4": 3.0, "boot_ms_disks_24": 5.0, "boot_by_disks": 2.5,
    }  # fmt: skip
