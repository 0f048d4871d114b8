"""Whatever a task does to its process, it has an outcome, and those behind it too."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emu.errors import UnsupportedHost
from emu.selftest import runner
from emu.selftest.check import Failure, Skipped
from emu.selftest.runner import FAILED, PASSED, SKIPPED, Outcome, Runner, Task
from tests.support.descriptors import open_files


def kill(number: int) -> Task:
    """A task that dies of a signal."""
    return lambda: os.kill(os.getpid(), number)


def fail(error: BaseException) -> Task:
    """A task that raises."""

    def task() -> None:
        raise error

    return task


def answer(data: str) -> Task:
    """A task in whose process something else writes the answer."""

    def task() -> None:
        runner.json.dumps = lambda answer: data      # type: ignore[attr-defined]  # in the child alone

    return task


def spin() -> None:
    """Never end."""
    while True:
        time.sleep(1)


def complain() -> None:
    """Die, and say why on standard error."""
    os.write(2, b"first\nterminate called\n\n")
    os.abort()


def states(*tasks: Task, limit_s: float = 30.0) -> list[str]:
    """How tasks end."""
    return [outcome.state for outcome in Runner(limit_s).run(tasks)]


def detail(task: Task, limit_s: float = 30.0) -> str:
    """What is said of one that fails."""
    (outcome,) = Runner(limit_s).run([task])
    assert outcome.state == FAILED
    return outcome.detail


def test_values_come_back_in_order_from_another_process() -> None:
    first, second, third = Runner().run([os.getpid, lambda: {"a": [1, None]}, os.getpid])
    assert (first.state, second.value) == (PASSED, {"a": [1, None]})
    assert first.value == third.value != os.getpid()


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (kill(signal.SIGSEGV), "crashed by signal 11 (SIGSEGV)"),
        (kill(signal.SIGKILL), "crashed by signal 9 (SIGKILL)"),
        (kill(signal.SIGRTMIN + 3), f"crashed by signal {signal.SIGRTMIN + 3}"),
        (complain, "crashed by signal 6 (SIGABRT): terminate called"),
        (lambda: os._exit(3), "ended the process with status 3"),
        (fail(Failure("it is broken")), "it is broken"),
        (fail(UnsupportedHost("one\ntwo")), "one two"),
        (fail(KeyError("x")), "KeyError: 'x'"),
        (fail(SystemExit(0)), "SystemExit: 0"),
        (answer("\0\x7f" * 200), "it damaged the process"),
        (answer("[1]"), "it damaged the process"),
        (answer("{}" * (1 << 20)), "it damaged the process"),
        (lambda: object(), "ended the process with status 0"),
    ],
)
def test_a_failure_is_a_line(task: Task, says: str) -> None:
    assert detail(task).startswith(says)


def test_a_check_that_cannot_be_made_is_skipped() -> None:
    assert [(outcome.state, outcome.detail) for outcome in Runner().run([fail(Skipped("no record"))])] == [
        (SKIPPED, "no record")
    ]


def test_tasks_behind_a_crash_are_done() -> None:
    crash = kill(signal.SIGSEGV)
    assert states(crash, os.getpid, crash, crash, os.getpid) == [FAILED, PASSED, FAILED, FAILED, PASSED]


def test_a_task_that_hangs_is_ended_and_the_next_are_done() -> None:
    assert detail(spin, 0.1) == "it did not end within 0.1 s"
    assert states(spin, os.getpid, limit_s=2.0) == [FAILED, PASSED]


def test_not_all_hangs_are_waited_for() -> None:
    runner = Runner(limit_s=1.0, budget_s=1.5)
    outcomes = [*runner.run([os.getpid, spin]), *runner.run([spin, spin, os.getpid])]
    first, second, third, *rest = [outcome.state for outcome in outcomes]
    assert (first, second, rest) == (PASSED, FAILED, [SKIPPED, SKIPPED])
    assert third in (FAILED, SKIPPED)       # a busy host may have taken all of the time for the one before
    assert outcomes[-1].detail == "too much time has gone into what failed"


def test_nothing_a_task_prints_gets_out(capfd: pytest.CaptureFixture[str]) -> None:
    def loud() -> None:
        os.write(1, b"out")
        os.write(2, b"err")

    print("ours", end="")
    assert states(loud) == [PASSED]
    assert capfd.readouterr() == ("ours", "")


def test_a_crash_leaves_no_core() -> None:
    (outcome,) = Runner().run([lambda: resource.getrlimit(resource.RLIMIT_CORE)])
    assert outcome.value == [0, 0]


def test_nothing_is_left_behind() -> None:
    before = open_files()
    tasks = Runner().run([os.getpid, spin, kill(signal.SIGSEGV)])
    first = next(tasks)
    tasks.close()                       # in the middle: the child is at the one that never ends
    assert states(kill(signal.SIGSEGV), os.getpid) == [FAILED, PASSED]
    assert open_files() == before
    with pytest.raises(ProcessLookupError):
        os.kill(first.value, 0)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


ORPHAN = """
import os, signal, sys, time
from emu.selftest import runner

def task():
    print(os.getpid(), file=open(sys.argv[1], "w"), flush=True)
    while True:
        pass

def asleep():
    os.kill(os.getppid(), signal.SIGKILL)
    task()

list(runner.Runner(limit_s=0.3).run([asleep]))
"""


def test_a_child_does_not_outlive_its_parent_for_long(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    subprocess.run([sys.executable, "-c", ORPHAN, str(noted)], timeout=60)
    wait_until(lambda: noted.exists() and noted.read_text().endswith("\n"))
    wait_until(lambda: has_ended(int(noted.read_text())))


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for somebody to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens by itself."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_child_takes_signals_as_any_process() -> None:
    """Whatever handlers the parent has: Ctrl-C reaches both."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        assert detail(kill(signal.SIGTERM)) == "crashed by signal 15 (SIGTERM)"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_outcome_tells_how_long_it_took() -> None:
    (outcome,) = Runner().run([lambda: time.sleep(0.5)])
    assert 0.1 < outcome.seconds < 30       # whoever measures may come late, on a busy host
    assert Outcome(PASSED) == Outcome(PASSED, "", 0.0, None)
    assert runner.LIMIT_S >= 10
