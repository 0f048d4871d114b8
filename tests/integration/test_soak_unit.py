"""The endurance run: its judge, and a short run of the whole."""

from __future__ import annotations

import threading

import pytest

from bench.soak import MACHINES, Watch, answers, soak

ANSWERS = answers(b"\x7fELF")


def watch_after(*lines: str) -> Watch:
    watch = Watch(ANSWERS)
    for line in lines:
        watch.take(line)
    return watch


def right_answers() -> list[str]:
    return [f"answer {name} {answer}" for name, answer in ANSWERS.items()]


def test_sound_run_has_counts_and_no_failure() -> None:
    message, counts = "message [    0.1] Linux version 6.1", "round 20 processes 900 load 0.1"
    watch = watch_after(*right_answers(), message, counts, "end")
    assert (watch.failures, watch.ended, watch.rounds, watch.processes) == ([], True, 20, 900)


def test_wrong_first_answer_is_told_apart_by_the_host() -> None:
    watch = watch_after("answer signals 137 37 0")
    assert watch.failures == ["answer signals 137 37 0: should be 137 37 143"]


def test_answer_that_was_never_given_is_a_failure() -> None:
    assert watch_after(*right_answers()[1:], "end").failures == [f"no answer: {next(iter(ANSWERS))}"]


@pytest.mark.parametrize("line", [
    "WRONG round 7: pipes is '', was '0743'",
    "Segmentation fault",
    "message [  12.5] busybox[812]: segfault at 0 ip 0000000000401000 sp 00007ffc error 4",
    "message [  12.5] traps: sh[99] trap invalid opcode ip:401000 sp:7ffc error:0",
    "message [  12.5] rcu: INFO: rcu_preempt self-detected stall on CPU",
    "message [  12.5] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!",
    "message [  12.5] WARNING: CPU: 0 PID: 1 at kernel/time/timekeeping.c:1",
])
def test_trouble_is_a_failure(line: str) -> None:
    assert watch_after(line).failures


def test_harmless_message_is_no_failure() -> None:
    harmless = "message [  2.8] AMD-Vi: AMD IOMMUv2 functionality not available on this system - This is not a bug."
    assert not watch_after(harmless).failures


@pytest.mark.integration
@pytest.mark.parametrize("root", MACHINES)
def test_short_soak_finds_nothing(root: str) -> None:
    watch = soak(root, 3, threading.Event())
    assert watch.failures == []
    assert watch.ended and watch.rounds > 0 and watch.processes > 100
