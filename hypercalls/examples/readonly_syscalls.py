"""A few system calls that the host answers as the guest's kernel would: `emu boot --syscalls MODULE` with this module.

A call is here if its result follows from its arguments and from what this machine is, and from nothing that the
guest's kernel keeps; what it says is why. `PASS` leaves to the kernel all that is out of the ordinary.

Some calls that look like it are not here:

- clock_gettime and the like: the kernel's clocks begin when it first looks at the time, lose what passes until it has
  found a good clock, and can be set. The guest's wall clock is some 0.2 s behind the host's; and what a program is told
  here must agree with what it reads through the vDSO, without any call.
- uname: the host name is in it, which a write to /proc/sys/kernel/hostname changes.
- sched_getaffinity: how many bytes it returns is a setting of the kernel's build.
- sched_yield: its result is always 0, but who calls it wants others to run, and they would not.
"""

from __future__ import annotations

import os
import struct

from hypercalls.syscalls import PASS, SyscallCall, SyscallResult, syscall

INT = 0xFFFF_FFFF                       # where the kernel takes an int, the rest of the register is of no account

CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID = 2, 3
ONE_NANOSECOND = struct.pack("<qq", 0, 1)       # struct timespec

SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE = 0, 1, 2, 3, 5
PRIORITIES = {SCHED_OTHER: (0, 0), SCHED_FIFO: (1, 99), SCHED_RR: (1, 99), SCHED_BATCH: (0, 0), SCHED_IDLE: (0, 0)}

GRND_NONBLOCK = 1
LARGEST = 1 << 20                       # bytes at once: some milliseconds


@syscall(146, "sched_get_priority_max")
def sched_get_priority_max(call: SyscallCall) -> SyscallResult:
    """Highest priority of a policy: constants of Linux' ABI (sched_get_priority_max(2)). Other policies: PASS."""
    return PRIORITIES.get(call.arguments[0] & INT, (PASS, PASS))[1]


@syscall(147, "sched_get_priority_min")
def sched_get_priority_min(call: SyscallCall) -> SyscallResult:
    """Lowest priority of a policy; as sched_get_priority_max."""
    return PRIORITIES.get(call.arguments[0] & INT, (PASS, PASS))[0]


@syscall(229, "clock_getres")
def clock_getres(call: SyscallCall) -> SyscallResult:
    """Resolution of a clock, where it is always 1 ns: CPU time of the process or the thread.

    That of the others is the kernel's, which may be told to do without high-resolution timers: PASS.
    """
    clock, result, *_ = call.arguments
    if clock & INT not in (CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID):
        return PASS
    if result:
        call.memory.write(result, ONE_NANOSECOND)
    return 0


@syscall(309, "getcpu")
def getcpu(call: SyscallCall) -> SyscallResult:
    """CPU and node that the caller runs on: 0 and 0, this machine has one of each. Either pointer may be null."""
    for address in call.arguments[:2]:
        if address:
            call.memory.write(address, bytes(4))
    return 0


@syscall(318, "getrandom")
def getrandom(call: SyscallCall) -> SyscallResult:
    """Random bytes: the host's are as good as the guest's, and it need not wait until it has gathered some.

    The kernel may return fewer only when a signal comes; none comes here. Flags other than GRND_NONBLOCK mean
    something else in each version of Linux: PASS.
    """
    address, size, flags, *_ = call.arguments
    if flags & INT & ~GRND_NONBLOCK or size > LARGEST:
        return PASS
    call.memory.write(address, os.urandom(size))
    return size
