"""Checks of what makes the CPU quick, where it is quick or not: a remedy that is missing costs five times and more."""

from __future__ import annotations

import mmap
import time

from emu.cpu.abi import address, ffi
from emu.micro import ALIAS, DATA, PML4, PRESENT, PT, WRITABLE, MicroGuest
from emu.selftest.check import Failure, Group, Listing, expect, run

GROUP = Group("speed")

TURNS = 20_000
ROUNDS = 5                              # the best of these counts,
MOST_ROUNDS = 50                        # or of these if a busy host spoils the first
RATIO = 8                               # quick stores take 1.4 times what additions do, slow ones 50
VIRTUAL_LIMIT = 768 << 20               # bytes; a machine of 64 MiB takes 330 MiB with a bounded buffer, else 1.1 GiB
PAGE = 0x1000
TABLES = 0x10000                        # bytes from address 0 on: page tables, and more
MARK = 0x5EED

ADDITIONS = Listing("""
  000  48 83 c0 01  add rax, 1
  004  48 83 c0 01  add rax, 1
  008  48 83 c0 01  add rax, 1
  00c  48 83 c0 01  add rax, 1
  010  48 83 c0 01  add rax, 1
  014  48 83 c0 01  add rax, 1
  018  48 83 c0 01  add rax, 1
  01c  48 83 c0 01  add rax, 1
  020  ff c9        dec ecx
  022  75 dc        jne 0
  024  f4           hlt
""")
STORES = Listing("""
  000  48 89 07     mov qword ptr [rdi], rax
  003  48 89 47 08  mov qword ptr [rdi + 8], rax
  007  48 89 47 10  mov qword ptr [rdi + 0x10], rax
  00b  48 89 47 18  mov qword ptr [rdi + 0x18], rax
  00f  48 89 47 20  mov qword ptr [rdi + 0x20], rax
  013  48 89 47 28  mov qword ptr [rdi + 0x28], rax
  017  48 89 47 30  mov qword ptr [rdi + 0x30], rax
  01b  48 89 47 38  mov qword ptr [rdi + 0x38], rax
  01f  ff c9        dec ecx
  021  75 dd        jne 0
  023  f4           hlt
""")


def _expect_quick_stores(at: int) -> None:
    """Compare a loop of stores with one of additions."""
    with MicroGuest() as guest:
        best = dict.fromkeys((ADDITIONS, STORES), 1 << 62)
        for number in range(1, MOST_ROUNDS + 1):
            for program in best:
                started = time.perf_counter_ns()
                run(guest, program, rcx=TURNS, rdi=at, rax=0)
                best[program] = min(best[program], time.perf_counter_ns() - started)
            ratio = best[STORES] / best[ADDITIONS]
            if number >= ROUNDS and ratio < RATIO:
                return
        raise Failure(f"a store takes {ratio:.0f} times an addition's time")


@GROUP.check("stores", "every store of every program calls a function: five times slower")
def stores() -> None:
    """Any hook on memory, whatever its range, and data that may be executed put stores on the slow path."""
    _expect_quick_stores(ALIAS + DATA)


@GROUP.check("stores to executable pages", "a kernel that has not set NX yet boots a fifth slower")
def stores_to_executable_pages() -> None:
    """TCG never calls such a page dirty; the replaced store helpers do, where no code was translated from it."""
    _expect_quick_stores(DATA)


SPIN = Listing("""
  000  ff c9  dec ecx
  002  75 fc  jne 0
  004  f4     hlt
""")


@GROUP.check("the exit check of a block", "each block of translated code starts with a call")
def exit_check() -> None:
    """The call that asks whether to stop is not generated; two instructions are, and a label behind the block."""
    with MicroGuest() as guest:
        label = ffi.new("uint64_t[16]")
        guest.cpu.context.exit_label = address(label)                    # whoever generates an end takes it away
        run(guest, SPIN, rcx=3)
        expect("label left over", guest.cpu.context.exit_label, 0)


LOAD = Listing("""
  000  0f 22 d8           mov cr3, rax
  003  8b 04 25 <DATA:4>  mov eax, dword ptr [DATA]
  00a  f4                 hlt
""", DATA=DATA)


@GROUP.check("page walks", "a TLB miss takes half as long again: one detour for each level of tables")
def page_walks() -> None:
    """Tables are read straight from RAM; here that is a copy, in which a page is another."""
    with MicroGuest() as guest:
        context = guest.cpu.context
        copy = bytearray(guest.memory.read(0, TABLES))
        entry = PT + 8 * (DATA // PAGE)
        copy[entry : entry + 8] = (DATA + PAGE | PRESENT | WRITABLE).to_bytes(8, "little")
        guest.memory.write(DATA + PAGE, MARK.to_bytes(4, "little"))
        buffer = ffi.from_buffer(copy)
        base, low = context.ram_base, context.low_bytes
        context.ram_base, context.low_bytes = address(buffer), TABLES
        try:
            run(guest, LOAD, rax=PML4)
        finally:
            context.ram_base, context.low_bytes = base, low
        expect("what was read", guest.registers.rax, MARK)


def _virtual_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * mmap.PAGESIZE


@GROUP.check("the translation buffer", "each machine grows by a gigabyte, and a process holds few of them")
def translation_buffer() -> None:
    """libunicorn reserves 1 GiB unless told otherwise, and fills all of it in time."""
    before = _virtual_bytes()
    with MicroGuest():
        grown = _virtual_bytes() - before
    if grown > VIRTUAL_LIMIT:
        raise Failure(f"a guest of 64 MiB takes {grown >> 20:,} MiB of address space")
