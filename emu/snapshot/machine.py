"""Machines to snapshots, and snapshots to machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from devices.frozen import replace
from emu.errors import BadSnapshot
from emu.fittings import Share, Vsock
from emu.handlers import handlers
from emu.machine import Machine
from emu.machine_state import MachineState, fittings_of
from emu.snapshot import hot
from emu.snapshot.files import Snapshot, no_progress
from emu.snapshot.ram import Progress
from emu.snapshot.save import save_snapshot
from emu.switching import fine_switching
from hypercalls.registry import Hypercall
from hypercalls.syscalls import Syscall

__all__ = ["restore", "save_machine"]

START_S = 10.0                          # that the guest may take; some 20 ms on a quiet host

Path_ = str | os.PathLike[str]
Phase = Callable[[str], AbstractContextManager[object]]


def _no_phases(_name: str) -> AbstractContextManager[object]:
    return nullcontext()


def _overlay_name(number: int) -> str:
    return f"disk{number}.overlay"


def _let_start(machine: Machine) -> None:
    """Run the guest until its agent has made the slot that it was asked for, if it was.

    In a restored machine nobody would know of that slot. Another one would be asked for in its place, and the two read
    each other's requests.
    """
    channel = machine.channel
    if channel is not None and channel.is_starting and machine.stop_reason is None:
        machine.drive(lambda: not channel.is_starting, START_S)


def save_machine(
    machine: Machine, path: Path_, *, incremental: bool = False, progress: Progress | None = None
) -> None:
    """Save a machine that stands still; it can be driven on.

    Args:
        machine: the machine.
        path: directory to make; a snapshot that is there is replaced.
        incremental: save only what differs from the snapshot that the machine was restored from, which is needed
            ever after.
        progress: called with bytes of RAM done, and in all.

    Raises:
        EmuError: it runs or has stopped, or cannot be saved there.
    """
    from devices.overlay import Overlay  # restores seldom need it

    _let_start(machine)
    state = machine.save()
    overlays: dict[str, Callable[[Path], object]] = {
        _overlay_name(number): disk.copy_to
        for number, disk in enumerate(machine.disks) if isinstance(disk, Overlay)
    }
    base = None
    if incremental:
        if machine.snapshot_path is None:
            raise BadSnapshot("an incremental snapshot needs one that the machine was restored from")
        base = Snapshot.open(machine.snapshot_path)
    try:
        save_snapshot(path, state, machine.memory, base=base, files=overlays, progress=progress or no_progress)
    finally:
        if base:
            base.close()


def restore(
    path: Path_,
    *,
    shares: Mapping[str, Path_ | Share] | None = None,
    vsock: Vsock = False,
    files: Path_ | Share | None = None,
    hypercalls: Sequence[Hypercall | str] = (),
    syscalls: Sequence[Syscall | str] = (),
    eager: int | None = None,
    accounting: bool = False,
    phases: Phase | None = None,
) -> Machine:
    """Make a machine that goes on where a snapshot was taken.

    Args:
        path: the snapshot's directory; it is only read.
        shares: directories instead of those that were shared, by mount tag.
        vsock: a path for a socket file, or a network, in which the guest gets another address; whether there are
            sockets, the snapshot says.
        files: a directory instead of the one for PV_READ and PV_WRITE.
        hypercalls, syscalls: as `emu.boot` takes them; handlers are not in a snapshot.
        eager: bytes of the memory that runs needed before, to bring in now (`emu.snapshot.hot`); None: as
            $EMU_EAGER_MIB says, or 16 MiB.
        accounting: time every exit, for `Machine.stats`.
        phases: times each part (`emu.phases.Phases`).

    Raises:
        BadSnapshot: it is missing, damaged, or of a newer version.
        EmuError: something that it needs cannot be used, such as a directory that was shared.
    """
    phase = phases or _no_phases
    with fine_switching():
        with phase("open the snapshot"):
            snapshot = Snapshot.open(path)
        try:
            with phase("read the state"):
                state = snapshot.state(MachineState)
            given = {tag: share if isinstance(share, Share) else Share(share) for tag, share in (shares or {}).items()}
            fittings = fittings_of(
                state.fittings,
                shares=given,
                vsock=vsock,
                files=files if isinstance(files, Share) or files is None else Share(files),
                hypercalls=tuple(handlers(hypercalls, Hypercall)),
                syscalls=tuple(handlers(syscalls, Syscall)),
            )
            disks = tuple(
                replace(disk, frozen=snapshot.file(_overlay_name(number))) if disk.overlay else disk
                for number, disk in enumerate(fittings.disks)
            )
            with phase("map the memory"):
                memory = snapshot.map_memory(hot.eager_bytes() if eager is None else eager)
            try:
                if memory.size != state.memory:
                    raise BadSnapshot(f"{path} is damaged: its RAM has another size than its machine")
                state.check_devices()
                with phase("make the machine"):
                    machine = Machine(memory, replace(fittings, disks=disks), accounting, state)
            except BaseException as error:
                from traceback import clear_frames

                clear_frames(error.__traceback__)       # a view of memory there would keep it from being closed
                memory.close()
                if isinstance(error, ValueError):
                    raise BadSnapshot(f"{path}: {error}") from None
                raise
            machine.snapshot_path = snapshot.path
            return machine
        finally:
            snapshot.close()
