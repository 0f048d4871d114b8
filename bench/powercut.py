"""ext4 in a guest whose power is cut: the machine is killed at a random moment, again and again on one file system.

    python -m bench.powercut [--cuts N] [--seed S]

The guest makes, extends, replaces and deletes files, each step with an fsync, and reports the steps on its console,
while other changes that nobody waits for go on beside. One file system is on an image behind a write cache that loses
what was not flushed, the other on an overlay, which writes its map only when it is flushed. After each cut a copy of
the disk is recovered and checked by e2fsck, and every step that the guest has reported has to be in there, with no
gaps and nothing else; then the guest gets the disk as the cut has left it, recovers it itself, and goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import Report
from bench.powercut_machine import Settings
from bench.powercut_steps import LONGEST, Tree, damage, random_steps
from bench.serial_guest import SerialGuest
from devices.disk import Image
from devices.overlay import Overlay
from emu.errors import EmuError

__all__ = ["MEDIA", "TOOLS_MISSING", "Victim", "e2fsprogs", "have_e2fsprogs", "make_ext4"]

MEDIA = ("image", "overlay")
TOOLS = ("mkfs.ext4", "e2fsck", "debugfs")
TOOLS_MISSING = "e2fsprogs is not installed"
SCRIPT = Path(__file__).with_name("powercut.sh")
CUTS = 50
MIB = 1 << 20
DISK_BYTES, SOURCE_BYTES = 64 * MIB, 2 * MIB
STEPS = 120                     # of a guest whose power is not cut before
LONGEST_DELAY_S = 0.05          # between a report and the cut
KEPT = 3                        # directories of earlier rounds
BOOT_S, STEP_S = 200.0, 60.0
RECOVERED = 0, 1                # e2fsck's exit status: clean, errors corrected
BEGIN, END, DID = "begin", "end", "did "

assert SOURCE_BYTES > LONGEST


def e2fsprogs(name: str) -> str | None:
    """The path of one of its programs, which users often do not have in theirs; None if it is not installed."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))


def have_e2fsprogs() -> bool:
    """Whether the host can make and check ext4."""
    return all(map(e2fsprogs, TOOLS))


def make_ext4(path: Path, size: int, *options: str) -> None:
    """Make a sparse image with an ext4 in it.

    Args:
        size: in bytes.
        options: of mkfs.ext4.
    """
    with path.open("wb") as file:
        file.truncate(size)
    tool("mkfs.ext4", "-q", *options, str(path))


def tool(name: str, *arguments: str, statuses: tuple[int, ...] = (0,)) -> str:
    """Run one of e2fsprogs; returns what it says.

    Raises:
        EmuError: it is missing, or ends with another status.
    """
    path = e2fsprogs(name)
    if path is None:
        raise EmuError(TOOLS_MISSING)
    ended = subprocess.run([path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode not in statuses:
        raise EmuError(f"{name} {' '.join(arguments)} ended with status {ended.returncode}:\n{ended.stdout}")
    return ended.stdout


class Victim:
    """A file system and what has happened to it.

    Args:
        directory: for the disk and its copies.
        medium: of `MEDIA`.
        rng: for everything.

    Attributes:
        cuts, durable, replays: cuts so far, steps that had been reported before them, and how often e2fsck found a
            journal to replay.
    """

    def __init__(self, directory: Path, medium: str, rng: random.Random) -> None:
        self._rng = rng
        self._source = rng.randbytes(SOURCE_BYTES)
        self._source_path = directory / "source"
        self._source_path.write_bytes(self._source)
        self._disk, self._base = directory / "disk", directory / "base" if medium == "overlay" else None
        self._copy, self._files = directory / "copy", directory / "files"
        make_ext4(self._base or self._disk, DISK_BYTES)
        self._kept: dict[str, Tree] = {}        # what earlier rounds have left, by directory
        self.cuts = self.durable = self.replays = 0

    def cut(self) -> list[str]:
        """Let a guest work, cut its power, judge what is left; returns what is wrong."""
        steps = random_steps(self._rng, STEPS, SOURCE_BYTES)
        name = f"round{self.cuts}"
        lines = "".join(f"{n} {step.verb} {step.name} {step.offset} {step.size}\n" for n, step in enumerate(steps, 1))
        settings = Settings(
            disk=str(self._disk), base=str(self._base) if self._base else None, source=str(self._source_path),
            script=str(SCRIPT), steps=lines, directory=name, oldest=f"round{self.cuts - KEPT}",
            seed=self._rng.getrandbits(32),
        )
        durable, failures = self._run(settings, self._rng.randint(-1, STEPS))
        self.cuts += 1
        self.durable += max(durable, 0)
        try:
            self._recover()
        except EmuError as error:
            return [*failures, str(error)]
        self._kept.pop(settings.oldest, None)
        failures += [f"{kept}: changed since" for kept, tree in self._kept.items() if self._tree(kept) != tree]
        found = self._tree(name)
        if found is not None:
            self._kept[name] = found
        wrong = damage(found or {}, steps, max(durable, 0), self._source)
        return [*failures, f"{name}: {wrong}"] if wrong else failures

    def _run(self, settings: Settings, target: int) -> tuple[int, list[str]]:
        """Let the guest reach a step, -1 for before its mount, and kill it soon after; returns the last it reported."""
        failures: list[str] = []
        durable = -1
        command = [sys.executable, "-m", "bench.powercut_machine", json.dumps(dataclasses.asdict(settings))]
        with SerialGuest(command) as guest:
            line = ""
            try:
                while line != BEGIN:
                    line = guest.line(BOOT_S)
                while durable < target:
                    durable = self._take(guest.line(STEP_S), durable, failures)
                time.sleep(self._rng.uniform(0, LONGEST_DELAY_S))
            except EmuError as error:
                failures.append(str(error))
            for line in guest.kill().splitlines(keepends=True):
                if line.endswith("\n"):
                    durable = self._take(line.rstrip(), durable, failures)
        return durable, failures

    def _take(self, line: str, durable: int, failures: list[str]) -> int:
        if line.startswith(DID):
            return int(line.removeprefix(DID))
        if line and line != END:
            failures.append(line)
        return durable

    def _recover(self) -> None:
        """Make a copy of the disk whole, as a host would that mounts it."""
        disk = Overlay(Image(self._base, True), self._disk, True) if self._base else Image(self._disk, True)
        with self._copy.open("wb") as file:
            file.truncate(disk.size)
            view = memoryview(bytearray(MIB))
            for offset in range(0, disk.size, MIB):
                disk.read(offset, [view])
                if any(view):
                    os.pwrite(file.fileno(), view, offset)
        disk.close()
        self.replays += "recovering journal" in tool("e2fsck", "-p", str(self._copy), statuses=RECOVERED)
        tool("e2fsck", "-fn", str(self._copy))
        shutil.rmtree(self._files, ignore_errors=True)
        self._files.mkdir()
        tool("debugfs", "-R", f"rdump / {self._files}", str(self._copy))

    def _tree(self, name: str) -> Tree | None:
        directory = self._files / name
        return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.is_dir() else None


def main() -> None:
    """Cut the power of both file systems by turns, print the counts and write bench/out/powercut.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=CUTS, help=f"of power ({CUTS})")
    parser.add_argument("--seed", type=int, default=None, help="to have the same steps and aims again")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    report = Report("powercut", f"power cut {arguments.cuts} times while a guest writes to ext4, seed {seed}")
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="powercut-") as directory:
        victims = {}
        for medium in MEDIA:
            (Path(directory) / medium).mkdir()
            victims[medium] = Victim(Path(directory) / medium, medium, random.Random(f"{seed} {medium}"))
        for number in range(arguments.cuts):
            medium = MEDIA[number % len(MEDIA)]
            failures += [f"cut {number}, {medium}: {failure}" for failure in victims[medium].cut()]
            print(f"{number + 1} cuts, {len(failures)} failures", flush=True)
    for medium, victim in victims.items():
        report.figure(f"{medium}_cuts", victim.cuts)
        report.figure(f"{medium}_durable_steps", victim.durable)
        report.figure(f"{medium}_journal_replays", victim.replays)
    report.figure("seed", seed)
    report.figure("failures", len(failures))
    report.finish()
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
