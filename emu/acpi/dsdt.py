"""The namespace of the board: what the guest cannot find out by itself (ACPI specification 6.4, chapters 5 and 6)."""

from __future__ import annotations

from devices.acpi_pm import GPE_GENERATION, SLEEP_TYPE_S5
from emu.acpi.aml import device, eisa_id, method, name, notify, package, scope
from emu.acpi.resources import (
    dword_memory,
    io,
    irq,
    memory32_fixed,
    qword_memory,
    resource_template,
    word_bus_number,
    word_io,
)
from emu.acpi.wiring import gsi_of

__all__ = ["CPU_UID", "PCI_CONFIG_PORTS", "PCI_CONFIG_SIZE", "PCI_LAST_BUS", "definition_block"]

CPU_UID = 0                         # the MADT names the processor by it

PCI_DEVICES, PCI_PINS = 32, 4
PCI_CONFIG_PORTS = 0xCF8, 8         # first, length
LAST_PORT = 0xFFFF
PCI_LAST_BUS = 0
PCI_CONFIG_SIZE = 1 << 20           # mapped: 4 KiB for each of the bus' functions
ANY_FUNCTION = 0xFFFF               # of an address in _PRT
STATUS_CHANGED = 0x80               # a device's own notification
HARDWIRED = 0                       # no link device: what follows is the GSI


def definition_block(
    pci_memory: tuple[int, int], pci_memory_64: tuple[int, int] | None, pci_config: int | None, generation_id: int
) -> bytes:
    """The AML of the DSDT.

    Args:
        pci_memory: start and size of the addresses below 4 GiB that belong to PCI.
        pci_memory_64: the same above 4 GiB, if there are any.
        pci_config: start of the mapped configuration space, if it is mapped.
        generation_id: address of the VM generation ID.
    """
    devices = [
        device("CPU0", name("_HID", "ACPI0007"), name("_UID", CPU_UID)),
        _host_bridge(pci_memory, pci_memory_64),
        _device("RTC", "PNP0B00", io(0x70, 2), irq(8)),
        _device("KBD", "PNP0303", io(0x60, 1), io(0x64, 1), irq(1)),
        _device("MOU", "PNP0F13", irq(12)),
        _device("COM1", "PNP0501", io(0x3F8, 8), irq(4)),
    ]
    if pci_config is not None:
        # The MCFG is believed only where the addresses are a motherboard resource
        devices.append(_device("MBRD", "PNP0C02", memory32_fixed(pci_config, PCI_CONFIG_SIZE)))
    # Microsoft's "Virtual Machine Generation ID"; the compatible ID is the one that every Linux with a driver knows
    address = package(generation_id & 0xFFFF_FFFF, generation_id >> 32)
    devices.append(device("VGEN", name("_HID", "PVEM0001"), name("_CID", "VMGENCTR"), name("ADDR", address)))
    events = scope("_GPE", method(f"_E{GPE_GENERATION:02X}", 0, notify(r"\_SB.VGEN", STATUS_CHANGED)))
    return name("_S5", package(SLEEP_TYPE_S5, SLEEP_TYPE_S5, 0, 0)) + scope("_SB", *devices) + events


def _device(path: str, hardware_id: str, *resources: bytes) -> bytes:
    return device(
        path, name("_HID", eisa_id(hardware_id)), name("_UID", 1), name("_CRS", resource_template(*resources))
    )


def _host_bridge(pci_memory: tuple[int, int], pci_memory_64: tuple[int, int] | None) -> bytes:
    config_first, config_length = PCI_CONFIG_PORTS
    resources = [
        word_bus_number(0, PCI_LAST_BUS),
        io(config_first, config_length),
        word_io(0, config_first - 1),
        word_io(config_first + config_length, LAST_PORT),
        dword_memory(*pci_memory),
    ]
    if pci_memory_64 is not None:
        resources.append(qword_memory(*pci_memory_64))
    routing = [
        package(number << 16 | ANY_FUNCTION, pin, HARDWIRED, gsi_of(number, pin))
        for number in range(PCI_DEVICES) for pin in range(PCI_PINS)
    ]
    return device(
        "PCI0",
        name("_HID", eisa_id("PNP0A03")), name("_UID", 0), name("_SEG", 0), name("_BBN", 0),
        name("_CRS", resource_template(*resources)),
        name("_PRT", package(*routing)),
    )
