"""What it costs when there is more of something: memory, devices, exports, hypercalls, clones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.micro.conftest import Grown
from bench.micro.small_machines import GROWTH, Machines

EXITS = 5_000
CLONES = 0, 5, 20, 60
SETTLE_S = 0.2                          # until a fresh process has nothing left to do
CASES = [(grows, size) for grows, sizes in GROWTH.items() for size in sizes]
BOOTS = FORKS = 20
LOOPS = 15


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest, is_quick: bool) -> tuple[str, int]:
    """What grows, and how large it is."""
    grows, size = request.param
    if is_quick and size not in (GROWTH[grows][0], GROWTH[grows][-1]):
        pytest.skip("of what grows, only the ends")
    return grows, size


@pytest.fixture
def machines(case: tuple[str, int], tmp_path: Path) -> Iterator[Machines]:
    """Machines with so much of it."""
    made = Machines(tmp_path, *case)
    yield made
    made.close()


def test_boot(grown: Grown, machines: Machines, case: tuple[str, int]) -> None:
    """From nothing to the guest's first word."""
    grown("boot_ms", *case, _after(machines.close, machines.boot), BOOTS)


def test_restore(grown: Grown, machines: Machines, case: tuple[str, int]) -> None:
    """From a snapshot."""
    machines.save()
    grown("restore_ms", *case, _after(machines.close, machines.restore), BOOTS)


def test_fork(grown: Grown, machines: Machines, case: tuple[str, int]) -> None:
    """A clone of a machine, until its user has it."""
    with machines.template() as template:
        time.sleep(SETTLE_S)
        grown("fork_ms", *case, _after(machines.close, lambda: machines.fork(template)), FORKS)


@pytest.mark.parametrize("kind", ["hypercall", "device_load"])
@pytest.mark.benchmark(timer=time.process_time)
def test_exits(grown: Grown, machines: Machines, case: tuple[str, int], kind: str) -> None:
    """Exits in such a machine."""

    def make() -> Callable[[], object]:
        machines.close()
        return machines.exits(kind, EXITS)

    grown(f"{kind}_ns", *case, make, LOOPS, EXITS)


@pytest.mark.parametrize("count", CLONES)
def test_fork_beside_clones(grown: Grown, tmp_path: Path, count: int, is_quick: bool) -> None:
    """A clone of a machine that has some, which wait."""
    if is_quick and count not in (CLONES[0], CLONES[-1]):
        pytest.skip("of what grows, only the ends")
    machines = Machines(tmp_path, "memory_mib", 64)
    with machines.template() as template, ExitStack() as stack:
        for clone in template.fork(count) if count else []:
            stack.enter_context(clone)
        time.sleep(SETTLE_S)
        grown("fork_ms", "clones", count, _after(machines.close, lambda: machines.fork(template)), FORKS)
        machines.close()


def _after(undo: Callable[[], object], do: Callable[[], object]) -> Callable[[], Callable[[], object]]:
    """What undoes the round before, and gives what is timed."""

    def make() -> Callable[[], object]:
        undo()
        return do

    return make
