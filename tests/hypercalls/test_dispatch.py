"""From an MSR access to a handler, and from what it does back to the guest; no CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from hypercalls import Call, CallMemory, GuestFault, Hypercall, hypercall
from hypercalls.dispatch import MOST_LOGGED, POWER_ON, Dispatcher, DispatcherState, Read, Write
from hypercalls.fake import FakeCalls
from hypercalls.mailbox import CAPACITY, pv_mailbox
from hypercalls.numbers import FIRST_USER

REGISTERS = {"rip": 0xFFFF_FFFF_8100_0000, "rsp": 0x1234}


def dispatcher(state: DispatcherState = POWER_ON) -> Dispatcher:
    return Dispatcher(CallMemory(fakes.memory, fakes.memory), fakes.clock, fakes.machine, lambda: REGISTERS, state)


def bound(
    handler: Callable[[Call], int | None], access: str = "w", by: Dispatcher | None = None
) -> tuple[Read | None, Write | None]:
    """The two sides of an MSR with that handler."""
    return (by or dispatcher()).bind(Hypercall(FIRST_USER, "PV_MINE", access, handler))


fakes = FakeCalls(memory_size=4096)


def test_a_write_gives_the_handler_its_value() -> None:
    values = []
    _, write = bound(lambda call: values.append((call.value, call.is_write, call.number)))
    assert write is not None
    write(2**64 - 1)
    assert values == [(2**64 - 1, True, FIRST_USER)]


def test_a_read_gives_the_handler_s_result() -> None:
    read, write = bound(lambda call: 7 if not call.is_write and call.value == 0 else None, "r")
    assert read is not None and write is None
    assert read() == 7


def test_the_result_of_a_write_can_be_read_until_the_next() -> None:
    read, write = bound(lambda call: call.value + 1 if call.value else None)
    assert read is not None and write is not None
    with pytest.raises(GuestFault):
        read()
    write(41)
    assert (read(), read()) == (42, 42)
    write(0)
    with pytest.raises(GuestFault):
        read()


def test_one_handler_can_be_written_and_read() -> None:
    kept = [0]

    def handler(call: Call) -> int | None:
        if not call.is_write:
            return kept[0]
        kept[0] = call.value
        return None

    read, write = bound(handler, "rw")
    assert read is not None and write is not None
    write(5)
    assert read() == 5


def test_a_fault_goes_to_the_guest_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def handler(_call: Call) -> None:
        raise GuestFault(14, 2)

    _, write = bound(handler)
    assert write is not None
    with pytest.raises(GuestFault) as raised:
        write(0)
    assert (raised.value.vector, raised.value.error_code) == (14, 2)
    assert not caplog.records


@pytest.mark.parametrize("address", [4096, 4095, -1, 2**64 - 1])
def test_an_address_outside_of_memory_is_gp_and_one_line(caplog: pytest.LogCaptureFixture, address: int) -> None:
    _, write = bound(lambda call: call.memory.write(address, b"ab"))
    assert write is not None
    with pytest.raises(GuestFault) as raised:
        write(0)
    assert raised.value.vector == 13
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.exc_info is None
    assert "PV_MINE (0x4b564d20): 2 bytes at " in record.getMessage()
    assert bytes(fakes.memory.ram) == bytes(4096)


@pytest.mark.parametrize("access", ["w", "r"])
def test_an_exception_is_gp_and_logged_with_the_guest_s_registers(
    caplog: pytest.LogCaptureFixture, access: str
) -> None:
    read, write = bound(lambda call: {}["missing"], access)  # type: ignore[call-overload]
    with pytest.raises(GuestFault):
        if write is not None:
            write(0)
        elif read is not None:
            read()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.exc_info is not None
    assert "rip ffffffff81000000" in record.getMessage() and "PV_MINE" in record.getMessage()


@pytest.mark.parametrize("result", [-1, 2**64, "seven"])
def test_what_no_register_holds_is_a_handler_s_mistake(caplog: pytest.LogCaptureFixture, result: object) -> None:
    read, _ = bound(lambda call: result, "r")  # type: ignore[arg-type,return-value]
    assert read is not None
    with pytest.raises(GuestFault):
        read()
    assert caplog.records[0].levelno == logging.ERROR


def test_a_handler_that_follows_a_loop_in_guest_memory_ends(caplog: pytest.LogCaptureFixture) -> None:
    def follow(call: Call) -> None:
        at = call.value
        while at:
            at = int.from_bytes(call.memory.read(at, 8), "little")

    _, write = bound(follow)
    assert write is not None
    fakes.memory.write(8, (8).to_bytes(8, "little"))
    with pytest.raises(GuestFault):
        write(8)
    assert "without end" in caplog.text
    fakes.memory.write(8, bytes(8))
    write(8)                            # the next call has its own budget


def test_a_guest_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    _, write = bound(lambda call: call.memory.write(2**40, b"x"))
    assert write is not None
    for _ in range(1000):
        with pytest.raises(GuestFault):
            write(0)
    assert len(caplog.records) == MOST_LOGGED + 1
    assert caplog.messages[-1].endswith("is not logged")


def test_the_decorator_s_object_goes_the_same_way() -> None:
    @hypercall(FIRST_USER, "PV_DOUBLE")
    def pv_double(call: Call) -> int:
        return 2 * call.value

    assert fakes.wrmsr(pv_double, 21) == 42


# --- snapshots ----------------------------------------------------------------------------------------------------


def test_the_mailbox_and_the_last_result_go_on() -> None:
    old = dispatcher()
    _, put = old.bind(pv_mailbox)
    _, write = bound(lambda call: call.value + 1, by=old)
    assert put is not None and write is not None
    put(0x1122)
    put(2**64 - 1)
    write(41)
    state = old.save()
    put(3)
    write(5)
    new = dispatcher(state)
    take, _ = new.bind(pv_mailbox)
    read, _ = bound(lambda call: 1 // 0, by=new)
    assert new.save() == state == DispatcherState(b"\x22\x11" + bytes(6) + b"\xff" * 8, ((FIRST_USER, 42),))
    assert take is not None and read is not None
    assert (take(), take(), read(), read()) == (0x1122, 2**64 - 1, 42, 42)
    assert new.save() == DispatcherState(b"", ((FIRST_USER, 42),))


@pytest.mark.parametrize("result", [None, -1, 2**64, "seven"])
def test_what_no_rdmsr_can_have_is_not_kept(result: object) -> None:
    old = dispatcher()
    _, write = bound(lambda call: result, by=old)  # type: ignore[arg-type,return-value]
    assert write is not None
    write(0)
    assert old.save() == POWER_ON


def test_a_result_for_nobody_is_forgotten() -> None:
    new = dispatcher(DispatcherState(b"", ((FIRST_USER + 1, 7), (FIRST_USER, 8))))
    read, _ = bound(lambda call: None, by=new)
    assert read is not None
    assert read() == 8
    assert new.save().results == ((FIRST_USER, 8),)


def test_of_a_mailbox_that_a_handler_has_overfilled_the_end_is_kept() -> None:
    old = dispatcher()

    def fill(call: Call) -> None:
        call.mailbox += bytes(8) + b"\xff" * CAPACITY

    _, write = bound(fill, by=old)
    assert write is not None
    write(0)
    assert old.save().mailbox == b"\xff" * CAPACITY


@pytest.mark.parametrize(
    ("mailbox", "result"), [(bytes(CAPACITY + 1), 0), (b"", -1), (b"", 2**64)], ids=["mailbox", "negative", "65 bits"]
)
def test_a_state_that_cannot_be_is_refused(mailbox: bytes, result: int) -> None:
    with pytest.raises(ValueError, match=r"mailbox|result"):
        DispatcherState(mailbox, ((FIRST_USER, result),))
