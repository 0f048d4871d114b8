"""What takes too long or too much is killed, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from emu.errors import GuestTimeout, MachineDied, MemoryLimit
from emu.pool.watch import MIB, Limits, Watch
from emu.process.client import MemoryUse
from tests.pool.fakes import PATIENCE_S, FakeHost
from tests.pool.waiting import until


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.close()


@pytest.fixture
def machine() -> Any:
    return FakeHost().make(None)


def test_time(watch: Watch, machine: Any) -> None:
    with pytest.raises(GuestTimeout, match=r"^a job did not end within 0\.01 s$"):
        with watch.over(machine, Limits(seconds=0.01), "a job"):
            machine.run("hang")


def test_memory_that_grows(watch: Watch, machine: Any) -> None:
    with pytest.raises(MemoryLimit, match=r"^a job took 11\.0 MiB of memory, and may take 10\.0$"):
        with watch.over(machine, Limits(memory=10 * MIB), "a job"):
            machine.run(f"eat {10 * MIB}")


def test_a_death_of_its_own_stays_one(watch: Watch, machine: Any) -> None:
    with pytest.raises(MachineDied):
        with watch.over(machine, Limits(seconds=1000, memory=MIB << 10), "a job"):
            machine.run("die")


def test_what_has_ended_in_time_lives(watch: Watch, machine: Any) -> None:
    other: Any = FakeHost().make(None)
    with watch.over(machine, Limits(seconds=0.4), "a short job"):
        pass
    late = watch.begin(other, Limits(seconds=0.5), "a long job")
    until(lambda: late.error)
    assert machine.alive and not other.alive


def test_a_later_and_an_earlier_deadline(watch: Watch) -> None:
    host = FakeHost()
    machines: list[Any] = [host.make(None) for _ in range(3)]
    for machine, seconds in zip(machines, (1000, 0.01, 500), strict=True):
        watch.begin(machine, Limits(seconds=seconds), "")
    until(lambda: not machines[1].alive)
    assert [machine.alive for machine in machines] == [True, False, True]


def test_what_ends_while_it_is_looked_at_lives(watch: Watch, machine: Any) -> None:
    looked = threading.Event()
    watched = watch.begin(machine, Limits(memory=MIB), "a job")

    def use() -> MemoryUse:
        watch.end(watched)
        looked.set()
        return MemoryUse(2 * MIB, 0)

    machine.use = use
    assert looked.wait(PATIENCE_S)
    watch.close()
    assert watch._thread is not None
    watch._thread.join()
    assert machine.alive and watched.error is None


def test_without_limits_there_is_no_thread(watch: Watch, machine: Any) -> None:
    with watch.over(machine, Limits(output=5), "a job"):
        assert watch._thread is None


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"memory": -1}, {"output": 0}, {"seconds": float("nan")}])
def test_limits_that_leave_nothing(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        Limits(**limits)    # type: ignore[arg-type]
