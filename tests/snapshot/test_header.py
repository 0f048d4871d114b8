"""The header: what it says, and that nothing of it can change unnoticed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emu import __version__
from emu.errors import BadSnapshot
from emu.memory import GIB, HOLE_START, MIB
from emu.snapshot import header as headers
from emu.snapshot.codec import decode
from emu.snapshot.header import VERSION, BaseLink, FileEntry, Header, RamEntry, pack, pairs, ranges, unpack
from emu.snapshot.pages import PAGE
from tests.snapshot.snapshots import State

RAM = RamEntry(64 * MIB, 64 * MIB, PAGE, (0, 10, 20, 5), (40, 1), "ab" * 32)
HEADER = Header(
    "0123456789abcdef" * 2, 10**18, RAM, BaseLink("../base", "f" * 32, "0" * 64), (FileEntry("disk0", 5, "1" * 64),)
)
CONTENT, DIGEST = pack(HEADER, State())


def signed(content: bytes) -> bytes:
    """A changed header with the checksum that it ought to have."""
    first, _, rest = content.partition(b"\n")
    digest = headers._digest(str(headers.VERSION), __version__, rest)
    return re.sub(rb"[0-9a-f]{64}", digest.encode(), first) + b"\n" + rest


def refused(content: bytes) -> str:
    """The message; it is one line."""
    with pytest.raises(BadSnapshot) as caught:
        unpack(content, "x.snap/header.json")
    message = str(caught.value)
    assert "\n" not in message and "x.snap/header.json" in message
    return message


def test_what_was_packed_is_unpacked() -> None:
    header, state, digest = unpack(CONTENT, "")
    assert header == HEADER
    assert decode(State, state) == State()
    assert digest == DIGEST


def test_it_is_json() -> None:
    whole = json.loads(CONTENT)
    assert list(whole) == ["format", "version", "creator", "sha256", "header", "state"]
    assert whole["sha256"] == DIGEST
    assert CONTENT.count(b"\n") == 3


@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 40), st.data())
def test_any_bytes_changed_are_noticed(start: int, size: int, data: st.DataObject) -> None:
    size = min(size, len(CONTENT) - start)
    flips = data.draw(st.binary(min_size=size, max_size=size).filter(any))
    part = bytes(a ^ b for a, b in zip(CONTENT[start : start + size], flips, strict=True))
    refused(CONTENT[:start] + part + CONTENT[start + size :])


def test_every_bit_flipped_is_noticed() -> None:
    for at in range(len(CONTENT)):
        for bit in range(8):
            refused(CONTENT[:at] + bytes((CONTENT[at] ^ 1 << bit,)) + CONTENT[at + 1 :])


@given(st.integers(0, len(CONTENT) - 1), st.integers(1, len(CONTENT)))
def test_any_bytes_deleted_are_noticed(start: int, size: int) -> None:
    refused(CONTENT[:start] + CONTENT[start + size :])


@settings(max_examples=300)
@given(st.integers(0, len(CONTENT)), st.binary(min_size=1, max_size=20) | st.sampled_from([b" ", b"\n", b"0", b"\0"]))
@example(len(CONTENT), b"\n")
@example(0, b" ")
def test_any_bytes_inserted_are_noticed(start: int, more: bytes) -> None:
    refused(CONTENT[:start] + more + CONTENT[start:])


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1, 999_999_999])
def test_another_version_is_named(version: int) -> None:
    ours = f'"version": {VERSION}, "creator": "{__version__}"'.encode()
    assert ours in CONTENT
    assert refused(CONTENT.replace(ours, b'"version": %d, "creator": "3.0.1"' % version)) == (
        f"x.snap/header.json was written by pvemu 3.0.1 in version {version} of the format; "
        f"this is pvemu {__version__}, which knows version {VERSION}"
    )


BAD_CONTENT: list[tuple[bytes, bytes, str]] = [
    (b'"held":[0,10,', b'"held":[0,22,', "header.ram: ranges of pages that are out of order"),
    (b'"held":[0,10,', b'"held":[0,0,', "header.ram: ranges of pages that are out of order"),
    (b'"held":[0,10,', b'"held":[-1,10,', "header.ram: ranges of pages that are out of order"),
    (b'"held":[0,10,', b'"held":[0,', "header.ram: half a range"),
    (b'"zero":[40,1]', b'"zero":[16383,2]', "header.ram: a range of pages behind the end of RAM"),
    (b'"zero":[40,1]', b'"zero":[40,%d]' % (1 << 70), "header.ram: a range of pages behind the end of RAM"),
    (b'"page":4096', b'"page":16384', "header.ram: its RAM is laid out as this machine's is not"),
    (b'"low_size":67108864', b'"low_size":0', "header.ram: its RAM is laid out"),
    (b'"size":67108864,', b'"size":67108865,', "header.ram: RAM of 67108865 bytes"),
    (b'"size":67108864,', b'"size":%d,' % (9 * GIB), "header.ram: RAM of 9663676416 bytes"),
    (b'"sha256":"abab', b'"sha256":"ABab', "header.ram: no SHA-256"),
    (b'"id":"0123', b'"id":"../3', "header: no id"),
    (b'"disk0"', b'"../disk0"', "header.files[0]: '../disk0' is no name of a file"),
    (b'"disk0"', b'".disk0"', "header.files[0]: '.disk0' is no name of a file"),
    (b'"created_ns":1000000000000000000', b'"created_ns":null', "header.created_ns: None is not a number"),
    (b'"created_ns":1000000000000000000', b'"created_ns":%s' % (b"1" * 5000), "it is no JSON"),
    (b'"state": {', b'"state": ' + b"[" * 200_000 + b"{", "it is no JSON"),
    (b'"state": {', b'"sta": {', "a part of it is missing"),
    (b'"state": {', b'"state": {},"more": {', "a part of it is missing"),
    (b"}\n", b"", "it is no JSON"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_CONTENT, ids=[bad[2][:40] for bad in BAD_CONTENT])
def test_a_well_signed_header_with_bad_content_is_refused(old: bytes, new: bytes, message: str) -> None:
    assert old in CONTENT
    assert message in refused(signed(CONTENT.replace(old, new)))


def test_ram_above_the_hole_is_laid_out_like_this_machines() -> None:
    large = replace(HEADER, ram=replace(RAM, size=5 * GIB, low_size=HOLE_START))
    assert unpack(pack(large, State())[0], "")[0] == large


def test_pairs_are_ranges() -> None:
    parts = (0, 10 * PAGE), (20 * PAGE, 25 * PAGE)
    assert pairs(parts) == (0, 10, 20, 5)
    assert ranges((0, 10, 20, 5)) == parts


def test_a_state_that_does_not_fit_its_hints_is_the_programs_fault() -> None:
    wrong: Any = State(name=b"x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"State\.name"):
        pack(HEADER, wrong)
