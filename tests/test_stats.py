"""Exit statistics: quantiles, differences, the split of the time, and how they are shown."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from emu.accounting import Tally
from emu.stats import BUCKETS, ExitRow, ExitStats, Kind

TIMES = st.lists(st.integers(0, 1 << 40) | st.integers(0, 5000), min_size=1, max_size=80)


def tally(times: list[int]) -> Tally:
    """A tally of calls that took this long."""
    made = Tally(Kind.WRMSR, "PV_TEST")
    for took_ns in times:
        made.count += 1
        made.add(took_ns)
    return made


@given(TIMES)
def test_a_row_keeps_count_total_and_longest(times: list[int]) -> None:
    row = tally(times).row()
    assert (row.count, row.total_ns, row.longest_ns) == (len(times), sum(times), max(times))
    assert sum(row.histogram) == len(times) and len(row.histogram) == BUCKETS
    for bits, calls in enumerate(row.histogram):
        assert calls == sum(1 << bits > took_ns >= (1 << bits) >> 1 for took_ns in times)


@given(TIMES, st.sampled_from([0.01, 0.25, 0.5, 0.75, 0.99, 1.0]))
def test_a_quantile_is_in_the_bucket_of_the_true_one(times: list[int], share: float) -> None:
    true = sorted(times)[math.ceil(share * len(times)) - 1]
    estimate = tally(times).row().quantile_ns(share)
    assert (1 << true.bit_length()) >> 1 <= estimate <= 1 << true.bit_length()
    assert estimate <= max(times)


@given(TIMES)
def test_quantiles_rise(times: list[int]) -> None:
    row = tally(times).row()
    quantiles = [row.quantile_ns(step / 20) for step in range(21)]
    assert quantiles == sorted(quantiles)


def test_calls_within_a_bucket_are_taken_to_be_spread_evenly() -> None:
    row = tally([1024] * 4 + [1_000_000]).row()
    assert row.quantile_ns(0.4) == 1536                     # half of the way from 1024 to 2048


def test_a_handler_without_calls_has_no_times() -> None:
    row = ExitRow(Kind.WRMSR, "PV_TEST", 0)
    assert (row.mean_ns, row.quantile_ns(0.5), row.has_times) == (0, 0, False)


@given(TIMES, TIMES)
def test_a_difference_has_what_came_since(first: list[int], second: list[int]) -> None:
    made = tally(first)
    before = made.row()
    for took_ns in second:
        made.count += 1
        made.add(took_ns)
    since, alone = made.row() - before, tally(second).row()
    assert (since.count, since.total_ns, since.histogram) == (alone.count, alone.total_ns, alone.histogram)
    assert alone.longest_ns <= since.longest_ns < 1 << alone.longest_ns.bit_length()


ROWS = (
    ExitRow(Kind.PORT_OUT, "com1", 100),
    tally([5_000_000, 15_000_000]).row(),
    ExitRow(Kind.BETWEEN, "timers", 1, 10_000_000, 10_000_000, tally([10_000_000]).row().histogram),
    ExitRow(Kind.NATIVE, "syscall", 12_345),
)
STATS = ExitStats(ROWS, driven_ns=200_000_000, run_ns=100_000_000, idle_ns=50_000_000, timed=True)


def test_the_split_is_all_of_the_time() -> None:
    assert STATS.split() == [
        ("guest", 80_000_000), ("handlers", 20_000_000), ("between runs", 10_000_000), ("idle", 50_000_000),
        ("run loop", 40_000_000),
    ]  # fmt: skip
    assert sum(ns for _, ns in STATS.split()) == STATS.driven_ns


def test_without_times_exits_are_part_of_the_run() -> None:
    stats = ExitStats((ExitRow(Kind.PORT_OUT, "com1", 3),), driven_ns=10, run_ns=5, idle_ns=3)
    assert stats.split() == [("guest and exits", 5), ("idle", 3), ("run loop", 2)]
    assert stats.table().splitlines()[1].split() == ["port", "out", "com1", "3"]


def test_counts_are_found_by_kind_and_by_handler() -> None:
    assert STATS.count(Kind.NATIVE, "syscall") == STATS.count(Kind.NATIVE) == 12_345
    assert STATS.count(Kind.NATIVE, "cpuid") == STATS.count(Kind.RDMSR) == 0


def test_most_time_comes_first_and_then_what_is_most_frequent() -> None:
    assert [row.handler for row in STATS.rows()] == ["PV_TEST", "timers", "syscall", "com1"]


def test_a_difference_leaves_out_what_did_not_happen() -> None:
    more = ExitStats((*ROWS[:3], ExitRow(Kind.NATIVE, "syscall", 12_350)), 210_000_000, 105_000_000, 51_000_000, True)
    assert more - STATS == ExitStats((ExitRow(Kind.NATIVE, "syscall", 5),), 10_000_000, 5_000_000, 1_000_000, True)
    nothing = ExitStats((), 0, 0, 0, True)
    assert STATS - nothing == STATS
    assert "driven" in nothing.table()


def test_the_table_has_a_line_for_each_row_and_each_part() -> None:
    heading, first, *others = STATS.table().splitlines()
    assert " ".join(heading.split()) == "kind handler count ms share mean µs p50 µs p99 µs max µs"
    assert first.split() == ["wrmsr", "PV_TEST", "2", "20.00", "10.0%", "10000.0", "8388.6", "15000.0", "15000.0"]
    assert [line.split()[-1] for line in others] == [
        "10000.0", "12,345", "100", "40.0%", "10.0%", "5.0%", "25.0%", "20.0%", "100.0%"
    ]  # fmt: skip
    edge = heading.index("count") + len("count")
    assert [line[:edge].split()[-1] for line in (first, *others[:3])] == ["2", "1", "12,345", "100"]


def test_json_says_everything() -> None:
    figures = json.loads(json.dumps(STATS.as_json()))
    assert (figures["timed"], figures["driven_ns"], figures["split_ns"]["guest"]) == (True, 200_000_000, 80_000_000)
    first, *_, last = figures["rows"]
    assert (first["kind"], first["handler"], first["count"], first["total_ns"]) == ("wrmsr", "PV_TEST", 2, 20_000_000)
    assert sum(first["histogram"]) == 2 and len(first["histogram"]) == (15_000_000).bit_length() + 1
    assert last == {"kind": "port out", "handler": "com1", "count": 100}
