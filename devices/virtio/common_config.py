"""The common configuration structure of virtio-pci (Virtual I/O Device specification 1.2, section 4.1.4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from devices.frozen import frozen, replace
from devices.virtio.queue import QueueState

__all__ = [
    "ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FAILED", "FEATURES_OK", "NEEDS_RESET", "NO_VECTOR", "SIZE",
    "CommonConfig", "CommonConfigState", "QueueSetup",
]

DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0x00, 0x04, 0x08, 0x0C
CONFIG_MSIX_VECTOR, NUM_QUEUES, DEVICE_STATUS, CONFIG_GENERATION = 0x10, 0x12, 0x14, 0x15
QUEUE_SELECT, QUEUE_SIZE, QUEUE_MSIX_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 0x16, 0x18, 0x1A, 0x1C, 0x1E
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30
SIZE = 0x38

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128     # device_status
NO_VECTOR = 0xFFFF

LOW_32 = 0xFFFF_FFFF


@frozen
class QueueSetup:
    """One queue's registers."""

    state: QueueState
    vector: int = NO_VECTOR
    enabled: bool = False


@frozen
class CommonConfigState:
    """What a snapshot keeps of the structure."""

    queues: tuple[QueueSetup, ...]
    status: int = 0
    generation: int = 0
    driver_features: int = 0
    config_vector: int = NO_VECTOR
    device_feature_select: int = 0
    driver_feature_select: int = 0
    queue_select: int = 0


class Owner(Protocol):
    """What the structure's registers set in motion."""

    def write_status(self, value: int) -> None:
        """The driver wrote device_status."""

    def enable_queue(self, index: int) -> None:
        """The driver wrote 1 to queue_enable of a queue that was not enabled."""


class CommonConfig:
    """The registers; as a page of a BAR it takes accesses of a field's own size, others read 0 and do nothing.

    Args:
        owner: acts on what is written.
        offered: the features the driver may accept.
        queue_sizes: the most entries of each queue.
        vectors: MSI-X vectors the function has.
        state: what to start with; None: as after a reset.

    Raises:
        ValueError: the state is not of a device with so many queues and vectors.

    Attributes:
        status, generation, driver_features, config_vector, queues: the registers.
    """

    def __init__(
        self,
        owner: Owner,
        offered: int,
        queue_sizes: Sequence[int],
        vectors: int,
        state: CommonConfigState | None = None,
    ) -> None:
        self._owner = owner
        self._offered = offered
        self._queue_sizes = tuple(queue_sizes)
        self._vectors = vectors
        if state:
            self._check(state)
        self.generation = 0
        self._load(state or self._after_reset())
        self._readers, self._writers = self._registers()

    def _check(self, state: CommonConfigState) -> None:
        queues, expected = len(state.queues), len(self._queue_sizes)
        if queues != expected:
            raise ValueError(f"a virtio device has {expected} queues, and had {queues}")
        for vector in state.config_vector, *(setup.vector for setup in state.queues):
            if vector != NO_VECTOR and not 0 <= vector < self._vectors:
                raise ValueError(f"a virtio device has {self._vectors} vectors, and used vector {vector}")

    def _after_reset(self) -> CommonConfigState:
        queues = tuple(QueueSetup(QueueState(size)) for size in self._queue_sizes)
        return CommonConfigState(queues, generation=self.generation)

    def _load(self, state: CommonConfigState) -> None:
        self.queues = list(state.queues)
        self.status = state.status
        self.generation = state.generation
        self.driver_features = state.driver_features
        self.config_vector = state.config_vector
        self._device_feature_select = state.device_feature_select
        self._driver_feature_select = state.driver_feature_select
        self._queue_select = state.queue_select

    def reset(self) -> None:
        """As after power-on; only the configuration's generation goes on."""
        self._load(self._after_reset())

    def save(self) -> CommonConfigState:
        """The registers."""
        return CommonConfigState(
            tuple(self.queues), self.status, self.generation, self.driver_features, self.config_vector,
            self._device_feature_select, self._driver_feature_select, self._queue_select,
        )

    def read(self, offset: int, size: int) -> int:
        """Read a register."""
        reader = self._readers.get((offset, size))
        return reader() if reader else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register; ignored where it is read-only."""
        writer = self._writers.get((offset, size))
        if writer:
            writer(value)

    def _registers(
        self,
    ) -> tuple[dict[tuple[int, int], Callable[[], int]], dict[tuple[int, int], Callable[[int], None]]]:
        """Readers and writers by (offset, size)."""
        readers: dict[tuple[int, int], Callable[[], int]] = {
            (DEVICE_FEATURE_SELECT, 4): lambda: self._device_feature_select,
            (DEVICE_FEATURE, 4): lambda: _word(self._offered, self._device_feature_select),
            (DRIVER_FEATURE_SELECT, 4): lambda: self._driver_feature_select,
            (DRIVER_FEATURE, 4): lambda: _word(self.driver_features, self._driver_feature_select),
            (CONFIG_MSIX_VECTOR, 2): lambda: self.config_vector,
            (NUM_QUEUES, 2): lambda: len(self.queues),
            (DEVICE_STATUS, 1): lambda: self.status,
            (CONFIG_GENERATION, 1): lambda: self.generation,
            (QUEUE_SELECT, 2): lambda: self._queue_select,
            (QUEUE_SIZE, 2): lambda: self._selected().state.size,
            (QUEUE_MSIX_VECTOR, 2): lambda: self._selected().vector,
            (QUEUE_ENABLE, 2): lambda: int(self._selected().enabled),
            (QUEUE_NOTIFY_OFF, 2): lambda: self._queue_select if self._queue_select < len(self.queues) else 0,
        }
        writers: dict[tuple[int, int], Callable[[int], None]] = {
            (DEVICE_FEATURE_SELECT, 4): partial(setattr, self, "_device_feature_select"),
            (DRIVER_FEATURE_SELECT, 4): partial(setattr, self, "_driver_feature_select"),
            (DRIVER_FEATURE, 4): self._write_driver_feature,
            (CONFIG_MSIX_VECTOR, 2): self._write_config_vector,
            (DEVICE_STATUS, 1): self._owner.write_status,
            (QUEUE_SELECT, 2): partial(setattr, self, "_queue_select"),
            (QUEUE_SIZE, 2): self._write_queue_size,
            (QUEUE_MSIX_VECTOR, 2): self._write_queue_vector,
            (QUEUE_ENABLE, 2): self._write_queue_enable,
        }
        for offset, name in (QUEUE_DESC, "descriptors"), (QUEUE_DRIVER, "driver"), (QUEUE_DEVICE, "device"):
            for half in range(2):
                readers[offset + 4 * half, 4] = partial(self._address_half, name, half)
                writers[offset + 4 * half, 4] = partial(self._write_address_half, name, half)
        return readers, writers

    # -- features and vectors ------------------------------------------------------------------------------------

    def _write_driver_feature(self, value: int) -> None:
        """Features are agreed on once FEATURES_OK is set."""
        select = self._driver_feature_select
        if select < 2 and not self.status & FEATURES_OK:
            self.driver_features = self.driver_features & ~(LOW_32 << 32 * select) | value << 32 * select

    def _vector(self, value: int) -> int:
        return value if value < self._vectors else NO_VECTOR

    def _write_config_vector(self, value: int) -> None:
        self.config_vector = self._vector(value)

    # -- the selected queue --------------------------------------------------------------------------------------

    def _selected(self) -> QueueSetup:
        """A queue that does not exist reads as one of size 0."""
        if self._queue_select < len(self.queues):
            return self.queues[self._queue_select]
        return QueueSetup(QueueState(0))

    def _change_state(self, **fields: int) -> None:
        """Set the selected queue up; the driver may not do that to an enabled one."""
        if self._queue_select < len(self.queues) and not self._selected().enabled:
            setup = self._selected()
            self.queues[self._queue_select] = replace(setup, state=replace(setup.state, **fields))

    def _write_queue_size(self, value: int) -> None:
        if self._queue_select < len(self.queues) and value <= self._queue_sizes[self._queue_select]:
            self._change_state(size=value)

    def _write_queue_vector(self, value: int) -> None:
        if self._queue_select < len(self.queues):
            self.queues[self._queue_select] = replace(self._selected(), vector=self._vector(value))

    def _write_queue_enable(self, value: int) -> None:
        """A queue cannot be disabled but by a reset."""
        if value == 1 and self._queue_select < len(self.queues) and not self._selected().enabled:
            self._owner.enable_queue(self._queue_select)

    def _address_half(self, name: str, half: int) -> int:
        address: int = getattr(self._selected().state, name)
        return _word(address, half)

    def _write_address_half(self, name: str, half: int, value: int) -> None:
        address = getattr(self._selected().state, name)
        self._change_state(**{name: address & ~(LOW_32 << 32 * half) | value << 32 * half})


def _word(value: int, select: int) -> int:
    """32 bits of a 64-bit register; the words above it read 0."""
    return value >> 32 * select & LOW_32
