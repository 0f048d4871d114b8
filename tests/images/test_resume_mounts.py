"""What a restored guest's agent does about its mounts, under this machine's own shells, with commands that only write
down how they were called."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.images.test_scripts import SAFE_SHELLS, Guest

OPTIONS = "rw,relatime,trans=virtio"
DRIVERS = "sys/bus/virtio/drivers/9pnet_virtio"


class Restored(Guest):
    """A guest with one 9p device, whose `mount` fails as often as it is told to."""

    def __init__(self, root: Path, shell: list[str]) -> None:
        super().__init__(root, shell)
        self.share("data")
        self.write(f"{DRIVERS}/virtio0/status", "0x0000000f\n")
        self.write("sys/bus/virtio/devices/virtio0/modalias", "virtio:d00000009v00001AF4\n")
        self.write("log", "")
        self.stub("umount")
        self.stub("sleep")
        (root / "usr/lib/emu/bin/grep").symlink_to(str(shutil.which("grep")))

    def stub(self, name: str, rest: str = "") -> None:
        text = f'#!/bin/sh\necho {name} "$@" >>{self.root}/log\n{rest}'
        self.write(f"usr/lib/emu/bin/{name}", text).chmod(0o755)

    def mount_fails(self, times: int) -> None:
        self.stub("mount", f"[ $(grep -c '^mount' {self.root}/log) -gt {times} ]\n")

    def mounted(self, *places: str) -> None:
        lines = [f"data {self.root}/{place} 9p {OPTIONS} 0 0\n" for place in places]
        self.write("proc/mounts", "proc /proc proc rw 0 0\n" + "".join(lines))

    def resume(self) -> list[str]:
        """Resume, and return the commands that were given for mounts."""
        self.run("PATH=/usr/lib/emu/bin:$PATH; emu=/usr/lib/emu; . $emu/resume")
        lines = (self.root / "log").read_text().replace(f"{self.root}/", "/").splitlines()
        return [line for line in lines if line.startswith(("mount", "umount"))]


@pytest.fixture(params=SAFE_SHELLS, ids=lambda shell: str(shell[0]))
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Restored:
    return Restored(tmp_path, request.param)


def made(place: str) -> str:
    return f"mount -t 9p -o {OPTIONS} data {place}"


def test_mounts_that_work_are_left_alone(guest: Restored) -> None:
    (guest.root / "mnt/data").mkdir(parents=True)
    guest.mounted("mnt/data")
    assert guest.resume() == []


def test_a_stale_mount_is_made_again_as_it_was(guest: Restored) -> None:
    guest.mounted("mnt/data")
    assert guest.resume() == ["umount -l /mnt/data", made("/mnt/data")]


def test_what_is_mounted_below_comes_after(guest: Restored) -> None:
    (guest.root / "mnt/other").mkdir(parents=True)
    guest.mounted("mnt/data", "mnt/data/below", "mnt/other")
    assert [line for line in guest.resume() if line.startswith("mount")] == [
        made("/mnt/data"), made("/mnt/data/below"),
    ]  # fmt: skip


def test_odd_names_are_understood(guest: Restored) -> None:
    guest.mounted(r"mnt/a\040b")
    assert guest.resume() == ["umount -l /mnt/a b", made("/mnt/a b")]


@pytest.mark.parametrize("failures", [9, 10, 100])
def test_the_driver_is_bound_anew_after_10_failures(failures: int, guest: Restored) -> None:
    guest.mounted("mnt/data")
    guest.mount_fails(failures)
    assert len(guest.resume()) == 1 + min(failures + 1, 50)
    for name in ("unbind", "bind"):
        file = guest.root / DRIVERS / name
        assert file.exists() == (failures >= 10)
        assert failures < 10 or file.read_text() == "virtio0\n"


def test_a_device_that_answers_nothing_is_not_asked_in_the_foreground(guest: Restored) -> None:
    (guest.root / "mnt/data").mkdir(parents=True)
    guest.mounted("mnt/data")
    guest.write(f"{DRIVERS}/virtio0/status", "0x0000004f\n")
    script = "PATH=/usr/lib/emu/bin:$PATH; emu=/usr/lib/emu; . $emu/resume; [ -n \"$stale\" ] && echo apart"
    assert guest.run(script).endswith("apart\n")
