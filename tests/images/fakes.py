"""Kernel modules, programs and packages of a few bytes."""

from __future__ import annotations

import io
import lzma
import struct
import tarfile
from collections.abc import Iterable, Mapping

RELEASE = "6.1.0-1-amd64"


def module(depends: Iterable[str] = (), aliases: Iterable[str] = (), padding: int = 0) -> bytes:
    """A 64-bit ELF file with the section .modinfo, and nothing else that counts."""
    fields = [f"depends={','.join(depends)}", *(f"alias={alias}" for alias in aliases), "license=GPL"]
    modinfo = b"\0".join(field.encode() for field in fields) + b"\0"
    names = b"\0.text\0.modinfo\0.shstrtab\0"
    body = bytes(padding) + names + modinfo
    start = 64 + padding
    sections = [
        struct.pack("<IIQQQQ24x", *fields)
        for fields in (
            (0, 0, 0, 0, 0, 0),
            (names.index(b".modinfo"), 1, 0, 0, start + len(names), len(modinfo)),
            (names.index(b".shstrtab"), 3, 0, 0, start, len(names)),
        )
    ]
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 3, 2)
    return header + body + b"".join(sections)


def executable(interpreter: str = "") -> bytes:
    """A 64-bit ELF program, dynamically linked if it has an interpreter."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    name = interpreter.encode() + b"\0" if interpreter else b""
    kind = 3 if interpreter else 1
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", kind, 4, 120, 0, 0, len(name), len(name), 1) + name + b"code"


def tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar archive; `links` are hard links and what they lead to."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    return output.getvalue()


def deb(files: Mapping[str, bytes]) -> bytes:
    """A Debian package (deb(5))."""
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"", "data.tar.xz": lzma.compress(tar(files))}
    package = b"!<arch>\n"
    for name, data in members.items():
        package += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + bytes(len(data) % 2)
    return package


def kernel_package(modules: Mapping[str, bytes], release: str = RELEASE) -> bytes:
    """A kernel's package with these modules, by path below kernel/."""
    files = {"./boot/vmlinuz": b"kernel"}
    files |= {f"./lib/modules/{release}/kernel/{path}": data for path, data in modules.items()}
    return deb(files)
