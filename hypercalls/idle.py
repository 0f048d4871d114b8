"""PV_IDLE: a guest says that it has nothing to do."""

from __future__ import annotations

from hypercalls.call import Call
from hypercalls.numbers import PV_IDLE
from hypercalls.registry import hypercall


@hypercall(PV_IDLE, "PV_IDLE")
def pv_idle(call: Call) -> None:
    """Sleep until the next event.

    Guest ABI: WRMSR of any value. It returns when an interrupt is pending, at once if one is already. Unlike HLT it
    also works with interrupts disabled: the guest goes on behind it, and takes the interrupt when it enables them,
    so that none can slip in between the last look for work and the sleep (as MWAIT does with its break on interrupt).
    """
    call.machine.idle()
