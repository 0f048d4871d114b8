"""A state that no CPU can be in is refused; any other is taken, however absurd, and hurts nobody."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu.cpu.platform import Exit
from emu.cpu.state import CpuState
from emu.errors import EmuError
from emu.micro import MicroGuest
from tests.cpu.moving import Movable
from tests.cpu.programs import MARK

PATIENCE_S = 20.0                       # a state takes 5 ms; a host that hangs takes for ever

Change = Callable[[CpuState], CpuState]

IMPOSSIBLE: dict[str, Change] = {
    "RIP of 65 bits": lambda s: replace(s, rip=1 << 64),
    "a negative register": lambda s: replace(s, general=(-1, *s.general[1:])),
    "too few registers": lambda s: replace(s, general=s.general[1:]),
    "reserved RFLAGS": lambda s: replace(s, rflags=1 << 22),
    "SVME": lambda s: replace(s, efer=s.efer | 1 << 12),
    "SMAP": lambda s: replace(s, cr4=s.cr4 | 1 << 21),
    "CR0 of 33 bits": lambda s: replace(s, cr0=1 << 32),
    "DR7 of 33 bits": lambda s: replace(s, dr=(*s.dr[:5], 1 << 32)),
    "seven segments": lambda s: replace(s, segments=s.segments[1:]),
    "a limit of 33 bits": lambda s: replace(s, segments=(replace(s.segments[0], limit=1 << 32), *s.segments[1:])),
    "a limit of 33 bits of the IDT": lambda s: replace(s, idtr=(0, 1 << 32)),
    "an unknown MSR": lambda s: replace(s, msrs=(*s.msrs, (0xC001_1234, 0))),
    "a missing MSR": lambda s: replace(s, msrs=s.msrs[:-1]),
    "an MSR of 65 bits": lambda s: replace(s, msrs=(*s.msrs[:-1], (s.msrs[-1][0], 1 << 64))),
    "an x87 register of 81 bits": lambda s: replace(s, fpu=replace(s.fpu, registers=(1 << 80, *s.fpu.registers[1:]))),
    "a control word of 17 bits": lambda s: replace(s, fpu=replace(s.fpu, control=1 << 16)),
    "nine tags": lambda s: replace(s, fpu=replace(s.fpu, tags=1 << 8)),
    "MXCSR of 33 bits": lambda s: replace(s, mxcsr=1 << 32),
    "an XMM register of 129 bits": lambda s: replace(s, xmm=(*s.xmm[:-1], 1 << 128)),
    "17 XMM registers": lambda s: replace(s, xmm=(*s.xmm, 0)),
    "a negative time": lambda s: replace(s, tsc=-1),
}


@pytest.fixture(scope="module")
def guest() -> Iterator[MicroGuest]:
    with MicroGuest() as shared:
        yield shared


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_state_is_refused_and_changes_nothing(guest: MicroGuest, change: Change) -> None:
    before = guest.cpu.save()
    other = replace(before, cr2=before.cr2 ^ 1, mxcsr=before.mxcsr ^ 0x2000, dr=(1, *before.dr[1:]))
    with pytest.raises(ValueError, match=r"\A[^\n]{10,100}\Z"):
        guest.cpu.restore(change(other))
    assert replace(guest.cpu.save(), tsc=0) == replace(before, tsc=0)


class Curious(Movable):
    """Saves and restores itself while it runs."""

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT."""
        if port == MARK:
            for what in self.cpu.save, lambda: self.cpu.restore(self.before):
                with pytest.raises(EmuError, match="running"):
                    what()
                self.marks += 1
        super().port_out(port, size, value)

    before: CpuState


def test_a_running_cpu_is_neither_saved_nor_restored() -> None:
    with Curious() as guest:
        guest.before = guest.cpu.save()
        assert guest.run(bytes((0xE6, MARK, 0xEB, 0))) is Exit.KICK
        assert guest.marks == 3


def test_a_closed_cpu_is_neither_saved_nor_restored() -> None:
    with MicroGuest() as guest:
        state = guest.cpu.save()
    for what in guest.cpu.save, lambda: guest.cpu.restore(state):
        with pytest.raises(EmuError, match="closed"):
            what()


def test_a_cpu_that_has_shut_down_is_not_saved_but_can_be_restored() -> None:
    with MicroGuest() as guest:
        good = guest.cpu.save()
        guest.cpu.restore(replace(good, idtr=(0, 0)))
        assert guest.run(b"\xcc") is Exit.SHUTDOWN
        with pytest.raises(EmuError, match="shut down"):
            guest.cpu.save()
        guest.cpu.restore(good)
        assert guest.run(b"\xf4") is Exit.HALT
        guest.cpu.save()


class Worker:
    """A process that makes CPUs of absurd states; when one has killed it, that is said, and another takes its place."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.cpu.hostile_state"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def outcome(self, seed: int) -> str:
        """What came of one of them."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{seed}\n")
        answered = bool(select.select([process.stdout], [], [], PATIENCE_S)[0])
        outcome = process.stdout.readline().rstrip("\n") if answered else ""
        if not outcome:
            what = f"died of {process.wait()}" if answered else "hangs"
            self.close()
            self._start()
            pytest.fail(f"the host process {what}; python -m tests.cpu.hostile_state does it again with {seed}")
        return outcome

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    process = Worker()
    yield process
    process.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**64))
def test_absurd_states_hurt_nobody(worker: Worker, seed: int) -> None:
    assert worker.outcome(seed).endswith("; then fine")
