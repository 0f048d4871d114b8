"""Jobs that nobody waits for any more."""

from __future__ import annotations

from typing import Any

import pytest

from emu.errors import MachineDied
from emu.pool.watch import Limits
from emu.pool.work import work
from tests.pool.fakes import FakeHost


def test_what_was_given_up_before_it_had_a_machine_ends_at_once() -> None:
    machine: Any = FakeHost().make(None)
    job = work(Limits(), "hang")
    job.give_up()
    with pytest.raises(MachineDied):
        job.do(machine)
    assert machine.used == []


def test_a_job_in_a_message() -> None:
    def count_words(machine: Any) -> None:
        return None

    assert work(Limits(), ["wc", "-w", "a b"]).text == "\"wc -w 'a b'\""
    assert work(Limits(), count_words).text == "the job count_words"
