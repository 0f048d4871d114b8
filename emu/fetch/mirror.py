"""Alpine's release mirror: files by HTTP, with patience for a few seconds only."""

from __future__ import annotations

import base64
import os
import queue
import tarfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from emu.errors import BadImage, EmuError
from emu.fetch.progress import Progress

__all__ = ["Unreachable", "download", "index_entry", "mirror_url"]

MIRROR_ENVIRONMENT = "PVEMU_MIRROR"
DEFAULT_MIRROR = "https://dl-cdn.alpinelinux.org/alpine"
BRANCH = "v3.20"

CONNECT_SECONDS = 4.0
CHUNK = 256 << 10


class Unreachable(EmuError):
    """A source that does not answer: the next one is tried."""


def mirror_url(path: str) -> str:
    """The URL of a file of the release that this package uses; $PVEMU_MIRROR names another mirror."""
    base = os.environ.get(MIRROR_ENVIRONMENT) or DEFAULT_MIRROR
    return f"{base.rstrip('/')}/{BRANCH}/{path}"


def index_entry(index: Path, package: str) -> tuple[str, bytes]:
    """Return (version, SHA-1 of the control section) of a package in an APKINDEX.tar.gz.

    Raises:
        BadImage: the index is damaged or does not have the package.
    """
    try:
        # The index is two archives, its signature and itself, the first of them with or without an end mark.
        with tarfile.open(index, "r:gz", ignore_zeros=True) as tar:
            content = tar.extractfile("APKINDEX")
            assert content is not None
            text = content.read().decode("utf-8", "replace")
        for record in text.split("\n\n"):
            fields = dict(line.split(":", 1) for line in record.splitlines() if ":" in line)
            if fields.get("P") == package:
                return fields["V"], base64.b64decode(fields["C"].removeprefix("Q1"))
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise BadImage(f"the index of Alpine's mirror is damaged ({error})") from None
    raise BadImage(f"Alpine's mirror has no package {package}")


def download(url: str, path: Path, progress: Progress) -> Path:
    """Fetch `url` into the file `path`, and return that.

    Raises:
        Unreachable: no answer in time, or an answer that is not the file.
    """
    try:
        with _open_url(url) as response, open(path, "wb") as handle:
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            done = 0
            while chunk := response.read(CHUNK):
                handle.write(chunk)
                done += len(chunk)
                progress(path.name, done, total)
            if total is not None and done != total:
                raise OSError("the connection broke off")
    except (OSError, ValueError) as error:
        raise Unreachable(f"{urlsplit(url).netloc or url} is not reachable ({_reason(error)})") from None
    return path


def _open_url(url: str) -> Any:
    """Open a URL, or raise OSError after `CONNECT_SECONDS`, which no timeout of the resolver's own respects."""
    from http.client import HTTPException
    from urllib.request import urlopen

    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(urlopen(url, timeout=CONNECT_SECONDS))
        except (OSError, ValueError, HTTPException) as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        result = answer.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError("no answer") from None
    if isinstance(result, Exception):
        raise OSError(_reason(result))
    return result


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    text = getattr(reason, "strerror", None) or str(reason)
    return " ".join(str(text).split()) or type(error).__name__
