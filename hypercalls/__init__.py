"""Hypercalls: what a guest asks of the machine by reading and writing MSRs.

A handler knows guest memory, a clock and nothing of the CPU; it answers with a value or raises `GuestFault`.
"""

from __future__ import annotations

VECTOR_GP = 13


class GuestFault(Exception):
    """An exception that the guest is to see in place of the instruction's result.

    Args:
        vector: exception number; by default #GP.
        error_code: pushed with it.
    """

    def __init__(self, vector: int = VECTOR_GP, error_code: int = 0) -> None:
        super().__init__(f"exception {vector}, error code {error_code:#x}")
        self.vector = vector
        self.error_code = error_code
