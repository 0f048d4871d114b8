"""Machines that tests share: booting one takes seconds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.cache import ENVIRONMENT, Cache
from emu.fetch import DEBIAN_KERNELS, fetch_guest
from emu.images.cpio import Entry, read_archive
from emu.images.root import load_root
from emu.machine import Machine


@pytest.fixture(scope="session")
def kernels() -> dict[str, Path]:
    """Debian's kernels by name; fetched if need be."""
    return {name: fetch_guest(Cache(), name).kernel_path for name in DEBIAN_KERNELS}


@pytest.fixture(scope="session")
def programs() -> dict[str, Entry]:
    """Alpine's busybox and what it is linked with, for roots of a handful of files."""
    root = fetch_guest(Cache(), "cloud").root_path
    files = {entry.name: entry for entry in read_archive(load_root(root, Cache()))}
    return {name: files[name] for name in ("bin/busybox", "lib/ld-musl-x86_64.so.1")}


@pytest.fixture(scope="module")
def empty_cache(kernels: dict[str, Path], programs: dict[str, Entry]) -> Iterator[Path]:
    """A cache that has seen no kernel and no initramfs yet, in place of the user's."""
    before = os.environ.get(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as name:
        os.environ[ENVIRONMENT] = name
        yield Path(name)
    if before is None:
        del os.environ[ENVIRONMENT]
    else:
        os.environ[ENVIRONMENT] = before


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine at its shell, shared by a module's tests; at its end the kernel must not have complained."""
    with emu.boot(kernel="cloud", append=LOUD_SETTINGS) as machine:
        machine.wait_prompt()
        yield machine
        assert complaints(machine.run("dmesg", timeout=60).stdout) == []
