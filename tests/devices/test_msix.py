"""MSI-X vectors: enabled, masked, pending."""

from __future__ import annotations

import pytest

from devices.msix import Msix

ENABLE, MASK = 1 << 15, 1 << 14


class Vectors:
    """Four vectors, vector n set to write 0x40 + n to 0xfee00000."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.msix = Msix(4, self.send)
        for vector in range(4):
            self.msix.table.write(16 * vector, 8, 0xFEE0_0000)
            self.msix.table.write(16 * vector + 8, 4, 0x40 + vector)

    def send(self, address: int, data: int) -> None:
        """Take a message."""
        self.sent.append((address, data))

    def mask(self, vector: int, masked: int) -> None:
        """Write a vector control."""
        self.msix.table.write(16 * vector + 12, 4, masked)


@pytest.fixture
def vectors() -> Vectors:
    """As after power-on."""
    return Vectors()


def test_every_vector_is_masked_in_the_beginning(vectors: Vectors) -> None:
    assert not vectors.msix.enabled
    vectors.msix.set_control(ENABLE)
    assert vectors.msix.enabled
    vectors.msix.trigger(1)
    assert vectors.sent == []
    assert vectors.msix.pending.read(0, 8) == 2


def test_unmasked_vector_sends_its_message(vectors: Vectors) -> None:
    vectors.msix.set_control(ENABLE)
    vectors.mask(2, 0)
    vectors.msix.trigger(2)
    assert vectors.sent == [(0xFEE0_0000, 0x42)]
    assert vectors.msix.pending.read(0, 4) == 0


def test_address_has_64_bits(vectors: Vectors) -> None:
    vectors.msix.set_control(ENABLE)
    vectors.msix.table.write(4, 4, 0x12)
    vectors.mask(0, 0)
    vectors.msix.trigger(0)
    assert vectors.sent == [(0x12_FEE0_0000, 0x40)]


def test_pending_vector_is_sent_once_when_unmasked(vectors: Vectors) -> None:
    vectors.msix.set_control(ENABLE)
    vectors.msix.trigger(3)
    vectors.msix.trigger(3)
    vectors.mask(1, 0)
    assert vectors.sent == []
    vectors.mask(3, 0)
    vectors.mask(3, 1)
    vectors.mask(3, 0)
    assert vectors.sent == [(0xFEE0_0000, 0x43)]


def test_function_mask_holds_all_back(vectors: Vectors) -> None:
    vectors.mask(0, 0)
    vectors.mask(1, 0)
    vectors.msix.set_control(ENABLE | MASK)
    vectors.msix.trigger(0)
    vectors.msix.trigger(1)
    assert vectors.sent == []
    assert vectors.msix.pending.read(0, 1) == 3
    vectors.msix.set_control(ENABLE)
    assert [data for _address, data in vectors.sent] == [0x40, 0x41]


def test_forgotten_interrupts_do_not_come(vectors: Vectors) -> None:
    vectors.msix.set_control(ENABLE)
    vectors.msix.trigger(0)
    vectors.msix.forget()
    vectors.mask(0, 0)
    assert vectors.sent == []


def test_reserved_bits_and_odd_accesses_are_dropped(vectors: Vectors) -> None:
    table = vectors.msix.table
    table.write(8, 8, 0xFFFF_FFFE_0000_1234)
    assert table.read(8, 8) == 0x1234
    table.write(12, 4, 0xFFFF_FFFF)
    assert table.read(12, 4) == 1
    for offset, size in (0, 1), (0, 2), (2, 4), (4, 8), (60, 8), (64, 4), (4092, 8):
        before = vectors.msix.save()
        table.write(offset, size, 0)
        assert vectors.msix.save() == before
    assert table.read(64, 8) == table.read(4088, 8) == 0
    vectors.msix.pending.write(0, 8, 0xFF)
    assert vectors.msix.pending.read(0, 8) == vectors.msix.pending.read(4088, 8) == 0


def test_restored_vectors_go_on(vectors: Vectors) -> None:
    vectors.msix.set_control(ENABLE | MASK)
    vectors.mask(2, 0)
    vectors.msix.trigger(2)
    state = vectors.msix.save()
    copy = Msix(4, vectors.send, state)
    assert copy.save() == state
    assert hash(state) == hash(copy.save())
    assert copy.enabled
    copy.set_control(ENABLE)
    assert vectors.sent == [(0xFEE0_0000, 0x42)]


@pytest.mark.parametrize("count", [0, 129])
def test_number_of_vectors_is_limited(count: int) -> None:
    with pytest.raises(ValueError, match="vectors"):
        Msix(count, lambda address, data: None)
