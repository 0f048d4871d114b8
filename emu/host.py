"""What can be said of this host and its Python packages, for reports of problems."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["REQUIREMENTS", "cpu_model", "host", "package_version", "python_version", "usable_cpus"]

REQUIREMENTS = ("unicorn", "cffi", "capstone", "pyelftools", "lz4", "zstandard", "click", "rich")


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
