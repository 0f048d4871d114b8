"""A stock of machines that die at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emu.errors import EmuError
from emu.pool import stock as module
from emu.pool.metrics import Recorder
from emu.pool.stock import Stock
from emu.pool.watch import Watch
from tests.pool.fakes import FakeHost
from tests.pool.waiting import until

SIZE = 2


def make_stock(host: FakeHost, watch: Watch, recorder: Recorder, **changes: Any) -> Stock:
    arguments: dict[str, Any] = {"warm": lambda zygote: zygote.run("true"), "is_wanted": lambda: True, **changes}
    return Stock(host.spawn, size=SIZE, watch=watch, recorder=recorder, **arguments)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.001)


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.close()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def stock(host: FakeHost, watch: Watch, recorder: Recorder) -> Iterator[Stock]:
    stock = make_stock(host, watch, recorder)
    stock.wait_started()
    yield stock
    stock.close()
    assert host.all_gone


def test_clones_stand_ready_and_the_warm_machine_is_not_lent(stock: Stock, host: FakeHost) -> None:
    until(lambda: stock.metrics(0).ready == SIZE)
    assert host.zygote.used == ["true"]
    machine: Any = stock.acquire()
    assert machine.parent is host.zygote and machine.used == []
    until(lambda: stock.metrics(0).ready == SIZE)
    stock.release(machine)
    assert not machine.alive
    until(lambda: machine.closed)


def test_no_more_are_lent_than_the_size(stock: Stock) -> None:
    machines = [stock.acquire() for _ in range(SIZE)]
    assert stock.metrics(5).in_use == SIZE and stock.metrics(5).waiting == 5
    assert stock._places.take_now() is None
    stock.release(machines[0])
    stock.release(stock.acquire())


def test_a_machine_is_given_back_once(stock: Stock, host: FakeHost) -> None:
    machine = stock.acquire()
    stock.release(machine)
    for wrong in machine, host.make(None):
        with pytest.raises(ValueError, match="not lent"):
            stock.release(wrong)        # type: ignore[arg-type]
        wrong.close()


def test_a_zygote_that_dies_is_replaced(stock: Stock, host: FakeHost, recorder: Recorder) -> None:
    first = host.zygote
    lent = stock.acquire()
    first.kill()
    assert not lent.alive
    stock.release(lent)
    until(lambda: host.zygote is not first and stock.metrics(0).ready == SIZE)
    assert stock.acquire().alive and host.zygote.used == ["true"] and recorder.restarts == 1


def test_a_zygote_that_does_not_answer_is_killed(
    stock: Stock, host: FakeHost, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORK_S", 0.01)
    until(lambda: stock.metrics(0).ready == SIZE)
    first = host.zygote
    host.forks_hang = True
    stock.acquire()
    until(lambda: not first.alive)
    host.forks_hang = False
    until(lambda: recorder.restarts and stock.metrics(0).ready == SIZE)


def test_a_ready_machine_that_dies_or_does_not_answer_is_replaced(
    stock: Stock, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: stock.metrics(0).ready == SIZE)
    dead, silent = (fresh.machine for fresh in stock._ready._things)
    monkeypatch.setattr(module, "ANSWER_S", 0.01)
    monkeypatch.setattr(module, "STALE_S", 0.0)
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    dead.kill()
    silent.answers = False              # type: ignore[attr-defined]
    until(lambda: recorder.replaced == 2 and stock.metrics(0).ready == SIZE)
    assert not silent.alive


def test_a_host_without_room_is_asked_again(stock: Stock, host: FakeHost) -> None:
    until(lambda: stock.metrics(0).ready == SIZE)
    host.refuse_forks = module.MOST_FAILURES + 5        # more than what ends a stock that lends nothing
    machines = [stock.acquire() for _ in range(SIZE)]
    until(lambda: not host.refuse_forks)
    until(lambda: stock.metrics(0).ready == SIZE)
    for machine in machines:
        stock.release(machine)


def test_a_host_that_never_has_room_is_given_up(host: FakeHost, watch: Watch, recorder: Recorder) -> None:
    host.refuse_forks = 1000
    stock = make_stock(host, watch, recorder)
    with pytest.raises(EmuError, match="no room"):
        stock.acquire()
    until(lambda: host.all_gone)
    assert len(host.machines) == 2      # a new zygote was tried
    stock.close()


def test_what_cannot_be_started_says_why(host: FakeHost, watch: Watch, recorder: Recorder) -> None:
    host.refuse_spawns = 1
    stock = make_stock(host, watch, recorder)
    for ask in stock.wait_started, stock.acquire, stock.acquire:
        with pytest.raises(EmuError, match=r"^no such snapshot$"):
            ask()
    stock.close()


def test_a_restart_may_fail_for_a_while(stock: Stock, host: FakeHost) -> None:
    host.refuse_spawns = module.MOST_FAILURES - 2
    host.zygote.kill()
    stock.release(stock.acquire())
    assert not host.refuse_spawns


def test_warming_that_fails_says_why(host: FakeHost, watch: Watch, recorder: Recorder) -> None:
    stock = make_stock(host, watch, recorder, warm=lambda zygote: zygote.run("status 3", check=True))
    with pytest.raises(EmuError, match="ended with status 3"):
        stock.wait_started()
    stock.close()
    assert host.all_gone


def test_closing_ends_a_warm_up_that_hangs(host: FakeHost, watch: Watch, recorder: Recorder) -> None:
    stock = make_stock(host, watch, recorder, warm=lambda zygote: zygote.run("hang"))
    until(lambda: host.machines and host.zygote.used)
    stock.close()
    assert host.all_gone


def test_closing_kills_what_is_lent(host: FakeHost, watch: Watch, recorder: Recorder) -> None:
    stock = make_stock(host, watch, recorder)
    lent = stock.acquire()
    stock.close()
    assert not lent.alive and host.all_gone
    stock.release(lent)
    with pytest.raises(EmuError, match="the pool is closed"):
        stock.acquire()
    stock.close()


def test_a_machine_that_was_given_at_the_very_end_is_not_forgotten(
    stock: Stock, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = stock._ready.take

    def take_and_close() -> Any:
        fresh = take()
        stock.close()
        return fresh

    monkeypatch.setattr(stock._ready, "take", take_and_close)
    with pytest.raises(EmuError, match="the pool is closed"):
        stock._take_living()
    assert host.all_gone


def test_who_is_interrupted_leaves_their_place_to_others(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stock._ready, "take", interrupted)
        for _ in range(SIZE):
            with pytest.raises(KeyboardInterrupt):
                stock.acquire()
    assert len(stock._places) == SIZE


def test_a_stock_that_nobody_wants_ends(host: FakeHost, watch: Watch, recorder: Recorder) -> None:
    wanted = [True]
    stock = make_stock(host, watch, recorder, is_wanted=lambda: bool(wanted))
    stock.wait_started()
    wanted.clear()
    stock.acquire()                     # wakes it
    until(lambda: host.all_gone)
    stock._thread.join()


class StockMachine(RuleBasedStateMachine):
    """Lending, giving back, and dying in any order: everybody who asks gets a living machine that nobody has used."""

    def __init__(self) -> None:
        super().__init__()
        self.host = FakeHost()
        self.watch = Watch()
        self.stock = make_stock(self.host, self.watch, Recorder())
        self.lent: list[Any] = []

    @precondition(lambda self: len(self.lent) < SIZE)
    @rule()
    def acquire(self) -> None:
        machine: Any = self.stock.acquire()
        assert machine.alive and machine.used == [] and machine.parent is not None
        machine.used.append("a job")
        self.lent.append(machine)

    @precondition(lambda self: self.lent)
    @rule(number=st.integers(0, SIZE - 1))
    def release(self, number: int) -> None:
        machine = self.lent.pop(number % len(self.lent))
        self.stock.release(machine)
        assert not machine.alive

    @precondition(lambda self: self.lent)
    @rule()
    def a_job_kills_its_machine(self) -> None:
        self.lent[0].kill()

    @rule(number=st.integers(0, 1000))
    def any_machine_dies(self, number: int) -> None:
        machines = list(self.host.machines)
        if machines:
            machines[number % len(machines)].kill()

    @rule()
    def the_zygote_dies(self) -> None:
        if self.host.machines:
            self.host.zygote.kill()

    @rule(count=st.integers(1, module.MOST_FAILURES - 2))
    def forks_fail(self, count: int) -> None:
        if not self.host.refuse_forks:
            self.host.refuse_forks = count

    @invariant()
    def no_more_are_there_than_may(self) -> None:
        metrics = self.stock.metrics(0)
        assert metrics.in_use == len(self.lent) <= SIZE
        assert metrics.ready <= SIZE

    def teardown(self) -> None:
        self.stock.close()
        self.watch.close()
        assert self.host.all_gone


StockMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestStock = StockMachine.TestCase
