"""`emu info`: what a report of a problem needs to say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import emu
from emu.cache import Cache
from emu.cpu.abi import library_path
from emu.cpu.layout import build_id
from emu.cpu.library import load
from emu.errors import EmuError
from emu.fetch import KIND
from emu.host import (
    EXTRAS,
    REQUIREMENTS,
    cpu_model,
    host,
    memory_mib,
    package_version,
    python_version,
    settings,
    system,
    usable_cpus,
)

GUEST_FILES = ("vmlinuz", "alpine-minirootfs", "busybox")    # of what is cached for guests: what is booted


@click.command("info", short_help="Show versions, the host, and what is in the cache.")
def command() -> None:
    """Show versions, whether libunicorn's build is known, the host, settings, and the guests in the cache.

    A report of a problem begins with this, and with what emu selftest prints; then what was done, what came, and what
    should have come. --verbose, which most commands have, tells more.

    \b
    Examples:
      emu info
      (emu info; emu selftest) >report.txt 2>&1
    """
    rows = list(_rows())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def _rows() -> Iterator[tuple[str, str]]:
    yield "emu", emu.__version__
    yield "installed in", str(Path(emu.__file__).parents[1])
    yield "python", python_version()
    for name in REQUIREMENTS:
        yield name, package_version(name)
    yield "extras", ", ".join(f"{name} {package_version(name)}" for name in EXTRAS)
    yield from _library()
    yield "host", host()
    yield "system", system()
    yield "host CPU", f"{cpu_model()}, {usable_cpus()} usable"
    total, available = memory_mib()
    yield "host memory", f"{total:,} MiB, {available:,} available"
    yield "settings", ", ".join(f"{name}={value}" for name, value in settings().items()) or "none"
    cache = Cache()
    yield "cache", str(cache.directory)
    names = sorted(path.name for path in cache.directory.glob(f"{KIND}/*") if path.suffix != ".note")
    kept = [name for name in names if name.startswith(GUEST_FILES)]
    yield "guests in it", ", ".join(kept) or "none; emu fetch gets one"


def _library() -> Iterator[tuple[str, str]]:
    try:
        path = library_path()
        yield "libunicorn", path
        yield "its build", build_id(path)
        load()
        yield "is known", "yes"
    except EmuError as error:
        yield "is known", f"no: {error}"
