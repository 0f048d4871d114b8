"""The serial port behind the putchar bypass: it cannot be told from the serial port alone."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.uart16550a import Uart16550A
from tests.devices.fakes import FakeLine
from tests.devices.test_uart16550a import (
    BREAK,
    DATA,
    DLAB,
    DR,
    FCR,
    IDLE,
    IER,
    IIR,
    LCR,
    LOOP,
    LSR,
    MCR,
    MSR,
    OUT2,
    RDI,
    RTS,
    SCR,
    THRI,
    Port,
)


class ModelBypass:
    """What the CPU layer does in machine code."""

    def __init__(self) -> None:
        self.lsr: int | None = None
        self.arms: list[int | None] = []
        self.collected = bytearray()

    def arm(self, lsr: int | None) -> None:
        self.lsr = lsr
        self.arms.append(lsr)

    def take(self) -> bytes:
        taken = bytes(self.collected)
        self.collected.clear()
        return taken


class ShortCut:
    """A UART behind a bypass."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self.line = FakeLine()
        self.bypass = ModelBypass()
        self.uart = Uart16550A(self.line, output, self.bypass)

    def read(self, offset: int) -> int:
        if offset == LSR and self.bypass.lsr is not None:
            return self.bypass.lsr
        return self.uart.read(offset)

    def write(self, offset: int, value: int) -> None:
        if offset == DATA and self.bypass.lsr is not None:
            self.bypass.collected.append(value)
        else:
            self.uart.write(offset, value)


REGISTER_VALUES = {
    DATA: st.integers(0, 0xFF),
    IER: st.integers(0, 0x0F),
    FCR: st.sampled_from([0x00, 0x01, 0x03, 0x07, 0x41, 0xC1]),
    LCR: st.sampled_from([0x03, 0x03, 0x03, 0x83, 0x43]),
    MCR: st.sampled_from([0x0B, 0x0B, 0x0B, 0x1B, 0x10, 0x08, 0x00]),
    SCR: st.integers(0, 0xFF),
}
ACCESSES = st.one_of(
    st.tuples(st.just("write"), st.just(DATA), REGISTER_VALUES[DATA]),
    st.sampled_from(sorted(REGISTER_VALUES)).flatmap(
        lambda offset: st.tuples(st.just("write"), st.just(offset), REGISTER_VALUES[offset])
    ),
    st.tuples(st.just("read"), st.sampled_from([DATA, IER, IIR, IIR, LCR, MCR, LSR, LSR, MSR, SCR]), st.just(0)),
    st.tuples(st.just("receive"), st.integers(0, 20), st.integers(0, 0xFF)),
    st.sampled_from([("break", 0, 0), ("flush", 0, 0)]),
)


@settings(max_examples=400, deadline=None)
@given(sequence=st.lists(ACCESSES, max_size=120))
def test_bypass_cannot_be_told_from_the_full_path(sequence: list[tuple[str, int, int]]) -> None:
    plain, bypassed_output = Port(), bytearray()
    bypassed = ShortCut(bypassed_output.extend)
    for kind, where, value in sequence:
        for side in (plain, bypassed):
            if kind == "write":
                side.write(where, value)
            elif kind == "receive":
                side.uart.receive(bytes([value]) * where)
            elif kind == "break":
                side.uart.send_break()
            elif kind == "flush":
                side.uart.flush_bypass()
        if kind == "read":
            assert bypassed.read(where) == plain.read(where)
        if kind == "flush":
            assert bypassed_output == plain.sent
        assert bypassed.line.changes == plain.line.changes
    assert bypassed.uart.save() == plain.uart.save()
    assert bypassed_output == plain.sent


@settings(max_examples=400, deadline=None)
@given(sequence=st.lists(ACCESSES, max_size=60))
def test_bypass_is_armed_exactly_while_both_accesses_have_no_side_effect(sequence: list[tuple[str, int, int]]) -> None:
    side = ShortCut(lambda data: None)
    for kind, where, value in sequence:
        if kind == "write":
            side.write(where, value)
        elif kind == "read":
            side.read(where)
        elif kind == "receive":
            side.uart.receive(bytes([value]) * where)
        elif kind == "break":
            side.uart.send_break()
        state = side.uart.save()
        assert (side.bypass.lsr is not None) == (
            state.lcr & (DLAB | BREAK) == 0
            and state.mcr & LOOP == 0
            and state.line_errors == 0
            and (state.ier & THRI == 0 or state.thre_pending)
        )


def test_bypass_is_armed_only_when_its_answer_changes() -> None:
    side = ShortCut(lambda data: None)
    side.write(MCR, RTS)
    side.write(SCR, 1)
    side.write(IER, RDI)
    side.write(FCR, 0x01)
    assert side.bypass.arms == [None, IDLE]
    side.uart.receive(b"ab")
    side.read(DATA)
    side.read(DATA)
    assert side.bypass.arms == [None, IDLE, IDLE | DR, IDLE]


def test_bytes_of_both_paths_keep_their_order() -> None:
    output = bytearray()
    side = ShortCut(output.extend)
    side.write(DATA, 0x41)
    side.uart.write(DATA, 0x42)  # an access that the short cut does not know, such as a string instruction
    side.write(DATA, 0x43)
    side.write(LCR, DLAB)
    side.write(DATA, 0x44)  # the divisor
    side.write(LCR, 0x03)
    side.write(MCR, OUT2)
    side.write(IER, THRI)
    side.read(IIR)
    side.write(DATA, 0x45)
    assert output == b"ABCE"


def test_saving_sends_what_the_bypass_has_collected() -> None:
    output = bytearray()
    side = ShortCut(output.extend)
    side.write(DATA, 0x41)
    side.uart.save()
    assert output == b"A"


def test_restored_uart_arms_its_bypass() -> None:
    first = Port()
    first.open()
    first.uart.receive(b"x")
    bypass = ModelBypass()
    Uart16550A(FakeLine(), lambda data: None, bypass, state=first.uart.save())
    assert bypass.lsr == IDLE | DR
