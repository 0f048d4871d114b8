"""From files to a running guest: what `emu.boot` and the command line do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from emu.acpi.wiring import RSDP_ADDRESS
from emu.cache import Cache
from emu.errors import EmuError
from emu.fetch import KERNELS, Guest, fetch_guest
from emu.fittings import DebugExit, DiskImage, Fittings, Share, Vsock
from emu.handlers import handlers
from emu.images.initramfs import load_initramfs
from emu.images.root import is_disk_image, load_root
from emu.loader import BootState
from emu.loader.kernel import load_kernel
from emu.loader.linux import command_line, load_linux
from emu.loader.multiboot import is_multiboot, load_multiboot, read_modules, read_multiboot
from emu.machine import Machine
from emu.memory import MIB, GuestMemory
from emu.switching import fine_switching
from hypercalls.registry import Hypercall
from hypercalls.syscalls import Syscall

__all__ = ["CONSOLES", "DEFAULT_GUEST", "DEFAULT_KERNEL", "DEFAULT_MEMORY", "ROOT_TRANSPORTS", "boot"]

DEFAULT_MEMORY = 256 * MIB
DEFAULT_GUEST = "alpine"
DEFAULT_KERNEL = "alpine"
ROOT_TRANSPORTS = ("initramfs", "9p")
HVC = "hvc0"
CONSOLES = ("ttyS0", HVC)

RESERVED_TAGS = "emu-"
ROOT_DISK = "root=/dev/vda"

Path_ = str | os.PathLike[str]
Phase = Callable[[str], AbstractContextManager[object]]
T = TypeVar("T")


def _no_phases(_name: str) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass
class _Root:
    """How the guest gets its root: archives for its memory, what is plugged in for it, words on its command line."""

    archives: list[memoryview]
    shares: dict[str, Share] = field(default_factory=dict)
    disks: list[DiskImage] = field(default_factory=list)
    settings: str = ""


@dataclass(frozen=True)
class _Made:
    """A guest that was read: what lays it out in memory, and what is plugged in for its root."""

    load: Callable[[GuestMemory], BootState]
    shares: dict[str, Share] = field(default_factory=dict)
    disks: list[DiskImage] = field(default_factory=list)


def boot(
    guest: str = DEFAULT_GUEST,
    *,
    kernel: Path_ | None = None,
    modules: Path_ | None = None,
    initrd: Path_ | None = None,
    root: Path_ | Share | DiskImage | None = None,
    root_over: str = "initramfs",
    memory: int = DEFAULT_MEMORY,
    shares: Mapping[str, Path_ | Share] | None = None,
    disks: Sequence[Path_ | DiskImage] = (),
    vsock: Vsock = False,
    config: Path_ | None = None,
    hypercalls: Sequence[Hypercall | str] = (),
    syscalls: Sequence[Syscall | str] = (),
    files: Path_ | Share | None = None,
    console: str = "ttyS0",
    channel: bool = True,
    append: str | None = None,
    cmdline: str | None = None,
    as_shipped: bool = False,
    debug_exit: DebugExit | bool | None = None,
    accounting: bool = False,
    phases: Phase | None = None,
) -> Machine:
    """Make a machine and load a guest; it runs when something is asked of it, `machine.wait_prompt()` first of all.

    Args:
        guest: "alpine", fetched once.
        kernel: a bzImage, an ELF vmlinux or a multiboot kernel (docs/multiboot.md); or the name of one to fetch,
            "generic" or "cloud" for Debian's, "alpine" for Alpine's own or, where its mirror cannot be reached,
            Debian's generic one.
        modules: the kernel's modules: its package, or a directory lib/modules/RELEASE. A fetched kernel has its own.
        initrd: an initramfs to use as it is; for a multiboot kernel its modules, "path words, ..." as QEMU takes them.
        root: a root file system: a tar archive or a directory, of which an initramfs is made, or an image of ext4,
            which becomes the first disk.
        root_over: "9p" for a directory that the guest works in where it is, instead of a copy in its memory.
        memory: bytes of RAM, 64 MiB to 8 GiB.
        shares: directories of the host by mount tag; the guest has them at /mnt/<tag>.
        disks: raw images, /dev/vda and on.
        vsock: True for sockets between the guest and this program, a path for a socket file as well, a network for
            sockets between guests, too (docs/fleet.md).
        config: a directory that configures the guest (docs/guest.md).
        hypercalls: handlers, or names of what has them at its top level: a file that ends in .py, a module, or an
            entry point of an installed distribution (docs/hypercalls.md).
        syscalls: handlers of system calls that the guest's kernel is not to see, or names as above (docs/syscalls.md).
        files: a directory for the hypercalls PV_READ and PV_WRITE.
        console: "ttyS0", or "hvc0" for a virtio console, which is quicker once its driver is there.
        channel: let commands and files go through an agent in the guest; without, `run` uses the console's shell.
        append: settings added to the kernel's command line.
        cmdline: settings instead of the default command line.
        as_shipped: leave out the settings of a throw-away machine; the distribution's own apply.
        debug_exit: ports by which the guest ends the machine with a status; None: the usual ones for a multiboot
            kernel, none for Linux.
        accounting: time every exit, for `Machine.stats` (docs/stats.md).
        phases: times each part (`emu.phases.Phases`).

    Raises:
        EmuError: something of it cannot be used; the message says what.
    """
    if guest != DEFAULT_GUEST:
        raise EmuError(f"unknown guest {guest!r}: there is {DEFAULT_GUEST}")
    if initrd is not None and root is not None:
        raise EmuError("an initramfs and a root file system were both given; one is enough")
    if root_over not in ROOT_TRANSPORTS:
        raise EmuError(f"a root over {root_over!r}: there are {' and '.join(ROOT_TRANSPORTS)}")
    if console not in CONSOLES:
        raise EmuError(f"a console {console!r}: there are {' and '.join(CONSOLES)}")
    own_hypercalls, own_syscalls = tuple(handlers(hypercalls, Hypercall)), tuple(handlers(syscalls, Syscall))
    phase = phases or _no_phases
    bare = kernel is not None and str(kernel) not in KERNELS and is_multiboot(kernel)
    if bare:
        _refuse_for_multiboot(
            root=root is not None, root_over=root_over != ROOT_TRANSPORTS[0], modules=modules is not None,
            config=config is not None, as_shipped=as_shipped,
        )  # fmt: skip
    with fine_switching():
        if bare:
            assert kernel is not None
            made = _multiboot(phase, kernel, initrd, command_line(append, cmdline or ""))
        else:
            first = f"console={HVC}" if console == HVC else ""
            made = _linux(
                phase, kernel, modules, initrd, root, root_over,
                lambda root_settings: command_line(f"{first} {root_settings} {append or ''}", cmdline, as_shipped),
            )  # fmt: skip
        fittings = Fittings(
            made.shares | _shares(shares or {}, config),
            (*made.disks, *(disk if isinstance(disk, DiskImage) else DiskImage(disk) for disk in disks)),
            vsock,
            channel=channel and not bare,
            hvc=console == HVC,
            hypercalls=own_hypercalls,
            syscalls=own_syscalls,
            files=files if isinstance(files, Share) or files is None else Share(files),
            debug_exit=_debug_exit(bare if debug_exit is None else debug_exit),
            shell=not bare,
        )
        with phase("make the machine"):
            machine = Machine(memory, fittings, accounting)
        try:
            with phase("fill its memory"):
                machine.boot(made.load)
        except BaseException:
            machine.close()
            raise
    return machine


def _debug_exit(place: DebugExit | bool) -> DebugExit | None:
    if isinstance(place, DebugExit):
        return place
    return DebugExit() if place else None


def _refuse_for_multiboot(**given: bool) -> None:
    """Options that only Linux understands."""
    for name, is_given in given.items():
        if is_given:
            raise EmuError(f"a multiboot kernel takes no {name.replace('_', '-')}: that is for Linux")


def _multiboot(phase: Phase, path: Path_, initrd: Path_ | None, settings: str) -> _Made:
    with phase("load the kernel"):
        kernel = read_multiboot(path)
        modules = read_modules(os.fspath(initrd)) if initrd is not None else []
    return _Made(lambda memory: load_multiboot(memory, kernel, modules, settings))


def _linux(
    phase: Phase,
    kernel: Path_ | None,
    modules: Path_ | None,
    initrd: Path_ | None,
    root: Path_ | Share | DiskImage | None,
    root_over: str,
    settings: Callable[[str], str],
) -> _Made:
    cache = Cache()
    with phase("find the guest"):
        fetched = _fetched(cache, kernel, initrd, root, root_over)
    with phase("load the kernel"):
        named = kernel is None or str(kernel) in KERNELS
        if not named and not os.path.exists(str(kernel)):
            raise EmuError(f"there is no kernel {kernel}: give a file, or to have one fetched {', '.join(KERNELS)}")
        image = load_kernel(fetched.kernel_path if named and fetched else Path(str(kernel)), cache)
    with phase("load the root"):
        made = _root(cache, fetched, initrd, root, root_over)
        source = modules if modules is not None else fetched.package_path if named and fetched else None
        if source is not None and initrd is None:
            from emu.images.modules import load_modules

            made.archives.append(load_modules(os.fspath(source), cache))
    line = settings(made.settings)
    return _Made(
        lambda memory: load_linux(memory, image, made.archives, line, RSDP_ADDRESS), made.shares, made.disks
    )


def _fetched(
    cache: Cache, kernel: Path_ | None, initrd: Path_ | None, root: Path_ | Share | DiskImage | None, root_over: str
) -> Guest | None:
    """The default guest, or None if nothing of it is needed."""
    name = DEFAULT_KERNEL if kernel is None else str(kernel)
    has_root = initrd is not None or (root is not None and not _is_mounted(root, root_over))
    if name not in KERNELS and has_root:
        return None
    return fetch_guest(cache, name if name in KERNELS else DEFAULT_KERNEL)


def _is_mounted(root: Path_ | Share | DiskImage, root_over: str) -> bool:
    """Whether the guest mounts its root, with the default guest's tools, and does not have it in memory."""
    return isinstance(root, Share | DiskImage) or root_over == "9p" or is_disk_image(root)


def _root(
    cache: Cache, fetched: Guest | None, initrd: Path_ | None, root: Path_ | Share | DiskImage | None, root_over: str
) -> _Root:
    if initrd is not None:
        return _Root([load_initramfs(os.fspath(initrd), cache)])
    if root is None and root_over == "9p":
        raise EmuError("a root over 9p is a directory; say which")
    if root is None or not _is_mounted(root, root_over):
        path = fetched.root_path if root is None and fetched else root
        assert isinstance(path, str | os.PathLike)
        return _Root([load_root(os.fspath(path), cache)])
    from emu.images.mounted import ROOT_TAG, mounted_root_initramfs

    assert fetched is not None
    archives = [mounted_root_initramfs(fetched.root_path, cache)]
    if isinstance(root, Share) or (root_over == "9p" and not isinstance(root, DiskImage)):
        share = root if isinstance(root, Share) else Share(root)
        return _Root(archives, shares={ROOT_TAG: share}, settings="ro" if share.read_only else "")
    disk = root if isinstance(root, DiskImage) else DiskImage(root)
    return _Root(archives, disks=[disk], settings=ROOT_DISK + (" ro" if disk.read_only else ""))


def _shares(shares: Mapping[str, Path_ | Share], config: Path_ | None) -> dict[str, Share]:
    reserved = [tag for tag in shares if tag.startswith(RESERVED_TAGS)]
    if reserved:
        raise EmuError(f"the mount tag {reserved[0]} is ours: tags that begin with {RESERVED_TAGS} are")
    made = {tag: share if isinstance(share, Share) else Share(share) for tag, share in shares.items()}
    if config is not None:
        from emu.images.mounted import CONFIGURATION_TAG

        made[CONFIGURATION_TAG] = Share(config, read_only=True)
    return made
