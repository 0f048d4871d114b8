"""What can be said of this host and its Python packages, for reports of problems."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = [
    "EXTRAS", "REQUIREMENTS", "cpu_model", "host", "memory_mib", "package_version", "python_version", "settings",
    "system", "usable_cpus",
]

REQUIREMENTS = ("unicorn", "cffi", "capstone", "pyelftools", "lz4", "zstandard", "click", "rich")
EXTRAS = ("matplotlib", "distributed", "pytest")
SETTINGS = ("PVEMU_", "EMU_", "PYTHONDEVMODE", "TMPDIR", "XDG_CACHE_HOME")      # what such variables' names begin with
MIB = 1 << 20


def package_version(name: str) -> str:
    """Version of an installed distribution, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def python_version() -> str:
    """Version and kind of this Python."""
    return f"{platform.python_version()} ({platform.python_implementation()})"


def host() -> str:
    """Kernel and architecture."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def system() -> str:
    """The distribution."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown"


def memory_mib() -> tuple[int, int]:
    """The host's memory in MiB: all, and what is free for programs."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_PHYS_PAGES") * page // MIB, os.sysconf("SC_AVPHYS_PAGES") * page // MIB


def settings() -> dict[str, str]:
    """Variables of the environment that change what this package does; addresses with passwords are not shown."""
    found = sorted((name, value) for name, value in os.environ.items() if name.startswith(SETTINGS))
    return {name: "(not shown)" if "@" in value else value for name, value in found}


def cpu_model() -> str:
    """The host CPU's name for itself."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass                            # a container may have no /proc
    return "unknown"


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))
