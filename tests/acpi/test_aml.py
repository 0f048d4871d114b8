"""AML: the builder against an independent reader, and against what Intel's compiler makes of the same source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.acpi import aml
from emu.acpi.resources import (
    dword_memory,
    interrupt,
    io,
    irq,
    memory32_fixed,
    qword_memory,
    resource_template,
    word_bus_number,
    word_io,
)
from tests.acpi.reader import Reader

SEGMENTS = st.from_regex(r"[A-Z_][A-Z0-9_]{0,3}", fullmatch=True)


# --- against the reader -----------------------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 2**32 - 1, 2**32]))
def test_integer_reads_back_and_is_as_short_as_it_can_be(value: int) -> None:
    encoded = aml.integer(value)
    assert Reader(encoded).value() == value
    shortest = next(size for size in (0, 1, 2, 4, 8) if value < max(2, 1 << 8 * size) and (size or value < 2))
    assert len(encoded) == 1 + shortest


@pytest.mark.parametrize("value", [-1, 2**64])
def test_integer_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        aml.integer(value)


@given(st.integers(0, 2**28 - 5) | st.sampled_from([62, 63, 4093, 4094, 2**20 - 5, 2**20 - 4, 2**28 - 5]))
def test_package_length_counts_itself(size: int) -> None:
    encoded = aml.package_length(size)
    reader = Reader(encoded)
    assert reader.package_end() == len(encoded) + size
    assert reader.position == len(encoded)


@pytest.mark.parametrize(
    ("size", "encoded"),
    [
        (0, "01"), (62, "3f"), (63, "41 04"), (4093, "4f ff"), (4094, "81 00 01"), (2**20 - 4, "8f ff ff"),
        (2**20 - 3, "c1 00 00 01"), (2**28 - 5, "cf ff ff ff"),
    ],
)
def test_package_length_uses_another_byte_only_when_it_has_to(size: int, encoded: str) -> None:
    assert aml.package_length(size) == bytes.fromhex(encoded)


def test_package_length_of_more_than_28_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        aml.package_length(2**28 - 4)


@given(st.recursive(
    st.integers(0, 2**64 - 1) | st.text(st.characters(min_codepoint=1, max_codepoint=127)) | st.binary(max_size=5000),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=30,
))
def test_any_value_reads_back(value: object) -> None:
    def build(part: object) -> bytes:
        if isinstance(part, list):
            return aml.package(*map(build, part))
        return aml.buffer(part) if isinstance(part, bytes) else aml.term(part)  # type: ignore[arg-type]

    encoded = build(value)
    reader = Reader(encoded)
    assert reader.value() == value
    assert reader.position == len(encoded)


@given(st.sampled_from(["", "\\", "^", "^^"]), st.lists(SEGMENTS, max_size=5))
def test_path_reads_back_with_its_segments_filled_up(prefix: str, segments: list[str]) -> None:
    path = prefix + ".".join(segments)
    if not path:
        return
    encoded = aml.name_string(path)
    reader = Reader(encoded)
    assert reader.path() == prefix + ".".join(segment.ljust(4, "_") for segment in segments)
    assert reader.position == len(encoded)


@pytest.mark.parametrize(
    "path", ["", "abcd", "TOOLONG", "0ABC", "A.", ".A", "A..B", "A\\B", "A^", "\\^A", "A\n", "A B"]
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not an AML path"):
        aml.name_string(path)


@pytest.mark.parametrize("text", ["a\0b", "é"])
def test_string_that_aml_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an AML string"):
        aml.string(text)


@pytest.mark.parametrize("text", ["PNP0A0", "pnp0A03", "PNP0a03", "PNPXXXX", "PNP0A033", "ACPI0007"])
def test_what_is_no_eisa_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an EISA ID"):
        aml.eisa_id(text)


def test_eisa_id_is_four_bytes_even_if_the_last_are_zero() -> None:
    assert aml.eisa_id("PNP0000") == bytes.fromhex("0c 41 d0 00 00")


def test_package_and_method_have_limits() -> None:
    assert Reader(aml.package(*[0] * 255)).value() == [0] * 255
    with pytest.raises(ValueError, match="256 elements"):
        aml.package(*[0] * 256)
    with pytest.raises(ValueError, match="8 arguments"):
        aml.method("FOO", 8)
    with pytest.raises(ValueError, match="256 segments"):
        aml.name_string(".".join(["A"] * 256))


# --- against iasl 20200925, option -on, from the ASL in each comment --------------------------------------------


def test_data_is_as_the_compiler_makes_it() -> None:
    # Name (AAAA, Package () { 0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000, "hi",
    #                          EISAID ("PNP0A03"), Buffer () { 1, 2, 3 } })
    elements = (0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFF_FFFF, 0x1_0000_0000, "hi", aml.eisa_id("PNP0A03"))
    assert aml.name("AAAA", aml.package(*elements, aml.buffer(b"\1\2\3"))) == bytes.fromhex(
        "08 41 41 41 41 12 31 0c 00 01 0a 02 0a ff 0b 00 01 0b ff ff 0c 00 00 01 00 0c ff ff ff ff"
        "0e 00 00 00 00 01 00 00 00 0d 68 69 00 0c 41 d0 0a 03 11 06 0a 03 01 02 03"
    )


def test_devices_and_methods_are_as_the_compiler_makes_them() -> None:
    # Scope (\_SB) { Device (DEV) { Name (_HID, "ACPI0007") } }
    assert aml.scope("\\_SB", aml.device("DEV", aml.name("_HID", "ACPI0007"))) == bytes.fromhex(
        "10 1c 5c 5f 53 42 5f 5b 82 14 44 45 56 5f 08 5f 48 49 44 0d 41 43 50 49 30 30 30 37 00"
    )
    # Scope (\_GPE) { Method (_E05) { Notify (\_SB.DEV.BAR, 0x80) } }
    notify = aml.notify("\\_SB.DEV.BAR", 0x80)
    assert aml.scope("\\_GPE", aml.method("_E05", 0, notify)) == bytes.fromhex(
        "10 1f 5c 5f 47 50 45 14 18 5f 45 30 35 00 86 5c 2f 03 5f 53 42 5f 44 45 56 5f 42 41 52 5f 0a 80"
    )


def test_what_a_device_has_is_as_the_compiler_makes_it() -> None:
    # Name (_CRS, ResourceTemplate () {
    #     IO (Decode16, 0x3F8, 0x3F8, 1, 8)  IRQNoFlags () { 4, 12 }
    #     Interrupt (ResourceConsumer, Level, ActiveLow, Shared) { 16, 17 }
    #     Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 4 }
    #     Memory32Fixed (ReadWrite, 0xFD100000, 0x100000) })
    template = resource_template(
        io(0x3F8, 8), irq(4, 12), interrupt(16, 17, active_low=True, shared=True), interrupt(4, level=False),
        memory32_fixed(0xFD10_0000, 0x10_0000),
    )
    assert aml.name("_CRS", template) == bytes.fromhex(
        "08 5f 43 52 53 11 32 0a 2f 47 01 f8 03 f8 03 01 08 22 10 10 89 0a 00 0d 02 10 00 00 00 11 00 00 00"
        "89 06 00 03 01 04 00 00 00 86 09 00 01 00 00 10 fd 00 00 10 00 79 00"
    )


def test_what_a_bridge_passes_on_is_as_the_compiler_makes_it() -> None:
    # Name (_PRS, ResourceTemplate () {
    #     WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0xFF, 0, 0x100)
    #     WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0xD00, 0xFFFF, 0, 0xF300)
    #     DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
    #                  0, 0xC0000000, 0xFCFFFFFF, 0, 0x3D000000)
    #     QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
    #                  0, 0x200000000, 0x2FFFFFFFF, 0, 0x100000000) })
    template = resource_template(
        word_bus_number(0, 0xFF), word_io(0xD00, 0xFFFF), dword_memory(0xC000_0000, 0x3D00_0000),
        qword_memory(0x2_0000_0000, 0x1_0000_0000),
    )
    assert aml.name("_PRS", template) == bytes.fromhex(
        "08 5f 50 52 53 11 4e 06 0a 6a 88 0d 00 02 0c 00 00 00 00 00 ff 00 00 00 00 01"
        "88 0d 00 01 0c 03 00 00 00 0d ff ff 00 00 00 f3"
        "87 17 00 00 0c 01 00 00 00 00 00 00 00 c0 ff ff ff fc 00 00 00 00 00 00 00 3d"
        "8a 2b 00 00 0c 01 00 00 00 00 00 00 00 00 00 00 00 00 02 00 00 00 ff ff ff ff 02 00 00 00"
        "00 00 00 00 00 00 00 00 00 00 00 00 01 00 00 00 79 00"
    )
