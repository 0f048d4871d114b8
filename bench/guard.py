"""Host instructions of what must not become slower, against a saved baseline.

    python -m bench.guard [--update] [--baseline FILE]

Every figure is the number of host instructions of one exit, one access, one request, one machine or one start, counted
by valgrind's callgrind, so that it is the same on a busy host; bench/guard_work.py says of what. Worse by 5 % is a
warning, by 10 % a failure. Instructions depend on the interpreter's build and the library's: where the baseline comes
from others, ratios are compared instead, of each count to that of a few lines of plain Python. They are rougher, with
limits of 10 and 20 %: make a baseline of your own from the commit before.

Exit status: 0, 1 if a figure has failed, 2 if nothing could be counted or compared. The report is
bench/out/guard.md. `--update` saves what is counted now as the baseline instead.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from bench import callgrind
from bench.common import OUTPUT, ROOT, Report
from bench.guard_compare import COUNTS, RATIOS, BadBaseline, Baseline, Row, Verdict, compare, markdown
from bench.guard_work import REFERENCE

BASELINE = ROOT / "bench" / "baseline.json"
WORK = "bench.guard_work"


def made_by() -> dict[str, str]:
    """What counts depend on besides our code."""
    return {
        platform.python_implementation(): f"{platform.python_version()} {_interpreter()}",
        "libc": os.confstr("CS_GNU_LIBC_VERSION") or "unknown",
        "unicorn": importlib.metadata.version("unicorn"),
        "valgrind": callgrind.version(),
    }


def _interpreter() -> str:
    """A part of the checksum of its file: two builds of a version are not the same instructions."""
    library = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "")
    with open(library if library.is_file() else sys.executable, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def measure() -> Baseline:
    """Count now.

    Raises:
        NotCounted: it cannot be done here.
    """
    maker = made_by()
    counts = callgrind.count(WORK)
    reference = counts.pop(REFERENCE)
    return Baseline(maker, counts, {key: instructions / reference for key, instructions in counts.items()})


def rows_of(baseline: Baseline, now: Baseline) -> tuple[list[Row], list[str]]:
    """Counts compared where they can be, else ratios; and a note."""
    if strange := _differences(baseline.made_by, now.made_by):
        note = f"These are ratios to plain Python, since the baseline was counted with {strange}."
        return compare(baseline.ratios, now.ratios, RATIOS), [note]
    maker = ", ".join(f"{name} {version}" for name, version in now.made_by.items())
    return compare(baseline.counts, now.counts, COUNTS), [f"These are instructions, counted with {maker}."]


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    return ", ".join(
        f"{before.get(name)} instead of {now.get(name)}"
        for name in {**before, **now} if before.get(name) != now.get(name)
    )


def tell(rows: list[Row], notes: list[str]) -> bool:
    """Print, write bench/out/guard.json and guard.md; whether nothing has failed."""
    report = Report("guard", f"{len(rows)} counts of host instructions against the baseline")
    by_verdict = {verdict: [row for row in rows if row.verdict is verdict] for verdict in Verdict}
    for verdict, some in by_verdict.items():
        for row in () if verdict is Verdict.SAME else some:
            percent = "" if row.percent is None else f"{row.percent:+d} %: "
            report.note(f"{row.key}: {percent}{verdict.value.strip('*')}")
    compared = [row for row in rows if row.percent is not None]
    worst = max(compared, key=lambda row: row.percent or 0, default=None)
    report.figure("compared", len(compared))
    if worst is not None:
        report.figure("worst_percent", worst.percent, "%", worst.key)
    for name, verdict in (("failed", Verdict.FAIL), ("warned", Verdict.WARN), ("better", Verdict.BETTER)):
        report.figure(name, len(by_verdict[verdict]))
    for note in notes:
        report.note(note)
    report.finish()
    (OUTPUT / "guard.md").write_text(markdown(rows, notes))
    print("the report is bench/out/guard.md")
    return not by_verdict[Verdict.FAIL]


def main() -> int:
    """Count, and compare or save; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="save what is counted as the baseline")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="file (bench/baseline.json)")
    options = parser.parse_args()
    try:
        baseline = None if options.update else Baseline.load(options.baseline)
        now = measure()
        if baseline is not None:
            return 0 if tell(*rows_of(baseline, now)) else 1
        now.save(options.baseline)
    except (callgrind.NotCounted, BadBaseline) as error:
        print(f"bench.guard: {error}", file=sys.stderr)
        return 2
    print(f"{len(now.counts)} counts are saved in {options.baseline}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
