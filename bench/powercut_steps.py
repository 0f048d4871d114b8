"""What a guest does to a directory until its power is cut, and what may be in there afterwards."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LONGEST", "Step", "Tree", "damage", "random_steps"]

KIB = 1 << 10
SHORTEST, LONGEST = 1, 400 * KIB        # bytes written by a step
NEW = "new"                             # name of a file that is about to replace another
WEIGHTS = {"make": 5, "grow": 3, "swap": 3, "drop": 2}
SHOWN = 5                               # files in a message
AHEAD = 20                              # steps that can be done before the host has heard of them

Tree = Mapping[str, bytes]              # files of one directory by name


@dataclass(frozen=True)
class Step:
    """One change, durable when the guest says so.

    Attributes:
        verb: "make" a file, "grow" one, "swap" one for another that is complete, "drop" one.
        name: of the file.
        offset, size: what is written, as a part of the source that guest and host have.
    """

    verb: str
    name: str
    offset: int = 0
    size: int = 0

    def data(self, source: bytes) -> bytes:
        """What is written."""
        return source[self.offset : self.offset + self.size]

    def after(self, tree: Tree, source: bytes) -> Tree:
        """The directory after the step."""
        rest = {name: content for name, content in tree.items() if name != self.name}
        if self.verb == "drop":
            return rest
        begin = tree[self.name] if self.verb == "grow" else b""
        return rest | {self.name: begin + self.data(source)}

    def can_leave(self, found: Tree, tree: Tree, source: bytes) -> bool:
        """Whether power that failed during the step can have left this.

        Args:
            found: what the directory holds.
            tree: what it held before the step.
            source: of the data.
        """
        place = NEW if self.verb == "swap" else self.name
        if {**found, place: b""} != {**tree, place: b""}:
            return False
        before, now = tree.get(place), found.get(place)
        if now is None or self.verb == "drop":
            return now == before
        whole = (before or b"") + self.data(source)
        return whole.startswith(now) and len(now) >= len(before or b"")


def random_steps(rng: random.Random, count: int, source_size: int) -> list[Step]:
    """Steps that can be done one after the other in an empty directory.

    Args:
        source_size: bytes, more than `LONGEST`.
    """
    steps: list[Step] = []
    names: list[str] = []
    for number in range(count):
        verb = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0] if names else "make"
        if verb == "make":
            names.append(f"file{number}")
        name = names[-1] if verb == "make" else rng.choice(names)
        if verb == "drop":
            names.remove(name)
            steps.append(Step(verb, name))
            continue
        size = int(SHORTEST * (LONGEST / SHORTEST) ** rng.random())     # as many of 10 to 100 bytes as of 10 to 100 KiB
        steps.append(Step(verb, name, rng.randrange(source_size - size), size))
    return steps


def damage(found: Tree, steps: Sequence[Step], durable: int, source: bytes) -> str | None:
    """Judge a directory after a power cut.

    Each step ends with an fsync before the next one begins, so what is there is what some number of steps leave, the
    durable ones among them, and perhaps a part of one more.

    Args:
        found: what it holds.
        steps: what the guest was doing.
        durable: how many of them, from the first on, the guest has reported.
        source: of their data.

    Returns:
        None if that can be, else what is wrong.
    """
    tree: Tree = {}
    for step in steps[:durable]:
        tree = step.after(tree, source)
    reported = tree
    if found == reported:
        return None
    for step in steps[durable : durable + AHEAD]:
        after = step.after(tree, source)
        if found == after or step.can_leave(found, tree, source):
            return None
        tree = after
    wrong = [
        f"{name}: {_said(found.get(name))} instead of {_said(reported.get(name))}"
        for name in sorted({*found, *reported})
        if found.get(name) != reported.get(name)
    ]
    return f"after {durable} steps, {len(wrong)} files are not as reported: {'; '.join(wrong[:SHOWN])}"


def _said(content: bytes | None) -> str:
    return "nothing" if content is None else f"{len(content)} bytes (CRC {zlib.crc32(content):08x})"
