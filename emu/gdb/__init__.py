"""A stub for gdb: the remote serial protocol, for a machine's kernel and its programs."""

from emu.gdb.server import GdbServer

__all__ = ["GdbServer"]
