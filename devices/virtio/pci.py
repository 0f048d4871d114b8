"""virtio over PCI, modern devices only (Virtual I/O Device specification 1.2, section 4.1).

Everything is in one 64-bit memory BAR, a page for each structure. Interrupts go as the driver likes: by MSI-X with a
vector a queue, or one for all where there are many queues, or by the function's line.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

from devices import IrqLine, Memory, MmioDevice
from devices.frozen import frozen, replace
from devices.log import Log
from devices.msix import CONTROL_WRITABLE, Msix, MsixState
from devices.pci_function import INTERRUPT_LINE, PAGE, Bar, Capability, Identity, PciFunction, PciFunctionState
from devices.virtio import common_config
from devices.virtio.common_config import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    NO_VECTOR,
    CommonConfig,
    CommonConfigState,
)
from devices.virtio.device import BadRequest, VirtioDevice
from devices.virtio.queue import RING_FEATURES, Queue

__all__ = ["VERSION_1", "VirtioPci", "VirtioPciState"]

VENDOR, FIRST_DEVICE, REVISION = 0x1AF4, 0x1040, 1
VERSION_1 = 1 << 32                     # feature bit: a device by the specification, not a draft of it

CAP_VENDOR, CAP_MSIX = 0x09, 0x11       # PCI capability IDs
COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = range(1, 6)      # cfg_type
CAP = struct.Struct("<BBB3xII")         # virtio_pci_cap from its third byte on: length, type, BAR, offset, length
MSIX_CAP = struct.Struct("<HII")        # the same of MSI-X: message control, BAR and offset of table, of pending bits
MSIX_CONTROL = 2                        # offsets in the capabilities
WINDOW_BAR, WINDOW_OFFSET, WINDOW_DATA = 4, 8, 16
WINDOW_FIELDS = struct.Struct("<II")    # offset, length

BAR, BAR_SIZE = 0, 8 * PAGE
COMMON_PAGE, ISR_PAGE, DEVICE_PAGE, NOTIFY_PAGE, MSIX_PAGE, PENDING_PAGE = range(0, 6 * PAGE, PAGE)
NOTIFY_OFF_MULTIPLIER = 4

MOST_QUEUES = 32                        # with a vector each; drivers take their time to set one up
SHARED_VECTORS = 2                      # of a function with more: the configuration's, and one for all queues

ISR_QUEUE, ISR_CONFIG = 1, 2
DRIVER_STATUS = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED      # what the driver may set
NO_IRQ = 0xFF

_log = Log(__name__)


@frozen
class VirtioPciState:
    """What a snapshot keeps of a transport; its device keeps its own, and is restored first."""

    function: PciFunctionState
    msix: MsixState
    common: CommonConfigState
    isr: int
    failure: str | None


class VirtioPci(PciFunction):
    """A virtio device as a PCI function (devices.virtio.device.Transport).

    Args:
        device: the device; its `transport` becomes this.
        memory: guest RAM.
        intx: the function's interrupt line.
        msi: performs a message signalled interrupt: address, data.
        irq: what firmware writes into Interrupt Line: the 8259A's input that `intx` reaches, for a guest without ACPI.
        state: what to start with; None: as after power-on. `kick_all` has to follow when the machine is whole again.

    Attributes:
        device: the device.
        failure: why DEVICE_NEEDS_RESET is set; None while it is not.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: Memory,
        intx: IrqLine,
        msi: Callable[[int, int], None],
        irq: int = NO_IRQ,
        state: VirtioPciState | None = None,
    ) -> None:
        self.device = device
        self.failure = state.failure if state else None
        self._memory = memory
        self._isr = state.isr if state else 0
        vectors = _vectors(len(device.queue_sizes))
        self._offered = device.features | VERSION_1 | RING_FEATURES
        self._msix = Msix(vectors, msi, state.msix if state else None)
        self._common = CommonConfig(
            self, self._offered, device.queue_sizes, vectors, state.common if state else None
        )
        self._queues: list[Queue | None] = [None] * len(device.queue_sizes)
        self._notifiable: dict[int, int] = {}           # queue index by its offset in the notification page
        self._warned = False
        self._active = False                            # whether the device has been told of its driver
        self._answer = device.notify                    # what answers a notification
        pages: dict[int, MmioDevice] = {
            COMMON_PAGE: self._common, ISR_PAGE: _Page(self._read_isr), DEVICE_PAGE: _DevicePage(self),
            NOTIFY_PAGE: _Page(write=self._notify), MSIX_PAGE: self._msix.table, PENDING_PAGE: self._msix.pending,
        }
        identity = Identity(
            VENDOR, FIRST_DEVICE + device.device_id, device.pci_class, REVISION, VENDOR, FIRST_DEVICE + device.device_id
        )
        capabilities = _capabilities(vectors, len(device.queue_sizes))
        super().__init__(
            identity, [Bar(BAR, BAR_SIZE, pages, is_64_bit=True)], capabilities, intx, state.function if state else None
        )
        self._msix_control = self.capability_offsets[0] + MSIX_CONTROL
        self._window = self.capability_offsets[-1]
        device.transport = self
        if state:
            self._resume()
        else:
            self.config_write(INTERRUPT_LINE, 1, irq)

    # -- the driver's registers ----------------------------------------------------------------------------------

    def write_status(self, value: int) -> None:
        """The driver wrote device_status: 0 resets; else bits are added, never taken away."""
        if value == 0:
            self._reset()
            return
        common = self._common
        old = common.status
        status = old | value & DRIVER_STATUS
        if not old & FEATURES_OK and not self._features_are_acceptable():
            status &= ~FEATURES_OK
        if not status & FEATURES_OK:
            status &= ~DRIVER_OK
        common.status = status
        if status & ~old & DRIVER_OK and self._is_served(status):
            self._activate()
            self.kick_all()

    def _is_served(self, status: int) -> bool:
        """Whether the device is to have its queues: not if it needs a reset, but to refuse requests."""
        return self.device.refuses or not status & NEEDS_RESET

    def _features_are_acceptable(self) -> bool:
        features = self._common.driver_features
        return bool(features & VERSION_1) and not features & ~self._offered

    def enable_queue(self, index: int) -> None:
        """The driver wrote queue_enable; from DRIVER_OK on it is too late."""
        common = self._common
        if common.status & (DRIVER_OK | NEEDS_RESET):
            return
        if not common.status & FEATURES_OK:
            self.fail(BadRequest(f"queue {index} enabled before features were agreed on"))
        elif self._make_queue(index):
            common.queues[index] = replace(common.queues[index], enabled=True)

    def _make_queue(self, index: int) -> bool:
        interrupt = partial(self._interrupt_queue, index)
        state, features = self._common.queues[index].state, self._common.driver_features
        try:
            self._queues[index] = Queue(index, self._memory, state, features, interrupt)
        except BadRequest as error:
            self.fail(error)
            return False
        return True

    def _activate(self) -> None:
        self._active = True
        self._answer = self.device.refuse_all if self._common.status & NEEDS_RESET else self.device.notify
        self._notifiable.update(
            (NOTIFY_OFF_MULTIPLIER * index, index) for index, queue in enumerate(self._queues) if queue is not None
        )
        try:
            self.device.activate(self._queues, self._common.driver_features)
        except BadRequest as error:
            self.fail(error)

    def _resume(self) -> None:
        """Go on after a restore."""
        status = self._common.status
        if not self._is_served(status):
            return
        whole = [self._make_queue(index) for index, setup in enumerate(self._common.queues) if setup.enabled]
        if status & DRIVER_OK and all(whole):
            self._activate()

    def _reset(self) -> None:
        self._release()
        self._common.reset()
        self._msix.forget()
        self.failure = None
        self._isr = 0
        self.set_intx(False)

    def _release(self) -> None:
        """Take the queues back from the device, and let go of guest RAM."""
        self._notifiable.clear()
        if self._active:
            self._active = False
            self.device.reset()
        for index, queue in enumerate(self._queues):
            if queue is not None:
                queue.release()
                self._queues[index] = None

    # -- notifications -------------------------------------------------------------------------------------------

    def _notify(self, offset: int, size: int, value: int) -> None:
        """The driver wrote to the notification page; the place says which queue."""
        index = self._notifiable.get(offset)
        if index is not None:
            try:
                self._answer(index)
            except BadRequest as error:
                self.fail(error)

    def kick_all(self) -> None:
        """Have the device look at every queue that has something for it; nobody may have notified it."""
        for offset, index in list(self._notifiable.items()):
            queue = self._queues[index]
            if queue is not None and not queue.empty:
                self._notify(offset, 2, index)

    # -- interrupts ----------------------------------------------------------------------------------------------

    def _interrupt_queue(self, index: int) -> None:
        self._interrupt(self._common.queues[index].vector, ISR_QUEUE)

    def _interrupt(self, vector: int, cause: int) -> None:
        if not self._msix.enabled:
            self._isr |= cause
            self.set_intx(True)
        elif vector != NO_VECTOR:
            self._msix.trigger(vector)

    def _read_isr(self, offset: int, size: int) -> int:
        """The ISR status byte; reading it takes the interrupt back."""
        if offset:
            return 0
        isr, self._isr = self._isr, 0
        self.set_intx(False)
        return isr

    def config_changed(self) -> None:
        """The device's configuration is another one (devices.virtio.device.Transport)."""
        self._common.generation = (self._common.generation + 1) & 0xFF
        if self._common.status & DRIVER_OK:
            self._interrupt(self._common.config_vector, ISR_CONFIG)

    def fail(self, error: BadRequest) -> None:
        """Set DEVICE_NEEDS_RESET (devices.virtio.device.Transport)."""
        if self._common.status & NEEDS_RESET:
            return
        # Once aloud: a driver can break the device and reset it for ever.
        say, self._warned = _log.debug if self._warned else _log.warning, True
        say("virtio device %d needs a reset: %s", self.device.device_id, error)
        self.failure = str(error)
        self._common.status |= NEEDS_RESET
        self._answer = self.device.refuse_all
        if self.device.refuses:
            self.kick_all()
        else:
            self._stop()
        if self._common.status & DRIVER_OK:
            self._interrupt(self._common.config_vector, ISR_CONFIG)

    def _stop(self) -> None:
        self._notifiable.clear()
        for queue in self._queues:
            if queue is not None:
                queue.stop()

    # -- configuration space -------------------------------------------------------------------------------------

    def config_read(self, offset: int, size: int) -> int:
        """Read configuration space; its window onto the BAR is read through."""
        data = self._window + WINDOW_DATA
        if data <= offset < data + 4 and (target := self._window_target()):
            page, start, length = target
            self._config[data : data + length] = page.read(start, length).to_bytes(length, "little")
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space; its window onto the BAR is written through."""
        super().config_write(offset, size, value)
        data, control = self._window + WINDOW_DATA, self._msix_control
        if data <= offset < data + 4 and (target := self._window_target()):
            page, start, length = target
            page.write(start, length, int.from_bytes(self._config[data : data + length], "little"))
        elif offset <= control + 1 < offset + size:
            self._msix.set_control(int.from_bytes(self._config[control : control + 2], "little"))
            self.set_intx(bool(self._isr) and not self._msix.enabled)

    def _window_target(self) -> tuple[MmioDevice, int, int] | None:
        """Page, offset in it and length that VIRTIO_PCI_CAP_PCI_CFG points at, None if that is not allowed."""
        offset, length = WINDOW_FIELDS.unpack_from(self._config, self._window + WINDOW_OFFSET)
        page = self.bars[0].pages.get(offset // PAGE * PAGE)
        if page is None or self._config[self._window + WINDOW_BAR] != BAR:
            return None
        return (page, offset % PAGE, length) if length in (1, 2, 4) and offset % length == 0 else None

    # -- the rest ------------------------------------------------------------------------------------------------

    def save(self) -> VirtioPciState:
        """The state of the function and its queues."""
        common = self._common.save()
        queues = tuple(
            replace(setup, state=queue.save()) if queue else setup
            for setup, queue in zip(common.queues, self._queues, strict=True)
        )
        return VirtioPciState(
            self.save_function(), self._msix.save(), replace(common, queues=queues), self._isr, self.failure
        )

    def close(self) -> None:
        """Let go of guest RAM; the device is reset, and may get another transport."""
        self._release()


class _Page:
    """A page of the BAR made of functions; reads 0 without one."""

    def __init__(
        self,
        read: Callable[[int, int], int] = lambda offset, size: 0,
        write: Callable[[int, int, int], None] = lambda offset, size, value: None,
    ) -> None:
        self.read = read
        self.write = write


class _DevicePage:
    """The device-specific configuration."""

    def __init__(self, transport: VirtioPci) -> None:
        self._transport = transport

    def read(self, offset: int, size: int) -> int:
        return self._transport.device.read_config(offset, size) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if self._transport.failure:
            return
        try:
            self._transport.device.write_config(offset, size, value)
        except BadRequest as error:
            self._transport.fail(error)


def _vectors(queues: int) -> int:
    return queues + 1 if queues <= MOST_QUEUES else SHARED_VECTORS


def _capabilities(vectors: int, queues: int) -> list[Capability]:
    """MSI-X first, the window onto the BAR last."""
    msix = MSIX_CAP.pack(vectors - 1, MSIX_PAGE | BAR, PENDING_PAGE | BAR)
    structures = [
        (COMMON_CFG, COMMON_PAGE, common_config.SIZE, b""), (ISR_CFG, ISR_PAGE, 1, b""),
        (DEVICE_CFG, DEVICE_PAGE, PAGE, b""),
        (NOTIFY_CFG, NOTIFY_PAGE, NOTIFY_OFF_MULTIPLIER * queues, NOTIFY_OFF_MULTIPLIER.to_bytes(4, "little")),
    ]
    window = CAP.pack(2 + CAP.size + 4, PCI_CFG, BAR, 0, 0) + bytes(4)
    window_writable = CAP.pack(0, 0, 0xFF, 0xFFFF_FFFF, 0xFFFF_FFFF) + b"\xff" * 4
    return [
        Capability(CAP_MSIX, msix, CONTROL_WRITABLE.to_bytes(2, "little")),
        *(
            Capability(CAP_VENDOR, CAP.pack(2 + CAP.size + len(more), kind, BAR, offset, length) + more)
            for kind, offset, length, more in structures
        ),
        Capability(CAP_VENDOR, window, window_writable),
    ]
