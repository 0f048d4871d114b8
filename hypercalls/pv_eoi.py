"""The end of an interrupt without an exit: the guest clears a bit in its memory instead of writing the EOI register.

The guest gives the address of a word to an MSR once. When the local APIC gives an interrupt to the processor that
nothing else waits for, it sets bit 0 there; a guest that finds it set at the interrupt's end clears it, and is done
(Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN; arch/x86/kernel/kvm.c).
"""

from __future__ import annotations

from hypercalls.call import GuestFault
from hypercalls.kvmclock import Memory

__all__ = ["PvEoi"]

ENABLE = 1 << 0                         # of the MSR
RESERVED = 1 << 1
OFFERED = 1 << 0                        # of the word: the guest may clear this instead of writing EOI
WORD_BYTES = 4


class PvEoi:
    """The word of one CPU (devices.lapic_core.GuestEoi).

    Args:
        memory: where the guest keeps it.
        address: of a word that a guest gave before, None: there is none.

    Attributes:
        address: guest-physical, None while it is off.

    Raises:
        OutsideMemory: the address is not in RAM.
    """

    def __init__(self, memory: Memory, address: int | None = None) -> None:
        self._memory = memory
        self.address = address
        if address is not None:
            memory.read(address, WORD_BYTES)        # it is there

    def write_msr(self, value: int) -> None:
        """MSR 0x4b564d04: bits 63-2 are the word's guest-physical address, bit 0 turns it on.

        Raises:
            GuestFault: bit 1 is set, or the word is not in RAM.
        """
        if value & RESERVED:
            raise GuestFault
        if not value & ENABLE:
            self.address = None
            return
        address = value & ~ENABLE
        try:
            self._memory.read(address, WORD_BYTES)
        except ValueError:
            raise GuestFault from None
        self.address = address

    def offer(self) -> bool:
        """Set the bit; whether there is a word to set it in."""
        if self.address is None:
            return False
        self._memory.write(self.address, b"\1")
        return True

    def withdraw(self) -> bool:
        """Clear the bit; whether it was set still, and the guest has to write EOI."""
        if self.address is None:
            return True
        if not self._memory.read(self.address, 1)[0] & OFFERED:
            return False
        self._memory.write(self.address, b"\0")
        return True
