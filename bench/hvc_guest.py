"""A few instructions that write to a virtio console as Linux' hvc driver does, through PCI and the queue."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from devices.virtio.console import PORT_SIZES, Console
from devices.virtio.queue import RING_FEATURES
from emu.bus import MmioBus
from emu.cpu.platform import Exit
from emu.micro import DATA, MMIO, MMIO_PHYSICAL, MicroGuest
from tests.devices.virtio.pci_driver import NOTIFY, Machine

__all__ = ["HVC_WRITE", "HvcGuest"]

HVC_WRITE = 2048                # bytes: Linux cuts a write to a terminal so (drivers/tty/tty_io.c)
TRANSMIT = 1
BAR_0 = 0x10
VERSION_1 = 1 << 32
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
DESCRIPTOR = struct.Struct("<QIHH")     # address, length, flags, next
NOTIFY_SIZE = 4
TIMEOUT_S = 60.0

# Each entry of the ring is descriptor 0. As Linux does, each write asks for an interrupt, and is waited for.
WRITE_LOOP = bytes.fromhex(
    "418808"        # again: mov [r8], cl       ; so that no two writes in a row are alike
    "66ff4702"      # inc word [rdi + 2]        ; index of the driver area
    "668902"        # mov [rdx], ax             ; notify
    "668b5f02"      # wait: mov bx, [rdi + 2]
    "663b5e02"      # cmp bx, [rsi + 2]         ; index of the device area
    "75f6"          # jne wait
    "66895f24"      # mov [rdi + 0x24], bx      ; used_event, behind 16 entries
    "ffc9"          # dec ecx
    "75e4"          # jne again
    "f4"            # hlt
)


@dataclass(frozen=True)
class Ring:
    """Where a queue lies (tests.devices.virtio.pci_driver.Machine.set_up)."""

    size: int
    descriptors: int
    driver: int
    device: int


RING = Ring(PORT_SIZES[TRANSMIT], DATA, DATA + 0x1000, DATA + 0x2000)
BUFFER = DATA + 0x3000


class HvcGuest(MicroGuest):
    """A loop in front of a virtio console whose driver has started."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        device = Console()
        device.port(0, is_console=True).received = self.sent.extend
        self.driver = Machine(device, self.memory)      # type: ignore[arg-type]  # RAM that checks nothing
        self.bus = MmioBus(self.driver.bus.memory)
        self.driver.set_config(BAR_0, 4, MMIO_PHYSICAL)
        self.driver.negotiate(VERSION_1 | RING_FEATURES)
        self.driver.set_up(TRANSMIT, RING)              # type: ignore[arg-type]
        self.driver.enable_msix()
        self.driver.status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK

    def mmio_read(self, address: int, size: int) -> int:
        """A load from outside RAM, through the bus."""
        return self.bus.read(address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A store outside RAM, through the bus."""
        self.bus.write(address, size, value)

    def write_loop(self, count: int, size: int) -> float:
        """Let the guest write `count` times `size` bytes; nanoseconds for each byte.

        Raises:
            AssertionError: other bytes arrived than were sent.
        """
        buffer = bytes(number & 0xFF for number in range(size))
        self.memory.write(BUFFER, buffer)
        self.memory.write(RING.descriptors, DESCRIPTOR.pack(BUFFER, size, 0, 0))
        notify = MMIO + self.driver.structures[NOTIFY][0] + NOTIFY_SIZE * TRANSMIT
        self.put(WRITE_LOOP, rax=TRANSMIT, rcx=count, rdx=notify, rsi=RING.device, rdi=RING.driver, r8=BUFFER)
        started = time.perf_counter_ns()
        ended = self.go(TIMEOUT_S)
        spent = time.perf_counter_ns() - started
        assert ended is Exit.HALT and len(self.driver.messages) == count
        assert self.sent == b"".join(bytes([number & 0xFF]) + buffer[1:] for number in range(count, 0, -1))
        self.sent.clear()
        self.driver.messages.clear()
        return spent / (count * size)

    def close(self) -> None:
        """Free the CPU, and guest memory of its user."""
        self.driver.function.close()
        super().close()
