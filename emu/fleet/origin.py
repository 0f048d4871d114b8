"""Where a fleet's machines come from: clones of a template for each snapshot, or guests that boot."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.errors import EmuError
from emu.fittings import VsockNetwork
from emu.process.client import MachineProcess
from emu.process.spawn import spawn
from emu.snapshot.ready import DEFAULT_MEMORY, ready_snapshot

__all__ = ["SHARED_TAG", "Origin", "Templates"]

SHARED_TAG = "shared"
READY_TIMEOUT_S = 120.0
WARM_UP = ["hostname"]
RESTORE_OPTIONS = frozenset({"shares", "files", "hypercalls", "syscalls", "eager", "accounting"})   # of `emu.restore`
READY_OPTIONS = frozenset({"files", "hypercalls", "syscalls", "eager", "accounting"})               # and for all guests


@dataclass(frozen=True)
class Origin:
    """What a machine is made of.

    Attributes:
        snapshot: a snapshot of the user's.
        memory: bytes of RAM, None for as many as the snapshot has, or a usual number.
        options: of `emu.restore` if there is a snapshot, else of `emu.boot`; none or those of `READY_OPTIONS` alone:
            the default guest's ready snapshot is restored.

    Raises:
        EmuError: they do not go together.
    """

    snapshot: Path | None = None
    memory: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "vsock" in self.options:
            raise EmuError("a fleet's machines have vsock sockets of the fleet's own")
        if self.snapshot is None:
            return
        if self.memory is not None:
            raise EmuError("a snapshot's machine has the memory that it has")
        unknown = sorted(self.options.keys() - RESTORE_OPTIONS)
        if unknown:
            raise EmuError(f"a snapshot cannot be restored with another {unknown[0]}")

    @property
    def boots(self) -> bool:
        """Whether a guest is booted."""
        return self.snapshot is None and not self.options.keys() <= READY_OPTIONS


class Templates:
    """Makes machines. What is restored from one snapshot with one set of options is forked from one machine.

    Args:
        shared: the directory that all guests have.
        say: told in a line when something takes long.
    """

    def __init__(self, shared: Path, say: Callable[[str], None]) -> None:
        self._shared = shared
        self._say = say
        self._lock = threading.Lock()
        self._templates: dict[str, MachineProcess] = {}
        self._is_closed = False

    def make(self, origin: Origin, network: VsockNetwork) -> MachineProcess:
        """A machine whose guest answers, or will after its boot.

        Args:
            origin: what it is made of.
            network: its place.

        Raises:
            EmuError: it cannot be made.
        """
        if not origin.boots:
            return self._template(origin).fork(vsock=network)
        options = dict(origin.options)
        options["shares"] = {**(options.get("shares") or {}), SHARED_TAG: self._shared}
        if origin.memory is not None:
            options["memory"] = origin.memory
        return spawn(None, vsock=network, **options)

    def prepare(self, origin: Origin) -> None:
        """Have a template for what does not boot; raises as `make`."""
        self._template(origin)

    def _template(self, origin: Origin) -> MachineProcess:
        key = repr((origin.snapshot, origin.memory, sorted(origin.options.items())))
        with self._lock:
            if self._is_closed:
                raise EmuError("the fleet is closed")
            template = self._templates.get(key)
            if template is None or not template.alive:
                template = self._templates[key] = self._restored(origin)
            return template

    def _restored(self, origin: Origin) -> MachineProcess:
        if origin.snapshot is None:
            memory = DEFAULT_MEMORY if origin.memory is None else origin.memory
            path = ready_snapshot(memory, lambda _name: nullcontext(), self._say, SHARED_TAG)
            is_shared = True
        else:
            path, is_shared = origin.snapshot, _has_share(origin.snapshot)
        options = dict(origin.options)
        if is_shared:
            options["shares"] = {**(options.get("shares") or {}), SHARED_TAG: self._shared}
        template = spawn(path, **options)
        try:
            template.wait_ready(READY_TIMEOUT_S)
            # What starting a program needs of memory and translated code, each clone has from the template
            template.run(WARM_UP, timeout=READY_TIMEOUT_S)
        except BaseException:
            template.close()
            raise
        return template

    def close(self) -> None:
        """End all templates, and with them the machines that were forked from them."""
        with self._lock:
            self._is_closed = True
            templates, self._templates = self._templates, {}
        for template in templates.values():
            template.kill()
        for template in templates.values():
            template.close()


def _has_share(path: Path) -> bool:
    """Whether a snapshot's machine has a share with the fleet's tag."""
    from emu.machine_state import MachineState
    from emu.snapshot.files import Snapshot

    snapshot = Snapshot.open(os.fspath(path))
    try:
        return any(entry.tag == SHARED_TAG for entry in snapshot.state(MachineState).fittings.shares)
    finally:
        snapshot.close()
