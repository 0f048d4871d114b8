"""A command in a restored machine: from the start of the process to its end, ours against QEMU's TCG.

    python -m bench.exec [--runs N]

`exec_wall_ms` is `emu exec -- true` with the default guest's ready snapshot (128 MiB, Debian's generic kernel, Alpine),
`exec_cat_wall_ms` the same of `cat /etc/alpine-release`; `python_ms` is a Python that does nothing and `imports_ms` one
that imports what `emu exec` is made of. `qemu_wall_ms` is QEMU's TCG restored from a file (-incoming) with the
same kernel, root, memory and command line, from the start of its process until `true` has ended in its shell.

For each size of the eagerly populated hot set: restore time, time to the command's first output, both from inside the
process, and page faults of the whole process.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.common import ROOT, Report, in_turn, ratio_of_medians
from bench.files import initramfs_file, kernel_file
from bench.serial_guest import PROMPT, QEMU, QEMU_MISSING, SerialGuest, have_qemu
from emu.loader.linux import command_line
from emu.memory import MIB

RUNS = 20
EAGER_MIB = 0, 16, 64
MEMORY = 128 * MIB
KERNEL, INITRAMFS = "generic", "alpine"
TIMEOUT_S = 120.0
EMU = str(Path(sys.executable).with_name("emu"))      # as it is installed: `python -m` takes some ms more
RELEASE = ["cat", "/etc/alpine-release"]
IMPORTS = "import emu.cli.exec, emu.snapshot.machine, emu.snapshot.ready"
PYTHON_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
PHASES_RESTORE = "open the snapshot", "read the state", "map the memory", "make the machine"


def wall_ms(command: list[str], expected: str = "") -> float:
    """Milliseconds from just before a process is started until it has ended.

    Raises:
        RuntimeError: it failed, or wrote something else.
    """
    started = time.perf_counter_ns()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=PYTHON_ENVIRONMENT, check=False)
    spent = time.perf_counter_ns() - started
    if done.returncode or done.stdout != expected:
        raise RuntimeError(f"{command}: status {done.returncode}, {done.stdout!r}, {done.stderr!r}")
    return spent / 1e6


def emu_exec(words: list[str], *options: str) -> list[str]:
    """The command line."""
    return [EMU, "exec", *options, "--", *words]


def phases(eager: int) -> tuple[float, float, int]:
    """Restore time, time to the first output after it (ms), and page faults, of one run with so many MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = emu_exec(RELEASE, "--verbose", "--eager", str(eager))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=PYTHON_ENVIRONMENT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = re.finditer(r"^(.*?) +[0-9.]+ +([0-9.]+)$", done.stderr, re.MULTILINE)
    rows = {match[1]: float(match[2]) for match in lines}
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    return sum(rows[name] for name in PHASES_RESTORE), rows["run"], faults


class QemuSnapshot:
    """A machine of QEMU's at its shell, saved by migration into a file.

    Args:
        directory: for the file and QEMU's monitor.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "qemu.state"
        monitor = directory / "monitor"
        with SerialGuest(self._command("-monitor", f"unix:{monitor},server,nowait")) as guest:
            guest.expect(PROMPT, TIMEOUT_S)
            guest.command("true", TIMEOUT_S)
            with socket.socket(socket.AF_UNIX) as talk:
                talk.connect(str(monitor))
                talk.settimeout(TIMEOUT_S)
                self._ask(talk, f'migrate "exec:cat >{self._file}"')
                while "completed" not in self._ask(talk, "info migrate"):
                    time.sleep(0.1)

    def _ask(self, talk: socket.socket, command: str) -> str:
        talk.sendall(f"{command}\n".encode())
        answer = ""
        while answer.count("(qemu)") < 1 or command.split()[0] not in answer:
            answer += talk.recv(65536).decode("utf-8", "replace")
        return answer

    def _command(self, *more: str) -> list[str]:
        return [
            *(QEMU, "-accel", "tcg", "-m", str(MEMORY // MIB), "-display", "none", "-serial", "stdio", "-no-reboot"),
            *("-kernel", str(kernel_file(KERNEL)), "-initrd", str(initramfs_file(INITRAMFS))),
            *("-append", command_line(), *more),
        ]

    def __call__(self) -> float:
        """Milliseconds from the start of the process until `true` has ended in its shell."""
        with SerialGuest(self._command("-monitor", "none", "-incoming", f"exec:cat {self._file}")) as guest:
            # QEMU drops what comes while it loads
            guest.send(b"      true && echo D''ONE\n")
            return (guest.expect(b"DONE\r\n", TIMEOUT_S) - guest.started_ns) / 1e6


def main() -> None:
    """Measure, print and write bench/out/exec.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each contestant ({RUNS})")
    runs = parser.parse_args().runs
    report = Report("exec", f"a command in a restored machine, {runs} runs in turn")
    subprocess.run(emu_exec(["true"]), cwd=ROOT, env=PYTHON_ENVIRONMENT, check=True)     # makes the snapshot
    subprocess.run(emu_exec(["true"]), cwd=ROOT, env=PYTHON_ENVIRONMENT, check=True)     # with its hot set
    release = subprocess.run(emu_exec(RELEASE), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as name:
        contestants = {
            "exec_wall_ms": partial(wall_ms, emu_exec(["true"])),
            "exec_cat_wall_ms": partial(wall_ms, emu_exec(RELEASE), release),
            "python_ms": partial(wall_ms, [sys.executable, "-c", ""]),
            "imports_ms": partial(wall_ms, [sys.executable, "-c", IMPORTS]),
        }
        if have_qemu():
            contestants["qemu_wall_ms"] = QemuSnapshot(Path(name))
        times = in_turn(runs, contestants)
    for key, samples in times.items():
        report.samples(key, samples, "ms")
    if "qemu_wall_ms" in times:
        report.figure("exec_ratio", ratio_of_medians(times["exec_wall_ms"], times["qemu_wall_ms"]))
    else:
        report.note(QEMU_MISSING)
    tables = {eager: [phases(eager) for _ in range(runs)] for eager in EAGER_MIB}
    for eager, rows in tables.items():
        for name, column in zip(("restore_ms", "first_output_ms", "page_faults"), zip(*rows, strict=True), strict=True):
            report.samples(f"eager_{eager}_{name}", column, "" if name == "page_faults" else "ms")
    report.finish()


if __name__ == "__main__":
    main()
