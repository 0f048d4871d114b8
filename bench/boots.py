"""Boots in a row: each of Debian's kernels, headless, as a process of its own, with a look at its messages.

    python -m bench.boots [--count N]

Fails, with the guest's output, when a boot does not reach its shell in time, or when the kernel has complained.
"""

from __future__ import annotations

import argparse
import sys

from bench.common import Report
from bench.files import KERNELS, initramfs_file, kernel_file
from bench.ours import Settings
from bench.serial_guest import PROMPT, ours
from bench.trouble import LOUD_SETTINGS, complaints
from emu.errors import EmuError

COUNT = 25
TIMEOUT_S = 60.0


def boot_once(settings: Settings) -> tuple[float, str]:
    """Boot and read the kernel's messages.

    Returns:
        Seconds from the start of the process to the prompt, and dmesg's output.

    Raises:
        GuestTimeout, GuestStopped: no prompt in time, or no end of dmesg.
    """
    with ours(settings) as guest:
        seconds = (guest.expect(PROMPT, TIMEOUT_S) - guest.started_ns) / 1e9
        return seconds, guest.command("dmesg", TIMEOUT_S)


def main() -> None:
    """Boot, print and write bench/out/boots.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help=f"of boots of each kernel ({COUNT})")
    count = parser.parse_args().count
    initrd = str(initramfs_file("alpine"))
    report = Report("boots", f"{count} boots of each kernel in a row, Alpine, 256 MiB")
    failures = []
    for kernel in KERNELS:
        settings = Settings(str(kernel_file(kernel)), initrd, append=LOUD_SETTINGS)
        times = []
        for number in range(1, count + 1):
            try:
                seconds, messages = boot_once(settings)
                bad = complaints(messages)
            except EmuError as error:
                bad = [str(error)]
            else:
                times.append(seconds)
            failures += [f"{kernel} kernel, boot {number}: {line}" for line in bad]
        report.figure(f"{kernel}_boots", len(times), "", f"of {count} reached the shell")
        if times:
            report.samples(f"{kernel}_s", times)
    report.figure("failures", len(failures))
    report.finish()
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
