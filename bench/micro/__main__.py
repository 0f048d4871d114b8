"""Micro-benchmarks: memory accesses and exits; many rounds of each, after a warm-up.

    python -m bench.micro [--quick] [-k EXPRESSION]

pytest-benchmark times the files bench_*.py of this directory, by the clock of the process, which stands still while the
host does something else. Figures are medians. Behind one stands how many of its rounds are outliers (Tukey's fences) if
that is 2 % or more, and its coefficient of variation if that is above 0.1.

SIDE_readN_PLACE_ns and SIDE_writeN_PLACE_ns are an access of N bytes: by the `host` (`GuestMemory`), by a hypercall's
`handler` by physical address or by a `virtual` one, a loop of Python included; by the `guest`, in a loop of 16.
exit_NAME_ns is a way out of the guest and back, the loop around it included.

read8_over_read4_aligned and read8_over_read4_unaligned are reads of 8 bytes over those of 4, measured in turn, the
worst of all sides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.common import OUTPUT, ROOT, Report, in_turn, ratio_of_medians
from bench.micro.access import GUEST, READ, SIDES, Access, access
from bench.ninep_host import outliers

HERE = Path(__file__).parent
ROUNDS_FILE = OUTPUT / "micro-rounds.json"
OUTLIERS_LIMIT = 0.02                   # a larger share of the rounds is told beside the figure
RATIO_ROUNDS, QUICK_RATIO_ROUNDS = 201, 15
RATIO_COUNT, RATIO_GUEST_COUNT = 4_000, 1_000_000
NO_TESTS = 5                            # pytest's exit status


def run_pytest(more: Sequence[str]) -> list[Mapping[str, Any]]:
    """Time everything; what pytest-benchmark says of each.

    Raises:
        SystemExit: a benchmark has failed, or pytest-benchmark is not installed.
    """
    if find_spec("pytest_benchmark") is None:
        sys.exit("bench.micro: pytest-benchmark is missing: pip install 'pvemu[test]'")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    ROUNDS_FILE.unlink(missing_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(HERE), "-q", "-p", "no:cacheprovider", "--timeout=0"),
            *("-o", "python_files=bench_*.py", f"--benchmark-json={ROUNDS_FILE}", "--benchmark-disable-gc"),
            *("--benchmark-quiet", "--tb=short", "--no-header", *more),
        ],
        cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode not in (0, NO_TESTS):
        sys.exit(f"bench.micro: pytest ended with status {done.returncode}")
    rounds: list[Mapping[str, Any]] = json.loads(ROUNDS_FILE.read_text())["benchmarks"] if ROUNDS_FILE.exists() else []
    return rounds


def add_rows(report: Report, benchmarks: Sequence[Mapping[str, Any]]) -> None:
    """A row for each."""
    for each in benchmarks:
        about, rounds = each["extra_info"], each["stats"]["data"]
        samples = [seconds * 1e9 / about["count"] for seconds in rounds]
        strange = outliers(samples).count / len(samples)
        remark = f", {strange:.0%} outliers" if strange >= OUTLIERS_LIMIT else ""
        report.samples(about["key"], samples, "ns", remark)


def add_ratios(report: Report, rounds: int) -> None:
    """8 bytes against 4, on every side."""
    for place in "aligned", "unaligned":
        ratios = {side: _ratio(side, place, rounds) for side in SIDES}
        for side, ratio in ratios.items():
            report.figure(f"{side}_read8_over_read4_{place}", ratio, "", f"medians of {rounds} in turn")
        worst = max(ratios, key=lambda side: ratios[side])
        report.figure(f"read8_over_read4_{place}", ratios[worst], "", f"the worst: {worst}")


def _ratio(side: str, place: str, rounds: int) -> float:
    count = RATIO_GUEST_COUNT if side == GUEST else RATIO_COUNT

    def seconds(do: Access) -> float:
        started = time.process_time()
        do(count)
        return time.process_time() - started

    with ExitStack() as stack:
        by_size = {size: stack.enter_context(access(side, READ, size, place)) for size in (4, 8)}
        contestants = {str(size): partial(seconds, do) for size, do in by_size.items()}
        in_turn(3, contestants)
        times = in_turn(rounds, contestants)
    return ratio_of_medians(times["8"], times["4"])


def main() -> None:
    """Measure, print and write bench/out/micro.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("-k", metavar="EXPRESSION", help="only benchmarks that match, as pytest takes it")
    options = parser.parse_args()
    report = Report("micro", "single accesses to memory, and exits")
    more = [*(["--quick"] if options.quick else []), *(["-k", options.k] if options.k else [])]
    add_rows(report, run_pytest(more))
    if not options.k:
        add_ratios(report, QUICK_RATIO_ROUNDS if options.quick else RATIO_ROUNDS)
    report.finish()


if __name__ == "__main__":
    main()
