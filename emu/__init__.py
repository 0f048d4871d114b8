"""A pure-Python x86-64 machine on stock Unicorn that boots unmodified Linux.

    import emu

    with emu.boot("alpine") as vm:
        print(vm.run("cat /etc/alpine-release").stdout)

Names are imported when they are first used: `import emu` itself costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "DiskImage", "EmuError", "Fleet", "GuestError", "GuestException", "GuestTimeout", "Machine", "MachineDied",
    "MachineFailure", "MachineProcess", "MemoryLimit", "MicroGuest", "OutputLimit", "Pool", "PoolFull", "PoolMetrics",
    "Result", "Share", "StopReason", "VsockNetwork", "boot", "restore", "spawn",
]

if TYPE_CHECKING:
    from emu.errors import EmuError, GuestError, GuestTimeout, MachineDied, MemoryLimit, OutputLimit, PoolFull
    from emu.fittings import DiskImage, Share, VsockNetwork
    from emu.fleet.failures import MachineFailure
    from emu.fleet.fleet import Fleet
    from emu.guest import Result
    from emu.launch import boot
    from emu.machine import Machine
    from emu.microguest import GuestException, MicroGuest
    from emu.pool.metrics import PoolMetrics
    from emu.pool.pool import Pool
    from emu.process.client import MachineProcess
    from emu.process.spawn import spawn
    from emu.run_loop import StopReason
    from emu.snapshot.machine import restore


_HOMES = {
    "DiskImage": "emu.fittings",
    "EmuError": "emu.errors",
    "Fleet": "emu.fleet.fleet",
    "GuestError": "emu.errors",
    "GuestException": "emu.microguest",
    "GuestTimeout": "emu.errors",
    "Machine": "emu.machine",
    "MachineDied": "emu.errors",
    "MachineFailure": "emu.fleet.failures",
    "MachineProcess": "emu.process.client",
    "MemoryLimit": "emu.errors",
    "MicroGuest": "emu.microguest",
    "OutputLimit": "emu.errors",
    "Pool": "emu.pool.pool",
    "PoolFull": "emu.errors",
    "PoolMetrics": "emu.pool.metrics",
    "Result": "emu.guest",
    "Share": "emu.fittings",
    "StopReason": "emu.run_loop",
    "VsockNetwork": "emu.fittings",
    "boot": "emu.launch",
    "restore": "emu.snapshot.machine",
    "spawn": "emu.process.spawn",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'emu' has no attribute {name!r}")
    import sys
    from importlib import import_module

    if sys.platform != "linux" and _HOMES[name] != "emu.errors":
        from emu.cpu.hosts import check_host

        check_host()                # before something is imported that only Linux has
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
