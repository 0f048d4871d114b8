"""The layout for aarch64 hosts: of the right shape, and what its library's file says."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from emu.cpu import derive, layout
from emu.errors import UnsupportedHost

WHEEL = "unicorn-2.1.4-*aarch64.whl"
LIBRARY = "unicorn/lib/libunicorn.so.2"
DOWNLOAD = (
    *("download", "--quiet", "--no-deps", "--only-binary=:all:", "--platform=manylinux2014_aarch64"),
    *("--retries=0", "--timeout=10", "unicorn==2.1.4"),
)
OF_THE_HOST = {
    *("icount_decr_ptr", "opaque", "halted", "exception_is_int", "error_code", "env"),       # behind a jmp_buf
    *("cluster_index", "jump_cache", "tcg_uc", "tcg_cpu_env"),      # and behind sets of registers
    *("uc_emu_stop", "slots"),
}
"""Fields that may differ between kinds of host; those of uc and env hold nothing that does."""

(AARCH64,) = layout.AARCH64_BUILDS.values()
(X86_64,) = layout.X86_64_BUILDS.values()


@pytest.fixture(scope="module")
def library(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the wheel for aarch64; the wheel is kept in pytest's cache."""
    assert pytestconfig.cache is not None
    wheels = pytestconfig.cache.mkdir("wheels")
    if not list(wheels.glob(WHEEL)):
        subprocess.run([sys.executable, "-m", "pip", *DOWNLOAD, f"--dest={wheels}"], capture_output=True, timeout=120)
    for wheel in wheels.glob(WHEEL):
        target = tmp_path_factory.mktemp("aarch64")
        return Path(zipfile.ZipFile(wheel).extract(LIBRARY, target))
    pytest.skip("the wheel of unicorn for aarch64 cannot be downloaded here")


def test_only_what_depends_on_the_host_differs() -> None:
    differing = {field.name for field in fields(AARCH64) if getattr(AARCH64, field.name) != getattr(X86_64, field.name)}
    assert differing == OF_THE_HOST


def test_everything_behind_the_jmp_buf_moved_by_the_difference_of_its_sizes() -> None:
    moved = {getattr(AARCH64, name) - getattr(X86_64, name) for name in ("opaque", "halted", "env", "error_code")}
    assert moved == {312 - 200}         # sizeof(sigjmp_buf) in glibc's ABI for aarch64 and for x86-64


def test_the_same_functions_are_replaced_in_as_many_places() -> None:
    assert sorted(name for name, _ in AARCH64.slots) == sorted(name for name, _ in X86_64.slots)
    assert all(slot % 8 == 0 for _, slot in AARCH64.slots)
    assert len({slot for _, slot in AARCH64.slots}) == len(AARCH64.slots)


def test_derived_row_is_the_one_in_the_table(library: Path) -> None:
    assert derive.derive(str(library)) == layout.AARCH64_BUILDS[layout.build_id(str(library))]


def test_a_row_is_for_one_kind_of_host(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout.os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    with pytest.raises(UnsupportedHost, match="is not known"):
        layout.layout_of(str(library))
    monkeypatch.setattr(layout.os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    assert layout.layout_of(str(library)) == AARCH64


def test_a_library_for_any_other_host_is_not_derived(tmp_path: Path, library: Path) -> None:
    other = bytearray(library.read_bytes())
    other[18:20] = (243).to_bytes(2, "little")          # e_machine: EM_RISCV
    path = tmp_path / "libunicorn.so.2"
    path.write_bytes(other)
    with pytest.raises(UnsupportedHost, match="not for this host, nor for aarch64"):
        derive.derive(str(path))
