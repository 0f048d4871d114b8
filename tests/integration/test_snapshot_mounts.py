"""Mounts of shares that a restored guest has lost, on the generic kernel.

What forces it: the host forgets the 9p session, so that none of the guest's fids means anything. A process that stays
in the old mount keeps the driver's channel busy, so that each new mount fails until the driver has been unbound.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import emu
from bench.trouble import LOUD_SETTINGS
from devices.p9.export import Export
from devices.p9.saved import P9State
from devices.virtio.device import BadRequest
from devices.virtio.p9 import Virtio9p
from devices.virtio.pci import VirtioPci
from emu.machine import Machine

pytestmark = pytest.mark.integration

TIMEOUT_S = 60.0
SETTLE_S = 0.3
GENEROUS_S = 5.0
ROUNDS = 10
USE = "cat /mnt/data/file && echo written >/mnt/data/new && cat /mnt/data/new"
MOUNTS = "grep ' 9p ' /proc/mounts"
# It leaves the mount when the driver is waiting for that, unless it is to stay
HOLDER = (
    "cd /mnt/data; >/tmp/there; until grep -q p9_virtio_remove /proc/[0-9]*/stack 2>/dev/null && ! [ -e /tmp/stay ]; "
    "do sleep 0.05; done"
)
WAIT_FOR_IT = "until [ -e /tmp/there ]; do sleep 0.02; done"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared")
    (directory / "file").write_text("read\n")
    return directory


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> tuple[Path, str]:
    """Where snapshots named free, leaving, and staying are, after what holds the mount; and how it is mounted."""
    directory = tmp_path_factory.mktemp("snapshots")
    steps = {
        "free": "cat /mnt/data/file",
        "leaving": f"(setsid sh -c '{HOLDER}' </dev/null >/dev/null 2>&1 &); {WAIT_FOR_IT}",
        "staying": "touch /tmp/stay",
    }
    with emu.boot(kernel="generic", memory=128 << 20, append=LOUD_SETTINGS, shares={"data": shared}) as vm:
        vm.wait_ready()
        mounts = vm.run(MOUNTS, check=True, timeout=TIMEOUT_S).stdout
        for name, command in steps.items():
            vm.run(command, check=True, timeout=TIMEOUT_S)
            vm.drive(lambda: False, SETTLE_S)
            vm.snapshot(directory / name)
    return directory, mounts


@pytest.fixture
def resets(monkeypatch: pytest.MonkeyPatch) -> list[Virtio9p]:
    """Sessions are forgotten; devices that a driver has reset, one entry each time."""
    seen: list[Virtio9p] = []
    make, reset = Virtio9p.__init__, Virtio9p.reset

    def forget(self: Virtio9p, export: Export, state: P9State | None = None) -> None:
        make(self, export)

    def count(self: Virtio9p) -> None:
        seen.append(self)
        reset(self)

    monkeypatch.setattr(Virtio9p, "__init__", forget)
    monkeypatch.setattr(Virtio9p, "reset", count)
    return seen


@contextmanager
def restored(snapshot: Path, resets: list[Virtio9p]) -> Iterator[Machine]:
    with emu.restore(snapshot) as machine:
        resets.clear()      # putting the machine together may reset what is put together
        yield machine


def test_a_stale_mount_is_made_again(
    snapshots: tuple[Path, str], shared: Path, resets: list[Virtio9p]
) -> None:
    directory, mounts = snapshots
    with restored(directory / "free", resets) as machine:
        assert machine.run(USE, check=True, timeout=TIMEOUT_S).stdout == "read\nwritten\n"
        assert (shared / "new").read_text() == "written\n"
        assert machine.run(MOUNTS, timeout=TIMEOUT_S).stdout == mounts
        assert resets == []


def test_the_driver_is_bound_anew_when_mounting_fails(
    snapshots: tuple[Path, str], resets: list[Virtio9p]
) -> None:
    directory, mounts = snapshots
    with restored(directory / "leaving", resets) as machine:
        assert machine.run(USE, check=True, timeout=TIMEOUT_S).stdout == "read\nwritten\n"
        assert machine.run(MOUNTS, timeout=TIMEOUT_S).stdout == mounts
        assert resets


def test_a_mount_that_cannot_be_made_does_not_keep_commands_from_running(
    snapshots: tuple[Path, str], resets: list[Virtio9p]
) -> None:
    with restored(snapshots[0] / "staying", resets) as machine:
        assert machine.run("echo here", timeout=TIMEOUT_S).stdout == "here\n"
        assert machine.run("cat /mnt/data/file", timeout=TIMEOUT_S).status != 0


def device_of_the_share(machine: Machine) -> VirtioPci:
    return next(function for function in machine.board.virtio if isinstance(function.device, Virtio9p))


@pytest.mark.parametrize("name", ["free", "leaving"])
def test_a_device_that_needed_a_reset_gets_it(
    snapshots: tuple[Path, str], shared: Path, tmp_path: Path, name: str
) -> None:
    directory, mounts = snapshots
    with emu.restore(directory / name) as machine:
        machine.run("true", timeout=TIMEOUT_S)      # after which the guest looks at its mounts no more
        device_of_the_share(machine).fail(BadRequest("on purpose"))
        failed = machine.run("cat /mnt/data/file", timeout=TIMEOUT_S)
        assert failed.status == 1 and "I/O error" in failed.stderr      # else it waits, and cannot be killed
        machine.snapshot(tmp_path / "broken")
    with emu.restore(tmp_path / "broken") as machine:
        assert device_of_the_share(machine).failure == "on purpose"
        assert machine.run(USE, check=True, timeout=TIMEOUT_S).stdout == "read\nwritten\n"
        assert machine.run(MOUNTS, timeout=TIMEOUT_S).stdout == mounts
        assert device_of_the_share(machine).failure is None


def test_mounting_again_is_quick(snapshots: tuple[Path, str], shared: Path) -> None:
    with emu.restore(snapshots[0] / "free") as machine:
        rounds = f"read a b </proc/uptime; n=0; while [ $n -lt {ROUNDS} ]; do n=$((n + 1)); umount -l /mnt/data; "
        mount = "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 data /mnt/data || exit; done; "
        taken = machine.run(rounds + mount + "read c d </proc/uptime; echo $a $c", check=True, timeout=TIMEOUT_S)
        start, end = map(float, taken.stdout.split())
        print(f"umount and mount: {(end - start) / ROUNDS * 1e3:.0f} ms")
        assert (end - start) / ROUNDS < GENEROUS_S
