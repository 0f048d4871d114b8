"""From files to a running guest: what `emu.boot` and the command line do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from emu.cache import Cache
from emu.errors import EmuError
from emu.fetch import KERNELS, fetch_guest
from emu.images.initramfs import load_initramfs
from emu.images.root import load_root
from emu.loader.kernel import load_kernel
from emu.loader.linux import command_line, load_linux
from emu.machine import Machine
from emu.memory import MIB
from emu.switching import fine_switching

DEFAULT_MEMORY = 256 * MIB
DEFAULT_GUEST = "alpine"
DEFAULT_KERNEL = "alpine"

Phase = Callable[[str], AbstractContextManager[object]]


def _no_phases(_name: str) -> AbstractContextManager[object]:
    return nullcontext()


def boot(
    guest: str = DEFAULT_GUEST,
    *,
    kernel: str | Path | None = None,
    initrd: str | Path | None = None,
    root: str | Path | None = None,
    memory: int = DEFAULT_MEMORY,
    append: str | None = None,
    cmdline: str | None = None,
    as_shipped: bool = False,
    phases: Phase | None = None,
) -> Machine:
    """Make a machine and load a guest; it runs when something is asked of it, `machine.wait_prompt()` first of all.

    Args:
        guest: "alpine", fetched once.
        kernel: a bzImage or an ELF vmlinux, or the name of one to fetch: "generic" or "cloud" for Debian's, "alpine"
            for Alpine's own or, where its mirror cannot be reached, Debian's generic one.
        initrd: an initramfs to use as it is.
        root: a root file system (tar archive or directory) to make an initramfs of.
        memory: bytes of RAM, 64 MiB to 8 GiB.
        append: settings added to the kernel's command line.
        cmdline: settings instead of the default command line.
        as_shipped: leave out the settings of a throw-away machine; the distribution's own apply.
        phases: times each part (`emu.phases.Phases`).

    Raises:
        EmuError: something of it cannot be used; the message says what.
    """
    if guest != DEFAULT_GUEST:
        raise EmuError(f"unknown guest {guest!r}: there is {DEFAULT_GUEST}")
    if initrd is not None and root is not None:
        raise EmuError("an initramfs and a root file system were both given; one is enough")
    phase = phases or _no_phases
    cache = Cache()
    with fine_switching():
        with phase("find the guest"):
            kernel_path, root_path = _files(cache, kernel, initrd, root)
        with phase("load the kernel"):
            image = load_kernel(kernel_path, cache)
        with phase("load the root"):
            archive = load_initramfs(initrd, cache) if initrd is not None else load_root(root_path, cache)
        with phase("make the machine"):
            machine = Machine(memory)
        try:
            with phase("fill its memory"):
                machine.start(load_linux(machine.memory, image, archive, command_line(append, cmdline, as_shipped)))
        except BaseException:
            machine.close()
            raise
    return machine


def _files(
    cache: Cache, kernel: str | Path | None, initrd: str | Path | None, root: str | Path | None
) -> tuple[Path, Path]:
    """The kernel's and the root's paths; what was not given is the default guest's."""
    name = DEFAULT_KERNEL if kernel is None else str(kernel)
    kernel_path = None if name in KERNELS else Path(name)
    root_path = initrd if initrd is not None else root
    if kernel_path is None or root_path is None:
        fetched = fetch_guest(cache, name if kernel_path is None else DEFAULT_KERNEL)
        kernel_path = kernel_path or fetched.kernel_path
        root_path = root_path if root_path is not None else fetched.root_path
    return kernel_path, Path(root_path)
