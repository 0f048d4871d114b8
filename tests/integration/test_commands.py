"""`run` on a real guest: statuses, outputs apart and byte for byte, input, time limits, odd commands.

All of it through the guest's agent, and through the shell on its serial console.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from time import monotonic

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.errors import GuestError, GuestTimeout
from emu.machine import Machine

pytestmark = pytest.mark.integration

BOOT_S = 60.0
EVERY_BYTE = bytes(range(256))
ODD_WORDS = [
    "", " two  blanks ", "it's", '"double"', "back\\slash", "new\nline", "\ttab", "$HOME `id` $(id)", "*", "~", "!",
    "%s%d", "\\n", "-n", "a;b|c&d>e<f", "{1..3}", "# no comment", "grüße, 世界 🐧",
    "\x01\x03\x04\x11\x13\x1a\x1b\x7f", "\r\n",
]


@pytest.fixture(scope="module", params=["agent", "serial"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine whose commands go one of the two ways; at its end the kernel must not have complained."""
    with emu.boot(kernel="cloud", append=LOUD_SETTINGS, channel=request.param == "agent") as machine:
        machine.wait_ready(BOOT_S)
        assert (machine.channel is not None and machine.channel.alive) == (request.param == "agent")
        yield machine
        assert complaints(machine.run("dmesg", timeout=60).stdout) == []


@pytest.mark.parametrize(("command", "status"), [
    ("true", 0), ("false", 1), ("exit 42", 42), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143),
    ("no-such-command", 127), ("/etc/passwd", 126), ("if", 2),
])  # fmt: skip
def test_exit_status_is_the_command_s(machine: Machine, command: str, status: int) -> None:
    assert machine.run(command, timeout=60).status == status


def test_stdout_and_stderr_are_apart(machine: Machine) -> None:
    result = machine.run("echo one; echo two >&2; echo three; echo four >&2; exit 5", timeout=60)
    assert (result.status, result.stdout, result.stderr) == (5, "one\nthree\n", "two\nfour\n")


def test_every_byte_goes_both_ways(machine: Machine) -> None:
    data = EVERY_BYTE + EVERY_BYTE[::-1]
    result = machine.run("tee /dev/stderr", input=data, timeout=60)
    assert (result.stdout_bytes, result.stderr_bytes) == (data, data)


def test_many_random_bytes_go_both_ways(machine: Machine) -> None:
    data = random.Random(1).randbytes(1 << 18)
    digest = machine.run("cat >/tmp/random; sha256sum </tmp/random", input=data, timeout=60).stdout.split()[0]
    assert digest == hashlib.sha256(data).hexdigest()
    assert machine.run("cat /tmp/random; rm /tmp/random", timeout=60).stdout_bytes == data


def test_standard_input_is_empty_unless_given(machine: Machine) -> None:
    assert machine.run("cat; echo end", timeout=60).stdout == "end\n"
    assert machine.run("cat; echo end", input=b"", timeout=60).stdout == "end\n"
    assert machine.run("cat; echo end", input=b"no line end", timeout=60).stdout == "no line endend\n"


def test_words_reach_the_program_as_they_are(machine: Machine) -> None:
    result = machine.run(["printf", "<%s>\\n", *ODD_WORDS], timeout=60)
    assert result.stdout_bytes == "".join(f"<{word}>\n" for word in ODD_WORDS).encode()


def test_command_text_may_hold_lines_quotes_and_any_script(machine: Machine) -> None:
    script = "x='it'\\''s'\ncat <<END\n$x grüße\nEND\nfor i in 1 2; do\n  echo \"<$i>\" # comment\ndone"
    assert machine.run(script, timeout=60).stdout == "it's grüße\n<1>\n<2>\n"


def test_command_longer_than_any_line(machine: Machine) -> None:
    words = " ".join(f"word{number}" for number in range(4000))
    assert machine.run(f"echo {words}", timeout=60).stdout == f"{words}\n"


def test_nul_in_a_command_is_refused(machine: Machine) -> None:
    with pytest.raises(ValueError, match="NUL"):
        machine.run("echo \0", timeout=60)


def test_commands_start_in_root_s_directory_and_leave_nothing_to_the_next(machine: Machine) -> None:
    assert machine.run("pwd; echo $HERE; cd /; HERE=gone", timeout=60).stdout == "/root\n\n"
    assert machine.run("pwd; echo $HERE", timeout=60).stdout == "/root\n\n"


@pytest.mark.parametrize("command", [
    "sleep 1000",
    "while :; do :; done",
    "trap '' INT; while :; do sleep 1000; done",
    "yes",
    "sleep 1000 | cat; sleep 1000",
])  # fmt: skip
def test_command_that_takes_too_long_is_killed_and_the_shell_goes_on(machine: Machine, command: str) -> None:
    started = monotonic()
    with pytest.raises(GuestTimeout, match=r"did not end within 1 s$"):
        machine.run(command, timeout=1)
    assert 1 <= monotonic() - started < BOOT_S
    assert machine.run("echo on", timeout=60).stdout == "on\n"
    left = machine.run("ps -o stat,args | grep -E '[s]leep 1000|[y]es|[w]hile'", timeout=60).stdout
    assert left == ""


def test_time_limit_that_is_kept_changes_nothing(machine: Machine) -> None:
    assert machine.run("sleep 0.2; echo done", timeout=60).stdout == "done\n"


def test_outputs_can_be_named_as_files(machine: Machine) -> None:
    result = machine.run("echo error >/dev/stderr; cat /dev/stdin", input=b"in", timeout=60)
    assert (result.stdout, result.stderr) == ("in", "error\n")
    assert machine.run("cat /dev/fd/0", input=b"in", timeout=60).stdout == "in"
    assert machine.run("echo output >/dev/stdout", timeout=60).stdout == "output\n"


def test_check_raises_for_a_status_that_is_not_zero(machine: Machine) -> None:
    assert machine.run("exit 0", check=True, timeout=60).status == 0
    with pytest.raises(GuestError, match=r"status 3: no such luck$"):
        machine.run("echo no such luck >&2; exit 3", check=True, timeout=60)


def test_kernel_messages_on_the_console_do_no_harm(machine: Machine) -> None:
    noise = "for i in $(seq 40); do echo '<0>noise' >/dev/kmsg; sleep 0.01; done"
    seen = len(machine.console.history)
    for _ in range(3):
        result = machine.run(f"({noise}) & seq 2000; wait; seq 3000", timeout=60)
        assert result.stdout == "".join(f"{n}\n" for limit in (2000, 3000) for n in range(1, limit + 1))
    machine.run(f"({noise}) >/dev/null 2>&1 &", timeout=60)
    for number in range(5):
        assert machine.run("cat; seq 1000", input=b"%d\n" % number, timeout=60).stdout.startswith(f"{number}\n1\n2\n")
    assert b"noise" in machine.console.history[seen:]


def test_many_commands_in_a_row(machine: Machine) -> None:
    outputs = [machine.run(f"echo {number}; exit {number}", timeout=60) for number in range(30)]
    assert [(result.status, result.stdout) for result in outputs] == [(number, f"{number}\n") for number in range(30)]
