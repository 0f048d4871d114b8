"""Errors that a user can act on: one line each, no traceback needed."""

from __future__ import annotations


class EmuError(Exception):
    """Anything the machine, its loaders or its tools refuse; the message is one line for a person."""


class UnsupportedHost(EmuError):
    """This host, or its libunicorn, is not one the CPU layer knows."""


class BadImage(EmuError):
    """A kernel, initramfs, archive or other input file that cannot be used."""


class BadSnapshot(EmuError):
    """A snapshot that is damaged, or that this machine cannot take up."""


class GuestError(EmuError):
    """The guest failed: it panicked, died, or did not answer."""


class OutputLimit(GuestError):
    """A command wrote more than it may."""


class MemoryLimit(GuestError):
    """A machine took more of the host's memory than it may."""


class MachineDied(EmuError):
    """The process of a machine is gone."""


class PoolFull(EmuError):
    """As many jobs wait for a machine as may."""


class GuestTimeout(GuestError):
    """What was waited for did not happen in time."""


class GuestStopped(GuestError):
    """The guest stopped while something was still expected of it."""
