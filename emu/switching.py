"""The interpreter's lock, handed over often while a machine is made or runs.

Every exit of the CPU needs the lock. Another thread that computes gives it up only when the switch interval, 5 ms, is
over: with the usual interval a boot beside such a thread takes ten times as long as alone.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL_S = 1e-5

_lock = threading.Lock()
_users = 0
_usual_s = 0.0


@contextmanager
def fine_switching() -> Iterator[None]:
    """Shorten the switch interval for a `with`; the last one to leave puts it back."""
    global _users, _usual_s
    with _lock:
        if not _users:
            _usual_s = sys.getswitchinterval()
            sys.setswitchinterval(INTERVAL_S)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                sys.setswitchinterval(_usual_s)
