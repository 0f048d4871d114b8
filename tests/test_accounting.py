"""Counting and timing handlers, without a machine."""

from __future__ import annotations

import time

import pytest

from emu.accounting import Accounting
from emu.stats import Kind

NAP_S = 0.003


def nap(times: int = 1) -> int:
    """A handler that takes long enough to be seen."""
    time.sleep(times * NAP_S)
    return times


def test_without_timing_a_handler_is_called_as_it_is() -> None:
    accounting = Accounting()
    assert accounting.timed(accounting.tally(Kind.WRMSR, "PV_TEST"), nap) is nap
    assert accounting.between("timers", nap) is nap
    assert accounting.rows() == ()


def test_a_handler_has_one_tally_a_kind() -> None:
    accounting = Accounting()
    tally = accounting.tally(Kind.PORT_IN, "com1")
    assert accounting.tally(Kind.PORT_IN, "com1") is tally
    assert accounting.tally(Kind.PORT_OUT, "com1") is not tally


def test_a_timed_handler_s_time_is_in_total_longest_and_histogram() -> None:
    accounting = Accounting(timing=True)
    tally = accounting.tally(Kind.WRMSR, "PV_TEST")
    handler = accounting.counted(tally, nap)
    assert [handler(1), handler(3)] == [1, 3]
    (row,) = accounting.rows()
    assert (row.kind, row.handler, row.count, sum(row.histogram)) == (Kind.WRMSR, "PV_TEST", 2, 2)
    assert row.longest_ns >= 3 * NAP_S * 1e9
    assert row.total_ns >= row.longest_ns + NAP_S * 1e9
    assert row.histogram[row.longest_ns.bit_length()] >= 1


def test_a_handler_that_raises_is_counted_and_timed() -> None:
    def fail() -> None:
        raise ValueError("no")

    accounting = Accounting(timing=True)
    handler = accounting.counted(accounting.tally(Kind.RDMSR, "PV_TEST"), fail)
    with pytest.raises(ValueError, match="no"):
        handler()
    (row,) = accounting.rows()
    assert (row.count, sum(row.histogram)) == (1, 1)


def test_without_timing_counting_adds_no_time() -> None:
    accounting = Accounting()
    accounting.counted(accounting.tally(Kind.CR8_READ, "lapic"), nap)(1)
    (row,) = accounting.rows()
    assert (row.count, row.total_ns, row.has_times) == (1, 0, False)


def test_between_runs_what_others_account_for_is_left_out() -> None:
    accounting = Accounting(timing=True)

    def inner() -> None:
        nap(1)
        accounting.elsewhere_ns += 10**12               # a run of the machine

    def outer() -> None:
        accounting.between("files", inner)()
        nap(1)
        assert accounting.elsewhere_ns == 0             # the inner call's is its own

    accounting.elsewhere_ns = 10**12                    # a run before
    accounting.between("timers", outer)()
    assert accounting.elsewhere_ns == 10**12
    rows = {row.handler: row for row in accounting.rows()}
    assert rows["files"].total_ns == 0
    assert rows["timers"].total_ns >= 2 * NAP_S * 1e9
    assert [row.kind for row in rows.values()] == [Kind.BETWEEN] * 2
