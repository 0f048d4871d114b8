"""How a fetch tells what it does."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, "int | None"], None]
"""Called with what is being fetched, the bytes so far, and the bytes in all, None if unknown."""
Say = Callable[[str], None]
"""Told one line for a person."""
