"""Interrupt wires that branch and join."""

from __future__ import annotations

from devices import IrqLine

__all__ = ["Branch", "Junction"]


class Branch:
    """One wire to several inputs (devices.IrqLine).

    Args:
        lines: all of them carry what this one does.
    """

    def __init__(self, *lines: IrqLine) -> None:
        self._lines = lines

    def set(self, level: bool) -> None:
        """Drive it."""
        for line in self._lines:
            line.set(level)


class Junction:
    """Several wires to one input, which is high while any of them is: what level-triggered interrupts share.

    Args:
        line: the input.
    """

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self._high = 0
        self._wires = 0

    def wire(self) -> IrqLine:
        """A new wire into it, low."""
        bit = 1 << self._wires
        self._wires += 1
        return _Wire(self, bit)

    def drive(self, bit: int, level: bool) -> None:
        """What one of the wires carries."""
        self._high = self._high | bit if level else self._high & ~bit
        self._line.set(bool(self._high))


class _Wire:
    def __init__(self, junction: Junction, bit: int) -> None:
        self._junction = junction
        self._bit = bit

    def set(self, level: bool) -> None:
        self._junction.drive(self._bit, level)
