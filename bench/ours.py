"""One machine as a process of its own, its serial line on standard input and output: what the benchmarks start.

    python -m bench.ours '{"kernel": "bzImage", "initrd": "root.cpio.gz"}'

The argument is `Settings` as JSON, for a parser of options would be a part of the start-up that is measured. The
process ends when the guest stops, then with the reason on standard error, or when its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

__all__ = ["Settings"]

STDIN, STDOUT, STDERR = range(3)
CHUNK = 512                                 # a guest's line discipline holds 4 KiB
STOPS_NS = 50_000, 100_000, 170_000, 290_000, 500_000, 850_000, 1_450_000, 2_500_000


@dataclass(frozen=True)
class Settings:
    """What to boot, and what to disturb it with.

    Args:
        kernel, initrd: paths.
        append: settings added to the default command line.
        as_shipped: without the settings of a throw-away machine.
        busy_thread: another thread of the process computes, from before the machine is made.
        extra_stops: the CPU is stopped every 50 µs to 2.5 ms besides what the guest asks for.
        share: a directory shared over 9p, mount tag "data".
        security: how it keeps owners and modes: "none", "mapped" or "passthrough".
    """

    kernel: str
    initrd: str
    append: str | None = None
    as_shipped: bool = False
    busy_thread: bool = False
    extra_stops: bool = False
    share: str | None = None
    security: str = "none"


def _compute_in_thread() -> None:
    """A pure Python loop that wants the interpreter's lock all the time."""
    import threading

    def compute() -> None:
        value = 1
        while True:
            value = value * 6364136223846793005 + 1 & 0xFFFF_FFFF_FFFF_FFFF

    threading.Thread(target=compute, daemon=True).start()


def main(argument: str) -> None:
    """Boot and connect the serial line; never returns."""
    settings = Settings(**json.loads(argument))
    from emu.fittings import Share
    from emu.launch import boot

    if settings.busy_thread:
        _compute_in_thread()
    machine = boot(
        kernel=settings.kernel,
        initrd=settings.initrd,
        append=settings.append,
        as_shipped=settings.as_shipped,
        shares={"data": Share(settings.share, security=settings.security)} if settings.share else None,
    )

    stops = 0

    def typed() -> None:
        data = os.read(STDIN, CHUNK)
        if data:
            machine.serial_send(data)
        else:
            machine.request_stop()

    def stop_again() -> None:
        nonlocal stops
        stops += 1
        alarm.arm(machine.clock.now_ns() + STOPS_NS[stops * 5 % len(STOPS_NS)])

    alarm = machine.clock.timer(stop_again)
    if settings.extra_stops:
        stop_again()
    machine.serial_sinks.append(lambda data: _write_all(STDOUT, data))
    machine.watch_fd(STDIN, typed)
    machine.run_to_end()
    _write_all(STDERR, f"{machine.stop_detail}\n".encode())
    os._exit(0)                             # with the busy thread still running


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main(sys.argv[1])
