"""A worker that runs hostile guests: one attack a line on standard input, its outcome a line on standard output.

A guest that kills or blocks the host process kills or blocks this worker; whoever feeds it sees that, and has the line
that did it: `python -m tests.cpu.hostile < attack.json` does it again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field

from emu import micro
from emu.cpu.constants import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, MSR_EFER
from emu.errors import GuestStopped
from emu.machine import Machine
from emu.memory import MIB

RUN_SECONDS = 0.01                      # no attack needs more to do its worst; one that still runs then is a survivor
HANDLED = 50                            # exceptions that are handled before the guest gives up, to save time
BOUNDED = (
    b"\xff\x0d\x0a\x00\x00\x00"           # dec dword [rip + 10]
    b"\x74\x06"                           # jz to the hlt
    b"\x48\x83\xc4\x10"                   # add rsp, 16
    b"\x48\xcf"                           # iretq
    b"\xf4\xf4"                           # hlt
    + HANDLED.to_bytes(4, "little")
)


@dataclass(frozen=True)
class Attack:
    """What a hostile guest does.

    Attributes:
        code: instructions, as hexadecimal.
        ring: where they run, 0 or 3.
        rflags: flags at their start.
        patches: (guest-physical address, bytes as hexadecimal) written over the tables before.
        resume: whether handlers return; they halt otherwise.
        seconds: after which it may still run.
    """

    code: str
    ring: int = 0
    rflags: int = 2
    patches: list[tuple[int, str]] = field(default_factory=list)
    resume: bool = True
    seconds: float = RUN_SECONDS

    def line(self) -> str:
        """The attack as a line for the worker."""
        return json.dumps(asdict(self))


def run(attack: Attack) -> str:
    """Run it on a machine of its own, and say how that ended."""
    with Machine(64 * MIB) as machine:
        vectors = frozenset(range(256)) if attack.resume else frozenset()
        state = micro.install(machine.memory, bytes.fromhex(attack.code), attack.ring, attack.rflags, vectors)
        machine.memory.write(micro.RESUMING, BOUNDED)
        for address, data in attack.patches:
            machine.memory.write(address, bytes.fromhex(data))
        machine.start(state)
        machine.board.cpu.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE)
        try:
            machine.drive(lambda: False, attack.seconds)
        except GuestStopped as stopped:
            return str(stopped)
        return "still runs"


def main() -> None:
    """Serve until standard input ends."""
    for line in sys.stdin:
        fields = json.loads(line)
        fields["patches"] = [tuple(patch) for patch in fields["patches"]]
        print(run(Attack(**fields)), flush=True)


if __name__ == "__main__":
    main()
