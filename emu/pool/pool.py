"""What users of a pool hold."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from operator import length_hint
from time import monotonic
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, overload

from emu.errors import PoolFull
from emu.guest import Result
from emu.host import usable_cpus
from emu.pool.ahead import in_order
from emu.pool.metrics import PoolMetrics, Recorder
from emu.pool.progress import job_progress
from emu.pool.stock import Stock
from emu.pool.supply import Supply
from emu.pool.watch import Limits, Watch, Watched
from emu.pool.work import Command, Work, work
from emu.process.client import MachineProcess
from emu.process.spawn import spawn

__all__ = ["Pool"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")
Path_ = str | os.PathLike[str]

MIB = 1 << 20
WARM_S = 120.0                          # for a command that warms, unless it is the user's


class Pool(Executor):
    """Warm machines for many short jobs, as an executor of `concurrent.futures`; threads may share it.

    A job is a command, or a function that is called with a machine and its other arguments. It gets a machine that
    nobody has used, a clone of one that is restored and warm, and that machine is killed after it. A job that goes
    beyond a limit, or whose machine dies, fails with one error, and the others go on.

    The pool starts behind the caller's back; `with` waits until it has, and whatever needs a machine does too. Leaving
    `with` waits for the jobs that were handed in; leaving it by an exception ends them.

    Args:
        snapshot: what machines start as: a directory, or "alpine" for the default guest, whose snapshot is made on
            first use.
        size: jobs that may have a machine at the same time; as many more machines stand ready. None: the host's CPUs.
        warm_up: commands that the first machine runs before it is cloned: the programs, pages and translated code that
            they leave are there for every job. Each has to succeed.
        timeout: seconds for a job, from when it has its machine; None for ever.
        memory_limit: bytes of the host's memory that a job's machine may take for itself.
        output_limit: bytes that a command may write on stdout and stderr together.
        queue: jobs that may wait for a machine.
        when_full: "wait" has who hands in one more wait, "refuse" has them get `PoolFull`.
        options: of `emu.restore`, as `emu.spawn` takes them.

    Raises:
        ValueError: a number that makes no sense.
    """

    def __init__(
        self,
        snapshot: Path_ = "alpine",
        *,
        size: int | None = None,
        warm_up: Sequence[Command] | None = None,
        timeout: float | None = None,
        memory_limit: int | None = None,
        output_limit: int | None = 64 * MIB,
        queue: int = 1000,
        when_full: Literal["wait", "refuse"] = "wait",
        **options: Any,
    ) -> None:
        size = usable_cpus() if size is None else size
        if size < 1 or queue < 0:
            raise ValueError("a pool has one machine at least, and a queue of no fewer than 0 jobs")
        if when_full not in ("wait", "refuse"):
            raise ValueError(f"when_full is 'wait' or 'refuse', not {when_full!r}")
        self._limits = Limits(timeout, memory_limit, output_limit)
        self._refuses = when_full == "refuse"
        self._most = size + queue
        self._turns = Supply([True] * self._most)
        self._busy: set[Work[Any]] = set()      # what a worker thread has taken up
        self._lent: dict[MachineProcess, _Lent] = {}
        self._recorder = Recorder()
        self._watch = Watch()
        self._workers = ThreadPoolExecutor(size, thread_name_prefix="emu-pool")
        wanted = weakref.ref(self)
        self._stock = Stock(
            partial(_zygote, snapshot, options), partial(_warm, warm_up), size, self._watch, self._recorder,
            lambda: wanted() is not None,
        )  # fmt: skip

    # -- machines --------------------------------------------------------------------------------------------------

    def acquire(self) -> MachineProcess:
        """A machine that nobody has used, until `release`; waits for it. The pool's limits hold for it.

        Raises:
            EmuError: the pool is closed, or cannot start machines.
        """
        return self._acquire(self._limits, "the use of a machine").machine

    def release(self, machine: MachineProcess) -> None:
        """Give a machine back; it is killed.

        Raises:
            ValueError: it is not lent by this pool.
        """
        lent = self._lent.get(machine)
        if lent is None:
            raise ValueError("this machine is not lent by this pool, or was given back before")
        self._release(lent, lent.watched.error)

    @contextmanager
    def machine(self) -> Iterator[MachineProcess]:
        """`acquire` and `release` around the body of a `with`.

        Raises:
            EmuError: see `acquire`; the body failed because the machine was beyond a limit.
        """
        with self._lend(self._limits, "the use of a machine") as machine:
            yield machine

    def _acquire(self, limits: Limits, text: str) -> _Lent:
        machine = self._stock.acquire()
        lent = _Lent(machine, self._watch.begin(machine, limits, text), monotonic())
        self._lent[machine] = lent
        return lent

    def _release(self, lent: _Lent, error: BaseException | None) -> None:
        if self._lent.pop(lent.machine, None) is not None:
            self._watch.end(lent.watched)
            self._stock.release(lent.machine)
            self._recorder.ended(monotonic() - lent.since, error)

    @contextmanager
    def _lend(self, limits: Limits, text: str) -> Iterator[MachineProcess]:
        lent = self._acquire(limits, text)
        error: BaseException | None = None
        try:
            yield lent.machine
        except Exception as raised:
            error = lent.watched.error or raised
            if error is raised:
                raise
            raise error from None               # not that the machine has died, but why it was killed
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._release(lent, error)

    # -- jobs ------------------------------------------------------------------------------------------------------

    def run(
        self,
        command: Command,
        *,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | None = None,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
    ) -> Result:
        """Run a command in a machine that nobody has used, and wait for its end; arguments as `MachineProcess.run`.

        Args:
            timeout: seconds, instead of the pool's.

        Raises:
            GuestTimeout, MemoryLimit, OutputLimit: it went beyond a limit.
            MachineDied, GuestError: its machine died; its guest did, or `check`.
            EmuError: the pool is closed, or cannot start machines.
        """
        keywords = {"timeout": timeout, "check": check, "input": input, "stdout": stdout, "stderr": stderr}
        result: Result = self._do(work(self._limits, command, **keywords))
        return result

    @overload  # type: ignore[override]  # a function gets a machine before what it is given here
    def submit(
        self, fn: Callable[Concatenate[MachineProcess, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...
    @overload
    def submit(self, fn: Command, /, **kwargs: Any) -> Future[Result]: ...

    def submit(self, fn: Callable[..., Any] | Command, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand in a job.

        Args:
            fn: a command, with the keyword arguments of `run`; or a function that is called with a machine and the
                other arguments, in a thread. It should do no more there than wait for its machine.

        Returns:
            What becomes of it: the command's result, what the function returns, or the errors of `run`.

        Raises:
            PoolFull: the queue is full, and the pool refuses.
            RuntimeError: the pool is shut down.
        """
        job = work(self._limits, fn, *args, **kwargs)
        if not self._refuses:
            self._turns.take()
        elif not self._turns.take_now():
            raise PoolFull(f"{self._most} jobs run or wait; no more are taken")
        return self._hand_in(job)

    async def arun(self, fn: Callable[..., Any] | Command, /, *args: Any, **kwargs: Any) -> Any:
        """`submit`, and wait for the result, in asyncio. A job whose task is cancelled is ended."""
        job = work(self._limits, fn, *args, **kwargs)
        if not self._refuses:
            await self._turns.take_async()
        elif not self._turns.take_now():
            raise PoolFull(f"{self._most} jobs run or wait; no more are taken")
        try:
            return await asyncio.wrap_future(self._hand_in(job))
        except asyncio.CancelledError:
            job.give_up()
            raise

    def _hand_in(self, job: Work[T]) -> Future[T]:
        """Have a worker do a job that has a turn."""
        try:
            future = self._workers.submit(self._work, job)
        except BaseException:
            self._turns.put(True)
            raise
        future.add_done_callback(lambda _future: self._turns.put(True))
        return future

    def _work(self, job: Work[T]) -> T:
        self._busy.add(job)
        try:
            return self._do(job)
        finally:
            self._busy.discard(job)

    def _do(self, job: Work[T]) -> T:
        with self._lend(job.limits, job.text) as machine:
            return job.do(machine)

    @overload
    def map(
        self, fn: Iterable[Command], /, *, timeout: float | None = None, progress: bool = False
    ) -> Iterator[Result]: ...
    @overload
    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        progress: bool = False,
    ) -> Iterator[T]: ...

    def map(
        self,
        fn: Callable[..., Any] | Iterable[Command],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        progress: bool = False,
    ) -> Iterator[Any]:
        """Do many jobs; what comes of them, in their order.

        No more than can run and wait are handed in ahead of what was taken from here, so there may be any number.

        Args:
            fn: commands; or a function, called with a machine and an item of each of the others.
            timeout: seconds from now, after which `TimeoutError` is raised.
            chunksize: for other executors; a machine has one job.
            progress: show a bar on standard error, if that is a terminal.

        Raises:
            Exception: that a job raised; those that have not begun then are not done.
        """
        if isinstance(fn, str):
            raise ValueError("map() takes many commands; run() takes one")
        if callable(fn):
            sizes = [length_hint(items, -1) for items in iterables]
            jobs = (work(self._limits, fn, *items) for items in zip(*iterables, strict=False))
        else:
            sizes = [length_hint(fn, -1)]
            jobs = (work(self._limits, command) for command in fn)
        total = min(sizes, default=0)
        bar = job_progress(None if total < 0 else total, progress)
        return in_order(map(self._wait_and_hand_in, jobs), self._most, timeout, bar)

    def _wait_and_hand_in(self, job: Work[T]) -> Future[T]:
        self._turns.take()
        return self._hand_in(job)

    # -- the pool --------------------------------------------------------------------------------------------------

    def metrics(self) -> PoolMetrics:
        """Counts and times so far."""
        handed_in = self._most - len(self._turns)
        return self._stock.metrics(max(handed_in - len(self._busy), 0))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, do those that were handed in, and end all machines, also those that were acquired.

        Args:
            wait: until that has happened.
            cancel_futures: those that have not begun are not done.
        """
        self._workers.shutdown(wait=False, cancel_futures=cancel_futures)
        if wait:
            self._finish()
        else:
            threading.Thread(target=self._finish, name="emu-pool-end").start()

    def _finish(self) -> None:
        self._workers.shutdown(wait=True)
        self._end()

    def close(self) -> None:
        """End at once: jobs that have not begun are cancelled, others fail, and all machines are gone."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._end()

    def _end(self) -> None:
        self._stock.close()
        self._watch.close()

    def __enter__(self) -> Self:
        try:
            self._stock.wait_started()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.shutdown()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, traceback)


@dataclass(frozen=True)
class _Lent:
    """A machine that somebody has.

    Attributes:
        since: monotonic seconds.
    """

    machine: MachineProcess
    watched: Watched
    since: float


def _zygote(snapshot: Path_, options: dict[str, Any]) -> MachineProcess:
    if snapshot == "alpine":
        from emu.snapshot.ready import DEFAULT_MEMORY, ready_snapshot

        snapshot = ready_snapshot(DEFAULT_MEMORY, lambda _name: nullcontext(), _log.info)
    return spawn(snapshot, **options)


def _warm(commands: Sequence[Command] | None, zygote: MachineProcess) -> None:
    if commands is None:
        zygote.run("true", check=True, timeout=WARM_S)
    else:
        for command in commands:
            zygote.run(command, check=True)
