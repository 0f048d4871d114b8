"""Hypercalls: what a guest asks of the machine by reading and writing MSRs.

    from hypercalls import Call, hypercall

    @hypercall(0x4B564D20, "PV_ZERO_PAGE")
    def pv_zero_page(call: Call) -> None:
        \"\"\"Zero the page at the guest-physical address written.\"\"\"
        call.memory.write(call.value, bytes(4096))

A handler knows guest memory, a clock, a few services of the machine, and nothing of the CPU; it answers with a value
or raises `GuestFault`.
"""

from __future__ import annotations

from hypercalls.call import Call, CallMemory, Endless, Files, GuestFault, Services
from hypercalls.registry import Hypercall, Registry, hypercall

__all__ = [
    "Call", "CallMemory", "Endless", "Files", "GuestFault", "Hypercall", "Registry", "Services", "hypercall",
]
