"""Endurance of the CPU layer: two machines at once, each with a guest that checks itself, under timer load.

    python -m bench.soak [--minutes M]

One guest is Debian's static busybox on the cloud kernel, the other Alpine (musl, loaded dynamically) on the generic
one. bench/soak.sh runs in both: processes, pipes, copied and executed programs, sort, awk, archives, signals. The
machines' CPUs are stopped at odd moments besides. The answers are also known here, from Python. One wrong answer, one
message that the kernel should not have, anything unexpected on the console, or silence is a failure: it is shown, both
machines end, and so does this, with exit status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.common import Report
from bench.files import initramfs_file, kernel_file, root_file
from bench.ours import Settings
from bench.serial_guest import PROMPT, SerialGuest, ours
from bench.trouble import LOUD_SETTINGS, complaints
from emu.errors import EmuError

MACHINES = {"busybox": "cloud", "alpine": "generic"}        # root: kernel
MINUTES = 30.0
SCRIPT = Path(__file__).with_name("soak.sh")
BOOT_S, SILENCE_S = 120.0, 180.0
PROGRESS_S = 60.0


def answers(program: bytes) -> dict[str, str]:
    """What each job of the script answers.

    Args:
        program: the guest's /bin/busybox.
    """
    numbers = "".join(f"{n}\n" for n in range(1, 51))
    letters = str.maketrans("0123456789", "abcdefghij")
    lines = [str(n).translate(letters)[::-1] for n in range(1, 301)]
    value, values = 1, []
    for _ in range(400):
        value = value * 16807 % 2147483647
        values.append(value)
    harmonic = fading = 0.0
    for n in range(1, 2001):
        harmonic += 1 / n
        fading = fading * 0.999 + harmonic / (n * n)
    tree = ["".join(f"{n}\n" for n in range(i, i * 300 + 1)) for i in range(1, 9)]
    return {
        "spawning": _digest(numbers * 8),
        "pipes": _digest("".join(f"{line}\n" for line in lines[-40:])),
        "programs": f"{hashlib.sha256(program).hexdigest()} same",
        "sorting": _digest("".join(f"{v}\n" for v in sorted(values))),
        "adding": f"{harmonic:.12f} {fading:.12f}",
        "archives": _digest("".join(tree) + tree[-1]),
        "signals": "137 37 143",
        "background": "1 2 3 4",
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def busybox_of(root: str) -> bytes:
    """The busybox in a root of `bench.files.ROOTS`."""
    path = root_file(root)
    if root == "busybox":
        return path.read_bytes()
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.removeprefix("./") == "bin/busybox" and (content := tar.extractfile(member)):
                return content.read()
    raise EmuError(f"{path.name} has no /bin/busybox")


@dataclass
class Watch:
    """What one guest has said so far.

    Args:
        answers: what it has to answer.

    Attributes:
        rounds, processes: as it counted them last.
        failures: lines that it should not have said.
        ended: it said that it is through.
    """

    answers: dict[str, str]
    rounds: int = 0
    processes: int = 0
    failures: list[str] = field(default_factory=list)
    ended: bool = False
    _answered: set[str] = field(default_factory=set)

    def take(self, line: str) -> None:
        """Judge a line of the guest's."""
        kind, _, rest = line.partition(" ")
        words = rest.split()
        if kind == "answer" and len(words) > 1:
            self._answered.add(words[0])
            if rest.strip() != f"{words[0]} {self.answers.get(words[0])}":
                self.failures.append(f"{line}: should be {self.answers.get(words[0])}")
        elif kind == "round" and len(words) > 2 and words[0].isdecimal() and words[2].isdecimal():
            self.rounds, self.processes = int(words[0]), int(words[2])
        elif kind == "message":
            self.failures += complaints(rest)
        elif line == "end":
            self.ended = True
            self.failures += [f"no answer: {name}" for name in self.answers if name not in self._answered]
        elif line:
            self.failures.append(line)


def soak(root: str, seconds: float, give_up: threading.Event) -> Watch:
    """Run one machine.

    Args:
        root: of `MACHINES`.
        seconds: for how long the rounds go on.
        give_up: ends it early; set when it fails.
    """
    watch = Watch(answers(busybox_of(root)))
    initrd = initramfs_file(root, {SCRIPT.name: SCRIPT.read_text()})
    settings = Settings(str(kernel_file(MACHINES[root])), str(initrd), append=LOUD_SETTINGS, extra_stops=True)
    try:
        with ours(settings) as guest:
            guest.expect(PROMPT, BOOT_S)
            guest.send(f"stty -echo; echo START; sh /{SCRIPT.name} {math.ceil(seconds)}\n".encode())
            guest.expect(b"START\r\n", BOOT_S)
            _follow(guest, root, watch, give_up)
    except EmuError as error:
        watch.failures.append(str(error))
    if watch.failures:
        give_up.set()
    return watch


def _follow(guest: SerialGuest, root: str, watch: Watch, give_up: threading.Event) -> None:
    told = time.monotonic()
    while not (watch.ended or watch.failures or give_up.is_set()):
        watch.take(guest.line(SILENCE_S))
        if time.monotonic() - told >= PROGRESS_S:
            told = time.monotonic()
            print(f"{root}: {watch.rounds} rounds, {watch.processes} processes", flush=True)
    if watch.failures:
        watch.failures.append(f"the console's end:\n{guest.tail()}")


def main() -> None:
    """Run both machines, print the counts and write bench/out/soak.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"of rounds ({MINUTES:g})")
    minutes = parser.parse_args().minutes
    report = Report("soak", f"two machines at once under timer load for {minutes:g} minutes")
    give_up = threading.Event()
    with ThreadPoolExecutor(len(MACHINES)) as pool:
        running = {root: pool.submit(soak, root, minutes * 60, give_up) for root in MACHINES}
    failures = []
    for root, future in running.items():
        watch = future.result()
        report.figure(f"{root}_rounds", watch.rounds)
        report.figure(f"{root}_processes", watch.processes)
        failures += [f"{root}: {line}" for line in watch.failures]
    report.figure("minutes", minutes)
    report.figure("failures", len(failures))
    report.finish()
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
