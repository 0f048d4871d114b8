"""Checks of stops and interrupts: a CPU that is stopped from outside loses nothing and does nothing twice."""

from __future__ import annotations

import time

from emu.cpu.constants import MSR_LSTAR, MSR_SFMASK
from emu.cpu.platform import Exit
from emu.micro import CODE, DATA, FIXED, IF, MMIO, UD, USER_CODE, USER_CS32, MicroGuest
from emu.selftest.check import PATIENCE_S, Failure, Group, Listing, expect, fault, halt, run

GROUP = Group("stops and interrupts")

STOP_PORT = 0x99
VECTOR = 0x21
IOPL_3 = 3 << 12

TURNS = 2_000_000                       # of the counting loop, between which come
INTERVAL_NS = 50_000                    # stops as often as this
EARLY_STOPS = 10
INTERRUPTS = 50
QUIET_OUTS = 5                          # after which blocks of a loop jump to each other


class _StoppingGuest(MicroGuest):
    """A guest that is stopped in the middle of a block: by its first store to a device, and by an OUT."""

    stores = 0

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.stores += 1
        if self.stores == 1:
            self.cpu.stop()

    def port_out(self, port: int, size: int, value: int) -> None:
        super().port_out(port, size, value)
        if port == STOP_PORT:
            self.cpu.stop()


HLT = Listing("""
  000  f4  hlt
""")


def _halt_after_stops(guest: MicroGuest) -> None:
    """Run on to the HLT, whatever stops come."""
    end = time.monotonic() + PATIENCE_S
    while guest.go(PATIENCE_S) is Exit.KICK:
        if time.monotonic() > end:
            raise Failure(f"the guest still runs after {PATIENCE_S:g} s, at {guest.registers.rip:#x}")


INC_DEVICE = Listing("""
  000  ff 04 25 <MMIO:4>  inc dword ptr [MMIO]
  007  f4                 hlt
""", MMIO=MMIO)


@GROUP.check("a stop inside an instruction", "some instructions are done one and a half times: memory is corrupted")
def half_done() -> None:
    """TCG looks for stops after each load and store, and starts the instruction again. Exits are for block starts."""
    guest = _StoppingGuest()
    with guest:
        guest.put(INC_DEVICE.code)
        _halt_after_stops(guest)
        expect("stores of one INC", guest.stores, 1)


COUNT = Listing("""
  000  48 ff 04 25 <DATA:4>  inc qword ptr [DATA]
  008  53                    push rbx
  009  48 ff 04 24           inc qword ptr [rsp]
  00d  5b                    pop rbx
  00e  48 ff c9              dec rcx
  011  75 ed                 jne 0
  013  f4                    hlt
""", DATA=DATA)


@GROUP.check("counting under stops", "the same, with real stops: 20,000 a second")
def counting() -> None:
    """A loop that counts in memory, on the stack and in a register, stopped by the timer all the time."""
    with MicroGuest() as guest:
        guest.put(COUNT.code, rcx=TURNS, rbx=0)
        end, stops = time.monotonic() + PATIENCE_S, 0
        while guest.cpu.run(time.monotonic_ns() + INTERVAL_NS) is Exit.KICK:
            stops += 1
            if time.monotonic() > end:
                raise Failure(f"{TURNS:,} turns do not end in {PATIENCE_S:g} s, {stops:,} stops")
        counted = f"{guest.quad(DATA):,} and {guest.registers.rbx:,}"
        expect(f"counts with {stops:,} stops", counted, f"{TURNS:,} and {TURNS:,}")


OUT_SYSCALL = Listing("""
  000  e6 <PORT:1>  out PORT, al  ; here comes the stop
  002  0f 05        syscall
  004  0f 0b        ud2
""", PORT=STOP_PORT)


@GROUP.check("SYSCALL while a stop is due", "a system call in some millions does not happen: programs crash at random")
def syscall_while_stopping() -> None:
    """At the first hook that is not for SYSCALL libunicorn gives up its walk, and skips the instruction."""
    with _StoppingGuest() as guest:
        guest.cpu.write_msr(MSR_LSTAR, DATA)
        guest.cpu.write_msr(MSR_SFMASK, 0)
        guest.memory.write(DATA, HLT.code)
        guest.put(OUT_SYSCALL.code, USER_CODE, rflags=FIXED | IOPL_3)
        _halt_after_stops(guest)
        expect("RIP", guest.registers.rip, DATA + 1)


OUT_CPUID = Listing("""
  000  b8 00 00 00 40  mov eax, 0x40000000
  005  e6 <PORT:1>     out PORT, al         ; here comes the stop
  007  0f a2           cpuid
  009  89 c3           mov ebx, eax
  00b  e6 <PORT:1>     out PORT, al
  00d  0f 31           rdtsc
  00f  f4              hlt
""", PORT=STOP_PORT)
OUT_SYSENTER = Listing("""
  000  e6 <PORT:1>  out PORT, al
  002  0f 34        sysenter      ; undefined
""", PORT=STOP_PORT)


@GROUP.check("CPUID, RDTSC and SYSENTER then", "they do not happen either: old registers are taken for results")
def others_while_stopping() -> None:
    """Hooks of these instructions have the flaw of SYSCALL's; so there are none."""
    with _StoppingGuest() as guest:
        guest.put(OUT_CPUID.code, rdx=1 << 63)
        _halt_after_stops(guest)
        expect("EAX of leaf 0x40000000", guest.registers.rbx, 0x4000_0001)
        expect("bit 63 of RDX after RDTSC", guest.registers.rdx >> 63, 0)
        guest.put(OUT_SYSENTER.code, USER_CODE, cs=USER_CS32, rflags=FIXED | IOPL_3)
        _halt_after_stops(guest)
        expect("vectors and RIPs", [(seen.vector, seen.rip) for seen in guest.events], [(UD, USER_CODE + 2)])


LOOP = Listing("""
  000  eb fe  jmp 0
""")


@GROUP.check("coming back in time", "timers of the guest, the console and Ctrl-C wait until it halts by itself")
def deadline() -> None:
    """A POSIX timer's signal runs machine code that stops the CPU; a loop of one block has to see that."""
    with MicroGuest() as guest:
        guest.put(LOOP.code)
        for _ in range(3):
            expect("end of the run", guest.go(0.002), Exit.KICK)
        expect("RIP", guest.registers.rip, CODE)


@GROUP.check("a stop before the run", "the guest computes on for ever, and never takes an interrupt")
def early_stop() -> None:
    """A stop just before uc_emu_start is lost, for that resets the flag; so it is repeated every millisecond."""
    with MicroGuest() as guest:
        guest.put(LOOP.code)
        for _ in range(EARLY_STOPS):
            expect("end of the run", guest.cpu.run(0), Exit.KICK)       # the time was over long ago


STI_NOPS = Listing("""
  000  90     nop
  001  eb 00  jmp 3
  003  90     nop
  004  fb     sti
  005  90     nop    ; in the shadow of STI
  006  90     nop
  007  90     nop
  008  f4     hlt
""")
POPF = Listing("""
  000  68 02 02 00 00  push 0x202
  005  9d              popfq
  006  90              nop
  007  f4              hlt
""")


@GROUP.check("the interrupt window", "interrupts come while the kernel has them off, and its data is torn")
def interrupt_window() -> None:
    """libunicorn delivers no interrupt; the VINTR intercept says when IF and STI's shadow allow one."""
    for program, offset in (STI_NOPS, 6), (POPF, 6):
        with MicroGuest() as guest:
            guest.vectors.append(VECTOR)
            guest.cpu.set_interrupt_line(True)
            seen = fault(guest, program)
            expect("vector and RIP", (seen.vector, seen.rip), (VECTOR, CODE + offset))
            expect("IF, as saved and in the handler", (seen.rflags & IF, guest.registers.rflags & IF), (IF, 0))


STI_HLT = Listing("""
  000  fb  sti
  001  f4  hlt
  002  90  nop
""")


@GROUP.check("an interrupt in a halt", "an idle kernel sleeps for ever, or goes on before it slept")
def interrupt_in_halt() -> None:
    """STI's shadow covers HLT: the CPU halts first, and the interrupt wakes it."""
    with MicroGuest() as guest:
        guest.vectors.append(VECTOR)
        guest.cpu.set_interrupt_line(True)
        run(guest, STI_HLT)
        expect("whether IF is on", guest.cpu.interrupts_enabled, True)
        halt(guest)
        expect("vectors and RIPs", [(seen.vector, seen.rip) for seen in guest.events], [(VECTOR, CODE + 2)])


class _InterruptedGuest(MicroGuest):
    """A guest whose OUTs raise an interrupt, but for the first few."""

    def port_out(self, port: int, size: int, value: int) -> None:
        super().port_out(port, size, value)
        if len(self.outs) == QUIET_OUTS + 1:
            self.vectors.append(VECTOR)
            self.cpu.set_interrupt_line(True)


OUT_LOOP = Listing("""
  000  e6 <PORT:1>  out PORT, al  ; here comes the interrupt
  002  90           nop
  003  eb 00        jmp 5
  005  ff c3        inc ebx       ; here it is taken
  007  eb f7        jmp 0
""", PORT=STOP_PORT)


@GROUP.check("an interrupt out of an exit", "a loop that waits for an interrupt never sees it, or late")
def interrupt_out_of_exit() -> None:
    """Translated blocks jump to each other: the flag that each of them tests is set along with the request."""
    with _InterruptedGuest() as guest:
        seen = fault(guest, OUT_LOOP, rflags=FIXED | IF, rbx=0)
        expect("vector and RIP", (seen.vector, seen.rip), (VECTOR, CODE + 5))
        expect("turns before it", guest.registers.rbx, QUIET_OUTS)


STI_NOP_HLT = Listing("""
  000  fb  sti
  001  90  nop
  002  90  nop
  003  f4  hlt
""")


@GROUP.check("an interrupt that has gone", "the kernel counts an interrupt that nobody raised")
def interrupt_gone() -> None:
    """The window opens, but the controller has no vector any more: nothing is injected."""
    with MicroGuest() as guest:
        guest.cpu.set_interrupt_line(True)
        run(guest, STI_NOP_HLT)
        expect("RIP", guest.registers.rip, CODE + len(STI_NOP_HLT.code))


COUNT_LOOP = Listing("""
  000  48 ff c3  inc rbx
  003  eb fb     jmp 0
""")


@GROUP.check("interrupts between runs", "an interrupt is lost, or comes twice: a disk or a timer waits for ever")
def interrupts_between_runs() -> None:
    """Only the CPU's own thread writes `interrupt_request`, between runs or in an exit; each is taken once."""
    with MicroGuest(resume={VECTOR}) as guest:
        guest.put(COUNT_LOOP.code, rflags=FIXED | IF)
        for number in range(1, INTERRUPTS + 1):
            guest.vectors.append(VECTOR)
            guest.cpu.set_interrupt_line(True)
            guest.cpu.run(time.monotonic_ns() + INTERVAL_NS)
            end = time.monotonic() + PATIENCE_S
            while len(guest.events) < number and time.monotonic() < end:
                guest.cpu.run(time.monotonic_ns() + INTERVAL_NS)
            expect("interrupts taken", len(guest.events), number)
