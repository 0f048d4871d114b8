"""Copy-on-write overlays against a model, side by side on one image, saved and gone on with."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from devices.disk import SECTOR, Disk, DiskError, Image
from devices.overlay import CLUSTER, OVERLAY_HEADER, Overlay, branched, settle

SECTORS = 67                        # a bit over eight clusters; the last is not whole
SIZE = SECTORS * SECTOR
PLAIN = bytes(1 + i // SECTOR for i in range(SIZE))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An image that holds PLAIN."""
    path = tmp_path / "base.img"
    path.write_bytes(PLAIN)
    return path


def overlay_on(base: Path, path: Path | None = None, read_only: bool = False) -> Overlay:
    return Overlay(Image(base, read_only=True), path, read_only)


def read(disk: Overlay | Image, offset: int = 0, size: int = SIZE) -> bytes:
    buffer = bytearray(b"\xa5" * size)
    disk.read(offset, [memoryview(buffer)[: size // 3], memoryview(buffer)[size // 3 :]])
    return bytes(buffer)


def changed(*writes: tuple[int, bytes]) -> bytes:
    data = bytearray(PLAIN)
    for offset, new in writes:
        data[offset : offset + len(new)] = new
    return bytes(data)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_fresh_overlay_reads_as_its_base(base: Path) -> None:
    overlay = overlay_on(base)
    assert overlay.size == SIZE
    assert read(overlay) == PLAIN
    overlay.close()


def test_overlays_of_one_base_do_not_see_each_other(base: Path) -> None:
    first, second = overlay_on(base), overlay_on(base)
    first.write(CLUSTER + 100, [b"one"])
    second.write(CLUSTER + 102, [b"two"])
    assert read(first) == changed((CLUSTER + 100, b"one"))
    assert read(second) == changed((CLUSTER + 102, b"two"))
    first.close()
    second.close()
    assert base.read_bytes() == PLAIN


def test_room_is_taken_only_for_what_is_written(tmp_path: Path) -> None:
    big = tmp_path / "big.img"
    big.touch()
    os.truncate(big, 1 << 36)
    overlay = overlay_on(big, tmp_path / "o")
    overlay.write((1 << 36) - 512, [b"x" * 512])
    overlay.flush()
    assert (tmp_path / "o").stat().st_blocks * SECTOR <= 64 * 1024
    overlay.close()


def test_whole_clusters_are_written_without_a_look_at_the_base(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = overlay_on(base)
    monkeypatch.setattr(os, "preadv", None)
    overlay.write(CLUSTER, [b"x" * CLUSTER, b"y" * CLUSTER])
    monkeypatch.undo()
    assert read(overlay) == changed((CLUSTER, b"x" * CLUSTER + b"y" * CLUSTER))
    overlay.close()


def test_discarded_clusters_read_as_zeros_and_give_room_back(base: Path, tmp_path: Path) -> None:
    overlay = overlay_on(base, tmp_path / "o")
    overlay.write(0, [b"x" * SIZE])
    overlay.flush()
    before = (tmp_path / "o").stat().st_blocks
    overlay.discard(0, 4 * CLUSTER)
    assert (tmp_path / "o").stat().st_blocks * SECTOR <= before * SECTOR - 4 * CLUSTER
    assert read(overlay) == bytes(4 * CLUSTER) + b"x" * (SIZE - 4 * CLUSTER)
    overlay.close()


def test_discard_hides_the_base_where_the_host_cannot_punch_holes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devices.overlay.make_zero", lambda *arguments: False)
    overlay = overlay_on(base)
    overlay.write(0, [b"x" * 2 * CLUSTER])
    overlay.discard(CLUSTER, SIZE - CLUSTER)
    assert read(overlay) == b"x" * CLUSTER + bytes(SIZE - CLUSTER)
    overlay.write(CLUSTER + 512, [b"y" * 512])
    assert read(overlay) == b"x" * CLUSTER + bytes(512) + b"y" * 512 + bytes(SIZE - CLUSTER - 1024)
    overlay.close()


def test_a_failed_write_leaves_what_was_there(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(fd: int, views: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    overlay = overlay_on(base)
    monkeypatch.setattr(os, "pwritev", no_room)
    with pytest.raises(OSError):
        overlay.write(0, [b"x" * SIZE])
    monkeypatch.undo()
    assert read(overlay) == PLAIN
    overlay.close()


def test_a_temporary_overlay_leaves_nothing_behind(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    before = descriptors()
    overlay = overlay_on(base)
    overlay.write(0, [b"x" * SIZE])
    assert list(directory.iterdir()) == []
    overlay.close()
    assert descriptors() <= before


def test_flushing_a_temporary_overlay_waits_for_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = overlay_on(base)
    overlay.write(0, [b"x"])
    monkeypatch.setattr(os, "fdatasync", None)
    overlay.flush()
    overlay.close()


# --- files with a name ----------------------------------------------------------------------------------------------


def test_a_named_overlay_is_gone_on_with(base: Path, tmp_path: Path) -> None:
    overlay = overlay_on(base, tmp_path / "o")
    overlay.write(100, [b"data"])
    overlay.write_zeroes(CLUSTER, CLUSTER, True)
    overlay.close()
    expected = changed((100, b"data"), (CLUSTER, bytes(CLUSTER)))
    again = overlay_on(base, tmp_path / "o")
    assert read(again) == expected
    again.write(200, [b"more"])
    again.close()
    once_more = overlay_on(base, tmp_path / "o", read_only=True)
    assert read(once_more) == changed((100, b"data"), (200, b"more"), (CLUSTER, bytes(CLUSTER)))
    once_more.close()


def test_what_was_flushed_survives_without_a_close(base: Path, tmp_path: Path) -> None:
    overlay = overlay_on(base, tmp_path / "o")
    overlay.write(100, [b"flushed"])
    overlay.flush()
    overlay.write(2 * CLUSTER, [b"not flushed"])
    (tmp_path / "after").write_bytes((tmp_path / "o").read_bytes())
    survivor = overlay_on(base, tmp_path / "after")
    assert read(survivor) == changed((100, b"flushed"))
    survivor.close()
    overlay.close()


def test_clusters_are_on_the_storage_before_the_map_says_so(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail between any two of these steps."""
    steps: list[str] = []
    overlay = overlay_on(base, tmp_path / "o")
    real_write = os.pwritev

    def pwritev(fd: int, views: list[memoryview], offset: int) -> int:
        steps.append("map" if offset < 2 * CLUSTER else "cluster")
        return real_write(fd, views, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fdatasync", lambda fd: steps.append("sync"))
    overlay.write(3 * CLUSTER, [b"x"])
    overlay.flush()
    overlay.write(3 * CLUSTER, [b"y"])
    overlay.flush()
    assert steps == ["cluster", "sync", "map", "sync", "cluster", "sync"]
    overlay.close()


def test_a_map_that_could_not_be_written_is_written_by_the_next_flush(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = overlay_on(base, tmp_path / "o")
    overlay.write(0, [b"x"])

    def no_room(fd: int, views: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", no_room)
    with pytest.raises(OSError):
        overlay.flush()
    monkeypatch.undo()
    overlay.flush()
    (tmp_path / "after").write_bytes((tmp_path / "o").read_bytes())
    survivor = overlay_on(base, tmp_path / "after")
    assert read(survivor) == changed((0, b"x"))
    survivor.close()
    overlay.close()


def test_a_read_only_overlay_refuses_writes_and_is_shared(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay_on(base, tmp_path / "o").close()
    monkeypatch.setattr(os, "fdatasync", None)          # which has nothing to do
    first, second = (overlay_on(base, tmp_path / "o", read_only=True) for _ in range(2))
    requests: tuple[Callable[[], None], ...] = (
        lambda: first.write(0, [b"x"]), lambda: first.discard(0, CLUSTER), lambda: first.write_zeroes(0, 512, False)
    )
    for request in requests:
        with pytest.raises(OSError) as caught:
            request()
        assert caught.value.errno == errno.EROFS
    assert read(first) == PLAIN
    first.close()
    second.close()


def test_a_copy_is_gone_on_with_any_number_of_times(base: Path, tmp_path: Path) -> None:
    overlay = overlay_on(base)
    overlay.write(100, [b"before"])
    overlay.discard(3 * CLUSTER, CLUSTER)
    overlay.copy_to(tmp_path / "copy")
    overlay.write(100, [b"after!"])
    overlay.close()
    expected = changed((100, b"before"), (3 * CLUSTER, bytes(CLUSTER)))
    digest = hashlib.sha256((tmp_path / "copy").read_bytes()).digest()
    clones = [Overlay(overlay_on(base, tmp_path / "copy", read_only=True)) for _ in range(3)]
    for i, clone in enumerate(clones):
        assert read(clone) == expected
        clone.write(0, [bytes((i,)) * SIZE])
        clone.write_zeroes(CLUSTER, CLUSTER, True)
    for i, clone in enumerate(clones):
        assert read(clone, 0, CLUSTER) == bytes((i,)) * CLUSTER
        clone.close()
    assert hashlib.sha256((tmp_path / "copy").read_bytes()).digest() == digest


def test_a_copy_needs_only_the_image_below_all_overlays(base: Path, tmp_path: Path) -> None:
    lower = overlay_on(base)
    lower.write(0, [b"lower"])
    lower.write(5 * CLUSTER, [b"hidden"])
    upper = Overlay(lower)
    upper.write(5 * CLUSTER, [b"upper!"])
    upper.discard(2 * CLUSTER, CLUSTER)
    expected = read(upper)
    upper.copy_to(tmp_path / "copy")
    upper.close()
    copy = overlay_on(base, tmp_path / "copy", read_only=True)
    assert read(copy) == expected == changed(
        (0, b"lower"), (5 * CLUSTER, b"upper!"), (2 * CLUSTER, bytes(CLUSTER))
    )
    copy.close()


def test_a_copy_replaces_no_file(base: Path, tmp_path: Path) -> None:
    overlay = overlay_on(base)
    with pytest.raises(DiskError, match="exists"):
        overlay.copy_to(base)
    overlay.close()
    assert base.read_bytes() == PLAIN


def test_a_copy_that_fails_leaves_no_file(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(fd: int, views: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    overlay = overlay_on(base)
    monkeypatch.setattr(os, "pwritev", no_room)
    with pytest.raises(OSError):
        overlay.copy_to(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    overlay.close()


# --- what is no overlay ---------------------------------------------------------------------------------------------


def complaint(base: Path, path: Path, read_only: bool = False) -> str:
    before = descriptors()
    content = path.read_bytes() if path.is_file() else None
    with pytest.raises(DiskError) as caught:
        overlay_on(base, path, read_only)
    assert descriptors() <= before, "a descriptor was left open"
    if content is not None:
        assert path.read_bytes() == content
    return str(caught.value)


def test_another_file_is_not_made_an_overlay(base: Path, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("Dear reader")
    assert "is not a disk overlay" in complaint(base, tmp_path / "letter")


def test_an_empty_file_is_no_overlay_to_read_from(base: Path, tmp_path: Path) -> None:
    (tmp_path / "o").touch()
    assert "is not a disk overlay" in complaint(base, tmp_path / "o", read_only=True)


def test_an_overlay_of_another_base(base: Path, tmp_path: Path) -> None:
    overlay_on(base, tmp_path / "o").close()
    os.truncate(base, SIZE + 512)
    assert f"for a base of {SIZE} bytes; this one has {SIZE + 512}" in complaint(base, tmp_path / "o")


def test_an_overlay_of_a_newer_version(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "o"
    overlay_on(base, path).close()
    magic, version, cluster, size = OVERLAY_HEADER.unpack(path.read_bytes()[: OVERLAY_HEADER.size])
    path.write_bytes(OVERLAY_HEADER.pack(magic, version + 1, cluster, size) + path.read_bytes()[OVERLAY_HEADER.size :])
    assert "has version 2" in complaint(base, path)


@pytest.mark.parametrize("size", [OVERLAY_HEADER.size, CLUSTER + 3, 4 * CLUSTER])
def test_an_overlay_cut_off(base: Path, tmp_path: Path, size: int) -> None:
    overlay_on(base, tmp_path / "o").close()
    os.truncate(tmp_path / "o", size)
    assert "is damaged" in complaint(base, tmp_path / "o")


def test_an_overlay_with_a_map_of_nonsense(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "o"
    overlay_on(base, path).close()
    with path.open("r+b") as file:
        file.seek(CLUSTER + 2)
        file.write(b"\x07")
    assert "is damaged" in complaint(base, path)


def test_an_overlay_in_use(base: Path, tmp_path: Path) -> None:
    overlay = overlay_on(base, tmp_path / "o")
    assert "in use by another machine" in complaint(base, tmp_path / "o")
    overlay.close()


def test_the_base_cannot_be_its_own_overlay(base: Path) -> None:
    assert "in use" in complaint(base, base)


def test_the_base_cannot_be_opened_for_writing_under_an_overlay(base: Path) -> None:
    overlay = overlay_on(base)
    with pytest.raises(DiskError):
        Image(base)
    overlay.close()


def test_a_directory_without_room_for_a_temporary_file(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with pytest.raises(DiskError, match="cannot make a temporary disk overlay"):
        overlay_on(base)
    assert descriptors() <= before


# --- against a model ------------------------------------------------------------------------------------------------

OFFSETS = st.integers(0, SECTORS - 1).map(lambda sector: sector * SECTOR)
SIZES = st.one_of(st.integers(1, 8), st.integers(1, SECTORS)).map(lambda sectors: sectors * SECTOR)


class OverlaysBesideEachOther(RuleBasedStateMachine):
    """Two overlays on one image, one of them named and at times closed or copied, and a bytearray for each."""

    directory: Path
    base: Path

    @initialize()
    def begin(self) -> None:
        self.named_path = self.directory / "named"
        self.named_path.unlink(missing_ok=True)
        self.disks = [overlay_on(self.base), overlay_on(self.base, self.named_path)]
        self.models = [bytearray(PLAIN), bytearray(PLAIN)]

    @rule(which=st.integers(0, 1), offset=OFFSETS, size=SIZES, fill=st.integers(100, 255), cut=st.integers(0, 5000))
    def write(self, which: int, offset: int, size: int, fill: int, cut: int) -> None:
        data = bytes((fill,)) * min(size, SIZE - offset)
        self.disks[which].write(offset, [data[:cut], data[cut:]])
        self.models[which][offset : offset + len(data)] = data

    @rule(which=st.integers(0, 1), offset=OFFSETS, size=SIZES, unmap=st.booleans())
    def write_zeroes(self, which: int, offset: int, size: int, unmap: bool) -> None:
        size = min(size, SIZE - offset)
        self.disks[which].write_zeroes(offset, size, unmap)
        self.models[which][offset : offset + size] = bytes(size)

    @rule(which=st.integers(0, 1), offset=OFFSETS, size=SIZES)
    def discard(self, which: int, offset: int, size: int) -> None:
        size = min(size, SIZE - offset)
        self.disks[which].discard(offset, size)
        now, model = read(self.disks[which], offset, size), self.models[which]
        assert all(new in (0, old) for new, old in zip(now, model[offset : offset + size], strict=True))
        model[offset : offset + size] = now

    @rule(which=st.integers(0, 1), offset=OFFSETS, size=SIZES)
    def read_a_part(self, which: int, offset: int, size: int) -> None:
        size = min(size, SIZE - offset)
        assert read(self.disks[which], offset, size) == self.models[which][offset : offset + size]

    @rule(which=st.integers(0, 1))
    def flush(self, which: int) -> None:
        self.disks[which].flush()

    @rule()
    def close_and_go_on(self) -> None:
        self.disks[1].close()
        self.disks[1] = overlay_on(self.base, self.named_path)

    @rule()
    def copy_and_go_on(self) -> None:
        copy = self.directory / "copy"
        copy.unlink(missing_ok=True)
        self.disks[0].copy_to(copy)
        self.disks[0].close()
        self.disks[0] = Overlay(overlay_on(self.base, copy, read_only=True))

    @invariant()
    def both_read_as_their_models(self) -> None:
        for disk, model in zip(getattr(self, "disks", ()), getattr(self, "models", ()), strict=True):
            assert read(disk) == model

    def teardown(self) -> None:
        for disk in getattr(self, "disks", ()):
            disk.close()
        assert self.base.read_bytes() == PLAIN


def test_overlays_agree_with_a_model(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)

    class Machine(OverlaysBesideEachOther):
        pass

    Machine.base, Machine.directory = base, tmp_path
    examples = max(int(os.environ.get("EMU_FUZZ_EXAMPLES", "0")) // 50, 30)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples, stateful_step_count=25, deadline=None,
            suppress_health_check=list(HealthCheck), database=None,
        ),
    )


# -- processes that fork -----------------------------------------------------------------------------------------------


class Clone:
    """A disk of a process, and what it should hold. A fork of the process is a copy of the object whose descriptors
    are other numbers, as they are in another table.
    """

    def __init__(self, disk: Overlay, content: bytes) -> None:
        self.disk = disk
        self.content = bytearray(content)

    def write(self, offset: int, data: bytes) -> None:
        self.disk.write(offset, [data])
        self.content[offset : offset + len(data)] = data

    def fork(self) -> Clone:
        settle(self.disk)
        child = branched(duplicate(self.disk))
        assert isinstance(child, Overlay)
        return Clone(child, bytes(self.content))

    def check(self) -> None:
        assert read(self.disk, 0, len(self.content)) == bytes(self.content)


def duplicate(disk: Disk) -> Disk:
    """What a forked process has in place of a disk."""
    twin = copy(disk)
    twin._fd = os.dup(disk._fd)             # type: ignore[attr-defined]
    if isinstance(twin, Overlay):
        twin._map = bytearray(twin._map)
        twin.base = duplicate(twin.base)
    return twin


def layers(disk: Disk) -> int:
    return 1 + layers(disk.base) if isinstance(disk, Overlay) else 0


def test_parent_and_child_do_not_see_each_others_writes(base: Path) -> None:
    parent = Clone(overlay_on(base), PLAIN)
    parent.write(100, b"before")
    first = parent.fork()
    parent.write(200, b"parent")
    first.write(200, b"first!")
    second = parent.fork()
    parent.write(104, b"again")
    second.write(3 * CLUSTER - 2, b"across")
    grandchild = first.fork()
    first.write(0, b"1")
    grandchild.write(0, b"2")
    for clone in (parent, first, second, grandchild):
        clone.check()
        clone.disk.close()
    assert base.read_bytes() == PLAIN


def test_a_fresh_disk_takes_no_layer_more_for_another_fork(base: Path) -> None:
    parent = Clone(overlay_on(base), PLAIN)
    children = [parent.fork() for _ in range(5)]
    assert layers(parent.disk) == 1 and all(layers(child.disk) == 1 for child in children)
    parent.write(0, b"x")
    children += [parent.fork() for _ in range(5)]
    assert layers(parent.disk) == 2
    for clone in (parent, *children):
        clone.check()
        clone.disk.close()


@pytest.mark.parametrize("spread", [1, 37])
def test_the_chain_stays_short_over_many_forks(tmp_path: Path, spread: int) -> None:
    """Of a parent that writes before each, and of a child of a child of a child."""
    size, rounds = 1 << 20, 200
    (tmp_path / "big.img").write_bytes(bytes(size))
    parent = Clone(overlay_on(tmp_path / "big.img"), bytes(size))
    before = len(descriptors())
    for number in range(rounds):
        parent.write(number * spread * 512 % size, b"%06d" % number)
        child = parent.fork()
        child.check()
        child.disk.close()
        assert layers(parent.disk) <= 10
    parent.check()
    assert len(descriptors()) - before <= 10
    line = parent
    for number in range(rounds):
        line.write(number * spread * 512 % size, b"%06d" % -number)
        child = line.fork()
        line.disk.close()
        line = child
        assert layers(line.disk) <= 10
    line.check()
    line.disk.close()


def test_discarded_clusters_stay_zero_in_a_merged_layer(base: Path) -> None:
    parent = Clone(overlay_on(base), PLAIN)
    parent.write(0, b"x" * 3 * CLUSTER)
    parent.fork().disk.close()
    for first in (CLUSTER, 4 * CLUSTER):
        parent.disk.discard(first, CLUSTER)
        parent.content[first : first + CLUSTER] = bytes(CLUSTER)
        parent.fork().disk.close()
    assert layers(parent.disk) == 2
    parent.check()
    parent.disk.close()


def test_a_snapshot_of_a_fork_has_all_layers(base: Path, tmp_path: Path) -> None:
    parent = Clone(overlay_on(base), PLAIN)
    for number in range(4):
        parent.write(number * CLUSTER, b"%d" % number * (5000 - number))
        child = parent.fork()
    child.write(10, b"own")
    child.disk.copy_to(tmp_path / "saved")
    assert read(overlay_on(base, tmp_path / "saved", read_only=True)) == bytes(child.content)
    for clone in (parent, child):
        clone.disk.close()


def test_what_cannot_have_a_layer_of_its_own_is_refused(base: Path, tmp_path: Path) -> None:
    image = Image(base)
    with pytest.raises(DiskError, match="written in place cannot be forked"):
        settle(image)
    image.close()
    named = overlay_on(base, tmp_path / "named")
    with pytest.raises(DiskError, match=r"named cannot be forked; only temporary ones can$"):
        settle(named)
    named.close()
    shared = Image(base, read_only=True)
    settle(shared)
    assert branched(shared) is shared
    shared.close()


@pytest.mark.parametrize("at", ["file", "merge"])
def test_a_disk_goes_on_where_there_is_no_room_for_another_layer(
    base: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    parent = Clone(overlay_on(base), PLAIN)
    parent.write(0, b"one")
    parent.fork().disk.close()
    parent.write(0, b"two")

    def no_room(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile" if at == "file" else "devices.overlay.write_views", no_room)
        for _ in range(3):
            with pytest.raises(DiskError, match="No space left on device"):
                settle(parent.disk)
    assert descriptors() == before
    parent.check()
    parent.write(5, b"three")
    child = parent.fork()
    for clone in (parent, child):
        clone.check()
        clone.disk.close()
