"""The loop of a machine's process, with a machine of test code, and the real thing at the other end of the socket."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from emu.errors import EmuError, GuestError, GuestStopped, GuestTimeout, MachineDied, OutputLimit
from emu.process import messages as m
from emu.process import running as running_module
from emu.process import server as server_module
from emu.process.client import MachineProcess
from emu.process.server import Server
from emu.process.wire import Wire
from tests.process.fake_machine import FakeMachine, Program, Running
from tests.process.fake_server import PATIENCE_S, interrupt, sleeper

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

CHUNK = bytes(50_000)
SHOUT = 3 << 20                         # more than may be on its way to who looks at a console


# -- programs of the guest ---------------------------------------------------------------------------------------------


def say(running: Running) -> Iterator[None]:
    yield from running.write(running.text.encode())
    yield from running.write(b"wrong", running.err)


def cat(running: Running) -> Iterator[None]:
    yield from running.read()
    for at in range(0, len(running.input), len(CHUNK)):
        yield from running.write(running.input[at : at + len(CHUNK)])


def flood(running: Running) -> Iterator[None]:
    while True:
        yield from running.write(CHUNK)
        yield from running.write(CHUNK, running.err)


def much(running: Running) -> Iterator[None]:
    """As many bytes as its argument says."""
    left = int(running.text.split()[1])
    while left:
        yield from running.write(CHUNK[:left])
        left -= len(CHUNK[:left])


def sleep(_running: Running) -> Iterator[None]:
    while True:
        yield


def lose(running: Running) -> Iterator[None]:
    yield
    for port in (running.out, running.err):
        port.set_open(False)
    yield


def power_off(running: Running) -> Iterator[None]:
    yield from lose(running)
    running.machine.stop("the guest powered off")
    yield


def panic(running: Running) -> Iterator[None]:
    yield
    running.machine.panic()
    yield


def talk(running: Running) -> Iterator[None]:
    running.machine.console.feed(running.text.encode() + b"\n")
    yield


def shout(running: Running) -> Iterator[None]:
    running.machine.console.feed(bytes(SHOUT))
    yield


PROGRAMS: dict[str, Program] = {
    "say": say, "cat": cat, "flood": flood, "much": much, "sleep": sleep, "lose": lose, "poweroff": power_off,
    "panic": panic, "talk": talk,
    "shout": shout,
}  # fmt: skip


class Served:
    """A server in a thread, and its user's end."""

    def __init__(self, has_agent: bool = True) -> None:
        self.machine = FakeMachine(PROGRAMS, has_agent)
        self.ours, theirs = socket.socketpair()
        self.watched, self._watches = os.pipe()
        self.server = Server(self.machine, theirs, self.watched)        # type: ignore[arg-type]
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        pid, pidfd, self._life = sleeper()
        self.process = MachineProcess(self.ours, pid, pidfd, is_child=True)

    def _serve(self) -> None:
        try:
            self.server.serve()
        except BaseException as error:
            self.failure = error
        finally:
            self.server._wire.close()

    def end(self) -> None:
        """Wait until the server is done."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def user_dies(self) -> None:
        """The process that is watched ends."""
        os.close(self._watches)
        self._watches = -1

    def close(self) -> None:
        os.close(self._life)
        self.process.close()
        self.end()
        os.close(self.watched)
        if self._watches >= 0:
            os.close(self._watches)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()
    assert served.failure is None
    assert served.machine.is_closed


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(30) as threads:
        yield threads


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


# -- commands ----------------------------------------------------------------------------------------------------------


def test_outputs_and_status_of_a_command(served: Served) -> None:
    result = served.process.run("say 7")
    assert (result.status, result.stdout, result.stderr) == (7, "say 7", "wrong")
    assert served.process.run("true").status == 0


def test_input_of_any_size_comes_back(served: Served) -> None:
    data = os.urandom(1_500_000)
    for size in (0, 1, 300_000, len(data)):
        assert served.process.run("cat", input=data[:size]).stdout_bytes == data[:size]
    assert served.process.run("cat").stdout_bytes == b""


def test_many_commands_at_once_each_with_its_own_outcome(served: Served, threads: ThreadPoolExecutor) -> None:
    results = list(threads.map(lambda n: served.process.run(f"much {n * 10_000} {n}"), range(60)))
    assert [(result.status, len(result.stdout_bytes)) for result in results] == [(n, n * 10_000) for n in range(60)]


def test_inputs_and_outputs_of_many_pass_each_other(served: Served, threads: ThreadPoolExecutor) -> None:
    """More both ways than the socket holds; whoever waited for the other to read first would wait for ever."""
    data = os.urandom(1_500_000)
    for result in threads.map(lambda _: served.process.run("cat", input=data), range(8)):
        assert result.stdout_bytes == data


def test_a_command_that_cannot_be_is_a_value_error(served: Served) -> None:
    with pytest.raises(ValueError, match="NUL"):
        served.process.run("say \0")


def test_without_an_agent_the_console_runs_it() -> None:
    served = Served(has_agent=False)
    try:
        result = served.process.run(["say", "x"], timeout=5, input=b"in")
        assert (result.status, result.stdout, result.stderr) == (3, "on the console", "!")
        name, command, timeout, data = served.machine.calls[-1]
        assert (name, command, data) == ("run", ["say", "x"], b"in") and 0 < timeout <= 5      # type: ignore[operator]
        with pytest.raises(OutputLimit, match="wrote more than 10 bytes"):
            served.process.run("say", most_output=10)
    finally:
        served.close()


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "is_over"), [(100_000, False), (100_001, True), (5_000_000, True)])
def test_the_output_limit_is_to_the_byte(served: Served, size: int, is_over: bool) -> None:
    if not is_over:
        assert len(served.process.run(f"much {size}", most_output=100_000).stdout_bytes) == size
        return
    with pytest.raises(OutputLimit, match=f"^'much {size}' wrote more than 100000 bytes$"):
        served.process.run(f"much {size}", most_output=100_000)
    assert served.process.run("true").status == 0


def test_both_outputs_count_together_and_the_command_is_killed(served: Served) -> None:
    seen = bytearray()
    with pytest.raises(OutputLimit):
        served.process.run("flood", most_output=120_000, stdout=seen.extend, stderr=seen.extend)
    assert len(seen) <= 120_000
    assert eventually(lambda: served.machine.killed == 1 and not served.machine.running)


def test_a_command_past_its_time_is_gone(served: Served) -> None:
    with pytest.raises(GuestTimeout, match=r"^'sleep' did not end within 0\.2 s$"):
        served.process.run("sleep", timeout=0.2)
    assert (served.machine.killed, served.machine.running) == (1, [])


def test_a_command_past_its_time_that_cannot_be_killed_is_told_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emu.channel.KILL_S", 0.1)
    served.machine.unkillable.add("sleep")
    with pytest.raises(GuestTimeout, match="nor on SIGKILL"):
        served.process.run("sleep", timeout=0.1)
    assert served.process.run("true").status == 0


def test_each_has_its_own_time(served: Served, threads: ThreadPoolExecutor) -> None:
    late = threads.submit(served.process.run, "sleep", timeout=0.1)
    steady = threads.submit(served.process.run, "sleep", timeout=PATIENCE_S)
    with pytest.raises(GuestTimeout):
        late.result(PATIENCE_S)
    assert served.process.run("true", timeout=PATIENCE_S).status == 0
    assert not steady.done()
    served.process.kill()
    served.process._requests.end("enough")
    with pytest.raises(MachineDied):
        steady.result(PATIENCE_S)


def test_a_command_that_is_cancelled_while_another_is_past_its_time(
    served: Served, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server waits for one to be gone, the other goes, of which it still has a list."""
    monkeypatch.setattr("emu.channel.KILL_S", 0.5)
    served.machine.unkillable.add("sleep 1")
    late = threads.submit(served.process.run, "sleep 1", timeout=0.3)
    assert eventually(lambda: len(served.machine.running) == 1)
    served.process._requests._tell(m.Request(50, m.Run("sleep", None, False, None)))
    assert eventually(lambda: served.machine.killed == 1 and len(served.machine.running) == 2)
    served.process._requests._tell(m.Request(0, m.Cancel(50)))
    with pytest.raises(GuestTimeout, match="nor on SIGKILL"):
        late.result(PATIENCE_S)
    assert served.process.run("true").status == 0


# -- users that do not keep up -----------------------------------------------------------------------------------------


def test_a_flood_that_nobody_reads_stays_in_the_guest_while_everything_else_goes_on(
    served: Served, threads: ThreadPoolExecutor
) -> None:
    busy, going_on = threading.Event(), threading.Event()

    def sink(_data: bytes) -> None:
        busy.set()
        going_on.wait(PATIENCE_S)

    flooding = threads.submit(served.process.run, "flood", stdout=sink, most_output=20_000_000)
    assert busy.wait(PATIENCE_S)
    for number in range(20):
        assert served.process.run(f"say {number}").status == number
    data = os.urandom(1_000_000)
    assert served.process.run("cat", input=data).stdout_bytes == data
    with pytest.raises(GuestTimeout):
        served.process.run("sleep", timeout=0.1)
    (running,) = served.machine.running
    written = running.written
    served.process.run("much 1000000")
    assert running.written == written               # it waits
    # What was sent and not dealt with, what the server and the ports hold: each at most twice a window
    assert written < m.AHEAD + 2 * (2 << 20) + 4 * len(CHUNK)
    going_on.set()
    with pytest.raises(OutputLimit):
        flooding.result(PATIENCE_S)


def test_a_flood_without_any_reader_takes_no_memory_and_ends_with_its_user(served: Served) -> None:
    """The user's thread was interrupted, and asks nothing more."""
    wire = served.process._requests._wire
    wire.post(m.Request(1, m.Run("flood", None, False, None)))
    assert eventually(lambda: bool(served.machine.running))
    (running,) = served.machine.running
    assert eventually(lambda: running.err.is_paused)
    assert sum(len(part) for part, _ in served.server._wire._unsent) <= m.AHEAD + 2 * (2 << 20)


def test_input_is_taken_while_a_flood_is_not_read(served: Served) -> None:
    """One thread only: it was interrupted, and sends much before it reads again."""
    wire = served.process._requests._wire
    wire.post(m.Request(50, m.Run("flood", None, False, None)))
    assert eventually(lambda: any(running.err.is_paused for running in served.machine.running))
    data = os.urandom(3_000_000)
    assert served.process.run("cat", input=data).stdout_bytes == data
    served.process._requests._tell(m.Request(0, m.Cancel(50)))
    assert served.process.run("true").status == 0
    assert eventually(lambda: served.machine.running == [])


def test_a_time_limit_holds_for_a_command_whose_output_nobody_reads(
    served: Served, threads: ThreadPoolExecutor
) -> None:
    going_on = threading.Event()
    late = threads.submit(served.process.run, "flood", stdout=lambda _: going_on.wait(PATIENCE_S), timeout=0.3)
    assert eventually(lambda: served.machine.killed == 1)
    going_on.set()
    with pytest.raises(GuestTimeout):
        late.result(PATIENCE_S)


def test_a_command_that_has_ended_waits_for_its_user_without_a_time_limit(
    served: Served, threads: ThreadPoolExecutor
) -> None:
    going_on, seen = threading.Event(), bytearray()

    def sink(data: bytes) -> None:
        going_on.wait(PATIENCE_S)
        seen.extend(data)

    done = threads.submit(served.process.run, "much 1900000 5", stdout=sink, timeout=PATIENCE_S)
    assert eventually(lambda: any(each.job.is_over for each in served.server._running.values()))
    (one,) = served.server._running.values()
    one.time_limit = time.monotonic()
    assert served.process.run("true").status == 0
    assert not done.done()
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.15      # nothing spins
    going_on.set()
    assert (done.result(PATIENCE_S).status, len(seen)) == (5, 1_900_000)


# -- what is asked beside commands -------------------------------------------------------------------------------------


def test_everything_else_that_is_asked(served: Served) -> None:
    process, machine = served.process, served.machine
    assert process.stats() == machine.stats()
    description = process.describe()
    assert (description.memory, description.vsock) == (64 << 20, "/somewhere/v.sock")
    assert 0 < description.since_ns <= time.monotonic_ns()
    process.copy_in(b"data", "/tmp/x", timeout=2)
    process.copy_in("/from", "/tmp/y")
    process.wait_ready(7)
    process.console_send(b"typed")
    machine.console.feed(b"output")
    assert process.console_output() == b"output"
    assert machine.calls[-3:] == [
        ("copy_in", b"data", "/tmp/x", 2.0), ("copy_in", "/from", "/tmp/y", None), ("wait_ready", 7.0),
    ]
    assert bytes(machine.typed) == b"typed"
    with pytest.raises(EmuError, match=r"cannot write .*/there: no such directory"):
        process.copy_out("/tmp/x", "/nowhere/there")
    with pytest.raises(EmuError, match="No such file"):
        process.snapshot("/nowhere", incremental=True)
    assert machine.calls[-1] == ("snapshot", "/nowhere", True)


def test_what_needs_no_guest_is_answered_in_the_midst_of_something_long(
    served: Served, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "diagnose", lambda _machine: m.Diagnosis("well", "", "", "", ()))
    served.machine.console.feed(b"so far")
    copying = threads.submit(served.process.copy_in, b"", "/for/ever")
    assert eventually(lambda: served.server._current is not None)
    assert served.process.diagnose().stopped == "well"
    assert served.process.console_output() == b"so far"
    assert served.server._current is not None
    served.user_dies()
    with pytest.raises(EmuError):
        copying.result(PATIENCE_S)


def test_the_consoles_output_is_waited_for_while_commands_run(served: Served, threads: ThreadPoolExecutor) -> None:
    waiting = threads.submit(served.process.console_expect, "wo.ld", PATIENCE_S)
    assert eventually(lambda: bool(served.server._waits))
    assert served.process.run("talk hello").status == 0
    assert not waiting.done()
    assert served.process.run("talk world").status == 0
    assert waiting.result(PATIENCE_S) == "talk hello\ntalk world"
    served.machine.console.feed(b"more")
    assert served.process.console_expect("more", PATIENCE_S) == "\nmore"


def test_whatever_is_done_a_child_forked_ahead_does_not_know_of(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops: list[None] = []
    monkeypatch.setattr(served.server._ahead, "drop", lambda: drops.append(None))
    served.process.console_send(b"x")
    assert drops


def test_the_consoles_output_is_noticed_when_nothing_else_happens(
    served: Served, threads: ThreadPoolExecutor
) -> None:
    waiting = threads.submit(served.process.console_expect, "by itself", 10 * PATIENCE_S)
    assert eventually(lambda: bool(served.server._waits))
    served.machine.console.feed(b"by itself")
    assert waiting.result(PATIENCE_S) == "by itself"


def test_what_stands_on_the_console_already_is_found_at_once(served: Served, threads: ThreadPoolExecutor) -> None:
    served.machine.console.feed(b"one two three")
    for pattern, text in ("one", "one"), ("t.o", " two"):
        waiting = threads.submit(served.process.console_expect, pattern, 10 * PATIENCE_S)
        assert waiting.result(PATIENCE_S) == text


def test_the_consoles_output_is_not_waited_for_for_ever(served: Served) -> None:
    served.machine.console.feed(b"something else")
    with pytest.raises(GuestTimeout, match=r"^'never' did not appear in 0\.1 s; the console ends in 'something else'$"):
        served.process.console_expect("never", 0.1)
    assert not served.server._waits


def test_the_end_is_waited_for_while_commands_run(served: Served, threads: ThreadPoolExecutor) -> None:
    assert served.process.wait_stopped(0.05) is None
    ends = [threads.submit(served.process.wait_stopped) for _ in range(3)]
    expected = threads.submit(served.process.console_expect, "never", PATIENCE_S)
    assert eventually(lambda: len(served.server._waits) == 4)
    assert served.process.run("say 4").status == 4
    with pytest.raises(GuestStopped, match="powered off"):
        served.process.run("poweroff")
    assert [end.result(PATIENCE_S) for end in ends] == ["the guest powered off"] * 3
    with pytest.raises(GuestStopped, match="powered off"):
        expected.result(PATIENCE_S)
    assert served.process.wait_stopped() == "the guest powered off"


# -- cancelled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [
    lambda process: process.run("sleep"),
    lambda process: process.wait_stopped(),
    lambda process: process.console_expect("never", PATIENCE_S),
    lambda process: process.copy_in(b"", "/for/ever"),
], ids=["run", "wait_stopped", "console_expect", "copy_in"])  # fmt: skip
def test_after_ctrl_c_nothing_is_left_of_what_was_asked(
    served: Served, threads: ThreadPoolExecutor, wait: Callable[[MachineProcess], Any]
) -> None:
    def later() -> None:
        server = served.server
        assert eventually(lambda: bool(server._running or server._waits or server._current is not None))
        interrupt()

    done = threads.submit(later)
    with pytest.raises(KeyboardInterrupt):
        wait(served.process)
    done.result(PATIENCE_S)
    assert served.process.run("say 1").status == 1
    assert eventually(lambda: served.machine.running == [])
    assert not served.server._running and not served.server._waits


def test_a_request_that_was_cancelled_before_its_turn_is_not_done(served: Served) -> None:
    wire = served.process._requests._wire
    for number, command in ((50, "true"), (51, "sleep")):
        wire.post(m.Request(number, m.Run(command, None, False, None)))
    wire.post(m.Request(0, m.Cancel(51)))
    assert served.process.run("say 1").status == 1
    assert served.machine.running == [] and served.server._running == {}


def test_a_cancel_for_nothing_is_nothing(served: Served) -> None:
    for number in (0, 1, 77, -1, 1 << 40):
        served.process._requests._tell(m.Request(0, m.Cancel(number)))
        served.process._requests._tell(m.Request(0, m.Took(number, 1 << 40)))
    assert served.process.run("say 1").status == 1


# -- the guest's end ---------------------------------------------------------------------------------------------------


def test_a_machine_that_has_stopped_answers_what_it_can(served: Served, threads: ThreadPoolExecutor) -> None:
    running = threads.submit(served.process.run, "sleep")
    assert eventually(lambda: bool(served.machine.running))
    with pytest.raises(GuestStopped, match="powered off"):
        served.process.run("poweroff")
    with pytest.raises(GuestStopped, match="powered off"):
        running.result(PATIENCE_S)
    for _ in range(2):
        with pytest.raises(GuestStopped, match="powered off"):
            served.process.run("true", timeout=1)
        assert served.process.stats() == served.machine.stats()
    assert served.process.console_output() == b""


def test_a_machine_that_has_stopped_takes_no_time(served: Served) -> None:
    served.machine.stop("the guest powered off")
    assert served.process.wait_stopped(PATIENCE_S) == "the guest powered off"
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.2


def test_a_panic_ends_all_commands(served: Served, threads: ThreadPoolExecutor) -> None:
    running = [threads.submit(served.process.run, "sleep") for _ in range(3)]
    assert eventually(lambda: len(served.machine.running) == 3)
    with pytest.raises(GuestError, match=r"^Kernel panic - not syncing: of the test$"):
        served.process.run("panic")
    for each in running:
        with pytest.raises(GuestError, match="Kernel panic"):
            each.result(PATIENCE_S)
    with pytest.raises(GuestError, match="Kernel panic"):
        served.process.run("true")
    assert b"Kernel panic" in served.process.console_output()


def test_a_command_that_is_lost_is_told_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu.job.LOST_S", 0.05)
    with pytest.raises(GuestError, match="'lose' was lost"):
        served.process.run("lose")
    assert served.process.run("say 1").status == 1


# -- the user's end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sleep", "flood", "true"])
def test_a_user_that_goes_ends_it_whatever_is_under_way(command: str) -> None:
    served = Served()
    served.process._requests._wire.post(m.Request(1, m.Run(command, None, False, None)))
    if command != "true":
        assert eventually(lambda: bool(served.machine.running))
    served.process._requests._wire.shut_down()
    served.end()
    assert served.machine.is_closed and served.failure is None
    served.close()


def test_a_user_that_goes_in_the_midst_of_something_long_ends_it() -> None:
    served = Served()
    served.process._requests._wire.post(m.Request(1, m.CopyIn(None, "/for/ever", None)))
    assert eventually(lambda: served.server._current == 1)
    served.process._requests._wire.shut_down()
    served.end()
    assert served.machine.is_closed and served.failure is None
    served.close()


def test_the_end_of_the_process_that_is_watched_ends_it() -> None:
    """Its socket may live on in a process that was forked from it."""
    served = Served()
    copy = os.dup(served.ours.fileno())
    served.user_dies()
    served.end()
    assert served.machine.is_closed
    os.close(copy)
    served.close()


def test_garbage_from_the_user_ends_it() -> None:
    served = Served()
    os.write(served.ours.fileno(), b"\xff" * 100)
    served.end()
    assert served.machine.is_closed and served.failure is None
    served.close()


def test_a_fault_is_told_before_the_end() -> None:
    served = Served()
    served.machine.on_wait_ready = lambda: {}["nothing"]      # type: ignore[assignment]
    with pytest.raises(MachineDied, match=r"^the machine's process has failed: KeyError\('nothing'\)$"):
        served.process.wait_ready()
    served.end()
    assert isinstance(served.failure, KeyError)
    served.close()


def test_messages_that_are_replies_are_no_requests() -> None:
    served = Served()
    Wire(socket.socket(fileno=os.dup(served.ours.fileno())), m.Reply).post(m.Reply(1, m.Done()))
    served.end()
    assert served.machine.is_closed
    served.close()


def test_nothing_is_kept_of_what_is_over(served: Served) -> None:
    for _ in range(3):
        served.process.run("much 100000")
    gc.collect()
    assert sum(isinstance(each, running_module.Running) for each in gc.get_objects()) == 0


# -- the console for who looks at it -----------------------------------------------------------------------------------


def test_a_console_is_shown_until_the_machine_stops(served: Served, threads: ThreadPoolExecutor) -> None:
    shown: list[tuple[int, bytes]] = []
    served.machine.console.feed(b"before ")
    views = [threads.submit(served.process.console_view, lambda *each: shown.append(each)) for _ in range(2)]
    assert eventually(lambda: shown == 2 * [(0, b"before ")])
    served.process.run("shout")
    assert eventually(lambda: sum(position + len(data) == 7 + SHOUT for position, data in shown) == 2)
    with pytest.raises(GuestStopped):
        served.process.run("poweroff")
    assert [view.result(PATIENCE_S) for view in views] == 2 * ["the guest powered off"]


def test_while_it_is_paused_the_guest_stands(served: Served) -> None:
    served.process.pause()
    steps = served.machine._step
    served.machine._step = lambda: pytest.fail("it ran")        # type: ignore[method-assign]
    with pytest.raises(EmuError, match="is paused"):
        served.process.run("say 1")
    served.process.console_send(b"typed")
    assert served.process.stats().driven_ns == 1
    served.machine._step = steps                                # type: ignore[method-assign]
    served.process.resume()
    assert served.process.run("say 1").status == 1
    assert served.machine.typed == b"typed"


def test_a_size_that_no_console_has_is_refused(served: Served) -> None:
    with pytest.raises(ValueError, match="characters large"):
        served.process.console_resize(0, 25)
    served.process.console_resize(80, 25)
