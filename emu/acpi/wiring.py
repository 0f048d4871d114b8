"""What of the tables' contents the board itself needs."""

from __future__ import annotations

__all__ = ["GENERATION_ID", "GENERATION_ID_SIZE", "RSDP_ADDRESS", "gsi_of"]

RSDP_ADDRESS = 0xF_0000             # guests without a boot protocol scan from here to 1 MiB, in steps of 16
GENERATION_ID, GENERATION_ID_SIZE = 0xF_FF00, 16       # beyond the tables: 128 random bits, new after a restore

PCI_GSI_BASE, PCI_GSIS = 16, 4


def gsi_of(device_number: int, pin: int) -> int:
    """The global system interrupt that a PCI device's pin (0 is INTA) is wired to: level-triggered, shared."""
    return PCI_GSI_BASE + (device_number + pin) % PCI_GSIS
