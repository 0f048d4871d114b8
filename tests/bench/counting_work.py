"""Two parts that take the same, done differently often, and one that takes twice that."""

from __future__ import annotations

from bench.callgrind import Parts

SOME = 100                              # numbers up to 256 are made once and for all


def additions(turns: int) -> int:
    """Plain Python."""
    total = 0
    for _ in range(turns):
        total = total + 3 & 7
    return total


def main() -> None:
    parts = Parts()
    parts.once("start", lambda: additions(SOME))
    for name, turns, count in (("some", SOME, 10), ("as some", SOME, 40), ("twice", 2 * SOME, 10)):
        parts.repeated(name, lambda count, turns=turns: [additions(turns) for _ in range(count)], count)
    parts.report()


if __name__ == "__main__":
    main()
