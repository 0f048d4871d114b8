"""Test scripts: Python files whose machines are global names, as in a NixOS test's `testScript`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

from emu.errors import EmuError
from emu.fleet.fleet import Fleet
from emu.fleet.machine import FleetMachine

__all__ = ["read_script", "run_script"]


def read_script(path: Path) -> CodeType:
    """A script, compiled.

    Raises:
        EmuError: it cannot be read, or is not Python.
    """
    try:
        return compile(path.read_bytes(), path, "exec")
    except OSError as error:
        raise EmuError(f"{path}: {error.strerror}") from None
    except SyntaxError as error:
        raise EmuError(f"{path}:{error.lineno or 1}: {error.msg}") from None
    except ValueError as error:
        raise EmuError(f"{path}: {error}") from None


def run_script(script: CodeType, fleet: Fleet) -> None:
    """Run a script. It sees the fleet, what tests use of it, and each machine as soon as that was added.

    Args:
        script: from `read_script`.
        fleet: for its machines.

    Raises:
        Exception: what the script raises.
    """
    names: dict[str, Any] = {
        "__name__": "__main__", "__file__": script.co_filename, "fleet": fleet, "start_all": fleet.start_all,
        "wait_all": fleet.wait_all, "subtest": fleet.subtest, "retry": fleet.retry, "log": fleet.log.note,
    }  # fmt: skip
    taken = frozenset(names)

    def added(machine: FleetMachine) -> None:
        name = machine.name.replace("-", "_")
        if name in taken or not name.isidentifier():
            raise EmuError(f"a script's machine cannot have the name {machine.name}, which means something else there")
        names[name] = machine

    fleet.added = added
    with _importing_from(Path(script.co_filename).parent):
        exec(script, names)


@contextmanager
def _importing_from(directory: Path) -> Iterator[None]:
    """Modules beside a script can be imported, as when Python itself runs it."""
    sys.path.insert(0, str(directory.absolute()))
    try:
        yield
    finally:
        sys.path.remove(str(directory.absolute()))
