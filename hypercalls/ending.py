"""PV_EXIT and PV_MARK: a guest tells the program that runs it how far it has come."""

from __future__ import annotations

from hypercalls.call import Call
from hypercalls.numbers import PV_EXIT, PV_MARK
from hypercalls.registry import hypercall

STATUS_MASK = 0xFF


@hypercall(PV_EXIT, "PV_EXIT")
def pv_exit(call: Call) -> None:
    """End the machine with a status.

    Guest ABI: WRMSR. Bits 7-0 are the exit status of the machine (`Machine.exit_status`) and of the command that
    runs it. Nothing behind the WRMSR is executed; what the guest had not written to its disks is lost.
    """
    call.machine.exit(call.value & STATUS_MASK)


@hypercall(PV_MARK, "PV_MARK")
def pv_mark(call: Call) -> None:
    """Note an event with its time.

    Guest ABI: WRMSR of any value; it means what guest and host agree on. `Machine.marks` has the last 65,536.
    """
    call.machine.mark(call.value)
