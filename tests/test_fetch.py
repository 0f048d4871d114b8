"""Fetching a guest: the order of sources, checksums, and no network the second time.

Alpine's mirror is a small web server here, apt two scripts in front of everything else on PATH.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import http.server
import io
import lzma
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from emu import fetch
from emu.cache import Cache
from emu.errors import BadImage, EmuError
from emu.fetch import fetch_guest

KERNEL = b"a kernel" * 5000
PROGRAM = b"a busybox" * 1000
ROOT = gzip.compress(b"a root")


def tar(name: str, data: bytes) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return output.getvalue()


def deb(name: str, data: bytes, compression: str = "xz") -> bytes:
    compressors: dict[str, Callable[[bytes], bytes]] = {
        "xz": lzma.compress,
        "gz": gzip.compress,
        "zst": zstandard.compress,
    }
    compress = compressors[compression]
    output = b"!<arch>\n"
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar.{compression}", compress(tar(name, data))),
    )
    for member, content in members:
        output += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        output += content + b"\n" * (len(content) % 2)
    return output


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror's directory, served."""
    root = tmp_path / "mirror"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PVEMU_MIRROR", f"http://127.0.0.1:{server.server_port}")
    yield root
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No assets, no apt, and a mirror that refuses."""
    monkeypatch.setattr(fetch, "ROOT_SHA256", hashlib.sha256(ROOT).hexdigest())
    monkeypatch.setattr(fetch, "_asset_directories", lambda: [tmp_path / "assets"])
    monkeypatch.setenv("PVEMU_MIRROR", "http://127.0.0.1:1/alpine")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def put_assets(tmp_path: Path, content: bytes = ROOT) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / fetch.ROOT_NAME).write_bytes(content)


def put_apk(mirror: Path, wrong_index: bool = False, wrong_data: bool = False) -> None:
    data = gzip.compress(tar("boot/vmlinuz-virt", KERNEL))
    info = f"pkgname = linux-virt\ndatahash = {hashlib.sha256(data).hexdigest()}\n".encode()
    control = gzip.compress(tar(".PKGINFO", info))
    if wrong_data:
        data = gzip.compress(tar("boot/vmlinuz-virt", b"another kernel"))
    repository = mirror / "v3.20/main/x86_64"
    repository.mkdir(parents=True)
    (repository / "linux-virt-6.6.6-r0.apk").write_bytes(gzip.compress(tar(".SIGN", b"")) + control + data)
    checksum = base64.b64encode(hashlib.sha1(b"other" if wrong_index else control).digest()).decode()
    index = f"C:Q1AAAA\nP:linux-lts\nV:1\n\nC:Q1{checksum}\nP:linux-virt\nV:6.6.6-r0\n\n"
    (repository / "APKINDEX.tar.gz").write_bytes(
        gzip.compress(tar(".SIGN", b"")) + gzip.compress(tar("APKINDEX", index.encode()))
    )


APT = """#!{python}
import os, pathlib, sys
here = pathlib.Path({here!r})
options = [word for word in sys.argv[1:] if "=" in word]
words = [word for word in sys.argv[1:] if "=" not in word and word not in ("-o", "-q")]
with open(here / "calls", "a") as calls:
    print(*words, file=calls)
private = next((option.split("=")[1] for option in options if option.startswith("Dir::State::Lists=")), None)
known = (here / "lists-are-there").exists() or (private and (pathlib.Path(private) / "Packages").exists())
if words == ["update"]:
    (pathlib.Path(private) / "Packages").touch()
    sys.exit(100)                       # one of many sources failed
if not known:
    sys.exit("E: Unable to locate package " + words[-1])
if words[0] == "show":
    print("Package: x\\nDepends: linux-image-6.1.0-1-" + words[-1].removeprefix("linux-image-") + " (= 6.1)\\n")
else:
    name = words[-1] + "_1%3a6.1_amd64.deb"
    content = (here / ("kernel.deb" if "linux" in name else "busybox.deb")).read_bytes()
    if "--print-uris" in words:
        print(f"'http://a/{{name}}' {{name}} {{len(content)}} SHA256:00")
    else:
        pathlib.Path(name).write_bytes(content)
"""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    """apt's commands; package lists are there once the file lists-are-there is."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "apt-cache"):
        (programs / name).write_text(APT.format(python=sys.executable, here=str(programs)))
        (programs / name).chmod(0o755)
    (programs / "lists-are-there").touch()
    (programs / "kernel.deb").write_bytes(deb("./boot/vmlinuz-6.1.0-1-amd64", KERNEL))
    (programs / "busybox.deb").write_bytes(deb("./bin/busybox", PROGRAM))
    return programs


def calls(apt: Path) -> list[str]:
    return (apt / "calls").read_text().splitlines() if (apt / "calls").exists() else []


def test_alpines_mirror_comes_first(cache: Cache, mirror: Path, tmp_path: Path) -> None:
    put_apk(mirror)
    put_assets(tmp_path)
    guest = fetch_guest(cache)
    assert guest.kernel_path.read_bytes() == KERNEL
    assert guest.package_path.name == "linux-virt-6.6.6-r0.apk"
    assert guest.root_path.read_bytes() == ROOT
    assert guest.description == ("kernel: Alpine's linux-virt 6.6.6-r0", "root: Alpine minirootfs 3.20.3")


@pytest.mark.parametrize("fault", ["wrong_index", "wrong_data"])
def test_kernel_with_a_wrong_checksum_is_refused(fault: str, cache: Cache, mirror: Path) -> None:
    put_apk(mirror, **{fault: True})
    with pytest.raises(BadImage, match="wrong checksum"):
        fetch_guest(cache)


def test_unreachable_mirror_is_said_and_debians_kernel_used(cache: Cache, apt: Path, tmp_path: Path) -> None:
    put_assets(tmp_path)
    said: list[str] = []
    guest = fetch_guest(cache, say=said.append)
    assert guest.kernel_path.name == "vmlinuz-6.1.0-1-amd64"
    assert guest.kernel_path.read_bytes() == KERNEL
    assert guest.description[0] == "kernel: Debian's linux-image-6.1.0-1-amd64_1:6.1_amd64"
    assert len(said) == 1 and "127.0.0.1:1 is not reachable" in said[0]


@pytest.mark.parametrize(("kernel", "package"), [("generic", "6.1.0-1-amd64"), ("cloud", "6.1.0-1-cloud-amd64")])
def test_debians_kernels_are_debians_even_if_the_mirror_answers(
    kernel: str, package: str, cache: Cache, mirror: Path, apt: Path, tmp_path: Path
) -> None:
    put_apk(mirror)
    put_assets(tmp_path)
    assert fetch_guest(cache, kernel).description[0] == f"kernel: Debian's linux-image-{package}_1:6.1_amd64"


def test_second_time_asks_nobody(cache: Cache, apt: Path, tmp_path: Path) -> None:
    put_assets(tmp_path)
    first = fetch_guest(cache)
    before = calls(apt)
    said: list[str] = []
    assert fetch_guest(Cache(cache.directory), say=said.append) == first
    assert calls(apt) == before and not said


def test_second_time_imports_no_downloader(cache: Cache, apt: Path, tmp_path: Path) -> None:
    put_assets(tmp_path)
    fetch_guest(cache)
    program = (
        "import sys; from emu.cache import Cache; from emu.fetch import fetch_guest;"
        f"fetch_guest(Cache({str(cache.directory)!r}));"
        "print({'urllib.request', 'subprocess', 'tarfile', 'tempfile'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_damaged_cache_is_fetched_again(cache: Cache, apt: Path, tmp_path: Path) -> None:
    put_assets(tmp_path)
    guest = fetch_guest(cache)
    guest.kernel_path.write_bytes(b"damage")
    assert fetch_guest(cache).kernel_path.read_bytes() == KERNEL


def test_machine_without_package_lists_gets_private_ones(cache: Cache, apt: Path, tmp_path: Path) -> None:
    put_assets(tmp_path)
    (apt / "lists-are-there").unlink()
    said: list[str] = []
    guest = fetch_guest(cache, "cloud", say=said.append)
    assert guest.kernel_path.read_bytes() == KERNEL
    assert "update" in calls(apt)
    assert any("lists of our own" in line for line in said)
    assert list((cache.directory / "partial").iterdir()) == []


def test_unknown_package_is_one_line(cache: Cache, apt: Path) -> None:
    (apt / "kernel.deb").unlink()
    with pytest.raises(EmuError) as caught:
        fetch_guest(cache, "cloud")
    assert "\n" not in str(caught.value) and "linux-image" in str(caught.value)


def test_machine_without_apt_is_one_line(cache: Cache) -> None:
    with pytest.raises(EmuError, match="no apt-get"):
        fetch_guest(cache)


def test_unknown_kernel_is_one_line(cache: Cache) -> None:
    with pytest.raises(EmuError, match="unknown kernel 'x': there are alpine, generic, cloud"):
        fetch_guest(cache, "x")


def test_root_comes_from_the_mirror_if_there_is_no_local_one(cache: Cache, mirror: Path, apt: Path) -> None:
    releases = mirror / "v3.20/releases/x86_64"
    releases.mkdir(parents=True)
    (releases / fetch.ROOT_NAME).write_bytes(ROOT)
    assert fetch_guest(cache, "cloud").root_path.read_bytes() == ROOT


def test_busybox_is_the_last_resort_and_a_local_root_replaces_it(cache: Cache, apt: Path, tmp_path: Path) -> None:
    said: list[str] = []
    guest = fetch_guest(cache, "cloud", say=said.append)
    assert guest.root_path.read_bytes() == PROGRAM
    assert "busybox" in guest.description[1]
    assert fetch_guest(cache, "cloud") == guest
    put_assets(tmp_path)
    assert fetch_guest(cache, "cloud").root_path.read_bytes() == ROOT


def test_local_root_with_a_wrong_checksum_is_refused(cache: Cache, apt: Path, tmp_path: Path) -> None:
    put_assets(tmp_path, b"something else")
    with pytest.raises(BadImage, match="wrong checksum"):
        fetch_guest(cache, "cloud")


def test_progress_ends_at_the_total(cache: Cache, mirror: Path, apt: Path) -> None:
    put_apk(mirror)
    seen: list[tuple[str, int, int | None]] = []
    fetch_guest(cache, progress=lambda *step: seen.append(step))
    ends = {name: (done, total) for name, done, total in seen}
    assert {"APKINDEX.tar.gz", "linux-virt-6.6.6-r0.apk"} <= set(ends)
    assert all(done == total for done, total in ends.values())


def test_silent_mirror_is_given_up_after_seconds(
    cache: Cache, apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_assets(tmp_path)
    monkeypatch.setattr("emu.fetch.mirror.CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PVEMU_MIRROR", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert fetch_guest(cache).kernel_path.read_bytes() == KERNEL
        assert time.monotonic() - start < 60        # who waits for an answer waits for ever


@pytest.mark.parametrize("compression", ["xz", "gz", "zst"])
def test_package_may_be_packed_in_any_of_debians_ways(
    compression: str, cache: Cache, apt: Path, tmp_path: Path
) -> None:
    put_assets(tmp_path)
    (apt / "kernel.deb").write_bytes(deb("./boot/vmlinuz-6.1.0-1-amd64", KERNEL, compression))
    assert fetch_guest(cache, "cloud").kernel_path.read_bytes() == KERNEL


def test_damaged_packages_are_one_line(cache: Cache, apt: Path, tmp_path: Path) -> None:
    package = (apt / "kernel.deb").read_bytes()
    other = deb("./boot/config", KERNEL)
    for content in (b"", b"garbage", package[:100], package[:-40], package[:300] + b"?" * 30 + package[330:], other):
        (apt / "kernel.deb").write_bytes(content)
        with pytest.raises(BadImage) as caught:
            fetch_guest(cache, "cloud")
        assert "\n" not in str(caught.value)


def test_assets_are_looked_for_near_the_caller_and_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PVEMU_ASSETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    first, second, third = fetch._asset_directories()
    assert first == tmp_path
    assert second.resolve() == tmp_path.parent / "shared/assets"
    assert third == Path(fetch.__file__).resolve().parents[1] / "../shared/assets"
