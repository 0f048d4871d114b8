"""Files of npm packages: from where, and that they are what they were."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from emu.cache import Cache
from emu.errors import BadImage, EmuError
from emu.serve import npm

SCOPED = "@xterm/xterm"


def archive(**files: bytes) -> bytes:
    """A package with files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without settings; its npmrc."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY", "npm_config_userconfig", "NPM_CONFIG_USERCONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".npmrc"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, environment: Path) -> tuple[npm.Package, list[str]]:
    """The only package there is; the addresses that it was asked for."""
    content, asked = archive(**{"a.js": b"code", "LICENSE": b"free"}), list[str]()
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    package = npm.Package("@some/thing", "1.2.3", digest, (("package/a.js", "b.js"),))

    def download(url: str, path: Path, progress: Callable[..., None]) -> Path:
        asked.append(url)
        path.write_bytes(content)
        return path

    monkeypatch.setattr(npm, "PACKAGES", (package,))
    monkeypatch.setattr(npm, "BUILT", environment.parent / "nothing")
    monkeypatch.setattr(npm, "download", download)
    return package, asked


def test_without_settings_it_is_the_public_registry(environment: Path) -> None:
    assert npm.registry(SCOPED) == npm.REGISTRY


def test_settings_of_npm_name_another(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "somewhere")
    environment.write_text("# a comment\n; another\nregistry = 'http://${PLACE}/npm/'\nfund=false\n")
    assert npm.registry(SCOPED) == "http://somewhere/npm/"
    environment.write_text("registry=http://a/\n@xterm:registry=http://b/\n")
    assert (npm.registry(SCOPED), npm.registry("other")) == ("http://b/", "http://a/")
    environment.write_text("registry=http://a/\n")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://c/")
    assert npm.registry(SCOPED) == "http://c/"


def test_another_npmrc(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("registry=https://d/\n")
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "mine"))
    assert npm.registry(SCOPED) == "https://d/"


def test_what_is_no_address_is_not_asked(environment: Path) -> None:
    environment.write_text("registry=file:///etc/passwd\n")
    with pytest.raises(EmuError, match="no address"):
        npm.registry(SCOPED)


def test_it_is_fetched_once(tmp_path: Path, package: tuple[npm.Package, list[str]]) -> None:
    for _ in range(2):
        assert npm.assets(Cache(tmp_path / "cache")) == {"b.js": b"code"}
    assert package[1] == [f"{npm.REGISTRY}@some/thing/-/thing-1.2.3.tgz"]


def test_what_was_damaged_in_the_cache_is_fetched_again(tmp_path: Path, package: tuple[npm.Package, list[str]]) -> None:
    cache = Cache(tmp_path / "cache")
    cache.store(npm.KIND, "some-thing-1.2.3.tgz", lambda file: file.write(b"something else"))
    assert npm.assets(cache) == {"b.js": b"code"}
    assert len(package[1]) == 1


def test_another_content_is_refused_and_not_kept(
    tmp_path: Path, package: tuple[npm.Package, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npm, "download", lambda url, path, _progress: path.write_bytes(archive(**{"a.js": b"evil"})))
    with pytest.raises(BadImage, match="is not what it was"):
        npm.assets(Cache(tmp_path / "cache"))
    assert Cache(tmp_path / "cache").find(npm.KIND, "some-thing-1.2.3.tgz") is None


def test_a_built_package_has_them_with_it(
    tmp_path: Path, package: tuple[npm.Package, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    npm.build(tmp_path / "built")
    monkeypatch.setattr(npm, "BUILT", tmp_path / "built")
    assert npm.assets(Cache(tmp_path / "cache")) == {"b.js": b"code"}
    assert len(package[1]) == 1


def test_what_is_known_of_the_packages_can_be() -> None:
    names = [name for package in npm.PACKAGES for _, name in package.files]
    assert len(names) == len(set(names))
    assert all(len(base64.b64decode(package.integrity)) == 64 for package in npm.PACKAGES)
    assert {"xterm.js", "xterm.css", "addon-fit.js"} <= set(names)
