"""Breakpoints, watchpoints and single steps of a CPU, none of which its guest can notice.

A breakpoint is one of QEMU's own: blocks that contain its address are translated so that they leave there, and no byte
of guest memory changes. To step, and while something is watched, blocks of a single instruction are run, each of which
calls STEP (`thunks.lst`). They differ from the others by a bit of the hidden flags that has no meaning, so that both
kinds stay translated side by side, and nothing is slower once nobody debugs.

What the guest has put into its own debug registers goes on working.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Collection, Sequence
from typing import Any

from emu.cpu.abi import ffi
from emu.cpu.constants import INTERRUPT_WINDOW
from emu.cpu.cpu import Cpu
from emu.cpu.platform import Exit

__all__ = ["DebugAccess", "Parts", "Stop"]

HF_STEPPING, HF_WATCHING = 1 << 30, 1 << 31     # hflags that QEMU 5.0.1 does not use
BP_GDB = 0x10                           # CPUBreakpoint.flags (include/hw/core/cpu.h)
ONE_INSTRUCTION = 1                     # of cflags: CF_COUNT_MASK
USUAL = 0xFFFF_FFFF
NO_LIMIT = (1 << 64) - 1
WORD = 8                                # bytes that STEP looks at; RAM is made of whole ones
STEP_NS = 1_000_000_000                 # one instruction is done sooner, on however busy a host


class Stop(enum.Enum):
    """What ended a run, other than what ends the runs of a CPU that nobody debugs."""

    STEPPED = 1
    WATCH = 2
    BREAKPOINT = 3


Parts = Sequence[tuple[int, int]]
"""What is watched: offsets into RAM, and sizes."""


class DebugAccess:
    """Runs a CPU under a debugger.

    Args:
        cpu: one whose trap door is open; used between its runs.
    """

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self._inside = cpu.inside()
        self._context = cpu.context
        self._breakpoints: dict[int, Any] = {}
        self._addresses: Any = None
        self._watches: Any = None
        self._watched: list[Any] = []

    # -- what is stopped at ------------------------------------------------------------------------------------

    def set_breakpoints(self, addresses: Collection[int]) -> None:
        """Stop before the instructions at these linear addresses, and no others; all blocks are dropped on a change."""
        inside, wanted = self._inside, set(addresses)
        for address in self._breakpoints.keys() - wanted:
            inside.api.cpu_breakpoint_remove_by_ref_x86_64(inside.cpu, self._breakpoints.pop(address))
        for address in wanted - self._breakpoints.keys():
            made = ffi.new("void **")
            inside.api.cpu_breakpoint_insert_x86_64(inside.cpu, address, BP_GDB, made)
            self._breakpoints[address] = ffi.cast("struct cpu_breakpoint *", made[0])
        self._addresses = ffi.new("uint64_t[]", list(self._breakpoints) or 1)
        self._context.breakpoints = int(ffi.cast("uintptr_t", self._addresses))
        self._context.breakpoint_count = len(self._breakpoints)

    def set_watches(self, watches: Sequence[Parts]) -> None:
        """Stop behind the instruction that changes one of these; `changed` tells which."""
        self._watched = [[self._word(offset, size) for part in parts for offset, size in _words(*part)]
                         for parts in watches]
        words = [word for each in self._watched for word in each]
        self._watches = ffi.new("struct watch[]", len(words) or 1)
        self._context.watches = int(ffi.cast("uintptr_t", self._watches))
        self._context.watch_count = len(words)
        self._sample(words)

    def _word(self, offset: int, size: int) -> tuple[int, int]:
        """Host address of an aligned word of RAM, and the mask of the bytes in it."""
        start = offset & -WORD
        mask = ((1 << 8 * size) - 1) << 8 * (offset - start)
        return self._context.ram_base + start, mask

    def _sample(self, words: list[tuple[int, int]]) -> None:
        for row, (host, mask) in zip(self._watches, words, strict=False):
            row.address, row.mask, row.value = host, mask, ffi.cast("uint64_t *", host)[0]

    def changed(self) -> list[int]:
        """Numbers of the watches whose memory has changed since they were set, or since this was asked last."""
        rows, at, found = self._watches, 0, []
        for number, words in enumerate(self._watched):
            for row in rows[at : at + len(words)]:
                value = ffi.cast("uint64_t *", row.address)[0]
                if (value ^ row.value) & row.mask and number not in found:
                    found.append(number)
                row.value = value
            at += len(words)
        return found

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, until_ns: int) -> tuple[Exit, Stop | None]:
        """`Cpu.run`, and what stopped it."""
        if not self._context.watch_count:
            return self._run(until_ns, 0)
        self._context.steps = NO_LIMIT
        return self._run(until_ns, HF_WATCHING)

    def step(self) -> tuple[Exit, Stop | None]:
        """Run one instruction, or what comes in its place: the delivery of the exception that it raises.

        A repeated string instruction is one for each turn. No interrupt is delivered. Breakpoints do not stop it.
        """
        inside, context = self._inside, self._context
        pending = inside.interrupt_request[0] & INTERRUPT_WINDOW
        inside.interrupt_request[0] &= ~INTERRUPT_WINDOW
        self._arm(False)
        # So it is one also if it writes to its own page: libunicorn runs such a one again, alone
        inside.cflags_next_tb[0] = ONE_INSTRUCTION
        context.steps = 1
        try:
            exit_, stop = self._run(time.monotonic_ns() + STEP_NS, HF_STEPPING)
        finally:
            inside.cflags_next_tb[0] = USUAL
            inside.interrupt_request[0] |= pending
            self._arm(True)
        return exit_, Stop.STEPPED if stop is None and not context.steps else stop

    def _arm(self, is_armed: bool) -> None:
        """Have breakpoints stop, or those of the guest's own alone."""
        for breakpoint_ in self._breakpoints.values():
            breakpoint_.flags = BP_GDB if is_armed else 0
        self._context.breakpoint_count = len(self._breakpoints) if is_armed else 0

    def deliver(self) -> tuple[Exit, Stop | None]:
        """Deliver the interrupt that is pending, if the guest takes one now, and run nothing."""
        self._context.steps = 0
        return self._run(time.monotonic_ns() + STEP_NS, HF_STEPPING)

    def _run(self, until_ns: int, mode: int) -> tuple[Exit, Stop | None]:
        inside, context = self._inside, self._context
        context.stopped_by = 0
        context.stepping = mode != 0
        inside.hflags[0] |= mode
        try:
            exit_ = self._cpu.run(until_ns)
        finally:
            inside.hflags[0] &= ~mode
            context.stepping = 0
        return exit_, Stop(context.stopped_by) if context.stopped_by else None

    def close(self) -> None:
        """Stop nowhere any more; while the CPU is open."""
        self.set_breakpoints(())
        self.set_watches(())


def _words(offset: int, size: int) -> list[tuple[int, int]]:
    """A part cut where words of the host end."""
    parts = []
    while size > 0:
        length = min(size, WORD - offset % WORD)
        parts.append((offset, length))
        offset, size = offset + length, size - length
    return parts
