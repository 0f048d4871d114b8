"""A worker that makes CPUs of absurd states and runs them: one seed a line on standard input, an outcome a line back.

`echo 1234 | python -m tests.cpu.hostile_state` does one again.
"""

from __future__ import annotations

import random
import sys
from dataclasses import fields, replace
from typing import Any

from emu import micro
from emu.cpu.platform import Exit
from emu.cpu.registers import MASK_64
from emu.cpu.state import CpuState, Segment
from tests.cpu.attacks import VALUES
from tests.cpu.moving import Movable
from tests.cpu.programs import FINISH, MODES, Generator

RUN_SECONDS = 0.003                     # the worst is done in the first few instructions
ATTRIBUTES = (
    *(0, 0x9300, 0x9B00, 0xF300, 0xC0_9300, 0xC0_9B00, 0xC0_FB00, 0xA0_9B00, 0xA0_FB00, 0xE0_9B00, 0x8900, 0x8B00),
    *(0x8100, 0x8300, 0x8200, 0x0900, 0xFFFF_FFFF),
)
CR0 = (0, 1, 0x10, 0x11, 0x8000_0000, 0x8000_0001, 0x8000_0011, 0x8001_0033, 0x6000_0010, 0xE000_0039, 0xFFFF_FFFF)
CR4 = (0, 0x20, 0x30, 0x620, 0x1_0620, 0x1020, 0x17_06F8, 0xFF9F_FFFF, 1 << 21, 1 << 22)
EFER = (0, 0x100, 0x400, 0x500, 0x501, 0xD01, 0xD00, 0x801, 1 << 12)
RFLAGS = (2, 0x202, 0x102, 0x302, 0x3202, 0x2_0002, 0x2_3202, 0x3F_7FD7, 0x3F_7FD5, 1 << 22, MASK_64)
DR7 = (0x400, 0x401, 0x4FF, 0x1_0401, 0x2_0402, 0xFFFF_07FF, 0xFFFF_FFFF, 0, 1 << 32)


class Mutator:
    """Makes a state absurd.

    Args:
        choices: where its randomness comes from.
    """

    def __init__(self, choices: random.Random) -> None:
        self._random = choices
        self._is_wide = choices.random() < 0.1          # some values are no register's at all

    def _value(self, bits: int = 64) -> int:
        if self._is_wide and self._random.random() < 0.3:
            return self._random.choice((-1, 1 << bits, MASK_64 << 1, 1 << 200))
        value = self._random.choice(VALUES) if self._random.random() < 0.6 else self._random.getrandbits(bits)
        return value & (1 << bits) - 1

    def _some(self, values: tuple[int, ...], bits: int = 64) -> tuple[int, ...]:
        changed = list(values)
        changed[self._random.randrange(len(changed))] = self._value(bits)
        return tuple(changed)

    def _segments(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        changed = list(segments)
        for _ in range(self._random.randrange(1, 4)):
            at = self._random.randrange(len(changed))
            name = self._random.choice(("selector", "base", "limit", "attributes", "attributes", "attributes"))
            value = self._value(64 if name == "base" else 32)
            if name == "attributes" and self._random.random() < 0.8:
                value = self._random.choice(ATTRIBUTES)
            changed[at] = replace(changed[at], **{name: value})
        return tuple(changed)

    def _known(self, values: tuple[int, ...], bits: int = 64) -> int:
        return self._random.choice(values) if self._random.random() < 0.8 else self._value(bits)

    def _mutated(self, state: CpuState, name: str) -> Any:
        value = getattr(state, name)
        match name:
            case "segments":
                return self._segments(value)
            case "cr0" | "cr4" | "efer" | "rflags":
                return self._known({"cr0": CR0, "cr4": CR4, "efer": EFER, "rflags": RFLAGS}[name])
            case "dr":
                return *self._some(value[:5]), self._known(DR7)
            case "msrs":
                return tuple((number, self._value()) for number, _ in value[self._random.random() < 0.05 :])
            case "fpu":
                registers = self._some(value.registers, 80)
                control, status, tags = self._value(16), self._value(16), self._value(8)
                return replace(value, control=control, status=status, tags=tags, registers=registers)
            case "general" | "xmm" | "gdtr" | "idtr":
                return self._some(value)
            case "interrupt_shadow" | "nmi_masked" | "halted" | "interrupt_line":
                return not value
        return self._value(32 if name == "mxcsr" else 64)

    def mutated(self, state: CpuState) -> CpuState:
        """`state` with some of its fields changed."""
        names = [field.name for field in fields(state)]
        for name in self._random.sample(names, self._random.choice((1, 1, 2, 3, 5, 8))):
            state = replace(state, **{name: self._mutated(state, name)})
        return state


def run(seed: int) -> str:
    """Restore and run one; what came of it."""
    choices = random.Random(seed)
    mode = choices.choice(MODES)
    with Movable(range(256) if choices.random() < 0.5 else ()) as guest:
        good = mode.enter(guest.cpu.save())
        mode.prepare(guest.memory, Generator(mode, choices).program(10), choices.randbytes(0x3000))
        state = Mutator(choices).mutated(good)
        try:
            guest.cpu.restore(state)
        except ValueError as error:
            outcome = f"refused: {error}"
        else:
            exit_ = guest.go(RUN_SECONDS)
            outcome = guest.cpu.error if exit_ is Exit.ERROR else exit_.value
            if exit_ is not Exit.SHUTDOWN:
                guest.cpu.save()
        return f"{outcome}; then {afterwards(guest)}"


def afterwards(guest: Movable) -> str:
    """Whether the CPU can become a good one again."""
    mode = MODES[0]
    guest.memory.write(0, micro.image())
    mode.prepare(guest.memory, FINISH, b"")
    with Movable() as fresh:
        good = mode.enter(fresh.cpu.save())
    guest.is_over = False
    guest.cpu.restore(good)
    guest.go()
    return "fine" if guest.is_over else "broken"


def main() -> None:
    """Serve until standard input ends."""
    for line in sys.stdin:
        print(run(int(line)), flush=True)


if __name__ == "__main__":
    main()
