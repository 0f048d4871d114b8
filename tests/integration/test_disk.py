"""Disks in a guest: what it reads and writes, what it is refused, what the host gets back, and a root on one."""

from __future__ import annotations

import hashlib
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import emu
from bench.powercut import TOOLS_MISSING, have_e2fsprogs, make_ext4, tool
from bench.trouble import LOUD_SETTINGS, complaints
from emu.cache import Cache
from emu.errors import EmuError
from emu.fetch import fetch_guest
from emu.fittings import DiskImage
from emu.machine import Machine
from emu.memory import KIB, MIB
from emu.run_loop import StopReason

pytestmark = pytest.mark.integration

needs_e2fsprogs = pytest.mark.skipif(not have_e2fsprogs(), reason=TOOLS_MISSING)

SOURCE, WORK, ODD, ODD_BASE, EXT4 = "source.img", "work.img", "odd.img", "odd-base.img", "ext4.img"
SHARED = "a-name-of-more-than-20-bytes.img"
NAMES = {"vda": SOURCE, "vdb": WORK, "vdc": ODD, "vdd": ODD_BASE, "vde": SHARED, "vdf": EXT4}

SECTOR, CLUSTER = 512, 4 * KIB
SOURCE_BYTES, WORK_BYTES, SHARED_BYTES, EXT4_BYTES = 12 * MIB, 16 * MIB, 4 * MIB, 24 * MIB
ODD_BYTES = 3 * CLUSTER + 2 * SECTOR + 100
DISCARDED = 4 * MIB, 8 * MIB            # offset, size
METADATA = 64 * KIB                     # that a host's file system may need for a hole
FILE_BYTES = 300_001
END_S = 60.0
FORGET = "echo 3 >/proc/sys/vm/drop_caches"


@dataclass
class Disks:
    """One machine, and the files behind its disks."""

    machine: Machine
    directory: Path

    def file(self, name: str) -> Path:
        """The image of a name."""
        return self.directory / name

    def run(self, command: str) -> str:
        """What a command says; it has to succeed."""
        return self.machine.run(command, timeout=END_S, check=True).stdout


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    """A read-only disk, a writable one, two of odd size, one that is shared with others, and one with ext4."""
    directory = tmp_path_factory.mktemp("disks")
    rng = random.Random(7)
    sizes = SOURCE_BYTES, WORK_BYTES, ODD_BYTES, ODD_BYTES, SHARED_BYTES, EXT4_BYTES
    for name, size in zip(NAMES.values(), sizes, strict=True):
        (directory / name).write_bytes(rng.randbytes(size))
    if have_e2fsprogs():
        make_ext4(directory / EXT4, EXT4_BYTES)
    fitted = [
        DiskImage(directory / SOURCE, read_only=True),
        DiskImage(directory / WORK),
        DiskImage(directory / ODD),
        DiskImage(directory / ODD_BASE, overlay=directory / "odd.overlay"),
        DiskImage(directory / SHARED, overlay=True),
        DiskImage(directory / EXT4),
    ]
    with emu.boot(kernel="generic", disks=fitted, append=LOUD_SETTINGS) as machine:
        machine.wait_prompt()
        yield Disks(machine, directory)
        assert complaints(machine.run("dmesg", timeout=END_S).stdout) == []


def digest(data: bytes | bytearray) -> str:
    """As sha256sum prints it."""
    return hashlib.sha256(data).hexdigest()


def test_disks_come_in_order_with_their_sizes_and_file_names(disks: Disks) -> None:
    for device, name in NAMES.items():
        serial, size = disks.run(f"cat /sys/block/{device}/serial; echo; cat /sys/block/{device}/size").split()
        assert serial == name[:20]
        assert int(size) == -(-disks.file(name).stat().st_size // SECTOR)


def test_guest_reads_what_the_host_has(disks: Disks) -> None:
    expected = digest(disks.file(SOURCE).read_bytes())
    for size in (CLUSTER, MIB):
        said = disks.run(f"{FORGET}; dd if=/dev/vda bs={size} 2>/dev/null | sha256sum")
        assert said.split()[0] == expected


def test_host_reads_what_the_guest_wrote(disks: Disks) -> None:
    disks.run("dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null")
    source, work = disks.file(SOURCE).read_bytes(), disks.file(WORK).read_bytes()
    assert digest(work[:SOURCE_BYTES]) == digest(source)
    again = disks.run(f"{FORGET}; dd if=/dev/vdb bs=1M count={SOURCE_BYTES // MIB} 2>/dev/null | sha256sum")
    assert again.split()[0] == digest(source)


def test_read_only_disk_is_not_written_to(disks: Disks) -> None:
    before = disks.file(SOURCE).read_bytes()
    assert disks.run("cat /sys/block/vda/ro") == "1\n"
    for command in ("dd if=/dev/zero of=/dev/vda count=1 conv=fsync", "blkdiscard /dev/vda"):
        assert disks.machine.run(command, timeout=END_S).status != 0
        assert disks.machine.run(f"blockdev --setrw /dev/vda; {command}", timeout=END_S).status != 0
    assert disks.file(SOURCE).read_bytes() == before


@pytest.mark.parametrize(("device", "name"), [("vdc", ODD), ("vdd", ODD_BASE)])
def test_size_that_is_no_whole_sector_is_rounded_up_with_zeros(disks: Disks, device: str, name: str) -> None:
    before = disks.file(name).read_bytes()
    padded = before + bytes(-len(before) % SECTOR)
    assert disks.run(f"{FORGET}; sha256sum /dev/{device}").split()[0] == digest(padded)
    disks.run(f"dd if=/dev/vda of=/dev/{device} bs={len(padded)} count=1 conv=fsync 2>/dev/null; {FORGET}")
    written = disks.file(SOURCE).read_bytes()[: len(padded)]
    assert disks.run(f"sha256sum /dev/{device}").split()[0] == digest(written)
    behind = f"dd if=/dev/zero of=/dev/{device} seek={len(padded)} bs=1 count=1"
    assert disks.machine.run(behind, timeout=END_S).status != 0
    assert disks.file(name).read_bytes() == (before if name == ODD_BASE else written)


def test_discard_gives_room_back_to_the_host(disks: Disks) -> None:
    offset, size = DISCARDED
    work = disks.file(WORK)
    disks.run("dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null")
    before, room = work.read_bytes(), work.stat().st_blocks
    disks.run(f"blkdiscard -o {offset} -l {size} /dev/vdb")
    assert room - work.stat().st_blocks >= (size - METADATA) // SECTOR
    assert work.read_bytes() == before[:offset] + bytes(size) + before[offset + size :]
    said = disks.run(f"{FORGET}; dd if=/dev/vdb bs=1M count={(offset + size) // MIB} 2>/dev/null | sha256sum")
    assert said.split()[0] == digest(before[:offset] + bytes(size))


def test_machines_with_one_image_do_not_see_each_other_s_writes(disks: Disks) -> None:
    base = disks.file(SHARED)
    before = base.read_bytes()
    with pytest.raises(EmuError, match=r"in use by another machine; overlays can share it$"):
        emu.boot(kernel="generic", disks=[base])
    with emu.boot(kernel="generic", disks=[DiskImage(base, overlay=True)]) as other:
        other.wait_prompt()
        machines = {"vde": disks.machine, "vda": other}
        write = "dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\000' {} | dd of=/dev/{} bs=64k seek={} conv=fsync"
        for place in (0, 40):               # one after the other, and again
            for letter, (device, machine) in zip("XY", machines.items(), strict=True):
                machine.run(write.format(letter, device, place), timeout=END_S, check=True)
        for letter, (device, machine) in zip("XY", machines.items(), strict=True):
            expected = bytearray(before)
            for place in (0, 40 * 64 * KIB):
                expected[place : place + MIB] = letter.encode() * MIB
            said = machine.run(f"{FORGET}; sha256sum /dev/{device}", timeout=END_S, check=True).stdout
            assert said.split()[0] == digest(expected)
    assert base.read_bytes() == before


@needs_e2fsprogs
def test_file_system_that_was_filled_keeps_all_and_is_clean(disks: Disks) -> None:
    source, image = disks.file(SOURCE).read_bytes(), disks.file(EXT4)
    *sums, left = disks.run(
        "mount -t ext4 /dev/vdf /mnt; cd /mnt; n=0; "
        f"while dd if=/dev/vda of=$n iflag=skip_bytes skip=$((n * 7919)) bs={FILE_BYTES} count=1 2>/dev/null; "
        f"do n=$((n + 1)); done; rm $n; sync; {FORGET}; sha256sum [0-9]*; df . | tail -n 1"
    ).splitlines()
    assert int(left.split()[4].rstrip("%")) > 95
    assert len(sums) > 50
    for line in sums:
        found, name = line.split()
        assert found == digest(source[int(name) * 7919 :][:FILE_BYTES])
    room = image.stat().st_blocks
    disks.run("cd /mnt; rm 0 1; sync; fstrim /mnt; cd /; umount /mnt")
    assert room - image.stat().st_blocks > FILE_BYTES // SECTOR
    tool("e2fsck", "-fn", str(image))


@pytest.fixture(scope="module")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default guest's root as ext4."""
    directory = tmp_path_factory.mktemp("root")
    with tarfile.open(fetch_guest(Cache(), "generic").root_path) as tar:
        tar.extractall(directory / "tree", filter="tar")
    image = directory / "root.ext4"
    make_ext4(image, 64 * MIB, "-d", str(directory / "tree"))
    return image


@needs_e2fsprogs
def test_root_on_a_disk_boots_and_powers_off_cleanly(root_image: Path) -> None:
    with emu.boot(kernel="generic", root=root_image) as machine:
        assert machine.run("grep ' / ' /proc/mounts", timeout=END_S).stdout.startswith("/dev/vda / ext4 rw")
        machine.run("echo kept >/root/note", timeout=END_S, check=True)
        machine.console.sendline("poweroff")
        assert machine.run_to_end(END_S) is StopReason.POWER_OFF
    assert "needs_recovery" not in tool("debugfs", "-R", "stats", str(root_image))
    tool("e2fsck", "-fn", str(root_image))
    assert tool("debugfs", "-R", "cat /root/note", str(root_image)).endswith("kept\n")


@needs_e2fsprogs
def test_root_on_a_read_only_disk_boots_and_stays_as_it_is(root_image: Path) -> None:
    before = root_image.read_bytes()
    with emu.boot(kernel="generic", root=DiskImage(root_image, read_only=True)) as machine:
        assert machine.run("grep ' / ' /proc/mounts", timeout=END_S).stdout.startswith("/dev/vda / ext4 ro")
        assert machine.run("echo lost >/root/other", timeout=END_S).status != 0
        machine.console.sendline("poweroff")
        assert machine.run_to_end(END_S) is StopReason.POWER_OFF
    assert root_image.read_bytes() == before
