"""Hypercalls from an unmodified Alpine: the built-in ones, a user's, those that go wrong, by pv and by dd."""

from __future__ import annotations

import calendar
import errno
import logging
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.errors import GuestStopped
from emu.machine import Machine
from emu.run_loop import StopReason
from emu.stats import Kind
from hypercalls import Call, Hypercall, hypercall
from hypercalls.dispatch import MOST_LOGGED
from hypercalls.files import REQUEST, VIRTUAL
from hypercalls.numbers import FIRST_USER, LAST, PV_IDLE, PV_MARK, PV_READ, PV_WALL_CLOCK
from tests.hypercalls.test_documentation import TEXT, c_source
from tests.integration.script import CONSTANTS, FREE, Step, play

pytestmark = pytest.mark.integration

DEVICE = "/dev/cpu/0/msr"
MEMORY = 256 << 20
UNCLAIMED = LAST
TIMEOUT_S = 60.0
OPEN, READ, PWRITE = 2, 0, 18
READ_WRITE = 2
FAULT = 2**64 - errno.EIO

counts = {"PV_COUNT": 0}


@hypercall(FIRST_USER, "PV_DOUBLE")
def pv_double(call: Call) -> int:
    """Twice the value, for a RDMSR."""
    return 2 * call.value


@hypercall(FIRST_USER + 1, "PV_RAISE", access="rw")
def pv_raise(_call: Call) -> int:
    """A mistake."""
    return 1 // 0


@hypercall(FIRST_USER + 2, "PV_STORE")
def pv_store(call: Call) -> None:
    """16 bytes to where the value says."""
    call.memory.write(call.value, bytes(16))


@hypercall(FIRST_USER + 3, "PV_COUNT")
def pv_count(call: Call) -> None:
    """Count the calls."""
    counts["PV_COUNT"] += 1


@hypercall(FIRST_USER + 4, "PV_FOLLOW")
def pv_follow(call: Call) -> None:
    """Go through a list in guest memory that leads to itself."""
    while True:
        call.memory.read(call.value, 8)


HANDLERS = [pv_double, pv_raise, pv_store, pv_count, pv_follow]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the machine exports."""
    path = tmp_path_factory.mktemp("files")
    (path / "hello").write_bytes(b"hello from the host\n")
    (path / "big").write_bytes(os.urandom((1 << 20) + 12_345))
    (path / "outside").symlink_to("/etc/passwd")
    return path


@pytest.fixture(scope="module")
def machine(host: Path) -> Iterator[Machine]:
    """A machine at its shell; at its end the kernel must not have complained."""
    with emu.boot(kernel="cloud", hypercalls=HANDLERS, files=host, append=LOUD_SETTINGS) as machine:
        machine.wait_prompt()
        yield machine
        messages = machine.run("dmesg", timeout=TIMEOUT_S).stdout
        assert complaints(messages) == [] and "unrecognized MSR" not in messages


def ok(machine: Machine, command: str) -> str:
    """What a command prints; it must not complain."""
    result = machine.run(command, timeout=TIMEOUT_S)
    assert (result.status, result.stderr) == (0, "")
    return result.stdout


def fails(machine: Machine, command: str) -> str:
    """What a command complains of."""
    result = machine.run(command, timeout=TIMEOUT_S)
    assert result.status == 1 and result.stdout == ""
    return result.stderr.rstrip("\n")


def dd_write(number: int, size: int, count: int = 1) -> str:
    """A command that writes zeroes to an MSR, and says how many bytes it wrote."""
    return (
        f"dd if=/dev/zero of={DEVICE} bs={size} count={count} oflag=seek_bytes seek={number} conv=notrunc 2>&1"
        " | grep copied | cut -d' ' -f1"
    )


# --- as the documentation has it ----------------------------------------------------------------------------------


def typed() -> list[tuple[str, str]]:
    """(command, output) of what is typed in the documentation."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        assert block.startswith("# ")
        found += [entry.partition("\n")[::2] for entry in re.split(r"^# ", block, flags=re.MULTILINE)[1:]]
    return found


def test_everything_typed_in_the_documentation_gives_what_is_printed_there(machine: Machine, host: Path) -> None:
    assert len(typed()) > 8
    for command, output in typed():
        result = machine.run(command, timeout=TIMEOUT_S)
        assert (command, result.stdout + result.stderr) == (command, output)
    assert (host / "answer").read_bytes() == b"back\n"
    assert [mark.value for mark in machine.marks] == [7, 7]
    machine.console.expect("started\n")


def test_the_program_in_the_documentation_reads_by_virtual_addresses(machine: Machine, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc here")
    (tmp_path / "pv_read.c").write_text(c_source("int main"))
    command = ["gcc", "-O2", "-static", "-o", tmp_path / "pv_read", tmp_path / "pv_read.c"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("gcc cannot make static programs here")
    machine.copy_in(tmp_path / "pv_read", "/tmp/pv_read")
    assert ok(machine, "/tmp/pv_read hello") == "hello from the host\n"
    assert fails(machine, "/tmp/pv_read none") == "none: No such file or directory"


# --- the built-in ones, by pv -------------------------------------------------------------------------------------


def test_files_go_both_ways_whole(machine: Machine, host: Path) -> None:
    ok(machine, "pv cat big >/tmp/big && pv put copy </tmp/big")
    assert (host / "copy").read_bytes() == (host / "big").read_bytes()


def test_who_reads_a_file_slowly_keeps_nobody_from_the_mailbox(machine: Machine, host: Path) -> None:
    rest = (host / "big").stat().st_size - 1
    slowly = "{ dd bs=1 count=1 of=/dev/null 2>/dev/null; pv cat hello; wc -c; }"
    assert ok(machine, f"pv cat big | {slowly}") == f"hello from the host\n{rest}\n"


def test_no_link_leads_out_of_the_directory(machine: Machine) -> None:
    assert fails(machine, "pv cat outside") == "pv: outside: a symbolic link"
    assert fails(machine, "pv cat ../x") == "pv: ../x: not the path of a file below the host's directory"


def test_many_programs_use_the_mailbox_at_a_time(machine: Machine, host: Path) -> None:
    script = "for i in 1 2 3; do { echo $i | pv put at.$i; pv cat at.$i; pv cat hello; } & done; wait"
    lines = ok(machine, script).splitlines()
    assert sorted(lines) == ["1", "2", "3", *["hello from the host"] * 3]
    assert [(host / f"at.{i}").read_text() for i in range(1, 4)] == ["1\n", "2\n", "3\n"]


def test_clock_and_random_bytes(machine: Machine) -> None:
    before = time.time_ns()
    number, date = ok(machine, f"pv get {PV_WALL_CLOCK}; pv date").splitlines()
    seconds, nanoseconds = re.fullmatch(r"(.*)\.(\d{9}) UTC", date).groups()     # type: ignore[union-attr]
    parsed = calendar.timegm(time.strptime(seconds, "%Y-%m-%d %H:%M:%S")) * 10**9 + int(nanoseconds)
    assert before - 2 * 10**9 <= int(number) < parsed <= time.time_ns() + 2 * 10**9
    sizes = ok(machine, "pv random 5000 | tee /tmp/random | wc -c; gzip </tmp/random | wc -c").split()
    assert int(sizes[0]) == 5000 < int(sizes[1])


def test_marks_have_the_time(machine: Machine) -> None:
    machine.marks.clear()
    ok(machine, "pv mark 1; sleep 0.2; pv mark 18446744073709551615")
    first, second = machine.marks
    assert (first.value, second.value) == (1, 2**64 - 1)
    assert 200_000_000 <= second.time_ns - first.time_ns <= machine.clock.now_ns()


def test_idle_comes_back(machine: Machine) -> None:
    count = machine.stats().count(Kind.WRMSR, "PV_IDLE")
    ok(machine, f"for i in 1 2 3 4 5; do pv set {PV_IDLE:#x} 0; done")
    assert machine.stats().count(Kind.WRMSR, "PV_IDLE") == count + 5


def test_a_write_of_many_words_is_as_many_calls(machine: Machine) -> None:
    machine.marks.clear()
    assert ok(machine, dd_write(PV_MARK, 8, 2000) + "; " + dd_write(PV_MARK, 80_000)) == "16000\n80000\n"
    assert len(machine.marks) == 12_000


def test_a_program_passes_its_own_addresses(machine: Machine) -> None:
    """Steps: both files opened, the request block read from one into memory, its address written to the other."""
    block, path, buffer = FREE, FREE + REQUEST.size, FREE + 0x1000
    request = REQUEST.pack(path, 5, 0, 6, buffer, 100, 0) + b"hello"
    number = struct.pack("<2Q", block | VIRTUAL, 0x7000_0000_0000 | VIRTUAL)
    machine.run("cat >/tmp/request", input=request, check=True, timeout=TIMEOUT_S)
    names = f"{DEVICE}\0/tmp/request\0".encode()
    results, memory = play(
        machine,
        [
            Step(OPEN, (CONSTANTS + len(number), READ_WRITE)),
            Step(OPEN, (CONSTANTS + len(number) + len(DEVICE) + 1, 0)),
            Step(READ, (4, block, len(request))),
            Step(PWRITE, (3, CONSTANTS, 8, PV_READ)),
            Step(PWRITE, (3, CONSTANTS + 8, 8, PV_READ)),
        ],
        (block, 0x1010),
        number + names,
    )
    assert [result for result, _ in results] == [3, 4, len(request), 8, FAULT]
    assert memory[0x1000:] == b"from the host\n\0\0"
    assert REQUEST.unpack_from(memory)[-1] == len("from the host\n")


# --- a user's, and what goes wrong --------------------------------------------------------------------------------


def test_a_handler_of_one_s_own(machine: Machine) -> None:
    assert ok(machine, f"pv set {FIRST_USER:#x} 21; pv get {FIRST_USER:#x}") == "42\n"


@pytest.mark.parametrize("number", [UNCLAIMED, PV_MARK + 4, 0x4B56_4D02])
def test_what_nobody_answers_is_an_io_error(machine: Machine, number: int) -> None:
    assert fails(machine, f"pv get {number}") == f"pv: reading MSR {number:#x}: I/O error"
    assert fails(machine, f"pv set {number} 0") == f"pv: writing MSR {number:#x}: I/O error"
    read = f"dd if={DEVICE} bs=8 count=1 iflag=skip_bytes skip={number}"
    assert fails(machine, read) == f"dd: {DEVICE}: I/O error"
    assert ok(machine, dd_write(number, 8)) == "0\n"


@pytest.mark.parametrize(
    ("one", "value", "said"),
    [
        (pv_raise, 1, "ZeroDivisionError"),
        (pv_store, MEMORY - 8, "16 bytes at guest-physical 0xffffff8 are not RAM"),
        (pv_store, 2**64 - 8, "16 bytes at guest-physical 0xfffffffffffffff8 are not RAM"),
        (pv_follow, 0x1000, "without end"),
    ],
    ids=["raises", "writes past RAM", "writes past all", "goes on and on"],
)
def test_a_handler_that_goes_wrong_leaves_the_machine_alive(
    machine: Machine, caplog: pytest.LogCaptureFixture, one: Hypercall, value: int, said: str
) -> None:
    assert fails(machine, f"pv set {one.number} {value}") == f"pv: writing MSR {one.number:#x}: I/O error"
    assert said in caplog.text and one.name in caplog.text
    if one is pv_raise:
        assert re.search(r"\brip [0-9a-f]{16} ", caplog.text) and re.search(r"\brcx 000000004b564d21 ", caplog.text)
    assert ok(machine, f"pv set {FIRST_USER:#x} 4; pv get {FIRST_USER:#x}") == "8\n"


def test_calls_in_a_loop_are_all_made_and_cannot_fill_the_log(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    counts["PV_COUNT"], number = 0, pv_raise.number
    assert ok(machine, dd_write(pv_count.number, 160_000, 5)) == "800000\n"
    assert counts["PV_COUNT"] == 100_000
    with caplog.at_level(logging.WARNING):
        read = f"dd if={DEVICE} bs=8 count=1 iflag=skip_bytes skip={number} 2>/dev/null"
        ok(machine, f"for i in $(seq 30); do {read}; done; true")
    assert len(caplog.records) <= MOST_LOGGED + 1
    assert ok(machine, "pv cat hello") == "hello from the host\n"


# --- the end ------------------------------------------------------------------------------------------------------


def test_exit_ends_the_machine_with_its_status() -> None:
    with emu.boot(kernel="cloud", channel=False) as machine:
        machine.wait_prompt()
        machine.console.sendline("pv exit 7")
        with pytest.raises(GuestStopped, match="with status 7"):
            machine.console.expect("never", timeout=TIMEOUT_S)
        assert (machine.exit_status, machine.stop_reason) == (7, StopReason.EXIT)
