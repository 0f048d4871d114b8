"""The guest channel, with an agent made of test code, and with the real agent's script under shells of the host."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu import channel as channel_module
from emu import job as job_module
from emu.channel import PORTS, RENEW_PORT, Channel, ChannelState
from emu.console import Console
from emu.errors import GuestError, GuestStopped, GuestTimeout
from emu.job import MOST_OUTPUT
from emu.slot import Marks
from tests.agent_on_ptys import AgentOnPtys

SHELLS = {
    name: argv
    for name, argv in {"busybox": ("/bin/busybox", "sh"), "dash": ("/bin/dash",)}.items()
    if os.access(argv[0], os.X_OK)
}
TIMEOUT_S = 60.0


@pytest.fixture(scope="module", params=SHELLS)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentOnPtys]:
    """A guest shared by the tests that leave it as it was."""
    guest = AgentOnPtys(SHELLS[request.param], tmp_path_factory.mktemp("guest"))
    assert guest.channel.wait(TIMEOUT_S)
    yield guest
    guest.close()


@pytest.fixture
def own_guest(tmp_path: Path) -> Iterator[AgentOnPtys]:
    guest = AgentOnPtys(next(iter(SHELLS.values())), tmp_path)
    assert guest.channel.wait(TIMEOUT_S)
    yield guest
    guest.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def is_there(pid: str) -> bool:
    """Whether a process runs; one that has ended and nobody asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# The real agent


def test_status_and_both_outputs_come_apart(guest: AgentOnPtys) -> None:
    result = guest.channel.run("echo out; echo err >&2; exit 7", timeout=TIMEOUT_S)
    assert (result.status, result.stdout, result.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize("status", [0, 1, 126, 127, 128, 255])
def test_every_exit_status_comes_through(guest: AgentOnPtys, status: int) -> None:
    assert guest.channel.run(f"exit {status}", timeout=TIMEOUT_S).status == status


@pytest.mark.parametrize(("signal", "status"), [("INT", 130), ("KILL", 137), ("TERM", 143)])
def test_death_by_a_signal_is_128_more_than_it(guest: AgentOnPtys, signal: str, status: int) -> None:
    assert guest.channel.run(f"kill -{signal} $$", timeout=TIMEOUT_S).status == status


@pytest.mark.parametrize("signal", ["HUP", "INT", "TERM", "USR1"])
def test_a_command_that_signals_its_process_group_does_not_end_the_agent(guest: AgentOnPtys, signal: str) -> None:
    assert guest.channel.run(f"kill -{signal} 0; sleep 10", timeout=TIMEOUT_S).status > 128
    assert guest.channel.run("echo there", timeout=TIMEOUT_S).stdout == "there\n"


@pytest.mark.parametrize(
    "text",
    [
        "printf '%s|' a 'b c' \"d\"", "echo '1\n\n2\ttab'\necho last", "echo \\", "echo end\n", "printf '%s' '  x  '",
        "printf %s 'ü\x81\x88€'", "printf %s 'a\udcffb'", "echo " + "x" * 5000, "echo '" + "many lines\n" * 900 + "'",
        "# " + "long " * 30_000 + "\necho done", "",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_any_text_is_run_as_a_shell_of_the_host_would(guest: AgentOnPtys, text: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(text.encode("utf-8", "surrogateescape"))
    there = guest.channel.run(text, timeout=TIMEOUT_S)
    here = subprocess.run([*SHELLS["dash" if "dash" in SHELLS else "busybox"], script], capture_output=True)
    assert (there.status, there.stdout_bytes) == (here.returncode, here.stdout)


def test_a_list_is_a_program_and_its_arguments_as_they_are(guest: AgentOnPtys) -> None:
    result = guest.channel.run(["printf", "%s|", "a b", "$HOME", "it's", "", "x\ny"], timeout=TIMEOUT_S)
    assert result.stdout == "a b|$HOME|it's||x\ny|"


def test_a_nul_is_refused(guest: AgentOnPtys) -> None:
    with pytest.raises(ValueError, match="NUL"):
        guest.channel.run("echo \0")


def test_programs_can_open_their_outputs_and_input_by_name(guest: AgentOnPtys) -> None:
    result = guest.channel.run("echo e >/dev/stderr; cat /dev/stdin | tee /dev/stderr", input=b"in", timeout=TIMEOUT_S)
    assert (result.stdout, result.stderr) == ("in", "e\nin")


def test_commands_start_at_home_with_no_descriptor_of_the_agents(guest: AgentOnPtys) -> None:
    result = guest.channel.run('[ "$(pwd)" = "$HOME" ] && umask; ls -l /proc/$$/fd', timeout=TIMEOUT_S)
    assert result.stdout.startswith("0022\n")
    assert not [line for line in result.stdout.splitlines() if "pts" in line or "ptmx" in line]


def test_binary_input_comes_back_whole(guest: AgentOnPtys) -> None:
    data = os.urandom(300_000) + b"\x1e" * 1000
    assert guest.channel.run("cat", input=data, timeout=TIMEOUT_S).stdout_bytes == data


def test_without_input_there_is_none(guest: AgentOnPtys) -> None:
    assert guest.channel.run("cat", timeout=TIMEOUT_S).stdout == ""
    assert guest.channel.run("cat", input=b"", timeout=TIMEOUT_S).stdout == ""


def test_input_that_is_not_read_does_not_reach_the_next_command(guest: AgentOnPtys) -> None:
    for size in (10, 500_000):
        assert guest.channel.run("exit 3", input=b"exit 5\n" * size, timeout=TIMEOUT_S).status == 3
        assert guest.channel.run("cat", input=b"next", timeout=TIMEOUT_S).stdout == "next"


def test_input_is_written_and_output_read_as_it_comes(guest: AgentOnPtys) -> None:
    job = guest.channel.start("while read -r line; do echo got $line; done", writes=True, timeout=TIMEOUT_S)
    output = iter(job.stdout)
    for word in ("one", "two"):
        job.write(word.encode() + b"\n")
        assert next(output) == f"got {word}\n".encode()
    job.end_input()
    assert (list(output), job.wait(), job.status) == ([], 0, 0)
    with pytest.raises(ValueError, match="ended"):
        job.write(b"more")


def test_outputs_go_to_functions_as_they_come(guest: AgentOnPtys) -> None:
    out: list[bytes] = []
    err: list[bytes] = []
    job = guest.channel.start("echo 1; echo 2 >&2", stdout=out.append, stderr=err.append)
    assert job.wait(TIMEOUT_S) == 0
    assert (b"".join(out), b"".join(err), job.stdout.read()) == (b"1\n", b"2\n", b"")


def test_many_commands_at_once_and_more_than_there_is_room_for(own_guest: AgentOnPtys) -> None:
    jobs = [
        own_guest.channel.start(f"head -c 20000 /dev/zero; head -c {n} /dev/zero >&2; exit {n}", timeout=TIMEOUT_S)
        for n in range(30)
    ]
    assert [(job.wait(), len(job.stdout.read()), len(job.stderr.read())) for job in jobs] == [
        (n, 20000, n) for n in range(30)
    ]
    assert len(own_guest.ports) <= PORTS


def test_commands_run_at_the_same_time(own_guest: AgentOnPtys, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = own_guest.channel.start(f"cat {fifo}", timeout=TIMEOUT_S)
    writer = own_guest.channel.start(f"echo across >{fifo}", timeout=TIMEOUT_S)
    assert (writer.wait(), reader.wait(), reader.stdout.read()) == (0, 0, b"across\n")


def test_a_command_past_its_time_is_gone_with_its_children(own_guest: AgentOnPtys, tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    for timeout in (0.5, 5, TIMEOUT_S):     # on a busy host the command may not have begun in the first of them
        with pytest.raises(GuestTimeout, match=rf"sleep 100.* did not end within {timeout:g} s$"):
            own_guest.channel.run(f"sleep 100 & echo $! $$ >{noted}; sleep 100", timeout=timeout)
        if noted.exists() and (pids := noted.read_text().split()):
            break
    assert eventually(lambda: not any(is_there(pid) for pid in pids))
    assert own_guest.channel.run("echo next", timeout=TIMEOUT_S).stdout == "next\n"


def test_what_a_command_leaves_behind_lives_on_and_its_output_is_not_the_next_ones(
    own_guest: AgentOnPtys, tmp_path: Path
) -> None:
    run = own_guest.channel.run
    first = run(f"(while ! [ -e {tmp_path}/go ]; do sleep 0.01; done; echo late; echo late >{tmp_path}/late) & echo 1",
                timeout=TIMEOUT_S)
    assert first.stdout == "1\n"
    assert run("echo 2", timeout=TIMEOUT_S).stdout == "2\n"
    (tmp_path / "go").touch()
    assert own_guest.drive((tmp_path / "late").exists, TIMEOUT_S)
    assert run("echo 3", timeout=TIMEOUT_S).stdout == "3\n"


def test_a_command_that_kills_its_shell_is_lost_and_the_next_one_is_not(own_guest: AgentOnPtys) -> None:
    with pytest.raises(GuestError, match="was lost"):
        own_guest.channel.run("kill -9 $PPID; sleep 1", timeout=TIMEOUT_S)
    assert own_guest.channel.run("echo next", timeout=TIMEOUT_S).stdout == "next\n"


def test_killing_is_no_error_and_ends_the_output(own_guest: AgentOnPtys) -> None:
    job = own_guest.channel.start("echo begun; sleep 100", timeout=TIMEOUT_S)
    for chunk in job.stdout:
        assert chunk == b"begun\n"
        job.kill()
    assert job.wait() == 137
    waiting = [own_guest.channel.start("sleep 100") for _ in range(40)]
    waiting[-1].kill()
    assert waiting[-1].status == 137
    for job in waiting:
        job.kill()
    assert [job.wait(TIMEOUT_S) for job in waiting] == [137] * 40


def test_output_that_nobody_reads_has_a_limit(own_guest: AgentOnPtys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "MOST_OUTPUT", 1 << 20)
    with pytest.raises(GuestError, match="wrote more than 1 MiB"):
        own_guest.channel.run("yes", timeout=TIMEOUT_S)
    assert own_guest.channel.run("echo next", timeout=TIMEOUT_S).stdout == "next\n"


def test_output_that_is_read_slowly_makes_the_guest_wait(own_guest: AgentOnPtys) -> None:
    job = own_guest.channel.start("yes", timeout=TIMEOUT_S)
    next(iter(job.stdout))
    own_guest.drive(lambda: job.stdout.is_full, TIMEOUT_S)
    held = len(job.stdout.read())
    assert job_module.WINDOW <= held < job_module.WINDOW + 100_000
    job.kill()


def test_check_raises_with_the_last_error_line(guest: AgentOnPtys) -> None:
    with pytest.raises(GuestError, match=r"'echo a >&2; echo b >&2; false' ended with status 1: b"):
        guest.channel.run("echo a >&2; echo b >&2; false", check=True, timeout=TIMEOUT_S)


def test_many_commands_one_after_another(own_guest: AgentOnPtys, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one slot, if it has time to become free after each."""
    monkeypatch.setattr(channel_module, "SETTLE_S", TIMEOUT_S)
    numbers = [own_guest.channel.run(f"echo {n}", timeout=TIMEOUT_S).stdout for n in range(100)]
    assert numbers == [f"{n}\n" for n in range(100)]
    assert len(own_guest.ports) == 2 + 2


def cats_of(slot: Path) -> list[str]:
    """The processes that pass on a slot's output."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(slot) and (process / "cmdline").read_bytes().startswith(b"cat\0"):
                found.append(process.name)
        except OSError:
            continue            # it has ended meanwhile
    return found


def kill_all(pids: list[str]) -> None:
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    assert eventually(lambda: not any(is_there(pid) for pid in pids))


def test_a_cat_that_is_killed_is_replaced(own_guest: AgentOnPtys, tmp_path: Path) -> None:
    own_guest.channel.run("true", timeout=TIMEOUT_S)
    cats = cats_of(tmp_path / "run" / "0")
    assert len(cats) == 2
    kill_all(cats)
    assert own_guest.channel.run("echo next", timeout=TIMEOUT_S).stdout == "next\n"


def test_a_slot_whose_output_nobody_passes_on_is_replaced(own_guest: AgentOnPtys, tmp_path: Path) -> None:
    own_guest.channel.run("true", timeout=TIMEOUT_S)
    cats = cats_of(tmp_path / "run" / "0")
    parents = [Path(f"/proc/{cat}/stat").read_text().rpartition(")")[2].split()[1] for cat in cats]
    kill_all(parents)
    kill_all(cats)
    with pytest.raises(GuestError, match="was lost"):
        own_guest.channel.run("echo lost", timeout=TIMEOUT_S)
    assert own_guest.channel.run("echo next", timeout=TIMEOUT_S).stdout == "next\n"


# Marks


@given(st.lists(st.sampled_from([b"\x1e", b"\x1etok", b"\x1etoken000\n", b"data", b"\x1etokeneof\n"])),
       st.lists(st.integers(0, 200)))
def test_marks_are_found_wherever_the_stream_is_cut(pieces: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(pieces) + b"\x1etoken255\n"

    def take(chunks: list[bytes]) -> list[bytes]:
        seen = [b""]

        def data(part: bytes) -> None:
            assert part
            seen[-1] += part

        marks = Marks("token", data, lambda code: seen.extend((b"<" + code + b">", b"")))
        for chunk in chunks:
            marks.feed(chunk)
        return seen

    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    assert take([stream[a:b] for a, b in itertools.pairwise(edges)]) == take([stream])
    assert take([stream])[-2] == b"<255\n>"


# An agent made of test code


class FakePort:
    """A port that remembers what it was sent."""

    def __init__(self) -> None:
        self.ready = False
        self.guest_open = False
        self.pending = 0
        self.received: Callable[[bytes], None] | None = None
        self.opened: Callable[[bool], None] | None = None
        self.drained: Callable[[], None] | None = None
        self.sent = bytearray()
        self.paused = False

    def open(self) -> None: ...

    def send(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def say(self, data: bytes) -> None:
        if self.received is not None:
            self.received(data)

    def set_open(self, is_open: bool) -> None:
        self.ready = True
        self.guest_open = is_open
        if self.opened is not None:
            self.opened(is_open)


class FakeGuest:
    """A guest that does what the test says, whenever it is driven."""

    def __init__(
        self, state: ChannelState | None = None, is_open: tuple[int, ...] = (), has_shares: bool = False
    ) -> None:
        self.driver_ready = False
        self.ports: dict[int, FakePort] = {}
        for number in is_open:
            self.port(number).guest_open = True
        self.stopped = False
        self.steps: list[Callable[[], None]] = []
        self.console = Console(lambda data: None, self.drive, lambda fd, callback: None, lambda fd: None)
        self.channel = Channel(self, self.console, state, has_shares)

    def port(self, number: int, name: str = "") -> FakePort:
        return self.ports.setdefault(number, FakePort())

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        while not until():
            if self.steps:
                self.steps.pop(0)()
            elif self.stopped:
                raise GuestStopped("the guest powered off")
            else:
                return False
        return True

    def say(self, line: bytes) -> None:
        self.ports[0].say(line)

    def token(self) -> bytes:
        """Of the last slot that was asked for."""
        return bytes(self.ports[0].sent.splitlines()[-1].split()[-1])

    def mark(self, code: bytes, *ports: int) -> None:
        for port in ports or (1, 2):
            self.ports[port].say(b"\x1e" + self.token() + code)

    def with_slot(self) -> FakeGuest:
        """The agent is there, and has a slot in which a command runs."""
        self.driver_ready = True
        self.ports[0].set_open(True)
        self.say(b"hello 1\n")
        self.job = self.channel.start("command")
        self.open_slot()
        return self

    def open_slot(self) -> None:
        for port in (1, 2):
            self.ports[port].set_open(True)
        self.mark(b"rdy\n")


def test_why_the_agent_is_not_there() -> None:
    guest = FakeGuest()
    port = guest.ports[0]
    with pytest.raises(GuestError, match="not there: its kernel has not started the virtio console's driver"):
        guest.channel.start("true")
    guest.driver_ready = True
    assert "driver has not made the port" in guest.channel.missing()
    port.ready = True
    assert "no program has the port" in guest.channel.missing()
    port.set_open(True)
    assert "says nothing" in guest.channel.missing()
    guest.say(b"login: ")
    assert "b'login: '" in guest.channel.missing()


def test_why_the_agent_is_not_there_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "emu.channel"):
        assert not FakeGuest().channel.wait(1.5)
    assert "no agent in the guest after 1.5 s: its kernel" in caplog.text


def test_another_version_is_no_agent() -> None:
    guest = FakeGuest()
    guest.say(b"hello 2\n")
    assert not guest.channel.alive


def test_a_status_counts_only_when_both_outputs_have_it() -> None:
    guest = FakeGuest().with_slot()
    guest.ports[1].say(b"out")
    guest.mark(b"003\n", 1)
    assert guest.job.status is None
    guest.ports[2].say(b"err")
    guest.mark(b"003\n", 2)
    assert (guest.job.status, guest.job.stdout.read(), guest.job.stderr.read()) == (3, b"out", b"err")


def test_a_slot_is_used_again_once_nothing_can_write_there_any_more() -> None:
    guest = FakeGuest().with_slot()
    guest.mark(b"000\n")
    second = guest.channel.start("second")
    guest.ports[1].say(b"from a daemon")
    assert b"second" not in guest.ports[1].sent
    guest.mark(b"eof\n")
    assert guest.ports[1].sent.endswith(b"l 1 0\nsecond\n")
    guest.ports[1].say(b"from the second")
    assert (guest.job.stdout.read(), second.stdout.read()) == (b"", b"from the second")


def test_another_slot_is_asked_for_if_the_first_is_not_soon_free() -> None:
    guest = FakeGuest().with_slot()
    guest.mark(b"000\n")
    second = guest.channel.start("second")
    assert guest.ports[0].sent.count(b"slot") == 1
    with pytest.raises(GuestTimeout):
        second.wait(0.1)
    assert guest.ports[0].sent.count(b"slot") == 2


def test_a_killed_slot_takes_no_command_until_it_has_closed() -> None:
    guest = FakeGuest().with_slot()
    guest.job.kill()
    assert guest.ports[0].sent.endswith(b"kill 0\n")
    guest.ports[1].say(b"late")
    guest.mark(b"eof\n")
    assert guest.job.status is None
    for port in (1, 2):
        guest.ports[port].set_open(False)
    assert (guest.job.status, guest.job.stdout.read()) == (137, b"")


def test_run_says_if_even_sigkill_does_not_help() -> None:
    guest = FakeGuest().with_slot()
    guest.mark(b"000\n")
    guest.mark(b"eof\n")
    with pytest.raises(GuestTimeout, match=r"'stuck' did not end within 2 s, nor on SIGKILL"):
        guest.channel.run("stuck", timeout=2)


def test_an_interrupted_run_kills_its_command() -> None:
    guest = FakeGuest().with_slot()

    def interrupt() -> None:
        raise KeyboardInterrupt

    guest.mark(b"000\n")
    guest.mark(b"eof\n")
    guest.steps.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        guest.channel.run("interrupted")
    assert guest.ports[0].sent.endswith(b"kill 0\n")


def test_slots_that_cannot_be_started_are_not_asked_for_for_ever() -> None:
    guest = FakeGuest()
    guest.ports[0].set_open(True)
    guest.say(b"hello 1\n")
    job = guest.channel.start("command")
    for _ in range(3):
        for is_open in (True, False):
            for port in (1, 2):
                guest.ports[port].set_open(is_open)
    with pytest.raises(GuestError, match="cannot start commands"):
        job.wait(1)
    assert guest.ports[0].sent.count(b"slot") == 3


def test_commands_are_lost_with_the_guest() -> None:
    guest = FakeGuest().with_slot()
    waiting = guest.channel.start("another")
    for port in guest.ports.values():
        port.set_open(False)
    assert not guest.channel.alive
    for job in (guest.job, waiting):
        with pytest.raises(GuestError):
            job.wait(1)


def test_commands_lost_because_the_guest_ends_raise_that() -> None:
    def stop() -> None:
        guest.stopped = True

    def panic() -> None:
        guest.console.panics.feed(b"Kernel panic - not syncing: test\n")

    for end, error, match in ((stop, GuestStopped, "powered off"), (panic, GuestError, "Kernel panic")):
        guest = FakeGuest().with_slot()
        for port in guest.ports.values():
            port.set_open(False)
        guest.steps.append(end)
        with pytest.raises(error, match=match):
            guest.job.wait(1)


def test_a_panic_and_a_stop_end_the_wait() -> None:
    guest = FakeGuest().with_slot()
    guest.stopped = True
    with pytest.raises(GuestStopped):
        guest.job.wait()
    guest.console.panics.feed(b"Kernel panic - not syncing: test\n")
    with pytest.raises(GuestError, match="Kernel panic - not syncing: test"):
        guest.job.wait()


def test_a_restored_channel_uses_the_slots_that_were_free_and_ends_the_others() -> None:
    old = FakeGuest().with_slot()
    assert old.channel.save() == ChannelState(True, ())
    old.mark(b"000\n")
    old.mark(b"eof\n")
    state = old.channel.save()
    assert state == ChannelState(True, ((0, old.token().decode()),))
    guest = FakeGuest(state, is_open=(0, 1, 2, 3, 4, RENEW_PORT))
    assert bytes(guest.ports[0].sent) == b"kill 1\n"
    job = guest.channel.start("command")
    assert bytes(guest.ports[RENEW_PORT].sent) == b"\n" and bytes(guest.ports[1].sent) == b""
    guest.ports[RENEW_PORT].say(b"\n")
    assert bytes(guest.ports[1].sent) == b"l 1 0\ncommand\n"
    for port in (1, 2):
        guest.ports[port].say(b"\x1e" + old.token() + b"004\n")
    assert job.status == 4


ONE_FREE_SLOT = ChannelState(True, ((0, "token"),))


def test_the_shell_for_a_command_is_asked_for_when_its_slot_is_free() -> None:
    guest = FakeGuest().with_slot()
    assert bytes(guest.ports[1].sent) == b"n\nl 1 0\ncommand\n"
    guest.mark(b"000\n")
    assert guest.ports[1].sent.endswith(b"command\n")
    guest.mark(b"eof\n")
    assert guest.ports[1].sent.endswith(b"command\nn\n")


def test_with_shares_commands_wait_for_the_mounts_too() -> None:
    guest = FakeGuest(ONE_FREE_SLOT, is_open=(0, 1, 2, RENEW_PORT), has_shares=True)
    assert bytes(guest.ports[0].sent) == b"resume\n"
    guest.channel.start("command")
    guest.ports[RENEW_PORT].say(b"\n")
    assert bytes(guest.ports[1].sent) == b""
    guest.say(b"resumed\n")
    assert bytes(guest.ports[1].sent) == b"l 1 0\ncommand\n"


def test_a_guest_without_the_program_that_renews_it_is_not_waited_for() -> None:
    guest = FakeGuest(ONE_FREE_SLOT, is_open=(0, 1, 2))
    assert not guest.channel.renews
    guest.channel.start("command")
    assert bytes(guest.ports[RENEW_PORT].sent) == b"" and bytes(guest.ports[1].sent) == b"l 1 0\ncommand\n"


def test_a_guest_whose_renewing_program_ends_is_not_waited_for() -> None:
    guest = FakeGuest(ONE_FREE_SLOT, is_open=(0, 1, 2, RENEW_PORT))
    guest.channel.start("command")
    assert bytes(guest.ports[1].sent) == b""
    guest.ports[RENEW_PORT].set_open(False)
    assert bytes(guest.ports[1].sent) == b"l 1 0\ncommand\n"


def test_a_fork_is_renewed_before_it_runs_commands() -> None:
    guest = FakeGuest(ONE_FREE_SLOT, is_open=(0, 1, 2, RENEW_PORT))
    guest.ports[RENEW_PORT].say(b"\n")
    guest.channel.forked()
    guest.channel.start("command")
    assert bytes(guest.ports[RENEW_PORT].sent) == b"\n\n" and bytes(guest.ports[1].sent) == b""
    guest.ports[RENEW_PORT].say(b"\n")
    assert bytes(guest.ports[1].sent) == b"l 1 0\ncommand\n"


def test_a_fork_in_the_midst_of_a_renewal_is_renewed_once_more() -> None:
    """The first answer is to what the original has asked for, in which both draw the same numbers."""
    guest = FakeGuest(ONE_FREE_SLOT, is_open=(0, 1, 2, RENEW_PORT))
    guest.channel.forked()
    guest.channel.start("command")
    assert bytes(guest.ports[RENEW_PORT].sent) == b"\n"
    guest.ports[RENEW_PORT].say(b"\n")
    assert bytes(guest.ports[RENEW_PORT].sent) == b"\n\n" and bytes(guest.ports[1].sent) == b""
    guest.ports[RENEW_PORT].say(b"\n")
    assert bytes(guest.ports[1].sent) == b"l 1 0\ncommand\n"


def test_what_ran_for_the_original_is_killed_in_a_fork_and_forgotten() -> None:
    guest = FakeGuest().with_slot()
    guest.channel.forked()
    assert guest.ports[0].sent.endswith(b"kill 0\n")
    guest.ports[1].say(b"late")
    for port in (1, 2):
        guest.ports[port].set_open(False)
    assert guest.job.stdout.read() == b""
    own = guest.channel.start("own")
    guest.open_slot()
    assert guest.ports[1].sent.endswith(b"l 1 0\nown\n")
    guest.ports[1].say(b"out")
    guest.mark(b"000\n")
    assert (own.status, own.stdout.read()) == (0, b"out")


def test_what_is_over_or_free_is_left_alone_in_a_fork() -> None:
    guest = FakeGuest().with_slot()
    guest.mark(b"000\n")
    guest.channel.forked()                          # something that it left behind may still write
    guest.mark(b"eof\n")
    guest.channel.forked()
    assert b"kill" not in guest.ports[0].sent
    guest.channel.start("own")
    assert guest.ports[1].sent.endswith(b"l 1 0\nown\n")


def test_a_slot_that_was_asked_for_before_a_fork_is_used_after_it() -> None:
    guest = FakeGuest()
    guest.driver_ready = True
    guest.ports[0].set_open(True)
    guest.say(b"hello 1\n")
    waiting = guest.channel.start("of the original")
    guest.channel.forked()
    own = guest.channel.start("own")
    guest.open_slot()
    assert bytes(guest.ports[1].sent) == b"n\nl 1 0\nown\n"
    guest.mark(b"005\n")
    assert (own.status, waiting.is_over) == (5, False)


def test_a_guest_that_is_not_set_right_does_not_keep_commands_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channel_module, "RESUME_S", 0.01)
    caplog.set_level("INFO")
    guest = FakeGuest(ONE_FREE_SLOT, is_open=(0, 1, 2, RENEW_PORT), has_shares=True)
    guest.channel.start("command")
    guest.channel.drive(lambda: False, 0.0)
    assert bytes(guest.ports[1].sent) == b"l 1 0\ncommand\n"
    assert "nothing comes from emu.agent and emu.renew" in caplog.text


AGENT_BYTES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"hello 1\n", b"hello 9\n", b"x" * 5000, b"kill 0\n", b"slot\n", b"\n", b"\xff\n"]),
)
SLOT_BYTES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"rdy\n", b"eof\n", b"000\n", b"999\n", b"-01\n", b"\xb2\xb2\xb2\n", b"????"]),
)
ACTIONS = st.one_of(
    st.tuples(st.just("agent"), st.just(0), AGENT_BYTES),
    st.tuples(st.just("mark"), st.integers(1, 4), SLOT_BYTES),
    st.tuples(st.just("data"), st.integers(1, 4), SLOT_BYTES),
    st.tuples(st.sampled_from(["open", "close"]), st.integers(0, 4), st.just(b"")),
    st.tuples(st.sampled_from(["start", "kill", "drive"]), st.just(0), st.just(b"")),
)


@given(st.lists(ACTIONS, max_size=60))
def test_nothing_a_guest_sends_raises_or_is_kept_without_bound(actions: list[tuple[str, int, bytes]]) -> None:
    guest = FakeGuest().with_slot()
    jobs = [guest.job]
    for action, number, data in actions:
        port = guest.port(number)
        if action == "agent":
            guest.say(data)
        elif action in ("mark", "data"):
            port.say(b"\x1e" + guest.token() + data if action == "mark" else data)
        elif action in ("open", "close"):
            port.set_open(action == "open")
        elif action == "start" and guest.channel.alive:
            jobs.append(guest.channel.start("another", input=b"input"))
        elif action == "kill":
            jobs[-1].kill()
        elif action == "drive":
            guest.channel.drive(lambda: False, 0)
    assert len(guest.channel._partial) <= 5000
    assert all(job.status is None or 0 <= job.status <= 255 for job in jobs)
    assert MOST_OUTPUT > 0
