"""Hosts that the CPU layer does not know get one clear line, whatever they lack."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from emu.cpu import abi, hosts
from emu.errors import UnsupportedHost

WINDOWS = """
import os, sys
sys.platform = "win32"
del os.uname
sys.modules |= dict.fromkeys(("fcntl", "termios", "pwd", "resource", "_cffi_backend"))      # not to be imported
"""


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    machine: str = "x86_64",
    platform: str = "linux",
    maxsize: int = 2**63 - 1,
    page: int = 4096,
) -> None:
    """Be another host."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys, "maxsize", maxsize)
    monkeypatch.setattr(mmap, "PAGESIZE", page)
    monkeypatch.delenv(hosts.UNTESTED_HOST, raising=False)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ({"machine": "arm64", "platform": "darwin"}, "this host is arm64 darwin; only x86-64 Linux is known"),
        ({"platform": "darwin"}, "this host is x86_64 darwin"),
        ({"machine": "riscv64"}, "this host is riscv64 linux"),
        ({"machine": "i686", "maxsize": 2**31 - 1}, "this host is i686 linux"),
        ({"maxsize": 2**31 - 1}, "this Python is a 32-bit program"),
        ({"machine": "aarch64", "page": 65536}, "this host's pages are 65536 bytes"),
        ({"machine": "aarch64"}, "this host is aarch64 linux, .* EMU_UNTESTED_HOST=1 tries it"),
    ],
)
def test_an_unknown_host_is_refused(monkeypatch: pytest.MonkeyPatch, host: dict[str, str | int], says: str) -> None:
    pretend(monkeypatch, **host)        # type: ignore[arg-type]
    with pytest.raises(UnsupportedHost, match=says) as caught:
        abi.library_path()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "is_tried"), [("1", True), ("0", False), ("yes", False), ("", False)])
def test_an_untested_host_is_tried_on_request(monkeypatch: pytest.MonkeyPatch, value: str, is_tried: bool) -> None:
    pretend(monkeypatch, machine="aarch64")
    monkeypatch.setenv(hosts.UNTESTED_HOST, value)
    if is_tried:
        hosts.check_host()
    else:
        with pytest.raises(UnsupportedHost):
            hosts.check_host()


def test_the_wish_to_try_makes_no_other_host_known(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, machine="riscv64")
    monkeypatch.setenv(hosts.UNTESTED_HOST, "1")
    with pytest.raises(UnsupportedHost):
        hosts.check_host()


def test_the_command_says_so_where_nothing_of_linux_can_be_imported() -> None:
    script = WINDOWS + "from emu.__main__ import run\nrun()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "emu: this host is a PC win32; only x86-64 Linux is known\n"


def test_the_package_says_so_where_nothing_of_linux_can_be_imported() -> None:
    script = WINDOWS + "import emu\ntry:\n    emu.boot\nexcept emu.EmuError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.stdout) == ("", "this host is a PC win32; only x86-64 Linux is known\n")
