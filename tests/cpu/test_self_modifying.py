"""Code that is rewritten is executed as rewritten, whoever rewrites it and through whichever address."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from emu import micro
from emu.cpu.platform import Exit
from emu.memory import GIB, HIGH_START, GuestMemory
from emu.micro import ALIAS, CODE, MicroGuest
from tests.support.forks import in_fork
from tests.support.remedies import run_alone

FUNCTION = CODE + 0x5000                # on a page of its own
RETURN_1 = b"\xb8\x01\x00\x00\x00\xc3"  # mov eax, 1; ret
ROUNDS = 40                             # libunicorn stops looking after the first store, or a handful


def immediate(value: int) -> bytes:
    return struct.pack("<I", value)


def call(target: int, at: int) -> bytes:
    return b"\xe8" + struct.pack("<i", target - at - 5)


def store(address: int, size: int) -> bytes:
    """mov [address], cl, cx, ecx or rcx"""
    prefix, opcode = {1: (b"", b"\x88"), 2: (b"\x66", b"\x89"), 4: (b"", b"\x89"), 8: (b"\x48", b"\x89")}[size]
    return prefix + opcode + b"\x0c\x25" + immediate(address)


def run_rounds(guest: MicroGuest, body: Callable[[int], bytes], rounds: int = ROUNDS) -> list[int]:
    """A loop whose body gets ECX = round number and leaves a result in EAX; the results, by way of a port."""
    head = b"\xb9\x01\x00\x00\x00"                      # mov ecx, 1
    inside = body(CODE + len(head))
    tail = b"\xe7\x99\xff\xc1\x83\xf9" + bytes((rounds + 1,))        # out 0x99, eax; inc ecx; cmp ecx, rounds + 1
    back = len(inside) + len(tail) + 6
    code = head + inside + tail + b"\x0f\x85" + struct.pack("<i", -back) + b"\xf4"      # jne to the body; hlt
    assert guest.run(code) is Exit.HALT, guest.events
    return [value for _, _, value in guest.outs]


EXPECTED = list(range(1, ROUNDS + 1))


def far(size: int, through: int) -> Callable[[MicroGuest], list[int]]:
    """One store of `size` bytes into a function on another page, and a call of it, again and again."""

    def scenario(guest: MicroGuest) -> list[int]:
        # mov rax, imm64; ret or nop; mov eax, imm32; ret
        function = b"\x48\xb8" + bytes(8) + b"\xc3" if size == 8 else b"\x90\xb8" + bytes(4) + b"\xc3"
        guest.memory.write(FUNCTION, function)
        rewrite = store(FUNCTION + 2 + through, size)
        return run_rounds(guest, lambda at: rewrite + call(FUNCTION, at + len(rewrite)))

    return scenario


def many_stores(through: int) -> Callable[[MicroGuest], list[int]]:
    """The whole function copied a byte at a time, by REP MOVSB, with its new value patched into the copy's source."""

    def scenario(guest: MicroGuest) -> list[int]:
        guest.memory.write(FUNCTION, RETURN_1)
        guest.memory.write(micro.DATA, RETURN_1)

        def body(at: int) -> bytes:
            code = (
                store(micro.DATA + 1, 4)
                + b"\x51"                                            # push rcx
                + b"\xbe" + immediate(micro.DATA)                    # mov esi, DATA
                + b"\xbf" + immediate(FUNCTION + through)            # mov edi, FUNCTION
                + b"\xb9\x06\x00\x00\x00\xf3\xa4"                    # mov ecx, 6; rep movsb
                + b"\x59"                                            # pop rcx
            )  # fmt: skip
            return code + call(FUNCTION, at + len(code))

        return run_rounds(guest, body)

    return scenario


def near(through: int) -> Callable[[MicroGuest], list[int]]:
    """A store into the very next instruction of the block it stands in."""

    def scenario(guest: MicroGuest) -> list[int]:
        def body(at: int) -> bytes:
            length = len(store(0, 4))
            return store(at + length + 1 + through, 4) + b"\xb8\x00\x00\x00\x00"     # mov eax, 0

        return run_rounds(guest, body)

    return scenario


def same_page(through: int) -> Callable[[MicroGuest], list[int]]:
    """A store into another block of the page it stands in."""

    def scenario(guest: MicroGuest) -> list[int]:
        target = CODE + 0x800
        guest.memory.write(target, RETURN_1)
        return run_rounds(guest, lambda at: store(target + 1 + through, 4) + call(target, at + len(store(0, 4))))

    return scenario


def across_pages(through: int) -> Callable[[MicroGuest], list[int]]:
    """The rewritten instruction, and the store, stand across a page's end."""

    def scenario(guest: MicroGuest) -> list[int]:
        target = FUNCTION + 0xFFD
        guest.memory.write(target, RETURN_1)
        return run_rounds(guest, lambda at: store(target + 1 + through, 4) + call(target, at + len(store(0, 4))))

    return scenario


SCENARIOS: dict[str, Callable[[MicroGuest], list[int]]] = {}
for _where, _through in (("its own address", 0), ("an alias", ALIAS)):
    for _size in (1, 2, 4, 8):
        SCENARIOS[f"far, {_size} bytes at a time, through {_where}"] = far(_size, _through)
    SCENARIOS[f"far, in many stores, through {_where}"] = many_stores(_through)
    SCENARIOS[f"in the next instruction, through {_where}"] = near(_through)
    SCENARIOS[f"in the same page, through {_where}"] = same_page(_through)
    SCENARIOS[f"across two pages, through {_where}"] = across_pages(_through)


@pytest.mark.parametrize("name", SCENARIOS)
def test_code_rewritten_by_the_guest_is_executed_as_rewritten(name: str) -> None:
    with MicroGuest() as guest:
        assert SCENARIOS[name](guest) == EXPECTED


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.endswith("through an alias")])
def test_stale_code_runs_without_the_remedy(name: str) -> None:
    """As libunicorn comes: no function replaced."""
    done = run_alone(
        "from emu.cpu import abi, layout\n"
        "from tests.support.remedies import leave_out\n"
        "leave_out(*{thunk for thunk, _ in layout.layout_of(abi.library_path()).slots})\n"
        "from tests.cpu.test_self_modifying import *\n"
        "guest = MicroGuest()\n"
        f"print(SCENARIOS[{name!r}](guest) == EXPECTED)\n"
    )
    assert done.stdout == "False\n", done.stderr


def test_code_copied_over_and_over_stays_right() -> None:
    """A page that holds another program each time, as a page cache does: written as data, then executed."""
    with MicroGuest() as guest:
        guest.put(call(FUNCTION, CODE) + b"\xe7\x99\xf4")            # call; out 0x99, eax; hlt
        copy = (
            b"\xbe" + immediate(micro.DATA)                          # mov esi, DATA
            + b"\xbf" + immediate(FUNCTION + ALIAS)                  # mov edi, FUNCTION's alias
            + b"\xb9\x00\x02\x00\x00\xf3\x48\xa5"                    # mov ecx, 512; rep movsq
        )  # fmt: skip
        for value in range(1, 30):
            page = (b"\xb8" + immediate(value) + b"\xc3").ljust(4096, b"\xcc")
            guest.memory.write(micro.DATA, page)
            code = copy + call(FUNCTION, CODE + len(copy)) + b"\xe7\x99\xf4"
            assert guest.run(code) is Exit.HALT
        assert [out for _, _, out in guest.outs] == list(range(1, 30))


# -- rewritten by the host -----------------------------------------------------------------------------------------


def values_after_host_writes(guest: MicroGuest, address: int) -> list[int]:
    """What a function returns that the host rewrites between calls."""
    guest.memory.write(address, RETURN_1)
    guest.write_quads(micro.DATA, 0)
    code = call(FUNCTION, CODE) + b"\xe7\x99\xf4\xeb\xf6"            # call; out 0x99, eax; hlt; jmp to the call
    guest.put(code)
    for value in (1, 2, 3):
        guest.memory.write(address + 1, bytes((value,)))
        assert guest.go() is Exit.HALT
    return [value for _, _, value in guest.outs]


def test_code_rewritten_by_the_host_is_executed_as_rewritten() -> None:
    with MicroGuest() as guest:
        assert values_after_host_writes(guest, FUNCTION) == [1, 2, 3]


def test_stale_code_runs_if_it_is_not_dropped() -> None:
    with MicroGuest() as guest:
        guest.memory.drop_code = lambda start, end: None
        assert values_after_host_writes(guest, FUNCTION) == [1, 1, 1]


def test_code_above_the_hole_is_dropped_by_its_ram_address() -> None:
    with MicroGuest(memory=GuestMemory(4 * GIB)) as guest:
        guest.write_quads(micro.PT + 8 * (FUNCTION >> 12), HIGH_START + 0x3000 | 3)
        assert values_after_host_writes(guest, HIGH_START + 0x3000) == [1, 2, 3]


def test_code_rewritten_inside_an_exit_is_executed_as_rewritten() -> None:
    """As a hypercall's result or a device's DMA may, into the block that is running."""

    class Rewriting(MicroGuest):
        def port_out(self, port: int, size: int, value: int) -> None:
            super().port_out(port, size, value)
            if port == 0x98:
                self.memory.write(FUNCTION + 1, b"\x07")

    with Rewriting() as guest:
        guest.memory.write(FUNCTION, RETURN_1)
        head = call(FUNCTION, CODE) + b"\xe6\x98"                    # call; out 0x98, al
        guest.run(head + call(FUNCTION, CODE + len(head)) + b"\xf4")
        assert guest.registers.rax == 7


def test_code_that_a_fork_has_dropped_is_still_noticed_here() -> None:
    """Each process has code of its own, and notes of its own about which pages that is from."""
    with MicroGuest() as guest:
        guest.memory.write(FUNCTION, RETURN_1)
        guest.put(call(FUNCTION, CODE) + b"\xe7\x99\xf4\xeb\xf6")   # call; out 0x99, eax; hlt; jmp to the call
        assert guest.go() is Exit.HALT
        in_fork(lambda: guest.memory.write(FUNCTION, RETURN_1))
        guest.memory.write(FUNCTION + 1, b"\2")
        assert guest.go() is Exit.HALT
        assert [value for _, _, value in guest.outs] == [1, 2]


def test_a_store_does_not_reach_memory_behind_a_page_end_twice() -> None:
    """The quick store helpers leave what crosses a page to libunicorn; each byte is stored once, where it belongs."""
    with MicroGuest() as guest:
        for size in (1, 2, 4, 8):
            for offset in range(0xFF6, 0x1000):
                guest.memory.write(micro.DATA, bytes(0x2000))
                code = b"\x48\xb9" + bytes(range(1, 9)) + store(micro.DATA + offset, size) + b"\xf4"
                guest.run(b"\x0f\x20\xd8\x0f\x22\xd8" + code)        # mov rax, cr3; mov cr3, rax: no page is dirty
                expected = bytearray(0x2000)
                expected[offset : offset + size] = bytes(range(1, size + 1))
                assert guest.memory.read(micro.DATA, 0x2000) == expected
