"""The board's ACPI tables, read as a guest's firmware parser reads them: from the root pointer down."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.acpi_pm import GPE_GENERATION, SLEEP_TYPE_S5, AcpiPm
from emu.acpi.tables import AcpiConfig, build_tables
from emu.acpi.wiring import GENERATION_ID, GENERATION_ID_SIZE, RSDP_ADDRESS, gsi_of
from tests.acpi.reader import Node, Reader, resources

PLAIN = AcpiConfig(pci_memory=(0xC000_0000, 0x3D00_0000))
FULL = AcpiConfig((0xC000_0000, 0x3D00_0000), pci_memory_64=(0x2_4000_0000, 0x4000_0000), pci_config=0xFD10_0000)
BIOS_END = 0x10_0000

CONFIGS = pytest.mark.parametrize("config", [PLAIN, FULL], ids=["plain", "full"])


class Firmware:
    """The BIOS area with the tables in it."""

    def __init__(self, config: AcpiConfig) -> None:
        self.area = bytearray(BIOS_END - RSDP_ADDRESS)
        for address, table in build_tables(config):
            self.area[address - RSDP_ADDRESS : address - RSDP_ADDRESS + len(table)] = table

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a guest-physical address."""
        assert RSDP_ADDRESS <= address <= BIOS_END - size
        return bytes(self.area[address - RSDP_ADDRESS : address - RSDP_ADDRESS + size])

    def rsdp(self) -> bytes:
        """The root pointer, found as Linux finds it."""
        return next(
            self.read(address, 36) for address in range(RSDP_ADDRESS, BIOS_END, 16)
            if self.read(address, 8) == b"RSD PTR "
        )

    def table(self, address: int) -> bytes:
        """A table with a header, its checksum and length checked."""
        length = struct.unpack("<I", self.read(address + 4, 4))[0]
        table = self.read(address, length)
        assert sum(table) & 0xFF == 0
        return table

    def tables(self) -> dict[bytes, bytes]:
        """Every table with a header by signature."""
        xsdt = self.table(*struct.unpack_from("<Q", self.rsdp(), 24))
        found = [self.table(address) for (address,) in struct.iter_unpack("<Q", xsdt[36:])]
        fadt = next(table for table in found if table[:4] == b"FACP")
        found += [xsdt, self.table(*struct.unpack_from("<Q", fadt, 140))]
        return {table[:4]: table for table in found}

    def namespace(self) -> Node:
        """What is in the DSDT."""
        dsdt = self.tables()[b"DSDT"]
        return Reader(dsdt, 36).terms(len(dsdt))


def test_root_pointer_is_of_revision_2_and_has_both_checksums() -> None:
    rsdp = Firmware(PLAIN).rsdp()
    assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
    assert rsdp[15] == 2
    assert struct.unpack_from("<I", rsdp, 20) == (36,)


@CONFIGS
def test_tables_lie_in_the_bios_area_one_after_the_other(config: AcpiConfig) -> None:
    tables = build_tables(config)
    assert tables[0][0] == RSDP_ADDRESS == 0xF_0000
    for (address, table), (following, _) in zip(tables, (*tables[1:], (BIOS_END, b"")), strict=True):
        assert address % 16 == 0
        assert address + len(table) <= following


@pytest.mark.parametrize(("config", "more"), [(PLAIN, set()), (FULL, {b"MCFG"})], ids=["plain", "full"])
def test_tables_are_those_the_board_needs(config: AcpiConfig, more: set[bytes]) -> None:
    assert set(Firmware(config).tables()) == {b"XSDT", b"FACP", b"APIC", b"DSDT"} | more


def test_facs_is_aligned_and_complete() -> None:
    firmware = Firmware(PLAIN)
    address = struct.unpack_from("<I", firmware.tables()[b"FACP"], 36)[0]
    assert address % 64 == 0
    facs = firmware.read(address, 64)
    assert facs[:4] == b"FACS"
    assert struct.unpack_from("<I", facs, 4) == (64,)
    assert facs[32] == 2
    assert not any(facs[8:32]) and not any(facs[33:])


# --- FADT -------------------------------------------------------------------------------------------------------


def fadt() -> bytes:
    return Firmware(PLAIN).tables()[b"FACP"]


def test_fadt_has_the_length_of_its_revision() -> None:
    table = fadt()
    assert (table[8], table[131], len(table)) == (6, 4, 276)


@pytest.mark.parametrize(
    ("old", "extended", "address", "length_at", "length"),
    [(56, 148, 0x600, 88, 4), (64, 172, 0x604, 89, 2), (76, 208, 0x608, 91, 4), (80, 220, 0x620, 92, 8)],
    ids=["event", "control", "timer", "GPE0"],
)
def test_register_block_is_given_twice_the_same_and_is_the_devices(
    old: int, extended: int, address: int, length_at: int, length: int
) -> None:
    table = fadt()
    assert struct.unpack_from("<I", table, old) == (address,)
    space, width, offset, _, extended_address = struct.unpack_from("<BBBBQ", table, extended)
    assert (space, width, offset, extended_address) == (1, 8 * length, 0, address)
    assert table[length_at] == length
    claimed = {port for first, size in AcpiPm.ports for port in range(first, first + size)}
    assert set(range(address, address + length)) <= claimed


def test_blocks_that_the_board_lacks_are_zero() -> None:
    table = fadt()
    for offset, size in ((48, 8), (60, 4), (68, 8), (84, 4), (90, 1), (93, 3), (160, 12), (184, 24), (232, 36)):
        assert not any(table[offset : offset + size]), offset


def test_machine_is_in_acpi_mode_with_a_fixed_power_button_and_a_reset_register() -> None:
    table = fadt()
    assert struct.unpack_from("<H", table, 46) == (9,)                          # SCI
    flags = struct.unpack_from("<I", table, 112)[0]
    assert not flags & 1 << 4 and flags & 1 << 5                                # power button fixed, no sleep button
    assert flags & 1 << 8 and flags & 1 << 10 and not flags & 1 << 20           # 32-bit timer, reset, not reduced
    assert struct.unpack_from("<BBBBQB", table, 116) == (1, 8, 0, 1, 0xCF9, 0x06)
    assert struct.unpack_from("<H", table, 109) == (0b111,)                     # legacy devices, 8042, no VGA
    assert min(struct.unpack_from("<H", table, 96)) > 100 and min(struct.unpack_from("<H", table, 98)) > 1000


# --- MADT and MCFG ----------------------------------------------------------------------------------------------


def test_madt_describes_every_interrupt_controller() -> None:
    table = Firmware(PLAIN).tables()[b"APIC"]
    assert struct.unpack_from("<II", table, 36) == (0xFEE0_0000, 1)
    entries, position = [], 44
    while position < len(table):
        entries.append(table[position : position + table[position + 1]])
        position += table[position + 1]
    assert position == len(table)
    assert entries == [
        struct.pack("<BBBBI", 0, 8, 0, 0, 1),                           # processor 0, APIC 0, enabled
        struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC0_0000, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0),                      # timer
        struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0b1101),                 # SCI: level, active high
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),                        # NMI at LINT1
    ]


def test_mapped_configuration_space_is_in_the_mcfg_and_reserved() -> None:
    firmware = Firmware(FULL)
    assert firmware.tables()[b"MCFG"][36:] == struct.pack("<8xQHBB4x", 0xFD10_0000, 0, 0, 0)
    board = firmware.namespace().nodes["_SB_"].nodes["MBRD"]
    assert resources(board.names["_CRS"]) == [("memory", 0xFD10_0000, 0x10_0000)]


# --- DSDT -------------------------------------------------------------------------------------------------------


def test_integers_have_64_bits() -> None:
    assert Firmware(PLAIN).tables()[b"DSDT"][8] == 2


def test_s5_is_what_the_hardware_takes_for_power_off() -> None:
    assert Firmware(PLAIN).namespace().names["_S5_"] == [SLEEP_TYPE_S5, SLEEP_TYPE_S5, 0, 0]


def eisa_id(packed: int) -> str:
    swapped = int.from_bytes(packed.to_bytes(4, "little"), "big")
    return "".join(chr(0x40 + (swapped >> shift & 31)) for shift in (26, 21, 16)) + f"{swapped & 0xFFFF:04X}"


@CONFIGS
def test_generation_id_is_announced_and_lies_beyond_the_tables(config: AcpiConfig) -> None:
    namespace = Firmware(config).namespace()
    node = namespace.nodes["_SB_"].nodes["VGEN"]
    assert node.names["_CID"] == "VMGENCTR"         # what Linux' drivers/virt/vmgenid.c looks for
    low, high = node.names["ADDR"]
    assert high << 32 | low == GENERATION_ID and GENERATION_ID % 8 == 0
    assert max(address + len(table) for address, table in build_tables(config)) <= GENERATION_ID
    assert GENERATION_ID + GENERATION_ID_SIZE <= BIOS_END
    notify_0x80 = b"\x86\x5c\x2e_SB_VGEN\x0a\x80"
    assert namespace.nodes["_GPE"].methods == {f"_E{GPE_GENERATION:02X}": notify_0x80}


def test_isa_devices_have_their_ports_and_interrupts() -> None:
    devices = Firmware(PLAIN).namespace().nodes["_SB_"].nodes
    found = {
        name: (eisa_id(node.names["_HID"]), resources(node.names["_CRS"]))
        for name, node in devices.items() if name not in ("CPU0", "PCI0", "VGEN")
    }
    assert found == {
        "RTC_": ("PNP0B00", [("io", 0x70, 0x70, 2), ("irq", 1 << 8)]),
        "KBD_": ("PNP0303", [("io", 0x60, 0x60, 1), ("io", 0x64, 0x64, 1), ("irq", 1 << 1)]),
        "MOU_": ("PNP0F13", [("irq", 1 << 12)]),
        "COM1": ("PNP0501", [("io", 0x3F8, 0x3F8, 8), ("irq", 1 << 4)]),
    }


def test_processor_is_the_madts() -> None:
    assert Firmware(PLAIN).namespace().nodes["_SB_"].nodes["CPU0"].names == {"_HID": "ACPI0007", "_UID": 0}


def host_bridge(config: AcpiConfig) -> Node:
    bridge = Firmware(config).namespace().nodes["_SB_"].nodes["PCI0"]
    assert eisa_id(bridge.names["_HID"]) == "PNP0A03"
    return bridge


def test_host_bridge_passes_on_all_but_its_own_ports() -> None:
    found = resources(host_bridge(PLAIN).names["_CRS"])
    assert found == [
        ("window", "bus", 0, 0),
        ("io", 0xCF8, 0xCF8, 8),
        ("window", "io", 0, 0xCF7),
        ("window", "io", 0xD00, 0xFFFF),
        ("window", "memory", 0xC000_0000, 0xFCFF_FFFF),
    ]
    assert resources(host_bridge(FULL).names["_CRS"]) == [*found, ("window", "memory", 0x2_4000_0000, 0x2_7FFF_FFFF)]


def test_every_pin_of_every_device_is_routed_to_the_gsi_that_the_board_wires() -> None:
    routes = host_bridge(PLAIN).names["_PRT"]
    assert {(address >> 16, pin): gsi for address, pin, _, gsi in routes} == {
        (number, pin): gsi_of(number, pin) for number in range(32) for pin in range(4)
    }
    assert len(routes) == 128
    assert all(address & 0xFFFF == 0xFFFF and source == 0 for address, _, source, _ in routes)


@given(st.integers(0, 31), st.integers(0, 3))
def test_neighbours_pins_take_turns_on_gsi_16_to_19(number: int, pin: int) -> None:
    assert gsi_of(0, 0) == 16
    assert gsi_of(number, pin) == 16 + (number + pin) % 4


# --- Intel's compiler -------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is not installed")
@CONFIGS
def test_intels_compiler_reads_every_table_and_makes_the_same_of_it(config: AcpiConfig, tmp_path: Path) -> None:
    for signature, table in Firmware(config).tables().items():
        name = signature.decode()
        (tmp_path / f"{name}.aml").write_bytes(table)
        for arguments in (["-d", f"{name}.aml"], ["-p", f"{name}-again", f"{name}.dsl"]):
            done = subprocess.run(["iasl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
            said = done.stdout + done.stderr
            assert done.returncode == 0, said
            assert not re.search(r"\b[1-9]\d* (error|warning|remark|optimization)|invalid", said, re.IGNORECASE), said
        again = (tmp_path / f"{name}-again.aml").read_bytes()
        assert again[36:] == table[36:]
