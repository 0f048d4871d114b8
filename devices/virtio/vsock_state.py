"""What a snapshot keeps of a vsock device, apart from the device."""

from __future__ import annotations

from devices.frozen import frozen

__all__ = ["VsockState"]


@frozen
class VsockState:
    """What a snapshot keeps; connections end when it is taken up again.

    Attributes:
        guest_cid: the guest's address, 3 or more.
        transport_reset: the guest has still to be told that its connections are gone.
    """

    guest_cid: int
    transport_reset: bool = False
