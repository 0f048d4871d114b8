"""The cache keeps what is sound, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from emu.cache import Cache, content_key, default_directory


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def store(cache: Cache, data: bytes) -> Path:
    return cache.store("kind", "key", lambda handle: handle.write(data))


def test_stored_entry_is_found(cache: Cache) -> None:
    assert cache.find("kind", "key") is None
    path = store(cache, b"content")
    assert path == cache.path("kind", "key") == cache.find("kind", "key")
    assert path.read_bytes() == b"content"


def test_entry_is_made_once(cache: Cache) -> None:
    calls: list[int] = []

    def write(handle: BinaryIO) -> None:
        calls.append(handle.write(b"content"))

    assert cache.entry("kind", "key", write) == cache.entry("kind", "key", write)
    assert calls == [7]


@pytest.mark.parametrize("damage", [b"", b"conten", b"contend", b"contents"])
def test_damaged_entry_is_not_found_and_can_be_replaced(damage: bytes, cache: Cache) -> None:
    path = store(cache, b"content")
    path.write_bytes(damage)
    os.utime(path, ns=(1, 1))
    assert cache.find("kind", "key") is None
    assert store(cache, b"content").read_bytes() == b"content"
    assert cache.find("kind", "key") == path


def test_entry_with_another_time_but_the_same_content_is_sound(cache: Cache) -> None:
    path = store(cache, b"content")
    os.utime(path, ns=(1, 1))
    assert cache.find("kind", "key") == path


@pytest.mark.parametrize("note", ["", "rubbish", "1 7 nonsense 3", "9 7 1 1"])
def test_entry_with_a_useless_note_is_not_found(note: str, cache: Cache) -> None:
    store(cache, b"content").with_name("key.note").write_text(note)
    assert cache.find("kind", "key") is None


def test_failed_writer_leaves_nothing_behind(cache: Cache) -> None:
    def write(handle: BinaryIO) -> None:
        handle.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.store("kind", "key", write)
    assert cache.find("kind", "key") is None
    assert list((cache.directory / "kind").iterdir()) == []


def test_failed_writer_keeps_the_entry_that_was_there(cache: Cache) -> None:
    store(cache, b"content")
    with pytest.raises(ZeroDivisionError):
        cache.store("kind", "key", lambda handle: 1 / 0)
    assert cache.find("kind", "key") is not None


def test_many_processes_store_at_once(cache: Cache) -> None:
    program = (
        "from emu.cache import Cache\n"
        f"cache = Cache({str(cache.directory)!r})\n"
        "for _ in range(20):\n"
        "    path = cache.store('kind', 'key', lambda handle: handle.write(b'content' * 1000))\n"
        "    assert (cache.find('kind', 'key') or path).read_bytes() == b'content' * 1000\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    found = cache.find("kind", "key")
    assert found is not None and found.read_bytes() == b"content" * 1000
    assert sorted(path.name for path in found.parent.iterdir()) == ["key", "key.note"]


def test_unwritable_cache_gives_one_warning_and_a_temporary_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    warnings: list[str] = []
    cache = Cache(tmp_path / "file" / "cache", warnings.append)
    first = store(cache, b"content")
    cache.workspace("partial")
    assert first.read_bytes() == b"content"
    assert cache.find("kind", "key") == first
    assert len(warnings) == 1 and "\n" not in warnings[0] and str(cache.directory) in warnings[0]


@pytest.mark.parametrize("key", ["", "a/b", "../x", ".hidden", "x.note"])
def test_keys_that_are_no_file_names_are_refused(key: str, cache: Cache) -> None:
    with pytest.raises(ValueError, match="cache key"):
        cache.path("kind", key)


def test_environment_chooses_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PVEMU_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_directory() == tmp_path / ".cache/pvemu"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_directory() == tmp_path / ".cache/pvemu"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_directory() == Path("/xdg/pvemu")
    monkeypatch.setenv("PVEMU_CACHE", "/chosen")
    assert default_directory() == Path("/chosen")


def test_user_without_a_home_has_a_directory_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PVEMU_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "nowhere")
    assert default_directory() == Path(f"/var/tmp/pvemu-{os.getuid()}")


def test_content_keys_tell_parts_apart() -> None:
    assert content_key(b"ab", b"c") != content_key(b"a", b"bc")
    assert content_key(b"ab") == content_key(memoryview(b"ab"))
