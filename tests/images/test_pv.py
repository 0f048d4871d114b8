"""pv.sh under this machine's own shells: its dd of the MSR device is one that asks the hypercalls themselves."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.p9.export import Export
from devices.p9.whole_files import WholeFiles
from emu.images.inside import INIT_SCRIPT
from hypercalls import Call, CallMemory, GuestFault, hypercall
from hypercalls.builtin import BUILT_IN
from hypercalls.dispatch import Dispatcher
from hypercalls.fake import FakeCalls
from hypercalls.numbers import FIRST_USER
from tests.images.test_scripts import SAFE_SHELLS

SCRIPT = INIT_SCRIPT.with_name("pv.sh").read_text()
DEVICE = "/dev/cpu/0/msr"
STAND_IN = "/dev/null"                  # a character device that all may write to
MEBIBYTE = 1 << 20
TIMEOUT_S = 30.0

DD = """#!/bin/sh
for word; do
    case $word in
    if={device}) action=r ;;
    of={device}) action=w ;;
    skip=* | seek=*) number=${{word#*=}} ;;
    bs=*) size=${{word#*=}} ;;
    count=*) count=${{word#*=}} ;;
    esac
done
[ -n "$action" ] || exec {dd} "$@"
{{
    echo $action $number $size $count
    [ $action = r ] || cat
}} >{here}/request
{{
    read -r status
    cat
}} <{here}/answer
exit $status
"""


class Driver:
    """Linux' module msr for the stand-in of dd: a request comes by one FIFO, the answer goes by another.

    Args:
        here: directory for the FIFOs.
        files: for PV_READ and PV_WRITE.

    Attributes:
        kept: what PV_KEEP, at FIRST_USER, holds.
    """

    def __init__(self, here: Path, files: WholeFiles | None) -> None:
        self.fakes = FakeCalls(0, files)
        self.kept = 0
        memory = CallMemory(self.fakes.memory, self.fakes.memory)
        dispatcher = Dispatcher(memory, self.fakes.clock, self.fakes.machine, dict)
        # The machine's mailbox is the one that the test looks into.
        dispatcher._mailbox = self.fakes.mailbox
        keep = hypercall(FIRST_USER, "PV_KEEP", "rw")(self._keep)
        self._msrs = {one.number: dispatcher.bind(one) for one in (*BUILT_IN, keep)}
        self._request, self._answer = here / "request", here / "answer"
        for fifo in self._request, self._answer:
            subprocess.run(["mkfifo", fifo], check=True)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _keep(self, call: Call) -> int | None:
        if not call.is_write:
            return self.kept
        self.kept = call.value
        return None

    def _serve(self) -> None:
        while request := self._request.read_bytes():
            header, _, data = request.partition(b"\n")
            action, number, *sizes = header.split()
            if action == b"r":
                size, count = map(int, sizes)
                status, answer = self._read(int(number), size, count)
            else:
                status, answer = self._write(int(number), data), b""
            try:
                self._answer.write_bytes(b"%d\n%s" % (status, answer))
            except BrokenPipeError:
                pass                    # who reads it has enough

    def _read(self, number: int, size: int, count: int) -> tuple[int, bytes]:
        read, _ = self._msrs.get(number, (None, None))
        words: list[bytes] = []
        try:
            while read is not None and len(words) < size // 8 * count:
                words.append(read().to_bytes(8, "little"))
        except GuestFault:
            pass
        return int(not words), b"".join(words)

    def _write(self, number: int, data: bytes) -> int:
        assert len(data) % 8 == 0, "EINVAL"
        _, write = self._msrs.get(number, (None, None))
        try:
            for at in range(0, len(data), 8):
                if write is None:
                    return 1
                write(int.from_bytes(data[at : at + 8], "little"))
        except GuestFault:
            return int(at == 0)
        return 0

    def close(self) -> None:
        """End the thread, unless a pv that hangs keeps it."""
        try:
            os.close(os.open(self._request, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return
        self._thread.join()


class Pv:
    """pv, its device and the directory of the host."""

    def __init__(self, here: Path, shell: list[str], device: str = STAND_IN) -> None:
        self.here, self._shell = here, shell
        self.host = here / "host"
        self.host.mkdir()
        (here / "bin").mkdir()
        self.files: WholeFiles | None = WholeFiles(Export(self.host, "test"))
        self.driver = Driver(here, self.files)
        self.add("dd", DD.format(device=STAND_IN, dd=shutil.which("dd"), here=here))
        for name in ("flock", "modprobe", "sync"):
            self.add(name, f'#!/bin/sh\necho {name} "$@" >>{here}/log\n')
        script = SCRIPT.replace(f"device={DEVICE}", f"device={device}")
        self.script = self.add("pv", re.sub(r"(?<=[ >])/(?=sys/|run/)", f"{here}/", script))

    def add(self, name: str, script: str) -> Path:
        path = self.here / "bin" / name
        path.write_text(script)
        path.chmod(0o755)
        return path

    def run(self, *words: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [*self._shell, self.script, *words]
        environment = {"PATH": f"{self.here}/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TMPDIR": str(self.here)}
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        ) as process:
            try:
                output, errors = process.communicate(input, timeout=TIMEOUT_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)      # and what it has started
                raise
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def ok(self, *words: str, input: bytes = b"") -> bytes:
        """What it prints; it must not complain."""
        result = self.run(*words, input=input)
        assert (result.returncode, result.stderr) == (0, b"")
        return result.stdout

    def fails(self, *words: str, status: int = 1, input: bytes = b"") -> str:
        """The one line that it complains with."""
        result = self.run(*words, input=input)
        assert (result.returncode, result.stdout) == (status, b"")
        (line,) = result.stderr.decode().splitlines()
        assert line.startswith("pv: ")
        return line.removeprefix("pv: ")

    @property
    def log(self) -> list[str]:
        return (self.here / "log").read_text().splitlines()


@pytest.fixture(params=SAFE_SHELLS, ids=lambda shell: str(shell[0]))
def pv(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pv]:
    pv = Pv(tmp_path, request.param)
    yield pv
    pv.driver.close()
    if pv.files:
        pv.files.close()
    assert not list(tmp_path.glob("tmp.*"))     # what mktemp made


KEEP = str(FIRST_USER)


@pytest.mark.parametrize("value", [0, 9, 0x0102030405060708, 2**63 - 1, 2**63, 2**64 - 1])
def test_get_prints_an_unsigned_number(pv: Pv, value: int) -> None:
    pv.driver.kept = value
    assert pv.ok("get", KEEP) == b"%d\n" % value


@pytest.mark.parametrize(
    "text",
    [
        "0", "00", "7", "08", "010", "0000000000000000000000000123", "4294967296", "9999999999", "10000000000",
        "10000000001", "9223372036854775807", "9223372036854775808", "12345678901234567890", "18446744073709551615",
        "0x0", "0X1f", "0xDEADbeef", "0x0102030405060708", "0x00000000000000000001", "0xffffffffffffffff",
    ],
)
def test_set_takes_every_number_of_64_bits(pv: Pv, text: str) -> None:
    pv.driver.kept = 0x5555
    pv.ok("set", KEEP, text)
    assert pv.driver.kept == int(text, 16 if text[:2] in ("0x", "0X") else 10)


@pytest.mark.parametrize(
    "text",
    [
        "", "-1", "+1", "-0x1", "0x", "x", "1x", "0xg", "1.5", "1 2", " 1", "1e3", "*", "$(id)", "`id`", "0b1", "١",
        "18446744073709551616", "99999999999999999999", "100000000000000000000", "0x10000000000000000",
    ],
)
def test_what_is_no_number_of_64_bits_is_refused(pv: Pv, text: str) -> None:
    pv.driver.kept = 0x5555
    for words in ("set", KEEP, text), ("get", text), ("mark", text), ("exit", text), ("random", text):
        assert pv.fails(*words, status=2).startswith(f"'{text}' ")
    assert pv.driver.kept == 0x5555 and not pv.driver.fakes.machine.marks


def test_an_msr_s_number_has_32_bits(pv: Pv) -> None:
    assert "is no MSR's number" in pv.fails("get", "0x100000000", status=2)
    pv.driver.kept = 3
    assert pv.ok("get", f"0x00000000{FIRST_USER:x}") == b"3\n"


def test_what_nobody_answers_is_an_error(pv: Pv) -> None:
    assert pv.fails("get", "0x4b564dff") == "reading MSR 0x4b564dff: I/O error"
    assert pv.fails("set", "0x4b564dff", "1") == "writing MSR 0x4b564dff: I/O error"


@pytest.mark.parametrize("words", [(), ("foo",), ("get",), ("get", "1", "2"), ("set", "1"), ("cat",), ("info", "x")])
def test_other_words_are_refused(pv: Pv, words: tuple[str, ...]) -> None:
    assert pv.fails(*words, status=2) == f"this is no command: pv {' '.join(words)} (see pv --help)"


def test_help_names_every_command(pv: Pv) -> None:
    text = pv.ok("--help").decode()
    commands = SCRIPT[SCRIPT.rindex("case $1 in") :].splitlines()[1:-1]
    for command in commands:
        assert f"\n  pv {command.partition(')')[0]} " in text


def test_info(pv: Pv) -> None:
    assert pv.ok("info") == b"version: 1\nfeatures: console idle files mailbox exit mark wall-clock random\n"


CONTENT = bytes(range(256)) * 4096 + b"and more"


@pytest.mark.parametrize("size", [0, 1, 7, 8, MEBIBYTE, MEBIBYTE + 9])
def test_cat_prints_a_file(pv: Pv, size: int) -> None:
    (pv.host / "file").write_bytes(CONTENT[:size])
    assert pv.ok("cat", "file") == CONTENT[:size]
    assert not pv.driver.fakes.mailbox


@pytest.mark.parametrize("size", [0, 1, 7, 8, MEBIBYTE, MEBIBYTE + 9])
def test_put_replaces_a_file(pv: Pv, size: int) -> None:
    (pv.host / "file").write_bytes(b"x" * (size + 5))
    assert pv.ok("put", "file", input=CONTENT[:size]) == b""
    assert (pv.host / "file").read_bytes() == CONTENT[:size]
    assert not pv.driver.fakes.mailbox


@pytest.mark.parametrize("name", ["-n", "a b", "*", "$HOME", "\\n", "'\"", "ü", "--help", "%s", "line\nline"])
def test_any_name_is_a_path(pv: Pv, name: str) -> None:
    pv.ok("put", name, input=b"content")
    assert [path.name for path in pv.host.iterdir()] == [name]
    assert pv.ok("cat", name) == b"content"


def test_each_request_is_made_with_the_mailbox_locked(pv: Pv) -> None:
    pv.ok("put", "file", input=CONTENT[: MEBIBYTE + 1])
    assert pv.log == ["flock 9"] * 2


def test_what_is_left_in_the_mailbox_does_no_harm(pv: Pv) -> None:
    pv.driver.fakes.mailbox += b"left by a program that was killed"
    pv.ok("put", "file", input=b"content")
    assert (pv.host / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none", "no such file"), ("directory", "a directory"), ("file/x", "a part of it is no directory"),
        ("", "not the path of a file below the host's directory"), ("link", "a symbolic link"),
        ("../x", "not the path of a file below the host's directory"), ("fifo", "no regular file"),
        ("x" * 300, "a name too long"), ("x/" * 3000, "a name too long"),
    ],
)
def test_cat_says_why_not(pv: Pv, path: str, message: str) -> None:
    (pv.host / "directory").mkdir()
    (pv.host / "file").touch()
    (pv.host / "link").symlink_to("file")
    subprocess.run(["mkfifo", pv.host / "fifo"], check=True)
    assert pv.fails("cat", path) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "the host does not permit that"), (errno.EPERM, "the host does not permit that"),
        (errno.EFBIG, "too large"), (errno.ENOSPC, "the host's disk is full"),
        (errno.EROFS, "the host's directory is read-only"), (errno.EIO, f"error {errno.EIO} on the host"),
    ],
)
def test_put_says_why_not(pv: Pv, monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(number, "")

    monkeypatch.setattr(pv.files, "write", refuse)
    assert pv.fails("put", "file", input=b"content") == f"file: {message}"


def test_put_says_that_not_all_was_stored(pv: Pv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pv.files, "write", lambda *_arguments: 3)
    assert pv.fails("put", "file", input=b"content") == "file: the host's disk is full"


def test_without_a_directory_there_are_no_files(pv: Pv) -> None:
    pv.driver.fakes.machine.files = None
    assert pv.ok("info").endswith(b"features: console idle mailbox exit mark wall-clock random\n")
    message = "file: I/O error: the machine has no directory for this (--files)"
    assert pv.fails("cat", "file") == pv.fails("put", "file", input=b"content") == message


@pytest.mark.parametrize(
    "words", [("",), ("hello",), ("two  blanks", "word"), ("%s \\n\\0", "ü"), ("a\nb",), ("=" * 64,)]
)
def test_print_shows_a_line(pv: Pv, words: tuple[str, ...]) -> None:
    pv.ok("print", *words)
    assert pv.driver.fakes.machine.console == " ".join(words).encode() + b"\n"


def test_mark(pv: Pv) -> None:
    pv.ok("mark", "18446744073709551615")
    assert pv.driver.fakes.machine.marks == [2**64 - 1]


def test_date(pv: Pv) -> None:
    pv.driver.fakes.clock.ns = 12_000_000_034
    assert pv.ok("date") == b"2023-11-14 22:13:32.000000034 UTC\n"


@pytest.mark.parametrize("count", [0, 1, 8, 4095, 4096, 10_000])
def test_random(pv: Pv, count: int) -> None:
    assert len(pv.ok("random", str(count))) == count
    assert "too many" in pv.fails("random", str(2**63), status=2)


@pytest.mark.parametrize("status", [0, 7, 255])
def test_exit_writes_to_the_disks_first(pv: Pv, status: int) -> None:
    pv.ok("exit", str(status))
    assert pv.driver.fakes.machine.exit_status == status
    assert pv.log == ["sync"]


@pytest.mark.parametrize("status", ["256", "0x100000000000000ff", str(2**64 - 1)])
def test_an_exit_status_has_eight_bits(pv: Pv, status: str) -> None:
    pv.fails("exit", status, status=2)
    assert pv.driver.fakes.machine.exit_status is None


@pytest.mark.parametrize("shell", SAFE_SHELLS, ids=lambda shell: str(shell[0]))
def test_without_the_device_its_module_is_loaded(shell: list[str], tmp_path: Path) -> None:
    pv = Pv(tmp_path, shell, device=str(tmp_path / "msr"))
    try:
        assert pv.fails("info") == f"there is no {tmp_path}/msr, and no module msr"
        assert pv.log == ["modprobe msr"]
    finally:
        pv.driver.close()
