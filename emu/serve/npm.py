"""The page's terminal: files of npm packages, each of one version that is known by its checksum.

They are in the built package (setup.py); else, as where the sources are used in place, they are fetched once and kept
in the cache. Nothing of npm is needed but a registry: npm's own settings say which.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from devices.frozen import frozen
from emu.cache import Cache
from emu.errors import BadImage, EmuError
from emu.fetch.mirror import download

__all__ = ["PACKAGES", "Package", "assets", "build", "registry"]

REGISTRY = "https://registry.npmjs.org/"
KIND = "npm"                            # of entries in the cache
BUILT = Path(__file__).with_name("xterm")
LARGEST_FILE = 4 << 20                  # bytes; the largest is half a MiB


@frozen
class Package:
    """One of them.

    Attributes:
        name, version: in the registry.
        integrity: SHA-512 of the archive, as npm writes it without "sha512-".
        files: what is needed of it: name here by path in the archive.
    """

    name: str
    version: str
    integrity: str
    files: tuple[tuple[str, str], ...]

    def check(self, archive: bytes) -> None:
        """Raise `BadImage` unless this is the package."""
        digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
        if digest != self.integrity:
            raise BadImage(f"{self.name} {self.version} is not what it was: its SHA-512 is {digest}")

    def read(self, archive: bytes) -> dict[str, bytes]:
        """Its files by their name here. Raises `BadImage` if the archive has them not."""
        found = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
                for path, name in self.files:
                    member = tar.extractfile(path)
                    if member is None:
                        raise KeyError(path)
                    found[name] = member.read(LARGEST_FILE)
        except (tarfile.TarError, OSError, EOFError, KeyError) as error:
            raise BadImage(f"{self.name} {self.version} cannot be read: {error}") from None
        return found


PACKAGES = (
    Package(
        "@xterm/xterm", "6.0.0",
        "TQwDdQGtwwDt+2cgKDLn0IRaSxYu1tSUjgKarSDkUM0ZNiSRXFpjxEsvc/Zgc5kq5omJ+V0a8/kIM2WD3sMOYg==",
        (
            ("package/lib/xterm.js", "xterm.js"), ("package/css/xterm.css", "xterm.css"),
            ("package/LICENSE", "xterm.LICENSE"),
        ),
    ),
    Package(
        "@xterm/addon-fit", "0.11.0",
        "jYcgT6xtVYhnhgxh3QgYDnnNMYTcf8ElbxxFzX0IZo+vabQqSPAjC3c1wJrKB5E19VwQei89QCiZZP86DCPF7g==",
        (("package/lib/addon-fit.js", "addon-fit.js"), ("package/LICENSE", "addon-fit.LICENSE")),
    ),
)  # fmt: skip


def assets(cache: Cache) -> dict[str, bytes]:
    """The files by name.

    Args:
        cache: where packages are kept that did not come with this one.

    Raises:
        EmuError: they are not here, and the registry cannot be reached.
        BadImage: the registry has something else.
    """
    found: dict[str, bytes] = {}
    for package in PACKAGES:
        names = [name for _, name in package.files]
        if all((BUILT / name).is_file() for name in names):
            found |= {name: (BUILT / name).read_bytes() for name in names}
        else:
            found |= package.read(_archive(package, cache))
    return found


def build(target: Path) -> None:
    """Put the files into a directory, for a package that is being built; errors as `assets`."""
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        files |= package.read(_download(package))
    target.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (target / name).write_bytes(data)


def _archive(package: Package, cache: Cache) -> bytes:
    key = f"{package.name.replace('/', '-').lstrip('@')}-{package.version}.tgz"
    path = cache.find(KIND, key)
    if path is not None:
        archive = path.read_bytes()
        try:
            package.check(archive)
            return archive
        except BadImage:
            pass                        # damaged here: fetched again
    return cache.store(KIND, key, lambda file: file.write(_download(package))).read_bytes()


def _download(package: Package) -> bytes:
    base = package.name.rpartition("/")[2]
    url = f"{registry(package.name).rstrip('/')}/{package.name}/-/{base}-{package.version}.tgz"
    with tempfile.TemporaryDirectory(prefix="pvemu-") as directory:
        path = Path(directory) / "package.tgz"
        try:
            download(url, path, lambda *_: None)
        except EmuError as error:
            raise EmuError(
                f"the page's terminal cannot be fetched: {error}; npm's setting `registry` names another place"
            ) from None
        archive = path.read_bytes()
    package.check(archive)
    return archive


# -- npm's settings (docs.npmjs.com, "config" and "npmrc") -------------------------------------------------------------


def registry(package: str) -> str:
    """The registry's address: of the package's scope, or of all; from the environment, or the user's npmrc."""
    environment = {name.lower(): value for name, value in os.environ.items()}
    place = Path(environment.get("npm_config_userconfig") or os.path.expanduser("~/.npmrc"))
    settings = _npmrc(place) | {
        name.removeprefix("npm_config_"): value
        for name, value in environment.items() if name.startswith("npm_config_") and value
    }  # fmt: skip
    url = settings.get(f"{package.partition('/')[0]}:registry") or settings.get("registry") or REGISTRY
    if urlsplit(url).scheme not in ("http", "https"):
        raise EmuError(f"npm's setting `registry` is no address of a registry: {url}")
    return url


def _npmrc(path: Path) -> dict[str, str]:
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return {}
    rows = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    return {name.strip(): os.path.expandvars(value.strip().strip("\"'")) for name, _, value in rows}
