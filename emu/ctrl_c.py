"""Ctrl-C while a machine runs: held back until the machine is between two steps.

Python runs a signal's handler between any two bytecodes, also in the midst of a device's work below the CPU. A
KeyboardInterrupt there would leave the device half-changed: an interrupt line that nobody lowers, a timer that never
expires again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

PATIENCE_S = 1.0        # a step takes milliseconds: one that is under way longer has to be interrupted where it is


class HeldInterrupt:
    """Holds SIGINT back; what handled it before does so in `deliver`.

    Args:
        hurry: called when it comes, inside the signal's handler: the step is to end soon.

    Attributes:
        pending: it has come and is not delivered yet.
    """

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        self._usual: Callable[[int, FrameType | None], object] | None = None
        self.pending = False
        self._since = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it back inside; only in the main thread, which is where Python runs handlers."""
        usual = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or self._usual is not None or not callable(usual):
            yield
            return
        self._usual = usual
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGINT) == self._handle:
                signal.signal(signal.SIGINT, usual)
            try:
                self.deliver()
            finally:
                self._usual = None

    def deliver(self) -> None:
        """Handle it now, if it has come.

        Raises:
            KeyboardInterrupt: what Python's own handler does.
        """
        if self.pending:
            self.pending = False
            assert self._usual is not None
            self._usual(signal.SIGINT, None)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self.pending:
            self.pending = True
            self._since = monotonic()
        elif monotonic() - self._since > PATIENCE_S:
            self.deliver()
        self._hurry()
