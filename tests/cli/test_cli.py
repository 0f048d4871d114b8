"""The command line around a machine that is a shell of this host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import emu
from emu import cli
from emu.cli import main
from emu.cli.options import Size
from emu.errors import BadImage, GuestError, GuestStopped, GuestTimeout, UnsupportedHost
from emu.fittings import DebugExit, DiskImage, Share
from emu.guest import Result, SerialShell
from emu.stats import BUCKETS, ExitRow, ExitStats, Kind
from tests.shell_on_pty import ShellOnPty

SHELL = ("/bin/sh", "-i")
END_S = 60.0


class FakeMachine(ShellOnPty):
    """What the commands use of a machine."""

    has_shell = True
    exit_status: int | None = None
    stop_reason = None

    def __init__(self, home: Path) -> None:
        super().__init__(SHELL, home)
        self.shell = SerialShell(self.console)
        self.asked = 0
        self.wait_prompt = self.wait_ready = self.shell.wait_prompt

    def run(
        self, command: list[str], stdout: Callable[[bytes], None], stderr: Callable[[bytes], None], **options: Any
    ) -> Result:
        result = self.shell.run(command, **options)
        stdout(result.stdout_bytes)
        stderr(result.stderr_bytes)
        return result

    @property
    def panic(self) -> str | None:
        return self.console.panics.line

    def stats(self) -> ExitStats:
        """One call of a hypercall of a millisecond since the last time this was asked."""
        self.asked += 1
        histogram = (*[0] * 20, self.asked, *[0] * (BUCKETS - 21))
        row = ExitRow(Kind.WRMSR, "PV_TEST", self.asked, self.asked * 1_000_000, 1_000_000, histogram)
        return ExitStats((row,), *(self.asked * ns for ns in (8_000_000, 4_000_000, 2_000_000)), True)

    def request_stop(self) -> None:
        self.stopped = True

    def __enter__(self) -> FakeMachine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


@pytest.fixture
def booted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """Makes `emu.boot` return fake machines; the keyword arguments of each call."""
    calls: list[dict[str, Any]] = []

    def boot(guest: str, **keywords: Any) -> FakeMachine:
        calls.append({"guest": guest, **keywords})
        return FakeMachine(tmp_path)

    monkeypatch.setattr(emu, "boot", boot, raising=False)
    yield calls


def test_run_shows_both_outputs_byte_for_byte_and_ends_with_the_command_s_status(
    booted: list[dict[str, Any]], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["run", "--", "sh", "-c", r"printf '\001\377\n'; echo err >&2; exit 42"]) == 42
    assert capfdbinary.readouterr() == (b"\001\xff\n", b"err\n")


def test_options_reach_the_boot(booted: list[dict[str, Any]], tmp_path: Path) -> None:
    options = ["--memory", "1G", "--kernel", "cloud", "--root", str(tmp_path), "--append", "a b", "--as-shipped"]
    assert main(["run", *options, "true"]) == 0
    (call,) = booted
    assert call.pop("phases") is not None
    assert call == {
        "guest": "alpine", "memory": 1 << 30, "kernel": "cloud", "root": tmp_path, "initrd": None,
        "append": "a b", "cmdline": None, "as_shipped": True, "modules": None, "root_over": "initramfs",
        "shares": {}, "disks": (), "vsock": False, "config": None, "console": "ttyS0", "accounting": False,
        "hypercalls": (), "files": None, "syscalls": (), "debug_exit": None,
    }  # fmt: skip


def test_handlers_reach_the_boot_in_order(booted: list[dict[str, Any]]) -> None:
    hypercalls = ["--hypercalls", "mine.py", "--hypercalls", "package.module"]
    assert main(["run", *hypercalls, "--syscalls", "a.py", "--syscalls", "b", "true"]) == 0
    (call,) = booted
    assert (call["hypercalls"], call["syscalls"]) == (("mine.py", "package.module"), ("a.py", "b"))


@pytest.mark.parametrize(
    ("text", "place"),
    [("none", False), ("0xf4", DebugExit(0xF4, 4)), ("1281,2", DebugExit(0x501, 2)), ("0xF4,0x1", DebugExit(0xF4, 1))],
)
def test_the_debug_exit_reaches_the_boot(text: str, place: DebugExit | bool, booted: list[dict[str, Any]]) -> None:
    assert main(["run", "--debug-exit", text, "true"]) == 0
    assert booted[0]["debug_exit"] == place


@pytest.mark.parametrize("text", ["", "x", "0xf4,", "0xf4,1,2", "-1", "0x10000", "0xffff,2", "0xf4,0", "f4"])
def test_what_is_no_debug_exit(text: str, booted: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--debug-exit", text, "true"]) == 2
    assert not booted
    assert one_line(capfd).startswith("emu: ")


def test_a_guest_that_ends_the_machine_gives_run_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Ending(FakeMachine):
        exit_status = 11

        def run(self, *_arguments: Any, **_options: Any) -> Result:
            raise GuestStopped("the guest ended the machine")

    monkeypatch.setattr(emu, "boot", lambda *_, **__: Ending(tmp_path), raising=False)
    assert main(["run", "true"]) == 11
    assert capfd.readouterr().err == ""
    Ending.exit_status = None                                   # type: ignore[assignment]
    assert main(["run", "true"]) == 125


def test_what_is_plugged_in_reaches_the_boot(booted: list[dict[str, Any]]) -> None:
    shares = ["--share", "data=./a,b,ro", "--share", "home=/h=1,security=mapped"]
    disks = ["--disk", "base.img,overlay", "--disk", "own.img,overlay=mine.cow", "--disk", "cd,iso,ro", "--disk", "x"]
    assert main(["run", *shares, *disks, "--vsock", "v.sock", "--config", "c", "--root-over", "9p", "true"]) == 0
    (call,) = booted
    assert call["shares"] == {"data": Share("./a,b", read_only=True), "home": Share("/h=1", security="mapped")}
    assert call["disks"] == (
        DiskImage("base.img", overlay=True), DiskImage("own.img", overlay="mine.cow"),
        DiskImage("cd,iso", read_only=True), DiskImage("x"),
    )  # fmt: skip
    assert (call["vsock"], call["config"], call["root_over"]) == (Path("v.sock"), Path("c"), "9p")


@pytest.mark.parametrize(
    "options", [["--share", "data"], ["--share", "=x"], ["--share", "a=x", "--share", "a=y"], ["--disk", ",ro"]]
)
def test_what_cannot_be_plugged_in_is_one_line(
    options: list[str], booted: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *options, "true"]) == 2
    assert not booted
    assert one_line(capfd).startswith("emu: ")


def test_words_after_the_command_are_its_own(
    booted: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "echo", "--memory", "$HOME"]) == 0
    assert capfd.readouterr().out == "--memory $HOME\n"


def test_verbose_shows_each_phase(booted: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    main(["run", "--verbose", "true"])
    shown = [line.split("  ")[0] for line in capfd.readouterr().err.splitlines()]
    assert shown == ["phase", "start python", "boot", "run", "read result", "wall"]


@pytest.mark.parametrize("words", [["true"], ["sleep", "97"]])
def test_stats_show_a_table_however_the_command_ends(
    words: list[str], booted: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    main(["run", "--stats", "--timeout", "0.7", *words])
    output, errors = capfd.readouterr()
    assert booted[0]["accounting"] is True
    assert output == "" and errors.splitlines()[1].split()[:3] == ["wrmsr", "PV_TEST", "1"]


def test_stats_of_boot_and_command_are_apart_and_the_output_is_on_standard_error(
    booted: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", "--kernel", "cloud", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]) == 3
    output, errors = capfd.readouterr()
    assert (booted[0]["accounting"], booted[0]["kernel"]) == (True, "cloud")
    assert sorted(errors.split()) == ["err", "out"]
    first, second = output.split("\n\n", 1)
    assert first.startswith("alpine, kernel cloud: boot\n") and "driven" in first
    assert second.startswith("alpine, kernel cloud: sh -c 'echo out; echo err >&2; exit 3'\n")
    assert [line.split()[2] for line in output.splitlines() if line.startswith("wrmsr")] == ["1", "1"]


def test_stats_without_a_command_are_the_boot_s(
    booted: list[dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", "--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.svg")]) == 0
    assert capfd.readouterr().out.count("driven") == 1
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["guest"] == "alpine, kernel alpine"
    assert [(part["name"], part["rows"][0]["handler"]) for part in figures["parts"]] == [("boot", "PV_TEST")]
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("options", [["--plot", "x.pdf"], ["--plot", "/tmp"], ["--json", "/"]])
def test_a_file_that_stats_cannot_write_is_refused_before_the_boot(
    options: list[str], booted: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", *options]) == 2
    assert not booted and one_line(capfd).startswith("emu: ")


def test_a_timeout_is_status_124(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def boot(*_: Any, **__: Any) -> FakeMachine:
        machine = FakeMachine(tmp_path)
        machine.wait_prompt()           # on a busy host that may take all of the time given
        return machine

    monkeypatch.setattr(emu, "boot", boot, raising=False)
    assert main(["run", "--timeout", "0.7", "sleep", "97"]) == 124
    assert one_line(capfd).startswith("emu: 'sleep 97' did not end")


def test_a_panic_is_its_line_and_status_125(
    booted: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    script = "printf '[  1.0] Kernel %s - not syncing: on purpose\\n' panic >/dev/tty; sleep 97"
    assert main(["run", "--", "sh", "-c", script]) == 125
    assert one_line(capfd) == "emu: Kernel panic - not syncing: on purpose"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (BadImage("x is\nno kernel"), 2, "emu: x is no kernel"),
        (UnsupportedHost("no"), 2, "emu: no"),
        (GuestError("died"), 125, "emu: died"),
        (GuestError("a guest's \x1b]0;title\x07 and \x9b2J"), 125, r"emu: a guest's \x1b]0;title\x07 and \x9b2J"),
        (GuestTimeout("late"), 124, "emu: late"),
        (FileNotFoundError(2, "No such file or directory", "/x"), 2, "emu: /x: No such file or directory"),
        (MemoryError(), 2, "emu: this host has not enough memory"),
        (ZeroDivisionError("z"), 70, "emu: internal error: ZeroDivisionError: z (python -X dev -m emu shows where)"),
    ],
)
def test_every_failure_is_one_line_and_its_own_status(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception, status: int, text: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(emu, "boot", fail, raising=False)
    assert main(["run", "true"]) == status
    assert one_line(capfd) == text


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--memory", "lots", "true"],
        ["run", "--memory", "63M", "true"],
        ["run", "--memory", "9G", "true"],
        ["run", "--timeout", "-1", "true"],
        ["run", "--timeout", "nan", "true"],
        ["run", "--bogus", "true"],
        ["boot", "--memory"],
        ["boot", "extra"],
        ["fetch", "--kernel", "vista"],
        ["nonsense"],
        ["--bogus"],
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert one_line(capfd).startswith("emu: ")


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64 << 20), ("64M", 64 << 20), ("1g", 1 << 30), ("8GiB", 8 << 30), ("65536K", 64 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-64M", "64MM", "65537K", "99999999999999M", "٦٤M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Size().convert(text, None, None)


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_every_help_shows_an_example(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    shown = capfd.readouterr().out
    assert "Example" in shown and "\n    emu" in shown


def test_help_imports_no_command_and_run_neither_rich_nor_what_fetches() -> None:
    code = (
        "import sys; from emu.cli import main; main(['--help']); before = set(sys.modules);"
        "import emu.cli.run;"
        "print('\\n', [m for m in before if m.startswith('emu.cli.')],"
        " [m for m in sys.modules if m.split('.')[0] in ('rich', 'elftools', 'zstandard', 'unicorn')])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1].strip() == "[] []"


def test_a_command_much_like_another_is_pointed_to(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bot"]) == 2
    assert capfd.readouterr().err == "emu: No such command 'bot'; did you mean boot? (see emu --help)\n"
    assert main(["qqq"]) == 2
    assert "did you mean" not in capfd.readouterr().err


def test_a_kernel_that_is_not_there_says_what_there_is(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--kernel", "./nowhere"]) == 2
    said = capfd.readouterr().err
    assert "no kernel ./nowhere" in said and "alpine, generic, cloud" in said


def test_the_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"emu {emu.__version__}\n"


def test_info_names_the_library_and_whether_it_is_known(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    rows = dict(line.split("  ", 1) for line in capfd.readouterr().out.splitlines())
    assert rows["unicorn"].strip() == "2.1.4"
    assert rows["is known"].strip() == "yes"


FAKE_MAIN = """
import sys
from pathlib import Path
import emu
from tests.cli.test_cli import FakeMachine
emu.boot = lambda guest, **_: FakeMachine(Path("."))
from emu.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(arguments: list[str], home: Path, **keywords: Any) -> subprocess.Popen[bytes]:
    """A process of `emu` whose machine is fake."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FAKE_MAIN, *arguments]
    return subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.PIPE, **keywords)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_run_at_once_without_a_word(number: signal.Signals, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    process = start(["run", "--", "sh", "-c", f"echo >{tmp_path}/begun; sleep 97"], tmp_path)
    (tmp_path / "begun").read_bytes()
    process.send_signal(number)
    assert process.communicate(timeout=END_S)[1] == b""
    assert process.returncode == 128 + number


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(["run", "echo", "x"], tmp_path, stdout=write)
    os.close(write)
    assert process.communicate(timeout=END_S)[1] == b""
    assert process.returncode == 141


def test_boot_types_piped_input_at_the_shell_and_ends_with_it(tmp_path: Path) -> None:
    process = start(["boot"], tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    output, errors = process.communicate(b"echo $((6*7))\n", timeout=END_S)
    assert (process.returncode, errors) == (0, b"")
    assert b"42" in output


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    """All of standard error, which has to be one line."""
    text = capfd.readouterr().err
    assert text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text
    return text[:-1]
