"""What can be plugged into a machine besides its memory: shared directories, disks, sockets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from devices.frozen import frozen
from emu.errors import EmuError
from hypercalls.registry import Hypercall
from hypercalls.syscalls import Syscall

if TYPE_CHECKING:
    from devices.disk import Disk
    from devices.p9.export import Export
    from devices.p9.saved import P9State
    from devices.p9.whole_files import WholeFiles
    from devices.virtio.blk import Blk, BlkState
    from devices.virtio.device import VirtioDevice
    from devices.virtio.p9 import Virtio9p

__all__ = ["DebugExit", "DiskImage", "Fittings", "Share", "Vsock", "VsockNetwork"]

FILES_TAG = "hypercalls"                # for messages
PORTS = 1 << 16
FIRST_CID, LAST_CID = 3, 0xFFFF_FFFE    # 0 to 2 have meanings of their own, as has the one behind the last


@frozen
class Share:
    """A directory of the host that the guest mounts, at /mnt/<tag> unless it is told otherwise.

    Attributes:
        path: the directory.
        read_only: the guest cannot change anything.
        security: how owners and modes are kept, by the names of QEMU's `security_model`: "none" (a plain user's
            files look like root's), "mapped" (the guest's owners and modes are extended attributes) or "passthrough".
    """

    path: str | os.PathLike[str]
    read_only: bool = False
    security: str = "none"


@frozen
class DiskImage:
    """A raw image that the guest has as /dev/vda, /dev/vdb, ...

    Attributes:
        path: the image.
        read_only: the guest cannot write to it; other machines may have it at the same time.
        overlay: True keeps what the guest writes in a temporary file, and the image as it is, so that many machines
            can share it; a path keeps that file.
        frozen: an overlay's file between the image and the overlay, which stays as it is: a snapshot's.
    """

    path: str | os.PathLike[str]
    read_only: bool = False
    overlay: bool | str | os.PathLike[str] = False
    frozen: Path | None = None


@frozen
class VsockNetwork:
    """A machine's place among those of a host whose guests can connect to each other by vsock.

    Attributes:
        directory: where the machines have their socket files; the file's name is the CID.
        cid: the guest's address, which no other machine there has.

    Raises:
        EmuError: no guest can have that address.
    """

    directory: str | os.PathLike[str]
    cid: int

    def __post_init__(self) -> None:
        if not FIRST_CID <= self.cid <= LAST_CID:
            raise EmuError(f"vsock: no guest can have the CID {self.cid}; the first is {FIRST_CID}")

    def path(self, cid: int) -> Path:
        """The socket file of the machine that has an address."""
        return Path(self.directory, str(cid))


Vsock = bool | str | os.PathLike[str] | VsockNetwork


@frozen
class DebugExit:
    """Ports by which a guest ends the machine with a status (devices/isa_debug_exit.py).

    Attributes:
        port: the first of them.
        size: how many there are.

    Raises:
        EmuError: there are no such ports.
    """

    port: int = 0xF4
    size: int = 4

    def __post_init__(self) -> None:
        if not (0 <= self.port and 1 <= self.size and self.port + self.size <= PORTS):
            raise EmuError(f"the debug exit cannot have {self.size} ports from {self.port:#x} on: the last is 0xffff")


@frozen
class Fittings:
    """What is plugged in.

    Attributes:
        shares: by mount tag.
        disks: in order.
        vsock: True for sockets between the guest and this program (`Machine.vsock`); a path also makes a socket file
            there for other programs of the host; a network also lets guests connect to each other.
        channel: a way for commands and files besides the console (`emu.channel`), for guests that have our agent.
        hvc: a virtio console, hvc0 in the guest; once its driver has come, `Machine.console` is there.
        hypercalls: those of users, beside the built-in ones.
        syscalls: handlers of system calls that the guest's kernel is not to see.
        files: a directory that the hypercalls PV_READ and PV_WRITE have; its tag is of no account.
        debug_exit: ports by which the guest ends the machine.
        shell: the guest is one that has a shell on its console.
    """

    shares: Mapping[str, Share] = MappingProxyType({})
    disks: tuple[DiskImage, ...] = ()
    vsock: Vsock = False
    channel: bool = True
    hvc: bool = False
    hypercalls: tuple[Hypercall, ...] = ()
    syscalls: tuple[Syscall, ...] = ()
    files: Share | None = None
    debug_exit: DebugExit | None = None
    shell: bool = True

    def whole_files(self) -> WholeFiles | None:
        """The directory for PV_READ and PV_WRITE.

        Raises:
            EmuError: it cannot be used.
        """
        if self.files is None:
            return None
        from devices.p9.whole_files import WholeFiles

        try:
            return WholeFiles(_export(FILES_TAG, self.files))
        except ValueError as error:
            raise EmuError(str(error)) from None

    def share_devices(self, states: Sequence[P9State] | None = None) -> list[Virtio9p]:
        """Devices for the shares.

        Args:
            states: of the devices that these go on for.

        Raises:
            EmuError: a directory cannot be used.
        """
        if not self.shares:
            return []
        pairs = zip(self.shares.items(), states or repeat(None, len(self.shares)), strict=True)
        return _made(partial(_share_device, *item, state) for item, state in pairs)

    def disk_devices(self, states: Sequence[BlkState] | None = None) -> list[Blk]:
        """Devices for the disks.

        Args:
            states: of the devices that these go on for.

        Raises:
            EmuError: an image cannot be used, or is another one than in the state.
        """
        if not self.disks:
            return []
        pairs = zip(self.disks, states or repeat(None, len(self.disks)), strict=True)
        return _made(partial(_disk_device, *pair) for pair in pairs)


T = TypeVar("T", bound="VirtioDevice")


def _made(makers: Iterable[Callable[[], T]]) -> list[T]:
    """What they make; none of it if one cannot."""
    made: list[T] = []
    try:
        for make in makers:
            made.append(make())
    except ValueError as error:
        for device in made:
            device.close()
        raise EmuError(str(error)) from None
    return made


def _share_device(tag: str, share: Share, state: P9State | None) -> Virtio9p:
    from devices.virtio.p9 import Virtio9p

    return Virtio9p(_export(tag, share), state)


def _export(tag: str, share: Share) -> Export:
    from devices.p9.export import Export
    from devices.p9.mapping import Security

    try:
        security = Security(share.security)
    except ValueError:
        known = ", ".join(model.value for model in Security)
        raise EmuError(f"unknown security model {share.security!r}: there are {known}") from None
    return Export(Path(share.path), tag, share.read_only, security)


def _disk_device(image: DiskImage, state: BlkState | None) -> Blk:
    from devices.disk import Image
    from devices.overlay import Overlay
    from devices.virtio.blk import Blk

    disk: Disk
    if image.overlay:
        base: Disk = Image(image.path, read_only=True)
        if image.frozen:
            base = Overlay(base, image.frozen, read_only=True)
        disk = Overlay(base, None if image.overlay is True else image.overlay)
    else:
        disk = Image(image.path, image.read_only)
    try:
        return Blk(disk, os.path.basename(image.path), state)
    except BaseException:
        disk.close()
        raise
