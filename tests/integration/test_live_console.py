"""The console of a real guest: expect, keys, copies of the output, and a PTY."""

from __future__ import annotations

import io
import os

import pytest

import emu.console
from emu.errors import GuestTimeout
from emu.machine import Machine

pytestmark = pytest.mark.integration


@pytest.fixture
def console(machine: Machine) -> emu.console.Console:
    """The machine's console, at a prompt, nothing unread."""
    console = machine.console
    console.sendline("stty -echo; echo at its $((4 * 8))")
    console.expect("at its 32\r\n.*# ", timeout=60)
    console.discard()
    return console


def test_expect_finds_what_comes_and_keeps_what_was_before_and_after(console: emu.console.Console) -> None:
    console.sendline("echo one; echo value=$((6 * 7)); echo two")
    assert console.expect(r"value=(\d+)") == 0
    assert console.match is not None and not isinstance(console.match, type)
    assert (console.match[1], console.after) == ("42", "value=42")
    assert console.before.endswith("one\r\n")
    assert console.expect(["three", "two"]) == 1
    assert console.before == "\r\n"


def test_expect_exact_takes_no_pattern(console: emu.console.Console) -> None:
    console.sendline("echo 'a+b'; echo end")
    console.expect_exact("a+b")
    console.expect("end")


def test_expect_gives_up_in_time(console: emu.console.Console) -> None:
    with pytest.raises(GuestTimeout):
        console.expect("never said", timeout=0.2)
    assert console.expect(["never said", emu.console.TIMEOUT], timeout=0.2) == 1


def test_control_c_ends_what_runs_and_control_d_a_shell(console: emu.console.Console) -> None:
    # Said by what Ctrl-C is to end: before it runs, the shell has not given it the terminal yet.
    console.sendline("sh -c 'echo begun; exec sleep 1000'; echo ended $?")
    console.expect("begun\r\n")
    with pytest.raises(GuestTimeout):
        console.expect("ended", timeout=0.3)
    console.sendcontrol("c")
    console.expect("# ")
    console.sendline("sh -c 'cat; echo input over'")
    console.send("typed\n")
    console.expect("typed")
    console.sendeof()
    console.expect("input over")


@pytest.mark.parametrize("log", [io.StringIO(), io.BytesIO()], ids=["text", "bytes"])
def test_logfile_and_history_have_all_of_the_output(
    console: emu.console.Console, log: io.StringIO | io.BytesIO
) -> None:
    console.logfile = log
    console.sendline("for i in $(seq 400); do echo $i 世界; done; echo through")
    console.expect("through\r\n", timeout=60)
    console.logfile = None
    output = "".join(f"{n} 世界\r\n" for n in range(1, 401)) + "through\r\n"
    written = log.getvalue()
    assert output in (written if isinstance(written, str) else written.decode())
    assert output.encode() in console.history


def test_a_program_at_the_pty_talks_to_the_guest(machine: Machine, console: emu.console.Console) -> None:
    other = os.open(console.open_pty(), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    received = bytearray()

    def answered() -> bool:
        try:
            received.extend(os.read(other, 4096))
        except BlockingIOError:
            pass
        return b"answer 42\r\n" in received

    try:
        os.write(other, b"echo answer $((6 * 7))\n")
        assert machine.drive(answered, 20), bytes(received)
        console.expect("answer 42")             # the console itself goes on seeing everything
        console.sendline("echo answer $((40 + 2))")
        received.clear()
        assert machine.drive(answered, 20), bytes(received)
    finally:
        os.close(other)


def test_bytes_of_every_kind_reach_the_guest(machine: Machine, console: emu.console.Console) -> None:
    every = bytes(range(256))
    console.sendline("stty raw; echo ready; head -c 256 | od -An -v -tu1; stty sane -echo; echo end")
    console.expect("ready\n")
    console.send(every)
    console.expect("end")
    assert bytes(int(word) for word in console.before.split() if word.isdigit()) == every
