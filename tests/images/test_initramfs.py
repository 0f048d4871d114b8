"""Initramfs files of every compression, alone and one behind the other."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu.cache import Cache
from emu.errors import BadImage
from emu.images.cpio import Entry, write_archive
from emu.images.initramfs import load_initramfs
from tests.loader.fakes import lz4_legacy


def archive(*names: str) -> bytes:
    output = io.BytesIO()
    write_archive([Entry(name, stat.S_IFREG | 0o644, name.encode() * 9) for name in names], output)
    return output.getvalue()


PLAIN = archive("init", "bin")
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.compress,
    "lz4": lz4.frame.compress,
    "lz4 legacy": lz4_legacy,
}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def load(content: bytes, cache: Cache, tmp_path: Path) -> bytes:
    path = tmp_path / "initrd"
    path.write_bytes(content)
    return bytes(load_initramfs(path, cache))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_each_compression_is_expanded(compression: str, cache: Cache, tmp_path: Path) -> None:
    packed = COMPRESSIONS[compression](PLAIN)
    assert load(packed, cache, tmp_path) == PLAIN
    assert load(packed, cache, tmp_path) == PLAIN


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_early_archive_padding_and_main_archive_are_all_kept(compression: str, cache: Cache, tmp_path: Path) -> None:
    early = archive("kernel")
    loaded = load(early + bytes(512) + COMPRESSIONS[compression](PLAIN), cache, tmp_path)
    assert loaded.startswith(early)
    assert loaded.rstrip(b"\0").endswith(PLAIN.rstrip(b"\0"))
    # Linux takes the next archive at a multiple of four bytes only.
    assert loaded.index(PLAIN) % 4 == 0


def test_plain_archive_needs_no_cache(cache: Cache, tmp_path: Path) -> None:
    load(PLAIN, cache, tmp_path)
    assert not cache.directory.exists()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_truncated_file_is_refused(compression: str, cache: Cache, tmp_path: Path) -> None:
    packed = COMPRESSIONS[compression](PLAIN)
    with pytest.raises(BadImage, match=r"truncated|damaged"):
        load(packed[: len(packed) - 10], cache, tmp_path)


def test_damaged_gzip_is_refused_and_not_cached(cache: Cache, tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(PLAIN))
    packed[-6] ^= 1
    with pytest.raises(BadImage, match=r"^the gzip data of initrd is damaged"):
        load(bytes(packed), cache, tmp_path)
    assert not cache.directory.exists()


def test_what_is_no_initramfs_is_refused(cache: Cache, tmp_path: Path) -> None:
    for content in (b"garbage", bytes(100), gzip.compress(b"no archive"), PLAIN + b"garbage"):
        with pytest.raises(BadImage, match="not an initramfs"):
            load(content, cache, tmp_path)
    with pytest.raises(BadImage, match="No such file"):
        load_initramfs(tmp_path / "nothing", cache)
    with pytest.raises(BadImage, match="directory"):
        load_initramfs(tmp_path, cache)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    packed=st.sampled_from([pack(PLAIN) for pack in COMPRESSIONS.values()]),
    at=st.integers(0),
    value=st.integers(0, 255),
    cut=st.integers(0, 5),
)
def test_damage_gives_an_archive_or_one_line(
    packed: bytes, at: int, value: int, cut: int, cache: Cache, tmp_path: Path
) -> None:
    damaged = bytearray(packed)
    damaged[at % len(damaged)] = value
    try:
        load(bytes(damaged[: len(damaged) - cut]), cache, tmp_path)
    except BadImage as error:
        assert "\n" not in str(error)
