"""The directory that a page's buttons save to, and restore from."""

from __future__ import annotations

import re
import time
from pathlib import Path

from emu.errors import EmuError

__all__ = ["Snapshots"]

NAME = re.compile(r"machine-[0-9]{1,6}-([0-9]{8}-[0-9]{6}(?:-[0-9]{1,3})?)")


class Snapshots:
    """Those in a directory whose names say that they were made here; nothing else in it is touched, or offered.

    Args:
        directory: made when it is first needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        """Of all that there are, the newest first."""
        try:
            found = [match for entry in self._directory.iterdir() if (match := NAME.fullmatch(entry.name))]
        except OSError:
            return []
        return [match[0] for match in sorted(found, key=lambda match: (match[1], match[0]), reverse=True)]

    def path(self, name: str) -> Path:
        """Of one of them. Raises `EmuError` if there is none of that name."""
        if name not in self.names():
            raise EmuError("there is no such snapshot")
        return self._directory / name

    def new(self, number: int) -> Path:
        """For one of a machine, by its number. Raises `OSError` if there can be no such directory."""
        self._directory.mkdir(parents=True, exist_ok=True)
        name, used, count = f"machine-{number}-{time.strftime('%Y%m%d-%H%M%S')}", set(self.names()), 1
        while (unique := name if count == 1 else f"{name}-{count}") in used:
            count += 1
        return self._directory / unique
