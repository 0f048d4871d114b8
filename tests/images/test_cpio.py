"""The newc archive, written and read."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import BadImage
from emu.images.cpio import Entry, archive_end, is_cpio, read_archive, write_archive

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20)
NUMBER = st.integers(0, 0xFFFFFFFF)
ENTRIES = st.builds(
    Entry,
    name=NAMES.filter(lambda name: name != "TRAILER!!!"),
    mode=st.sampled_from((stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO)).map(lambda kind: kind | 0o4755),
    data=st.binary(max_size=50),
    uid=NUMBER,
    gid=NUMBER,
    mtime=NUMBER,
    device=st.tuples(NUMBER, NUMBER),
)


def written(entries: Iterable[Entry]) -> bytes:
    output = io.BytesIO()
    write_archive(entries, output)
    return output.getvalue()


@given(st.lists(ENTRIES, max_size=8))
def test_what_is_written_is_read_back(entries: list[Entry]) -> None:
    archive = written(entries)
    assert is_cpio(archive)
    assert len(archive) % 4 == 0
    assert list(read_archive(archive)) == entries
    assert archive_end(memoryview(archive), 0, "it") == len(archive)


@given(
    st.lists(ENTRIES, max_size=3), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4), st.integers(0)
)
def test_damage_gives_entries_or_one_line(entries: list[Entry], changes: list[tuple[int, int]], cut: int) -> None:
    archive = bytearray(written(entries))
    for position, value in changes:
        archive[position % len(archive)] = value
    try:
        for entry in read_archive(bytes(archive[: len(archive) - cut % 40])):
            assert isinstance(entry, Entry)
    except BadImage as error:
        assert "\n" not in str(error)


def test_hard_links_share_an_inode_and_the_last_has_the_data() -> None:
    mode = stat.S_IFREG | 0o644
    links = [Entry(name, mode, b"data", link_group=7) for name in ("a", "b", "c")]
    first, other, second, third = read_archive(written([links[0], Entry("x", mode), *links[1:]]))
    assert first.link_group == second.link_group == third.link_group != 0
    assert other.link_group == 0
    assert (first.data, second.data, third.data) == (b"", b"", b"data")


def test_truncated_archive_is_refused() -> None:
    archive = written([Entry("file", stat.S_IFREG, b"content")])
    for size in range(len(archive) - 4):
        with pytest.raises(BadImage):
            list(read_archive(archive[:size]))


def test_names_longer_than_linux_takes_are_refused() -> None:
    written([Entry("x" * 4095, stat.S_IFREG)])
    with pytest.raises(BadImage, match="too long"):
        written([Entry("x" * 4096, stat.S_IFREG)])


@pytest.mark.skipif(not shutil.which("cpio"), reason="needs the cpio program")
def test_the_cpio_program_agrees(tmp_path: Path) -> None:
    mode = stat.S_IFREG | 0o640
    entries = [
        Entry("d", stat.S_IFDIR | 0o755),
        Entry("d/one", mode, b"same", link_group=1),
        Entry("d/two", mode, b"same", link_group=1),
        Entry("s", stat.S_IFLNK | 0o777, b"d/one"),
    ]
    subprocess.run(["cpio", "-idm", "--quiet", "--no-preserve-owner"], cwd=tmp_path, input=written(entries), check=True)
    assert (tmp_path / "d/one").read_bytes() == (tmp_path / "d/two").read_bytes() == b"same"
    assert (tmp_path / "d/one").samefile(tmp_path / "d/two")
    assert (tmp_path / "s").readlink() == Path("d/one")
