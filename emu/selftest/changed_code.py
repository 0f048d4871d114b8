"""Checks of code that changes: libunicorn keeps running what it once translated, unless it is made to look again."""

from __future__ import annotations

from emu.micro import ALIAS, CODE, DATA, PRESENT, PT, WRITABLE, MicroGuest
from emu.selftest.check import Group, Listing, expect, halt, run

GROUP = Group("code that changes")

PORT, POKE_PORT = 0x99, 0x98
TURNS = 20                              # libunicorn stops looking after the first store, or a handful
PAGE = 0x1000
ENTRY_BYTES = 8                         # of a page table
FAR = CODE + 5 * PAGE                   # a function on another page,
NEAR = CODE + 0x800                     # on the page of its caller,
ACROSS = FAR + PAGE - 3                 # and across the end of one
ELSEWHERE = DATA + 3 * PAGE

RETURN_1 = Listing("""
  000  b8 01 00 00 00  mov eax, 1
  005  c3              ret
""")


def _rewriting(function: int, through: int) -> Listing:
    """A loop that changes what a function returns, through an address of it, and calls it."""
    return Listing("""
  000  b9 01 00 00 00       mov ecx, 1
  005  89 0c 25 <TARGET:4>  mov dword ptr [TARGET], ecx  ; its immediate: the number of the turn
  00c  b8 <FUNCTION:4>      mov eax, FUNCTION
  011  ff d0                call rax
  013  e7 <PORT:1>          out PORT, eax
  015  ff c1                inc ecx
  017  83 f9 <LAST:1>       cmp ecx, LAST
  01a  76 e9                jbe 5
  01c  f4                   hlt
""", TARGET=function + 1 + through, FUNCTION=function, PORT=PORT, LAST=TURNS)


def _rewriting_next(through: int) -> Listing:
    """A loop that changes the very next instruction."""
    return Listing("""
  000  b9 01 00 00 00       mov ecx, 1
  005  89 0c 25 <TARGET:4>  mov dword ptr [TARGET], ecx  ; the immediate of the next
  00c  b8 00 00 00 00       mov eax, 0
  011  e7 <PORT:1>          out PORT, eax
  013  ff c1                inc ecx
  015  83 f9 <LAST:1>       cmp ecx, LAST
  018  76 eb                jbe 5
  01a  f4                   hlt
""", TARGET=CODE + 13 + through, PORT=PORT, LAST=TURNS)


def _scenarios(through: int) -> dict[str, tuple[int, Listing]]:
    """By what is rewritten: where a function has to be, and the program."""
    return {
        "a function on another page": (FAR, _rewriting(FAR, through)),
        "a function on the same page": (NEAR, _rewriting(NEAR, through)),
        "a function across two pages": (ACROSS, _rewriting(ACROSS, through)),
        "the next instruction": (FAR, _rewriting_next(through)),
    }


OWN_ADDRESS, BY_ALIAS = _scenarios(0), _scenarios(ALIAS)


def _expect_rewritten(scenarios: dict[str, tuple[int, Listing]]) -> None:
    for what, (function, program) in scenarios.items():
        with MicroGuest() as guest:
            guest.memory.write(function, RETURN_1.code)
            run(guest, program)
            expect(f"{what}: turns", len(guest.outs), TURNS)
            for turn, (_, _, result) in enumerate(guest.outs, start=1):
                expect(f"{what}: result of turn {turn}", result, turn)


@GROUP.check("code rewritten by the guest", "programs that write code, and kernels that patch themselves, run the old")
def rewritten() -> None:
    """A store to code, on the same page or another, even into the block that is running."""
    _expect_rewritten(OWN_ADDRESS)


@GROUP.check("code rewritten through another address", "a page that held another program runs that: wild crashes")
def rewritten_by_alias() -> None:
    """Writes are noticed by virtual page, and not after the first store through a mapping that is not executable."""
    _expect_rewritten(BY_ALIAS)


CALL_AND_HALT = Listing("""
  000  b8 <FUNCTION:4>  mov eax, FUNCTION
  005  ff d0            call rax
  007  e7 <PORT:1>      out PORT, eax
  009  f4               hlt
  00a  eb f4            jmp 0
""", FUNCTION=FAR, PORT=PORT)


@GROUP.check("code rewritten by the host", "a program that a device has read into memory runs as what was there before")
def rewritten_by_host() -> None:
    """Neither a store of the host nor uc_mem_write drops translated code; GuestMemory does."""
    with MicroGuest() as guest:
        guest.memory.write(FAR, RETURN_1.code)
        guest.put(CALL_AND_HALT.code)
        for value in (1, 2, 3):
            guest.memory.write(FAR + 1, bytes((value,)))
            halt(guest)
        expect("results", [value for _, _, value in guest.outs], [1, 2, 3])


class _PokedGuest(MicroGuest):
    """A guest whose OUT has the host change a function."""

    def port_out(self, port: int, size: int, value: int) -> None:
        super().port_out(port, size, value)
        if port == POKE_PORT:
            self.memory.write(FAR + 1, b"\x07")


CALL_OUT_CALL = Listing("""
  000  b8 <FUNCTION:4>  mov eax, FUNCTION
  005  ff d0            call rax
  007  e6 <PORT:1>      out PORT, al       ; the host rewrites the function
  009  b8 <FUNCTION:4>  mov eax, FUNCTION
  00e  ff d0            call rax
  010  f4               hlt
""", FUNCTION=FAR, PORT=POKE_PORT)


@GROUP.check("code rewritten in an exit", "the result of a hypercall, or of a disk's read, is not what runs")
def rewritten_in_exit() -> None:
    """As by the host between runs, but while a block of the guest is under way."""
    with _PokedGuest() as guest:
        guest.memory.write(FAR, RETURN_1.code)
        run(guest, CALL_OUT_CALL)
        expect("EAX", guest.registers.rax, 7)


CLEAN_PAGE = Listing("""
  000  0f 20 d8  mov rax, cr3
  003  0f 22 d8  mov cr3, rax            ; no page is known to be dirty any more
  006  8a 07     mov al, byte ptr [rdi]  ; this one is known again, and clean
""")
STORES = {
    1: Listing("""
  000  88 0f  mov byte ptr [rdi], cl
  002  f4     hlt
"""),
    2: Listing("""
  000  66 89 0f  mov word ptr [rdi], cx
  003  f4        hlt
"""),
    4: Listing("""
  000  89 0f  mov dword ptr [rdi], ecx
  002  f4     hlt
"""),
    8: Listing("""
  000  48 89 0f  mov qword ptr [rdi], rcx
  003  f4        hlt
"""),
}
BYTES = bytes(range(1, 9))


@GROUP.check("first stores to a page", "stores across a page's end land in the wrong page of somebody else")
def first_stores() -> None:
    """The quick store helpers take what lies within a page, and leave to libunicorn what does not."""
    with MicroGuest() as guest:
        guest.write_quads(PT + ENTRY_BYTES * (DATA // PAGE + 1), ELSEWHERE | PRESENT | WRITABLE)
        for size, store in STORES.items():
            for offset in range(PAGE - 8, PAGE):
                for page in DATA, DATA + PAGE, ELSEWHERE:
                    guest.memory.write(page, bytes(PAGE))
                guest.put(CLEAN_PAGE.code + store.code, rdi=DATA + offset, rcx=int.from_bytes(BYTES, "little"))
                halt(guest)
                stored = BYTES[:size].ljust(16, b"\0")
                inside = PAGE - offset
                what = f"{size} bytes, {inside} of them on the first page"
                expect(what, guest.memory.read(DATA + offset, inside), stored[:inside])
                expect(f"{what}: the next page", guest.memory.read(ELSEWHERE, 8), stored[inside : inside + 8])
                expect(f"{what}: RAM behind the first", guest.memory.read(DATA + PAGE, 8), bytes(8))
