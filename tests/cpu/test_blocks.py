"""The kept table of translated blocks: what it finds is what stands at an address now, in whatever page tables."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from emu.cpu.constants import control_write
from emu.cpu.platform import Exit
from emu.micro import ALIAS, CODE, DATA, PDPT, PML4, PRESENT, PT, WRITABLE, MicroGuest
from tests.support.remedies import run_alone

ROUNDS = 30
PAGES = DATA, DATA + 0x1000             # whose function the virtual page VIRTUAL shows, in turn
VIRTUAL = 0x3_8000
OTHER_PML4, OTHER_PDPT, OTHER_PD, OTHER_PT = (0x6_0000 + 0x1000 * number for number in range(4))
CONTROL_TB_FLUSH = 10
NOTHING = 0x800                         # on that page: a jump back and nothing else
BEHIND = 0x900
MASK = 0x000F_FFFF_FFFF_F000


def function(value: int) -> bytes:
    """mov eax, value; jmp rdx: back by an indirect jump, too."""
    return b"\xb8" + struct.pack("<I", value) + b"\xff\xe2"


def quad(guest: MicroGuest, address: int) -> int:
    return int.from_bytes(guest.memory.read(address, 8), "little")


def put(guest: MicroGuest, address: int, value: int) -> None:
    guest.memory.write(address, value.to_bytes(8, "little"))


def other_tables(guest: MicroGuest) -> None:
    """A copy of the page tables of the lowest 2 MiB; VIRTUAL is PAGES[0] in one, PAGES[1] in the other."""
    for source, copy in (PML4, OTHER_PML4), (PDPT, OTHER_PDPT), (0x3000, OTHER_PD), (PT, OTHER_PT):
        guest.memory.write(copy, guest.memory.read(source, 0x1000))
    for table, below in (OTHER_PML4, OTHER_PDPT), (OTHER_PDPT, OTHER_PD), (OTHER_PD, OTHER_PT):
        put(guest, table, below | quad(guest, table) & ~MASK)
    for table, page in zip((PT, OTHER_PT), PAGES, strict=True):
        put(guest, table + 8 * (VIRTUAL >> 12), page | PRESENT | WRITABLE)


def jump(target: int) -> bytes:
    return (
        b"\xbb" + struct.pack("<I", target)                                 # mov ebx, target
        + b"\x48\x8d\x15\x02\x00\x00\x00"                                    # lea rdx, [rip + 2]
        + b"\xff\xe3"                                                       # jmp rbx
    )


def program(switch: bytes, target: int = VIRTUAL) -> bytes:
    """A loop: `switch`, indirect jumps, the first for the TLB to have the page, EAX out."""
    head = b"\xb9" + struct.pack("<I", ROUNDS)                              # mov ecx, ROUNDS
    body = switch + jump(VIRTUAL + NOTHING) + jump(target)
    body += b"\xe7\x99"                                                     # out 0x99, eax
    body += b"\xff\xc9"                                                     # dec ecx
    return head + body + b"\x75" + struct.pack("b", -len(body) - 2) + b"\xf4"        # jnz; hlt


# mov rax, cr3; xor rax, PML4 ^ OTHER_PML4; mov cr3, rax
SWITCH = b"\x0f\x20\xd8" + b"\x48\x35" + struct.pack("<I", PML4 ^ OTHER_PML4) + b"\x0f\x22\xd8"
FLUSH = b"\x0f\x20\xd8\x0f\x22\xd8"       # mov rax, cr3; mov cr3, rax
# xor dword [PT entry of VIRTUAL], the pages' difference; invlpg [VIRTUAL]
REMAP = b"\x81\x34\x25" + struct.pack("<II", PT + 8 * (VIRTUAL >> 12), PAGES[0] ^ PAGES[1])
REMAP += b"\x0f\x01\x3c\x25" + struct.pack("<I", VIRTUAL)


@pytest.fixture
def guest() -> Iterator[MicroGuest]:
    with MicroGuest() as guest:
        for number, page in enumerate(PAGES):
            guest.memory.write(page, function(number + 1))
            guest.memory.write(page + NOTHING, b"\xff\xe2")
        other_tables(guest)
        yield guest


def values(guest: MicroGuest) -> list[int]:
    return [value for _, _, value in guest.outs]


def blocks(guest: MicroGuest) -> list[int]:
    """Pointers in the table."""
    return [pointer for (pointer,) in struct.iter_unpack("<Q", guest.cpu._blocks) if pointer]


@pytest.mark.parametrize("switch", [SWITCH, REMAP], ids=["another CR3", "another page"])
def test_an_address_means_what_the_page_tables_say_now(guest: MicroGuest, switch: bytes) -> None:
    assert guest.run(program(switch)) is Exit.HALT, guest.events
    assert values(guest) == [2, 1] * (ROUNDS // 2)
    assert blocks(guest)


def test_a_page_that_is_not_there_any_more_faults(guest: MicroGuest) -> None:
    gone = b"\x83\xf9" + bytes([ROUNDS - 9]) + b"\x75\x13"                  # cmp ecx, ..; jne behind it
    gone += b"\xc7\x04\x25" + struct.pack("<II", PT + 8 * (VIRTUAL >> 12), 0)
    gone += b"\x0f\x01\x3c\x25" + struct.pack("<I", VIRTUAL)                # invlpg [VIRTUAL]
    assert guest.run(program(gone)) is Exit.HALT
    assert [(event.vector, event.error_code & 1, event.rip) for event in guest.events] == [(14, 0, VIRTUAL + NOTHING)]
    assert values(guest) == [1] * 9


def test_a_block_in_two_pages_means_what_both_are_now(guest: MicroGuest) -> None:
    at, seconds = VIRTUAL + 0xFFD, (PAGES[1] + 0x1000, PAGES[1] + 0x2000)
    for number, (table, page) in enumerate(zip((PT, OTHER_PT), seconds, strict=True), 1):
        put(guest, table + 8 * (VIRTUAL >> 12), PAGES[0] | PRESENT | WRITABLE)
        put(guest, table + 8 * (VIRTUAL >> 12) + 8, page | PRESENT | WRITABLE)
        guest.memory.write(page, bytes([number, 0]) + b"\xff\xe2")          # the immediate's upper half; jmp rdx
    guest.memory.write(PAGES[0] + 0xFFD, b"\xb8\0\0")                      # mov eax
    assert guest.run(program(SWITCH, at)) is Exit.HALT, guest.events
    assert values(guest) == [2 << 16, 1 << 16] * (ROUNDS // 2)


@pytest.mark.parametrize("flush", [b"", FLUSH], ids=["by libunicorn", "by us"])
def test_code_that_was_written_over_is_not_found(guest: MicroGuest, flush: bytes) -> None:
    rewrite = b"\xf6\xc1\x01\x75\x07"                                       # test cl, 1; jnz behind
    rewrite += b"\x89\x0c\x25" + struct.pack("<I", ALIAS + PAGES[0] + 1)   # mov [the immediate], ecx
    assert guest.run(program(flush + rewrite)) is Exit.HALT, guest.events
    assert values(guest) == [number + number % 2 for number in range(ROUNDS, 0, -1)]


def test_code_that_the_host_wrote_over_is_not_found(guest: MicroGuest) -> None:
    guest.run(program(b""))
    guest.memory.write(PAGES[0], function(77))
    guest.outs.clear()
    guest.run(program(b""))
    assert values(guest) == [77] * ROUNDS


@pytest.mark.parametrize(
    ("one", "other", "flush"),
    [(0x900, 0x024, b""), (0x900, 0x902, FLUSH)],
    ids=["libunicorn's", "ours"],
)
def test_blocks_that_share_a_place_in_a_table_are_told_apart(
    guest: MicroGuest, one: int, other: int, flush: bytes
) -> None:
    """Every other jump goes to either."""
    guest.memory.write(PAGES[0] + other, b"\xff\xe2")                       # jmp rdx
    guest.memory.write(PAGES[0] + one, b"\xff\xc0\xff\xe2")                 # inc eax; jmp rdx
    head = b"\xb9" + struct.pack("<I", ROUNDS)                              # mov ecx, ROUNDS
    body = flush + b"\x31\xc0" + jump(VIRTUAL + NOTHING)                    # xor eax, eax
    body += b"\x48\x8d\x15" + struct.pack("<i", 22)                         # lea rdx, [rip + 22]: what follows the jump
    body += b"\xbb" + struct.pack("<I", VIRTUAL + one)                      # mov ebx, one
    body += b"\xbe" + struct.pack("<I", VIRTUAL + other)                    # mov esi, other
    body += b"\xf6\xc1\x01\x0f\x45\xde" + b"\x66\x90" * 2 + b"\xff\xe3"      # test cl, 1; cmovne ebx, esi; jmp rbx
    body += b"\xe7\x99\xff\xc9"                                            # out 0x99, eax; dec ecx
    assert guest.run(head + body + b"\x75" + struct.pack("b", -len(body) - 2) + b"\xf4") is Exit.HALT, guest.events
    assert values(guest) == [1, 0] * (ROUNDS // 2)


def test_blocks_of_another_mode_are_told_apart(guest: MicroGuest) -> None:
    """The same bytes add one to RAX in 64-bit mode, and nothing to EAX in 32-bit mode."""
    guest.memory.write(PAGES[0] + BEHIND, b"\x48\xff\xc0\xff\xe2")         # inc rax, or dec eax and inc eax; jmp rdx
    code = b"\xb9" + struct.pack("<I", ROUNDS)                              # mov ecx, ROUNDS
    start = len(code)
    code += b"\x31\xc0" + jump(VIRTUAL + NOTHING) + jump(VIRTUAL + BEHIND)  # xor eax, eax
    code += b"\x6a\x08\x48\x8d\x35\x03\x00\x00\x00\x56\x48\xcb"             # push 8; lea rsi, [rip+3]; push rsi; retfq
    code += b"\xbb" + struct.pack("<I", VIRTUAL + BEHIND)                   # mov ebx, the same
    code += b"\xba" + struct.pack("<I", CODE + len(code) + 7) + b"\xff\xe3"   # mov edx, what follows; jmp ebx
    code += b"\xea" + struct.pack("<IH", CODE + len(code) + 7, 0x10)        # jmp 0x10: what follows
    code += b"\xe7\x99\xff\xc9"                                            # out 0x99, eax; dec ecx
    code += b"\x75" + struct.pack("b", start - len(code) - 2) + b"\xf4"     # jnz; hlt
    assert guest.run(code) is Exit.HALT, guest.events
    assert values(guest) == [1] * ROUNDS


def test_other_engines_have_no_table() -> None:
    script = (
        "from emu.cpu.library import load\n"
        "load()\n"
        "import unicorn as u, unicorn.x86_const as x\n"
        "engine = u.Uc(u.UC_ARCH_X86, u.UC_MODE_64)\n"
        "engine.mem_map(0x1000, 0x1000)\n"
        # mov ecx, 50; lea rbx, [rip + 2]; jmp rbx; inc rax; dec ecx; jnz to lea
        "engine.mem_write(0x1000, bytes.fromhex('b932000000 488d1d02000000 ffe3 48ffc0 ffc9 75f0'))\n"
        "engine.emu_start(0x1000, 0x1015)\n"
        "engine.ctl_flush_tb()\n"
        "print(engine.reg_read(x.UC_X86_REG_RAX))\n"
    )
    done = run_alone(script)
    assert done.stdout == "50\n", done.stderr


def test_when_all_blocks_go_none_is_found(guest: MicroGuest) -> None:
    guest.run(program(SWITCH))
    assert blocks(guest)
    guest.cpu._api.uc_ctl(guest.cpu._uc, control_write(CONTROL_TB_FLUSH))
    assert blocks(guest) == []
    guest.outs.clear()
    guest.run(program(SWITCH))
    assert values(guest) == [2, 1] * (ROUNDS // 2)


def test_it_is_of_use() -> None:
    """Without it libunicorn is asked again behind each write of CR3."""
    script = (
        "from tests.cpu.test_blocks import *\n"
        "from tests.support.remedies import leave_out\n"
        "leave_out('FIND_BLOCK')\n"
        "with MicroGuest() as guest:\n"
        "    [guest.memory.write(page, function(number + 1)) for number, page in enumerate(PAGES)]\n"
        "    [guest.memory.write(page + NOTHING, bytes((0xff, 0xe2))) for page in PAGES]\n"
        "    other_tables(guest)\n"
        "    guest.run(program(SWITCH))\n"
        "    print(len(blocks(guest)), values(guest) == [2, 1] * (ROUNDS // 2))\n"
    )
    done = run_alone(script)
    assert done.stdout == "0 True\n", done.stderr
