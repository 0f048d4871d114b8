"""Taking one remedy out of the CPU layer, to show that its test fails without it.

The replaced functions belong to the whole process, so this is for processes of their own.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from emu.cpu import abi, layout


def leave_out(*thunks: str) -> None:
    """Load libunicorn without these replacements; call it before the first CPU is made."""
    path = abi.library_path()
    row = layout.layout_of(path)
    assert {*thunks} <= {thunk for thunk, _ in row.slots}
    kept = tuple((thunk, slot) for thunk, slot in row.slots if thunk not in thunks)
    layout.known_builds()[layout.build_id(path)] = replace(row, slots=kept)


def run_alone(script: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own.

    Raises:
        subprocess.TimeoutExpired: it did not end.
    """
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout)
