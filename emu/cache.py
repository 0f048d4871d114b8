"""A cache of derived files, named by the content that they were made from.

Decompressed kernels, expanded archives and downloaded guests are kept under the user's cache directory, so that
only the first boot pays for them. An entry appears whole or not at all, whatever is interrupted and however many
processes store it at once. Beside every entry lies a note of its size, time and checksum; an entry that no longer
agrees with its note is not used, and whoever wanted it makes it again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["Cache", "content_key"]

APPLICATION = "pvemu"
ENVIRONMENT = "PVEMU_CACHE"
NOTE_SUFFIX = ".note"
NOTE_VERSION = 1
KEY_BYTES = 20
CHUNK = 1 << 20


def content_key(*parts: bytes | memoryview) -> str:
    """Return a file name that stands for the content of `parts` (BLAKE2b, 160 bits, as hexadecimal)."""
    from hashlib import blake2b

    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def default_directory() -> Path:
    """Where entries are kept: $PVEMU_CACHE, else $XDG_CACHE_HOME/pvemu, else ~/.cache/pvemu.

    A user without a home directory gets one below /var/tmp.
    """
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen)
    # The XDG base directory specification: a relative path is invalid and to be ignored.
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(base):
            return Path(base) / APPLICATION
    return Path("/var/tmp") / f"{APPLICATION}-{os.getuid()}"


def _warn(line: str) -> None:
    print(f"emu: {line}", file=sys.stderr)


class Cache:
    """Files under `directory`/kind/key.

    Args:
        directory: where entries are kept; None asks `default_directory`.
        warn: told one line when the directory cannot be written and a temporary one takes its place.
    """

    def __init__(self, directory: Path | str | None = None, warn: Callable[[str], None] = _warn) -> None:
        self.directory = Path(directory) if directory is not None else default_directory()
        self._warn = warn
        self._temporary: Path | None = None

    def path(self, kind: str, key: str) -> Path:
        """Where the entry lies or would lie; it need not exist.

        Args:
            kind: the folder, such as "kernel".
            key: a plain file name, usually from `content_key`.
        """
        if not key or key != os.path.basename(key) or key.startswith(".") or key.endswith(NOTE_SUFFIX):
            raise ValueError(f"not a cache key: {key!r}")
        return (self._temporary or self.directory) / kind / key

    def find(self, kind: str, key: str) -> Path | None:
        """The entry's path if it is there and sound, else None; `store` replaces a damaged one."""
        for directory in filter(None, (self.directory, self._temporary)):
            path = directory / kind / key
            if _is_sound(path):
                return path
        return None

    def store(self, kind: str, key: str, writer: Callable[[BinaryIO], object]) -> Path:
        """Write an entry and return its path; an entry already there is replaced.

        Args:
            writer: called once with a binary file open for writing; what it raises leaves no entry behind.
        """
        if self._temporary is None:
            path = self.path(kind, key)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, partial = _create(path)
            except OSError as error:
                self._use_temporary(error)
            else:
                return _finish(handle, partial, path, writer)
        path = self.path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = _create(path)
        return _finish(handle, partial, path, writer)

    def entry(self, kind: str, key: str, writer: Callable[[BinaryIO], object]) -> Path:
        """The sound entry, made by `writer` (see `store`) if there is none."""
        return self.find(kind, key) or self.store(kind, key, writer)

    def workspace(self, name: str) -> Path:
        """A directory for files that are kept without notes, such as package lists; made if need be."""
        if self._temporary is None:
            try:
                (self.directory / name).mkdir(parents=True, exist_ok=True)
                if os.access(self.directory / name, os.W_OK):
                    return self.directory / name
                raise PermissionError(13, "not writable")
            except OSError as error:
                self._use_temporary(error)
        assert self._temporary is not None
        (self._temporary / name).mkdir(parents=True, exist_ok=True)
        return self._temporary / name

    def _use_temporary(self, error: OSError) -> None:
        import atexit
        import shutil
        import tempfile

        self._warn(f"cannot write the cache {self.directory} ({error.strerror}); nothing will be kept")
        self._temporary = Path(tempfile.mkdtemp(prefix=f"{APPLICATION}-"))
        atexit.register(shutil.rmtree, self._temporary, ignore_errors=True)


def _create(path: Path) -> tuple[BinaryIO, Path]:
    # The name holds the process and a random part: a killed process' leftover must not block its successor.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    return open(partial, "xb"), partial


def _finish(handle: BinaryIO, partial: Path, path: Path, writer: Callable[[BinaryIO], object]) -> Path:
    try:
        with handle:
            writer(handle)
            handle.flush()
            # An entry whose note is right is trusted without reading it, so its data must not be lost in a crash.
            os.fsync(handle.fileno())
        # The note comes first: a reader in between finds either nothing, or an older file of the same content.
        _write_note(path, _note(partial))
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def _write_note(path: Path, note: str) -> None:
    partial = path.with_name(f".{path.name}{NOTE_SUFFIX}.{os.getpid()}.{os.urandom(4).hex()}")
    partial.write_text(note)
    os.replace(partial, path.with_name(path.name + NOTE_SUFFIX))


def _note(path: Path) -> str:
    status = os.stat(path)
    return f"{NOTE_VERSION} {status.st_size} {_checksum(path)} {status.st_mtime_ns}\n"


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _is_sound(path: Path) -> bool:
    """Size and time as noted are enough; another time asks for the checksum (two processes may have stored at once)."""
    note_path = path.with_name(path.name + NOTE_SUFFIX)
    try:
        status = os.stat(path)
    except OSError:
        return False
    try:
        version, size, checksum, mtime_ns = (int(field) for field in note_path.read_text().split())
        if (version, size) == (NOTE_VERSION, status.st_size):
            if mtime_ns == status.st_mtime_ns:
                return True
            if checksum == _checksum(path):
                with contextlib.suppress(OSError):  # a cache that may only be read is judged afresh each time
                    _write_note(path, _note(path))
                return True
    except (OSError, ValueError):
        pass
    return False
