"""virtio over PCI: initialisation, notifications, interrupts, failure and reset, as a driver sees them."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError

import pytest

from devices.virtio.device import BadRequest
from devices.virtio.queue import EVENT_IDX, INDIRECT_DESC, RING_FEATURES
from tests.devices.virtio.driver import VERSION_1, DriverQueue, FakeMemory
from tests.devices.virtio.pci_driver import (
    ACKNOWLEDGE,
    COMMON,
    DEVICE,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    ISR,
    NEEDS_RESET,
    NOTIFY,
    WINDOW,
    Echo,
    Machine,
)

READY = ACKNOWLEDGE | DRIVER | FEATURES_OK
RUNNING = READY | DRIVER_OK
OFFERED = VERSION_1 | RING_FEATURES | 0b101
QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 0x16, 0x18, 0x1A, 0x1C, 0x1E


@pytest.fixture
def machine() -> Machine:
    """Found, but not initialised."""
    machine = Machine(Echo())
    machine.probe()
    return machine


def echo(machine: Machine) -> Echo:
    """The device."""
    assert isinstance(machine.function.device, Echo)
    return machine.function.device


def break_queue(machine: Machine, index: int = 0) -> None:
    """Offer a chain that is none."""
    machine.rings[index].describe(0, 0, 1)
    machine.rings[index].offer(0)
    machine.notify(index)


# --- what Linux looks for ---------------------------------------------------------------------------------------------


def test_numbers_are_a_modern_virtio_device(machine: Machine) -> None:
    assert machine.config(0x00, 4) == (0x1040 + 42) << 16 | 0x1AF4
    assert machine.config(0x08, 4) == 0x0200_0001
    assert machine.config(0x2C, 2) == 0x1AF4
    assert machine.config(0x2E, 2) >= 0x40
    assert machine.config(0x3C, 2) == 0x010B, "INTA, at the 8259A's input 11"


def test_structures_are_in_the_bar_and_aligned(machine: Machine) -> None:
    assert machine.structures[COMMON][1] >= 0x38
    assert machine.structures[NOTIFY][1] >= 2 * 4
    assert machine.structures[ISR][1] >= 1
    machine.set_config(0x10, 4, 0xFFFF_FFFF)
    size = (~machine.config(0x10, 4) | 0xF) % (1 << 32) + 1
    for kind in COMMON, NOTIFY, ISR, DEVICE:
        offset, length = machine.structures[kind]
        assert offset % 4 == 0
        assert offset + length <= size
        assert machine.config(machine.caps[kind] + 2, 1) >= 16
        assert machine.config(machine.caps[kind] + 4, 1) == 0, "BAR 0"
    assert machine.config(machine.caps[NOTIFY] + 16, 4) == 4, "notify_off_multiplier"


def test_msix_has_a_vector_for_each_queue_and_one_more(machine: Machine) -> None:
    assert machine.config(machine.caps[0] + 2, 2) == 2
    assert machine.offered() == OFFERED


def test_queues_are_described(machine: Machine) -> None:
    assert machine.load(COMMON, 0x12, 2) == 2
    for index, size in enumerate((16, 8)):
        machine.store(COMMON, QUEUE_SELECT, 2, index)
        assert machine.load(COMMON, QUEUE_SELECT, 2) == index
        assert machine.load(COMMON, QUEUE_SIZE, 2) == size
        assert machine.load(COMMON, QUEUE_NOTIFY_OFF, 2) == index
        assert machine.load(COMMON, QUEUE_ENABLE, 2) == 0
        assert machine.load(COMMON, QUEUE_VECTOR, 2) == 0xFFFF
    machine.store(COMMON, QUEUE_SELECT, 2, 2)
    assert machine.load(COMMON, QUEUE_SIZE, 2) == 0
    machine.store(COMMON, QUEUE_SIZE, 2, 4)
    machine.store(COMMON, QUEUE_VECTOR, 2, 0)
    machine.store(COMMON, QUEUE_ENABLE, 2, 1)
    machine.store(COMMON, 0x20, 4, 1)
    assert [machine.load(COMMON, offset, 2) for offset in (QUEUE_SIZE, QUEUE_ENABLE, 0x20)] == [0, 0, 0]


def test_fields_take_their_own_size_only(machine: Machine) -> None:
    machine.store(COMMON, 0x00, 2, 1)
    machine.store(COMMON, 0x14, 4, 1)
    machine.store(COMMON, 0x15, 1, 1)
    assert (machine.load(COMMON, 0x00, 4), machine.status, machine.load(COMMON, 0x15, 1)) == (0, 0, 0)
    assert machine.load(COMMON, 0x10, 4) == machine.load(COMMON, 0x20, 8) == machine.load(COMMON, 0xFFF, 1) == 0


def test_queue_addresses_are_two_words_each(machine: Machine) -> None:
    machine.store(COMMON, QUEUE_SELECT, 2, 1)
    for offset in range(0x20, 0x38, 4):
        machine.store(COMMON, offset, 4, 0x1111_0000 + offset)
    assert [machine.load(COMMON, offset, 4) for offset in range(0x20, 0x38, 4)] == [
        0x1111_0000 + offset for offset in range(0x20, 0x38, 4)
    ]
    setup = machine.function.save().common.queues[1].state
    assert (setup.descriptors, setup.device) == (0x1111_0024_1111_0020, 0x1111_0034_1111_0030)


# --- status and features ----------------------------------------------------------------------------------------------


def test_initialisation_as_linux_does_it(machine: Machine) -> None:
    machine.start(VERSION_1 | RING_FEATURES | 0b100)
    assert machine.status == RUNNING
    assert echo(machine).agreed == VERSION_1 | RING_FEATURES | 0b100
    assert [queue.size if queue else None for queue in echo(machine).queues] == [16, 8]


@pytest.mark.parametrize(
    "features", [RING_FEATURES, VERSION_1 | 0b10, VERSION_1 | 1 << 34, 0, (1 << 64) - 1], ids=hex
)
def test_features_that_cannot_be_are_refused(machine: Machine, features: int) -> None:
    machine.negotiate(features)
    assert machine.status == ACKNOWLEDGE | DRIVER
    machine.status = RUNNING
    assert machine.status == ACKNOWLEDGE | DRIVER
    assert echo(machine).activations == 0


def test_features_are_settled_once_agreed_on(machine: Machine) -> None:
    machine.negotiate(VERSION_1)
    machine.accept(VERSION_1 | INDIRECT_DESC)
    machine.store(COMMON, 0x08, 4, 1)
    assert machine.load(COMMON, 0x0C, 4) == 1
    machine.store(COMMON, 0x08, 4, 0)
    assert machine.load(COMMON, 0x0C, 4) == 0


def test_feature_words_above_64_bits_are_nothing(machine: Machine) -> None:
    machine.store(COMMON, 0x00, 4, 2)
    machine.store(COMMON, 0x08, 4, 0xFFFF_FFFF)
    machine.store(COMMON, 0x0C, 4, 0xFFFF_FFFF)
    assert machine.load(COMMON, 0x04, 4) == machine.load(COMMON, 0x0C, 4) == 0


def test_status_bits_are_not_taken_away_but_by_reset(machine: Machine) -> None:
    machine.start()
    machine.status = ACKNOWLEDGE
    assert machine.status == RUNNING
    machine.status = NEEDS_RESET | 0x30
    assert machine.status == RUNNING, "the driver cannot set those"
    machine.status = 0
    assert machine.status == 0


def test_second_driver_ok_does_nothing(machine: Machine) -> None:
    machine.start()
    machine.status = RUNNING
    assert echo(machine).activations == 1


def test_queue_that_is_not_enabled_is_none(machine: Machine) -> None:
    machine.negotiate()
    ring = DriverQueue(machine.memory, 8)
    machine.set_up(1, ring)
    machine.status = RUNNING
    assert [queue is None for queue in echo(machine).queues] == [True, False]
    machine.notify(0)
    machine.set_up(0, DriverQueue(machine.memory, 8))
    assert machine.load(COMMON, QUEUE_ENABLE, 2) == 0, "too late"


def test_enabled_queue_stays_as_it_was_set_up(machine: Machine) -> None:
    machine.start()
    for index in range(2):
        machine.set_up(index, DriverQueue(machine.memory, 4), enable=0)
        machine.store(COMMON, QUEUE_ENABLE, 2, 0)
        assert machine.load(COMMON, QUEUE_SIZE, 2) == (16, 8)[index]
        assert machine.load(COMMON, 0x20, 4) == machine.rings[index].descriptors
        assert machine.load(COMMON, QUEUE_ENABLE, 2) == 1


def test_smaller_queue_is_the_drivers_choice(machine: Machine) -> None:
    machine.negotiate()
    machine.rings = [DriverQueue(machine.memory, 2)]
    machine.set_up(0, machine.rings[0])
    machine.status = RUNNING
    for i in range(5):
        assert machine.echo(bytes([i])) == bytes([i])
    machine.store(COMMON, QUEUE_SELECT, 2, 1)
    machine.store(COMMON, QUEUE_SIZE, 2, 16)
    assert machine.load(COMMON, QUEUE_SIZE, 2) == 8, "not more than there are"


@pytest.mark.parametrize("size", [0, 3])
def test_queue_of_no_power_of_two_breaks_the_device(machine: Machine, size: int) -> None:
    machine.negotiate()
    ring = DriverQueue(machine.memory, 8)
    ring.size = size
    machine.set_up(0, ring)
    assert machine.status == READY | NEEDS_RESET
    assert machine.load(COMMON, QUEUE_ENABLE, 2) == 0
    machine.status = RUNNING
    assert echo(machine).activations == 0
    assert not machine.line.level, "no interrupt before DRIVER_OK"


def test_rings_outside_memory_break_the_device(machine: Machine) -> None:
    machine.negotiate()
    ring = DriverQueue(machine.memory, 8)
    ring.device = 0x1000
    machine.set_up(0, ring)
    assert machine.status & NEEDS_RESET
    assert "not RAM" in (machine.function.failure or "")


def test_queue_enabled_before_features_breaks_the_device(machine: Machine) -> None:
    machine.status = ACKNOWLEDGE | DRIVER
    machine.set_up(0, DriverQueue(machine.memory, 8))
    assert machine.status == ACKNOWLEDGE | DRIVER | NEEDS_RESET


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | INDIRECT_DESC, VERSION_1 | EVENT_IDX, OFFERED], ids=hex)
@pytest.mark.parametrize("msix", [False, True])
def test_requests_are_answered(machine: Machine, features: int, msix: bool) -> None:
    machine.start(features, msix)
    for i in range(40):
        assert machine.echo(b"%d" % i, bool(features & INDIRECT_DESC)) == b"%d" % i
        assert machine.load(ISR, 0, 1) == (0 if msix else 1)
    assert len(machine.messages) == (40 if msix else 0)


@pytest.mark.parametrize(("offset", "size"), [(1, 1), (2, 2), (8, 2), (4092, 4), (4, 2)])
def test_notification_elsewhere_does_nothing_to_queue_0(machine: Machine, offset: int, size: int) -> None:
    machine.start()
    machine.rings[0].send([b"a"], [64])
    machine.store(NOTIFY, offset, size, 0)
    assert machine.rings[0].used() == []
    assert machine.load(NOTIFY, offset, size) == 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_notification_is_by_place(machine: Machine, size: int) -> None:
    machine.start()
    machine.rings[0].send([b"a"], [64])
    machine.store(NOTIFY, 0, size, 77)
    assert len(machine.rings[0].used()) == 1


def test_notification_before_driver_ok_is_not_heard(machine: Machine) -> None:
    machine.negotiate()
    ring = DriverQueue(machine.memory, 8)
    machine.set_up(0, ring)
    ring.send([b"a"], [64])
    machine.notify(0)
    assert ring.used() == []
    machine.status = RUNNING
    assert len(ring.used()) == 1, "what was available then is seen at DRIVER_OK"


# --- interrupts -------------------------------------------------------------------------------------------------------


def test_isr_is_cleared_by_reading(machine: Machine) -> None:
    machine.start()
    machine.echo(b"a")
    assert machine.line.level
    assert machine.config(0x06, 2) & 8
    assert machine.load(ISR, 1, 1) == 0
    assert machine.line.level
    assert machine.load(ISR, 0, 1) == 1
    assert not machine.line.level
    assert machine.load(ISR, 0, 1) == 0


def test_isr_tells_queue_and_configuration_apart(machine: Machine) -> None:
    machine.start()
    machine.function.config_changed()
    assert machine.load(ISR, 0, 1) == 2
    machine.echo(b"a")
    machine.function.config_changed()
    assert machine.load(ISR, 0, 1) == 3


def test_each_queue_has_its_vector(machine: Machine) -> None:
    machine.start(msix=True)
    machine.rings[1].send([], [8])
    assert echo(machine).deliver(b"x")
    machine.echo(b"a")
    machine.function.config_changed()
    assert machine.messages == [(0xFEE0_0000, 0x42), (0xFEE0_0000, 0x41), (0xFEE0_0000, 0x40)]
    assert not machine.line.level


@pytest.mark.parametrize(("queues", "vectors"), [(32, 33), (33, 2), (100, 2)])
def test_many_queues_share_a_vector(queues: int, vectors: int) -> None:
    device = Echo()
    device.queue_sizes = (16, 8) * (queues // 2) + (16,) * (queues % 2)
    machine = Machine(device)
    machine.probe()
    assert (machine.config(machine.caps[0] + 2, 2) & 0x7FF) + 1 == vectors
    machine.start()
    machine.enable_msix()
    machine.store(COMMON, QUEUE_SELECT, 2, 0)
    machine.store(COMMON, QUEUE_VECTOR, 2, 1)
    machine.echo(b"over the shared vector")
    assert machine.messages == [(0xFEE0_0000, 0x41)]


def test_vector_that_does_not_exist_reads_back_as_none(machine: Machine) -> None:
    machine.start(msix=True)
    for offset in 0x10, QUEUE_VECTOR:
        machine.store(COMMON, offset, 2, 2)
        assert machine.load(COMMON, offset, 2) == 2
        machine.store(COMMON, offset, 2, 3)
        assert machine.load(COMMON, offset, 2) == 0xFFFF
    machine.store(COMMON, QUEUE_SELECT, 2, 0)
    machine.store(COMMON, QUEUE_VECTOR, 2, 0xFFFF)
    machine.function.config_changed()
    machine.echo(b"a")
    assert machine.messages == []
    assert not machine.line.level


def test_masked_vector_comes_when_unmasked(machine: Machine) -> None:
    machine.start(msix=True)
    machine.msix_entry(1, 0xFEE0_0000, 0x55, masked=1)
    machine.echo(b"a")
    assert machine.messages == []
    assert machine.pending() == 2
    machine.msix_entry(1, 0xFEE0_0000, 0x55)
    assert machine.messages == [(0xFEE0_0000, 0x55)]
    assert machine.pending() == 0


def test_function_mask_in_message_control(machine: Machine) -> None:
    machine.start(msix=True)
    machine.msix_control(0xC000)
    machine.echo(b"a")
    assert machine.messages == []
    machine.set_config(machine.caps[0] + 3, 1, 0x80)
    assert machine.messages == [(0xFEE0_0000, 0x41)]
    assert machine.config(machine.caps[0] + 2, 2) == 0x8002


def test_line_is_low_once_msix_is_on(machine: Machine) -> None:
    machine.start()
    machine.echo(b"a")
    assert machine.line.level
    machine.enable_msix()
    assert not machine.line.level
    machine.msix_control(0)
    assert machine.line.level


def test_config_generation_counts_changes(machine: Machine) -> None:
    machine.function.config_changed()
    assert machine.load(COMMON, 0x15, 1) == 1
    assert not machine.line.level, "no driver to interrupt"
    machine.start()
    for _ in range(256):
        machine.function.config_changed()
    assert machine.load(COMMON, 0x15, 1) == 1
    assert machine.line.level


# --- device configuration, and the window onto the BAR ----------------------------------------------------------------


def test_device_configuration_is_the_devices(machine: Machine) -> None:
    machine.store(DEVICE, 0, 4, 0x1234_5678)
    assert machine.load(DEVICE, 0, 4) == 0x1234_5678
    assert machine.load(DEVICE, 2, 1) == 0x34
    assert machine.load(DEVICE, 0xFF8, 8) == 0


def test_bad_setting_breaks_the_device(machine: Machine) -> None:
    machine.start()
    machine.store(DEVICE, 0, 4, 0xBAD)
    assert machine.status & NEEDS_RESET
    machine.store(DEVICE, 0, 4, 5)
    assert machine.load(DEVICE, 0, 4) == 0, "nothing is asked of it any more"


def window(machine: Machine, bar: int, offset: int, length: int) -> int:
    """Point the window somewhere; where its data is."""
    at = machine.caps[WINDOW]
    machine.set_config(at + 4, 1, bar)
    machine.set_config(at + 8, 4, offset)
    machine.set_config(at + 12, 4, length)
    return at + 16


def test_window_reaches_all_of_the_bar(machine: Machine) -> None:
    machine.set_config(0x04, 2, 0)                                          # even if memory is not enabled
    data = window(machine, 0, machine.structures[COMMON][0] + 0x16, 2)
    machine.set_config(data, 2, 1)
    assert machine.config(data, 4) & 0xFFFF == 1
    data = window(machine, 0, machine.structures[COMMON][0] + 0x18, 2)
    assert machine.config(data, 2) == 8
    data = window(machine, 0, machine.structures[DEVICE][0], 4)
    machine.set_config(data, 4, 0xCAFE_F00D)
    assert echo(machine).register == 0xCAFE_F00D
    data = window(machine, 0, machine.structures[DEVICE][0] + 3, 1)
    assert machine.config(data, 1) == 0xCA


def test_driver_starts_through_the_window(machine: Machine) -> None:
    machine.start()
    machine.rings[0].send([b"a"], [64])
    machine.set_config(window(machine, 0, machine.structures[NOTIFY][0], 2), 2, 0)
    assert len(machine.rings[0].used()) == 1


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [(1, 0, 4), (0, 0x8000, 4), (0, 0x6000, 4), (0, 0xFFFF_FFFC, 4), (0, 0, 0), (0, 0, 3), (0, 0, 8), (0, 2, 4),
     (0, 0, 0xFFFF_FFFF), (0xFF, 0, 4)],
)
def test_window_elsewhere_is_only_memory(machine: Machine, bar: int, offset: int, length: int) -> None:
    data = window(machine, bar, offset, length)
    machine.set_config(data, 4, 0x1234_5678)
    assert machine.config(data, 4) == 0x1234_5678
    assert machine.load(COMMON, 0, 4) == 0


# --- failure and reset ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("msix", [False, True])
def test_bad_request_needs_a_reset(machine: Machine, msix: bool, caplog: pytest.LogCaptureFixture) -> None:
    machine.start(msix=msix)
    with caplog.at_level(logging.WARNING):
        break_queue(machine)
    assert machine.status == RUNNING | NEEDS_RESET
    assert machine.function.failure
    assert machine.function.failure in caplog.text
    if msix:
        assert machine.messages == [(0xFEE0_0000, 0x40)]
    else:
        assert machine.load(ISR, 0, 1) == 2


def test_driver_cannot_fill_the_log(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        machine.start()
        break_queue(machine)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_failed_device_does_not_touch_its_queues(machine: Machine) -> None:
    machine.start()
    break_queue(machine)
    machine.rings[1].send([], [8])
    before, heard, reason = bytes(machine.memory.ram), echo(machine).notifications, machine.function.failure
    assert not echo(machine).deliver(b"x")
    machine.notify(0)
    machine.notify(1)
    machine.function.kick_all()
    machine.function.fail(BadRequest("again"))
    assert bytes(machine.memory.ram) == before
    assert (echo(machine).notifications, machine.function.failure) == (heard, reason)
    assert machine.load(ISR, 0, 1) == 2


def test_failure_outside_a_notification(machine: Machine) -> None:
    machine.start()
    machine.rings[1].describe(0, 0, 8, 2)
    machine.rings[1].offer(0)
    machine.notify(1)
    assert machine.status == RUNNING
    assert not echo(machine).deliver(b"x")
    assert machine.status == RUNNING | NEEDS_RESET


@pytest.mark.parametrize("broken", [False, True])
def test_reset_makes_it_new(machine: Machine, broken: bool) -> None:
    new = machine.function.save().common
    machine.start()
    machine.echo(b"a")
    if broken:
        break_queue(machine)
    machine.status = 0
    assert machine.function.save().common == new
    assert (echo(machine).resets, machine.function.failure, machine.line.level) == (1, None, False)
    machine.start()
    assert machine.echo(b"b") == b"b"


def test_reset_drops_pending_interrupts(machine: Machine) -> None:
    machine.start(msix=True)
    machine.msix_entry(1, 0xFEE0_0000, 0x41, masked=1)
    machine.echo(b"a")
    machine.status = 0
    assert machine.pending() == 0


def test_reset_of_a_new_device_asks_nothing_of_it(machine: Machine) -> None:
    machine.status = 0
    assert echo(machine).resets == 0


def test_reset_lets_go_of_memory(machine: Machine) -> None:
    machine.start()
    machine.echo(b"a", indirect=True)
    machine.status = 0
    machine.memory.close()


def test_closed_function_lets_go_of_memory_and_the_device_gets_another(machine: Machine) -> None:
    machine.start()
    machine.echo(b"a")
    machine.function.close()
    machine.notify(0)
    assert echo(machine).resets == 1
    machine.memory.close()
    second = Machine(echo(machine)).start()
    assert second.echo(b"b") == b"b"


# --- state ------------------------------------------------------------------------------------------------------------


def restored(machine: Machine, memory: FakeMemory) -> Machine:
    """A machine made from another one's state and memory."""
    state = machine.function.save()
    copy = Machine(Echo(machine.function.device.save()), memory, state)
    copy.structures, copy.caps, copy.rings = machine.structures, machine.caps, machine.rings
    assert copy.function.save() == state
    return copy


def test_state_is_plain_and_frozen(machine: Machine) -> None:
    state = machine.start(msix=True).function.save()
    assert hash(state) == hash(machine.function.save())
    with pytest.raises(FrozenInstanceError):
        state.isr = 1                                                       # type: ignore[misc]


@pytest.mark.parametrize("msix", [False, True])
def test_restored_device_goes_on(machine: Machine, msix: bool) -> None:
    machine.start(msix=msix)
    machine.store(DEVICE, 0, 4, 99)
    machine.set_config(0x10, 4, 0xE000_0000)
    machine.echo(b"a")
    machine.rings[1].send([], [8])
    copy = restored(machine, machine.memory)
    assert copy.line.level == machine.line.level
    assert copy.load(DEVICE, 0, 4) == 99
    assert copy.echo(b"b") == b"b"
    assert echo(copy).deliver(b"x")
    assert copy.rings[1].used()[0].data == b"x"


def test_restored_device_is_told_of_what_was_available(machine: Machine) -> None:
    machine.start()
    machine.rings[0].send([b"a"], [64])
    copy = restored(machine, machine.memory)
    assert machine.rings[0].used() == []
    copy.function.kick_all()
    assert copy.rings[0].used()[0].data == b"a"
    copy.function.kick_all()
    assert copy.rings[0].used() == []


def test_half_initialised_device_is_restored(machine: Machine) -> None:
    machine.negotiate(VERSION_1)
    machine.rings = [DriverQueue(machine.memory, 8, 0)]
    machine.set_up(0, machine.rings[0])
    copy = restored(machine, machine.memory)
    assert echo(copy).activations == 0
    copy.status = RUNNING
    assert copy.echo(b"a") == b"a"


def test_broken_device_is_restored_broken(machine: Machine) -> None:
    machine.start()
    break_queue(machine)
    copy = restored(machine, machine.memory)
    assert copy.status == RUNNING | NEEDS_RESET
    assert copy.function.failure == machine.function.failure
    assert echo(copy).activations == 0
    copy.start()
    assert copy.echo(b"a") == b"a"


def test_device_restored_over_memory_too_small_is_broken(machine: Machine) -> None:
    machine.start()
    copy = Machine(Echo(), FakeMemory(16), machine.function.save())
    copy.structures, copy.caps = machine.structures, machine.caps
    assert copy.status == RUNNING | NEEDS_RESET
    assert echo(copy).activations == 0
