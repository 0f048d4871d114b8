"""The whole suite: every benchmark in turn, one table of the key figures, and pictures.

    python -m bench [--quick] [NAME ...]

A benchmark that fails does not end it; the exit status is 1 then, and the last line names it. The table is printed and
written to bench/out/summary.md, the pictures to bench/out/*.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from bench import pictures
from bench.common import OUTPUT, ROOT
from bench.suite import SUITE, Benchmark, table


def run(benchmark: Benchmark, quick: bool) -> dict[str, object] | None:
    """Run one as a process of its own; its figures, None if it has failed."""
    file = OUTPUT / f"{benchmark.name}.json"
    file.unlink(missing_ok=True)        # what is there is of another run
    arguments = benchmark.quick if quick and benchmark.quick else ()
    print(f"\n-- {' '.join([f'bench.{benchmark.name}', *arguments])}", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", f"bench.{benchmark.name}", *arguments], cwd=ROOT, check=False)
    print(f"   {time.monotonic() - started:.0f} s", flush=True)
    if done.returncode or not file.is_file():
        return None
    figures: dict[str, object] = json.loads(file.read_text())
    return figures


def chosen(names: Sequence[str], quick: bool) -> tuple[list[Benchmark], list[str]]:
    """Which are to run, and why others are not, a line each."""
    running, left_out = [], []
    for benchmark in SUITE:
        if names and benchmark.name not in names:
            continue
        if benchmark.needs and shutil.which(benchmark.needs) is None:
            left_out.append(f"{benchmark.name} is left out: {benchmark.needs} is not installed")
        elif quick and benchmark.quick is None:
            left_out.append(f"{benchmark.name} is left out: it takes longer than a look")
        else:
            running.append(benchmark)
    return running, left_out


def main() -> int:
    """Run everything; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a look: few runs of what does not take long")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(each.name for each in SUITE))
    options = parser.parse_args()
    if unknown := set(options.names) - {each.name for each in SUITE}:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    running, left_out = chosen(options.names, options.quick)
    found = {benchmark.name: run(benchmark, options.quick) for benchmark in running}
    lines = [*table(found), "", *left_out]
    (OUTPUT / "summary.md").write_text("\n".join(lines).rstrip() + "\n")
    print("", *lines, sep="\n")
    pictures.main()
    failed = [name for name, figures in found.items() if figures is None]
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
