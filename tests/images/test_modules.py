"""Kernel modules out of packages and directories, as an archive for the guest."""

from __future__ import annotations

import gzip
import lzma
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import emu.fetch.packages
from emu.cache import Cache
from emu.errors import BadImage
from emu.images.cpio import archive_end, read_archive
from emu.images.modules import USUAL, WANTED, load_modules, read_module
from tests.images.fakes import RELEASE, deb, kernel_package, module

ROOT = f"lib/modules/{RELEASE}"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tmp_path / "linux-image.deb"


def files_of(archive: memoryview) -> dict[str, bytes]:
    assert len(archive) % 4 == 0
    assert archive_end(archive, 0, "the archive") == len(archive)
    return {entry.name: bytes(entry.data) for entry in read_archive(archive)}


def loaded(modules: Mapping[str, bytes], package: Path, cache: Cache) -> dict[str, bytes]:
    package.write_bytes(kernel_package(modules))
    return files_of(load_modules(package, cache))


def order(files: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Each module's dependencies, in the order in which modprobe loads them: from the end of the line."""
    lines = (line.partition(":") for line in files[f"{ROOT}/modules.dep"].decode().splitlines())
    return {name: needs.split()[::-1] for name, _, needs in lines}


def test_wanted_modules_bring_what_they_depend_on_and_no_others(package: Path, cache: Cache) -> None:
    ring, pci = module(), module(["virtio_ring", "virtio"])
    modules = {"d/virtio_ring.ko": ring, "d/virtio.ko": module(["virtio_ring"]), "d/virtio_pci.ko": pci}
    files = loaded({**modules, "x/e1000.ko": module()}, package, cache)
    assert files[f"{ROOT}/virtio_pci.ko"] == pci and files[f"{ROOT}/virtio_ring.ko"] == ring
    assert f"{ROOT}/e1000.ko" not in files
    assert order(files)["virtio_pci.ko"] == ["virtio_ring.ko", "virtio.ko"]


def test_modules_are_loaded_after_all_that_they_need(package: Path, cache: Cache) -> None:
    chain = {"9p": ["b", "a", "c"], "a": ["c"], "b": ["a"], "c": ["d"], "d": []}
    files = loaded({f"{name}.ko": module(needs) for name, needs in chain.items()}, package, cache)
    assert order(files)["9p.ko"] == ["d.ko", "c.ko", "a.ko", "b.ko"]


def test_dependency_that_stands_before_what_needs_it_is_found(package: Path, cache: Cache) -> None:
    files = loaded({"unheard_of.ko": module(), "msr.ko": module(["unheard_of"])}, package, cache)
    assert order(files)["msr.ko"] == ["unheard_of.ko"]


def test_dependency_that_is_built_in_is_left_out(package: Path, cache: Cache) -> None:
    assert order(loaded({"ext4.ko": module(["crc16"])}, package, cache)) == {"ext4.ko": []}


def test_modules_that_need_each_other_end(package: Path, cache: Cache) -> None:
    files = loaded({"msr.ko": module(["a"]), "a.ko": module(["b"]), "b.ko": module(["a", "msr"])}, package, cache)
    assert order(files)["msr.ko"] == ["b.ko", "a.ko"]


def test_hyphens_and_underscores_are_the_same(package: Path, cache: Cache) -> None:
    files = loaded({"virtio-rng.ko": module(["a-b"]), "a_b.ko": module()}, package, cache)
    assert order(files)["virtio_rng.ko"] == ["a_b.ko"]


def test_aliases_are_listed(package: Path, cache: Cache) -> None:
    files = loaded({"virtio_blk.ko": module(aliases=["virtio:d00000002v*", "disk"])}, package, cache)
    assert files[f"{ROOT}/modules.alias"] == b"alias virtio:d00000002v* virtio_blk\nalias disk virtio_blk\n"


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)]
)
def test_compressed_modules_are_expanded(suffix, compress, package: Path, cache: Cache) -> None:  # type: ignore[no-untyped-def]
    assert loaded({f"msr.ko{suffix}": compress(module())}, package, cache)[f"{ROOT}/msr.ko"] == module()


def test_directory_lib_is_not_in_the_archive(package: Path, cache: Cache) -> None:
    """Linux would put it in the place of a symbolic link, as /lib is in many roots."""
    names = list(loaded({"msr.ko": module()}, package, cache))
    assert names[:2] == ["lib/modules", ROOT]


def test_kernel_without_wanted_modules_gives_nothing(package: Path, cache: Cache) -> None:
    package.write_bytes(kernel_package({"e1000.ko": module()}))
    assert [len(load_modules(package, cache)) for _ in range(2)] == [0, 0]


def test_package_is_read_once(package: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loaded({"msr.ko": module()}, package, cache)
    monkeypatch.setattr(emu.fetch.packages, "package_files", None)
    assert files_of(load_modules(package, cache)) == first


def test_another_package_of_the_same_name_is_noticed(package: Path, cache: Cache) -> None:
    for padding in (1, 2):
        data = module(padding=padding)
        assert loaded({"msr.ko": data}, package, cache)[f"{ROOT}/msr.ko"] == data


def test_what_lies_behind_the_last_wanted_module_is_not_read(package: Path, cache: Cache) -> None:
    modules = {f"{name}.ko": module() for name in (*WANTED, *USUAL)}
    whole = kernel_package({**modules, "other.ko": random.Random(1).randbytes(1 << 20)})
    package.write_bytes(whole[:-1000] + bytes(1000))
    assert f"{ROOT}/{WANTED[-1]}.ko" in files_of(load_modules(package, cache))
    del modules["msr.ko"]
    whole = kernel_package({**modules, "other.ko": random.Random(1).randbytes(1 << 20)})
    package.write_bytes(whole[:-1000] + bytes(1000))
    with pytest.raises(BadImage):
        load_modules(package, cache)


def test_directory_of_modules_will_do(tmp_path: Path, cache: Cache) -> None:
    root = tmp_path / "lib" / "modules" / RELEASE
    (root / "kernel" / "fs").mkdir(parents=True)
    (root / "kernel" / "fs" / "overlay.ko.xz").write_bytes(lzma.compress(module(["helper"])))
    (root / "kernel" / "helper.ko").write_bytes(module())
    (root / "modules.builtin").write_text("kernel/x.ko\n")
    files = files_of(load_modules(root, cache))
    assert order(files) == {"overlay.ko": ["helper.ko"], "helper.ko": []}


def test_unusable_packages_are_one_line(package: Path, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="cannot read"):
        load_modules(tmp_path / "missing.deb", cache)
    whole = kernel_package({"msr.ko": module(), "overlay.ko": module(padding=5000)})
    for content in (b"", b"garbage", whole[:-40], kernel_package({"msr.ko": b"no module"})):
        package.write_bytes(content)
        with pytest.raises(BadImage) as failure:
            load_modules(package, cache)
        assert "\n" not in str(failure.value)


def test_package_of_two_kernels_is_refused(package: Path, cache: Cache) -> None:
    package.write_bytes(deb({f"./lib/modules/{release}/msr.ko": module() for release in ("6.1", "6.2")}))
    with pytest.raises(BadImage, match="several kernels"):
        load_modules(package, cache)


@given(st.binary(max_size=300), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damaged_modules_are_refused_or_read(noise: bytes, position: int, change: bytes) -> None:
    data = module(["a", "b"], ["alias"])
    changed = data[:position] + change + data[position + len(change) :]
    for content in (noise, b"\x7fELF\x02" + noise, data[:position], changed):
        try:
            read_module("x", content)
        except BadImage:
            pass
