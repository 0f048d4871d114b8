"""Jobs on somebody else's executor, without machines: order, errors, pools that are kept, snapshots that travel."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emu import cluster
from emu.cache import ENVIRONMENT
from emu.errors import EmuError, GuestError, MachineDied
from emu.guest import Result
from emu.memory import GuestMemory
from emu.snapshot.save import save_snapshot
from tests.snapshot.snapshots import SIZE, State

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "base.snap"
    memory = GuestMemory(SIZE)
    memory.ram[:5] = b"hello"
    save_snapshot(path, State(), memory)
    memory.close()
    return path


class FakePool:
    """Runs `echo`, `fail`, `end` (the pool does), and `wait` until it is closed."""

    made: list[FakePool]

    def __init__(self, snapshot: str, **options: Any) -> None:
        self.snapshot, self.options = snapshot, options
        self.closed = threading.Event()
        self.process = os.getpid()
        self.made.append(self)

    def __enter__(self) -> FakePool:
        if self.options.get("warm_up") == ["false"]:
            raise GuestError("false ended with status 1")
        return self

    def run(self, command: Any) -> Result:
        assert self.process == os.getpid(), "a machine is of use only to the process that has it"
        word, *rest = command.split() if isinstance(command, str) else command
        if word == "fail":
            raise GuestError("the guest's kernel panicked")
        if word == "die":
            raise MachineDied("the machine's process is gone")
        if word == "end":
            raise EmuError("cannot fork: no room")
        return Result(0, " ".join(rest).encode(), b"")

    def close(self) -> None:
        self.closed.set()


@pytest.fixture(autouse=True)
def pools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FakePool]:
    """Those that were made; nothing of other tests is kept."""
    monkeypatch.setattr(FakePool, "made", [], raising=False)
    monkeypatch.setattr(cluster, "Pool", FakePool)
    monkeypatch.setattr(cluster, "_pools", cluster._Pools())
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    return FakePool.made


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


class FakeDask:
    """A client whose workers are on another host: threads of this process that do not see its files."""

    asynchronous = False

    def __init__(self, executor: Executor, has: bool) -> None:
        self._threads = executor
        self._has = has
        self.shared = 0
        self.submitted = 0
        self.given_up = False

    def get_executor(self, *, pure: bool) -> Executor:
        assert not pure, "the same command twice is two jobs"
        return _FakeClientExecutor(self)

    def submit(self, function: Any, /, *arguments: Any, pure: bool) -> Any:
        self.shared += 1
        return SimpleNamespace(value=function(*arguments))

    def run(self, function: Any, /, *arguments: Any, on_error: str) -> dict[str, Any]:
        return {"here": True, "there": self._has}


class _FakeClientExecutor(Executor):
    def __init__(self, client: FakeDask) -> None:
        self._client = client

    def submit(self, function: Any, /, *arguments: Any, **_keywords: Any) -> Future[Any]:
        self._client.submitted += 1
        values = [one.value if isinstance(one, SimpleNamespace) else one for one in arguments]
        return self._client._threads.submit(function, *values)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._client.given_up = True


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not see the snapshot where its user does."""
    name = cluster.SnapshotName.of
    monkeypatch.setattr(cluster.SnapshotName, "of", lambda path: replace(name(path), path="/nowhere"))


# --- results ------------------------------------------------------------------------------------------------------


def test_results_come_in_order_and_one_pool_does_it_all(
    executor: Executor, snapshot: Path, pools: list[FakePool]
) -> None:
    jobs = [f"echo {number}" for number in range(50)]
    results = list(cluster.map(executor, snapshot, jobs, timeout=3.0, memory_limit=1 << 30))
    assert [result.stdout for result in results] == [str(number) for number in range(50)]
    [pool] = pools
    assert pool.options == {"size": 1, "timeout": 3.0, "memory_limit": 1 << 30}
    assert pool.snapshot == os.fspath(snapshot)


def test_a_command_can_be_words(executor: Executor, snapshot: Path) -> None:
    [result] = cluster.map(executor, snapshot, [["echo", "a b", "c"]])
    assert result.stdout == "a b c"


def test_any_number_of_commands_is_taken_as_results_are(executor: Executor, snapshot: Path) -> None:
    asked = 0

    def commands() -> Iterator[str]:
        nonlocal asked
        while True:
            asked += 1
            yield f"echo {asked}"

    results = cluster.map(executor, snapshot, commands())
    assert asked == cluster.AHEAD
    assert [next(results).stdout for _ in range(3)] == ["1", "2", "3"]
    assert asked == cluster.AHEAD + 3
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("word", "kind"), [("fail", GuestError), ("die", MachineDied), ("end", EmuError)])
def test_what_a_job_raises_comes_in_its_place(
    executor: Executor, snapshot: Path, word: str, kind: type[Exception]
) -> None:
    results = cluster.map(executor, snapshot, ["echo 1", word, "echo 2"])
    assert next(results).stdout == "1"
    with pytest.raises(kind):
        next(results)
    assert list(results) == []


def test_jobs_that_have_not_begun_are_cancelled_after_an_error(snapshot: Path) -> None:
    handed_in: list[Future[Any]] = []

    class Idle(Executor):
        def submit(self, function: Any, /, *arguments: Any, **_keywords: Any) -> Future[Any]:
            handed_in.append(Future())
            return handed_in[-1]

    results = cluster.map(Idle(), snapshot, ["fail", "echo 1", "echo 2"])
    handed_in[0].set_result(GuestError("it failed"))
    with pytest.raises(GuestError, match="it failed"):
        next(results)
    assert [future.cancelled() for future in handed_in] == [False, True, True]


def test_what_is_the_engine_s_fault_is_told_in_a_line(snapshot: Path) -> None:
    class Broken(Executor):
        def submit(self, function: Any, /, *arguments: Any, **_keywords: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(BrokenProcessPool("a process was lost"))
            return future

    with pytest.raises(EmuError, match="engine could not do a job: BrokenProcessPool: a process was lost"):
        list(cluster.map(Broken(), snapshot, ["true"]))


def test_what_cannot_be_sent_or_read_is_refused_at_once(executor: Executor, snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(EmuError, match="option cannot be sent"):
        cluster.map(executor, snapshot, ["true"], hypercalls=[lambda call: None])
    with pytest.raises(EmuError, match="cannot open the snapshot"):
        cluster.map(executor, tmp_path / "none", ["true"])
    with pytest.raises(ValueError, match="many commands"):
        cluster.map(executor, snapshot, "true")
    with pytest.raises(EmuError, match="asyncio's"):
        cluster.map(SimpleNamespace(asynchronous=True), snapshot, ["true"])  # type: ignore[arg-type]


def test_processes_that_were_forked_make_pools_of_their_own(snapshot: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        assert [result.stdout for result in cluster.map(threads, snapshot, ["echo 0"])] == ["0"]
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as processes:
        results = list(cluster.map(processes, snapshot, [f"echo {number}" for number in range(10)]))
    assert [result.stdout for result in results] == [str(number) for number in range(10)]


# --- pools --------------------------------------------------------------------------------------------------------


def test_each_snapshot_and_set_of_options_has_a_pool(
    executor: Executor, snapshot: Path, pools: list[FakePool]
) -> None:
    for options in {}, {"timeout": 1.0}, {}, {"timeout": 1.0}:
        list(cluster.map(executor, snapshot, ["true"], **options))
    assert [pool.options for pool in pools] == [{"size": 1}, {"size": 1, "timeout": 1.0}]


def test_a_pool_that_is_at_its_end_is_replaced_and_closed(
    executor: Executor, snapshot: Path, pools: list[FakePool]
) -> None:
    with pytest.raises(EmuError, match="no room"):
        list(cluster.map(executor, snapshot, ["end"]))
    assert list(cluster.map(executor, snapshot, ["echo 1"]))
    assert len(pools) == 2
    assert pools[0].closed.wait(PATIENCE_S) and not pools[1].closed.is_set()


def test_a_pool_that_cannot_start_is_tried_again_by_the_next_job(
    executor: Executor, snapshot: Path, pools: list[FakePool]
) -> None:
    for number in 1, 2:
        with pytest.raises(GuestError, match="status 1"):
            list(cluster.map(executor, snapshot, ["true"], warm_up=["false"]))
        assert len(pools) == number


def test_a_pool_without_jobs_is_closed_after_a_while(
    executor: Executor, snapshot: Path, pools: list[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(cluster.map(executor, snapshot, ["true"] * 20))
    assert not pools[0].closed.is_set()
    monkeypatch.setattr(cluster, "IDLE_S", 0.0)
    list(cluster.map(executor, snapshot, ["true"]))
    assert pools[0].closed.wait(PATIENCE_S)
    list(cluster.map(executor, snapshot, ["true"]))
    assert len(pools) == 2


def test_a_worker_of_dask_takes_as_many_jobs_as_it_has_threads(
    executor: Executor, snapshot: Path, pools: list[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SimpleNamespace(nthreads=7)
    worker = SimpleNamespace(get_worker=lambda: SimpleNamespace(state=state))
    monkeypatch.setitem(cluster.sys.modules, "distributed.worker", worker)  # type: ignore[attr-defined]
    list(cluster.map(executor, snapshot, ["true"]))
    assert pools[0].options == {"size": 7}


# --- snapshots that travel ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hidden")
def test_a_snapshot_that_workers_lack_goes_along(
    executor: Executor, snapshot: Path, pools: list[FakePool]
) -> None:
    client = FakeDask(executor, has=False)
    assert [result.stdout for result in cluster.map(client, snapshot, ["echo 1", "echo 2"])] == ["1", "2"]
    assert (client.shared, client.submitted) == (1, 2)
    [pool] = pools
    assert pool.snapshot != os.fspath(snapshot)
    assert (Path(pool.snapshot) / "ram").read_bytes() == (snapshot / "ram").read_bytes()


@pytest.mark.usefixtures("hidden")
def test_jobs_of_a_worker_that_came_later_go_again_with_the_snapshot(
    executor: Executor, snapshot: Path, pools: list[FakePool]
) -> None:
    client = FakeDask(executor, has=True)
    jobs = [f"echo {number}" for number in range(20)]
    assert [result.stdout for result in cluster.map(client, snapshot, jobs)] == [str(number) for number in range(20)]
    assert client.shared == 1 and 20 < client.submitted <= 40
    assert len(pools) == 1


@pytest.mark.usefixtures("hidden")
def test_other_executors_do_not_take_a_snapshot_anywhere(executor: Executor, snapshot: Path) -> None:
    with pytest.raises(EmuError, match="does not see the snapshot"):
        list(cluster.map(executor, snapshot, ["true"]))


def test_dask_hears_that_the_rest_is_not_wanted(executor: Executor, snapshot: Path) -> None:
    client = FakeDask(executor, has=True)
    with pytest.raises(GuestError):
        list(cluster.map(client, snapshot, ["fail", "echo 1"]))
    assert client.given_up
