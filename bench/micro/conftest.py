"""What all micro-benchmarks share: how often, and by which clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

Timed = Callable[[str, Callable[[int], None], int], None]
Grown = Callable[..., None]

ROUNDS, QUICK_ROUNDS, QUICK_GROWN = 60, 7, 3
WARM_UP = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    """--quick: few rounds."""
    parser.addoption("--quick", action="store_true", help="few rounds, and of what grows only the ends")


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


@pytest.fixture
def grown(benchmark: BenchmarkFixture, is_quick: bool) -> Grown:
    """Time a function as something grows.

    Args of what it gives: the figure's name, with its unit behind it; what grows, and how large that is; what makes
    the function that is timed, anew for each round; rounds; how often the function does what is timed.
    """

    def run(
        what: str, grows: str, size: int, make: Callable[[], Callable[[], object]], rounds: int, count: int = 1
    ) -> None:
        unit = what.rpartition("_")[2]
        benchmark.extra_info.update(
            key=f"{what}_{grows}_{size}", count=count, unit=unit, what=what, grows=grows, size=size
        )
        do: list[Callable[[], object]] = []

        def set_up() -> None:
            do[:] = [make()]

        benchmark.pedantic(     # type: ignore[no-untyped-call]
            lambda: do[0]() and None, setup=set_up, rounds=QUICK_GROWN if is_quick else rounds, warmup_rounds=1
        )

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for nothing is timed by the clock of the process."""
    for item in items:
        if "timed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=time.process_time))
