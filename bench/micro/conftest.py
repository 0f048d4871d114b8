"""What all micro-benchmarks share: how often, and by which clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

Timed = Callable[[str, Callable[[int], None], int], None]

ROUNDS, QUICK_ROUNDS = 60, 7
WARM_UP = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    """--quick: few rounds."""
    parser.addoption("--quick", action="store_true", help="few rounds")


@pytest.fixture
def is_quick(request: pytest.FixtureRequest) -> bool:
    """Whether this is but a look."""
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def timed(benchmark: BenchmarkFixture, is_quick: bool) -> Timed:
    """Time a function that is told how often to do something; `key` and `unit` are for the report.

    By the clock of the process, which stands still while the host does something else.
    """

    def run(key: str, do: Callable[[int], None], count: int) -> None:
        benchmark.extra_info.update(key=key, count=count, unit="ns")
        rounds = QUICK_ROUNDS if is_quick else ROUNDS
        benchmark.pedantic(do, (count,), rounds=rounds, warmup_rounds=WARM_UP)     # type: ignore[no-untyped-call]

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Use the clock of the process."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=time.process_time))
