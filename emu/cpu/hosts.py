"""Which kinds of host the CPU layer knows; imports nothing that only those have, so that others can be told."""

from __future__ import annotations

import mmap
import os
import sys

from emu.errors import UnsupportedHost

__all__ = ["UNTESTED_HOST", "check_host"]

PAGE_BYTES = 4096                       # the guest's; host memory is handled by pages in many places
UNTESTED_HOST = "EMU_UNTESTED_HOST"


def check_host() -> None:
    """Refuse hosts that cannot work, and aarch64 Linux unless somebody wants to try it.

    Raises:
        UnsupportedHost: this is not x86-64 Linux with pages of 4 KiB and a 64-bit Python.
    """
    machine = os.uname().machine if hasattr(os, "uname") else "a PC"
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        raise UnsupportedHost(f"this host is {machine} {sys.platform}; only x86-64 Linux is known")
    if sys.maxsize < 1 << 32:
        raise UnsupportedHost("this Python is a 32-bit program; only 64-bit ones are known")
    if mmap.PAGESIZE != PAGE_BYTES:
        raise UnsupportedHost(f"this host's pages are {mmap.PAGESIZE} bytes; only {PAGE_BYTES} are known")
    if machine == "aarch64" and os.environ.get(UNTESTED_HOST) != "1":
        raise UnsupportedHost(
            f"this host is aarch64 linux, where nobody has run this on hardware; {UNTESTED_HOST}=1 tries it"
        )
