"""docs/hypercalls.md: its table and its texts are the handlers' own, and its code does what it says."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from devices.p9.export import Export
from devices.p9.whole_files import WholeFiles
from emu.microguest import CODE, MicroGuest
from hypercalls import Hypercall, hypercall
from hypercalls.builtin import BUILT_IN
from hypercalls.call import ACCESS_BUDGET, ACCESS_LEAST
from hypercalls.dispatch import MOST_LOGGED
from hypercalls.fake import FakeCalls

TEXT = (Path(__file__).parents[2] / "docs" / "hypercalls.md").read_text()
ROW = re.compile(r"^\| `(0x4b564d\w\w)` \| (PV_\w+) \| (\w+) \| (.*) \|$", re.MULTILINE)
ACCESSES = {"RDMSR": "r", "WRMSR": "w", "both": "rw"}

# What the module in the text needs of Linux' headers.
LINUX = """
typedef unsigned char u8; typedef unsigned u32; typedef unsigned long long u64; typedef long long s64;
#define PAGE_SIZE 4096
#define __aligned(n) __attribute__((aligned(n)))
#define __init
#define module_init(function) int (*initial)(void) = function
#define MODULE_LICENSE(text) const char *licence = text
enum { GFP_KERNEL, ENOMEM, EIO };
void *kzalloc(unsigned long size, int flags);
void kfree(void *object);
unsigned long virt_to_phys(void *address);
int wrmsrl_safe(u32 number, u64 value);
"""


def blocks(language: str) -> list[str]:
    """The contents of blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def documentation(one: Hypercall) -> str:
    """A handler's docstring."""
    return inspect.cleandoc(one.handler.__doc__ or "")


def test_the_table_has_every_hypercall() -> None:
    rows = {(int(number, 16), name, ACCESSES[access], meaning) for number, name, access, meaning in ROW.findall(TEXT)}
    assert rows == {(one.number, one.name, one.access, documentation(one).partition("\n")[0]) for one in BUILT_IN}


@pytest.mark.parametrize("one", BUILT_IN, ids=lambda one: one.name)
def test_the_text_has_each_hypercall_s_abi(one: Hypercall) -> None:
    assert f"**{one.name}**\n\n```text\n{documentation(one)}\n```\n" in TEXT
    assert "Guest ABI: " in documentation(one)


def test_the_limits_are_those_of_the_code() -> None:
    assert f"read and write {ACCESS_BUDGET >> 20} MiB" in TEXT
    assert f"counting as {ACCESS_LEAST} bytes" in TEXT.replace("\n", " ")
    assert f"{MOST_LOGGED} complaints" in TEXT


def test_the_example_works() -> None:
    (source,) = blocks("python")
    names: dict[str, object] = {"hypercall": hypercall}
    exec(source, names)
    pv_double = names["pv_double"]
    assert isinstance(pv_double, Hypercall)
    fakes = FakeCalls()
    assert fakes.wrmsr(pv_double, 21) == 42
    with pytest.raises(Exception, match="exception 13"):
        fakes.wrmsr(pv_double, 1 << 63)


# --- code for guests ----------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """Where a program is."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} here")
    return path


def c_source(start: str) -> str:
    """The block of C that has these words."""
    (source,) = (block for block in blocks("c") if start in block)
    return source


def check_compiles(path: Path, *options: str) -> None:
    """What gcc has to say about it."""
    result = subprocess.run(
        [tool("gcc"), "-Wall", "-Wextra", "-Werror", *options, path], capture_output=True, text=True, cwd=path.parent
    )
    assert result.returncode == 0, result.stderr


def test_the_program_compiles(tmp_path: Path) -> None:
    path = tmp_path / "pv_read.c"
    path.write_text(c_source("int main"))
    check_compiles(path, "-O2", "-c")


def test_the_module_compiles(tmp_path: Path) -> None:
    path = tmp_path / "pv_hello.c"
    path.write_text(c_source("module_init"))
    for name in re.findall("#include <(.*)>", path.read_text()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linux" / "module.h").write_text(LINUX)
    check_compiles(path, "-O2", "-c", "-ffreestanding", "-I", str(tmp_path))


def link(elf: Path, *objects: Path) -> None:
    """Make a program that is entered at its first byte, at CODE."""
    command = [tool("ld"), "-N", f"-Ttext={CODE:#x}", "-e", f"{CODE:#x}", "-o", elf, *objects]
    subprocess.run(command, check=True, capture_output=True)    # it warns of what a kernel cannot help


def run_bare(elf: Path) -> bytes:
    """What a program linked at CODE prints in a guest without a kernel, whose host has a file `hello`."""
    flat = elf.with_suffix(".bin")
    subprocess.run([tool("objcopy"), "-O", "binary", elf, flat], check=True)
    host = elf.parent / "host"
    host.mkdir()
    (host / "hello").write_bytes(b"hello from the host\n")
    with closing(WholeFiles(Export(host, "test"))) as files, MicroGuest() as guest:
        guest.machine.files = files
        guest.run(flat.read_bytes())
        return guest.console


def test_the_assembly_runs(tmp_path: Path) -> None:
    (source,) = blocks("asm")
    (tmp_path / "hello.s").write_text(source)
    elf = tmp_path / "hello.elf"
    subprocess.run([tool("as"), "-o", tmp_path / "hello.o", tmp_path / "hello.s"], check=True)
    link(elf, tmp_path / "hello.o")
    assert run_bare(elf) == b">hello from the host\n"


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_the_kernel_runs(tmp_path: Path, level: str) -> None:
    path, elf = tmp_path / "kernel.c", tmp_path / "kernel.elf"
    path.write_text(c_source("void start"))
    (tmp_path / "start.s").write_text("call start\n")
    options = re.findall(r"`(-ffreestanding .*?)`", TEXT.replace("\n", " "))[0].split()
    check_compiles(path, level, *options, "-c", "-o", "kernel.o")
    subprocess.run([tool("as"), "-o", tmp_path / "start.o", tmp_path / "start.s"], check=True)
    link(elf, tmp_path / "start.o", tmp_path / "kernel.o")
    assert run_bare(elf) == b">hello from the host\n"
