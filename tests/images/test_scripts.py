"""The scripts that run in guests, under this machine's own shells, with a directory in place of the root."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from emu.images.inside import INIT_SCRIPT, own_files

SCRIPTS = sorted(INIT_SCRIPT.parent.glob("*.sh"))
SHELLS = [shell for shell in (["dash"], ["bash", "--posix"], ["busybox", "ash"]) if shutil.which(shell[0])]
# Never busybox for these scripts: it prefers its own mount and poweroff to those that a test puts in their place.
SAFE_SHELLS = [shell for shell in SHELLS if shell[0] != "busybox"]
SYSTEM_PATH = ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MODERN, TRANSITIONAL, OTHER = "pci:v00001AF4d00001049sv", "pci:v00001AF4d00001003sv", "pci:v00008086d00001009sv"
STUBS = ("cp", "ifconfig", "ip", "modprobe", "mount", "poweroff", "setsid")


class Guest:
    """A directory that the scripts take for the root, in which no command can be found but those that only write down
    how they were called, and mkdir."""

    def __init__(self, root: Path, shell: list[str]) -> None:
        self.root, self._shell = root, shell
        for name in ("dev", "etc", "lib/modules", "proc/sys/kernel", "root", "run/emu/config", "sys/class/tty/console"):
            (root / name).mkdir(parents=True)
        for entry in own_files("usr/lib/emu"):
            if entry.name.count("/") == 3 and not entry.mode & 0o040000:
                self.write(entry.name, self.inside(bytes(entry.data).decode()))
        for name in STUBS:
            self.write(f"usr/lib/emu/bin/{name}", f"#!/bin/sh\necho {name} \"$@\" >>{root}/log\n").chmod(0o755)
        (root / "usr/lib/emu/bin/mkdir").symlink_to(str(shutil.which("mkdir")))
        self.write("sys/class/tty/console/active", "tty0 ttyX\n")
        self.write("dev/ttyX", "")
        self.config = root / "run/emu/config"

    def inside(self, script: str) -> str:
        """The script with all absolute paths below the directory, but for those of the shell and /dev/null, and with a
        file that grows in place of the terminal."""
        moved = re.sub(r"(?<![\w.}*%/])/(?=[a-z])(?!dev/null|bin/sh\b)", f"{self.root}/", script)
        moved = moved.replace('>"$tty"', '>>"$tty"')
        return moved.replace("".join(f":{self.root}{path}" for path in SYSTEM_PATH.split(":")[1:]), "")

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def device(self, alias: str) -> None:
        number = len(list((self.root / "sys").glob("bus/pci/devices/*")))
        self.write(f"sys/bus/pci/devices/{number}/modalias", alias + "\n")

    def share(self, tag: str) -> None:
        """A 9p device as its driver shows it: a tag that ends with NUL, not with a newline."""
        number = len(list((self.root / "sys").glob("bus/virtio/drivers/9pnet_virtio/virtio*")))
        self.write(f"sys/bus/virtio/drivers/9pnet_virtio/virtio{number}/mount_tag", tag + "\0")

    def run(self, script: str) -> str:
        """Run it, and return what it printed."""
        result = subprocess.run(
            [*self._shell, "-c", self.inside(script), str(self.root / "init")],
            env={"PATH": "/usr/bin:/bin"},
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return result.stdout + result.stderr

    def boot(self) -> list[str]:
        """Run init, and return the commands that it gave."""
        self.run(INIT_SCRIPT.read_text())
        return (self.root / "log").read_text().replace(f"{self.root}/", "/").splitlines()

    @property
    def console(self) -> str:
        return (self.root / "dev/ttyX").read_text()


@pytest.fixture(params=SAFE_SHELLS, ids=lambda shell: str(shell[0]))
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Guest:
    return Guest(tmp_path, request.param)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: str(shell[0]))
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_shell(script: Path, shell: list[str]) -> None:
    assert subprocess.run([*shell, "-n", script], capture_output=True, check=True).stderr == b""


def test_drivers_are_loaded_by_one_process(guest: Guest) -> None:
    for alias in (MODERN, TRANSITIONAL, OTHER):
        guest.device(alias)
    loads = [line for line in guest.boot() if "modprobe" in line]
    assert loads == ["modprobe -a virtio_pci 9pnet_virtio 9p virtio_console msr"]


def test_without_devices_no_driver_is_loaded(guest: Guest) -> None:
    guest.device(OTHER)
    assert not any("modprobe" in line for line in guest.boot())


def test_without_modules_none_are_asked_for(guest: Guest) -> None:
    guest.device(MODERN)
    (guest.root / "lib/modules").rmdir()
    assert not any("modprobe" in line for line in guest.boot())
    assert "this kernel has no 9p" in guest.console


def nine_p(commands: list[str]) -> list[list[str]]:
    """Tag, directory and the options behind the usual ones, of each share."""
    mounts = [line.split(" ") for line in commands if line.startswith("mount -t 9p")]
    return [[tag, directory, ",".join(options.split(",")[4:])] for *_, options, tag, directory in mounts]


def test_shares_are_mounted_by_their_tags(guest: Guest) -> None:
    for tag in ("data", "emu-root", "x.y_z-1"):
        guest.share(tag)
    assert nine_p(guest.boot()) == [["data", "/mnt/data", ""], ["x.y_z-1", "/mnt/x.y_z-1", ""]]
    assert (guest.root / "mnt/data").is_dir()


@pytest.mark.parametrize("tag", ["../etc", "..", "a b", "", "-o x;reboot", "$(reboot)", "*"])
def test_odd_tags_are_not_mounted(tag: str, guest: Guest) -> None:
    guest.share(tag)
    commands = guest.boot()
    assert nine_p(commands) == [] and commands[-1] == "poweroff"
    assert f"emu: the share {tag} is not mounted" in guest.console


def test_configuration_places_shares(guest: Guest) -> None:
    for tag in ("data", "emu-config", "logs"):
        guest.share(tag)
    place = guest.root / "srv"
    (guest.config / "mounts").write_text(f"# comment\n\nother /x\ndata {place} cache=loose,ro\nlogs")
    commands = nine_p(guest.boot())
    assert commands[1:] == [["data", "/srv", "cache=loose,ro"], ["logs", "/mnt/logs", ""]]
    assert commands[0] == ["emu-config", "/run/emu/config", ""]
    assert place.is_dir()


def test_host_name_is_the_configurations_or_the_roots(guest: Guest) -> None:
    name = guest.root / "proc/sys/kernel/hostname"
    for file, text, expected in (
        (None, "", "localhost"),
        ("etc/hostname", "alpine\n", "alpine"),
        ("run/emu/config/hostname", "box", "box"),
        ("run/emu/config/hostname", "", "localhost"),
    ):
        if file is not None:
            guest.write(file, text)
        guest.boot()
        assert name.read_text() == f"{expected}\n"


ENVIRONMENT = """# comment
PLAIN=1
SPACES= a  b 'c' $d "e" `f`
EQUALS=a=b
EMPTY=
1DIGIT=x
BAD-NAME=x
=x
no equals sign
IFS=x
PPID=1
UID=1
OPTIND=x
LAST=end"""


def test_environment_is_exported_as_it_is_written(guest: Guest) -> None:
    (guest.config / "environment").write_text(ENVIRONMENT)
    printed = guest.run(". /usr/lib/emu/environment; printf '<%s>' a b; env").split("<a><b>")[1].splitlines()
    names = ("PLAIN=", "SPACES=", "EQUALS=", "EMPTY=", "1DIGIT=", "BAD", "no ", "IFS=", "LAST=")
    assert sorted(line for line in printed if line.startswith(names)) == [
        "EMPTY=", "EQUALS=a=b", "LAST=end", "PLAIN=1", "SPACES= a  b 'c' $d \"e\" `f`",
    ]  # fmt: skip


def test_interactive_shell_has_the_environment_and_our_prompt(guest: Guest) -> None:
    (guest.config / "environment").write_text("PATH=/opt\nPS1=x\nFOO=bar\n")
    script = "ENV=/usr/lib/emu/shrc; . $ENV; . $ENV; echo \"$PS1|$FOO|$PATH\""
    assert guest.run(script) == f"\\w # |bar|{guest.root}/usr/lib/emu/bin:/opt\n"


def test_start_script_runs_before_the_shell_in_roots_home(guest: Guest) -> None:
    (guest.config / "environment").write_text("FOO=bar\n")
    (guest.config / "start").write_text(f"pwd; echo $FOO; echo start >>{guest.root}/log; exit 3\n")
    commands = guest.boot()
    assert commands[-3:-1] == ["start", "setsid -c /bin/sh -l"]
    assert guest.console.splitlines()[:2] == [f"{guest.root}/root", "bar"]
    assert "emu: the configuration's start script failed with status 3" in guest.console


def test_start_script_in_another_language_is_run_by_that(guest: Guest) -> None:
    start = guest.config / "start"
    start.write_text(f"#!{shutil.which('cat')}\nits own text\n")
    start.chmod(0o755)
    guest.boot()
    assert guest.console.splitlines()[1] == "its own text"


def test_agent_is_started_only_where_it_has_a_channel(guest: Guest) -> None:
    assert not any("agent" in line for line in guest.boot())
    (guest.root / "sys/bus/virtio/drivers/virtio_console/virtio0").mkdir(parents=True)
    (guest.root / "log").unlink()
    assert "setsid setsid /bin/sh /usr/lib/emu/agent" in guest.boot()


def make_directory(path: Path) -> None:
    path.mkdir()


def make_garbage(path: Path) -> None:
    path.write_bytes(b"\xff\0=;'\"`$(exit)\n" * 50)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("name", ["environment", "hostname", "mounts", "start"])
@pytest.mark.parametrize("make", [make_directory, make_garbage, make_dangling_link])
def test_nothing_in_the_configuration_keeps_the_shell_away(
    name: str, make: Callable[[Path], None], guest: Guest
) -> None:
    for tag in ("emu-config", "data"):
        guest.share(tag)
    make(guest.config / name)
    assert guest.boot()[-2:] == ["setsid -c /bin/sh -l", "poweroff"]
