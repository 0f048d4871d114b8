"""What a CPU and its board ask of each other."""

from __future__ import annotations

import enum
from collections.abc import Callable

from devices.frozen import frozen


class Exit(enum.Enum):
    """Why `Cpu.run` came back."""

    KICK = "stopped from outside"
    HALT = "HLT"
    SHUTDOWN = "triple fault"
    ERROR = "an error of the CPU"


@frozen
class Platform:
    """What the CPU asks of the board. Each is called on the CPU's thread, inside `Cpu.run`.

    Attributes:
        port_in: (port, size in bytes) -> value.
        port_out: (port, size in bytes, value).
        rdmsr: number -> value; may raise GuestFault.
        wrmsr: (number, value); may raise GuestFault.
        acknowledge: an INTA cycle: the vector to deliver, None if the request has gone.
        read_cr8: -> the task priority, 0 to 15.
        write_cr8: sets it.
    """

    port_in: Callable[[int, int], int]
    port_out: Callable[[int, int, int], None]
    rdmsr: Callable[[int], int]
    wrmsr: Callable[[int, int], None]
    acknowledge: Callable[[], int | None]
    read_cr8: Callable[[], int]
    write_cr8: Callable[[int], None]
