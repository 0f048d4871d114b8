"""A snapshot that cannot be restored: whoever asks is told why in one line, and nothing is started, left or changed."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emu
from devices.disk import Image
from emu import __version__
from emu.cli import main
from emu.errors import EmuError
from emu.fittings import DiskImage, Fittings, Share
from emu.machine import Machine
from emu.memory import MIB
from emu.snapshot import header as headers
from emu.snapshot.files import file_digest
from emu.snapshot.pages import PAGE
from emu.snapshot.ram import trailer
from tests.snapshot.snapshots import copy_snapshots
from tests.support.descriptors import open_files

SIZE = 64 * MIB
NOBODY = 65534
WINDOW = 64                             # bytes of the header that are changed together


@dataclass(frozen=True)
class Host:
    """A directory with snapshots, and what their machine had: a share, disks, files, a console, sockets.

    Attributes:
        whole: a snapshot.
        next: one that builds on it.
        other: of the same machine, at another time.
    """

    path: Path

    @property
    def whole(self) -> Path:
        return self.path / "whole.snap"

    @property
    def next(self) -> Path:
        return self.path / "next.snap"

    @property
    def other(self) -> Path:
        return self.path / "other.snap"

    @property
    def socket(self) -> Path:
        """In a directory of its own, whose time changes when a socket file was there."""
        directory = self.path.with_name(f"{self.path.name}.sockets")
        directory.mkdir(exist_ok=True)
        return directory / "socket"


def fill(machine: Machine, letter: bytes) -> None:
    machine.memory.write(MIB, 100 * PAGE * letter)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    host = Host(tmp_path_factory.mktemp("host"))
    for name in "share", "files":
        (host.path / name).mkdir()
    for name in "disk", "layered":
        (host.path / name).write_bytes(name.encode() * 4096)
    fittings = Fittings(
        {"data": Share(host.path / "share")},
        (DiskImage(host.path / "disk"), DiskImage(host.path / "layered", overlay=True)),
        vsock=True, hvc=True, files=Share(host.path / "files"),
    )  # fmt: skip
    with Machine(SIZE, fittings) as machine:
        fill(machine, b"a")
        machine.snapshot(host.whole)
        fill(machine, b"b")
        machine.snapshot(host.other)
    with emu.restore(host.whole) as machine:
        fill(machine, b"c")
        machine.snapshot(host.next, incremental=True)
    return host


@pytest.fixture
def copy(host: Host, tmp_path: Path) -> Host:
    """Copies of the snapshots, to be damaged."""
    for path in host.whole, host.next, host.other:
        copy_snapshots(path, tmp_path / path.name)
    return Host(tmp_path)


def on_disk(*directories: Path) -> dict[str, tuple[object, ...]]:
    """Every file below some directories: which it is, its kind and rights, size, times, and contents."""
    found = {}
    for directory in directories:
        for path in sorted([directory, *directory.rglob("*")]):
            status = path.lstat()
            found[os.fspath(path)] = (
                status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
                file_digest(path) if path.is_file() else "",
            )
    return found


@pytest.fixture(scope="module", autouse=True)
def old_objects_are_no_garbage() -> Iterator[None]:
    """`held` collects garbage some thousand times: not also that of all tests before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held() -> tuple[list[str], list[str], int, str]:
    """What this process holds: descriptors, locks, threads, children."""
    descriptors = []
    for name in open_files():
        try:
            descriptors.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:       # the one that listed them
            pass
    locks = [line for line in Path("/proc/locks").read_text().splitlines() if f" {os.getpid()} " in line]
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    started = children.read_text() if children.exists() else ""
    return sorted(descriptors), sorted(locks), threading.active_count(), started


def refused_by_restore(path: Path, **options: Any) -> str:
    """What `emu.restore` raises, which is one line."""
    with pytest.raises(EmuError) as caught:
        emu.restore(path, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def refused(host: Host, path: Path, capfd: pytest.CaptureFixture[str], *directories: Path) -> str:
    """The message with which each way to restore a snapshot refuses; nothing is left and nothing has changed.

    Args:
        host: where a socket file would be made.
        path: of the snapshot.
        capfd: what the commands say.
        directories: looked at besides the host's.
    """
    before = held(), on_disk(host.path, *directories)
    message = refused_by_restore(path, vsock=host.socket)
    for words in ["restore", path], ["exec", "--snapshot", path, "--", "true"]:
        assert main([*map(str, words[:1]), "--vsock", str(host.socket), *map(str, words[1:])]) == 2
        out, err = capfd.readouterr()
        assert (out, err) == ("", f"emu: {message}\n")
    assert (held(), on_disk(host.path, *directories)) == before
    assert not host.socket.exists()
    return message


def test_the_snapshots_themselves_are_good(host: Host) -> None:
    for path, letter in (host.whole, b"a"), (host.next, b"c"), (host.other, b"b"):
        before = on_disk(host.path)
        with emu.restore(path, vsock=host.socket) as machine:
            assert host.socket.is_socket()
            assert machine.memory.read(MIB, PAGE) == PAGE * letter
            fill(machine, b"x")
        assert not host.socket.exists()
        assert on_disk(host.path) == before


# --- the header ---------------------------------------------------------------------------------------------------


def flip(path: Path, start: int, size: int, bits: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + size] = (a ^ b for a, b in zip(content[start : start + size], bits, strict=False))
    path.write_bytes(content)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_of_the_header_changed_are_noticed(copy: Host, data: st.DataObject) -> None:
    content = (copy.whole / "header.json").read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    bits = data.draw(st.binary(min_size=1, max_size=min(1000, len(content) - start)).filter(any))
    before = held()
    flip(copy.whole / "header.json", start, len(bits), bits)
    try:
        message = refused_by_restore(copy.whole, vsock=copy.socket)
    finally:
        (copy.whole / "header.json").write_bytes(content)
    assert "header.json" in message
    assert held() == before and not copy.socket.exists()


def test_every_part_of_the_header_counts(copy: Host) -> None:
    path = copy.whole / "header.json"
    content, before = path.read_bytes(), held()
    for start in range(0, len(content), WINDOW):
        path.write_bytes(content)
        flip(path, start, WINDOW, b"\x80" * WINDOW)
        assert "header.json" in refused_by_restore(copy.whole, vsock=copy.socket)
    assert held() == before and not copy.socket.exists()


def test_another_version_is_refused(copy: Host, capfd: pytest.CaptureFixture[str]) -> None:
    path = copy.whole / "header.json"
    for version in headers.VERSION + 1, headers.VERSION - 1:
        content = path.read_bytes()
        path.write_bytes(re.sub(rb'"version": \d+', b'"version": %d' % version, content, count=1))
        assert f"in version {version} of the format" in refused(copy, copy.whole, capfd)
        path.write_bytes(content)


def sign(directory: Path, change: Callable[[Any], object]) -> None:
    """Change a header's sections, and make all checksums what they ought to be."""
    path = directory / "header.json"
    sections = json.loads(b"{" + path.read_bytes().partition(b"\n")[2])
    change(sections)
    rest = ",\n".join(f'"{name}": {headers._dump(sections[name])}' for name in ("header", "state")) + "}\n"
    digest = headers._digest(str(headers.VERSION), __version__, rest.encode())
    first = f'"version": {headers.VERSION}, "creator": "{__version__}", "sha256": "{digest}"'
    path.write_text(f'{{"format": "pvemu snapshot", {first},\n{rest}')
    with open(directory / "ram", "r+b") as ram:
        ram.seek(-PAGE, os.SEEK_END)
        ram.write(trailer(sections["header"]["id"], digest))


def item(sections: Any, *place: str | int) -> Any:
    for name in place:
        sections = sections[name]
    return sections


def put(*place: str | int, value: Any) -> Callable[[Any], None]:
    """What puts a value somewhere into the sections."""
    def change(sections: Any) -> None:
        item(sections, *place[:-1])[place[-1]] = value
    return change


FUNCTIONS = "state", "board", "peripherals", "functions"
WELL_SIGNED: list[tuple[str, Callable[[Any], object], str]] = [
    ("memory", put("state", "memory", value=2 * SIZE), "its RAM has another size than its machine"),
    ("no disk", lambda s: s["state"]["plugged"]["disks"].pop(), "its devices are not those that it says were plugged"),
    ("a console", put("state", "fittings", "hvc", value=False), "its devices are not those that it says"),
    ("no channel", put("state", "channel", value=None), "its devices are not those that it says"),
    ("no function", lambda s: item(s, *FUNCTIONS).pop(), "its devices are not those that it says"),
    ("a queue", lambda s: item(s, *FUNCTIONS, 0, "common", "queues").append(
        item(s, *FUNCTIONS, 0, "common", "queues", 0)), "a virtio device has 1 queues, and had 2"),
    ("a vector", put(*FUNCTIONS, 0, "common", "queues", 0, "vector", value=9), "has 2 vectors, and used vector 9"),
    ("vectors", put(*FUNCTIONS, 0, "msix", "table", value=""), "an MSI-X table of 0 bytes for 2 vectors"),
    ("configuration", put(*FUNCTIONS, 0, "function", "config", value=""), "0 bytes of configuration space"),
    ("a clock's page", put("state", "board", "kvmclock", "page", value=1 << 40), "are not RAM"),
    ("a clock's time", put("state", "board", "kvmclock", "tsc", value=1 << 64), "a time that kvmclock cannot show"),
    ("a clock that stands", put("state", "board", "kvmclock", "hz", value=0), "a TSC of 0 Hz"),
    ("a mailbox", put("state", "board", "hypercalls", "results", value=[[1, 1 << 64]]), "that no register holds"),
    ("a disk's size", put("state", "plugged", "disks", 0, "size", value=512), "the disk was"),
    ("fids", put("state", "plugged", "shares", 0, "fids", value=2 * [
        {"number": 1, "uid": 0, "path": [], "identity": [0, 0, 0], "flags": None, "stamp": None, "listing": None,
         "xattr": None, "locks": []}]), "two fids with one number"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in WELL_SIGNED], ids=[row[0] for row in WELL_SIGNED])
def test_a_state_that_cannot_be_is_refused_though_its_checksum_is_right(
    host: Host, copy: Host, capfd: pytest.CaptureFixture[str], change: Callable[[Any], object], message: str
) -> None:
    sign(copy.whole, change)
    assert message in refused(copy, copy.whole, capfd, host.path)


VALUES = (
    None, True, False, -1, 0, 1, 2, 255, 4095, 1 << 16, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1, 1 << 64,
    "", "x", "/no/where", "AAAA", [], [0], [[]], {}, 1.5,
)


def places(value: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where there is anything; of a list, in its first elements."""
    if above:
        yield above
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], *above, name)
    elif isinstance(value, list):
        for number, element in enumerate(value[:10]):
            yield from places(element, *above, number)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_state_with_any_value_in_any_place_is_restored_or_refused(copy: Host, data: st.DataObject) -> None:
    path = copy.whole / "header.json"
    content = path.read_bytes()
    state = json.loads(b"{" + content.partition(b"\n")[2])["state"]
    before = held()
    place = data.draw(st.sampled_from(list(places(state))))
    sign(copy.whole, put("state", *place, value=data.draw(st.sampled_from(VALUES))))
    try:
        with emu.restore(copy.whole, vsock=copy.socket) as machine:
            machine.save()
    except EmuError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(content)
    assert held() == before and not copy.socket.exists()


# --- files --------------------------------------------------------------------------------------------------------

FILES = "header.json", "ram", "files/disk1.overlay"


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_noticed(copy: Host, capfd: pytest.CaptureFixture[str], name: str) -> None:
    path = copy.whole / name
    size = path.stat().st_size
    for less in 1, size // 2, size - 1, size:
        kept = copy_snapshots(copy.whole, copy.path / "kept")
        os.truncate(path, size - less)
        assert name in refused(copy, copy.whole, capfd)
        shutil.rmtree(copy.whole)
        kept.rename(copy.whole)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("become", ["nothing", "a directory", "a pipe", "a link that leads nowhere"])
def test_a_file_that_is_none_is_noticed(
    copy: Host, capfd: pytest.CaptureFixture[str], name: str, become: str
) -> None:
    path = copy.whole / name
    path.unlink()
    if become == "a directory":
        path.mkdir()
    elif become == "a pipe":
        os.mkfifo(path)
    elif become != "nothing":
        path.symlink_to("nowhere")
    assert name in refused(copy, copy.whole, capfd)


@pytest.mark.parametrize("name", ["header.json", "ram"])
def test_a_file_of_another_snapshot_is_noticed(copy: Host, capfd: pytest.CaptureFixture[str], name: str) -> None:
    os.replace(copy.other / name, copy.whole / name)
    assert "belongs to another snapshot" in refused(copy, copy.whole, capfd)


@pytest.mark.parametrize("become", ["nothing", "empty", "a file", "a link that leads nowhere", "a loop of links"])
def test_what_is_no_snapshot_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], become: str) -> None:
    path = tmp_path / "none.snap"
    if become == "empty":
        path.mkdir()
    elif become == "a file":
        path.write_bytes(b"mine")
    elif become != "nothing":
        path.symlink_to("none.snap" if become == "a loop of links" else "nowhere")
    assert os.fspath(tmp_path) in refused(Host(tmp_path), path, capfd)


@pytest.mark.parametrize("name", [".", "header.json", "ram", "files", "files/disk1.overlay"])
def test_what_may_not_be_read_is_told(copy: Host, name: str) -> None:
    """As a plain user: root may read everything."""
    for path in copy.path, *copy.path.parents[:2]:
        path.chmod(0o755)
    (copy.whole / name).chmod(0)
    before = on_disk(copy.path) if not os.getuid() else {}
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            if not os.getuid():
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                emu.restore(copy.whole)
            except EmuError as error:
                os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading) as told:
        message = told.read()
    assert message.endswith("Permission denied") and "\n" not in message
    assert not before or on_disk(copy.path) == before
    (copy.whole / name).chmod(0o755)


def test_contents_that_changed_are_told_by_verify(copy: Host, capfd: pytest.CaptureFixture[str]) -> None:
    for name, at in ("ram", MIB), ("files/disk1.overlay", 100):
        flip(copy.whole / name, at, 1, b"\1")
        before = held(), on_disk(copy.path)
        assert main(["restore", "--verify", str(copy.whole)]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.endswith(f"{name} is damaged: it does not have its checksum\n")
        assert (held(), on_disk(copy.path)) == before
        flip(copy.whole / name, at, 1, b"\1")


# --- what it builds on --------------------------------------------------------------------------------------------


def replace_base(host: Host) -> None:
    shutil.rmtree(host.whole)
    host.other.rename(host.whole)


BASES: list[tuple[str, Callable[[Host], object], str]] = [
    ("missing", lambda host: shutil.rmtree(host.whole), "cannot open the snapshot"),
    ("empty", lambda host: (shutil.rmtree(host.whole), host.whole.mkdir()), "is no snapshot: its header.json"),
    ("replaced", replace_base, "builds on a snapshot that"),
    ("cut", lambda host: os.truncate(host.whole / "ram", SIZE), "ram has 67108864 bytes"),
    ("header", lambda host: flip(host.whole / "header.json", 500, 1, b"\1"), "header.json is damaged"),
    ("ram", lambda host: os.replace(host.other / "ram", host.whole / "ram"), "belongs to another snapshot"),
]


@pytest.mark.parametrize(("damage", "message"), [each[1:] for each in BASES], ids=[each[0] for each in BASES])
def test_a_base_that_is_not_what_it_was_is_noticed(
    copy: Host, capfd: pytest.CaptureFixture[str], damage: Callable[[Host], object], message: str
) -> None:
    damage(copy)
    told = refused(copy, copy.next, capfd)
    assert message in told and "builds on" in told


# --- what the machine had -----------------------------------------------------------------------------------------


@contextmanager
def instead(path: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Something else, or nothing, in the place of a file or directory."""
    kept = path.with_name(f"{path.name}.kept")
    path.rename(kept)
    try:
        make(path)
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        kept.rename(path)


def nothing(_path: Path) -> None:
    """Leave the place empty."""


MISSING: list[tuple[str, Callable[[Path], object], str]] = [
    ("share", nothing, "/share is no directory"),
    ("share", Path.touch, "/share is no directory"),
    ("files", nothing, "/files is no directory"),
    ("disk", nothing, "No such file or directory"),
    ("disk", Path.mkdir, "disk"),
    ("disk", lambda path: path.write_bytes(bytes(4096)), "the disk was 16384 bytes and is 4096 bytes"),
    ("layered", nothing, "No such file or directory"),
    ("layered", lambda path: path.write_bytes(bytes(4096)), "is for a base of 28672 bytes; this one has 4096"),
]


@pytest.mark.parametrize(("name", "make", "message"), MISSING)
def test_what_the_machine_had_and_the_host_has_not_is_told(
    host: Host, capfd: pytest.CaptureFixture[str], name: str, make: Callable[[Path], object], message: str
) -> None:
    with instead(host.path / name, make):
        assert message in refused(host, host.whole, capfd)


def test_a_disk_that_somebody_uses_is_told(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    image = Image(host.path / "disk")
    try:
        assert "disk" in refused(host, host.whole, capfd)
    finally:
        image.close()


def test_a_place_for_the_socket_that_cannot_be_is_told(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as files:
        listening = files.enter_context(socket.socket(socket.AF_UNIX))
        for place in "no/where", "disk", "x" * 200, "taken":
            path = host.path / place
            if place == "taken":
                listening.bind(os.fspath(path))
                listening.listen()
                files.callback(path.unlink)
            before = held(), on_disk(host.path)
            message = refused_by_restore(host.whole, vsock=path)
            assert message.startswith(f"vsock: {path}: ")
            assert main(["restore", "--vsock", str(path), str(host.whole)]) == 2
            assert capfd.readouterr() == ("", f"emu: {message}\n")
            assert (held(), on_disk(host.path)) == before


UNKNOWN: list[tuple[list[str], str]] = [
    (["--share", "other=/tmp"], "has no share other: it has data"),
    (["--share", "data=/no/where"], "/no/where is no directory"),
    (["--files", "/no/where"], "/no/where is no directory"),
    (["--hypercalls", "/no/where.py"], "/no/where.py"),
    (["--memory", "128M"], "--memory is for the default guest"),
    (["--memory", "64M"], "--memory is for the default guest"),
]


@pytest.mark.parametrize(("words", "message"), UNKNOWN, ids=[" ".join(each[0]) for each in UNKNOWN])
def test_what_is_asked_for_and_cannot_be_had_is_told(
    host: Host, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = held(), on_disk(host.path)
    command = ["exec", "--snapshot", str(host.whole), "--vsock", str(host.socket), *words, "--", "true"]
    assert main(command) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("emu: ") and message in err and err.count("\n") == 1
    assert (held(), on_disk(host.path)) == before


# --- a save that fails --------------------------------------------------------------------------------------------


def works(path: Path, letter: bytes) -> None:
    with emu.restore(path) as machine:
        assert machine.memory.read(MIB, PAGE) == PAGE * letter


@contextmanager
def no_large_files() -> Iterator[None]:
    """As if the disk had no room for a file of more than 100 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_finds_no_room_leaves_the_old_one_and_the_machine(host: Host, copy: Host) -> None:
    with emu.restore(host.other) as machine:
        before = held(), on_disk(copy.path)
        with no_large_files(), pytest.raises(EmuError, match=r"cannot save .*whole.snap: File too large$"):
            machine.snapshot(copy.whole)
        assert (held(), on_disk(copy.path)[os.fspath(copy.whole)]) == (before[0], before[1][os.fspath(copy.whole)])
        assert {path.name for path in copy.path.iterdir()} == {"whole.snap", "next.snap", "other.snap"}
        fill(machine, b"d")
        machine.snapshot(copy.path / "later.snap")
    works(copy.path / "later.snap", b"d")
    works(copy.whole, b"a")


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount(8)")
def test_a_disk_that_fills_leaves_the_old_one_and_the_machine(host: Host, tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "none", disk], capture_output=True).returncode:
        pytest.skip("only root can make a small file system")
    try:
        path = disk / "x.snap"
        with emu.restore(host.whole) as machine:
            machine.snapshot(path)
            before = on_disk(path)
            fill(machine, b"e")
            with pytest.raises(EmuError, match=r"cannot save .*x.snap: No space left on device$"):
                machine.snapshot(path)
            assert on_disk(path) == before
            assert os.listdir(disk) == ["x.snap"]
            machine.snapshot(tmp_path / "elsewhere.snap")
        works(path, b"a")
        works(tmp_path / "elsewhere.snap", b"e")
    finally:
        subprocess.run(["umount", disk], check=True)
