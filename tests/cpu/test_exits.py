"""What the machine sees of the CPU when it comes back, and the guest of the machine: CPUID, MSRs, interrupts."""

from __future__ import annotations

import struct

import pytest

from emu.cpu import cpuid
from emu.cpu.constants import MSR_EFER
from emu.cpu.platform import Exit
from emu.micro import CF, CODE, DATA, DIRECTION, FIXED, GP, IF, RF, SF, UD, UNMAPPED, USER_CODE, MicroGuest
from hypercalls import GuestFault

FLAGS = FIXED | CF | SF | DIRECTION
CR2 = 0x1234_5678_9000
MSR = 0x4B56_4D20
PORT = 0x99
VECTOR = 0x21


class Watching(MicroGuest):
    """A guest that notes RIP, flags and CR2 at each exit into Python."""

    def __post_init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []
        super().__post_init__()
        self.msrs[MSR] = 5

    def note(self) -> None:
        registers = self.registers
        self.seen.append((registers.rip, registers.rflags, registers.cr(2)))

    def port_in(self, port: int, size: int) -> int:
        self.note()
        return super().port_in(port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        self.note()
        super().port_out(port, size, value)

    def rdmsr(self, number: int) -> int:
        self.note()
        return super().rdmsr(number)

    def wrmsr(self, number: int, value: int) -> None:
        self.note()
        super().wrmsr(number, value)

    def acknowledge(self) -> int | None:
        self.note()
        return super().acknowledge()


# mov cr2, rax; stc; then the instruction that exits; then an arithmetic one, so that no block ends in between
BEFORE = b"\x0f\x22\xd0\xf9"
AFTER = b"\x48\x85\xdb\xf4"              # test rbx, rbx; hlt
EXITS = {
    "in al, dx": b"\xec",
    "in ax, dx": b"\x66\xed",
    "in eax, dx": b"\xed",
    "in al, imm8": b"\xe4\x99",
    "out dx, al": b"\xee",
    "out dx, ax": b"\x66\xef",
    "out imm8, eax": b"\xe7\x99",
    "rdmsr": b"\x0f\x32",
    "wrmsr": b"\x0f\x30",
}


@pytest.mark.parametrize("name", EXITS)
def test_state_is_exact_inside_an_exit_and_after_it(name: str) -> None:
    code = EXITS[name]
    number = MSR if "msr" in name else 7
    with Watching() as guest:
        assert guest.run(BEFORE + code + AFTER, rflags=FLAGS, rax=CR2, rcx=number, rdx=PORT, rbx=1 << 63) is Exit.HALT
        assert guest.seen == [(CODE + len(BEFORE), FLAGS | CF, CR2)]
        registers = guest.registers
        assert registers.rip == CODE + len(BEFORE + code + AFTER)
        assert registers.rflags & ~(1 << 2) == FIXED | SF | DIRECTION        # of TEST; PF is even parity of 0
        assert registers.cr(2) == CR2


def test_values_go_in_and_out_whole() -> None:
    with MicroGuest() as guest:
        guest.input = 0x1234_5678
        guest.run(b"\xed\x89\xc3\x66\xed\xef\xf4", rax=MASK_64, rdx=PORT)    # in eax; mov ebx, eax; in ax; out eax; hlt
        assert guest.registers.rbx == 0x1234_5678
        assert guest.ins == [(PORT, 4), (PORT, 2)]
        assert guest.outs == [(PORT, 4, 0x1234_5678)]
        guest.run(b"\xec\xf4", rax=MASK_64, rdx=PORT)                        # in al: the rest of RAX stays
        assert guest.registers.rax == MASK_64 & ~0xFF | 0x78


def test_rdmsr_clears_the_upper_halves() -> None:
    with MicroGuest() as guest:
        guest.msrs[MSR] = 0xFFFF_FFFF_0000_0001
        guest.run(b"\x0f\x32\xf4", rcx=MSR | 1 << 40, rax=MASK_64, rdx=MASK_64)
        assert (guest.registers.rax, guest.registers.rdx) == (1, 0xFFFF_FFFF)


def test_hlt() -> None:
    with MicroGuest() as guest:
        assert guest.run(BEFORE + b"\xf4", rax=CR2, rflags=FLAGS) is Exit.HALT
        registers = guest.registers
        assert (registers.rip, registers.rflags, registers.cr(2)) == (CODE + 5, FLAGS, CR2)


def test_kick_and_going_on() -> None:
    """A loop of two blocks, stopped again and again: RIP is at a block's start, flags and count go on."""
    with MicroGuest() as guest:
        code = BEFORE + b"\x48\xff\xc3\xeb\x00\xeb\xf9"                      # inc rbx; jmp to the next; jmp to inc
        guest.put(code, rax=CR2, rflags=FLAGS, rbx=0)
        for _ in range(20):
            assert guest.go(0.001) is Exit.KICK
            assert guest.registers.rip in (CODE + 4, CODE + 9)
            assert guest.registers.cr(2) == CR2
            assert guest.registers.rflags & (CF | DIRECTION) == CF | DIRECTION
        assert guest.registers.rbx > 1000


def test_triple_fault() -> None:
    with MicroGuest() as guest:
        code = b"\x6a\x00\x6a\x00\x0f\x01\x1c\x24\x0f\x22\xd0\xf9\x0f\x0b"   # push 0 twice; lidt [rsp]; cr2; stc; ud2
        assert guest.run(code, rax=CR2, rflags=FLAGS) is Exit.SHUTDOWN
        registers = guest.registers
        assert (registers.rip, registers.rflags, registers.cr(2)) == (CODE + len(code) - 2, FLAGS, CR2)
        assert guest.go() is Exit.SHUTDOWN


def test_leaving_a_run_probes_nothing() -> None:
    """Where address 0 is not mapped, libunicorn's probe of `until` would fault and put its address into CR2."""
    with MicroGuest() as guest:
        guest.write_quads(0x4000, 0)                                         # the page table's first entry
        guest.run(b"\x0f\x22\xd8" + BEFORE + b"\xf4", rax=0x1000)            # mov cr3, rax; mov cr2, rax
        assert guest.registers.cr(2) == 0x1000
        assert guest.go(0.001) in (Exit.HALT, Exit.KICK)
        assert guest.registers.cr(2) == 0x1000


class Failure(Exception):
    """Raised by a platform function."""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("code", [b"\xec", b"\xee", b"\x0f\x32", b"\x0f\x30"])
def test_an_error_of_the_platform_comes_out_of_run(code: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: int) -> int:
        raise Failure

    for name in ("port_in", "port_out", "rdmsr", "wrmsr"):
        monkeypatch.setattr(MicroGuest, name, fail)
    with pytest.raises(Failure), MicroGuest() as guest:
        guest.run(code + b"\xeb\xfe", rcx=MSR, rdx=PORT)


def test_a_fault_of_the_platform_is_the_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(_self: MicroGuest, number: int) -> int:
        raise GuestFault(14, 5)

    monkeypatch.setattr(MicroGuest, "rdmsr", fault)
    with MicroGuest() as guest:
        guest.run(b"\x0f\x32", rcx=MSR)
        assert (guest.event.vector, guest.event.error_code, guest.event.rip) == (14, 5, CODE)


# -- CR8 -----------------------------------------------------------------------------------------------------------

MOV_CR8_RAX, MOV_RAX_CR8 = b"\x44\x0f\x22\xc0", b"\x44\x0f\x20\xc0"


def test_cr8_is_the_platforms_task_priority() -> None:
    with MicroGuest() as guest:
        assert guest.run(MOV_CR8_RAX + MOV_RAX_CR8 + b"\xf4", rax=11) is Exit.HALT
        assert guest.priorities == [0, 11]
        assert guest.registers.rax == 11
        guest.priorities.append(5)
        guest.run(MOV_RAX_CR8 + b"\xf4", rax=0xFFFF_FFFF_FFFF)
        assert guest.registers.rax == 5


@pytest.mark.parametrize("value", [0x10, 1 << 63, 0xFFFF_FFFF_FFFF_FFFF])
def test_reserved_bits_of_cr8_are_refused(value: int) -> None:
    with MicroGuest() as guest:
        guest.run(b"\x90" + MOV_CR8_RAX, rax=value)
        assert guest.priorities == [0]
        assert (guest.event.vector, guest.event.error_code, guest.event.rip) == (13, 0, CODE + 1)


@pytest.mark.parametrize("code", [MOV_CR8_RAX, MOV_RAX_CR8])
def test_programs_cannot_reach_cr8(code: bytes) -> None:
    with MicroGuest() as guest:
        guest.run(code, at=USER_CODE, rax=3)
        assert guest.priorities == [0]
        assert (guest.event.vector, guest.event.rip) == (13, USER_CODE)


def test_other_control_registers_are_the_cpus_own() -> None:
    with MicroGuest() as guest:
        cr3 = guest.registers.cr(3)
        assert guest.run(b"\x0f\x20\xd8\x0f\x22\xd8\xf4") is Exit.HALT     # mov rax, cr3; mov cr3, rax
        assert guest.registers.rax == guest.registers.cr(3) == cr3
        assert guest.priorities == [0]


# -- CPUID and MSRs ------------------------------------------------------------------------------------------------

MASK_64 = (1 << 64) - 1


def leaf(guest: MicroGuest, number: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX of a leaf, after a check that all four are zero-extended."""
    guest.run(b"\x0f\xa2\xf4", rax=number | 0xAAAA << 32, rcx=subleaf | 0xBBBB << 32, rbx=MASK_64, rdx=MASK_64)
    registers = guest.registers
    answer = registers.rax, registers.rbx, registers.rcx, registers.rdx
    assert all(value < 1 << 32 for value in answer)
    assert registers.rip == CODE + 3
    return answer


def test_cpuid_hides_what_is_not_there() -> None:
    with MicroGuest() as guest:
        _, _, ecx, edx = leaf(guest, 1)
        assert not ecx & (1 << 3 | 1 << 5)                  # MONITOR, VMX
        assert not edx & 1 << 11                            # SEP
        assert ecx >> 31                                    # a hypervisor
        _, _, ecx, edx = leaf(guest, 0x8000_0001)
        assert not ecx & (1 << 2 | 1 << 4)                  # SVM, CR8LEG
        assert edx & (1 << 29 | 1 << 20 | 1 << 11) == 1 << 29 | 1 << 20 | 1 << 11    # long mode, NX, SYSCALL


def test_cpuid_has_the_bits_that_were_added() -> None:
    with MicroGuest() as guest:
        assert leaf(guest, 1)[2] & cpuid.SET["1_ECX"] == cpuid.SET["1_ECX"]
        assert leaf(guest, 1)[3] & 1 << 9                   # APIC
        assert leaf(guest, 6)[0] & cpuid.SET["6_EAX"] == cpuid.SET["6_EAX"]
        assert leaf(guest, 7)[1] & cpuid.SET["7_0_EBX"] == cpuid.SET["7_0_EBX"]


def test_cpuid_is_an_amd() -> None:
    with MicroGuest() as guest:
        _, ebx, ecx, edx = leaf(guest, 0)
        assert struct.pack("<3I", ebx, edx, ecx) == b"AuthenticAMD"


@pytest.mark.parametrize(
    ("number", "row"), [(0x4000_0000, 0), (0x4000_0001, 1), (0x4000_0002, 2), (0x4000_0100, 2), (0x4000_FFFF, 2)]
)
def test_hypervisor_leaves(number: int, row: int) -> None:
    with MicroGuest() as guest:
        assert leaf(guest, number) == cpuid.HYPERVISOR_LEAVES[row]
    assert cpuid.HYPERVISOR_LEAVES[0] == (0x4000_0001, *struct.unpack("<3I", b"KVMKVMKVM\0\0\0"))
    assert cpuid.HYPERVISOR_LEAVES[1][0] == 1 << 0 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 24


def test_leaves_around_the_hypervisors_are_the_processors() -> None:
    with MicroGuest() as guest:
        assert leaf(guest, 0x3FFF_FFFF) == leaf(guest, 0x4001_0000)


def test_efer_does_not_take_svme() -> None:
    with MicroGuest() as guest:
        before = guest.cpu.read_msr(MSR_EFER)
        guest.run(b"\x0f\x30\x0f\x32\xf4", rcx=MSR_EFER, rax=before | 1 << 12, rdx=0)    # wrmsr; rdmsr; hlt
        assert guest.registers.rax == before
        assert guest.cpu.read_msr(MSR_EFER) == before
        guest.run(b"\x0f\x01\xd8")                                                       # vmrun
        assert guest.event.vector == UD


@pytest.mark.parametrize("number", [0x10, 0x1B])
def test_tsc_and_apic_base_belong_to_the_platform(number: int) -> None:
    with MicroGuest() as guest:
        guest.run(b"\x0f\x32", rcx=number)
        assert guest.event.vector == GP
        guest.msrs[number] = 77
        guest.run(b"\x0f\x32\xf4", rcx=number)
        assert guest.registers.rax == 77


def test_rdtsc_is_what_the_platform_is_told() -> None:
    with MicroGuest() as guest:
        before = guest.cpu.tsc()
        guest.run(b"\x0f\x31\xf4")                                           # rdtsc; hlt
        assert before < guest.registers.rdx << 32 | guest.registers.rax < guest.cpu.tsc()


def test_only_the_first_msrs_have_a_permission_bit() -> None:
    with MicroGuest() as guest, pytest.raises(ValueError, match="0x2000"):
        guest.cpu.trap_msr(0x2000)


# -- interrupts ----------------------------------------------------------------------------------------------------


def request(guest: MicroGuest, *vectors: int) -> None:
    """Raise INTR; INTA cycles will yield these vectors."""
    guest.vectors.extend(vectors)
    guest.cpu.set_interrupt_line(True)


def test_an_interrupt_waits_for_sti_and_one_instruction() -> None:
    with MicroGuest() as guest:
        request(guest, VECTOR)
        # nop; jmp next; nop; sti; nop; nop; nop; hlt
        guest.run(b"\x90\xeb\x00\x90\xfb\x90\x90\x90\xf4", rflags=FLAGS)
        event = guest.event
        assert (event.vector, event.rip, event.rflags) == (VECTOR, CODE + 6, FLAGS | IF)
        assert not guest.registers.rflags & IF


def test_an_interrupt_waits_for_popf() -> None:
    with MicroGuest() as guest:
        request(guest, VECTOR)
        guest.run(b"\x68\x02\x02\x00\x00\x9d\x90\xf4")                       # push 0x202; popf; nop; hlt
        assert (guest.event.vector, guest.event.rip) == (VECTOR, CODE + 6)


def test_sti_and_hlt_halts_first() -> None:
    """STI's shadow covers HLT: Linux' idle loop depends on it."""
    with MicroGuest() as guest:
        request(guest, VECTOR)
        assert guest.run(b"\xfb\xf4\x90") is Exit.HALT                       # sti; hlt; nop
        assert not guest.events
        assert guest.cpu.interrupts_enabled
        guest.go()
        assert (guest.event.vector, guest.event.rip) == (VECTOR, CODE + 2)


def test_an_interrupt_breaks_a_loop_chained_to_itself() -> None:
    with MicroGuest() as guest:
        guest.put(b"\xeb\xfe", rflags=FIXED | IF)                            # jmp $
        assert guest.go(0.01) is Exit.KICK
        request(guest, VECTOR)
        assert guest.go() is Exit.HALT                                       # not the end of its patience
        assert (guest.event.vector, guest.event.rip) == (VECTOR, CODE)


class Requesting(MicroGuest):
    """A guest whose OUT to a port raises INTR."""

    def port_out(self, port: int, size: int, value: int) -> None:
        super().port_out(port, size, value)
        if port == PORT:
            request(self, VECTOR)


def test_an_interrupt_asked_for_inside_an_exit_comes_when_the_block_ends() -> None:
    with Requesting() as guest:
        code = b"\xee\x90\xeb\x00\xff\xc3\xeb\xfc"                           # out; nop; jmp next; inc ebx; jmp to it
        guest.run(code, rflags=FIXED | IF, rdx=PORT, rbx=0)
        assert (guest.event.vector, guest.event.rip) == (VECTOR, CODE + 4)
        assert guest.registers.rbx == 0


def test_interrupts_come_one_after_the_other() -> None:
    with MicroGuest(resume={VECTOR, VECTOR + 1}) as guest:
        request(guest, VECTOR, VECTOR + 1)
        assert guest.run(b"\xfb\x90\x90\xf4") is Exit.HALT                   # sti; nop; nop; hlt
        assert [event.vector for event in guest.events] == [VECTOR, VECTOR + 1]
        assert guest.registers.rip == CODE + 4


def test_a_request_that_has_gone_delivers_nothing() -> None:
    with MicroGuest() as guest:
        guest.cpu.set_interrupt_line(True)
        assert guest.run(b"\xfb\x90\x90\xf4") is Exit.HALT
        assert not guest.events
        assert guest.registers.rip == CODE + 4


def test_an_interrupt_keeps_flags_and_cr2() -> None:
    with MicroGuest(resume={VECTOR}) as guest:
        request(guest, VECTOR)
        code = BEFORE + b"\xfb\x90\xeb\x00\xf4"                              # sti; nop; jmp next; hlt
        guest.run(code, rax=CR2, rflags=FLAGS)
        assert (guest.event.rflags, guest.event.cr2) == (FLAGS | IF, CR2)
        assert (guest.registers.rflags, guest.registers.cr(2)) == (FLAGS | IF, CR2)


def test_an_interrupt_on_a_bad_stack_is_a_page_fault() -> None:
    with MicroGuest() as guest:
        guest.memory.write(0x7000 + 16 * 14 + 4, b"\x01")                    # the #PF gate uses stack 1
        request(guest, VECTOR)
        guest.run(b"\xfb\x90\x90\xf4", rsp=UNMAPPED)
        assert (guest.event.vector, guest.event.error_code, guest.event.rip) == (14, 2, CODE + 2)


def test_a_stopped_guest_has_not_lost_its_place() -> None:
    with MicroGuest() as guest:
        guest.run(b"\x48\xc7\x04\x25" + struct.pack("<II", DATA, 7) + b"\xf4")
        assert guest.quad(DATA) == 7
        dump = guest.registers.dump()
        assert (dump["rip"], dump["cs"], dump["cr3"]) == (CODE + 13, 0x10, 0x1000)


def test_an_engine_that_is_not_ours_is_served_as_before() -> None:
    """PUSHF of libunicorn shows RF; other engines of the process may count on it."""
    unicorn = pytest.importorskip("unicorn")
    with MicroGuest():
        pass                                                                     # its functions are replaced by now
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    engine.mem_map(0x1000, 0x2000)
    engine.mem_write(0x1000, b"\x9c\x58")                                         # pushfq; pop rax
    engine.reg_write(unicorn.x86_const.UC_X86_REG_RSP, 0x2800)
    engine.reg_write(unicorn.x86_const.UC_X86_REG_EFLAGS, FIXED | CF | RF)
    engine.emu_start(0x1000, 0x1002)
    assert engine.reg_read(unicorn.x86_const.UC_X86_REG_RAX) == FIXED | CF | RF
