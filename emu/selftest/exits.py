"""Checks of what else leads from the guest to Python and back, and of how a run ends."""

from __future__ import annotations

from emu import micro
from emu.cpu.bypass import BYPASS_BYTES, Bypass
from emu.cpu.platform import Exit
from emu.micro import CF, CODE, DIRECTION, FIXED, GP, MMIO, PML4, PT, SF, USER_CODE, MicroGuest
from emu.selftest.check import PATIENCE_S, Failure, Group, Listing, expect, fault, run

GROUP = Group("exits")

MSR = 0x4B56_4D20
PORT = 0x99
SERIAL = 0x3F8
LSR, IDLE = 5, 0x60                     # line status: nothing left to send
MASK_32, MASK_64 = (1 << 32) - 1, (1 << 64) - 1
CR2 = 0x1234_5678_9000
ADDRESSES = 1 << 40                     # what page tables can name on this model


class _WatchingGuest(MicroGuest):
    """A guest that notes its state at each exit."""

    def __post_init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []
        super().__post_init__()
        self.msrs[MSR] = 0

    def _note(self) -> None:
        self.seen.append((self.registers.rip, self.registers.rflags, self.registers.cr(2)))

    def port_in(self, port: int, size: int) -> int:
        self._note()
        return super().port_in(port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        self._note()
        super().port_out(port, size, value)

    def wrmsr(self, number: int, value: int) -> None:
        self._note()
        super().wrmsr(number, value)


EXIT_OFFSETS = 4, 5, 7, 8, 9, 11, 12


EXITS = Listing("""
  000  0f 22 d0  mov cr2, rax
  003  f9        stc
  004  ec        in al, dx
  005  66 ed     in ax, dx
  007  ed        in eax, dx
  008  ee        out dx, al
  009  66 ef     out dx, ax
  00b  ef        out dx, eax
  00c  0f 30     wrmsr
  00e  48 85 db  test rbx, rbx
  011  f4        hlt
""")


@GROUP.check("registers in an exit", "what a device or a hypercall sees of the guest is of another moment")
def exact_state() -> None:
    """RIP, flags and CR2 are exact inside every exit, and each goes on where it was."""
    guest = _WatchingGuest()
    with guest:
        run(guest, EXITS, rflags=FIXED | CF | DIRECTION, rax=CR2, rcx=MSR, rdx=PORT, rbx=1 << 63)
        expect("exits", len(guest.seen), len(EXIT_OFFSETS))
        for seen, offset in zip(guest.seen, EXIT_OFFSETS, strict=True):
            expect("RIP, RFLAGS and CR2 of an exit", seen, (CODE + offset, FIXED | CF | DIRECTION, CR2))
        expect("RIP", guest.registers.rip, CODE + len(EXITS.code))
        expect("SF and DF", guest.registers.rflags & (SF | DIRECTION), SF | DIRECTION)


PORT_VALUES = Listing("""
  000  ed     in eax, dx
  001  89 c3  mov ebx, eax
  003  ec     in al, dx
  004  66 ef  out dx, ax
  006  ee     out dx, al
  007  ef     out dx, eax
  008  f4     hlt
""")


@GROUP.check("port I/O", "drivers read and write other values than the device has")
def ports() -> None:
    """IN changes as much of RAX as it reads, OUT hands over as much as it writes."""
    with MicroGuest() as guest:
        guest.input = 0x1234_5678
        run(guest, PORT_VALUES, rax=MASK_64, rdx=PORT)
        expect("IN of four bytes", guest.registers.rbx, 0x1234_5678)
        expect("INs", guest.ins, [(PORT, 4), (PORT, 1)])
        expect("OUTs", guest.outs, [(PORT, 2, 0x5678), (PORT, 1, 0x78), (PORT, 4, 0x1234_5678)])


CR8 = Listing("""
  000  44 0f 22 c0  mov cr8, rax
  004  44 0f 20 c3  mov rbx, cr8
  008  f4           hlt
""")


@GROUP.check("CR8", "the kernel's interrupt priority has no effect, or a reserved bit is taken")
def task_priority() -> None:
    """libunicorn has no local APIC behind CR8: reads and writes are replaced, other control registers not."""
    with MicroGuest() as guest:
        run(guest, CR8, rax=11, rbx=0)
        expect("priorities, and CR8 read back", (*guest.priorities, guest.registers.rbx), (0, 11, 11))
        seen = fault(guest, CR8, rax=0x10)
        expect("a reserved bit: vector and RIP", (seen.vector, seen.rip), (GP, CODE))
        seen = fault(guest, CR8, USER_CODE, rax=3)
        expect("of a program: vector and RIP", (seen.vector, seen.rip), (GP, USER_CODE))


READ_TSC = Listing("""
  000  0f 31  rdtsc
  002  f4     hlt
""")


@GROUP.check("RDTSC", "the guest's clocks run apart, or backwards")
def time_stamp() -> None:
    """It is the host's counter plus `tsc_offset`."""
    with MicroGuest() as guest:
        before = guest.cpu.tsc()
        run(guest, READ_TSC)
        value, after = guest.registers.rdx << 32 | guest.registers.rax, guest.cpu.tsc()
        if not before < value < after:
            raise Failure(f"the guest reads {value:#x} between {before:#x} and {after:#x}")


SET_CR2 = Listing("""
  000  0f 22 d8  mov cr3, rax  ; the first page has just been unmapped
  003  0f 22 d0  mov cr2, rax
  006  f4        hlt
""")


@GROUP.check("leaving a run", "the address of the last page fault changes under the kernel's hands")
def leaving() -> None:
    """Leaving a run, libunicorn probes the address before its end: a hidden fault, and CR2 is gone; so it has none."""
    with MicroGuest() as guest:
        guest.write_quads(PT, 0)
        run(guest, SET_CR2, rax=PML4)
        expect("CR2", guest.registers.cr(2), PML4)


CODE_AT_0 = Listing("""
  000  48 ff c3  inc rbx
  003  f4        hlt
""")


@GROUP.check("code at address 0", "the machine stands still where a kernel jumps to its first page")
def code_at_0() -> None:
    """A run has an address to end at, 0 if none is given; with USE_EXITS there is a list of them, which is empty."""
    with MicroGuest() as guest:
        run(guest, CODE_AT_0, 0, rbx=0)
        expect("RBX and RIP", (guest.registers.rbx, guest.registers.rip), (1, len(CODE_AT_0.code)))


HALT = Listing("""
  000  f4  hlt
""")
LOOP = Listing("""
  000  eb fe  jmp 0
""")


@GROUP.check("HLT", "an idle guest computes on, or one that computes sleeps")
def hlt() -> None:
    """It ends the run with `halted` set, which is how an idle guest is told from one that was stopped."""
    with MicroGuest() as guest:
        run(guest, HALT)
        expect("RIP", guest.registers.rip, CODE + len(HALT.code))
        expect("whether interrupts are on", guest.cpu.interrupts_enabled, False)
        guest.put(LOOP.code)
        expect("end of a run without HLT", guest.go(0.001), Exit.KICK)


OPEN_BUS = Listing("""
  000  8b 04 25 <MMIO:4>  mov eax, dword ptr [MMIO]
  007  89 04 25 <MMIO:4>  mov dword ptr [MMIO], eax
  00e  f4                 hlt
""", MMIO=MMIO)
RELOAD_TABLES = Listing("""
  000  0f 22 d8  mov cr3, rax
  003  f4        hlt
""")


@GROUP.check("open bus", "one access to an address without memory or device ends the machine")
def open_bus() -> None:
    """libunicorn ends the run at an access outside every region, so there is one over all that a guest can address."""
    with MicroGuest() as guest:
        for physical in (micro.MMIO_PHYSICAL, ADDRESSES - (2 << 20)):
            guest.write_quads(micro.PD + 8 * (MMIO >> 21), physical | micro.PRESENT | micro.WRITABLE | micro.LARGE)
            run(guest, RELOAD_TABLES, rax=PML4)
            run(guest, OPEN_BUS, rax=0)
            expect(f"load from {physical:#x}", guest.registers.rax, MASK_32)


class _Unplugged(Exception):
    """What the platform of `_FailingGuest` raises."""


class _FailingGuest(MicroGuest):
    """A guest whose IN fails in Python."""

    def port_in(self, port: int, size: int) -> int:
        raise _Unplugged


IN_LOOP = Listing("""
  000  ec     in al, dx
  001  eb fd  jmp 0
""")


@GROUP.check("an error in a device", "a fault of Python code in an exit is lost, and the guest goes on with rubbish")
def python_error() -> None:
    """An exception cannot pass through libunicorn: it is kept, the CPU stopped, and raised again behind."""
    with _FailingGuest() as guest:
        guest.put(IN_LOOP.code, rdx=PORT)
        try:
            end = guest.go(PATIENCE_S)
        except _Unplugged:
            return
        raise Failure(f"the guest ended by {end.value}")


SEND = Listing("""
  000  ec        in al, dx
  001  83 c2 fb  add edx, -5
  004  88 c8     mov al, cl
  006  ee        out dx, al
  007  83 c2 05  add edx, 5
  00a  ff c9     dec ecx
  00c  75 f2     jne 0
  00e  f4        hlt
""")


@GROUP.check("the serial bypass", "bytes on the console are lost, or come in another order")
def bypass() -> None:
    """Machine code takes what is sent to an idle UART, up to 4 KiB, and answers its line status; then Python does."""
    with MicroGuest() as guest:
        serial = Bypass(guest.cpu.context, SERIAL)
        serial.arm(IDLE)
        count = BYPASS_BYTES + 3
        run(guest, SEND, rcx=count, rdx=SERIAL + LSR)
        sent = bytes(number & 0xFF for number in range(count, 0, -1))
        expect("bytes taken", serial.take() == sent[:BYPASS_BYTES], True)
        rest = [(SERIAL, 1, byte) for byte in sent[BYPASS_BYTES:]]
        expect("bytes handed to Python", guest.outs, rest)
        expect("line status asked of Python", guest.ins, [])
        serial.arm(None)
        run(guest, SEND, rcx=1, rdx=SERIAL + LSR)
        expect("bytes taken while disarmed", serial.take(), b"")
