"""What users of a pool do with it."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from typing import Any

import pytest

from emu.errors import EmuError, GuestError, GuestTimeout, MachineDied, MemoryLimit, OutputLimit, PoolFull
from emu.pool import pool as module
from emu.pool.pool import Pool
from tests.pool.fakes import PATIENCE_S, FakeHost
from tests.pool.waiting import until

MIB = 1 << 20


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    host = FakeHost()
    monkeypatch.setattr(module, "spawn", host.spawn)
    yield host
    until(lambda: host.all_gone)


@pytest.fixture
def pool(host: FakeHost) -> Iterator[Pool]:
    with Pool("base.snap", size=2) as pool:
        yield pool


def test_a_command_runs_in_a_machine_that_is_killed(pool: Pool, host: FakeHost) -> None:
    assert pool.run("echo hello").stdout == "hello\n"
    [used] = [machine for machine in host.machines if "echo hello" in machine.used]
    assert used is not host.zygote and not used.alive
    pool.run(["echo", "hello"])
    assert host.asked == [("base.snap", {})]


def test_what_a_command_is_given(pool: Pool) -> None:
    chunks: list[bytes] = []
    assert pool.run("true", input=b"in").stdout_bytes == b"in"
    assert pool.run("echo x", stdout=chunks.append).stdout_bytes == b"" and chunks == [b"x\n"]
    assert pool.run("status 3").status == 3
    with pytest.raises(GuestError, match="status 3"):
        pool.run("status 3", check=True)


def test_warming_and_options_reach_the_zygote_alone(host: FakeHost) -> None:
    with Pool("base.snap", size=1, warm_up=["echo a", ["echo", "b"]], shares={"data": "."}) as pool:
        pool.run("true")
    assert host.asked == [("base.snap", {"shares": {"data": "."}})]
    assert host.zygote.used == ["echo a", ["echo", "b"]]


def test_functions_get_a_machine_and_what_else_they_were_given(pool: Pool) -> None:
    def say(machine: Any, word: str, *, end: str) -> str:
        machine.run("true")
        return str(machine.run(f"echo {word}").stdout) + end

    assert pool.submit(say, "hello", end="!").result() == "hello\n!"
    assert pool.submit("echo x").result().stdout == "x\n"
    assert list(pool.map(lambda machine, a, b: (a, b), [1, 2, 3], "xyz")) == [(1, "x"), (2, "y"), (3, "z")]


def test_map_keeps_the_order(pool: Pool) -> None:
    first = threading.Event()

    def job(machine: Any, number: int) -> int:
        if number == 0:
            first.wait()
        elif number == 3:
            first.set()
        return number

    assert list(pool.map(job, range(10))) == list(range(10))
    assert [result.stdout for result in pool.map(f"echo {n}" for n in range(5))] == [f"{n}\n" for n in range(5)]
    assert list(pool.map([])) == list(pool.map(lambda machine: 1)) == []


def test_map_begins_at_once_and_takes_no_more_than_fits(host: FakeHost) -> None:
    with Pool("base.snap", size=2, queue=3) as pool:
        taken = itertools.count()
        results = pool.map(f"echo {next(taken)}" for _ in itertools.count())
        assert next(taken) == 5
        assert next(results).stdout == "0\n" and next(results).stdout == "1\n"
        assert next(taken) == 8


def test_map_gives_up_what_has_not_begun_when_a_job_fails(pool: Pool) -> None:
    begun: set[int] = set()
    go_on = threading.Event()

    def job(machine: Any, number: int) -> None:
        begun.add(number)
        if number == 0:
            raise KeyError(number)
        assert go_on.wait(PATIENCE_S)

    with pytest.raises(KeyError):
        list(pool.map(job, range(100_000)))
    go_on.set()
    until(lambda: pool.metrics().in_use == pool.metrics().waiting == 0)
    assert begun <= {0, 1, 2}           # the third in place of the first
    assert pool.metrics().failures == {"KeyError": 1}


def test_map_takes_no_longer_than_its_timeout(pool: Pool) -> None:
    with pytest.raises(TimeoutError):
        list(pool.map(["hang"], timeout=0.01))
    pool.close()


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_shown_on_a_terminal_if_it_is_wanted(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True      # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert len(list(pool.map(["true"] * 7, progress=progress))) == 7
    assert ("7/7" in terminal.getvalue()) == progress


def test_one_command_is_not_many(pool: Pool) -> None:
    with pytest.raises(ValueError, match="run\\(\\) takes one"):
        pool.map("true")
    with pytest.raises(TypeError):
        pool.submit("true", wrong=1)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("hang", GuestTimeout), (f"eat {20 * MIB}", MemoryLimit), ("echo " + 100 * "x", OutputLimit),
        ("die", MachineDied),
    ],
)
def test_a_job_that_fails_says_why_and_the_others_go_on(host: FakeHost, command: str, error: type[EmuError]) -> None:
    seconds = 0.02 if error is GuestTimeout else 60
    with Pool("base.snap", size=2, timeout=seconds, memory_limit=10 * MIB, output_limit=50) as pool:
        futures = [pool.submit(word) for word in ("true", command, "true")]
        with pytest.raises(error) as raised:
            futures[1].result()
        assert raised.type is error and "\n" not in str(raised.value)
        with pytest.raises(error):
            pool.submit(lambda machine: machine.run(command, most_output=50)).result()
        assert futures[0].result().status == futures[2].result().status == pool.run("true").status == 0
        until(lambda: pool.metrics().in_use == 0)
        assert pool.metrics().failures == {error.__name__: 2} and pool.metrics().jobs == 5


def test_a_command_may_have_its_own_time(pool: Pool) -> None:
    with pytest.raises(GuestTimeout, match=r"^'hang' did not end within 0\.01 s$"):
        pool.run("hang", timeout=0.01)


def test_machines_by_hand(host: FakeHost) -> None:
    with Pool("base.snap", size=1, timeout=0.02) as pool:
        machine = pool.acquire()
        pool.release(machine)
        with pytest.raises(ValueError, match="not lent"):
            pool.release(machine)
        with pool.machine() as other:
            assert other is not machine and other.alive
        assert not other.alive
        with pytest.raises(GuestTimeout, match="the use of a machine did not end"):
            with pool.machine() as other:
                other.run("hang")
        with pytest.raises(ZeroDivisionError):
            with pool.machine():
                raise ZeroDivisionError
        assert pool.metrics().failures == {"GuestTimeout": 1, "ZeroDivisionError": 1}


def test_ctrl_c_is_no_limit(pool: Pool) -> None:
    with pytest.raises(KeyboardInterrupt):
        with pool.machine() as machine:
            next(iter(pool._lent.values())).watched.error = GuestTimeout("late")
            raise KeyboardInterrupt
    assert not machine.alive and pool.metrics().failures == {"KeyboardInterrupt": 1}


def test_a_full_queue_refuses(host: FakeHost) -> None:
    with Pool("base.snap", size=1, queue=1, when_full="refuse") as pool:
        held = [pool.submit("hang"), pool.submit("true")]
        with pytest.raises(PoolFull, match="2 jobs run or wait"):
            pool.submit("true")
        with pytest.raises(PoolFull):
            asyncio.run(pool.arun("true"))
        assert held[1].cancel()
        pool.submit("true").cancel()        # there is room again
        pool.close()


def test_a_full_queue_makes_wait(host: FakeHost) -> None:
    with Pool("base.snap", size=1, queue=0) as pool:
        go_on = threading.Event()
        futures: list[Future[Any]] = [pool.submit(lambda machine: go_on.wait())]
        thread = threading.Thread(target=lambda: futures.append(pool.submit("true")))
        thread.start()
        until(lambda: pool._turns.waiting == 1)
        assert len(futures) == 1
        go_on.set()
        thread.join()
        assert [future.result() is not None for future in as_completed(futures)] == [True, True]


def test_shutdown_waits_for_what_was_handed_in(host: FakeHost) -> None:
    pool = Pool("base.snap", size=1)
    futures = [pool.submit("true") for _ in range(20)]
    pool.shutdown()
    assert all(future.result().status == 0 for future in futures) and host.all_gone
    with pytest.raises(RuntimeError):
        pool.submit("true")
    with pytest.raises(EmuError, match="the pool is closed"):
        pool.run("true")


def test_shutdown_need_not_be_waited_for(host: FakeHost) -> None:
    pool = Pool("base.snap", size=1)
    go_on = threading.Event()
    first = pool.submit(lambda machine: go_on.wait())
    until(lambda: pool.metrics().in_use)
    second = pool.submit("true")
    pool.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled() and not first.done() and not host.all_gone
    go_on.set()
    assert first.result()
    until(lambda: host.all_gone)


def test_an_error_in_with_ends_jobs_at_once(host: FakeHost) -> None:
    with pytest.raises(ZeroDivisionError):
        with Pool("base.snap", size=1) as pool:
            running, waiting = pool.submit("hang"), pool.submit("true")
            until(lambda: pool.metrics().in_use)
            raise ZeroDivisionError
    assert host.all_gone and waiting.cancelled()
    with pytest.raises(MachineDied):
        running.result()


def test_a_pool_that_cannot_start(host: FakeHost) -> None:
    host.refuse_spawns = 1
    with pytest.raises(EmuError, match="no such snapshot"):
        with Pool("base.snap"):
            raise AssertionError


def test_a_pool_that_is_forgotten_ends(host: FakeHost) -> None:
    pool = Pool("base.snap", size=1)
    pool.run("true")
    del pool
    gc.collect()
    until(lambda: host.all_gone)


def test_asyncio(host: FakeHost) -> None:
    async def use() -> None:
        async with Pool("base.snap", size=2, queue=1) as pool:
            results = await asyncio.gather(*(pool.arun(f"echo {n}") for n in range(20)))
            assert [result.stdout for result in results] == [f"{n}\n" for n in range(20)]
            assert await pool.arun(lambda machine, word: word, "x") == "x"
            with pytest.raises(GuestTimeout):
                await pool.arun("hang", timeout=0.01)

    asyncio.run(use())


def test_a_task_that_is_cancelled_ends_its_job(host: FakeHost) -> None:
    async def use() -> None:
        async with Pool("base.snap", size=1) as pool:
            tasks = [asyncio.create_task(pool.arun("hang")) for _ in range(3)]
            while not pool.metrics().in_use:
                await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            for task in tasks:
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert (await pool.arun("true")).status == 0

    asyncio.run(use())


@pytest.mark.parametrize("wrong", [{"size": 0}, {"queue": -1}, {"when_full": "burst"}, {"timeout": 0}])
def test_numbers_that_make_no_sense(host: FakeHost, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Pool("base.snap", **wrong)


def test_many_threads_share_a_pool(host: FakeHost) -> None:
    with Pool("base.snap", size=3, queue=2) as pool:
        results: list[str] = []

        def use(number: int) -> None:
            for job in range(20):
                results.append(pool.run(f"echo {number}.{job}").stdout)
                results.append(pool.submit(f"echo {number}.{job}").result().stdout)

        threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == sorted(2 * [f"{number}.{job}\n" for number in range(6) for job in range(20)])
        assert pool.metrics().jobs == 240 and pool.metrics().waits.count == 240
    jobs = [machine.used for machine in host.machines if machine.parent is not None]
    assert max(map(len, jobs)) == 1
