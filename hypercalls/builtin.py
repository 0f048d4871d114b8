"""The hypercalls that every machine has."""

from __future__ import annotations

from hypercalls.console import pv_console
from hypercalls.ending import pv_exit, pv_mark
from hypercalls.files import pv_read, pv_write
from hypercalls.idle import pv_idle
from hypercalls.information import pv_information
from hypercalls.mailbox import pv_mailbox
from hypercalls.sources import pv_random, pv_wall_clock

__all__ = ["BUILT_IN"]

BUILT_IN = (
    pv_information, pv_exit, pv_mark, pv_wall_clock, pv_random, pv_read, pv_write, pv_mailbox, pv_console, pv_idle,
)
