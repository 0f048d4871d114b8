"""What can be plugged into a machine besides its memory: shared directories, disks, sockets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from emu.errors import EmuError

if TYPE_CHECKING:
    from devices.disk import Disk
    from devices.virtio.device import VirtioDevice

__all__ = ["DiskImage", "Fittings", "Share"]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class DiskImage:
    """A raw image that the guest has as /dev/vda, /dev/vdb, ...

    Attributes:
        path: the image.
        read_only: the guest cannot write to it; other machines may have it at the same time.
        overlay: True keeps what the guest writes in a temporary file, and the image as it is, so that many machines
            can share it; a path keeps that file.
    """

    path: str | os.PathLike[str]
    read_only: bool = False
    overlay: bool | str | os.PathLike[str] = False


@dataclass(frozen=True)
class Fittings:
    """What is plugged in.

    Attributes:
        shares: by mount tag.
        disks: in order.
        vsock: True for sockets between the guest and this program (`Machine.vsock`); a path also makes a socket file
            there for other programs of the host.
        channel: a way for commands and files besides the console (`emu.channel`), for guests that have our agent.
        hvc: a virtio console, hvc0 in the guest; once its driver has come, `Machine.console` is there.
    """

    shares: Mapping[str, Share] = field(default_factory=dict)
    disks: tuple[DiskImage, ...] = ()
    vsock: bool | str | os.PathLike[str] = False
    channel: bool = True
    hvc: bool = False

    def storage(self) -> list[VirtioDevice]:
        """Devices for the shares and the disks.

        Raises:
            EmuError: a directory or an image cannot be used.
        """
        made: list[VirtioDevice] = []
        try:
            made += [_share_device(tag, share) for tag, share in self.shares.items()]
            for disk in self.disks:
                made.append(_disk_device(disk))
        except ValueError as error:
            for device in made:
                device.close()
            raise EmuError(str(error)) from None
        return made


def _share_device(tag: str, share: Share) -> VirtioDevice:
    from devices.p9.export import Export
    from devices.p9.mapping import Security
    from devices.virtio.p9 import Virtio9p

    try:
        security = Security(share.security)
    except ValueError:
        known = ", ".join(model.value for model in Security)
        raise EmuError(f"unknown security model {share.security!r}: there are {known}") from None
    return Virtio9p(Export(Path(share.path), tag, share.read_only, security))


def _disk_device(image: DiskImage) -> VirtioDevice:
    from devices.disk import Image
    from devices.overlay import Overlay
    from devices.virtio.blk import Blk

    disk: Disk
    if image.overlay:
        base = Image(image.path, read_only=True)
        disk = Overlay(base, None if image.overlay is True else image.overlay)
    else:
        disk = Image(image.path, image.read_only)
    return Blk(disk, os.path.basename(image.path))
