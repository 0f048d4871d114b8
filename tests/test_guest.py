"""Commands over a serial shell, tried on real shells of this host on a PTY."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu import guest as guest_module
from emu.errors import GuestError, GuestStopped, GuestTimeout
from emu.guest import SerialShell
from tests.shell_on_pty import ShellOnPty

SHELLS = {
    name: argv
    for name, argv in {
        "busybox": ("/bin/busybox", "sh"),
        "dash": ("/bin/dash", "-i"),
        "bash": ("/bin/bash", "--norc", "--noprofile"),
    }.items()
    if os.access(argv[0], os.X_OK)
}
TIMEOUT_S = 60.0

Run = Callable[..., guest_module.Result]


class Guest(SerialShell):
    """A shell on a PTY that is a guest."""

    def __init__(self, argv: tuple[str, ...], home: Path) -> None:
        self.machine = ShellOnPty(argv, home)
        super().__init__(self.machine.console)

    def close(self) -> None:
        self.machine.close()
        shutil.rmtree(self._directory, ignore_errors=True)


@pytest.fixture(params=SHELLS)
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(SHELLS[request.param], tmp_path)
    yield guest
    guest.close()


@pytest.fixture(scope="module")
def warm_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    guest = Guest(next(iter(SHELLS.values())), tmp_path_factory.mktemp("home"))
    guest.run("true", timeout=TIMEOUT_S)
    yield guest
    guest.close()


def test_status_and_both_outputs_come_apart(guest: Guest) -> None:
    result = guest.run("echo out; echo err >&2; exit 7", timeout=TIMEOUT_S)
    assert (result.status, result.stdout, result.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize("status", [0, 1, 126, 127, 128, 255])
def test_every_exit_status_comes_through(warm_guest: Guest, status: int) -> None:
    assert warm_guest.run(f"exit {status}", timeout=TIMEOUT_S).status == status


@pytest.mark.parametrize(("signal", "status"), [("INT", 130), ("KILL", 137), ("TERM", 143)])
def test_death_by_a_signal_is_128_more_than_it(guest: Guest, signal: str, status: int) -> None:
    assert guest.run(f"kill -{signal} $$", timeout=TIMEOUT_S).status == status
    assert guest.run("echo there", timeout=TIMEOUT_S).stdout == "there\n"


def test_a_list_is_a_program_and_its_arguments_as_they_are(guest: Guest) -> None:
    result = guest.run(["printf", "%s|", "a b", "$HOME", "it's", "", "x\ny"], timeout=TIMEOUT_S)
    assert result.stdout == "a b|$HOME|it's||x\ny|"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(min_codepoint=1, codec="utf-8"), max_size=1200))
def test_any_text_reaches_the_command_unchanged(warm_guest: Guest, text: str) -> None:
    assert warm_guest.run(["printf", "%s", text], timeout=TIMEOUT_S).stdout == text


def test_a_nul_in_a_command_is_refused(warm_guest: Guest) -> None:
    with pytest.raises(ValueError, match="NUL"):
        warm_guest.run("echo \0")


def test_a_long_script_of_many_lines(guest: Guest) -> None:
    script = "\n".join(f"echo {number}" for number in range(5000))
    assert guest.run(script, timeout=TIMEOUT_S).stdout.split() == [str(number) for number in range(5000)]


def test_every_byte_value_comes_back_on_both_outputs(guest: Guest) -> None:
    every = bytes(range(256)) * 5 + b"\r\n\n\r\r\n"
    result = guest.run("tee /dev/stderr", input=every, timeout=TIMEOUT_S)
    assert (result.stdout_bytes, result.stderr_bytes) == (every, every)
    assert result.stdout.encode("utf-8", "surrogateescape") == every


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3000))
def test_any_input_comes_back_as_output(warm_guest: Guest, data: bytes) -> None:
    assert warm_guest.run("cat", input=data, timeout=TIMEOUT_S).stdout_bytes == data


def test_ten_mebibytes_of_binary_output(guest: Guest, tmp_path: Path) -> None:
    data = os.urandom(10 << 20)
    (tmp_path / "data").write_bytes(data)
    assert guest.run(["cat", str(tmp_path / "data")], timeout=TIMEOUT_S).stdout_bytes == data


def test_a_mebibyte_of_input(guest: Guest) -> None:
    data = os.urandom(1 << 20)
    assert guest.run("cat", input=data, timeout=TIMEOUT_S).stdout_bytes == data


def test_without_input_a_command_reads_nothing(guest: Guest) -> None:
    assert guest.run("cat; echo done", timeout=TIMEOUT_S).stdout == "done\n"


@pytest.mark.parametrize("modes", ["raw -echo", "-icanon min 1", "-isig -icrnl", "-opost", "-echo"])
def test_a_command_may_leave_the_terminal_in_any_mode(guest: Guest, modes: str) -> None:
    guest.run(f"stty {modes} </dev/tty", timeout=TIMEOUT_S)
    assert guest.run("printf 'a\\r\\nb\\n'", timeout=TIMEOUT_S).stdout_bytes == b"a\r\nb\n"
    assert guest.run("cat", input=b"x" * 5000, timeout=TIMEOUT_S).stdout == "x" * 5000


def test_a_command_may_change_directory_and_variables_without_effect_on_the_next(guest: Guest) -> None:
    guest.run("cd /; export A=1; set -e; exec true", timeout=TIMEOUT_S)
    assert guest.run("echo ${A-none}; pwd", timeout=TIMEOUT_S).stdout != "none\n/\n"


@pytest.mark.parametrize("option", ["-e", "-u", "-x", "-C", "-f", "-v"])
def test_options_of_the_console_s_shell_do_not_matter(guest: Guest, option: str) -> None:
    guest.machine.console.sendline(f"set {option}")
    for _ in range(2):
        assert guest.run("echo out; false", timeout=TIMEOUT_S).stdout == "out\n"


def test_another_shell_started_on_the_console_is_taken_over(guest: Guest) -> None:
    guest.run("true", timeout=TIMEOUT_S)
    guest.machine.console.sendline("/bin/sh")
    assert guest.run("echo nested", timeout=TIMEOUT_S).stdout == "nested\n"


def test_files_in_tmp_may_be_removed_between_commands(guest: Guest) -> None:
    guest.run("true", timeout=TIMEOUT_S)
    guest.run(f"rm -rf {guest._directory}", timeout=TIMEOUT_S)
    assert guest.run("echo again", timeout=TIMEOUT_S).stdout == "again\n"


def test_the_console_is_usable_between_commands(guest: Guest) -> None:
    guest.run("true", timeout=TIMEOUT_S)
    guest.machine.console.sendline("echo $((6 * 7))")
    guest.machine.console.expect(r"\b42\r", timeout=TIMEOUT_S)
    assert guest.run("echo after", timeout=TIMEOUT_S).stdout == "after\n"


def test_after_the_timeout_the_command_is_gone_and_the_shell_usable(guest: Guest, tmp_path: Path) -> None:
    guest.run("true", timeout=TIMEOUT_S)
    for timeout in (0.3, 3, TIMEOUT_S):     # on a busy host the command may not have begun in the first of them
        with pytest.raises(GuestTimeout, match="sleep 97") as error:
            guest.run("echo $$ >pid; sleep 97; echo survived >survived", timeout=timeout)
        assert "\n" not in str(error.value)
        if (tmp_path / "pid").exists():
            break
    assert guest.run("kill -0 $(cat pid)", timeout=TIMEOUT_S).status != 0
    assert not (tmp_path / "survived").exists()


def test_a_command_deaf_to_ctrl_c_is_killed(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_module, "CANCEL_S", 0.4)
    monkeypatch.setattr(guest_module, "SILENCE_S", 0.1)
    with pytest.raises(GuestTimeout):
        guest.run("trap '' INT QUIT; while :; do sleep 1; done", timeout=0.3)
    assert guest.run("echo usable", timeout=TIMEOUT_S).stdout == "usable\n"


def test_without_job_control_a_watchdog_ends_the_command(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_module, "SILENCE_S", 0.1)
    guest.machine.console.sendline("set +m; trap : INT QUIT")
    with pytest.raises(GuestTimeout):
        guest.run("trap '' INT QUIT TSTP; while :; do sleep 1; done", timeout=0.3)
    assert guest.run("echo usable", timeout=TIMEOUT_S).stdout == "usable\n"


def test_check_raises_with_the_command_s_last_words(warm_guest: Guest) -> None:
    with pytest.raises(GuestError, match="status 3: gone"):
        warm_guest.run("echo it is >&2; echo gone >&2; exit 3", check=True, timeout=TIMEOUT_S)
    assert warm_guest.run("true", check=True, timeout=TIMEOUT_S).status == 0


class KernelMessages:
    """Puts a kernel message into the first `count` transfers of file content."""

    LINE = b"\r\n[   12.345678] eth0: link is up\r\n"

    def __init__(self, count: int, marks: tuple[bytes, ...]) -> None:
        self.left = count
        self.marks = marks

    def __call__(self, data: bytes) -> bytes:
        for mark in self.marks:
            at = data.find(mark)
            if self.left and at >= 0:
                self.left -= 1
                return data[: at + 1] + self.LINE + data[at + 1:]
        return data


@pytest.mark.parametrize("marks", [(b"\x1f\x8b",), (b"\x1eb",), (b"\x1f\x8b", b"\x1eb")])
def test_a_reply_damaged_by_kernel_messages_is_asked_for_again(guest: Guest, marks: tuple[bytes, ...]) -> None:
    guest.run("true", timeout=TIMEOUT_S)
    guest.machine.mangle = KernelMessages(3, marks)
    result = guest.run("echo out; echo err >&2; exit 9", timeout=TIMEOUT_S)
    assert (result.status, result.stdout, result.stderr) == (9, "out\n", "err\n")


def test_a_reply_without_its_end_is_asked_for_again(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_module, "REPLY_SILENCE_S", 0.2)
    guest.run("true", timeout=TIMEOUT_S)
    guest.machine.mangle = KernelMessages(1, (b"\x1ez",))
    assert guest.run("echo out", timeout=TIMEOUT_S).stdout == "out\n"


def test_a_reply_damaged_every_time_is_an_error(guest: Guest) -> None:
    guest.run("true", timeout=TIMEOUT_S)
    guest.machine.mangle = KernelMessages(1000, (b"\x1f\x8b",))
    with pytest.raises(GuestError, match="damaged 5 times"):
        guest.run("echo out", timeout=TIMEOUT_S)


def test_a_command_that_prints_the_protocol_s_marks_fools_nobody(guest: Guest) -> None:
    forged = "printf '\\036b%s.x 0\\n\\036z%s.x\\036' 1 1"
    assert guest.run(f"{forged} >/dev/tty; {forged}; exit 5", timeout=TIMEOUT_S).status == 5


def test_a_panic_while_a_command_runs_is_its_error(guest: Guest) -> None:
    line = "[    9.9] Kernel panic - not syncing: Attempted to kill init!"
    with pytest.raises(GuestError) as error:
        guest.run(f"printf '%s%s\\n' '{line[:20]}' '{line[20:]}' >/dev/tty; sleep 97")
    assert str(error.value) == line[10:]


def test_a_guest_that_stops_while_a_command_runs_is_an_error(guest: Guest) -> None:
    with pytest.raises(GuestStopped):
        guest.run("kill -9 $PPID", timeout=TIMEOUT_S)


@pytest.mark.parametrize("prompt", ["", "=> ", "\\e[1;32mme@box\\e[0m:~$ ", "# \n"])
def test_a_shell_is_found_whatever_its_prompt(
    tmp_path: Path, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_module, "SILENCE_S", 0.1)
    guest = Guest(("/bin/sh", "-c", f"printf 'boot\\n'; PS1=$(printf '{prompt}') exec /bin/sh -i"), tmp_path)
    guest.wait_prompt(TIMEOUT_S)
    assert guest.run("echo found", timeout=TIMEOUT_S).stdout == "found\n"
    guest.close()


def test_waiting_for_a_shell_that_never_comes_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_module, "SILENCE_S", 0.05)
    guest = Guest(("/bin/sleep", "97"), tmp_path)
    with pytest.raises(GuestTimeout):
        guest.wait_prompt(0.5)
    guest.close()


def test_a_short_command_takes_one_short_line(warm_guest: Guest) -> None:
    warm_guest.machine.typed.clear()
    warm_guest.run("true")
    assert warm_guest.machine.typed.count(b"\n") == 1 and len(warm_guest.machine.typed) < 30
