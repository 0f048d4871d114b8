"""What a guest must never say: traces of a CPU that computes wrongly, in the kernel's messages."""

from __future__ import annotations

import re

__all__ = ["LOUD_SETTINGS", "complaints"]

# The default command line turns the lockup detector off; here it has to watch.
LOUD_SETTINGS = "sysctl.kernel.watchdog=1"

_COMPLAINT = re.compile(
    r"\bBUG\b|\bWARNING\b|\bOops\b|soft lockup|hard LOCKUP|\bstall|blocked for more than|segfault|traps:|Call Trace"
    r"|general protection|invalid opcode|Kernel panic|unstable|nobody cared|Out of memory|[Bb]ad page|[Cc]orrupt"
)


def complaints(messages: str) -> list[str]:
    """The lines of a guest's kernel messages that tell of trouble."""
    return [line for line in messages.splitlines() if _COMPLAINT.search(line)]
