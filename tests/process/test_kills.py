"""kill -9 of whoever uses a machine, of the machine, of one that was forked: nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import emu
from bench.trouble import LOUD_SETTINGS
from emu.errors import MachineDied
from emu.memory import MIB

pytestmark = pytest.mark.integration

TIMEOUT_S = 60.0
GONE_S = 20.0                   # takes milliseconds; a busy host may take its time
BUSY = "while :; do :; done"

# The user of two machines, one of which it has forked, with a guest that computes and one that sleeps
USER = f"""
import json, sys, threading, time
import emu
template = emu.spawn(sys.argv[1])
clones = template.fork(3)
grandchild = clones[0].fork()
threading.Thread(target=clones[1].run, args=({BUSY!r},), daemon=True).start()
clones[2].run("true", check=True)
print(json.dumps([machine.pid for machine in (template, *clones, grandchild)]), flush=True)
clones[2].run("sleep 1000")
"""


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kills") / "base.snap"
    with emu.spawn(kernel="cloud", memory=128 * MIB, append=LOUD_SETTINGS) as machine:
        machine.wait_ready()
        machine.run("true", check=True, timeout=TIMEOUT_S)
        machine.snapshot(path)
    return path


@pytest.fixture
def template(snapshot: Path) -> Iterator[emu.MachineProcess]:
    with emu.spawn(snapshot) as machine:
        yield machine


def is_running(pid: int) -> bool:
    """Not even a zombie counts as gone, unless its parent is not ours to blame."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return not (fields[0] == "Z" and fields[1] in ("0", "1"))


def left(pids: Iterable[int]) -> list[int]:
    """Those that are still there after a generous time."""
    end = time.monotonic() + GONE_S
    rest = list(pids)
    while rest and time.monotonic() < end:
        rest = [pid for pid in rest if is_running(pid)]
        if rest:
            time.sleep(0.01)
    return rest


def test_nothing_outlives_who_used_it(snapshot: Path) -> None:
    user = subprocess.Popen([sys.executable, "-c", USER, str(snapshot)], stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdout is not None
        pids = json.loads(user.stdout.readline())
        assert len({*pids}) == 5 and all(is_running(pid) for pid in pids)
    finally:
        user.kill()
        user.wait()
    assert left(pids) == []


def test_clones_end_with_the_machine_that_they_were_forked_from(template: emu.MachineProcess) -> None:
    clones = template.fork(3)
    grandchild = clones[0].fork()
    for machine in (*clones, grandchild):
        machine.run("true", check=True, timeout=TIMEOUT_S)
    everybody = [machine.pid for machine in (*clones, grandchild)]
    errors: list[BaseException] = []

    def wait_for_ever() -> None:
        try:
            clones[1].run(BUSY)
        except BaseException as error:
            errors.append(error)

    waiting = threading.Thread(target=wait_for_ever)
    waiting.start()
    try:
        os.kill(template.pid, signal.SIGKILL)
        assert left(everybody) == []
        waiting.join(TIMEOUT_S)
        assert [type(error) for error in errors] == [MachineDied]
        for machine in (template, *clones, grandchild):
            assert not machine.alive
            with pytest.raises(MachineDied, match="is gone"):
                machine.run("true", timeout=TIMEOUT_S)
    finally:
        for machine in (template, *clones, grandchild):
            machine.close()
    assert left([template.pid]) == []


def test_a_clone_that_was_killed_leaves_nothing_and_harms_no_other(template: emu.MachineProcess) -> None:
    first, second = template.fork(2)
    os.kill(first.pid, signal.SIGKILL)
    assert left([first.pid]) == []
    with pytest.raises(MachineDied, match="is gone"):
        first.run("true", timeout=TIMEOUT_S)
    first.close()
    for machine in second, template:
        assert machine.run("echo here", timeout=TIMEOUT_S).stdout == "here\n"
    with template.fork() as third:
        assert third.run("echo here", timeout=TIMEOUT_S).stdout == "here\n"
    second.close()
    assert left([second.pid, third.pid]) == []


def test_machines_end_when_nobody_holds_them_any_more(template: emu.MachineProcess) -> None:
    clones = template.fork(3)
    pids = [clone.pid for clone in clones]
    threading.Thread(target=_ignore_death, args=(clones[0],), daemon=True).start()
    del clones[1:]
    assert left(pids[1:]) == []
    clones[0].close()
    assert left(pids) == []


def _ignore_death(machine: emu.MachineProcess) -> None:
    try:
        machine.run(BUSY)
    except MachineDied:
        pass
