"""A libunicorn is known by its build ID; anything else gets one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from emu.cpu import abi, check, layout
from emu.cpu.derive import derive
from emu.cpu.library import Library, load
from emu.errors import UnsupportedHost

BOOT_ON = """
import sys
from emu.cpu import library
from emu.errors import UnsupportedHost
try:
    library.Library(sys.argv[1])
except UnsupportedHost as error:
    print(error)
    raise SystemExit(2)
"""


@pytest.fixture(scope="module")
def installed() -> str:
    return abi.library_path()


def refuse(path: Path) -> str:
    """What a process of its own says when it is to use the library at `path`."""
    done = subprocess.run([sys.executable, "-c", BOOT_ON, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.stdout


def test_derived_row_is_the_one_in_the_table(installed: str) -> None:
    assert derive(installed) == layout.layout_of(installed)


def test_a_build_with_another_id_is_refused(installed: str, tmp_path: Path) -> None:
    data = bytearray(Path(installed).read_bytes())
    data[data.index(bytes.fromhex(layout.build_id(installed)))] ^= 0xFF
    other = tmp_path / "libunicorn.so.2"
    other.write_bytes(data)
    assert "build bb285d3e80527122 is not known" in refuse(other)


@pytest.mark.parametrize("size", [0, 10, 63, 64, 400, 4096, 0x40_0000])
def test_a_truncated_library_is_refused(installed: str, tmp_path: Path, size: int) -> None:
    other = tmp_path / "libunicorn.so.2"
    with open(installed, "rb") as whole:
        other.write_bytes(whole.read(size))
    with pytest.raises(UnsupportedHost) as caught:
        layout.layout_of(str(other))
    assert "\n" not in str(caught.value)


def test_a_known_header_with_its_end_cut_off_is_refused(installed: str, tmp_path: Path) -> None:
    """The build ID stands near the front; loading what is left would end the process with SIGBUS."""
    other = tmp_path / "libunicorn.so.2"
    with open(installed, "rb") as whole:
        other.write_bytes(whole.read(os.path.getsize(installed) // 2))
    assert "is cut short" in refuse(other)


@pytest.mark.parametrize("content", [b"#!/bin/sh\n" * 100, b"\x7fELF\x01" + bytes(200), b"MZ" + bytes(400)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "libunicorn.so.2"
    other.write_bytes(content)
    assert "not a 64-bit ELF library" in refuse(other)


def test_a_missing_library_is_refused(tmp_path: Path) -> None:
    assert "cannot read" in refuse(tmp_path / "absent.so")


def fake_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A unicorn package whose metadata says 2.2.0."""
    package = tmp_path / "unicorn"
    package.mkdir()
    (package / "__init__.py").write_text("")
    spec = type("Spec", (), {"origin": str(package / "__init__.py")})
    monkeypatch.setattr(abi.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(metadata, "version", lambda name: "2.2.0")


def fake_anonymity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A unicorn package that nobody has installed."""
    fake_version(monkeypatch, tmp_path)

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


def fake_absence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No unicorn at all."""
    monkeypatch.setattr(abi.importlib.util, "find_spec", lambda name: None)


def fake_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another kind of host."""
    monkeypatch.setattr(abi.os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    monkeypatch.delenv("EMU_UNTESTED_HOST", raising=False)


@pytest.mark.parametrize(
    ("fake", "says"),
    [
        (fake_version, "unicorn 2.2.0 is installed"),
        (fake_anonymity, "unicorn of no version is installed"),
        (fake_absence, "unicorn is not installed"),
        (fake_machine, "this host is aarch64 linux"),
    ],
)
def test_another_host_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake: Callable[[pytest.MonkeyPatch, Path], None], says: str
) -> None:
    fake(monkeypatch, tmp_path)
    with pytest.raises(UnsupportedHost, match=says) as caught:
        abi.library_path()
    assert "\n" not in str(caught.value)


def test_a_function_that_is_missing_is_refused(installed: str) -> None:
    with pytest.raises(UnsupportedHost, match="does not export no_such_function"):
        abi.Symbols(installed)["no_such_function"]


def test_self_test_passes() -> None:
    check.check.cache_clear()
    check.check()


@pytest.mark.parametrize("field", ["error_code", "hflags", "cc_src", "lstar", "interrupt_request"])
def test_self_test_refuses_a_wrong_offset(field: str) -> None:
    """In a process of its own, because with a wrong offset anything may happen to it."""
    script = (
        "from dataclasses import replace\n"
        "from emu.cpu import abi, layout\n"
        "path = abi.library_path()\n"
        "row = layout.layout_of(path)\n"
        f"layout.known_builds()[layout.build_id(path)] = replace(row, {field}=row.{field} + 8)\n"
        "from emu.cpu.check import check\n"
        "check()\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).returncode != 0


def test_the_library_is_loaded_once() -> None:
    assert load() is load()
    assert isinstance(load(), Library)
