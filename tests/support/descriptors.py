"""What this process has open, for tests that nothing is left behind."""

from __future__ import annotations

import gc
import os

__all__ = ["open_files"]


def open_files() -> list[str]:
    """The numbers of its descriptors, once those are closed that earlier tests left to the garbage collector."""
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"), key=int)
