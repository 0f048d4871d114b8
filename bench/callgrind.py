"""Counts host instructions, which do not drift: valgrind's callgrind runs a program that says what it is at.

The program calls `mark` between its parts. Nothing else in it calls getpgrp(2), and callgrind writes down what it has
counted whenever that is entered. A part is done N times and then 2 N times; the difference over N is what one time
takes, without what begins and ends it. libunicorn's translated code is counted with the rest; the kernel's is not.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.common import ROOT

__all__ = ["NotCounted", "Parts", "count", "version"]

VALGRIND = "valgrind"
MARK = "getpgrp"
WARM_UP = 2                             # runs that are not counted: Python and libunicorn adapt to what is run
TIMEOUT_S = 900.0
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), "PATH": os.defpath, "LC_ALL": "C"}
TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


class NotCounted(Exception):
    """No instructions can be counted here; the message says why, in a line."""


class Parts:
    """What a program is made of, as it runs.

    `report` has to be called in the end.
    """

    def __init__(self) -> None:
        self._marks = 0
        self._parts: dict[str, tuple[int, list[int]]] = {}
        gc.disable()                    # when it has something to do depends on all that was done before

    def mark(self) -> int:
        """Begin another part; the number of what callgrind writes down now: all since the mark before."""
        os.getpgrp()
        self._marks += 1
        return self._marks

    def once(self, name: str, run: Callable[[], object]) -> None:
        """A part that cannot be done twice."""
        self.mark()
        run()
        self._parts[name] = 1, [self.mark()]

    def repeated(self, name: str, run: Callable[[int], object], count: int) -> None:
        """A part that is done `count` times, and twice as often; `run` is told how often."""
        for _ in range(WARM_UP):
            run(count)
        gc.collect()
        self.mark()
        run(count)
        single = self.mark()
        run(2 * count)
        self._parts[name] = count, [single, self.mark()]

    def report(self) -> None:
        """Say which part is where, for `count`."""
        print(json.dumps(self._parts), flush=True)


def version() -> str:
    """Of valgrind.

    Raises:
        NotCounted: it is not installed.
    """
    return _run([_valgrind(), "--version"]).strip().removeprefix(f"{VALGRIND}-")


def _valgrind() -> str:
    """Where it is.

    Raises:
        NotCounted: it is not installed.
    """
    path = shutil.which(VALGRIND)
    if path is None:
        raise NotCounted("no instructions can be counted here: valgrind is not installed")
    return path


def count(module: str) -> dict[str, float]:
    """Run a module that has `Parts`; instructions of each of them, for one time.

    Raises:
        NotCounted: valgrind is not installed, or cannot run it.
    """
    valgrind = _valgrind()
    program = [sys.executable, "-s", "-m", module]
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "counts"
        instrument = [
            valgrind, "-q", "--tool=callgrind", f"--dump-before={MARK}", f"--callgrind-out-file={output}",
            "--smc-check=all-non-file",         # libunicorn's code changes where it stands
        ]
        _run(program)                           # compiles what is not compiled yet
        parts: Mapping[str, tuple[int, Sequence[int]]] = json.loads(_run([*instrument, *program]))
        return {
            part: _difference([_total(output.with_name(f"{output.name}.{dump}")) for dump in dumps]) / times
            for part, (times, dumps) in parts.items()
        }


def _run(command: Sequence[str]) -> str:
    """What a program says.

    Raises:
        NotCounted: it has failed.
    """
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotCounted(f"{command[0]} has not ended in {TIMEOUT_S:g} s") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise NotCounted(f"{command[0]} ended with status {done.returncode}: {last[0]}")
    return done.stdout


def _total(dump: Path) -> int:
    found = TOTALS.search(dump.read_text())
    if found is None:
        raise NotCounted(f"{dump.name} of callgrind has no total")
    return int(found[1])


def _difference(totals: Sequence[int]) -> int:
    return totals[-1] - totals[0] if len(totals) > 1 else totals[0]
