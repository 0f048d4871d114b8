"""Several machines in one test: sockets between guests, what fails and how it is told, and what is left behind."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import emu
from emu.fleet.fleet import Fleet
from emu.fleet.machine import FleetMachine

pytestmark = pytest.mark.integration

DOCUMENT = Path(__file__).parents[2] / "docs" / "fleet.md"
TIMEOUT_S = 60.0
END_S = 30.0
REFUSED = 104                           # ECONNRESET


def blocks() -> list[str]:
    """The document's Python: a script, a program, and a test for pytest."""
    return [str(text) for text in re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)]


def changed(text: str, *changes: tuple[str, str]) -> str:
    """A text with other words at places that there are."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A place for a fleet's files; pytest's own can be too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="emu-") as name:
        yield Path(name)


def test_script(path: Path, *options: str) -> subprocess.Popen[str]:
    """`emu test`, with its files beside the script."""
    return subprocess.Popen(
        [sys.executable, "-m", "emu", "test", *options, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"TMPDIR": str(path.parent)},
    )  # fmt: skip


test_script.__test__ = False            # type: ignore[attr-defined]


def processes_of(directory: Path) -> list[str]:
    """Those that were started with it as their place for files."""
    mark = f"TMPDIR={directory}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in place.read_bytes().split(b"\0"):
                found.append(place.parent.name)
        except OSError:
            pass
    return found


def assert_nothing_left(script: Path) -> None:
    """No process, and no file but the script."""
    deadline = time.monotonic() + END_S
    while processes_of(script.parent) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(script.parent) == []
    assert list(script.parent.iterdir()) == [script]


# -- scripts ---------------------------------------------------------------------------------------------------------


def test_the_documented_script_passes_on_three_machines(temporary: Path) -> None:
    script = temporary / "greeting.py"
    script.write_text(blocks()[0])
    with test_script(script, "--timeout", "100") as process:
        stdout, log = process.communicate()
    assert (process.returncode, stdout) == (0, ""), log
    for name in "server", "alice", "bob":
        assert f"  {name}: start\n" in log
    assert re.search(r"^ +[0-9.]+  subtest: each is greeted by its address\n", log, re.MULTILINE)
    assert re.search(r"^ +[0-9.]+    bob: succeed: vsock 3 80\n", log, re.MULTILINE)
    assert re.search(r"emu: .*greeting.py: passed in [0-9.]+ s\n$", log)
    assert_nothing_left(script)


def test_a_planted_fault_is_found_by_the_report_alone(temporary: Path) -> None:
    """The server's command is misspelt: the client only sees an empty answer."""
    script = temporary / "fault.py"
    script.write_text(changed(blocks()[0], ("'echo hello,", "'eco hello,")))
    with test_script(script) as process:
        report = process.communicate()[1].partition("FAILED after")[2]
    assert process.returncode == 1
    before = script.read_text().partition("    assert answers")[0]
    assert "\n  subtest: each is greeted by its address\n" in report
    assert f"\n  at: {script}:{before.count(chr(10)) + 1}: assert answers == " in report
    server, _, clients = report.partition("server (CID 3): running\n")[2].partition("alice (CID 4)")
    assert "eco: not found" in server and "eco" not in clients
    assert_nothing_left(script)


def test_a_refused_connection_is_told_on_both_sides(temporary: Path) -> None:
    script = temporary / "fault.py"
    script.write_text(changed(blocks()[0], ("listen 80 'echo h", "listen 81 'echo h"), ("port(80)", "port(81)")))
    with test_script(script) as process:
        report = process.communicate()[1].partition("FAILED after")[2]
    assert process.returncode == 1
    headline, *lines = report.splitlines()
    assert headline.endswith(" s: alice: 'vsock 3 80' ended with status 104, and had to succeed")
    assert "  and bob: 'vsock 3 80' ended with status 104, and had to succeed" in lines
    assert "  status: 104" in lines and "    vsock 3 80" in lines
    server, clients = report.partition("server (CID 3)")[2].split("alice (CID 4)")
    assert re.search(r"CID 4 port \d+ to guest port 80: refused by the guest", server)
    assert re.search(r"guest port \d+ to CID 3 port 80: refused: by that machine", clients)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_script_that_is_ended_leaves_nothing(temporary: Path, number: int, status: int) -> None:
    script = temporary / "endless.py"
    script.write_text("""
one, two = fleet.add("one"), fleet.add("two")
start_all()
print("all there", flush=True)
wait_all([one, two], lambda machine: machine.succeed("sleep 1000"))
""")
    with test_script(script) as process:
        assert process.stdout and process.stdout.readline() == "all there\n"
        assert len(processes_of(temporary)) == 4        # the script, what the machines are clones of, and they
        process.send_signal(number)
        log = process.communicate(timeout=END_S)[1]
    assert process.returncode == status, log
    assert "Traceback" not in log
    assert_nothing_left(script)


def test_a_script_s_time_is_limited_whatever_it_does(temporary: Path) -> None:
    script = temporary / "endless.py"
    script.write_text("while True: pass\n")
    with test_script(script, "--timeout", "0.5") as process:
        log = process.communicate(timeout=END_S)[1]
    assert process.returncode == 1
    assert re.search(rf"FAILED after [0-9.]+ s: the 0.5 s for the test are over\n  at: {script}:1: while True", log)
    assert "Traceback" not in log


def test_the_documented_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks()[1], {})
    assert capsys.readouterr().out == "server\n\n"


def test_the_documented_test_passes(fleet: Fleet) -> None:
    names: dict[str, Callable[[Fleet], None]] = {}
    exec(blocks()[2], names)
    names["test_the_client_reaches_the_server"](fleet)
    assert len(blocks()) == 3


# -- machines --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Two clones, and a guest that has booted itself, without 9p."""
    with Fleet("left", "right", timeout=1000, sink=lambda _line: None) as fleet:
        fleet.add("booted", kernel="cloud")
        fleet.start_all()
        yield fleet


@pytest.fixture
def left(fleet: Fleet) -> FleetMachine:
    return fleet["left"]


@pytest.fixture
def right(fleet: Fleet) -> FleetMachine:
    return fleet["right"]


def test_megabytes_between_guests_arrive_as_they_were_sent(
    fleet: Fleet, left: FleetMachine, right: FleetMachine
) -> None:
    data = os.urandom(1 << 20)
    (fleet.shared / "data").write_bytes(data)
    right.succeed("vsock listen 100 'tee /tmp/got'")
    back = left.succeed(f"for i in 1 2 3 4; do cat /mnt/shared/data; done | vsock {right.cid} 100 | sha256sum")
    assert back.split()[0] == hashlib.sha256(4 * data).hexdigest()
    assert right.succeed("sha256sum </tmp/got").split()[0] == hashlib.sha256(4 * data).hexdigest()


def test_every_pair_of_machines_can_talk(fleet: Fleet) -> None:
    fleet.wait_all(fleet, lambda machine: machine.succeed("vsock listen 101 'echo $1 called $(hostname)'"))

    def call_all(machine: FleetMachine) -> list[str]:
        return [machine.succeed(f"vsock {other.cid} 101") for other in fleet if other is not machine]

    assert fleet.wait_all(fleet, call_all) == [
        [f"{machine.cid} called {other.name}\n" for other in fleet if other is not machine] for machine in fleet
    ]


def test_addresses_and_ports_that_nobody_has_are_refused_at_once(left: FleetMachine, right: FleetMachine) -> None:
    for cid, port in (99, 80), (4_000_000_000, 80), (right.cid, 81):
        output = left.succeed(f"time -f %e vsock {cid} {port} 2>/tmp/time || echo $?; tail -n1 /tmp/time")
        assert int(output.split()[0]) == REFUSED
        assert float(output.split()[1]) < 1.5           # Linux gives up by itself after 2


def test_a_blocked_machine_is_cut_off_and_comes_back(left: FleetMachine, right: FleetMachine) -> None:
    right.succeed("vsock listen 102 'echo here; sleep 1000'")
    talk = right.process.vsock_connect(102, TIMEOUT_S)
    left.succeed(f"(vsock {right.cid} 102; echo ended) >/tmp/talk 2>&1 </dev/zero &")
    left.wait_until_succeeds("grep here /tmp/talk", TIMEOUT_S)
    right.block()
    left.wait_until_succeeds("grep ended /tmp/talk", TIMEOUT_S)
    left.fail(f"vsock {right.cid} 102")
    right.fail(f"vsock {left.cid} 80")
    talk.settimeout(TIMEOUT_S)
    assert talk.recv(5) == b"here\n", "the host is no other machine"
    talk.close()
    right.unblock()
    left.succeed(f"vsock {right.cid} 102 'read -r line; echo $line >&2'")


def test_the_host_and_guests_reach_each_other(fleet: Fleet, left: FleetMachine) -> None:
    left.succeed("vsock listen 103 'read -r line; echo $line from $1'")
    with left.process.vsock_connect(103, TIMEOUT_S) as sock:
        sock.sendall(b"hello\n")
        assert sock.makefile().readline() == "hello from 2\n"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(fleet.directory / f"{left.cid}_5000"))
        server.listen()
        server.settimeout(TIMEOUT_S)
        left.succeed("echo to the host | vsock 2 5000 >/dev/null &")
        assert server.accept()[0].makefile().readline() == "to the host\n"


def test_a_machine_that_crashed_or_was_shut_down_starts_anew_under_its_address(
    left: FleetMachine, right: FleetMachine
) -> None:
    right.succeed("touch /tmp/mark; echo last words >/dev/console")
    for end in right.crash, right.shutdown:
        end()
        assert b"last words" in right.last_console
        left.fail(f"vsock {right.cid} 104")
        right.succeed("test ! -e /tmp/mark; echo last words >/dev/console")
        right.succeed("vsock listen 104 'echo anew'")
        assert left.succeed(f"vsock {right.cid} 104") == "anew\n"


def test_a_snapshot_of_a_machine_is_another_one_in_the_network(
    fleet: Fleet, left: FleetMachine, temporary: Path
) -> None:
    left.succeed("echo from left >/tmp/mark")
    left.process.snapshot(temporary / "left.snap")
    clone = fleet.add("clone", snapshot=temporary / "left.snap")
    assert clone.succeed("cat /tmp/mark; ls /mnt/shared") == "from left\n" + left.succeed("ls /mnt/shared")
    for machine in left, clone:
        machine.succeed("vsock listen 105 'echo $1 called $(hostname)'")
    assert left.succeed(f"vsock {clone.cid} 105") == f"{left.cid} called clone\n"
    assert clone.succeed(f"vsock {left.cid} 105") == f"{clone.cid} called left\n"


def test_ports_files_and_the_console(left: FleetMachine, temporary: Path) -> None:
    left.succeed("nc -l -p 8080 </dev/null >/dev/null 2>&1 &")
    left.wait_for_open_port(8080, TIMEOUT_S)
    left.send_chars("echo typed $((6 * 7))\n")
    assert "typed 42" in left.wait_for_console_text(r"typed 42\r\n", TIMEOUT_S)
    (temporary / "file").write_text("to and fro")
    left.copy_from_host(temporary / "file", "/tmp/")
    left.copy_from_machine("/tmp/file", temporary / "new")
    assert (temporary / "new" / "file").read_text() == "to and fro"
    with pytest.raises(emu.MachineFailure, match=r"^left: .*did not end within 0\.5 s$"):
        left.succeed("sleep 1000", timeout=0.5)
