"""PV_WALL_CLOCK and PV_RANDOM: what a small guest has no driver for."""

from __future__ import annotations

import os

from hypercalls.buffer import buffer_at
from hypercalls.call import Call
from hypercalls.numbers import PV_RANDOM, PV_WALL_CLOCK
from hypercalls.registry import hypercall


@hypercall(PV_WALL_CLOCK, "PV_WALL_CLOCK", access="r")
def pv_wall_clock(call: Call) -> int:
    """The time.

    Guest ABI: RDMSR. Nanoseconds since 1970-01-01 00:00 UTC, unsigned.
    """
    return call.clock.wall_ns()


@hypercall(PV_RANDOM, "PV_RANDOM", access="rw")
def pv_random(call: Call) -> int | None:
    """Random bytes from the host's kernel.

    Guest ABI: RDMSR gives 64 random bits. WRMSR fills a buffer: bit 63 is set, bits 47-0 are its guest-physical
    address and bits 62-48 its size, 1 to 32,767 bytes. #GP if that is not all RAM.
    """
    if not call.is_write:
        return int.from_bytes(os.urandom(8), "little")
    address, size = buffer_at(call.value)
    call.memory.write(address, os.urandom(size))
    return None
