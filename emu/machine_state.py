"""What a snapshot keeps of a machine besides its memory, and how the machine was put together."""

from __future__ import annotations

import os
from collections.abc import Mapping

from devices.frozen import frozen, replace
from emu.board_state import BoardState
from emu.channel import ChannelState
from emu.errors import EmuError
from emu.fittings import DebugExit, DiskImage, Fittings, Share, Vsock
from emu.plugged import PluggedState
from hypercalls.registry import Hypercall
from hypercalls.syscalls import Syscall

__all__ = ["DiskEntry", "FittingsState", "MachineState", "ShareEntry", "fittings_of", "fittings_state"]


@frozen
class ShareEntry:
    """A shared directory; `path` is absolute."""

    tag: str
    path: str
    read_only: bool
    security: str


@frozen
class DiskEntry:
    """A disk; `path` is absolute. What its overlay held is a file of the snapshot."""

    path: str
    read_only: bool
    overlay: bool


@frozen
class FittingsState:
    """What was plugged in.

    Attributes:
        vsock: whether there were sockets; a socket file is not taken over.
        hypercalls: numbers and names of the users'.
        files: the directory of PV_READ and PV_WRITE.
    """

    shares: tuple[ShareEntry, ...]
    disks: tuple[DiskEntry, ...]
    vsock: bool
    channel: bool
    hvc: bool
    hypercalls: tuple[tuple[int, str], ...]
    files: ShareEntry | None
    debug_exit: DebugExit | None
    shell: bool


@frozen
class MachineState:
    """A machine, but for its memory.

    Attributes:
        ready: a shell or the agent has answered.
    """

    memory: int
    fittings: FittingsState
    board: BoardState
    plugged: PluggedState
    channel: ChannelState | None
    ready: bool

    def check_devices(self) -> None:
        """Check that each device is one that was plugged in.

        Raises:
            ValueError: there are others, or some are missing.
        """
        there, plugged = self.fittings, self.plugged
        expected = len(there.shares), len(there.disks), there.hvc, there.channel, there.channel, there.vsock
        alone = plugged.hvc, plugged.ports, self.channel, plugged.vsock
        devices = len(plugged.shares), len(plugged.disks), *(state is not None for state in alone)
        # The random number generator is always there
        functions = 1 + len(there.shares) + len(there.disks) + there.hvc + there.channel + there.vsock
        if devices != expected or len(self.board.peripherals.functions) != functions:
            raise ValueError("its devices are not those that it says were plugged in")


def _entry(tag: str, share: Share) -> ShareEntry:
    return ShareEntry(tag, os.path.abspath(share.path), share.read_only, share.security)


def fittings_state(fittings: Fittings) -> FittingsState:
    """Fittings as plain values."""
    return FittingsState(
        tuple(_entry(tag, share) for tag, share in fittings.shares.items()),
        tuple(DiskEntry(os.path.abspath(disk.path), disk.read_only, bool(disk.overlay)) for disk in fittings.disks),
        fittings.vsock is not False,
        fittings.channel,
        fittings.hvc,
        tuple((hypercall.number, hypercall.name) for hypercall in fittings.hypercalls),
        _entry("", fittings.files) if fittings.files else None,
        fittings.debug_exit,
        fittings.shell,
    )


def _share_of(entry: ShareEntry, given: Share | None) -> Share:
    if given is None:
        return Share(entry.path, entry.read_only, entry.security)
    return replace(given, read_only=given.read_only or entry.read_only)


def fittings_of(
    state: FittingsState,
    *,
    shares: Mapping[str, Share],
    vsock: Vsock,
    files: Share | None,
    hypercalls: tuple[Hypercall, ...],
    syscalls: tuple[Syscall, ...],
) -> Fittings:
    """The fittings to go on with.

    Args:
        state: what was plugged in.
        shares: directories in place of those that have the same mount tag; what was read-only stays so.
        vsock: a path for a socket file, or a network.
        files: a directory in place of the one for PV_READ and PV_WRITE.
        hypercalls, syscalls: the users'.

    Raises:
        EmuError: there was no such share, there were no sockets, or a hypercall that the guest had is missing.
    """
    tags = {entry.tag for entry in state.shares}
    for tag in shares:
        if tag not in tags:
            known = f"it has {', '.join(sorted(tags))}" if tags else "it has none"
            raise EmuError(f"the snapshot's machine has no share {tag}: {known}")
    if vsock is not False and not state.vsock:
        raise EmuError("the snapshot's machine has no vsock device")
    numbers = {hypercall.number for hypercall in hypercalls}
    missing = [name for number, name in state.hypercalls if number not in numbers]
    if missing:
        raise EmuError(f"the snapshot's guest knows the hypercall {missing[0]}: give its module")
    old_files = Share(state.files.path, state.files.read_only, state.files.security) if state.files else None
    return Fittings(
        {entry.tag: _share_of(entry, shares.get(entry.tag)) for entry in state.shares},
        tuple(DiskImage(entry.path, entry.read_only, entry.overlay) for entry in state.disks),
        vsock if vsock is not False else state.vsock,
        channel=state.channel,
        hvc=state.hvc,
        hypercalls=hypercalls,
        syscalls=syscalls,
        files=files or old_files,
        debug_exit=state.debug_exit,
        shell=state.shell,
    )
