"""Phases counted from the start of the process."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from emu.phases import Phases, process_age_s


def test_the_process_is_older_than_its_first_statement() -> None:
    code = (
        "import time; started = time.perf_counter()\n"
        "from emu.phases import process_age_s\n"
        "print(time.perf_counter() - started, process_age_s())"
    )
    spawned = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    lifetime = time.perf_counter() - spawned
    since_first_statement, age = map(float, output.split())
    assert since_first_statement - 0.011 <= age <= lifetime + 0.02      # the start is kept in ticks of 10 ms


def test_a_phase_has_its_place_and_length_and_failure_does_not_lose_it() -> None:
    phases = Phases()
    with pytest.raises(KeyError), phases("outer"), phases("inner"):
        raise KeyError
    names = [name for name, _, _ in phases.rows()]
    assert names == ["start python", "outer", "inner"]
    (_, _, ready), (_, outer, outer_end), (_, inner, inner_end) = phases.rows()
    assert ready <= outer <= inner <= inner_end <= outer_end <= phases.elapsed_s()


def test_the_table_has_a_line_for_each_phase_and_the_total() -> None:
    phases = Phases()
    phases.add("read result", 1.0, 1.25)
    lines = phases.table().splitlines()
    assert [line.split()[0] for line in lines] == ["phase", "start", "read", "wall"]
    assert lines[2].split()[-2:] == ["1000.0", "250.0"]


def test_age_grows() -> None:
    assert 0 < process_age_s() <= process_age_s()
