"""How a Python function becomes a hypercall, and which hypercalls a machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from devices.frozen import frozen
from hypercalls.call import Call
from hypercalls.numbers import FIRST, KVM_FIRST, KVM_LAST, LAST

__all__ = ["Handler", "Hypercall", "Registry", "hypercall"]

ACCESSES = ("r", "w", "rw")

Handler = Callable[[Call], int | None]


@frozen
class Hypercall:
    """A handler and the MSR it answers.

    Attributes:
        number: of the MSR.
        name: for tables and logs, by convention PV_SOMETHING.
        access: "w" for WRMSR, "r" for RDMSR, "rw" for both.
        handler: the function.
    """

    number: int
    name: str
    access: str
    handler: Handler

    def __call__(self, call: Call) -> int | None:
        """Call the handler itself, as its unit tests do."""
        return self.handler(call)


def hypercall(number: int, name: str, access: str = "w") -> Callable[[Handler], Hypercall]:
    """Make a function the handler of an MSR.

    A handler for "r" returns the value read. One for "w" may return a value as well: RDMSR of the same number then
    gives it, until the next WRMSR. One for "rw" is called for both, and tells them apart by `Call.is_write`.

    Args:
        number: 0x4b564d09 to 0x4b564dff; from 0x4b564d20 on the machine itself uses none.
        name: what tables and logs call it.
        access: "r", "w" or "rw".

    Raises:
        ValueError: the number is KVM's or outside the range, or the access is none of the three.
    """
    if KVM_FIRST <= number <= KVM_LAST:
        raise ValueError(f"{name}: MSR {number:#x} is reserved by KVM; hypercalls are {FIRST:#x} to {LAST:#x}")
    if not FIRST <= number <= LAST:
        raise ValueError(f"{name}: MSR {number:#x} is no hypercall's; they are {FIRST:#x} to {LAST:#x}")
    if access not in ACCESSES:
        raise ValueError(f"{name}: access {access!r} is none of {', '.join(ACCESSES)}")
    return lambda handler: Hypercall(number, name, access, handler)


class Registry:
    """The hypercalls of a machine, each with a number of its own.

    Args:
        hypercalls: the first of them.

    Raises:
        ValueError: two have one number.
    """

    def __init__(self, hypercalls: Iterable[Hypercall] = ()) -> None:
        self._by_number: dict[int, Hypercall] = {}
        for one in hypercalls:
            self.add(one)

    def add(self, new: Hypercall) -> None:
        """One more; the same one twice is the same as once.

        Raises:
            ValueError: its number belongs to another.
        """
        owner = self._by_number.setdefault(new.number, new)
        if owner is not new:
            raise ValueError(f"{new.name}: MSR {new.number:#x} belongs to {owner.name}")

    def __iter__(self) -> Iterator[Hypercall]:
        return iter(self._by_number.values())
