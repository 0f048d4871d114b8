"""Power cuts under a writing guest: what may be left, who judges it, and a few cuts of the whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.powercut import MEDIA, TOOLS_MISSING, Victim, have_e2fsprogs
from bench.powercut_machine import BLOCK, WriteBack
from bench.powercut_steps import LONGEST, Step, Tree, damage, random_steps

SOURCE = random.Random(1).randbytes(2 * LONGEST)
STEPS = [
    Step("make", "a", 0, 100), Step("make", "b", 100, 9000), Step("grow", "a", 5000, 70), Step("swap", "b", 900, 30),
    Step("drop", "a"), Step("make", "c", 7, 1),
]  # fmt: skip
A, B, A_GROWN, B_SWAPPED = SOURCE[:100], SOURCE[100:9100], SOURCE[:100] + SOURCE[5000:5070], SOURCE[900:930]


@pytest.mark.parametrize(("durable", "found"), [
    (0, {}),
    (0, {"a": b""}),
    (1, {"a": A}),
    (1, {"a": A, "b": B[:4096]}),
    (2, {"a": A_GROWN[:150], "b": B}),
    (3, {"a": A_GROWN, "b": B, "new": B_SWAPPED[:7]}),
    (3, {"a": A_GROWN, "b": B, "new": B_SWAPPED}),
    (3, {"a": A_GROWN, "b": B_SWAPPED}),
    (4, {"b": B_SWAPPED}),
    (3, {"b": B_SWAPPED, "c": SOURCE[7:8]}),
])  # fmt: skip
def test_what_power_cut_during_a_later_step_leaves_is_no_damage(durable: int, found: Tree) -> None:
    assert damage(found, STEPS, durable, SOURCE) is None


@pytest.mark.parametrize(("durable", "found"), [
    (1, {}),
    (1, {"a": A[:99]}),
    (1, {"a": bytes(100)}),
    (2, {"a": A}),
    (2, {"a": A_GROWN[:99], "b": B}),
    (2, {"a": A_GROWN[:120] + bytes(10), "b": B}),
    (3, {"a": A_GROWN, "b": B_SWAPPED[:7]}),
    (3, {"a": A_GROWN}),
    (4, {"a": A, "b": B_SWAPPED}),
    (5, {"a": A_GROWN, "b": B_SWAPPED}),
    (4, {"b": B, "c": SOURCE[7:8]}),
    (6, {"b": B_SWAPPED, "c": SOURCE[7:8], "new": b""}),
])  # fmt: skip
def test_lost_torn_and_left_over_files_are_damage(durable: int, found: Tree) -> None:
    assert damage(found, STEPS, durable, SOURCE)


def test_damage_is_told_by_name() -> None:
    assert "b: nothing instead of 9000 bytes" in str(damage({"a": A}, STEPS, 2, SOURCE))


@settings(max_examples=20)
@given(st.integers(), st.integers(0, 10))
def test_steps_can_all_be_done_and_leave_no_damage(seed: int, ahead: int) -> None:
    steps = random_steps(random.Random(seed), 20, len(SOURCE))
    tree: Tree = {}
    for number, step in enumerate(steps, 1):
        tree = step.after(tree, SOURCE)
        assert damage(tree, steps, max(number - ahead, 0), SOURCE) is None


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(16 * BLOCK))
    return path


@pytest.mark.parametrize("seed", range(10))
def test_write_cache_reads_as_written_and_is_a_disk_of_its_own_until_flushed(image: Path, seed: int) -> None:
    rng = random.Random(seed)
    disk = WriteBack(image, rng=rng)
    model = bytearray(disk.size)
    for _ in range(30):
        offset, size = 512 * rng.randrange(16), 512 * rng.randrange(1, 100)
        data = rng.randbytes(size)
        disk.write(offset, [data[: size // 2], data[size // 2 :]])
        model[offset : offset + size] = data
        read = bytearray(disk.size)
        disk.read(0, [memoryview(read)[:700], memoryview(read)[700:]])
        assert read == model
    disk.flush()
    assert image.read_bytes() == model
    disk.close()


def test_write_cache_loses_what_was_not_flushed(image: Path) -> None:
    disk = WriteBack(image, rng=random.Random(2))
    disk.write(0, [b"1" * BLOCK])
    disk.flush()
    for number in range(1, 12):
        disk.write(number * BLOCK, [b"2" * BLOCK])
    disk.close()
    left = image.read_bytes()
    assert left.startswith(b"1" * BLOCK)
    assert 0 < left.count(b"2") < 11 * BLOCK


@pytest.mark.integration
@pytest.mark.timeout(400)
@pytest.mark.skipif(not have_e2fsprogs(), reason=TOOLS_MISSING)
@pytest.mark.parametrize(("medium", "cuts"), list(zip(MEDIA, (2, 1), strict=True)))
def test_file_system_is_whole_after_power_cuts_and_what_was_fsynced_is_there(
    tmp_path: Path, medium: str, cuts: int
) -> None:
    victim = Victim(tmp_path, medium, random.Random())
    assert [victim.cut() for _ in range(cuts)] == [[]] * cuts
