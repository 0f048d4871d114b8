"""The machine whose power bench/powercut.py cuts, as a process that is killed.

    python -m bench.powercut_machine '{"disk": "disk.img", "base": null, "source": "random.img", ...}'

The argument is `Settings` as JSON. The guest's serial line, once its script runs, is standard output.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import emu
from devices.disk import Buffers, Image, part_of, total_size, zeroes
from emu.fittings import DiskImage

__all__ = ["BLOCK", "Settings", "WriteBack"]

BLOCK = 4096
DESTAGE_ONE_IN = 4              # writes after which some of the cache goes to the image unasked
KERNEL = "generic"              # what it boots from the cache
BOOT_S, SCRIPT_S = 100.0, 60.0
STDOUT = 1


@dataclass(frozen=True)
class Settings:
    """What the guest has and does.

    Attributes:
        disk: /dev/vda: an image, which gets a write cache, or a named overlay.
        base: of the overlay.
        source: /dev/vdb, read-only.
        script: file on the host: powercut.sh.
        steps: text that the script reads.
        directory, oldest: its other arguments.
        seed: for what the write cache does.
    """

    disk: str
    base: str | None
    source: str
    script: str
    steps: str
    directory: str
    oldest: str
    seed: int


class WriteBack(Image):
    """A raw image behind a write cache, as real disks have one: what was not flushed is lost with the process.

    Unasked, blocks leave the cache in any order, whole.

    Args:
        path, read_only: as of `Image`.
        rng: decides when and which.
    """

    def __init__(self, path: str | os.PathLike[str], read_only: bool = False, rng: random.Random | None = None) -> None:
        super().__init__(path, read_only)
        self._rng = rng or random.Random()
        self._held: dict[int, bytearray] = {}       # by number of the block

    def read(self, offset: int, views: Sequence[memoryview], /) -> None:
        """Fill the views, with what is in the cache where something is."""
        super().read(offset, views)
        end = offset + total_size(views)
        for number in range(offset // BLOCK, -(-end // BLOCK)):
            if held := self._held.get(number):
                start, stop = max(number * BLOCK, offset), min((number + 1) * BLOCK, end)
                done = start % BLOCK
                for view in part_of(views, start - offset, stop - start):
                    view[:] = held[done : done + len(view)]
                    done += len(view)

    def write(self, offset: int, views: Buffers, /) -> None:
        """Keep the views' bytes in the cache."""
        data = b"".join(views)
        end = offset + len(data)
        for number in range(offset // BLOCK, -(-end // BLOCK)):
            start, stop = max(number * BLOCK, offset), min((number + 1) * BLOCK, end)
            self._block(number)[start % BLOCK : start % BLOCK + stop - start] = data[start - offset : stop - offset]
        if not self._rng.randrange(DESTAGE_ONE_IN):
            self._destage(self._rng.sample(sorted(self._held), self._rng.randint(0, len(self._held))))

    def discard(self, offset: int, size: int, /) -> None:
        """Not done: nothing has to happen."""

    def write_zeroes(self, offset: int, size: int, unmap: bool, /) -> None:
        """Keep zeros in the cache."""
        self.write(offset, zeroes(size))

    def flush(self) -> None:
        """Empty the cache, in any order."""
        self._destage(self._rng.sample(sorted(self._held), len(self._held)))
        super().flush()

    def _block(self, number: int) -> bytearray:
        if number not in self._held:
            self._held[number] = bytearray(BLOCK)
            super().read(number * BLOCK, [memoryview(self._held[number])])
        return self._held[number]

    def _destage(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            block = self._held.pop(number)
            super().write(number * BLOCK, [memoryview(block)[: self.size - number * BLOCK]])


def main(argument: str) -> None:
    """Boot, start the script, and go on until the guest stops; killed before."""
    settings = Settings(**json.loads(argument))
    rng = random.Random(settings.seed)
    disk = DiskImage(settings.base, overlay=settings.disk) if settings.base else DiskImage(settings.disk)
    image = Image if settings.base else lambda path, read_only=False: WriteBack(path, read_only, rng)
    with mock.patch("devices.disk.Image", image):
        machine = emu.boot(kernel=KERNEL, disks=[disk, DiskImage(settings.source, read_only=True)])
    with machine:
        machine.wait_prompt(BOOT_S)
        for name, text in ("script", Path(settings.script).read_bytes()), ("steps", settings.steps.encode()):
            machine.run(["tee", f"/tmp/{name}"], input=text, timeout=SCRIPT_S, check=True)
        machine.serial_sinks.append(lambda data: _write_all(STDOUT, data))
        words = f"/tmp/script /tmp/steps {settings.directory} {settings.oldest}"
        machine.console.sendline(f"stty -echo; sh {words}")
        machine.run_to_end()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main(sys.argv[1])
