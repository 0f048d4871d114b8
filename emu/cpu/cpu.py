"""One x86-64 CPU: stock libunicorn, run until something needs the machine."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from devices.frozen import frozen
from emu.cpu import cpuid
from emu.cpu.abi import address, ffi
from emu.cpu.bypass import NO_PORT
from emu.cpu.constants import (
    EXIT_CPUID,
    EXIT_MSR,
    EXIT_READ_CR8,
    EXIT_SHUTDOWN,
    EXIT_VINTR,
    EXIT_WRITE_CR8,
    HF_GUEST,
    HOOK_INSTRUCTION,
    HOOK_INTERRUPT,
    HOOK_INVALID,
    INSTRUCTION_IN,
    INSTRUCTION_OUT,
    INSTRUCTION_SYSCALL,
    INTERCEPT_BASE,
    INTERRUPT_WINDOW,
    MSR_APIC_BASE,
    MSR_TSC,
    MSRPM_SIZE,
    PERMISSION_READ_WRITE,
    VM_EXIT,
    VMCB_MSRPM_BASE,
)
from emu.cpu.engine import Engine
from emu.cpu.kicker import Kicker
from emu.cpu.platform import Exit, Platform
from emu.cpu.registers import MASK_64, RAX, RCX, RDX
from emu.errors import EmuError
from hypercalls.call import GuestFault

if TYPE_CHECKING:
    from emu.cpu.state import CpuState, StateAccess

BLOCKS = 1 << 16                        # of the table for indirect jumps (thunks.lst, FIND_BLOCK)
VMCB_SIZE = 0x4000                      # the control block's page, the MSR permission map, one page to spare

INJECT_INTERRUPT = 0x100                # what a VM exit's handler returns: vector | kind | error code << 32
RAISE_EXCEPTION = 0x200

_INTERCEPTS = (EXIT_VINTR, EXIT_CPUID, EXIT_MSR, EXIT_SHUTDOWN)


@frozen
class Inside:
    """Places in libunicorn's CPU (emu.cpu.layout).

    Attributes:
        api: libunicorn's functions.
        cpu: QEMU's CPUState.
    """

    api: Any
    cpu: Any
    hflags: Any
    interrupt_request: Any
    cflags_next_tb: Any


class Cpu(Engine):
    """A CPU without memory: map some, enter a mode, run.

    Args:
        platform: the board's side of port I/O, MSRs and interrupts.
        vmcb: guest-physical address of 16 KiB that the guest is told nothing of (the trap door's control block).

    Raises:
        UnsupportedHost: this host, or its libunicorn, is not a known one.
    """

    def __init__(self, platform: Platform, vmcb: int) -> None:
        super().__init__()
        self._platform = platform
        self._vmcb_address = vmcb
        self._shutdown = False
        self._busy = threading.Lock()
        self._deadline_ns = 0
        self._kicker: Kicker | None = None
        try:
            self._open()
            self._kicker = Kicker(self._library, self._uc)
            self._make_callbacks()
            self._add_hooks()
            self._present_features()
        except BaseException:
            self.close()
            raise

    def _make_callbacks(self) -> None:
        context = self.context
        context.thr_port = context.lsr_port = NO_PORT
        for row, leaf in zip(context.hypervisor_leaves, cpuid.HYPERVISOR_LEAVES, strict=True):
            for column, value in enumerate(leaf):
                row[column] = value
        port_in, port_out = self._platform.port_in, self._platform.port_out

        def on_in(_uc: Any, port: int, size: int, _context: Any) -> int:
            return port_in(port, size)

        def on_out(_uc: Any, port: int, size: int, value: int, _context: Any) -> None:
            port_out(port, size, value)

        callbacks = {
            "vmexit": ("uint64_t(uint32_t, uint32_t)", self._on_vmexit),
            "port_in": ("uint32_t(void *, uint32_t, int, void *)", on_in),
            "port_out": ("void(void *, uint32_t, int, uint32_t, void *)", on_out),
        }
        for name, (signature, function) in callbacks.items():
            callback = ffi.callback(signature, function, onerror=self._on_error)
            setattr(context, name, address(callback))
            self._keep.append(callback)

    def _add_hooks(self) -> None:
        # SYSCALL first of all instruction hooks: libunicorn's walk of the list gives up at the first other hook
        # when a stop is pending, and the system call would be lost
        self._add_hook(HOOK_INSTRUCTION, "SYSCALL", INSTRUCTION_SYSCALL)
        self._add_hook(HOOK_INSTRUCTION, "PORT_IN", INSTRUCTION_IN)
        self._add_hook(HOOK_INSTRUCTION, "PORT_OUT", INSTRUCTION_OUT)
        self._add_hook(HOOK_INTERRUPT, "EXCEPTION")
        self._add_hook(HOOK_INVALID, "UNDEFINED")

    # -- the trap door -----------------------------------------------------------------------------------------

    def open_trap_door(self) -> None:
        """Map the SVM control block and let its intercepts exit; call once, after all RAM is mapped."""
        layout = self._library.layout
        block = ffi.new("uint8_t[]", VMCB_SIZE * 2)
        start = -address(block) % 4096                  # page-aligned inside
        pages = ffi.buffer(block + start, VMCB_SIZE)
        self._keep.append(block)
        host = ffi.cast("void *", address(block) + start)
        error = self._api.uc_mem_map_ptr(self._uc, self._vmcb_address, VMCB_SIZE, PERMISSION_READ_WRITE, host)
        self._check(error, "VMCB")
        pages[VMCB_MSRPM_BASE : VMCB_MSRPM_BASE + 8] = (self._vmcb_address + 0x1000).to_bytes(8, "little")
        self._msr_permissions = ffi.cast("uint8_t *", address(block) + start + 0x1000)
        for number in (MSR_TSC, MSR_APIC_BASE):
            self.trap_msr(number)
        count = max(self.context.ram_bytes // mmap.PAGESIZE, 1)
        # Private: a process that was forked translates, and drops, code of other pages
        self.code_pages = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.context.code_pages = address(ffi.from_buffer(self.code_pages))
        self._blocks = mmap.mmap(-1, BLOCKS * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.context.blocks = address(ffi.from_buffer(self._blocks))
        self.context.block_flags = ffi.cast("uint32_t *", self._cpu + layout.cluster_index)[0] << 24 & 0xFFFF_FFFF
        ffi.cast("uint64_t *", self._cpu + layout.opaque)[0] = address(self.context)
        ffi.cast("uint64_t *", self._env + layout.vm_vmcb)[0] = self._vmcb_address
        intercepts = sum(1 << code - INTERCEPT_BASE for code in _INTERCEPTS)
        ffi.cast("uint64_t *", self._env + layout.intercept)[0] = intercepts
        self._hflags[0] |= HF_GUEST

    def trap_msr(self, number: int) -> None:
        """Hand an architectural MSR (0..0x1fff) to the platform; those outside the three ranges always go there."""
        if number >= MSRPM_SIZE:
            raise ValueError(f"MSR {number:#x} has no bit in the first part of the permission map")
        self._msr_permissions[number // 4] |= 3 << number % 4 * 2

    def intercept_syscalls(self, answers: Mapping[int, Callable[[], int | None]]) -> None:
        """Answer system calls of 64-bit programs in ring 3; call once.

        Args:
            answers: by number, 0 to 511, what returns RAX, or None if the guest's kernel is to do the call.
        """
        general, context = self._general, self.context

        def on_syscall(number: int) -> int:
            result = answers[number]()
            if result is None:
                return 0
            general[RAX] = result & MASK_64
            return 1

        callback = ffi.callback("uint32_t(uint64_t)", on_syscall, onerror=self._on_error)
        self._keep.append(callback)
        context.syscall = address(callback)
        for number in answers:
            context.intercepted_numbers[number // 64] |= 1 << number % 64
        context.intercepting = 1

    # -- state -------------------------------------------------------------------------------------------------

    def save(self) -> CpuState:
        """All of the CPU that a guest can see.

        Raises:
            EmuError: it is running, closed, or has shut down.
        """
        if self._shutdown:
            raise EmuError("the CPU has shut down (triple fault)")
        return self._state_access().read(self.tsc())

    def restore(self, state: CpuState) -> None:
        """Become what another CPU was, and go on from there; the TSC too goes on from there.

        Memory must be mapped, with what that CPU had in it, and the trap door open.

        Raises:
            ValueError: no CPU of this kind can be in that state; nothing has changed.
            EmuError: it is running, or closed.
        """
        self._state_access().write(state)
        self.set_tsc(state.tsc)
        self._shutdown = False

    def _state_access(self) -> StateAccess:
        from emu.cpu.state import StateAccess  # only snapshots need it

        if self._busy.locked() or self._uc is None:
            raise EmuError("the machine is closed" if self._uc is None else "the machine is running")
        return StateAccess(self._library, self._uc, self._cpu, self.registers)

    def inside(self) -> Inside:
        """For a debugger: what it changes of the CPU's insides, between runs."""
        cpu = self._cpu
        return Inside(
            self._api, ffi.cast("void *", cpu), self._hflags, self._interrupt_request,
            ffi.cast("uint32_t *", cpu + self._library.layout.cflags_next_tb),
        )

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, until_ns: int) -> Exit:
        """Run the guest in this thread.

        Args:
            until_ns: host monotonic time at which to come back, if nothing else happens before.

        Returns:
            Why it came back. RIP, flags and CR2 are exact.

        Raises:
            EmuError: it is closed, or runs already (in another thread, or in an exit of its own).
            Whatever a platform function raised other than GuestFault; the CPU can be run on.
        """
        if self._kicker is None or not self._busy.acquire(blocking=False):
            raise EmuError("the machine is closed" if self._kicker is None else "the machine is running already")
        try:
            self._failure = None
            self._deadline_ns = until_ns
            self._kicker.arm(until_ns)
            error = self._api.uc_emu_start(self._uc, self._rip[0], 0, 0, 0)
        finally:
            self._kicker.disarm()
            self._busy.release()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._shutdown:
            return Exit.SHUTDOWN
        if error:
            self.error = ffi.string(self._api.uc_strerror(error)).decode()
            return Exit.ERROR
        return Exit.HALT if self._halted[0] else Exit.KICK

    def bring_forward(self, until_ns: int) -> None:
        """Come back from the run under way at `until_ns`, if that is sooner; nothing happens between runs."""
        if self._kicker is not None and self._busy.locked() and until_ns < self._deadline_ns:
            self._deadline_ns = until_ns
            self._kicker.arm(until_ns)

    error = ""
    """What libunicorn said with the last Exit.ERROR."""

    def set_interrupt_line(self, level: bool) -> None:
        """Drive the INTR pin; only on the CPU's thread."""
        if level:
            self._interrupt_request[0] |= INTERRUPT_WINDOW
            self._break_chain[0] = 0xFFFF           # look at it where the next block starts
        else:
            self._interrupt_request[0] &= ~INTERRUPT_WINDOW

    def _on_vmexit(self, number: int, length: int) -> int:
        """What the machine code hands on; `length` of a CR8 access, which has a helper of its own, is the value."""
        code = number - VM_EXIT
        if code == EXIT_VINTR:
            vector = self._platform.acknowledge()
            return 0 if vector is None else INJECT_INTERRUPT | vector
        try:
            if code == EXIT_MSR:
                self._msr()
                self._rip[0] += length
            elif code == EXIT_READ_CR8:
                return self._platform.read_cr8()
            elif code == EXIT_WRITE_CR8:
                self._platform.write_cr8(length)
            elif code == EXIT_SHUTDOWN:
                self._shutdown = True
                self.stop()
        except GuestFault as fault:
            return RAISE_EXCEPTION | fault.vector | fault.error_code << 32
        return 0

    def _msr(self) -> None:
        general = self._general
        number = general[RCX] & 0xFFFF_FFFF
        if self._error_code[0]:                     # 1 is WRMSR
            self._platform.wrmsr(number, (general[RDX] & 0xFFFF_FFFF) << 32 | general[RAX] & 0xFFFF_FFFF)
        else:
            value = self._platform.rdmsr(number)
            general[RAX] = value & 0xFFFF_FFFF
            general[RDX] = value >> 32

    def close(self) -> None:
        """Free the engine; the CPU cannot be used again.

        Raises:
            EmuError: it is running.
        """
        if self._busy.locked():
            raise EmuError("the machine is running; it cannot be closed now")
        if self._kicker is not None:
            self._kicker.close()
            self._kicker = None
        self._close_engine()
