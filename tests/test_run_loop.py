"""The loop without a guest."""

from __future__ import annotations

import os
import select
from contextlib import suppress

from emu.accounting import Accounting
from emu.poller import Poller
from emu.run_loop import RunLoop


def test_a_copy_is_not_woken_with_its_original() -> None:
    loop, before = RunLoop(Poller(), Accounting(), lambda: None), eventfds()
    loop.open()
    (fd,) = eventfds() - before
    original = os.dup(fd)
    try:
        loop.forked()
        os.eventfd_write(original, 1)
        assert select.select([original, fd], [], [], 0)[0] == [original]
    finally:
        os.close(original)
        loop.close()


def eventfds() -> set[int]:
    """Those that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):           # the one that lists them
            if "eventfd" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
    return found
