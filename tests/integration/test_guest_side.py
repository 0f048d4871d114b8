"""Configuration, shares and roots as guests have them: the scripts of emu/images in real machines."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import emu
from bench.trouble import complaints
from emu.cache import Cache
from emu.fetch import fetch_guest
from emu.machine import Machine
from emu.run_loop import StopReason

pytestmark = pytest.mark.integration

BOOT_S = 60.0
RUN_S = 60.0


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alpine's root as a directory of the host."""
    root = fetch_guest(Cache(), "generic").root_path
    if not tarfile.is_tarfile(root):
        pytest.skip("the default guest's root is no archive")
    directory = tmp_path_factory.mktemp("alpine")
    with tarfile.open(root) as archive:
        archive.extractall(directory, filter="tar")
    return directory


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("conf")
    (directory / "hostname").write_text("builder\n")
    (directory / "environment").write_text("# comment\nGREETING=hello  $HOME 'there'\nOPTIND=x\n")
    (directory / "mounts").write_text("src /home/src ro")
    (directory / "start").write_text('echo "$GREETING" >/run/started; exit 3\n')
    return directory


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("src")
    (directory / "file").write_text("content\n")
    return directory


@pytest.fixture(scope="module", params=["initramfs", "9p"])
def configured(request: pytest.FixtureRequest, tree: Path, conf: Path, src: Path) -> Iterator[Machine]:
    root = {"root": tree, "root_over": "9p"} if request.param == "9p" else {}
    shares = {"src": src, "other": src}
    with emu.boot(kernel="generic", shares=shares, config=conf, **root) as machine:  # type: ignore[arg-type]
        machine.wait_prompt(BOOT_S)
        yield machine
        assert complaints(machine.run("dmesg", timeout=RUN_S).stdout) == []


def told(machine: Machine, command: str) -> str:
    return machine.run(command, timeout=RUN_S, check=True).stdout


def test_configuration_is_applied(configured: Machine) -> None:
    assert told(configured, "hostname; cat /run/started; echo \"$GREETING\"") == (
        "builder\n" + 2 * "hello  $HOME 'there'\n"
    )
    assert "the configuration's start script failed with status 3" in configured.console.recent(4096).decode()


def test_shares_are_where_the_configuration_wants_them(configured: Machine) -> None:
    assert told(configured, "cat /home/src/file /mnt/other/file") == 2 * "content\n"
    mounts = told(configured, "cat /proc/mounts").splitlines()
    assert [line.split()[3].split(",")[0] for line in mounts if line.startswith("src ")] == ["ro"]


def test_modules_are_found_by_hand_and_by_the_kernel(configured: Machine) -> None:
    told(configured, "modprobe msr && test -c /dev/cpu/0/msr")
    told(configured, "mkdir /tmp/o && mount -t overlay -o lowerdir=/etc:/tmp overlay /tmp/o")
    assert told(configured, "ls /tmp/o/apk") == told(configured, "ls /etc/apk")


def test_root_of_the_host_is_used_where_it_is(tree: Path, src: Path) -> None:
    before = {path: sorted(os.listdir(tree / path)) for path in (".", "mnt", "run", "dev", "usr/lib", "lib")}
    with emu.boot(kernel="generic", root=tree, root_over="9p", shares={"data": src}) as machine:
        machine.wait_prompt(BOOT_S)
        assert told(machine, "cat /mnt/data/file") == "content\n"
        told(machine, "echo from the guest >/etc/mark")
        assert (tree / "etc/mark").read_text() == "from the guest\n"
        machine.console.sendline("exit")
        assert machine.run_to_end(RUN_S) is StopReason.POWER_OFF
    assert {path: sorted(os.listdir(tree / path)) for path in before} == before


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4")
@pytest.mark.parametrize("kernel", ["generic", "cloud"])
def test_root_in_an_image_is_clean_after_the_guest(kernel: str, tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "root.img"
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, image, "64M"], check=True, capture_output=True)
    with emu.boot(kernel=kernel, root=image) as machine:
        machine.wait_prompt(BOOT_S)
        told(machine, "echo kept >/root/mark")
        machine.console.sendline("exit")
        assert machine.run_to_end(RUN_S) is StopReason.POWER_OFF
    check = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
    assert check.returncode == 0 and "recovering journal" not in check.stdout + check.stderr
    dumped = subprocess.run(["debugfs", "-R", "cat /root/mark", image], capture_output=True, text=True)
    assert dumped.stdout == "kept\n"
