"""The ACPI tables of the board, and where they lie (ACPI specification 6.4, section 5.2)."""

from __future__ import annotations

import struct
from functools import cache

from devices.acpi_pm import (
    GPE0_BLOCK,
    GPE0_LENGTH,
    PM1A_CONTROL,
    PM1A_CONTROL_LENGTH,
    PM1A_EVENT,
    PM1A_EVENT_LENGTH,
    PM_TIMER,
    PM_TIMER_LENGTH,
    RESET_PORT,
    RESET_VALUE,
)
from devices.frozen import frozen
from emu.acpi.dsdt import CPU_UID, PCI_LAST_BUS, definition_block
from emu.acpi.wiring import GENERATION_ID, RSDP_ADDRESS

__all__ = ["IO_APIC", "IO_APIC_ID", "LOCAL_APIC", "SCI", "AcpiConfig", "build_tables"]

SCI = 9                             # ISA interrupt and GSI

LOCAL_APIC, LOCAL_APIC_ID = 0xFEE0_0000, 0
IO_APIC, IO_APIC_ID, GSI_BASE = 0xFEC0_0000, 0, 0
TIMER_IRQ, TIMER_GSI = 0, 2

OEM_ID, OEM_TABLE_ID, CREATOR_ID, BUILD = b"PVEMU ", b"PVEMU PC", b"PVEM", 1
HEADER_SIZE, RSDP_SIZE, RSDP_V1_SIZE, FADT_SIZE, FACS_SIZE = 36, 36, 20, 276, 64
RSDP_REVISION, XSDT_REVISION, FADT_REVISION, FADT_MINOR, MADT_REVISION, FACS_VERSION = 2, 1, 6, 4, 5, 2
MCFG_REVISION = 1
DSDT_REVISION = 2                   # integers have 64 bits
CHECKSUM_AT, RSDP_CHECKSUM_AT, RSDP_EXTENDED_CHECKSUM_AT = 9, 8, 32
FACS_ALIGNMENT, TABLE_ALIGNMENT = 64, 16

MADT_PCAT_COMPAT = 1                # there is a pair of 8259A, too
MADT_LOCAL_APIC, MADT_IO_APIC, MADT_SOURCE_OVERRIDE, MADT_LOCAL_APIC_NMI = 0, 1, 2, 4
PROCESSOR_ENABLED = 1
ISA_BUS = 0
AS_THE_BUS, LEVEL_ACTIVE_HIGH = 0b00_00, 0b11_01    # trigger mode and polarity
ALL_PROCESSORS, LINT1 = 0xFF, 1

BOOT_LEGACY_DEVICES, BOOT_8042, BOOT_NO_VGA = 1 << 0, 1 << 1, 1 << 2
FADT_WBINVD, FADT_PROC_C1, FADT_SLP_BUTTON, FADT_FIX_RTC = 1 << 0, 1 << 2, 1 << 5, 1 << 6
FADT_TMR_VAL_EXT, FADT_RESET_REG_SUP = 1 << 8, 1 << 10
NO_C2, NO_C3 = 101, 1001            # microseconds: what is above 100, 1000 is not supported
CMOS_CENTURY = 0x32

SPACE_IO = 1                        # of a generic address
ACCESS_BYTE, ACCESS_WORD, ACCESS_DWORD = 1, 2, 3


@frozen
class AcpiConfig:
    """What differs from machine to machine.

    Attributes:
        pci_memory: start and size of the addresses below 4 GiB that belong to PCI.
        pci_memory_64: the same above 4 GiB, if there are any.
        pci_config: start of the 1 MiB, outside of those, in which bus 0's configuration space is mapped (ECAM), if it
            is. Without it Linux warns that it cannot reach extended configuration space.
    """

    pci_memory: tuple[int, int]
    pci_memory_64: tuple[int, int] | None = None
    pci_config: int | None = None


@cache
def build_tables(config: AcpiConfig) -> tuple[tuple[int, bytes], ...]:
    """All tables with their guest-physical addresses, the RSDP first, in the BIOS area from `RSDP_ADDRESS`."""
    facs_address = _aligned(RSDP_ADDRESS + RSDP_SIZE, FACS_ALIGNMENT)
    placed = [(facs_address, _facs())]

    def place(table: bytes) -> int:
        last_address, last = placed[-1]
        address = _aligned(last_address + len(last), TABLE_ALIGNMENT)
        placed.append((address, table))
        return address

    aml = definition_block(config.pci_memory, config.pci_memory_64, config.pci_config, GENERATION_ID)
    dsdt_address = place(_table(b"DSDT", DSDT_REVISION, aml))
    entries = [
        place(_table(b"FACP", FADT_REVISION, _fadt(facs_address, dsdt_address))),
        place(_table(b"APIC", MADT_REVISION, _madt())),
    ]
    if config.pci_config is not None:
        entries.append(place(_table(b"MCFG", MCFG_REVISION, _mcfg(config.pci_config))))
    xsdt_address = place(_table(b"XSDT", XSDT_REVISION, struct.pack(f"<{len(entries)}Q", *entries)))
    return ((RSDP_ADDRESS, _rsdp(xsdt_address)), *placed)


def _aligned(address: int, alignment: int) -> int:
    return -(-address // alignment) * alignment


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table: the header that all have (section 5.2.6), and its body."""
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, HEADER_SIZE + len(body), revision, 0, OEM_ID, OEM_TABLE_ID, BUILD, CREATOR_ID,
        BUILD,
    )
    table = bytearray(header + body)
    table[CHECKSUM_AT] = _checksum(table)
    return bytes(table)


def _rsdp(xsdt: int) -> bytes:
    """The root pointer (section 5.2.5.3); there is no RSDT."""
    table = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, RSDP_REVISION, 0, RSDP_SIZE, xsdt, 0))
    table[RSDP_CHECKSUM_AT] = _checksum(table[:RSDP_V1_SIZE])
    table[RSDP_EXTENDED_CHECKSUM_AT] = _checksum(table)
    return bytes(table)


def _facs() -> bytes:
    """Firmware control (section 5.2.10): the guest keeps its global lock there."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", FACS_SIZE, 0, 0, 0, 0, 0, FACS_VERSION)


def _address(port: int, length: int, access: int) -> bytes:
    """A generic address structure of ports (section 5.2.3.2)."""
    return struct.pack("<BBBBQ", SPACE_IO, 8 * length, 0, access, port)


def _fadt(facs: int, dsdt: int) -> bytes:
    """The fixed description (section 5.2.9), without its header; fields that are not named are zero."""
    fields = (
        (36, facs.to_bytes(4, "little")),               # FIRMWARE_CTRL
        (40, dsdt.to_bytes(4, "little")),               # DSDT
        (46, SCI.to_bytes(2, "little")),                # SCI_INT
        (56, PM1A_EVENT.to_bytes(4, "little")),         # PM1a_EVT_BLK
        (64, PM1A_CONTROL.to_bytes(4, "little")),       # PM1a_CNT_BLK
        (76, PM_TIMER.to_bytes(4, "little")),           # PM_TMR_BLK
        (80, GPE0_BLOCK.to_bytes(4, "little")),         # GPE0_BLK
        (88, bytes((PM1A_EVENT_LENGTH, PM1A_CONTROL_LENGTH, 0, PM_TIMER_LENGTH, GPE0_LENGTH))),
        (96, struct.pack("<HH", NO_C2, NO_C3)),         # P_LVL2_LAT, P_LVL3_LAT
        (108, bytes((CMOS_CENTURY,))),                  # CENTURY
        (109, (BOOT_LEGACY_DEVICES | BOOT_8042 | BOOT_NO_VGA).to_bytes(2, "little")),       # IAPC_BOOT_ARCH
        (112, _fadt_flags().to_bytes(4, "little")),     # Flags
        (116, _address(RESET_PORT, 1, ACCESS_BYTE)),    # RESET_REG
        (128, bytes((RESET_VALUE,))),                   # RESET_VALUE
        (131, bytes((FADT_MINOR,))),                    # FADT Minor Version
        (140, dsdt.to_bytes(8, "little")),              # X_DSDT
        (148, _address(PM1A_EVENT, PM1A_EVENT_LENGTH, ACCESS_WORD)),            # X_PM1a_EVT_BLK
        (172, _address(PM1A_CONTROL, PM1A_CONTROL_LENGTH, ACCESS_WORD)),        # X_PM1a_CNT_BLK
        (208, _address(PM_TIMER, PM_TIMER_LENGTH, ACCESS_DWORD)),               # X_PM_TMR_BLK
        (220, _address(GPE0_BLOCK, GPE0_LENGTH, ACCESS_BYTE)),                  # X_GPE0_BLK
    )
    table = bytearray(FADT_SIZE)
    for offset, data in fields:
        table[offset : offset + len(data)] = data
    return bytes(table[HEADER_SIZE:])


def _fadt_flags() -> int:
    """A fixed power button, no sleep button; the RTC wakes nobody."""
    return FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC | FADT_TMR_VAL_EXT | FADT_RESET_REG_SUP


def _madt() -> bytes:
    """The interrupt controllers (section 5.2.12), without the header."""
    return (
        struct.pack("<II", LOCAL_APIC, MADT_PCAT_COMPAT)
        + struct.pack("<BBBBI", MADT_LOCAL_APIC, 8, CPU_UID, LOCAL_APIC_ID, PROCESSOR_ENABLED)
        + struct.pack("<BBBBII", MADT_IO_APIC, 12, IO_APIC_ID, 0, IO_APIC, GSI_BASE)
        + _source_override(TIMER_IRQ, TIMER_GSI, AS_THE_BUS)
        + _source_override(SCI, SCI, LEVEL_ACTIVE_HIGH)
        + struct.pack("<BBBHB", MADT_LOCAL_APIC_NMI, 6, ALL_PROCESSORS, AS_THE_BUS, LINT1)
    )


def _mcfg(pci_config: int) -> bytes:
    """Where PCI's configuration space is mapped (PCI Firmware specification 3.3, section 4.1.2), without the header."""
    return struct.pack("<8xQHBB4x", pci_config, 0, 0, PCI_LAST_BUS)


def _source_override(irq: int, gsi: int, flags: int) -> bytes:
    return struct.pack("<BBBBIH", MADT_SOURCE_OVERRIDE, 10, ISA_BUS, irq, gsi, flags)
