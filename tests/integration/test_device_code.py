"""Programs that a device reads into memory run as they were read, whatever ran from those pages before.

The host puts one program after another under one name, at one address, with the guest's page cache dropped between.
Each reaches over many pages, so that the guest's kernel, which takes free pages in no order that a test could rely
on, puts some of them where the same page of an earlier program was.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import capstone
import pytest

import emu
from emu.machine import Machine
from emu.memory import MIB
from tests.integration.programs import BASE, EXECUTABLE, LOAD, READ_EXECUTE, X86_64, Program

pytestmark = pytest.mark.integration

SOME, MANY, SABOTAGED = 100, 500, 40     # programs
PAGE, PAGES = 4096, 128                 # fewer are lost among those that each new process takes, clears and frees
ENTRY = BASE[64] + PAGE
PROGRAM_BYTES = PAGE * (1 + PAGES)      # a page for the headers

MKFS = which("mkfs.ext4", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
DISK_BYTES = 4 * MIB
START_S, RUN_S = 60.0, 60.0

STEP = """
    35 {number}               xor eax, {value:#x}
    e9 f6 0f 00 00            jmp {next_page:#x}
"""
FINISH = """
    35 {number}               xor eax, {value:#x}           ; EAX is the answer now
    89 44 24 f0               mov dword ptr [rsp - 0x10], eax
    6a 01                     push 1                        ; write
    58                        pop rax
    89 c7                     mov edi, eax                  ; to standard output
    48 8d 74 24 f0            lea rsi, [rsp - 0x10]
    6a 04                     push 4                        ; bytes
    5a                        pop rdx
    0f 05                     syscall
    6a 3c                     push 0x3c                     ; exit(0)
    58                        pop rax
    31 ff                     xor edi, edi
    0f 05                     syscall
"""


def listing(text: str, address: int, value: int) -> Program:
    """A page's code at an address, with its number."""
    number = value.to_bytes(4, "little").hex(" ")
    return Program(64, text.format(number=number, value=value, next_page=address + PAGE))


def program(answer: bytes, chance: random.Random) -> bytes:
    """A static ELF-64 file whose program writes these four bytes; such programs differ in the number on each page."""
    rest = int.from_bytes(answer, "little")
    numbers = [chance.getrandbits(32) for _ in range(PAGES - 1)]
    for number in numbers:
        rest ^= number
    step, finish = listing(STEP, 0, 0).code, listing(FINISH, 0, 0).code
    pages = [step[:1] + number.to_bytes(4, "little") + step[5:] for number in numbers]
    pages.append(finish[:1] + rest.to_bytes(4, "little") + finish[5:])
    ident = struct.pack("<4s5B7x", b"\x7fELF", 2, 1, 1, 0, 0)
    header = struct.pack("<HHIQQQI6H", EXECUTABLE, X86_64, 1, ENTRY, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", LOAD, READ_EXECUTE, 0, BASE[64], BASE[64], PROGRAM_BYTES, PROGRAM_BYTES, PAGE)
    return b"".join(page.ljust(PAGE, b"\0") for page in [ident + header + segment, *pages])


def test_listings_are_what_their_bytes_mean() -> None:
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    for text in (STEP, FINISH):
        page = listing(text, ENTRY, 0x12345678)
        decoded = engine.disasm(page.code, ENTRY)
        assert [(bytes(i.bytes), f"{i.mnemonic} {i.op_str}".strip()) for i in decoded] == page.lines()


@dataclass(frozen=True)
class Place:
    """Where a program is.

    Attributes:
        machine: that runs it.
        path: of it in the guest.
        put: has the host put another one there.
    """

    machine: Machine
    path: str
    put: Callable[[bytes], None]

    def wrong_answers(self, count: int) -> list[tuple[bytes, bytes]]:
        """Put and run so many programs, one after another: right and given answers where they differ."""
        chance, wrong = random.Random(count), []
        for number in range(count):
            answer = b"%04d" % number
            self.put(program(answer, chance))
            command = f"echo 3 >/proc/sys/vm/drop_caches; {self.path}"
            given = self.machine.run(command, timeout=RUN_S).stdout_bytes
            if given != answer:
                wrong.append((answer, given))
        return wrong


@contextmanager
def over_9p(directory: Path) -> Iterator[Place]:
    """A file of a shared directory."""
    file = directory / "program"
    file.touch(0o755)
    with emu.boot(kernel="generic", shares={"code": directory}) as machine:
        machine.wait_prompt(START_S)
        yield Place(machine, "/mnt/code/program", lambda data: _overwrite(file, range(0, PROGRAM_BYTES, PAGE), data))


@contextmanager
def over_virtio_blk(directory: Path) -> Iterator[Place]:
    """A file of an ext4 file system on a disk; the host overwrites its blocks in the image."""
    assert MKFS is not None
    marks = [random.Random(number).randbytes(PAGE) for number in range(1 + PAGES)]
    content, image = directory / "content", directory / "image"
    content.mkdir()
    (content / "program").write_bytes(b"".join(marks))
    (content / "program").chmod(0o755)
    image.touch()
    os.truncate(image, DISK_BYTES)
    subprocess.run([MKFS, "-q", "-F", "-b", str(PAGE), "-d", content, image], check=True, timeout=RUN_S)
    made = image.read_bytes()
    places = [made.index(mark) for mark in marks]
    with emu.boot(kernel="generic", disks=[image]) as machine:
        machine.wait_prompt(START_S)
        machine.run("modprobe ext4; mkdir /disk; mount -o ro /dev/vda /disk", check=True, timeout=RUN_S)
        yield Place(machine, "/disk/program", lambda data: _overwrite(image, places, data))


def _overwrite(path: Path, places: Iterable[int], data: bytes) -> None:
    """Put the pages of `data` at these offsets of a file."""
    with open(path, "r+b") as handle:
        for number, place in enumerate(places):
            handle.seek(place)
            handle.write(data[number * PAGE : (number + 1) * PAGE])


TRANSPORTS = [
    over_9p,
    pytest.param(over_virtio_blk, marks=pytest.mark.skipif(MKFS is None, reason="needs mkfs.ext4 (e2fsprogs)")),
]


@pytest.mark.parametrize("programs", [SOME, pytest.param(MANY, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_program_gives_its_own_answer(
    transport: Callable[[Path], AbstractContextManager[Place]], programs: int, tmp_path: Path
) -> None:
    with transport(tmp_path) as place:
        assert place.wrong_answers(programs) == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_programs_give_wrong_answers_if_what_a_device_writes_drops_no_translations(
    transport: Callable[[Path], AbstractContextManager[Place]], tmp_path: Path
) -> None:
    with transport(tmp_path) as place:
        place.machine.memory.drop_code = lambda start, end: None
        assert place.wrong_answers(SABOTAGED) != []
