"""Interception of system calls as a machine has it: where handlers come from, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import emu
from emu import micro
from emu.cpu.constants import EFER_LMA, EFER_LME, EFER_SCE, MSR_EFER
from emu.errors import EmuError
from emu.fittings import Fittings
from emu.loader import BootState
from emu.machine import Machine
from emu.memory import MIB, GuestMemory
from emu.run_loop import StopReason
from emu.stats import Kind
from hypercalls.fake import FakeCalls
from hypercalls.loading import load_objects
from hypercalls.syscalls import PASS, Syscall, SyscallCall

NUMBER = 39
CALLS = b"\xb8\x27\0\0\0\x0f\x05\x0f\x05\xf4"       # mov eax, 39; syscall; syscall; hlt, which is #GP: it stops
RESET = b"\xb0\xfe\xe6\x64\xeb\xfe"                 # mov al, 0xfe; out 0x64, al; jmp $
STOP = b"\xfa\xf4"                                  # cli; hlt

seen: list[tuple[int, int]] = []


def handler(call: SyscallCall) -> int:
    seen.append((call.root, call.clock.now_ns()))
    return NUMBER


MINE = Syscall(NUMBER, "mine", handler)


@pytest.fixture
def machine() -> Iterator[Machine]:
    seen.clear()
    with Machine(64 * MIB, Fittings(syscalls=(MINE,))) as made:
        yield made


def test_calls_are_answered_and_counted(machine: Machine) -> None:
    machine.start(micro.install(machine.memory, CALLS, ring=3))
    machine.board.cpu.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_SCE)
    assert machine.run_to_end(5) is StopReason.HALTED
    assert [root for root, _ in seen] == [micro.PML4] * 2
    assert 0 <= seen[0][1] <= seen[1][1] <= machine.clock.now_ns()
    stats = machine.stats()
    assert stats.count(Kind.SYSCALL, "mine") == 2
    assert stats.count(Kind.NATIVE, "syscall intercepted") == 2
    assert stats.count(Kind.NATIVE, "syscall") == 0


def test_a_machine_that_was_reset_still_answers(machine: Machine) -> None:
    programs = [STOP, RESET]

    def load(memory: GuestMemory) -> BootState:
        return micro.install(memory, programs.pop())

    machine.boot(load)
    first = machine.board
    assert machine.run_to_end(5) is StopReason.HALTED
    assert machine.board is not first
    context = machine.board.cpu.context
    assert context.intercepting and context.intercepted_numbers[0] == 1 << NUMBER


def test_a_machine_without_handlers_looks_at_no_number() -> None:
    with Machine(64 * MIB) as machine:
        assert not machine.board.cpu.context.intercepting


def test_two_handlers_for_one_number_are_refused_in_one_line() -> None:
    with pytest.raises(EmuError, match=r"^theirs: system call 39 belongs to mine$"):
        Machine(64 * MIB, Fittings(syscalls=(MINE, Syscall(NUMBER, "theirs", lambda call: PASS))))


def test_the_document_s_handlers_do_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[1] / "docs" / "syscalls.md").read_text()
    file = tmp_path / "calls.py"
    file.write_text(document.split("```python\n")[1].split("```")[0])
    getcpu, log_writes = load_objects(str(file), Syscall)
    fakes = FakeCalls()
    fakes.memory.write(0x1000, b"\xff" * 8)
    assert fakes.syscall(getcpu, 0x1000, 0x1004) == 0
    assert fakes.memory.read(0x1000, 8) == bytes(8)
    assert fakes.syscall(log_writes, 2, 0x1000, 3) is fakes.syscall(log_writes, 1, 0x1000, 3) is PASS
    assert capsys.readouterr().out.endswith(r"b'\x00\x00\x00'" + "\n")


def test_names_that_lead_nowhere_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.py", tmp_path / "broken.py"
    empty.write_text("x = 1\n")
    broken.write_text("from hypercalls.syscalls import syscall\nsyscall(512, 'mine')\n")
    for name, message in (
        ("nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        (str(tmp_path / "missing.py"), "there is no such file"),
        (str(empty), "has no syscall at its top level"),
        (str(broken), "mine: system calls are 0 to 511, not 512"),
    ):
        with pytest.raises(EmuError) as raised:
            emu.boot(kernel=tmp_path / "no kernel", syscalls=[name])
        assert message in str(raised.value) and "\n" not in str(raised.value)
