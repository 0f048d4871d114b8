"""Snapshots of another shape have another version: those kept from before are made anew, and not half understood."""

from __future__ import annotations

import sys
from enum import Enum
from hashlib import sha256
from typing import Any, get_args

from devices.frozen import field_types
from emu.machine_state import MachineState
from emu.snapshot.header import VERSION, Header

SHAPE = "8bfeb555564a12d6"
"""Of version 3. Has it changed? Then count `emu.snapshot.header.VERSION` on, and put the new one here."""


def shape(roots: list[type]) -> str:
    """A digest of the fields and types of these classes and of all that they hold."""
    lines: dict[type, list[str]] = {}
    left: list[Any] = list(roots)
    while left:
        kind = left.pop()
        left += get_args(kind)
        if not isinstance(kind, type) or kind in lines or kind.__module__.partition(".")[0] not in PACKAGES:
            continue
        if issubclass(kind, Enum):
            lines[kind] = [f"{member.name}={member.value}" for member in kind]
            continue
        hints = {name: evaluated(hint, home) for name, (hint, home) in field_types(kind).items()}
        lines[kind] = [f"{name}: {hint}" for name, hint in hints.items()]
        left += hints.values()
    assert len(lines) > 40
    texts = sorted(f"{kind.__name__}({', '.join(fields)})" for kind, fields in lines.items())
    return sha256("\n".join(texts).encode()).hexdigest()[:16]


def evaluated(hint: Any, home: type) -> Any:
    return eval(hint, vars(sys.modules[home.__module__])) if isinstance(hint, str) else hint


PACKAGES = "devices", "emu", "hypercalls"


def test_a_new_shape_is_a_new_version() -> None:
    assert (VERSION, shape([MachineState, Header])) == (3, SHAPE)
