"""Exit accounting of a whole guest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import emu
from emu.machine import Machine
from emu.stats import OUTSIDE, UNCLAIMED, Kind

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that times its exits, with a file in a share."""
    share = tmp_path_factory.mktemp("share")
    (share / "small").write_text("hello\n")
    with emu.boot(kernel="generic", accounting=True, shares={"data": Path(share)}) as machine:
        machine.wait_ready()
        yield machine


def test_every_call_of_a_handler_is_timed_and_the_split_is_all_of_the_time(accounted: Machine) -> None:
    stats = accounted.stats()
    rows = [row for row in stats.rows() if row.kind not in OUTSIDE and row.handler != UNCLAIMED]
    assert {Kind.PORT_IN, Kind.PORT_OUT, Kind.MMIO_READ, Kind.MMIO_WRITE, Kind.WRMSR, Kind.INTERRUPT} <= {
        row.kind for row in rows
    }
    assert all(sum(row.histogram) == row.count for row in rows)
    assert all(row.quantile_ns(0.5) <= row.quantile_ns(0.99) <= row.longest_ns <= row.total_ns for row in rows)
    assert 0 < stats.handlers_ns < stats.run_ns < stats.driven_ns
    assert sum(ns for _, ns in stats.split()) == stats.driven_ns


def test_a_file_read_over_9p_is_notifications_of_that_device(accounted: Machine) -> None:
    before = accounted.stats()
    assert accounted.run("cat /mnt/data/small", check=True, timeout=60).stdout == "hello\n"
    meanwhile = accounted.stats() - before
    (slot,) = (row.handler for row in before.rows() if row.kind == Kind.MMIO_WRITE and "virtio-9p" in row.handler)
    assert 3 <= meanwhile.count(Kind.MMIO_WRITE, slot) < 60             # walk, open, read, clunk
    (row,) = (row for row in meanwhile.rows() if (row.kind, row.handler) == (Kind.MMIO_WRITE, slot))
    assert row.count * 1000 < row.total_ns < meanwhile.run_ns
    assert meanwhile.count(Kind.NATIVE, "syscall") > 20


def test_idle_time_is_neither_the_guest_s_nor_the_loop_s(accounted: Machine) -> None:
    """In one of several sleeps: while the host does something else, the guest and the loop are slow, not idle."""

    def is_idle() -> bool:
        before = accounted.stats()
        accounted.run("sleep 0.5", timeout=60)
        split = dict((accounted.stats() - before).split())
        return split["idle"] > 0.4e9 and split["run loop"] + split["between runs"] < split["idle"]

    assert any(is_idle() for _ in range(10))
