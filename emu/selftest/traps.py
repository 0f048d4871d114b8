"""The table of all checks: the library's own steps, then every trap on the way from libunicorn to a whole CPU."""

from __future__ import annotations

from emu.selftest import changed_code, exceptions, exits, hostile, library, speed, stops, syscalls, trap_door

__all__ = ["GROUPS"]

GROUPS = (
    library.GROUP,
    exceptions.GROUP,
    syscalls.GROUP,
    trap_door.GROUP,
    stops.GROUP,
    changed_code.GROUP,
    exits.GROUP,
    hostile.GROUP,
    speed.GROUP,
)
"""In the order of the report; docs/cpu.md tells of each trap at length."""
