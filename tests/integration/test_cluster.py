"""Jobs on a Dask cluster of two worker processes, one of which is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import emu
from emu import cluster
from emu.cache import ENVIRONMENT
from emu.errors import OutputLimit
from emu.memory import MIB
from emu.snapshot.files import Snapshot

distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")

pytestmark = pytest.mark.integration

TIMEOUT_S = 60.0
GONE_S = 30.0
MARK = "EMU_TEST_CLUSTER"               # in the environment of all processes that are started here
SPAWNED = b"emu.process.spawn"          # in the command line of machines

counts = pytest.mark.parametrize(
    "count", [40, pytest.param(500, marks=(pytest.mark.soak, pytest.mark.timeout(1800)))]
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "base.snap"
    with emu.spawn(kernel="cloud", memory=128 * MIB) as machine:
        machine.wait_ready()
        machine.run("true", check=True, timeout=TIMEOUT_S)
        machine.snapshot(path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workers'."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def client(cache: Path) -> Iterator[Any]:
    """Of two workers with two threads each; in the end, no process of theirs is left."""
    mark = os.urandom(8).hex()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.setenv(ENVIRONMENT, str(cache))
        cores = {"n_workers": 2, "threads_per_worker": 2, "memory_limit": 0}
        with distributed.LocalCluster(processes=True, dashboard_address=None, **cores) as workers:
            with distributed.Client(workers) as client:
                yield client
                assert _marked(mark) != []
    assert left(mark) == []


def left(mark: str) -> list[int]:
    """Processes of machines that were started here and are there after a generous time."""
    end = time.monotonic() + GONE_S
    while (pids := _marked(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    return pids


def _marked(mark: str) -> list[int]:
    wanted = f"{MARK}={mark}".encode()
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0") and SPAWNED in path.with_name("cmdline").read_bytes():
                pids.append(int(path.parent.name))
        except OSError:                 # it has ended, or is another user's
            pass
    return pids


@counts
def test_a_worker_that_is_killed_costs_no_result(client: Any, snapshot: Path, count: int) -> None:
    client.wait_for_workers(2, timeout=TIMEOUT_S)
    victim = next(iter(client.run(os.getpid).values()))
    jobs = [f"echo {number} $(({number} * {number})); cat /proc/sys/kernel/random/uuid" for number in range(count)]
    numbers, uuids = [], set()
    for place, result in enumerate(cluster.map(client, snapshot, jobs, timeout=TIMEOUT_S)):
        first, uuid = result.stdout.splitlines()
        numbers.append(tuple(int(word) for word in first.split()))
        uuids.add(uuid)
        if place == count // 2:
            os.kill(victim, signal.SIGKILL)
    assert numbers == [(number, number * number) for number in range(count)]
    assert len(uuids) == count


def test_a_snapshot_that_workers_do_not_see_is_taken_to_them_once(
    client: Any, snapshot: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = cluster.SnapshotName.of
    monkeypatch.setattr(cluster.SnapshotName, "of", lambda path: replace(name(path), path="/nowhere"))
    results = list(cluster.map(client, snapshot, [f"echo {number}" for number in range(8)], timeout=TIMEOUT_S))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(8)]
    [fetched] = [path for path in (cache / "fetched").iterdir() if path.is_dir()]
    with Snapshot.open(fetched) as copy:
        copy.verify()


def test_what_a_job_raises_comes_in_its_place(client: Any, snapshot: Path) -> None:
    jobs = ["echo 1", "head -c 100000 /dev/zero", "echo 3"]
    results = cluster.map(client, snapshot, jobs, timeout=TIMEOUT_S, output_limit=1000)
    assert next(results).stdout == "1\n"
    with pytest.raises(OutputLimit, match="wrote more than"):
        next(results)
