"""A directory with what the pages speak of, in which their blocks are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import emu
from emu.cli import cli
from emu.phases import Phases
from emu.snapshot.ready import DEFAULT_MEMORY, ready_snapshot
from tests.docs.blocks import ROOT, Block, matches, typed

TIMEOUT_S = 200                         # for a command that takes a few seconds on a quiet machine
MAKE = re.compile(r"^(\s*)make(?= )")
BOOTING = "boot", "run", "stats"        # take seconds: of those in a block, all but the last are only parsed

FILES = {
    "data/small": "a small file\n",
    "data/table.csv": "1,2\n3,4\n",
    "jobs.txt": "true\nuname -a\nexit 0\n",
    "src/prepare": "echo prepared >/root/prepared\n",
    "src/job": "cat /root/prepared\n",
    "host/hello": "hello from the host\n",
    "tool": "#!/bin/sh\necho a tool\n",
}
HYPERCALLS = '''
from hypercalls import Call, hypercall

@hypercall(0x4B564D20, "PV_ZERO_PAGE")
def pv_zero_page(call: Call) -> None:
    """Zero the page at the guest-physical address written."""
    call.memory.write(call.value, bytes(4096))
'''


class Desk:
    """The directory, and the guest of blocks that are typed in one.

    Args:
        path: an empty directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._guest: emu.Machine | None = None
        for name, content in FILES.items():
            file = path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
        (path / "tool").chmod(0o755)
        (path / "my_hypercalls.py").write_text(HYPERCALLS)
        (path / "docs").symlink_to(ROOT / "docs")
        shutil.copy(ROOT / "README.md", path)
        shutil.copytree(ready_snapshot(DEFAULT_MEMORY, Phases(), print), path / "base.snap", copy_function=_link)
        programs = path / ".bin"
        programs.mkdir()
        for name, words in ("emu", "-m emu"), ("python", ""):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (programs / name).chmod(0o755)
        search = f"{programs}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": search, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}

    def close(self) -> None:
        """End the guest, if there is one."""
        self._stack.close()

    def run(self, block: Block) -> None:
        """Run a block; its commands have to succeed, and to print what it shows."""
        if block.reason:
            return
        if name := block.file:
            (self.path / name).write_text(block.content)
        elif block.is_test:
            (self.path / "test_block.py").write_text(block.content)
            self._succeed(block, "python -m pytest -q -p no:cacheprovider test_block.py")
        elif block.language == "python":
            (self.path / "block.py").write_text(block.content)
            self._succeed(block, "python block.py")
        else:
            self._type(block)

    def _type(self, block: Block) -> None:
        commands = typed(block)
        booting = [one for one in commands if _boots(one.command)]
        for one in commands:
            if one in booting[:-1]:
                _check_options(shlex.split(one.command, comments=True)[1:])
                continue
            if one.prompt == "#":
                output = self._in_guest(block, one.command)
            else:
                output = self._succeed(block, MAKE.sub(rf"\1make -n -C {ROOT}", one.command))
            shown = one.output and not block.output_varies
            assert not shown or matches(one.output, output), f"{block.place}: {one.command}: printed {output!r}"

    def _succeed(self, block: Block, command: str) -> str:
        """Have a shell do it; what it wrote on stdout."""
        process = subprocess.run(
            ["bash", "-c", command], cwd=self.path, env=self._environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        said = process.stdout + process.stderr
        assert process.returncode == 0, f"{block.place}: {command}: status {process.returncode}\n{said}"
        return process.stdout

    def _in_guest(self, block: Block, command: str) -> str:
        """Have the guest's root do it; what a terminal would show."""
        if self._guest is None:
            files, data = self.path / "host", self.path / "data"
            self._guest = self._stack.enter_context(emu.boot(files=files, shares={"spare": data, "data": data}))
        result = self._guest.run(f"{{ {command}\n}} 2>&1", timeout=TIMEOUT_S)
        return result.stdout


def _boots(command: str) -> bool:
    """Whether it is a simple command that boots a guest."""
    words = shlex.split(command, comments=True)
    return words[:1] == ["emu"] and words[1:2] != [] and words[1] in BOOTING and not {";", "|", "&&"} & {*words}


def _check_options(words: list[str]) -> None:
    """See that the command line would be taken."""
    with cli.make_context("emu", [*words]) as context:
        command = cli.get_command(context, words[0])
        assert command is not None
        command.make_context(words[0], words[1:], parent=context)


def _link(source: str, target: str) -> None:
    """A second name, where that goes: nothing writes to a snapshot's files."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
