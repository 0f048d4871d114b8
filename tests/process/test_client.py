"""What the user of a machine in another process holds, against a server made of test code."""

from __future__ import annotations

import gc
import os
import queue
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emu import errors
from emu.errors import EmuError, GuestError, GuestStopped, GuestTimeout, MachineDied, OutputLimit
from emu.process import client as client_module
from emu.process import messages as m
from emu.process import outputs as outputs_module
from emu.process.client import MachineProcess, close_all
from emu.stats import ExitStats
from tests.process.fake_server import PATIENCE_S, FakeServer, interrupt, sleeper
from tests.support.descriptors import open_files

THREADS = 20
STATS = ExitStats((), 1, 2, 3, False)


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """As in a program that was just started."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


class Worker(threading.Thread):
    """Calls a function; `outcome` is what it has returned, or raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._function()
        except BaseException as error:
            self._outcome = error

    @property
    def outcome(self) -> Any:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self._outcome


def echo(server: FakeServer, request: m.Request, data: bytes) -> None:
    """A command's output is its text, and its status its length; its errors are its input."""
    if isinstance(request.body, m.Run):
        assert isinstance(request.body.command, str)
        server.reply(request, m.Output(1), request.body.command.encode())
        server.reply(request, m.Output(2), data)
        server.reply(request, m.Ran(len(request.body.command)))


def silent(_server: FakeServer, _request: m.Request, _data: bytes) -> None:
    """Answers nothing."""


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def waits(process: MachineProcess) -> bool:
    """Whether a thread waits for replies."""
    return process._requests._reader is not None


def states(pid: int) -> str:
    """A process' state, Z for a zombie; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_command_and_its_outcome() -> None:
    with FakeServer(echo) as server:
        result = server.process.run("echo", input=b"in", timeout=1.5, most_output=7)
        assert (result.status, result.stdout, result.stderr) == (4, "echo", "in")
        assert server.next() == m.Request(1, m.Run("echo", 1500, True, 7))
        server.process.run("true")
        assert server.next() == m.Request(2, m.Run("true", None, False, None))


def test_a_list_stays_a_list() -> None:
    with FakeServer(lambda server, request, _: server.reply(request, m.Ran(0))) as server:
        server.process.run(["printf", "%s", "a b"])
        assert server.next().body == m.Run(("printf", "%s", "a b"), None, False, None)


@pytest.mark.parametrize(("seconds", "milliseconds"), [(0, 1), (-1, 1), (0.0004, 1), (2, 2000), (1e300, 10**12)])
def test_times_are_whole_milliseconds_and_never_none(seconds: float, milliseconds: int) -> None:
    with FakeServer(echo) as server:
        server.process.run("x", timeout=seconds)
        assert server.next().body == m.Run("x", milliseconds, False, None)
        server.process.run("x", timeout=float("inf"))
        assert isinstance(server.next().body, m.Run)


def test_outputs_go_to_functions_as_they_come() -> None:
    seen: list[bytes] = []
    going_on = threading.Event()

    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        server.reply(request, m.Output(1), b"first")
        assert going_on.wait(PATIENCE_S)
        server.reply(request, m.Output(2), b"second")
        server.reply(request, m.Ran(0))

    def sink(data: bytes) -> None:
        seen.append(data)
        going_on.set()

    with FakeServer(answer) as server:
        result = server.process.run("x", stdout=sink)
        assert (seen, result.stdout, result.stderr) == ([b"first"], "", "second")


def test_check_raises_with_the_command_and_its_last_error() -> None:
    with FakeServer(echo) as server:
        with pytest.raises(GuestError, match=r"^'false x' ended with status 7: why$"):
            server.process.run("false x", check=True, input=b"first\nwhy\n")


def test_values_of_every_kind() -> None:
    description = m.Description(5, "/v.sock", 7)
    answers = {m.Stats: STATS, m.Describe: description, m.ConsoleExpect: "text", m.WaitStopped: "powered off"}

    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        server.reply(request, m.Done(answers.get(type(request.body))), b"history")      # type: ignore[arg-type]

    with FakeServer(answer) as server:
        process = server.process
        assert process.stats() == STATS
        assert process.describe() == description
        assert process.console_expect("t.xt", 2) == "text"
        assert process.wait_stopped() == "powered off"
        assert process.console_output() == b"history"
        process.wait_ready(3)
        process.console_send(b"typed")
        process.copy_in(b"content", "/tmp/x")
        process.copy_in("relative", "/tmp/y", timeout=1)
        process.copy_out("/tmp/x", "here")
        process.snapshot("a.snap", incremental=True)
        asked = [server.asked.get(timeout=PATIENCE_S) for _ in range(11)][4:]
        assert [(request.body, data) for request, data in asked] == [
            (m.ConsoleOutput(), b""), (m.WaitReady(3000), b""), (m.ConsoleSend(), b"typed"),
            (m.CopyIn(None, "/tmp/x", None), b"content"),
            (m.CopyIn(os.path.abspath("relative"), "/tmp/y", 1000), b""),
            (m.CopyOut("/tmp/x", os.path.abspath("here"), None), b""), (m.Save(os.path.abspath("a.snap"), True), b""),
        ]


def test_a_machine_that_still_runs_has_not_stopped() -> None:
    with FakeServer(lambda server, request, _: server.reply(request, m.Done(""))) as server:
        assert server.process.wait_stopped(0.1) is None


@pytest.mark.parametrize(("kind", "raised"), [
    ("GuestError", GuestError), ("GuestTimeout", GuestTimeout), ("GuestStopped", GuestStopped),
    ("OutputLimit", OutputLimit), ("BadSnapshot", errors.BadSnapshot), ("ValueError", ValueError),
    ("OSError", EmuError), ("TypeError", EmuError), ("annotations", EmuError), ("__name__", EmuError), ("", EmuError),
])
def test_what_is_raised_there_is_raised_here(kind: str, raised: type[Exception]) -> None:
    with FakeServer(lambda server, request, _: server.reply(request, m.Failed(kind, "because"))) as server:
        with pytest.raises(raised, match=r"^because$") as info:
            server.process.stats()
        assert type(info.value) is raised


@pytest.mark.parametrize("body", [m.Done(), m.Done("text"), m.Done(m.Description(1, None, 2)), m.Ran(0)])
def test_another_answer_than_was_asked_for_is_an_error(body: Any) -> None:
    with FakeServer(lambda server, request, _: server.reply(request, body)) as server:
        with pytest.raises(MachineDied, match="gave another answer"):
            server.process.stats()
        if not isinstance(body, m.Ran):
            with pytest.raises(MachineDied, match="gave another answer"):
                server.process.run("x")


def test_a_pattern_that_is_none_is_not_sent() -> None:
    with FakeServer() as server:
        with pytest.raises(re.error):
            server.process.console_expect("(")
        assert server.asked.empty()


def test_what_cannot_be_sent_is_refused_and_nothing_is_lost() -> None:
    with FakeServer(echo) as server:
        with pytest.raises(EmuError, match="more than can go to another process"):
            server.process.run("x", input=_Long())      # type: ignore[arg-type]
        with pytest.raises(TypeError):
            server.process.run("x", most_output="much")     # type: ignore[arg-type]
        assert server.process.run("next").stdout == "next"


class _Long(bytes):
    """Says that it is long."""

    def __len__(self) -> int:
        return 5 << 30


# -- many threads ------------------------------------------------------------------------------------------------------


def test_replies_find_their_threads_in_any_order() -> None:
    requests: list[m.Request] = []

    def answer(server: FakeServer, request: m.Request, data: bytes) -> None:
        requests.append(request)
        if len(requests) == THREADS:
            random.Random(1).shuffle(requests)
            for each in requests:
                server.reply(each, m.Output(1), b"a%d" % each.number)
            for each in reversed(requests):
                server.reply(each, m.Output(2), b"b%d" % each.number)
                assert isinstance(each.body, m.Run)
                server.reply(each, m.Failed("GuestError", str(each.body.command)))

    def ask(name: str) -> tuple[str, bytes, bytes]:
        out, err = bytearray(), bytearray()
        with pytest.raises(GuestError) as info:
            server.process.run(name, stdout=out.extend, stderr=err.extend)
        assert out[1:] == err[1:]
        return str(info.value), bytes(out[:1]), bytes(err[:1])

    with FakeServer(answer) as server:
        workers = [Worker(lambda name=str(name): ask(name)) for name in range(THREADS)]  # type: ignore[misc]
        assert [worker.outcome for worker in workers] == [(str(name), b"a", b"b") for name in range(THREADS)]


@pytest.mark.parametrize("order", [1, -1])
def test_when_the_thread_that_reads_has_its_reply_another_one_reads(order: int) -> None:
    with FakeServer(silent) as server:
        workers = []
        for number in range(5):
            workers.append(Worker(lambda number=number: server.process.run(str(number)).status))   # type: ignore[misc]
            server.next()                           # so the first one reads for all
        for number in range(5)[::order]:
            server.reply(number + 1, m.Ran(number))
            assert workers[number].outcome == number
        assert not waits(server.process)


def test_a_thread_that_deals_with_its_output_does_not_hold_up_others() -> None:
    busy, going_on = threading.Event(), threading.Event()

    def sink(_data: bytes) -> None:
        busy.set()
        going_on.wait(PATIENCE_S)

    def answer(server: FakeServer, request: m.Request, data: bytes) -> None:
        if request.body == m.Run("slow", None, False, None):
            server.reply(request, m.Output(1), b"x")
            server.reply(request, m.Ran(0))
        else:
            echo(server, request, data)

    with FakeServer(answer) as server:
        slow = Worker(lambda: server.process.run("slow", stdout=sink).status)
        assert busy.wait(PATIENCE_S)
        assert [server.process.run(f"{n}").stdout for n in range(10)] == [f"{n}" for n in range(10)]
        going_on.set()
        assert slow.outcome == 0


def test_a_large_input_and_a_large_output_pass_each_other() -> None:
    data = random.Random(2).randbytes(3 << 20)

    def answer(server: FakeServer, request: m.Request, data: bytes) -> None:
        for at in range(0, len(data), 100_000):
            server.reply(request, m.Output(1), data[at : at + 100_000])
        server.reply(request, m.Ran(0))

    with FakeServer(answer) as server:
        workers = [Worker(lambda: server.process.run("cat", input=data).stdout_bytes) for _ in range(4)]
        assert all(worker.outcome == data for worker in workers)


# -- output that nobody keeps up with ----------------------------------------------------------------------------------


def test_the_server_is_told_what_was_dealt_with() -> None:
    chunk, chunks = 100_000, 3 * m.AHEAD // 100_000

    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        for _ in range(chunks):
            server.reply(request, m.Output(2), bytes(chunk))
        server.reply(request, m.Ran(0))

    with FakeServer(answer) as server:
        server.process.run("x", stderr=lambda data: None)
        server.process.close()
        assert server.ended.wait(PATIENCE_S)
        assert set(server.took) == {1}
        assert chunks * chunk - m.AHEAD // 2 < server.took[1] <= chunks * chunk


def test_output_that_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_module, "MOST_OUTPUT", 1 << 20)

    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        if request.body == m.Run("flood", None, False, None):
            for _ in range(11):
                server.reply(request, m.Output(2), bytes(100_000))

    with FakeServer(answer) as server:
        with pytest.raises(GuestError, match=r"^'flood' wrote more than 1 MiB that nobody has read$"):
            server.process.run("flood")
        assert server.next().number == 1
        assert server.next() == m.Request(0, m.Cancel(1))


# -- Ctrl-C, and errors of the user's ----------------------------------------------------------------------------------


def test_ctrl_c_ends_the_request_and_the_next_one_goes_on() -> None:
    def answer(server: FakeServer, request: m.Request, data: bytes) -> None:
        if request.body == m.Run("sleep", None, False, None):
            interrupt()
        elif isinstance(request.body, m.Cancel):
            server.reply(request.body.request, m.Output(1), b"too late")
            server.reply(request.body.request, m.Ran(137))
        else:
            echo(server, request, data)

    with FakeServer(answer) as server:
        for number in (1, 3):
            with pytest.raises(KeyboardInterrupt):
                server.process.run("sleep")
            assert server.process.run("next").stdout == "next"
            assert [server.next() for _ in range(3)][:2] == [
                m.Request(number, m.Run("sleep", None, False, None)), m.Request(0, m.Cancel(number))
            ]
        assert server.process._requests._pending == {}


def test_ctrl_c_in_a_flood_loses_nothing_of_what_other_threads_wait_for() -> None:
    """Python runs handlers between any two bytecodes, also in the midst of a frame."""
    rounds, chunks = 30, 200
    asked: dict[str, m.Request] = {}

    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        if isinstance(request.body, m.Run):
            asked[str(request.body.command)] = request
        if len(asked) == 2:
            flood, steady = asked.pop("flood"), asked.pop("steady")
            when = random.Random(flood.number).randrange(chunks)
            for number in range(chunks):
                if number == when:
                    interrupt()
                server.reply(flood, m.Output(1), bytes(1000))
                server.reply(steady, m.Output(1), b"%d " % number)
            server.reply(steady, m.Ran(0))

    def steady() -> list[str]:
        return [server.process.run("steady").stdout for _ in range(rounds)]

    with FakeServer(answer) as server:
        worker = Worker(steady)
        for _ in range(rounds):
            with pytest.raises(KeyboardInterrupt):
                server.process.run("flood")
        assert worker.outcome == ["".join(f"{number} " for number in range(chunks))] * rounds


def test_ctrl_c_while_much_is_sent_leaves_a_whole_request_and_its_end() -> None:
    """The server does not read before the interrupt has come."""
    data = random.Random(3).randbytes(3 << 20)
    came: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def answer(server: FakeServer, request: m.Request, data: bytes) -> None:
        came.put(data)
        echo(server, request, b"")

    with FakeServer(answer, reads=False) as server:
        def later() -> None:
            requests = server.process._requests
            assert eventually(lambda: len(requests._wire._unsent) > 0)
            interrupt()
            assert eventually(lambda: requests._pending == {})
            server.may_read.set()

        worker = Worker(later)
        with pytest.raises(KeyboardInterrupt):
            server.process.run("cat", input=data)
        assert worker.outcome is None
        assert came.get(timeout=PATIENCE_S) == data
        assert [server.next().body for _ in range(2)] == [m.Run("cat", None, True, None), m.Cancel(1)]
        assert server.process.run("next").stdout == "next"


def test_an_error_in_a_function_that_takes_output_ends_the_request() -> None:
    def sink(_data: bytes) -> None:
        raise RuntimeError("of the user's")

    with FakeServer(echo) as server:
        with pytest.raises(RuntimeError, match="of the user's"):
            server.process.run("x", stdout=sink)
        assert server.process.run("next").stdout == "next"
        assert [server.next().body for _ in range(2)][1] == m.Cancel(1)


def test_a_request_that_is_over_is_not_cancelled() -> None:
    with FakeServer(lambda server, request, _: server.reply(request, m.Failed("GuestError", "no"))) as server:
        for _ in range(3):
            with pytest.raises(GuestError):
                server.process.wait_ready()
        assert all(not isinstance(server.next().body, m.Cancel) for _ in range(3)) and server.asked.empty()


# -- its end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"\x05\0\0\0"])
def test_a_death_in_the_middle_is_told_to_all_who_wait(begun: bytes) -> None:
    with FakeServer(silent) as server:
        workers = [Worker(lambda: server.process.run("x")) for _ in range(5)]
        for _ in range(5):
            server.next()
        server.reply(1, m.Output(1), b"begun")
        server.raw(begun)
        server.die()
        for worker in workers:
            assert isinstance(worker.outcome, MachineDied)
            assert str(worker.outcome) == f"the machine's process {server.process.pid} is gone"
        with pytest.raises(MachineDied, match="is gone"):
            server.process.stats()


def test_what_came_before_the_death_counts() -> None:
    def answer(server: FakeServer, request: m.Request, data: bytes) -> None:
        echo(server, request, data)
        server.die()

    with FakeServer(answer) as server:
        assert server.process.run("done").stdout == "done"
        with pytest.raises(MachineDied):
            server.process.run("next")


@pytest.mark.parametrize("garbage", [b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}", b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage_is_the_end_of_it(garbage: bytes) -> None:
    with FakeServer(lambda server, request, _: server.raw(garbage)) as server:
        workers = [Worker(server.process.stats) for _ in range(3)]
        for worker in workers:
            assert isinstance(worker.outcome, MachineDied)
            assert "a process of a machine sent" in str(worker.outcome) and "\n" not in str(worker.outcome)
        assert server.ended.wait(PATIENCE_S)        # nothing is read from there any more


def test_last_words_are_the_reason() -> None:
    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        server.reply(0, m.Failed("EmuError", "there is no room"))
        server.die()

    with FakeServer(answer) as server:
        for _ in range(2):
            with pytest.raises(MachineDied, match=r"^there is no room$"):
                server.process.stats()


def test_closing_wakes_all_who_wait() -> None:
    with FakeServer(silent) as server:
        workers = [Worker(lambda: server.process.run("x")) for _ in range(5)]
        for _ in range(5):
            server.next()
        assert eventually(lambda: waits(server.process))
        server.process._requests.end("the machine is closed")
        assert not waits(server.process)
        server.process.close()
        assert [str(worker.outcome) for worker in workers] == ["the machine is closed"] * 5
        assert all(isinstance(worker.outcome, MachineDied) for worker in workers)
        with pytest.raises(MachineDied, match="closed"):
            server.process.run("x")
        assert not server.process.alive


def test_closing_while_another_thread_sends_much() -> None:
    """It waits for room that there will never be."""
    with FakeServer(silent, reads=False) as server:
        server.lets_go = True
        worker = Worker(lambda: server.process.run("x", input=bytes(5 << 20)))
        assert eventually(lambda: len(server.process._requests._wire._unsent) > 0)
        closer = Worker(server.process.close)
        server.may_read.set()
        assert closer.outcome is None
        assert isinstance(worker.outcome, MachineDied)


def test_closing_any_number_of_times_from_any_thread() -> None:
    with FakeServer(silent) as server:
        workers = [Worker(server.process.close) for _ in range(10)]
        assert [worker.outcome for worker in workers] == [None] * 10
        server.process.close()
        server.process.kill()


def test_closing_inside_a_function_that_takes_output() -> None:
    with FakeServer(lambda server, request, _: server.reply(request, m.Output(1), b"x")) as server:
        with pytest.raises(MachineDied, match="closed"):
            server.process.run("x", stdout=lambda _data: server.process.close())


def test_closing_in_a_signals_handler_while_its_thread_reads() -> None:
    signal.signal(signal.SIGINT, lambda *_: server.process.close())
    with FakeServer(lambda *_: interrupt()) as server:
        with pytest.raises(MachineDied, match="closed"):
            server.process.run("x")


def test_a_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CLOSE_S", 0.05)
    with FakeServer(silent) as server:
        server.lets_go = False
        pid = server.process.pid
        server.process.close()
        assert states(pid) == ""


def test_ctrl_c_while_it_is_closed_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CLOSE_S", PATIENCE_S)
    before = open_files()
    with FakeServer(silent) as server:
        server.lets_go = False

        def later() -> None:
            assert server.ended.wait(PATIENCE_S)
            interrupt()

        worker = Worker(later)
        with pytest.raises(KeyboardInterrupt):
            server.process.close()
        assert worker.outcome is None
        assert eventually(lambda: states(server.process.pid) in ("Z", ""))
    assert open_files() == before


def test_killing_does_not_wait_and_ends_what_is_asked() -> None:
    def answer(server: FakeServer, _request: m.Request, _data: bytes) -> None:
        server.process.kill()
        assert eventually(lambda: not server.process.alive)
        server.die()                                # as the host's kernel does for a process

    with FakeServer(answer) as server:
        assert server.process.alive
        with pytest.raises(MachineDied, match="is gone"):
            server.process.run("x")
        server.process.kill()                       # there is nobody


def test_garbage_collection_closes() -> None:
    gc.collect()
    before = open_files()
    server = FakeServer(silent)
    pid = server.process.pid
    process, server.process = server.process, None      # type: ignore[assignment]
    del process
    gc.collect()
    assert server.ended.wait(PATIENCE_S)
    assert eventually(lambda: states(pid) in ("Z", ""))
    server._wire.close()
    server._thread.join()
    with FakeServer():                              # whose making lets go of what has ended
        assert states(pid) == ""
    assert open_files() == before


def test_descriptors_stay_flat_and_no_zombies_remain() -> None:
    before = open_files()
    for number in range(10):
        with FakeServer(echo) as server:
            assert server.process.run("x").status == 1
            pid = server.process.pid
            if number % 2:
                server.process.kill()
        assert states(pid) == ""
    assert open_files() == before


def test_in_a_fork_machines_are_let_go_of_and_live_on() -> None:
    with FakeServer(echo) as server:
        pid = os.fork()
        if pid == 0:
            close_all()
            is_gone = all(not one.alive for one in (server.process,))
            server.process.close()                  # does nothing
            os._exit(0 if is_gone else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert server.process.alive
        assert server.process.run("on").stdout == "on"


def test_what_it_takes_of_the_hosts_memory() -> None:
    with FakeServer(silent) as server:
        use = server.process.use()
        assert use.private_bytes > 0 and use.shared_bytes > 0
        assert use.private_bytes % 1024 == 0
        server.process.kill()
        assert eventually(lambda: not server.process.alive)
        with pytest.raises(MachineDied, match="is gone"):
            server.process.use()


# -- forks -------------------------------------------------------------------------------------------------------------


def child() -> tuple[socket.socket, tuple[int, int], int, int]:
    """The server's end of another machine's socket, the descriptors to send, its process, and what ends that."""
    ours, theirs = socket.socketpair()
    pid, pidfd, life = sleeper()
    return ours, (theirs.detach(), pidfd), pid, life


def test_forks_come_with_their_sockets_and_processes() -> None:
    before = open_files()
    children = [child() for _ in range(3)]

    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        for _, fds, pid, _ in children:
            server.reply(request, m.Forked(pid), fds=fds)
        server.reply(request, m.Done())

    with FakeServer(answer) as server:
        machines = server.process.fork(3)
        assert server.next().body == m.Fork(3, ())
        assert [machine.pid for machine in machines] == [pid for _, _, pid, _ in children]
        for machine, (ours, _, _, life) in zip(machines, children, strict=True):
            assert machine.alive
            os.close(life)
            machine.close()
            assert ours.recv(1) == b""
            ours.close()
    for _, _, pid, _ in children:
        os.waitpid(pid, 0)
    assert open_files() == before


def test_one_fork_is_not_in_a_list_and_may_have_a_socket_file() -> None:
    ours, fds, pid, life = child()

    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        server.reply(request, m.Forked(pid), fds=fds)
        server.reply(request, m.Done())

    with FakeServer(answer) as server:
        machine = server.process.fork(vsock="v.sock")
        assert server.next().body == m.Fork(1, (os.path.abspath("v.sock"),))
        os.close(life)
        machine.close()
    ours.close()
    os.waitpid(pid, 0)


def test_a_fork_that_fails_half_way_ends_those_that_came() -> None:
    before = open_files()
    ours, fds, pid, life = child()

    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        server.reply(request, m.Forked(pid), fds=fds)
        os.close(life)
        server.reply(request, m.Failed("EmuError", "cannot fork: no room"))

    with FakeServer(answer) as server:
        with pytest.raises(EmuError, match="no room") as info:
            server.process.fork(2)
        ours.settimeout(PATIENCE_S)
        assert ours.recv(1) == b"" and info.value.__traceback__     # which has all that was there
    ours.close()
    os.waitpid(pid, 0)
    assert open_files() == before


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_fork_whose_descriptors_are_missing_or_strange_is_refused(count: int) -> None:
    before = open_files()

    def answer(server: FakeServer, request: m.Request, data: bytes) -> None:
        if isinstance(request.body, m.Fork):
            server.reply(request, m.Forked(1), fds=tuple(os.dup(0) for _ in range(count)))
        else:
            echo(server, request, data)

    with FakeServer(answer) as server:
        with pytest.raises(EmuError, match=r"^cannot fork: no descriptor is left here"):
            server.process.fork()
        assert server.process.run("next").stdout == "next"
    assert open_files() == before


def test_a_fork_whose_socket_is_none_is_refused() -> None:
    before = open_files()

    def answer(server: FakeServer, request: m.Request, data: bytes) -> None:
        if isinstance(request.body, m.Fork):
            server.reply(request, m.Forked(1), fds=os.pipe())
        else:
            echo(server, request, data)

    with FakeServer(answer) as server:
        with pytest.raises(EmuError, match=r"^cannot fork: "):
            server.process.fork()
        assert server.process.run("next").stdout == "next"
    assert open_files() == before


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    """Beside output, beside replies to nobody, and of forks where no fork was asked for."""
    before = open_files()

    def answer(server: FakeServer, request: m.Request, _data: bytes) -> None:
        if not isinstance(request.body, m.Run):
            return
        for body, number in (
            (m.Output(1), request.number), (m.Output(7), request.number), (m.Forked(1), request.number),
            (m.Forked(1), 99), (m.Done(), 99), (m.Failed("EmuError", "x"), 99), (m.Ran(0), request.number),
        ):
            server.reply(number, body, fds=(os.dup(0), os.dup(0)))

    with FakeServer(answer) as server:
        for _ in range(20):
            assert server.process.run("x").status == 0
    assert open_files() == before
