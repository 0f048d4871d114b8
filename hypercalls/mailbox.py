"""PV_MAILBOX: bytes in and out by the MSR alone, for those who cannot pass an address: a shell over /dev/cpu/0/msr."""

from __future__ import annotations

from hypercalls.call import Call, GuestFault
from hypercalls.numbers import PV_MAILBOX
from hypercalls.registry import hypercall

WORD = 8
CAPACITY = 2 << 20


@hypercall(PV_MAILBOX, "PV_MAILBOX", access="rw")
def pv_mailbox(call: Call) -> int | None:
    """Put eight bytes into the machine's mailbox, or take eight out of it.

    Guest ABI: WRMSR puts the value behind what is there, little-endian; of more than 2 MiB the first are lost. RDMSR
    takes the first eight bytes, filled up with zeroes if fewer are left; #GP if none are. PV_READ and PV_WRITE find
    their request at the end of the mailbox when they are told so, and leave nothing there but their answer. There is
    one mailbox for all the guest's programs: who uses it locks it.
    """
    mailbox = call.mailbox
    if call.is_write:
        mailbox += call.value.to_bytes(WORD, "little")
        if len(mailbox) > CAPACITY:
            del mailbox[:WORD]
        return None
    if not mailbox:
        raise GuestFault
    word = int.from_bytes(mailbox[:WORD], "little")
    del mailbox[:WORD]
    return word
