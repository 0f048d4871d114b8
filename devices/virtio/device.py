"""What a virtio device and its transport ask of each other (Virtual I/O Device specification 1.2, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from devices.virtio.queue import Queue

__all__ = ["BadRequest", "Transport", "VirtioDevice"]


class BadRequest(ValueError):
    """The driver broke the specification; the device stops with DEVICE_NEEDS_RESET until the driver resets it."""


class Transport(Protocol):
    """What a device may ask of its transport, outside of a call from it."""

    def config_changed(self) -> None:
        """The device's configuration is another one: interrupt the driver, if it is there."""

    def fail(self, error: BadRequest) -> None:
        """Set DEVICE_NEEDS_RESET; nothing is asked of the device any more until the driver has reset it."""


class VirtioDevice:
    """A device without its transport; a subclass fills in the class attributes and what it needs of the methods.

    A device never keeps a chain across calls: it takes one from a queue only when it can put it back as used before
    it returns. So a queue's state is two indices, and a snapshot has no request half done.

    Attributes:
        device_id: number of its kind (specification, section 5).
        name: what tables call its kind.
        pci_class: 24-bit PCI class code.
        features: device-specific feature bits it offers; the transport adds its own (VERSION_1, rings' features).
        queue_sizes: most entries of each virtqueue, each a power of two.
        refuses: once it needs a reset it still takes requests, to refuse them (`refuse_all`).
        transport: set by the transport when it takes the device.
    """

    device_id: int
    name: str = "virtio"
    pci_class: int = 0xFF_0000
    features: int = 0
    queue_sizes: tuple[int, ...] = ()
    refuses: bool = False
    transport: Transport

    def read_config(self, offset: int, size: int) -> int:
        """Read 1, 2, 4 or 8 bytes of the device-specific configuration; zero beyond its end."""
        return 0

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write to the device-specific configuration; ignored where it is read-only."""

    def activate(self, queues: Sequence[Queue | None], features: int) -> None:
        """The driver is ready (DRIVER_OK), or a restored machine has been put together again.

        Args:
            queues: by index; None for those that the driver left disabled.
            features: the bits both sides agreed on.
        """
        raise NotImplementedError

    def notify(self, index: int) -> None:
        """The driver has made buffers available in an enabled queue.

        Raises:
            BadRequest: what stands there is against the specification.
        """
        raise NotImplementedError

    def refuse_all(self, index: int) -> None:
        """The driver has made buffers available, as for `notify`, but the device needs a reset."""

    def reset(self) -> None:
        """Forget the queues and what was agreed on: the driver starts over."""

    def close(self) -> None:
        """The machine ends: give host resources back."""

    def save(self) -> Any:
        """Its state as a frozen dataclass of plain values; `Kind(..., state=device.save())` is a restore."""
        raise NotImplementedError
