"""This package's own files inside every guest: its init, its agent, and what those use.

Beside a root that is an initramfs they lie in /usr/lib/emu, beside one that is mounted in /run/emu.
"""

from __future__ import annotations

import stat
from pathlib import Path

from emu.images.cpio import Entry
from emu.images.programs import PROGRAMS, listed_program

__all__ = ["DEVICES", "DIRECTORY", "INIT_SCRIPT", "LINK", "own_files", "program", "scripts"]

INIT_SCRIPT = Path(__file__).with_name("init.sh")

SOURCED = {
    "drivers": "drivers.sh", "environment": "environment.sh", "shrc": "shrc.sh", "agent": "agent.sh",
    "command": "command.sh", "resume": "resume.sh",
}
POWER = "power.sh"
POWER_NAMES = ("poweroff", "reboot", "halt")
HYPERCALLS = "pv.sh"

DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
PROGRAM = stat.S_IFREG | 0o755
LINK = stat.S_IFLNK | 0o777

DEVICES = (
    Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
    Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
    Entry("dev/zero", stat.S_IFCHR | 0o666, device=(1, 5)),
    Entry("dev/tty", stat.S_IFCHR | 0o666, device=(5, 0)),
    Entry("dev/ttyS0", stat.S_IFCHR | 0o660, device=(4, 64)),
)
"""What a root needs before its own devices are mounted."""

# devtmpfs makes devices only; these are put beside them.
DEVICE_LINKS = {"fd": b"/proc/self/fd", "stdin": b"fd/0", "stdout": b"fd/1", "stderr": b"fd/2"}
DEVICE_DIRECTORIES = ("pts", "shm")


def scripts() -> bytes:
    """All that these files are made of: for the key of what holds them in a cache."""
    here = Path(__file__).parent
    paths = sorted([*here.glob("*.sh"), *here.glob("*.lst")])
    return b"\0".join(part for path in paths for part in (path.name.encode(), path.read_bytes()))


def own_files(directory: str) -> list[Entry]:
    """The files, in `directory` (without a leading slash), whose parents are the caller's to make."""
    here = Path(__file__).parent
    entries = [Entry(directory, DIRECTORY)]
    for name, script in SOURCED.items():
        entries.append(Entry(f"{directory}/{name}", FILE, (here / script).read_bytes()))
    entries.append(Entry(f"{directory}/bin", DIRECTORY))
    first, *others = POWER_NAMES
    entries.append(program(f"{directory}/bin/{first}", (here / POWER).read_bytes()))
    entries += [Entry(f"{directory}/bin/{name}", LINK, first.encode()) for name in others]
    entries.append(program(f"{directory}/bin/pv", (here / HYPERCALLS).read_bytes()))
    entries += [program(f"{directory}/bin/{name}", listed_program(name)) for name in PROGRAMS]
    entries.append(Entry(f"{directory}/dev", DIRECTORY))
    entries += [Entry(f"{directory}/dev/{name}", DIRECTORY) for name in DEVICE_DIRECTORIES]
    entries += [Entry(f"{directory}/dev/{name}", LINK, target) for name, target in DEVICE_LINKS.items()]
    return entries


def program(name: str, data: bytes | memoryview) -> Entry:
    """An executable file."""
    return Entry(name, PROGRAM, data)
