"""Runs tasks in a child process that may crash or hang: what it was at is known then, and the next child goes on.

A damaged libunicorn does anything: it kills the process, loops, writes where it should not. None of that reaches the
process that reports.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from devices.frozen import frozen
from emu.errors import EmuError
from emu.selftest.check import Failure, Skipped

__all__ = ["FAILED", "LIMIT_S", "PASSED", "SKIPPED", "Outcome", "Runner", "Task"]

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
LIMIT_S = 10.0                          # for one task; the longest takes a tenth of a second on a quiet machine
BUDGET_S = 20.0
ANSWER_BYTES = 64 * 1024                # more is no answer
QUOTED = 200                            # characters of what a child said last

Task = Callable[[], Any]
"""What is done in the child; it returns something JSON can hold, or raises."""


@frozen
class Outcome:
    """How a task ended.

    Attributes:
        state: PASSED, FAILED or SKIPPED.
        detail: one line that says why, empty if it passed.
        seconds: how long it took.
        value: what it returned.
    """

    state: str
    detail: str = ""
    seconds: float = 0.0
    value: Any = None


class Runner:
    """Does tasks in a child process, and in a new one behind each that ends it.

    Args:
        limit_s: seconds after which a task counts as hanging, and its process is killed.
        budget_s: seconds that may go into tasks that fail; what comes after them is skipped, so that nobody waits for
            minutes where everything hangs.
    """

    def __init__(self, limit_s: float = LIMIT_S, budget_s: float = BUDGET_S) -> None:
        self._limit_s = limit_s
        self._left_s = budget_s

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Do tasks one after the other, the first of them in a new process; how each ends, in order."""
        child = None
        try:
            for number in range(len(tasks)):
                if self._left_s <= 0:
                    yield Outcome(SKIPPED, "too much time has gone into what failed")
                    continue
                if child is None:
                    child = _Child(tasks[number:], self._limit_s)
                outcome, alive = child.next_outcome()
                if outcome.state == FAILED:
                    self._left_s -= outcome.seconds
                if not alive:
                    child.close()
                    child = None
                yield outcome
        finally:
            if child is not None:
                child.close()


class _Child:
    """A process that does tasks and writes a line of JSON for each."""

    def __init__(self, tasks: Sequence[Task], limit_s: float) -> None:
        self._ended = False
        self._limit_s = limit_s
        self._errors = os.memfd_create("errors")
        self._answers, answers = os.pipe()
        for stream in (sys.stdout, sys.stderr):         # else the child might write what is in their buffers again
            stream.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(tasks, answers, self._errors, math.ceil(2 * limit_s))
        os.close(answers)
        self._rest = b""

    def next_outcome(self) -> tuple[Outcome, bool]:
        """How the task under way ends, and whether the process lives on."""
        started = time.monotonic()
        line = self._line(started + self._limit_s)
        seconds = time.monotonic() - started
        if line is None:
            return Outcome(FAILED, f"it did not end within {self._limit_s:g} s", seconds), False
        try:
            answer = json.loads(line)
            return Outcome(answer["state"], answer["detail"], seconds, answer["value"]), True
        except (ValueError, KeyError, TypeError):       # not the whole of a line, or something else wrote it
            return Outcome(FAILED, self._end() if self._ended else "it damaged the process it is in", seconds), False

    def _line(self, end: float) -> bytes | None:
        """The next line; what there is of it if the process has ended, None if the time has."""
        while b"\n" not in self._rest and len(self._rest) < ANSWER_BYTES:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                return None
            data = os.read(self._answers, ANSWER_BYTES)
            if not data:
                self._ended = True
                break
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end(self) -> str:
        """What became of the process, which has closed its end of the pipe."""
        os.kill(self._pid, signal.SIGKILL)              # if it lives on all the same; one that is dying does not mind
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        code = os.waitstatus_to_exitcode(status)
        said = os.pread(self._errors, os.fstat(self._errors).st_size, 0).decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        how = f"crashed by {_signal_name(-code)}" if code < 0 else f"ended the process with status {code}"
        return f"{how}: {last[:QUOTED]}" if last else how

    def close(self) -> None:
        """End the process."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
        os.close(self._answers)
        os.close(self._errors)


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _serve(tasks: Sequence[Task], answers: int, errors: int, limit_s: int) -> NoReturn:
    """The child's whole life; nothing of the parent's frames is ever returned to."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.disable()                          # the parent tells of a crash, in a line
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nothing = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, nothing), (1, nothing), (2, errors)):
            os.dup2(source, target)
        for task in tasks:
            signal.alarm(limit_s)                       # ends it if whoever waits for it has gone
            answer = _answer(task)
            os.write(answers, json.dumps(answer).encode() + b"\n")
    finally:
        os._exit(0)


def _answer(task: Task) -> dict[str, Any]:
    try:
        return {"state": PASSED, "detail": "", "value": task()}
    except Skipped as reason:
        return {"state": SKIPPED, "detail": str(reason), "value": None}
    except (Failure, EmuError) as error:
        detail = str(error)
    except BaseException as error:
        detail = f"{type(error).__name__}: {error}"
    return {"state": FAILED, "detail": " ".join(detail.split()), "value": None}
