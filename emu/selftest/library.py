"""Checks of the library itself, in the order in which a machine depends on them: which step refuses it, and why."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import fields
from importlib import metadata

from emu.cpu import abi, layout
from emu.cpu.abi import REMEDY, ffi
from emu.cpu.check import check
from emu.cpu.library import FUNCTIONS, load
from emu.selftest.check import Failure, Group, Skipped

GROUP = Group("libunicorn")

PACKAGE = "unicorn"
RECORDED_NAME = "unicorn/lib/libunicorn.so.2"
SUFFIX = "_x86_64"


@GROUP.check("its package", "another version has other insides: nothing of what follows would hold", vital=True)
def package() -> None:
    """x86-64 Linux, and `unicorn` in the one version whose insides are known."""
    abi.library_path()


@GROUP.check("its file", "loading what is left of a library ends the process", vital=True)
def whole_file() -> None:
    """An ELF library, all of it there, with a build ID."""
    layout.build_id(abi.library_path())


@GROUP.check("its checksum", "damage anywhere in it shows only when a guest comes by there")
def checksum() -> None:
    """The file is what the package's own record of its files says (RECORD of the installed distribution)."""
    recorded = _recorded()
    with open(abi.library_path(), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != recorded:
        raise Failure(f"the file is not the one that was installed: {REMEDY}")


def _recorded() -> str:
    """SHA-256 as RECORD has it: base64 for file names, without padding."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file) == RECORDED_NAME and file.hash is not None and file.hash.mode == "sha256":
            return file.hash.value
    raise Skipped("its package has no record of its files")


@GROUP.check("its build", "the CPU layer would write to whatever stands at the offsets of another build", vital=True)
def build() -> None:
    """The build ID has a row in the table of layouts."""
    layout.layout_of(abi.library_path())


@GROUP.check("loading it", "no machine starts on this host", vital=True)
def loading() -> None:
    """The host's loader takes it, and it exports every function that machine code calls."""
    path = abi.library_path()
    abi.open_library(path)
    symbols = abi.Symbols(path)
    for name in FUNCTIONS:
        symbols[name]


@GROUP.check("its layout", "the CPU layer reads and writes the wrong places: anything may happen")
def row() -> None:
    """The table's row is what the library's own code says: offsets read off its functions, and tried on a CPU."""
    from emu.cpu.derive import derive  # needs packages that nothing else here does

    path = abi.library_path()
    try:
        derived = derive(path)
    except Exception as error:      # of whatever kind: it reads a file that may be damaged
        raise Failure(f"no row can be derived from it: {type(error).__name__} {error}".rstrip()) from None
    known = layout.layout_of(path)
    wrong = [field.name for field in fields(derived) if getattr(derived, field.name) != getattr(known, field.name)]
    if wrong:
        raise Failure(f"the table's row differs in {', '.join(wrong)}")


@GROUP.check("its link table", "other functions than the right ones are replaced by machine code")
def link_table() -> None:
    """Each place that is going to lead to machine code leads to the function that this replaces; before it is done."""
    from emu.cpu.derive import REPLACED, REPLACED_HELPERS, REPLACED_POINTERS

    path = abi.library_path()
    known = layout.layout_of(path)
    abi.open_library(path)
    symbols = abi.Symbols(path)
    base = symbols["uc_emu_stop"] - known.uc_emu_stop
    replaced = REPLACED | REPLACED_HELPERS | REPLACED_POINTERS
    for thunk, slot in known.slots:
        name = replaced[thunk].removesuffix(SUFFIX)
        # A process that has had a machine already has put it there
        right = load().thunks[thunk] if load.cache_info().currsize else symbols[name]
        if ffi.cast("uint64_t *", base + slot)[0] != right:
            raise Failure(f"at {slot:#x} there is not the address of {name}")


@GROUP.check("its start-up test", "no machine starts: this is what each of them tries first")
def start_up() -> None:
    """A dozen instructions through every private offset, with the functions replaced (`emu.cpu.check`)."""
    check.cache_clear()
    check()
