"""Files that both sides use at once: what either changes, the other sees; and it is on the disk in order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import emu
from emu.machine import Machine
from emu.memory import KIB

pytestmark = pytest.mark.integration

START_S, RUN_S = 60.0, 60.0
ROUNDS = 30
REPLACER = """
import itertools, os, sys, time

def replace(what):
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(f"{what} ")
        file.flush()
        file.write(f"{what}\\n")
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(0.01)

for number in itertools.count(1):
    replace(number)
    if number > 100 and os.path.exists(sys.argv[1] + ".seen"):
        break
replace("end")
"""


@dataclass(frozen=True)
class Shared:
    """A machine and the directory that it has at /mnt/data."""

    machine: Machine
    directory: Path

    def run(self, command: str) -> str:
        """What a command in that directory writes."""
        return self.machine.run(f"cd /mnt/data; {command}", check=True, timeout=RUN_S).stdout


class Dialogue:
    """A shell in the guest that is told one thing after the other."""

    def __init__(self, machine: Machine) -> None:
        loop = "while read -r line; do eval \"$line\"; printf '\\0'; done"
        self._job = machine.start_job(loop, writes=True, timeout=RUN_S)

    def ask(self, command: str) -> str:
        """What a line of commands writes; it has ended then."""
        self._job.write(f"{command}\n".encode())
        output = b""
        for part in self._job.stdout:
            output += part
            if output.endswith(b"\0"):
                break
        return output.removesuffix(b"\0").decode()

    def __enter__(self) -> Dialogue:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._job.end_input()
        assert self._job.wait() == 0


class Calls:
    """What the host is asked to do with the files of a directory, in order."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.sizes: dict[str, int] = {}
        self._directory = directory
        for name, title in (("pwritev", "write"), ("fsync", "sync"), ("fdatasync", "sync")):
            recorded = self._recorded(title, getattr(os, name), lambda fd: os.readlink(f"/proc/self/fd/{fd}"))
            monkeypatch.setattr(os, name, recorded)
        recorded = self._recorded("rename", os.rename, lambda name: str(directory / os.fsdecode(name)))
        monkeypatch.setattr(os, "rename", recorded)

    def _recorded(self, title: str, function: Callable[..., Any], path_of: Callable[[Any], str]) -> Callable[..., Any]:
        def call(subject: Any, *arguments: Any, **named: Any) -> Any:
            path = Path(path_of(subject))
            if path.is_relative_to(self._directory):
                made = f"{title} {path.relative_to(self._directory)}"
                self.made.append(made)
                self.sizes[made] = path.stat().st_size
            return function(subject, *arguments, **named)

        return call

    def of(self, name: str) -> list[str]:
        """Those that concern one name."""
        return [made for made in self.made if made.split()[1] == name]


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    directory = tmp_path_factory.mktemp("shared")
    with emu.boot(kernel="generic", shares={"data": directory}) as machine:
        machine.wait_prompt(START_S)
        yield Shared(machine, directory)


@pytest.fixture
def shared(booted: Shared) -> Iterator[Shared]:
    """The machine, with nothing in its directory."""
    yield booted
    subprocess.run(["rm", "-rf", *booted.directory.iterdir()], check=True, timeout=RUN_S)


# ---- what the host changes


def test_contents_and_sizes_that_the_host_changes_are_seen(shared: Shared) -> None:
    file = shared.directory / "file"
    for number in range(ROUNDS):
        text = f"{number} " * (1 + number * 157 % 1000)
        file.write_text(text)
        assert shared.run("cat file; stat -c ' %s' file; wc -c <file") == f"{text} {len(text)}\n{len(text)}\n"
    assert shared.run("grep -c . file") == "1\n"


def test_names_that_the_host_makes_moves_and_removes_are_seen(shared: Shared) -> None:
    directory = shared.directory
    assert shared.run("ls") == ""
    (directory / "one").write_text("1")
    (directory / "sub").mkdir()
    assert shared.run("ls; cat one; ls sub") == "one\nsub\n1"
    (directory / "one").rename(directory / "sub" / "two")
    assert shared.run("ls; cat sub/two; test -e one || echo gone") == "sub\n1gone\n"
    (directory / "sub").rename(directory / "moved")
    assert shared.run("ls; ls moved; test -e sub || echo gone") == "moved\ntwo\ngone\n"
    (directory / "moved" / "two").unlink()
    (directory / "moved").rmdir()
    (directory / "moved").write_text("a file now")
    assert shared.run("ls; cat moved") == "moved\na file now"


def test_modes_times_and_links_that_the_host_changes_are_seen(shared: Shared) -> None:
    file = shared.directory / "file"
    file.write_text("text")
    shared.run("stat file")
    file.chmod(0o751)
    os.utime(file, ns=(0, 1_234_567_890_123_456_789))
    (shared.directory / "link").hardlink_to(file)
    assert shared.run("stat -c '%a %Y %h' file") == "751 1234567890 2\n"
    os.symlink("file", shared.directory / "symlink")
    assert shared.run("readlink symlink; cat symlink") == "file\ntext"
    (shared.directory / "symlink").unlink()
    os.symlink("link", shared.directory / "symlink")
    assert shared.run("readlink symlink") == "link\n"


def test_open_files_show_what_the_host_appends_truncates_and_replaces(shared: Shared) -> None:
    file = shared.directory / "file"
    file.write_text("first\n")
    with Dialogue(shared.machine) as shell:
        assert shell.ask("cd /mnt/data; exec 3<file 4>>file; cat <&3") == "first\n"
        with open(file, "a") as host:
            host.write("second\n")
        assert shell.ask("cat <&3; echo third >&4") == "second\n"
        assert file.read_text() == "first\nsecond\nthird\n"
        os.truncate(file, 0)
        assert shell.ask("cat <&3; stat -L -c %s /dev/fd/3; echo again >&4") == "0\n"
        assert file.read_text() == "again\n"
        file.rename(shared.directory / "old")
        file.write_text("new\n")
        shell.ask("echo still the old one >&4")
        assert (shared.directory / "old").read_text() == "again\nstill the old one\n"
        (shared.directory / "old").unlink()
        assert shell.ask("echo unlinked >&4 && echo written") == "written\n"
        assert shell.ask("exec 3<&- 4>&-; cat file") == "new\n"


def test_guest_that_looks_all_the_time_sees_whole_files_in_their_order(shared: Shared) -> None:
    """Another process of the host replaces a file again and again; the guest never sees an old or a torn one."""
    (shared.directory / "file").write_text("0 0\n")
    with subprocess.Popen([sys.executable, "-c", REPLACER, shared.directory / "file"]) as host:
        script = "n=0; while read -r a b <file; echo $a $b; [ $a != end ]; do [ $((n += 1)) != 50 ] || >file.seen; done"
        try:
            seen = shared.run(script).split("\n")
        except BaseException:
            host.kill()
            raise
    assert host.returncode == 0
    pairs = [line.split() for line in seen if line]
    assert pairs.pop() == ["end", "end"] and len(pairs) > 1
    assert all(first == second for first, second in pairs)
    assert [int(first) for first, _ in pairs] == sorted(int(first) for first, _ in pairs)


# ---- what the guest changes


def test_host_sees_at_once_what_the_guest_writes_moves_and_removes(shared: Shared) -> None:
    with Dialogue(shared.machine) as shell:
        shell.ask("cd /mnt/data; exec 3>file; echo first >&3")
        assert (shared.directory / "file").read_text() == "first\n"
        shell.ask("mkdir sub; mv file sub/moved; echo second >&3")
        assert (shared.directory / "sub" / "moved").read_text() == "first\nsecond\n"
        shell.ask("truncate -s 3 sub/moved; rm sub/moved; rmdir sub")
        assert list(shared.directory.iterdir()) == []


@pytest.mark.parametrize("write", [
    "dd if=/dev/zero of=new bs=64k count=20 conv=fsync 2>/dev/null",
    "dd if=/dev/zero of=new bs=64k count=20 2>/dev/null; fsync new",
    "head -c 1310720 /dev/zero >new; sync new",
])  # fmt: skip
def test_writes_sync_and_rename_reach_the_host_in_their_order(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """What programs rely on that replace a file: first all data, then they are on the disk, then the name changes."""
    calls = Calls(shared.directory, monkeypatch)
    shared.run(f"echo old >file; fsync file; {write}; mv new file; fsync .")
    order = calls.of("new")
    assert order == ["write new"] * order.count("write new") + ["sync new", "rename new"] and order.count("write new")
    assert calls.sizes["sync new"] == calls.sizes["rename new"] == 20 * 64 * KIB
    assert calls.made[-1] == "sync ."
    assert (shared.directory / "file").stat().st_size == 20 * 64 * KIB
