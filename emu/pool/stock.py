"""The machines of a pool: one that is warm and never runs a job, and its clones."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic

from emu.errors import EmuError
from emu.pool.metrics import PoolMetrics, Recorder
from emu.pool.supply import Supply
from emu.pool.watch import Limits, Watch
from emu.process.client import MachineProcess

__all__ = ["Stock"]

_log = logging.getLogger(__name__)

LOOK_S = 1.0                            # between two looks whether everybody lives
STALE_S = 30.0                          # a fresh machine that nobody needed is asked to answer every so often
ANSWER_S = 20.0                         # for it to do so
FORK_S = 60.0                           # for the zygote, on a host that is very busy
MOST_FAILURES = 6                       # in a row, with nobody at work who could free what is missing
NEW_ZYGOTE_AFTER = 3                    # of them
PAUSE_S = 0.1                           # after the first failure, more after each


@dataclass(eq=False)
class _Fresh:
    """A machine that nobody has used; `since` is when it last showed that it is well (monotonic seconds)."""

    machine: MachineProcess
    since: float


class Stock:
    """Lends fresh machines. A thread forks them from the zygote ahead of need, and ends those that come back.

    Args:
        spawn: makes a zygote.
        warm: has it do what should not have to be done in each clone.
        size: machines that may be lent at the same time; as many more stand ready.
        watch: ends machines that do not answer.
        recorder: counts.
        is_wanted: False once nobody can ask any more.
    """

    def __init__(
        self,
        spawn: Callable[[], MachineProcess],
        warm: Callable[[MachineProcess], object],
        size: int,
        watch: Watch,
        recorder: Recorder,
        is_wanted: Callable[[], bool],
    ) -> None:
        self._spawn = spawn
        self._warm = warm
        self._size = size
        self._watch = watch
        self._recorder = recorder
        self._is_wanted = is_wanted
        self._places = Supply([True] * size)
        self._ready: Supply[_Fresh] = Supply()
        self._lock = threading.Lock()           # of all below
        self._lent: set[MachineProcess] = set()
        self._spent: deque[MachineProcess] = deque()
        self._zygote: MachineProcess | None = None
        self._is_closing = False
        self._failures = 0                      # the thread's own, as what follows
        self._next_check = 0.0
        self._started: Future[None] = Future()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="emu-pool-stock", daemon=True)
        self._thread.start()

    def wait_started(self) -> None:
        """Wait until machines can be had.

        Raises:
            EmuError: the snapshot cannot be restored, or warming it has failed; nobody will get a machine.
        """
        self._started.result()

    def acquire(self) -> MachineProcess:
        """A fresh machine; waits for it.

        Raises:
            EmuError: there will be none any more.
        """
        began = monotonic()
        self._places.take()
        try:
            machine = self._take_living()
        except BaseException:
            self._places.put(True)
            raise
        self._recorder.waited(monotonic() - began)
        return machine

    def _take_living(self) -> MachineProcess:
        while True:
            fresh = self._ready.take()
            self._wake.set()
            with self._lock:
                if fresh.machine.alive and not self._is_closing:
                    self._lent.add(fresh.machine)
                    return fresh.machine
                self._recorder.replaced += 1
            fresh.machine.kill()
            fresh.machine.close()               # here: at the end of the pool, its thread may have gone already

    def release(self, machine: MachineProcess) -> None:
        """Give a machine back; it is killed at once.

        Raises:
            ValueError: it was not lent.
        """
        with self._lock:
            if machine not in self._lent:
                raise ValueError("this machine is not lent by this pool, or was given back before")
            self._lent.remove(machine)
            self._spent.append(machine)
        machine.kill()
        self._places.put(True)
        self._wake.set()

    def metrics(self, queued: int) -> PoolMetrics:
        """What was counted; `queued` jobs have not asked for a machine yet."""
        waiting = queued + self._places.waiting + self._ready.waiting
        return self._recorder.metrics(
            size=self._size, ready=len(self._ready), in_use=len(self._lent), waiting=waiting
        )

    def close(self) -> None:
        """Kill all machines, also those that are lent, and wait until they are gone."""
        with self._lock:
            self._is_closing = True
            machines = [*self._lent, *([self._zygote] if self._zygote else [])]
        for machine in machines:
            machine.kill()
        self._wake.set()
        self._thread.join()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        error: Exception = EmuError("the pool is closed")
        try:
            while not self._is_closing and self._is_wanted():
                self._round()
                self._wake.wait(LOOK_S)
                self._wake.clear()
        except EmuError as failure:
            error = failure
        except Exception as failure:            # whoever waits has to hear of it
            _log.exception("the pool has ended")
            error = EmuError(f"the pool has ended: {failure}")
        finally:
            self._end(error)

    def _round(self) -> None:
        try:
            if self._zygote is None or not self._zygote.alive:
                self._start()
            if monotonic() >= self._next_check:
                self._check()
                self._next_check = monotonic() + LOOK_S
            self._fork_missing()
        except EmuError as error:
            self._failed(error)
        self._bury()

    def _failed(self, error: EmuError) -> None:
        """Try again, unless that has been of no use."""
        if self._is_closing:
            return
        self._failures += 1
        if not self._started.done() or (self._failures >= MOST_FAILURES and not self._lent):
            raise error
        _log.warning("%s; trying again", error)
        if self._failures == NEW_ZYGOTE_AFTER and self._zygote is not None and not self._lent:
            self._zygote.kill()                 # its guest may have stopped
        self._wake.wait(PAUSE_S * min(self._failures, MOST_FAILURES))
        self._wake.set()

    def _start(self) -> None:
        if self._zygote is not None:
            _log.warning("the warm machine has died; starting another one")
            self._recorder.restarts += 1
            self._retire(self._zygote)
        zygote = self._spawn()
        with self._lock:
            self._zygote = zygote
            if self._is_closing:
                zygote.kill()
        try:
            self._warm(zygote)
        except EmuError:
            zygote.close()
            raise
        if not self._started.done():
            self._started.set_result(None)

    def _fork_missing(self) -> None:
        zygote = self._zygote
        assert zygote is not None
        while len(self._ready) < self._size and not self._is_closing:
            began = monotonic()
            with self._watch.over(zygote, Limits(seconds=FORK_S), "a fork"):
                machine = zygote.fork()
            now = monotonic()
            self._recorder.forked(now - began)
            self._failures = 0
            self._ready.put(_Fresh(machine, now))
            self._bury()

    def _check(self) -> None:
        """End machines that have died or do not answer while they were waiting for a job."""
        for dead in self._ready.pick(lambda fresh: not fresh.machine.alive):
            self._replace(dead.machine)
        for stale in self._ready.pick(lambda fresh: monotonic() - fresh.since > STALE_S):
            try:
                with self._watch.over(stale.machine, Limits(seconds=ANSWER_S), "a check"):
                    stale.machine.run("true", check=True)
            except EmuError as error:
                _log.warning("a machine that was ready did not answer: %s", error)
                self._replace(stale.machine)
            else:
                stale.since = monotonic()
                self._ready.put(stale)

    def _replace(self, machine: MachineProcess) -> None:
        self._recorder.replaced += 1
        self._retire(machine)

    def _retire(self, machine: MachineProcess) -> None:
        machine.kill()
        self._spent.append(machine)

    def _bury(self) -> None:
        """Let go of those that have ended, without waiting for the others."""
        for _ in range(len(self._spent)):
            machine = self._spent.popleft()
            if machine.alive:
                self._spent.append(machine)
            else:
                machine.close()

    def _end(self, error: Exception) -> None:
        """Nobody gets a machine any more."""
        with self._lock:
            self._is_closing = True
            if self._zygote is not None:
                self._spent.append(self._zygote)
            self._spent.extend(self._lent)
        self._spent.extend(fresh.machine for fresh in self._ready.end(error))
        self._places.end(error)
        if not self._started.done():
            self._started.set_exception(error)
        for machine in list(self._spent):
            machine.kill()
        while self._spent:
            self._spent.popleft().close()
