"""Jobs in fresh machines on an engine that is there already: a Dask cluster, or an executor of `concurrent.futures`.

    with distributed.Client("scheduler:8786") as client:
        for result in emu.cluster.map(client, "base.snap", ["true", "uname -a"], timeout=10):
            print(result.status, result.stdout)

Each process of the engine that gets a job makes itself a pool (`emu.Pool`) of the snapshot, and keeps it for the next
ones. So a job runs in a machine that nobody has used, and when the engine runs it a second time, because the process
that had it was lost, nothing of the first time is there.

A snapshot is named by what is in it. A worker takes it from where its user has it, if just that is there; else from
its host's cache; else the job comes back, and goes again with the snapshot in pieces, which the engine carries to where
they are needed.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Any, Protocol

from emu.errors import EmuError, GuestError, MachineDied
from emu.guest import Result
from emu.pool.pool import Pool
from emu.pool.progress import job_progress
from emu.pool.work import Command
from emu.snapshot.files import Snapshot
from emu.snapshot.parcel import Piece, fetched, is_snapshot, pack

__all__ = ["DaskClient", "map"]

Path_ = str | os.PathLike[str]

AHEAD = 1000                            # jobs handed in whose results were not taken
IDLE_S = 300.0                          # that a worker keeps a pool without a job


class DaskClient(Protocol):
    """What is used of a `distributed.Client`."""

    def get_executor(self, *, pure: bool) -> Executor:
        """One whose futures are those of `concurrent.futures`."""

    def submit(self, function: Any, /, *arguments: Any, pure: bool) -> Any:
        """What stands for its result among the arguments of other calls."""

    def run(self, function: Any, /, *arguments: Any, on_error: str) -> dict[str, Any]:
        """What the function returns in each worker, by address."""


def map(
    executor: Executor | DaskClient,
    snapshot: Path_,
    commands: Iterable[Command],
    *,
    progress: bool = False,
    **options: Any,
) -> Iterator[Result]:
    """Run commands on an engine's workers, each in a machine that nobody has used; results in the commands' order.

    At most 1,000 are handed in ahead of what was taken from here, so there may be any number. When a worker is lost,
    Dask has others do what it had not done.

    Args:
        executor: a `distributed.Client`, each of whose workers does as many jobs at a time as it has threads; or an
            executor whose processes can import `emu`, and do one job each at a time.
        snapshot: a directory. With Dask, it need not be there on the workers' hosts.
        commands: as `Machine.run` takes them.
        progress: show a bar on standard error, if that is a terminal.
        options: of the workers' pools (`emu.Pool`), such as `timeout`, `memory_limit` and `shares`; paths are of their
            hosts.

    Raises:
        BadSnapshot: it cannot be read, or sent.
        EmuError: an option cannot be sent; the engine has lost a job for good; what a job raised. Jobs that have not
            begun then are not done.
    """
    if isinstance(commands, str):
        raise ValueError("map() takes many commands")
    name = SnapshotName.of(snapshot)
    try:
        order = pickle.dumps((name, options))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EmuError(f"an option cannot be sent to a worker: {error}") from None
    engine = _Plain(executor) if isinstance(executor, Executor) else _Dask(executor)
    total = length_hint(commands, -1)
    run = _Run(engine, snapshot, name, order)
    return run.results(iter(commands), job_progress(None if total < 0 else total, progress))


@dataclass(frozen=True)
class SnapshotName:
    """A snapshot, by what is in it.

    Attributes:
        path: where its user has it.
        id, digest: as `emu.snapshot.files.Snapshot` has them.
    """

    path: str
    id: str
    digest: str

    @classmethod
    def of(cls, path: Path_) -> SnapshotName:
        """That of the snapshot there."""
        with Snapshot.open(path) as snapshot:
            return cls(os.fspath(snapshot.path), snapshot.id, snapshot.digest)


# -- the user's side -----------------------------------------------------------------------------------------------


class _Engine(Protocol):
    """What can run a function elsewhere."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Have it run."""

    def lacks(self, name: SnapshotName) -> bool:
        """Whether one of the workers does not have a snapshot."""

    def share(self, piece: Piece) -> Any:
        """What stands for a piece of a snapshot among the arguments of many calls."""

    def give_up(self, futures: Iterable[Future[Any]]) -> None:
        """Nobody wants these any more."""


class _Plain:
    """An executor."""

    def __init__(self, executor: Executor) -> None:
        self.submit = executor.submit

    def lacks(self, name: SnapshotName) -> bool:
        return False

    def share(self, piece: Piece) -> Any:
        raise EmuError("a worker does not see the snapshot, and this executor cannot take it there as Dask can")

    def give_up(self, futures: Iterable[Future[Any]]) -> None:
        for future in futures:
            future.cancel()


class _Dask:
    """A Dask cluster. A piece is the result of a task, so that Dask makes it again when who had it is lost."""

    def __init__(self, client: DaskClient) -> None:
        if getattr(client, "asynchronous", False):
            raise EmuError("this client is asyncio's; give one that is not (Client(..., asynchronous=False))")
        self._client = client
        self._executor = client.get_executor(pure=False)
        self.submit = self._executor.submit

    def lacks(self, name: SnapshotName) -> bool:
        return not all(self._client.run(_has, name, on_error="ignore").values())

    def share(self, piece: Piece) -> Any:
        return self._client.submit(_itself, piece, pure=False)

    def give_up(self, futures: Iterable[Future[Any]]) -> None:
        self._executor.shutdown(wait=False)


@dataclass
class _Job:
    """A job that was handed in."""

    command: Command
    future: Future[Any]

    @property
    def is_absent(self) -> bool:
        """Whether it came back because the snapshot was not there."""
        future = self.future
        return future.done() and not future.cancelled() and not future.exception() and future.result() is None


class _Run:
    """One call of `map`."""

    def __init__(self, engine: _Engine, snapshot: Path_, name: SnapshotName, order: bytes) -> None:
        self._engine = engine
        self._snapshot = snapshot
        self._order = order
        self._pieces: Sequence[Any] = self._share() if engine.lacks(name) else ()

    def _share(self) -> Sequence[Any]:
        with Snapshot.open(self._snapshot) as snapshot:
            return [self._engine.share(piece) for piece in pack(snapshot)]

    def results(
        self, commands: Iterator[Command], progress: AbstractContextManager[Callable[[], object]]
    ) -> Iterator[Result]:
        """What `map` returns; the first jobs are handed in now."""
        handed_in = (_Job(command, self._hand_in(command)) for command in commands)
        return self._results(deque(islice(handed_in, AHEAD)), handed_in, progress)

    def _results(
        self,
        jobs: deque[_Job],
        handed_in: Iterator[_Job],
        progress: AbstractContextManager[Callable[[], object]],
    ) -> Iterator[Result]:
        try:
            with progress as advance:
                while jobs:
                    outcome = self._outcome(jobs)
                    jobs.popleft()
                    jobs.extend(islice(handed_in, 1))
                    advance()
                    if isinstance(outcome, Exception):
                        raise outcome
                    yield outcome
        finally:
            if jobs:
                self._engine.give_up(job.future for job in jobs)

    def _hand_in(self, command: Command) -> Future[Any]:
        # As bytes, since Dask looks for futures in what it is given
        return self._engine.submit(_do, self._order, pickle.dumps(command), *self._pieces)

    def _outcome(self, jobs: deque[_Job]) -> Result | Exception:
        """What came of the first job."""
        first = jobs[0]
        try:
            if first.future.result() is None:
                self._send_again(jobs)
            outcome: Result | Exception = first.future.result()
        except EmuError:
            raise
        except Exception as error:
            raise EmuError(f"the engine could not do a job: {type(error).__name__}: {error}") from error
        return outcome

    def _send_again(self, jobs: Iterable[_Job]) -> None:
        """Hand in again, with the snapshot, all jobs that came back without having been done."""
        self._pieces = self._pieces or self._share()
        for job in jobs:
            if job.is_absent:
                job.future = self._hand_in(job.command)


# -- a worker's side -----------------------------------------------------------------------------------------------


def _do(order: bytes, words: bytes, *pieces: Piece) -> Result | Exception | None:
    """A job, in a worker.

    Args:
        order: pickled, a `SnapshotName` and the pool's options.
        words: pickled, the command.
        pieces: of the snapshot, if it may not be there.

    Returns:
        What came of it; None if the snapshot is not there. What it raises is the engine's trouble.
    """
    command: Command = pickle.loads(words)
    try:
        with _pools.lent(order, pieces) as pool:
            return pool.run(command)
    except _NotHere:
        return None
    except Exception as error:
        return error


def _has(name: SnapshotName) -> bool:
    return _find(name, ()) is not None


def _itself(piece: Piece) -> Piece:
    return piece


def _find(name: SnapshotName, pieces: Iterable[Piece]) -> str | None:
    """Where this host has a snapshot."""
    if is_snapshot(name.path, name.id, name.digest):
        return name.path
    found = fetched(name.id, name.digest, pieces)
    return None if found is None else os.fspath(found)


class _NotHere(Exception):
    """The snapshot is not on this host."""


@dataclass(eq=False)
class _Kept:
    """A pool, and how many jobs use it; closed by the timer when none has for a while."""

    pool: Pool
    users: int = 0
    timer: threading.Timer | None = None


class _Pools:
    """The pools of this process, by order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[bytes, _Kept] = {}

    @contextmanager
    def lent(self, order: bytes, pieces: Iterable[Piece]) -> Iterator[Pool]:
        """The pool for an order, which is made if need be.

        Raises:
            _NotHere: the snapshot is not on this host.
            EmuError: the pool cannot be started.
        """
        with self._lock:
            kept = self._kept.get(order)
            if kept is None:
                kept = self._kept[order] = _Kept(_started(order, pieces))
            kept.users += 1
            if kept.timer is not None:
                kept.timer.cancel()
        try:
            yield kept.pool
        except (GuestError, MachineDied):
            raise
        except EmuError:                        # the pool is at its end; the next job gets a new one
            with self._lock:
                if self._kept.get(order) is kept:
                    del self._kept[order]
            raise
        finally:
            self._give_back(order, kept)

    def _give_back(self, order: bytes, kept: _Kept) -> None:
        with self._lock:
            kept.users -= 1
            if not kept.users:
                kept.timer = threading.Timer(IDLE_S if self._kept.get(order) is kept else 0, self._close, (order, kept))
                kept.timer.daemon = True
                kept.timer.start()

    def _close(self, order: bytes, kept: _Kept) -> None:
        with self._lock:
            if kept.users:
                return
            if self._kept.get(order) is kept:
                del self._kept[order]
        kept.pool.close()


def _started(order: bytes, pieces: Iterable[Piece]) -> Pool:
    name, options = pickle.loads(order)
    path = _find(name, pieces)
    if path is None:
        raise _NotHere
    pool = Pool(path, **{"size": _threads(), **options})
    return pool.__enter__()


def _threads() -> int:
    """Jobs that this process gets at a time."""
    dask = sys.modules.get("distributed.worker")
    try:
        return int(dask.get_worker().state.nthreads) if dask else 1
    except ValueError:                          # it is none of Dask's workers
        return 1


def _forget() -> None:
    """In a process that was forked: machines are the parent's."""
    global _pools
    _pools = _Pools()


_pools = _Pools()
os.register_at_fork(after_in_child=_forget)
