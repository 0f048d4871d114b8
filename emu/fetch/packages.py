"""Single files out of distribution packages: Debian's .deb (deb(5)) and Alpine's .apk, with neither tool installed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from emu.errors import BadImage
from emu.loader.decompress import decompress
from emu.loader.kernel import map_file

__all__ = ["PackagedFile", "alpine_file", "check_alpine_package", "debian_file", "package_files"]

AR_MAGIC = b"!<arch>\n"
AR_HEADER_SIZE = 60
APK_SECTION_MAX = 2 << 30


class PackagedFile(NamedTuple):
    """A regular file of a package: its path, without a leading slash, and its content."""

    name: str
    data: bytes


def package_files(package: Path, wanted: Callable[[str], bool]) -> Iterator[PackagedFile]:
    """Yield the regular files of a .deb or .apk whose path `wanted` accepts, in the package's order.

    The package is read only as far as files are asked for.

    Raises:
        BadImage: it is damaged, or neither kind of package.
    """
    with _package_errors(package):
        with open(package, "rb") as handle:
            head = handle.read(len(AR_MAGIC))
        yield from _debian_files(package, wanted) if head == AR_MAGIC else _alpine_files(package, wanted)


def debian_file(package: Path, wanted: Callable[[str], bool]) -> PackagedFile:
    """Return the first regular file of a .deb whose path `wanted` accepts; what lies behind it is not read.

    Raises:
        BadImage: the package is damaged or has no such file.
    """
    with _package_errors(package):
        return _first(_debian_files(package, wanted), package.name)


@contextmanager
def _package_errors(package: Path) -> Iterator[None]:
    """Whatever a damaged package makes the decoders raise comes out as BadImage."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise BadImage(f"{package.name} is damaged ({error})") from None


def _debian_files(package: Path, wanted: Callable[[str], bool]) -> Iterator[PackagedFile]:
    with open(package, "rb") as handle:
        member, size = _find_ar_data(handle, package.name)
        content = io.BytesIO(handle.read(size))
    if len(content.getbuffer()) < size:
        raise BadImage(f"{package.name} is truncated")
    with tarfile.open(fileobj=_decompressing(member, content, package.name), mode="r|") as tar:
        yield from _tar_files(tar, wanted)


def _find_ar_data(handle: BinaryIO, name: str) -> tuple[str, int]:
    """Leave `handle` at the start of data.tar.*, and return its member name and size."""
    if handle.read(len(AR_MAGIC)) != AR_MAGIC:
        raise BadImage(f"{name} is no Debian package")
    while header := handle.read(AR_HEADER_SIZE):
        if len(header) < AR_HEADER_SIZE or header[58:60] != b"`\n":
            break
        member = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = int(header[48:58])
        if member.startswith("data.tar"):
            return member, size
        handle.seek(size + size % 2, io.SEEK_CUR)
    raise BadImage(f"{name} is damaged: it has no data.tar")


def _decompressing(member: str, content: io.BytesIO, name: str) -> IO[bytes]:
    suffix = member.removeprefix("data.tar")
    if suffix == "":
        return content
    if suffix == ".xz":
        import lzma

        return _raising_oserror(lzma.LZMAFile(content), lzma.LZMAError)
    if suffix == ".gz":
        import gzip
        import zlib

        return _raising_oserror(gzip.GzipFile(fileobj=content), zlib.error)
    if suffix == ".zst":
        import zstandard

        return _raising_oserror(zstandard.ZstdDecompressor().stream_reader(content), zstandard.ZstdError)
    raise BadImage(f"{name} is packed in an unknown way ({member})")


class _Reader(io.RawIOBase):
    """A decompressing stream whose own kind of error comes out as OSError."""

    def __init__(self, stream: Any, error: type[Exception]) -> None:
        self._stream, self._error = stream, error

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except self._error as error:
            raise OSError(str(error)) from None


def _raising_oserror(stream: Any, error: type[Exception]) -> IO[bytes]:
    return _Reader(stream, error)  # type: ignore[return-value]


def _tar_files(tar: tarfile.TarFile, wanted: Callable[[str], bool]) -> Iterator[PackagedFile]:
    for member in tar:
        path = member.name.removeprefix("./").lstrip("/")
        if member.isreg() and wanted(path):
            content = tar.extractfile(member)
            assert content is not None
            yield PackagedFile(path, content.read())


def _first(files: Iterator[PackagedFile], package: str) -> PackagedFile:
    for file in files:
        return file
    raise BadImage(f"{package} holds no file of the kind looked for")


def check_alpine_package(package: Path, control_sha1: bytes) -> None:
    """Check an .apk against its entry in the repository's index.

    An .apk is three gzip streams: signature, control, data. The index holds the SHA-1 of the control stream ("C:"),
    the control stream's .PKGINFO the SHA-256 of the data stream ("datahash").

    Raises:
        BadImage: damaged, or not the package that the index means.
    """
    control, data = _apk_sections(package)[1:]
    if hashlib.sha1(control).digest() != control_sha1:
        raise BadImage(f"{package.name} has a wrong checksum")
    with _open_tar(control, package.name) as tar:
        files = _tar_files(tar, lambda path: path == ".PKGINFO")
        info = _first(files, package.name).data.decode("utf-8", "replace")
    fields = dict(line.split(" = ", 1) for line in info.splitlines() if " = " in line)
    if hashlib.sha256(data).hexdigest() != fields.get("datahash"):
        raise BadImage(f"{package.name} has a wrong checksum")


def alpine_file(package: Path, wanted: Callable[[str], bool]) -> PackagedFile:
    """Return the first regular file of an .apk whose path `wanted` accepts.

    Raises:
        BadImage: the package is damaged or has no such file.
    """
    with _package_errors(package):
        return _first(_alpine_files(package, wanted), package.name)


def _alpine_files(package: Path, wanted: Callable[[str], bool]) -> Iterator[PackagedFile]:
    with _open_tar(_apk_sections(package)[2], package.name) as tar:
        yield from _tar_files(tar, wanted)


def _apk_sections(package: Path) -> list[memoryview]:
    packed = map_file(package)
    sections: list[memoryview] = []
    position = 0
    while position < len(packed) and len(sections) < 3:
        taken = decompress(packed[position:], APK_SECTION_MAX, package.name).consumed
        sections.append(packed[position : position + taken])
        position += taken
    if len(sections) != 3:
        raise BadImage(f"{package.name} is no Alpine package")
    return sections


def _open_tar(section: memoryview, name: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=io.BytesIO(decompress(section, APK_SECTION_MAX, name).data), mode="r:")
    except tarfile.TarError as error:
        raise BadImage(f"{name} is damaged ({error})") from None
