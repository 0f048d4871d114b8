"""A tree of files with everything that a copy can get wrong, in and out of a guest over 9p, by cp and by tar.

What arrives is compared on the host: contents, modes, link structure and times. Alpine's tools and Linux' 9p client
set times to the second; what the host set to the nanosecond is read so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import emu
from emu.machine import Machine
from emu.memory import KIB, MIB
from tests.integration.trees import SPARSE_FILE, Entry, describe, make_tree

pytestmark = pytest.mark.integration

SHORT, WHOLE = 600, 5_000             # files; `make test-long` copies the whole tree
START_S, COPY_S, RUN_S = 60.0, 400.0, 60.0
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Copies:
    """A machine that has a tree as the share `tree`, and an empty directory as `copies`."""

    machine: Machine
    tree: Path
    copies: Path

    def run(self, command: str) -> str:
        """What a command writes that takes as long as copying does."""
        return self.machine.run(command, check=True, timeout=COPY_S).stdout

    def differences(self, copy: Path, directory_times: bool = True) -> list[tuple[bytes, Entry | None, Entry | None]]:
        """Paths at which the tree and a copy of it, kept to the second, are not the same, with both entries."""
        expected, found = (self._kept(root, directory_times) for root in (self.tree, copy))
        paths = sorted({*expected, *found})
        return [(path, expected.get(path), found.get(path)) for path in paths if expected.get(path) != found.get(path)]

    @staticmethod
    def _kept(root: Path, directory_times: bool) -> dict[bytes, Entry]:
        entries = describe(root, SECOND_NS)
        if directory_times:
            return entries
        return {path: replace(entry, mtime_ns=0) if entry.is_directory else entry for path, entry in entries.items()}


@pytest.fixture(scope="module", params=[SHORT, pytest.param(WHOLE, marks=pytest.mark.soak)])
def copies(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copies]:
    """Where the tests copy; what one copies is gone before the next."""
    top = tmp_path_factory.mktemp("copies")
    tree, target = top / "tree", top / "target"
    tree.mkdir()
    target.mkdir()
    make_tree(tree, request.param)
    with emu.boot(kernel="generic", shares={"tree": tree, "copies": target}) as machine:
        machine.wait_prompt(START_S)
        yield Copies(machine, tree, target)
    shutil.rmtree(top)


@pytest.fixture
def target(copies: Copies) -> Iterator[Path]:
    """A directory that the guest has as /mnt/copies/new."""
    path = copies.copies / "new"
    path.mkdir()
    yield path
    for left in copies.copies.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    copies.run("rm -rf /tmp/new")


@pytest.mark.timeout(2 * COPY_S)
def test_cp_copies_the_tree_into_the_guest_and_out_again(copies: Copies, target: Path) -> None:
    copies.run("mkdir /tmp/new; cd /mnt/tree; cp -a . /tmp/new; cd /tmp/new; cp -a . /mnt/copies/new")
    assert copies.differences(target) == []


@pytest.mark.timeout(2 * COPY_S)
def test_tar_packs_the_tree_in_the_guest(copies: Copies, target: Path) -> None:
    copies.run("cd /mnt/tree; tar -cf /mnt/copies/packed.tar .")
    archive = str(copies.copies / "packed.tar")
    command = ["tar", "--warning=no-timestamp", "-xpf", archive, "-C", str(target)]
    subprocess.run(command, check=True, timeout=RUN_S)
    assert copies.differences(target) == []


@pytest.mark.timeout(2 * COPY_S)
def test_tar_unpacks_the_tree_in_the_guest(copies: Copies, target: Path) -> None:
    """All but directories' times, which busybox sets before it fills the directory."""
    archive = copies.copies / "packed.tar"
    subprocess.run(["tar", "--format=gnu", "-cf", archive, "-C", copies.tree, "."], check=True, timeout=RUN_S)
    copies.run("cd /mnt/copies/new; tar -xf ../packed.tar")
    assert copies.differences(target, directory_times=False) == []


def test_guest_reads_times_to_the_nanosecond_and_the_blocks_of_holes(copies: Copies) -> None:
    for path in (SPARSE_FILE, b"deep-0/file", b"deep-0"):
        status = os.lstat(os.path.join(os.fsencode(copies.tree), path))
        shown = copies.run(f"cd /mnt/tree; stat -c '%s %b %h %y' '{path.decode()}'").split()
        assert shown[:3] == [str(value) for value in (status.st_size, status.st_blocks, status.st_nlink)]
        assert shown[4].partition(".")[2] == f"{status.st_mtime_ns % SECOND_NS:09}"


def test_holes_made_by_the_guest_are_holes_on_the_host(copies: Copies, target: Path) -> None:
    copies.run("cd /mnt/copies/new; truncate -s 64M all; echo end | dd of=begun seek=64 bs=1M conv=notrunc 2>/dev/null")
    sizes = {name: (target / name).stat() for name in ("all", "begun")}
    assert [status.st_size for status in sizes.values()] == [64 * MIB, 64 * MIB + len("end\n")]
    assert all(512 * status.st_blocks <= 64 * KIB for status in sizes.values())
    assert copies.run("cd /mnt/copies/new; stat -c %b begun").split() == [str(sizes["begun"].st_blocks)]
