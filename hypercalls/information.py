"""PV_INFORMATION: whether this is such a machine, and what it offers."""

from __future__ import annotations

import enum

from hypercalls.call import Call
from hypercalls.numbers import PV_INFORMATION
from hypercalls.registry import hypercall

SIGNATURE = 0x5056                      # "VP" in memory: little-endian for PV
ABI_VERSION = 1


class Feature(enum.IntFlag):
    """Bits 31-0: which hypercalls answer. Those of users have none."""

    CONSOLE = 1 << 0
    IDLE = 1 << 1
    FILES = 1 << 2
    """PV_READ and PV_WRITE; only where the machine has a directory for them."""
    MAILBOX = 1 << 3
    EXIT = 1 << 4
    MARK = 1 << 5
    WALL_CLOCK = 1 << 6
    RANDOM = 1 << 7


ALWAYS = ~Feature.FILES


@hypercall(PV_INFORMATION, "PV_INFORMATION", access="r")
def pv_information(call: Call) -> int:
    """What there is.

    Guest ABI: RDMSR. Bits 63-48 are 0x5056, bits 47-32 the version of this ABI, 1, and bits 31-0 tell which hypercalls
    there are: bit 0 PV_CONSOLE, 1 PV_IDLE, 2 PV_READ and PV_WRITE, if the machine exports a directory for them,
    3 PV_MAILBOX, 4 PV_EXIT, 5 PV_MARK, 6 PV_WALL_CLOCK, 7 PV_RANDOM. On other machines the RDMSR is #GP.
    """
    features = ALWAYS if call.machine.files is None else ALWAYS | Feature.FILES
    return SIGNATURE << 48 | ABI_VERSION << 32 | features
