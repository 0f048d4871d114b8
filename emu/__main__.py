"""The process of the command `emu`, which is also `python -m emu`: quick to start, and quick to end."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import NoReturn

__all__ = ["run"]

MADE_AT_START = 100_000         # objects, more than there are before a machine runs; none of them is garbage


def run() -> NoReturn:
    """Run the command line, and end the process with its status."""
    gc.set_threshold(MADE_AT_START)
    if sys.platform != "linux":
        _refuse()
    from emu.cli import main

    end(main())


def _refuse() -> NoReturn:
    """Say that this host will not do, before something is imported that only Linux has."""
    from emu.cpu.hosts import check_host
    from emu.errors import UnsupportedHost

    try:
        check_host()
    except UnsupportedHost as error:
        print(f"emu: {error}", file=sys.stderr)
    sys.exit(2)


def end(status: int) -> NoReturn:
    """As sys.exit, but what is in memory is not taken apart piece by piece, unless threads might still be at work."""
    threading = sys.modules.get("threading")
    if threading is not None and threading.active_count() > 1:
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
