"""`emu demo`: what `make demo` shows."""

from __future__ import annotations

import click

from emu.cli.options import GuestOptions, guest_options
from emu.cli.session import booted
from emu.phases import Phases

QUESTIONS = (
    ("release", "cat /etc/alpine-release 2>/dev/null || busybox | sed 1q"),    # no Alpine where no mirror answers
    ("kernel", "uname -srm"),
    ("clock source", "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"),
    ("memory", "grep MemTotal /proc/meminfo"),
    ("up for", "cut -d' ' -f1 /proc/uptime"),
    ("binary output", "head -c 1000000 /dev/urandom | tee /tmp/random | md5sum; wc -c </tmp/random"),
)


@click.command("demo", hidden=True)
@guest_options
def command(guest: GuestOptions) -> None:
    """Boot the default guest, ask it a few things, and show how long everything took."""
    phases = Phases()
    with booted(guest, phases) as machine:
        with phases("boot"):
            machine.wait_ready()
        for name, question in QUESTIONS:
            with phases(f"run: {name}"):
                answer = machine.run(question, check=True, timeout=60).stdout
            click.echo(f"$ {question}\n{answer.rstrip()}\n")
        machine.console.sendline("poweroff -f")
        with phases("power off"):
            reason = machine.run_to_end(timeout=30)
    click.echo(f"the guest ended: {reason}\n\n{phases.table()}")
