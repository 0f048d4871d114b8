"""Interrupt messages as the APICs and MSI send them (Intel SDM volume 3, section "Message Signalled Interrupts").

The delivery mode, level and trigger bits stand in the same places in a message's data, in the interrupt command
register, in a local vector table entry and in an I/O APIC's redirection entry.
"""

from __future__ import annotations

__all__ = [
    "ADDRESS_DESTINATION_SHIFT", "ADDRESS_LOGICAL", "DELIVERY_MODE", "EXTINT", "FIXED", "LEVEL_ASSERT",
    "LEVEL_TRIGGERED", "LOWEST_PRIORITY", "MASKED", "MESSAGE_BASE", "NMI", "REMOTE_IRR", "VECTOR",
]

MESSAGE_BASE = 0xFEE0_0000          # address bits 31-20
ADDRESS_DESTINATION_SHIFT = 12      # address bits 19-12
ADDRESS_LOGICAL = 0x04              # address: the destination is logical

VECTOR = 0xFF
DELIVERY_MODE = 0x700
FIXED, LOWEST_PRIORITY, NMI, EXTINT = 0x000, 0x100, 0x400, 0x700    # the others are SMI, INIT and start-up
LEVEL_ASSERT = 0x4000               # in data and commands; the same bit is REMOTE_IRR in table entries
REMOTE_IRR = 0x4000                 # level triggered: accepted, and no EOI yet
LEVEL_TRIGGERED = 0x8000
MASKED = 0x1_0000                   # table entries
