"""AML, ACPI's byte code, as plain functions from terms to bytes (ACPI specification 6.4, section 20.2)."""

from __future__ import annotations

import re

__all__ = [
    "Term", "buffer", "device", "eisa_id", "integer", "method", "name", "name_string", "notify", "package",
    "package_length", "scope", "string", "term",
]

Term = int | str | bytes
"""An integer, a string, or AML that a function here has made."""

ZERO_OP, ONE_OP = 0x00, 0x01
NAME_OP = 0x08
BYTE_PREFIX, WORD_PREFIX, DWORD_PREFIX, STRING_PREFIX, QWORD_PREFIX = range(0x0A, 0x0F)
SCOPE_OP, BUFFER_OP, PACKAGE_OP, METHOD_OP = 0x10, 0x11, 0x12, 0x14
DUAL_NAME_PREFIX, MULTI_NAME_PREFIX = 0x2E, 0x2F
NULL_NAME = 0x00
DEVICE_OP = b"\x5b\x82"
NOTIFY_OP = 0x86

MOST_ARGUMENTS = 7
MOST_ELEMENTS = 0xFF                # of a package, and of the segments of a path

PATH = re.compile(r"(?P<prefix>\\|\^*)(?P<segments>(?:[A-Z_][A-Z0-9_]{0,3}(?:\.(?=.)|$))*)")
EISA_ID = re.compile(r"[A-Z]{3}[0-9A-F]{4}")


# --- data ---------------------------------------------------------------------------------------------------------


def integer(value: int) -> bytes:
    """The shortest constant for an integer.

    Raises:
        ValueError: it is not in 0..2**64-1.
    """
    if value in (ZERO_OP, ONE_OP):
        return bytes((value,))
    for prefix, size in ((BYTE_PREFIX, 1), (WORD_PREFIX, 2), (DWORD_PREFIX, 4), (QWORD_PREFIX, 8)):
        if 0 <= value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise ValueError(f"{value} is not a 64-bit AML integer")


def string(text: str) -> bytes:
    """A string of ASCII characters.

    Raises:
        ValueError: it has other characters, or a NUL.
    """
    if not text.isascii() or "\0" in text:
        raise ValueError(f"{text!r} is not an AML string: ASCII without NUL")
    return bytes((STRING_PREFIX,)) + text.encode("ascii") + b"\0"


def term(value: Term) -> bytes:
    """AML of a value: an integer, a string, or AML already."""
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, str):
        return string(value)
    return value


def eisa_id(text: str) -> bytes:
    """A plug and play ID such as "PNP0A03", packed into 32 bits (section 19.3.4).

    Raises:
        ValueError: it is not three capital letters and four capital hexadecimal digits.
    """
    if not EISA_ID.fullmatch(text):
        raise ValueError(f"{text!r} is not an EISA ID such as PNP0A03")
    first, second, third = (ord(letter) - 0x40 for letter in text[:3])
    packed = (first << 10 | second << 5 | third) << 16 | int(text[3:], 16)
    return bytes((DWORD_PREFIX,)) + packed.to_bytes(4, "big")


def buffer(data: bytes) -> bytes:
    """A buffer of these bytes."""
    return bytes((BUFFER_OP,)) + _sized(integer(len(data)) + data)


def package(*elements: Term) -> bytes:
    """A package of at most 255 elements.

    Raises:
        ValueError: there are more.
    """
    if len(elements) > MOST_ELEMENTS:
        raise ValueError(f"a package of {len(elements)} elements: AML has room for {MOST_ELEMENTS}")
    return bytes((PACKAGE_OP,)) + _sized(bytes((len(elements),)) + _terms(elements))


# --- names and what they hold -------------------------------------------------------------------------------------


def name_string(path: str) -> bytes:
    r"""A path such as `_HID`, `\_SB.PCI0` or `^^CPU0`; short segments are filled up with underscores.

    Raises:
        ValueError: it is not a path.
    """
    match = PATH.fullmatch(path)
    if match is None or not path:
        raise ValueError(f"{path!r} is not an AML path")
    segments = [segment.ljust(4, "_").encode() for segment in match["segments"].split(".") if segment]
    if len(segments) > MOST_ELEMENTS:
        raise ValueError(f"a path of {len(segments)} segments: AML has room for {MOST_ELEMENTS}")
    if not segments:
        lead = bytes((NULL_NAME,))
    elif len(segments) == 1:
        lead = b""
    elif len(segments) == 2:
        lead = bytes((DUAL_NAME_PREFIX,))
    else:
        lead = bytes((MULTI_NAME_PREFIX, len(segments)))
    return match["prefix"].encode() + lead + b"".join(segments)


def name(path: str, value: Term) -> bytes:
    """Name(path, value)."""
    return bytes((NAME_OP,)) + name_string(path) + term(value)


def scope(path: str, *terms: Term) -> bytes:
    """Scope(path) { terms }."""
    return bytes((SCOPE_OP,)) + _sized(name_string(path) + _terms(terms))


def device(path: str, *terms: Term) -> bytes:
    """Device(path) { terms }."""
    return DEVICE_OP + _sized(name_string(path) + _terms(terms))


def method(path: str, arguments: int, *terms: Term) -> bytes:
    """Method(path, arguments, NotSerialized) { terms }.

    Raises:
        ValueError: it is to take more than seven arguments.
    """
    if not 0 <= arguments <= MOST_ARGUMENTS:
        raise ValueError(f"{path}: a method of {arguments} arguments: AML has room for {MOST_ARGUMENTS}")
    return bytes((METHOD_OP,)) + _sized(name_string(path) + bytes((arguments,)) + _terms(terms))


def notify(path: str, value: Term) -> bytes:
    """Notify(path, value)."""
    return bytes((NOTIFY_OP,)) + name_string(path) + term(value)


# --- lengths ------------------------------------------------------------------------------------------------------


def package_length(size: int) -> bytes:
    """PkgLength of `size` bytes that follow; the length it gives counts itself, too (section 20.2.4).

    Raises:
        ValueError: the whole does not fit in 28 bits.
    """
    if size + 1 < 1 << 6:
        return bytes((size + 1,))
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << 4 + 8 * extra:
            return bytes((extra << 6 | total & 0x0F,)) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"{size} bytes do not fit in one AML object")


def _sized(body: bytes) -> bytes:
    return package_length(len(body)) + body


def _terms(terms: tuple[Term, ...]) -> bytes:
    return b"".join(map(term, terms))
