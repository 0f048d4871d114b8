"""Options that commands share, and what makes machines of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from devices.frozen import field_types, frozen
from emu.fittings import DebugExit, DiskImage, Share

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = [
    "Amount", "GuestOptions", "RestoreOptions", "Seconds", "Size", "clone_options", "guest_options", "restore_options",
    "served_options",
]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SMALLEST_MEMORY, LARGEST_MEMORY = 64 * MIB, 8 * GIB
UNITS = {"": MIB, "K": KIB, "M": MIB, "G": GIB}


class Amount(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A number of bytes above 0, from text such as 100K or 2G; a bare number is MiB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,12})([KMG]?)(?:I?B)?", str(value).strip().upper())
        if match is None or not int(match[1]):
            self.fail(f"{value!r} is not a size; write 512M or 2G", param, ctx)
        return int(match[1]) * UNITS[match[2]]


class Size(Amount):
    """An amount of memory that a guest can have."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        size = super().convert(value, param, ctx)
        if not SMALLEST_MEMORY <= size <= LARGEST_MEMORY or size % MIB:
            self.fail(f"{value!r} is not possible: memory is 64M to 8G, in whole MiB", param, ctx)
        return size


class EagerSize(click.ParamType):  # type: ignore[type-arg]
    """A number of MiB, 0 allowed; in bytes."""

    name = "MIB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not re.fullmatch("[0-9]{1,6}", str(value)):
            self.fail(f"{value!r} is not a number of MiB", param, ctx)
        return int(value) * MIB


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A time of more than no seconds, fractions allowed."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 1e9:
            self.fail(f"{value!r} is not a time in seconds", param, ctx)
        return seconds


class FileOrName(click.ParamType):  # type: ignore[type-arg]
    """A file's path, or one of some names; the shell completes both."""

    name = "PATH"

    def __init__(self, *names: str) -> None:
        self.names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin so; files if there are none."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name) for name in self.names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


def _settings(text: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """What stands before the settings at a text's end, and those: `,name` or `,name=value` with a known name."""
    settings: dict[str, str] = {}
    while (comma := text.rfind(",")) >= 0:
        name, _, value = text[comma + 1 :].partition("=")
        if name not in known:
            break
        settings[name] = value
        text = text[:comma]
    return text, settings


class ShareType(click.ParamType):  # type: ignore[type-arg]
    """TAG=DIR[,ro][,security=MODEL]: a mount tag and a share."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Share]:
        text, settings = _settings(str(value), ("ro", "security"))
        tag, equals, path = text.partition("=")
        if not (tag and equals and path):
            self.fail(f"{value!r} is not a share; write TAG=DIRECTORY, or TAG=DIRECTORY,ro", param, ctx)
        return tag, Share(path, "ro" in settings, settings.get("security", Share.security))


class FilesType(click.ParamType):  # type: ignore[type-arg]
    """DIR[,ro]: a directory for hypercalls."""

    name = "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Share:
        path, settings = _settings(str(value), ("ro",))
        if not path:
            self.fail(f"{value!r} names no directory", param, ctx)
        return Share(path, "ro" in settings)


class DiskType(click.ParamType):  # type: ignore[type-arg]
    """IMAGE[,ro][,overlay[=FILE]]: a disk."""

    name = "DISK"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DiskImage:
        path, settings = _settings(str(value), ("ro", "overlay"))
        if not path:
            self.fail(f"{value!r} names no image", param, ctx)
        return DiskImage(path, "ro" in settings, settings.get("overlay") or "overlay" in settings)


class DebugExitType(click.ParamType):  # type: ignore[type-arg]
    """PORT[,SIZE] or none: where the debug exit is."""

    name = "PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DebugExit | bool:
        if value == "none":
            return False
        try:
            return DebugExit(*(int(number, 0) for number in str(value).split(",", 1)))
        except ValueError:
            self.fail(f"{value!r} is no port; write 0xf4, or 0xf4,1, or none", param, ctx)


@frozen
class GuestOptions:
    """What to boot: the keyword arguments of `emu.boot`."""

    memory: int
    kernel: str | None
    modules: Path | None
    initrd: str | None
    root: Path | None
    root_over: str
    shares: dict[str, Share]
    disks: tuple[DiskImage, ...]
    vsock: Path | bool
    config: Path | None
    hypercalls: tuple[str, ...]
    syscalls: tuple[str, ...]
    files: Share | None
    console: str
    append: str | None
    cmdline: str | None
    as_shipped: bool
    debug_exit: DebugExit | bool | None


_SHARE = click.option(
    "--share",
    "shares",
    type=ShareType(),
    multiple=True,
    metavar="TAG=DIR[,ro][,security=none|mapped|passthrough]",
    help="A directory of the host, in the guest at /mnt/TAG. May be repeated.",
)
_VSOCK = click.option(
    "--vsock",
    type=click.Path(path_type=Path),
    help="A socket file for the guest's vsock ports: CONNECT PORT there; the guest's calls to port N go to PATH_N.",
)
_HYPERCALLS = click.option(
    "--hypercalls",
    type=FileOrName(),
    multiple=True,
    metavar="FILE.py|MODULE|NAME",
    help="Hypercalls of your own: a file, a module, or what an installed package calls them. May be repeated.",
)
_SYSCALLS = click.option(
    "--syscalls",
    type=FileOrName(),
    multiple=True,
    metavar="FILE.py|MODULE|NAME",
    help="System calls that the host answers, in a file, a module, or an installed package. May be repeated.",
)
_FILES = click.option(
    "--files", type=FilesType(), metavar="DIR[,ro]", help="A directory for the hypercalls PV_READ and PV_WRITE."
)

_OPTIONS = (
    click.option("--memory", type=Size(), default="256M", show_default=True, help="The machine's RAM, 64M to 8G."),
    click.option(
        "--kernel",
        type=FileOrName("alpine", "generic", "cloud"),
        metavar="PATH|alpine|generic|cloud",
        help="A bzImage, an ELF vmlinux, or a multiboot kernel; or one to fetch: Alpine's own (the default; Debian's "
        "generic one where Alpine's mirror cannot be reached) or Debian's.",
    ),
    click.option(
        "--modules",
        type=click.Path(path_type=Path),
        help="The kernel's modules: its package, or a directory lib/modules/RELEASE. A fetched kernel has its own.",
    ),
    click.option(
        "--initrd",
        type=FileOrName(),
        metavar="PATH",
        help="An initramfs, used as it is; the modules of a multiboot kernel: PATH[ WORDS][,PATH[ WORDS]...].",
    ),
    click.option(
        "--root",
        type=click.Path(path_type=Path),
        help="A root file system: minirootfs .tar.gz, a directory, or an image of ext4.",
    ),
    click.option(
        "--root-over",
        type=click.Choice(["initramfs", "9p"]),
        default="initramfs",
        show_default=True,
        help="Whether a directory given as --root is copied into the guest's memory, or used where it is.",
    ),
    _SHARE,
    click.option(
        "--disk",
        "disks",
        type=DiskType(),
        multiple=True,
        metavar="IMAGE[,ro][,overlay[=FILE]]",
        help="A raw image, /dev/vda and on; with overlay it stays as it is. May be repeated.",
    ),
    _VSOCK,
    click.option(
        "--console",
        type=click.Choice(["ttyS0", "hvc0"]),
        default="ttyS0",
        show_default=True,
        help="The serial port, or a virtio console, which is quicker once its driver is there.",
    ),
    _HYPERCALLS,
    _SYSCALLS,
    _FILES,
    click.option("--config", type=click.Path(path_type=Path), help="A directory that configures the guest."),
    click.option("--append", metavar="TEXT", help="Settings behind the default kernel command line."),
    click.option("--cmdline", metavar="TEXT", help="Settings instead of the default kernel command line."),
    click.option(
        "--as-shipped",
        is_flag=True,
        help="The distribution's own settings; without it, hardening that a throw-away guest does not need is off.",
    ),
    click.option(
        "--debug-exit",
        type=DebugExitType(),
        metavar="PORT[,SIZE]|none",
        help="Ports by which the guest ends the machine: writing V makes our exit status 2V+1. By default a multiboot "
        "kernel has 4 of them from 0xf4 on, and Linux none.",
    ),
)


_RESTORE_OPTIONS = (
    _SHARE,
    _VSOCK,
    _HYPERCALLS,
    _SYSCALLS,
    _FILES,
    click.option(
        "--eager",
        type=EagerSize(),
        metavar="MIB",
        help="How much of the memory that runs needed before to bring in at once, 0 for none; without it "
        "$EMU_EAGER_MIB, or 16.",
    ),
)


@frozen
class RestoreOptions:
    """What to change of a snapshot's machine: keyword arguments of `emu.restore`."""

    shares: dict[str, Share]
    vsock: Path | bool
    hypercalls: tuple[str, ...]
    syscalls: tuple[str, ...]
    files: Share | None
    eager: int | None


def _gathered(
    command: Callable[..., Any], kind: type[Any], argument: str, options: Sequence[Callable[..., Any]]
) -> Callable[..., Any]:
    """A command with options that it gets as one argument, an object of a dataclass."""
    from functools import wraps

    @wraps(command)
    def gathered(*args: Any, **given: Any) -> Any:
        shares = dict(given["shares"])
        if len(shares) < len(given["shares"]):
            raise click.UsageError("two shares have the same tag")
        given["shares"] = shares
        given["vsock"] = given.get("vsock") or False
        made = kind(**{name: given.pop(name) for name in field_types(kind)})
        return command(*args, **{argument: made}, **given)

    for option in reversed(options):
        gathered = option(gathered)
    return gathered


def guest_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what to boot, as one argument `guest` of type `GuestOptions`."""
    return _gathered(command, GuestOptions, "guest", _OPTIONS)


def served_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`guest_options` for machines that are forked, which have no socket file."""
    return _gathered(command, GuestOptions, "guest", [each for each in _OPTIONS if each is not _VSOCK])


def restore_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a restore, as one argument `options` of type `RestoreOptions`."""
    return _gathered(command, RestoreOptions, "options", _RESTORE_OPTIONS)


def clone_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`restore_options` for machines that are forked, which have no socket file."""
    return _gathered(command, RestoreOptions, "options", [each for each in _RESTORE_OPTIONS if each is not _VSOCK])
