"""The stub on small guests: what each packet does, and that no peer can do harm."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from emu import micro
from emu.errors import EmuError, GuestStopped
from emu.gdb import GdbServer
from emu.gdb.debugger import Debugger
from emu.gdb.packets import frame
from emu.gdb.registers import description, registers
from emu.machine import Machine
from emu.memory import MIB
from emu.micro import CODE, DATA, UNMAPPED
from emu.run_loop import StopReason
from tests.gdb.client import IDLE, LOOP, PATIENCE_S, POWER_OFF, RESET, STORES, Client, small_machine
from tests.support.remedies import run_alone

STOPPED = b"T05thread:01;"
INTERRUPTED = b"T02thread:01;"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with small_machine(LOOP) as machine:
        machine.drive(lambda: machine.board.cpu.registers.rip >= CODE, PATIENCE_S)
        yield machine


@pytest.fixture
def server(machine: Machine) -> Iterator[GdbServer]:
    with GdbServer(machine, 0) as server:
        yield server


@pytest.fixture
def client(machine: Machine, server: GdbServer) -> Iterator[Client]:
    with Client(machine, server.address) as client:
        yield client


# -- stopping and going on -------------------------------------------------------------------------------------------


def test_who_connects_stops_the_guest_and_who_detaches_lets_it_go(machine: Machine, client: Client) -> None:
    assert client.ask(b"?") == STOPPED
    before = machine.board.cpu.registers.rax
    assert not machine.drive(lambda: False, 0.05)
    assert machine.board.cpu.registers.rax == before
    assert client.ask(b"D") == b"OK"
    client.wait(lambda: client.is_closed)
    machine.drive(lambda: machine.board.cpu.registers.rax != before, PATIENCE_S)
    assert machine.run_loop.debugger is None


def test_steps_breakpoints_and_ctrl_c(machine: Machine, client: Client) -> None:
    assert client.ask(b"Z0,%x,1" % (CODE + 4)) == b"OK"
    assert client.ask(b"c") == STOPPED
    assert client.rip() == CODE + 4
    assert client.ask(b"vCont;s:1;c") == STOPPED
    assert client.rip() == CODE + 6
    assert client.ask(b"z0,%x,1" % (CODE + 4)) == b"OK"
    client.send(frame(b"vCont;c"))
    client.send(b"\x03")
    assert client.reply() == INTERRUPTED
    assert machine.memory.read(CODE, len(LOOP)) == LOOP


def test_the_kind_of_a_breakpoint_is_told_to_who_knows_it(client: Client) -> None:
    assert b"swbreak+" in client.ask(b"qSupported:multiprocess+;swbreak+;hwbreak+")
    client.ask(b"Z1,%x,1" % (CODE + 4))
    assert client.ask(b"c") == b"T05hwbreak:;thread:01;"
    client.ask(b"z1,%x,1" % (CODE + 4))
    client.ask(b"Z0,%x,1" % (CODE + 6))
    assert client.ask(b"c") == b"T05swbreak:;thread:01;"


def test_a_watch_tells_its_address() -> None:
    with small_machine(STORES) as machine, GdbServer(machine, 0) as server, Client(machine, server.address) as client:
        assert client.ask(b"Z2,%x,4" % (DATA + 8)) == b"OK"
        for _ in range(2):
            before = machine.memory.read(DATA + 8, 8)
            assert client.ask(b"c") == b"T05watch:%x;thread:01;" % (DATA + 8)
            assert client.rip() == CODE + 8
            assert int.from_bytes(machine.memory.read(DATA + 8, 8), "little") == int.from_bytes(before, "little") + 1


def test_reads_cannot_be_watched_nor_what_is_not_mapped(client: Client) -> None:
    assert client.ask(b"Z3,%x,4" % DATA) == b""
    assert client.ask(b"Z4,%x,4" % DATA) == b""
    assert client.ask(b"Z2,%x,4" % UNMAPPED) == b"E0e"
    assert client.ask(b"Z2,%x,0" % DATA) == b"E16"


def test_an_idle_guest_is_interrupted_and_sleeps_on() -> None:
    with small_machine(IDLE) as machine, GdbServer(machine, 0) as server, Client(machine, server.address) as client:
        client.ask(b"?")
        for _ in range(2):
            client.send(frame(b"c"))
            client.wait(lambda: machine.board.cpu.halted)
            client.send(b"\x03")
            assert client.reply() == INTERRUPTED
            assert client.rip() == CODE + 2     # no interrupt has come: HLT has not ended


def test_the_guests_time_stands_while_it_does(machine: Machine, client: Client) -> None:
    """So between two stops no more of it has gone by than the host took from one to the other."""
    client.ask(b"?")
    debugger = machine.run_loop.debugger
    assert isinstance(debugger, Debugger)
    before_ns, tsc = debugger.time
    machine.drive(lambda: False, 0.3)
    started = time.monotonic_ns()
    client.ask(b"s")
    passed_ns = time.monotonic_ns() - started
    assert 0 < debugger.time[0] - before_ns <= passed_ns
    assert 0 < debugger.time[1] - tsc <= passed_ns * machine.board.kvmclock.hz // 1_000_000_000 * 1.01


def test_the_guest_that_waits_runs_only_when_gdb_lets_it(machine: Machine) -> None:
    before = machine.board.cpu.registers.rax
    with GdbServer(machine, 0, wait=True) as server:
        machine.drive(lambda: False, 0.05)
        with Client(machine, server.address) as lost:
            assert lost.ask(b"?") == STOPPED
        machine.drive(lambda: False, 0.05)
        assert machine.board.cpu.registers.rax == before
        with Client(machine, server.address) as client:
            assert client.ask(b"D") == b"OK"
        assert machine.drive(lambda: machine.board.cpu.registers.rax != before, PATIENCE_S)


def test_a_gdb_that_goes_without_a_word_lets_the_guest_go_on(machine: Machine, server: GdbServer) -> None:
    with Client(machine, server.address) as client:
        client.ask(b"Z0,%x,1" % (CODE + 4))
        client.ask(b"c")
        before = machine.board.cpu.registers.rax
    assert machine.drive(lambda: machine.board.cpu.registers.rax > before + 1000, PATIENCE_S)
    with Client(machine, server.address) as client:
        assert client.ask(b"?") == STOPPED


def test_a_second_gdb_is_turned_away(machine: Machine, server: GdbServer, client: Client) -> None:
    client.ask(b"?")
    with Client(machine, server.address) as second:
        second.wait(lambda: second.is_closed)
    assert client.ask(b"?") == STOPPED


def test_the_end_of_the_guest_is_told() -> None:
    for code, reply in (POWER_OFF, b"W00"), (b"\xfa\xf4", b"X06"):
        with small_machine(code) as machine, GdbServer(machine, 0, wait=True) as server:
            with Client(machine, server.address) as client:
                client.send(frame(b"c"))
                machine.run_to_end(PATIENCE_S)
                client.look()
                assert client.packets == [reply]


def test_breakpoints_outlast_a_reset_and_a_step_into_one_ends_at_the_start() -> None:
    code = b"\x90" + RESET
    with Machine(64 * MIB) as machine, GdbServer(machine, 0, wait=True) as server:
        machine.boot(lambda memory: micro.install(memory, code))
        with Client(machine, server.address) as client:
            assert client.ask(b"Z0,%x,1" % (CODE + len(code) - 1)) == b"OK"
            for _ in range(2):
                assert client.ask(b"c") == STOPPED
                assert client.rip() == CODE + len(code) - 1
                before = machine.board
                assert client.ask(b"s") == STOPPED
                assert machine.board is not before
                assert client.rip() == micro.ENTRY
                assert client.ask(b"m%x,1" % CODE) == b"90"


def test_kill_ends_the_machine(machine: Machine, client: Client) -> None:
    client.ask(b"?")
    client.send(frame(b"k"))
    assert machine.run_to_end(PATIENCE_S) is StopReason.REQUESTED


def test_a_stopped_guest_does_not_keep_its_user_from_leaving(machine: Machine, client: Client) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    client.ask(b"?")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            machine.drive(lambda: False, PATIENCE_S)
    finally:
        signal.signal(signal.SIGALRM, before)
    machine.request_stop()
    assert machine.run_to_end(PATIENCE_S) is StopReason.REQUESTED


# -- registers and memory --------------------------------------------------------------------------------------------


def test_all_registers_and_one_by_one_are_the_same(client: Client) -> None:
    together = bytes.fromhex(client.ask(b"g").decode())
    single = b"".join(bytes.fromhex(client.ask(b"p%x" % n).decode()) for n in range(len(registers(True))))
    assert together == single
    assert client.ask(b"p%x" % len(registers(True))) == b"E16"


@pytest.mark.parametrize("name", ["rax", "r15", "eflags", "st3", "fctrl", "fop", "xmm7", "mxcsr", "fs_base", "cr2"])
def test_a_register_that_is_written_is_read_back(client: Client, name: str) -> None:
    number = [register.name for register in registers(True)].index(name)
    size = registers(True)[number].size
    value = {"eflags": 0x246, "mxcsr": 0x1F80, "fctrl": 0x37F}.get(name, 0x123).to_bytes(size, "little").hex().encode()
    before = client.ask(b"g")
    assert client.ask(b"P%x=%s" % (number, value)) == b"OK"
    assert client.ask(b"p%x" % number) == value
    assert client.ask(b"G" + before) == b"OK"
    assert client.ask(b"g") == before


def test_what_cannot_be_written_is_refused(client: Client) -> None:
    names = [register.name for register in registers(True)]
    assert client.ask(b"P%x=07000000" % names.index("cs")) == b"E16"
    assert client.ask(b"P%x=ffffffffffffffff" % names.index("efer")) == b"E16"
    assert client.ask(b"P0=00") == b"E16"
    assert client.ask(b"G00") == b"E16"


def test_memory_is_read_by_virtual_address_and_leaves_no_trace(machine: Machine, client: Client) -> None:
    tables = machine.memory.read(0, 0x6000)
    assert client.ask(b"m%x,4" % (micro.ALIAS + CODE)) == LOOP[:4].hex().encode()
    assert client.ask(b"m%x,4" % UNMAPPED) == b"E0e"
    assert client.ask(b"mffffffffffffffff,10") == b"E0e"
    assert client.ask(b"m800000000000,4") == b"E0e"
    end = 512 << 12
    last = machine.memory.read(end - 4, 4).hex().encode()                   # as far as there is something
    assert client.ask(b"m%x,40" % (2 * end - 4)) == last
    assert machine.memory.read(0, 0x6000) == tables


def test_memory_is_written_and_code_in_it_is_run_anew(machine: Machine, client: Client) -> None:
    assert client.ask(b"M%x,2:ffc8" % CODE) == b"OK"                        # dec eax in place of inc eax
    assert client.ask(b"X%x,4:a#bc" % DATA) == b"OK"
    assert machine.memory.read(DATA, 4) == b"a#bc"
    assert client.ask(b"M%x,4:ffc8" % CODE) == b"E16"
    assert client.ask(b"M%x,4:00000000" % (UNMAPPED - 2)) == b"E0e"
    assert client.ask(b"P10=%s" % CODE.to_bytes(8, "little").hex().encode()) == b"OK"
    before = machine.board.cpu.registers.rax
    assert client.ask(b"s") == STOPPED
    assert machine.board.cpu.registers.rax == before - 1 & 0xFFFF_FFFF


def test_the_description_comes_in_pieces(client: Client) -> None:
    whole, offset = b"", 0
    while True:
        piece = client.ask(b"qXfer:features:read:target.xml:%x,100" % offset)
        whole, offset = whole + piece[1:], offset + 0x100
        if piece[:1] == b"l":
            break
    assert whole == description(True)


def test_questions(client: Client) -> None:
    assert client.ask(b"qC") == b"QC01"
    assert client.ask(b"qAttached") == b"1"
    assert client.ask(b"qfThreadInfo") == b"m01"
    assert client.ask(b"vCont?") == b"vCont;c;C;s;S"
    assert client.ask(b"Hg0") == b"OK"
    assert client.ask(b"vMustReplyEmpty") == b""
    assert client.ask(b"QStartNoAckMode") == b"OK"
    client.raw = b""
    assert client.ask(b"qsThreadInfo") == b"l"
    assert client.raw.startswith(b"$")


def test_monitor_answers_in_words(machine: Machine, client: Client) -> None:
    def monitor(text: str) -> str:
        return bytes.fromhex(client.ask(b"qRcmd," + text.encode().hex().encode()).decode()).decode()

    assert "translate" in monitor("help")
    assert monitor("mode").startswith("ring 0, 64-bit code")
    assert monitor(f"translate {micro.ALIAS + 0x1234:#x}") == "0x1234\n"
    assert LOOP[:4].hex(" ") in monitor(f"physical {CODE:#x} 16")
    assert "how to ask" in monitor("translate x") and "how to ask" in monitor("physical 1 2 3")
    assert "not known" in monitor("\x1b[2J") and "not mapped" in monitor(f"translate {UNMAPPED}")
    assert "Exit" in monitor("stats") or "exit" in monitor("stats").lower()


# -- where it listens ------------------------------------------------------------------------------------------------


def test_a_socket_file_does_as_well(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "gdb.socket"
    with GdbServer(machine, str(path)) as server:
        assert server.address == str(path)
        with Client(machine, server.address) as client:
            assert client.ask(b"?") == STOPPED
    assert not path.exists()


def test_tcp_is_the_loopback_interfaces_alone(server: GdbServer) -> None:
    assert server.address.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    "address", ["65536", "999999", "nowhere.invalid:1", "/nonexistent/directory/socket", "/dev/null"]
)
def test_where_nobody_can_listen_one_line_says_so(machine: Machine, address: str) -> None:
    with pytest.raises(EmuError, match=r"^gdb: ") as caught:
        GdbServer(machine, address)
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken(machine: Machine, server: GdbServer) -> None:
    with pytest.raises(EmuError, match=r"^gdb: .*in use"):
        GdbServer(machine, server.address)


def test_two_servers_but_one_gdb(machine: Machine, client: Client) -> None:
    client.ask(b"?")
    with pytest.raises(EmuError, match="debugged already"):
        GdbServer(machine, 0, wait=True)


# -- whoever connects ------------------------------------------------------------------------------------------------

COMMANDS = b"?gGpPmMXZzcCsSDkHTqQv"
WORDS = (
    b"Z0,", b"Z2,", b"z9,", b"m", b"X", b"qXfer:features:read:target.xml:", b"qRcmd,", b"vCont;", b"vCont;s", b"P10=",
    b"ffffffffffffffff", b",", b":", b";", b"0", b"1000", b"\x03", b"}", b"*", b"#", b"#00", b"$", b"+", b"-", b"G",
)  # fmt: skip


def rubbish(choices: random.Random) -> bytes:
    kind = choices.randrange(4)
    if kind == 0:
        return choices.randbytes(choices.randrange(60))
    content = b"".join(choices.choice(WORDS) for _ in range(choices.randrange(6)))
    if kind == 1:
        return content
    return frame(bytes([choices.choice(COMMANDS)]) + content + choices.randbytes(choices.randrange(8)))


@pytest.mark.parametrize("seed", range(25))
def test_rubbish_harms_neither_the_guest_nor_us(machine: Machine, server: GdbServer, seed: int) -> None:
    choices = random.Random(seed)
    with suppress(GuestStopped):                # it may change the guest's registers and memory
        with Client(machine, server.address) as client, suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(40):
                client.send(rubbish(choices))
                machine.drive(lambda: False, 0.001)
        assert machine.drive(lambda: machine.run_loop.debugger is None, PATIENCE_S)
        with Client(machine, server.address) as client:
            assert client.ask(b"?") == STOPPED


def test_a_broken_packet_is_asked_for_again_and_an_answer_given_again(client: Client) -> None:
    client.send(b"$?#00")
    client.wait(lambda: client.raw.endswith(b"-"))
    assert client.ask(b"qC") == b"QC01"
    client.send(b"-")
    assert client.reply() == b"QC01"


def test_a_gdb_that_never_reads_is_dropped(machine: Machine, server: GdbServer) -> None:
    with Client(machine, server.address) as client:
        client.ask(b"?")
        machine.unwatch_fd(client.sock.fileno())
        client.sock.setblocking(True)
        client.sock.settimeout(PATIENCE_S)
        ended = time.monotonic() + PATIENCE_S
        while machine.run_loop.debugger is not None and time.monotonic() < ended:
            try:
                client.sock.sendall(frame(b"g") * 50)
            except OSError:
                break
            machine.drive(lambda: False, 0.001)
        assert machine.drive(lambda: machine.run_loop.debugger is None, PATIENCE_S)


def test_a_connection_that_is_reset(machine: Machine, server: GdbServer) -> None:
    with Client(machine, server.address) as client:
        client.ask(b"?")
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert machine.drive(lambda: machine.run_loop.debugger is None, PATIENCE_S)


# -- copies ----------------------------------------------------------------------------------------------------------


def test_a_copy_of_the_process_runs_though_gdb_has_stopped_the_original() -> None:
    """In a process of its own: one in which other tests have left threads cannot be copied."""
    done = run_alone("from tests.gdb.test_server import copied; copied()")
    assert (done.returncode, done.stderr) == (0, "")


def copied() -> None:
    with small_machine(b"\x90" * 8 + POWER_OFF) as machine, GdbServer(machine, 0, wait=True) as server:
        with Client(machine, server.address) as client:
            assert client.ask(b"Z0,%x,1" % (CODE + 2)) == b"OK"
            assert client.ask(b"c") == STOPPED
            with machine.fork() as copy:
                assert "powered off" in (copy.wait_stopped(PATIENCE_S) or "")
            assert client.rip() == CODE + 2
            assert client.ask(b"z0,%x,1" % (CODE + 2)) == b"OK"
            client.send(frame(b"c"))
            assert machine.run_to_end(PATIENCE_S) is StopReason.POWER_OFF
