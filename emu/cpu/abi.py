"""The binding to libunicorn and libc: cffi in ABI mode, nothing compiled (see `declarations`).

libunicorn.so exports its internals beside its public API. Those called here from Python cannot longjmp; those that can
are only ever called by the machine code of `thunks.lst`.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from emu.cpu._abi import ffi
from emu.cpu.hosts import check_host
from emu.errors import UnsupportedHost

__all__ = ["REMEDY", "UNICORN_VERSION", "Symbols", "address", "ffi", "libc", "library_path", "open_library"]

UNICORN_VERSION = "2.1.4"
REMEDY = f"pip install --force-reinstall unicorn=={UNICORN_VERSION}"

libc: Any = ffi.dlopen(None)


def library_path() -> str:
    """Path of the installed libunicorn.

    Raises:
        UnsupportedHost: unicorn is missing, is not version 2.1.4, or this host is not a known one.
    """
    check_host()
    spec = importlib.util.find_spec("unicorn")
    if spec is None or spec.origin is None:
        raise UnsupportedHost(f"unicorn is not installed: {REMEDY}")
    package = os.path.dirname(spec.origin)
    if not os.path.isdir(os.path.join(os.path.dirname(package), f"unicorn-{UNICORN_VERSION}.dist-info")):
        from importlib import metadata  # 25 ms, and only for a message

        try:
            version = metadata.version("unicorn")
        except metadata.PackageNotFoundError:
            version = "of no version"
        if version != UNICORN_VERSION:
            raise UnsupportedHost(f"unicorn {version} is installed, and is not known: {REMEDY}")
    return os.path.join(package, "lib", "libunicorn.so.2")


def open_library(path: str) -> Any:
    """Load libunicorn.

    Raises:
        UnsupportedHost: the file is missing or is not a shared library for this host.
    """
    try:
        return ffi.dlopen(path)
    except OSError as error:
        raise UnsupportedHost(f"cannot load libunicorn: {error}") from None


class Symbols:
    """Host addresses of libunicorn's exported functions, by their plain name."""

    def __init__(self, path: str) -> None:
        self._handle = libc.dlopen(path.encode(), os.RTLD_NOW)

    def __getitem__(self, name: str) -> int:
        """Address of `name`, or of its x86-64 instance.

        Raises:
            UnsupportedHost: the library does not export it.
        """
        for candidate in (f"{name}_x86_64", name):
            found = libc.dlsym(self._handle, candidate.encode())
            if found != ffi.NULL:
                return address(found)
        raise UnsupportedHost(f"this libunicorn does not export {name}: {REMEDY}")


def address(pointer: Any) -> int:
    """Host address that a cffi pointer holds."""
    return int(ffi.cast("uintptr_t", pointer))
