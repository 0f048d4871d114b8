"""A small AML reader that shares nothing with the builder, written from ACPI specification 6.4, section 20.2."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

INTEGER_SIZES = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}


@dataclass
class Node:
    """A scope or a device.

    Attributes:
        names: what Name() put there; integers, strings, buffers as bytes, packages as lists.
        nodes: scopes and devices in it.
        methods: the bodies of methods, as AML.
    """

    names: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, bytes] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)


class Reader:
    """Walks over AML; every read moves on."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def take(self, size: int) -> bytes:
        """The next bytes, which have to be there."""
        taken = self.data[self.position : self.position + size]
        assert len(taken) == size, "AML ends in the middle of an object"
        self.position += size
        return taken

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def package_end(self) -> int:
        """Read a PkgLength: position after the object it belongs to."""
        start = self.position
        lead = self.byte()
        following = lead >> 6
        if not following:
            return start + (lead & 0x3F)
        assert not lead & 0x30, "bits 5-4 are reserved in a PkgLength of several bytes"
        return start + (int.from_bytes(self.take(following), "little") << 4 | lead & 0x0F)

    def path(self) -> str:
        """Read a NameString, in the form that ASL has it."""
        prefix = ""
        while chr(self.data[self.position]) in "\\^":
            prefix += chr(self.byte())
        lead = self.data[self.position]
        count = {0x00: 0, 0x2E: 2, 0x2F: -1}.get(lead, 1)
        if count != 1:
            self.position += 1
        if count < 0:
            count = self.byte()
        return prefix + ".".join(self.take(4).decode() for _ in range(count))

    def value(self) -> Any:
        """Read a DataRefObject."""
        op = self.byte()
        if op in (0x00, 0x01):
            return op
        if op in INTEGER_SIZES:
            return int.from_bytes(self.take(INTEGER_SIZES[op]), "little")
        if op == 0x0D:
            end = self.data.index(0, self.position)
            return self.take(end + 1 - self.position)[:-1].decode("ascii")
        assert op in (0x11, 0x12), f"unexpected opcode {op:#x}"
        end = self.package_end()
        if op == 0x11:
            size = self.value()
            assert size == end - self.position
            return self.take(size)
        elements = [self.value() for _ in range(self.byte())]
        assert self.position == end
        return elements

    def terms(self, end: int) -> Node:
        """Read names, scopes and devices up to a position."""
        node = Node()
        while self.position < end:
            op = self.byte()
            if op == 0x08:
                path = self.path()
                assert path not in node.names
                node.names[path] = self.value()
                continue
            if op == 0x14:
                inner_end, path = self.package_end(), self.path()
                assert self.byte() == 0, "a method with arguments, or serialized"
                node.methods[path] = self.take(inner_end - self.position)
                continue
            if op == 0x5B:
                op = self.byte()
            assert op in (0x10, 0x82), f"unexpected opcode {op:#x}"
            inner_end = self.package_end()
            path = self.path()
            assert path not in node.nodes
            node.nodes[path] = self.terms(inner_end)
        assert self.position == end
        return node


def resources(template: bytes) -> list[tuple[Any, ...]]:
    """What a resource template says: ("io", first, last, length), ("irq", mask), ("window", kind, first, last), ..."""
    reader, found = Reader(template), list[tuple[Any, ...]]()
    while (tag := reader.byte()) != 0x79:
        size = struct.unpack("<H", reader.take(2))[0] if tag & 0x80 else tag & 7
        body = reader.take(size)
        if tag == 0x47:
            found.append(("io", *struct.unpack("<xHHxB", body)))
        elif tag == 0x22:
            found.append(("irq", *struct.unpack("<H", body)))
        elif tag == 0x86:
            found.append(("memory", *struct.unpack("<xII", body)))
        else:
            number = {0x88: "H", 0x87: "I", 0x8A: "Q"}[tag]
            kind, _, _, _, first, last, _, length = struct.unpack(f"<BBB5{number}", body)
            assert length == last - first + 1
            found.append(("window", ("memory", "io", "bus")[kind], first, last))
    assert reader.take(1) == b"\0"
    assert reader.position == len(template)
    return found
