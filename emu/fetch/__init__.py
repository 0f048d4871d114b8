"""Getting a guest to boot: a kernel and a root file system from the first source that has them, kept in the cache.

Kernels come from Alpine's mirror where the network allows, else from Debian's kernel package through apt; roots from
a local copy of Alpine's minirootfs, the mirror, or Debian's static busybox. Every file is checked against a checksum
before it is used, and what was used is told. A guest that was fetched once is not asked for again, and finding it
imports nothing that downloading needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from devices.frozen import frozen
from emu.cache import Cache
from emu.errors import BadImage, EmuError
from emu.fetch.progress import Progress, Say

if TYPE_CHECKING:
    from emu.fetch.packages import PackagedFile

__all__ = ["KERNELS", "Guest", "Progress", "Say", "fetch_busybox", "fetch_guest"]

KIND = "guest"
ASSETS_ENVIRONMENT = "PVEMU_ASSETS"
ROOT_NAME = "alpine-minirootfs-3.20.3-x86_64.tar.gz"
ROOT_SHA256 = "d4e6fd67dcf75e40c451560ac7265166c2b72a0f38ddc9aae756a7de3d1efa0c"
ROOT_DESCRIPTION = "root: Alpine minirootfs 3.20.3"

ALPINE_KERNEL = "linux-virt"
DEBIAN_KERNELS = {"generic": "linux-image-amd64", "cloud": "linux-image-cloud-amd64"}
KERNELS = ("alpine", *DEBIAN_KERNELS)
BUSYBOX_PACKAGE = "busybox-static"
OTHER_SOURCES = (
    "Without a network: PVEMU_MIRROR is the address of a mirror of Alpine's that can be reached, PVEMU_ASSETS a "
    "directory with its minirootfs; --kernel and --root take files of yours"
)


@frozen
class Guest:
    """What to boot: for `emu.loader.kernel.load_kernel` and `emu.images.root.load_root`.

    `package_path` is the package that the kernel came in: its modules are in there. `description` is what to tell
    the user, a line for each part.
    """

    kernel_path: Path
    package_path: Path
    root_path: Path
    description: tuple[str, ...]


@frozen
class _Part:
    """One fetched thing as recorded in the cache: entries of kind `KIND`, the file to use first."""

    files: tuple[str, ...]
    description: str


def _nothing(*_: object) -> None:
    pass


def fetch_guest(cache: Cache, kernel: str = "alpine", progress: Progress = _nothing, say: Say = _nothing) -> Guest:
    """Return a guest, fetched if the cache has none.

    Args:
        cache: where it is kept.
        kernel: "generic" or "cloud" for Debian's of that name; "alpine" for Alpine's own, or Debian's generic one if
            Alpine's mirror is not reachable.
        progress: told how far a download is.
        say: told, a line at a time, which source is used and which was not reachable.

    Raises:
        EmuError: no source has it.
        BadImage: what a source gave is damaged.
    """
    if kernel not in KERNELS:
        raise EmuError(f"unknown kernel {kernel!r}: there are {', '.join(KERNELS)}")
    part = _recorded(cache, f"kernel-{kernel}") or _fetch_kernel_and_modules(cache, kernel, progress, say)
    root = _root(cache, progress, say)
    image, package = (_path(cache, name) for name in part.files)
    return Guest(image, package, _path(cache, root.files[0]), (part.description, root.description))


def fetch_busybox(cache: Cache, progress: Progress = _nothing, say: Say = _nothing) -> Path:
    """Return Debian's static busybox, fetched if the cache has none: a root for `emu.images.root.load_root`.

    Arguments and errors as `fetch_guest`.
    """
    return _path(cache, (_recorded(cache, "root-busybox") or _busybox(cache, progress, say)).files[0])


def _fetch_kernel_and_modules(cache: Cache, kernel: str, progress: Progress, say: Say) -> _Part:
    from emu.images.modules import load_modules

    part = _fetch_kernel(cache, kernel, progress, say)
    # It takes seconds; the first boot finds them in the cache.
    load_modules(_path(cache, part.files[1]), cache)
    return part


def _fetch_kernel(cache: Cache, kernel: str, progress: Progress, say: Say) -> _Part:
    if kernel in DEBIAN_KERNELS:
        return _debian_kernel(cache, kernel, progress, say)
    from emu.fetch.mirror import Unreachable

    try:
        part = _alpine_kernel(cache, progress)
    except Unreachable as error:
        say(f"{error}; trying Debian's kernel package")
        part = _debian_kernel(cache, "generic", progress, say)
    _record(cache, f"kernel-{kernel}", part)
    return part


def _root(cache: Cache, progress: Progress, say: Say) -> _Part:
    alpine = _Part((ROOT_NAME,), ROOT_DESCRIPTION)
    if cache.find(KIND, ROOT_NAME):
        return alpine
    for directory in _asset_directories():
        local = directory / ROOT_NAME
        if local.is_file():
            _keep_root(cache, local)
            return alpine
    if busybox := _recorded(cache, "root-busybox"):
        return busybox
    from emu.fetch.mirror import Unreachable, download, mirror_url

    try:
        with _workspace(cache) as directory:
            _keep_root(cache, download(mirror_url(f"releases/x86_64/{ROOT_NAME}"), directory / ROOT_NAME, progress))
            return alpine
    except Unreachable as error:
        say(f"{error}; the root is Debian's busybox")
    return _busybox(cache, progress, say)


# ---- the cache's records


def _recorded(cache: Cache, name: str) -> _Part | None:
    path = cache.find(KIND, f"{name}.json")
    if path is None:
        return None
    try:
        record = json.loads(path.read_text())
        part = _Part(tuple(record["files"]), record["description"])
    except (ValueError, KeyError, TypeError):
        return None
    return part if all(cache.find(KIND, file) for file in part.files) else None


def _record(cache: Cache, name: str, part: _Part) -> None:
    text = json.dumps({"files": part.files, "description": part.description}).encode()
    cache.store(KIND, f"{name}.json", lambda handle: handle.write(text))


def _path(cache: Cache, name: str) -> Path:
    return cache.find(KIND, name) or cache.path(KIND, name)


def _keep(cache: Cache, path: Path) -> str:
    """Copy a file into the cache under its own name, and return that."""

    import shutil

    def write(handle: BinaryIO) -> None:
        with open(path, "rb") as source:
            shutil.copyfileobj(source, handle)

    cache.store(KIND, path.name, write)
    return path.name


def _keep_root(cache: Cache, path: Path) -> None:
    import hashlib

    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != ROOT_SHA256:
        raise BadImage(f"{path} has a wrong checksum: it is not the minirootfs that Alpine released")
    _keep(cache, path)


def _keep_extracted(cache: Cache, package: Path, file: PackagedFile, name: str) -> tuple[str, str]:
    """Keep a package and a file of it; return their names, the file's first."""
    cache.store(KIND, name, lambda handle: handle.write(file.data))
    return name, _keep(cache, package)


@contextmanager
def _workspace(cache: Cache) -> Iterator[Path]:
    """A directory of this process' own on the cache's disk, gone afterwards."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=cache.workspace("partial"), ignore_cleanup_errors=True) as name:
        yield Path(name)


# ---- sources


def _asset_directories() -> list[Path]:
    chosen = os.environ.get(ASSETS_ENVIRONMENT)
    near = [base / ".." / "shared" / "assets" for base in (Path.cwd(), Path(__file__).resolve().parents[1])]
    return [Path(chosen), *near] if chosen else near


def _alpine_kernel(cache: Cache, progress: Progress) -> _Part:
    from emu.fetch.mirror import download, index_entry, mirror_url
    from emu.fetch.packages import alpine_file, check_alpine_package

    with _workspace(cache) as directory:
        index = download(mirror_url("main/x86_64/APKINDEX.tar.gz"), directory / "APKINDEX.tar.gz", progress)
        version, control_sha1 = index_entry(index, ALPINE_KERNEL)
        name = f"{ALPINE_KERNEL}-{version}.apk"
        package = download(mirror_url(f"main/x86_64/{name}"), directory / name, progress)
        check_alpine_package(package, control_sha1)
        image = alpine_file(package, lambda path: path.startswith("boot/vmlinuz"))
        files = _keep_extracted(cache, package, image, f"vmlinuz-virt-{version}")
    return _Part(files, f"kernel: Alpine's {ALPINE_KERNEL} {version}")


def _debian_kernel(cache: Cache, kernel: str, progress: Progress, say: Say) -> _Part:
    record = f"debian-{kernel}"
    if part := _recorded(cache, record):
        return part
    from emu.fetch.packages import debian_file

    with _workspace(cache) as directory:
        package = _from_debian(DEBIAN_KERNELS[kernel], directory, progress, say)
        image = debian_file(package, lambda path: path.startswith("boot/vmlinuz-"))
        files = _keep_extracted(cache, package, image, os.path.basename(image.name))
    part = _Part(files, f"kernel: Debian's {_plain(package)}")
    _record(cache, record, part)
    return part


def _busybox(cache: Cache, progress: Progress, say: Say) -> _Part:
    from emu.fetch.packages import debian_file

    with _workspace(cache) as directory:
        package = _from_debian(BUSYBOX_PACKAGE, directory, progress, say)
        program = debian_file(package, lambda path: path.endswith("bin/busybox"))
        files = _keep_extracted(cache, package, program, f"{package.stem}.program")
    part = _Part(files, f"root: Debian's {_plain(package)}, without a distribution")
    _record(cache, "root-busybox", part)
    return part


def _from_debian(package: str, directory: Path, progress: Progress, say: Say) -> Path:
    """A Debian package; if it cannot be had, what else there is to try."""
    from emu.fetch.apt import apt_download

    try:
        return apt_download(package, directory, progress, say)
    except EmuError as error:
        raise EmuError(f"{error}. {OTHER_SOURCES}") from None


def _plain(package: Path) -> str:
    """name_version_architecture, with the colons that apt escapes in file names."""
    return package.stem.replace("%3a", ":")
