"""The serial port: by the PC16550D datasheet, and as Linux probes it."""

from __future__ import annotations

import pytest

from devices.uart16550a import COM1, Uart16550A
from tests.devices.fakes import FakeLine

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR

RDI, THRI, RLSI, MSI = 0x01, 0x02, 0x04, 0x08
LINE_STATUS, DATA_READY, TIMEOUT, THRE, MODEM, NONE = 0x06, 0x04, 0x0C, 0x02, 0x00, 0x01
DR, OE, FE, BI, IDLE, FIFO_ERROR = 0x01, 0x02, 0x08, 0x10, 0x60, 0x80
DTR, RTS, OUT1, OUT2, LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
DLAB, BREAK = 0x80, 0x40


class Port:
    """A UART, its line and its output."""

    def __init__(self) -> None:
        self.line = FakeLine()
        self.sent = bytearray()
        self.uart = Uart16550A(self.line, self.sent.extend)

    def open(self, ier: int = 0, fcr: int = 0x01, mcr: int = DTR | RTS | OUT2) -> None:
        """Set up as a driver does; FIFOs on with trigger level 1, interrupts connected."""
        self.write(LCR, 0x03)
        self.write(FCR, fcr)
        self.write(MCR, mcr)
        self.write(IER, ier)

    def read(self, offset: int) -> int:
        return self.uart.read(offset)

    def write(self, offset: int, value: int) -> None:
        self.uart.write(offset, value)

    def cause(self) -> int:
        return self.uart.read(IIR) & 0x0F

    def drain(self) -> bytes:
        """Read while there is data."""
        data = bytearray()
        while self.read(LSR) & DR:
            data.append(self.read(DATA))
        return bytes(data)


@pytest.fixture
def port() -> Port:
    return Port()


# Registers


def test_power_on_values(port: Port) -> None:
    assert [port.read(offset) for offset in (IER, IIR, LCR, MCR, LSR, MSR)] == [0, 0x01, 0, 0, 0x60, 0xB0]


def test_ports_follow_the_base(line: FakeLine) -> None:
    assert Uart16550A(line, lambda data: None).ports == ((COM1, 8),)
    assert Uart16550A(line, lambda data: None, base=0x2F8).ports == ((0x2F8, 8),)


def test_scratch_register_holds_any_byte(port: Port) -> None:
    port.write(SCR, 0xA5)
    assert port.read(SCR) == 0xA5


def test_reserved_bits_read_as_zero(port: Port) -> None:
    port.write(IER, 0xFF)
    port.write(MCR, 0xFF)
    assert port.read(IER) == 0x0F
    assert port.read(MCR) == 0x1F


def test_divisor_latch_hides_data_and_interrupt_enable(port: Port) -> None:
    port.open(ier=RDI)
    port.write(LCR, 0x03 | DLAB)
    port.write(DATA, 0x34)
    port.write(IER, 0x12)
    assert (port.read(DATA), port.read(IER)) == (0x34, 0x12)
    port.write(LCR, 0x03)
    assert port.read(IER) == RDI
    assert port.sent == b""
    port.write(LCR, 0x03 | DLAB)
    assert (port.read(DATA), port.read(IER)) == (0x34, 0x12)


def test_writing_the_status_registers_changes_nothing(port: Port) -> None:
    port.write(LSR, 0xFF)
    port.write(MSR, 0xFF)
    assert (port.read(LSR), port.read(MSR)) == (0x60, 0xB0)


# Sending


def test_bytes_leave_at_once_and_the_transmitter_stays_empty(port: Port) -> None:
    for value in b"hi\x00\xff":
        port.write(DATA, value)
        assert port.read(LSR) == IDLE
    assert port.sent == b"hi\x00\xff"


def test_break_on_the_line_swallows_what_is_sent(port: Port) -> None:
    port.write(LCR, 0x03 | BREAK)
    port.write(DATA, 0x41)
    port.write(LCR, 0x03)
    port.write(DATA, 0x42)
    assert port.sent == b"B"


def test_enabling_the_transmitter_interrupt_raises_it_at_once(port: Port) -> None:
    port.open(ier=THRI)
    assert port.line.level
    assert port.cause() == THRE


def test_reading_the_identification_clears_the_transmitter_interrupt(port: Port) -> None:
    port.open(ier=THRI)
    port.cause()
    assert not port.line.level
    assert port.cause() == NONE


def test_writing_raises_the_transmitter_interrupt_again(port: Port) -> None:
    port.open(ier=THRI)
    port.cause()
    port.write(DATA, 0x41)
    assert port.line.level
    assert port.cause() == THRE


def test_only_the_rising_edge_of_the_enable_bit_raises_the_transmitter_interrupt(port: Port) -> None:
    port.open(ier=THRI)
    port.cause()
    port.write(IER, THRI | RDI)
    assert port.cause() == NONE
    port.write(IER, 0)
    port.write(IER, THRI)
    assert port.cause() == THRE


def test_transmitter_interrupt_survives_an_identification_that_shows_another_cause(port: Port) -> None:
    port.open(ier=THRI | RDI)
    port.uart.receive(b"x")
    assert port.cause() == DATA_READY
    port.read(DATA)
    assert port.cause() == THRE


# Receiving


def test_received_byte_is_read_once(port: Port) -> None:
    port.open()
    port.uart.receive(b"x")
    assert port.read(LSR) == IDLE | DR
    assert port.read(DATA) == 0x78
    assert port.read(LSR) == IDLE


@pytest.mark.parametrize(("fcr", "level"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_trigger_level_tells_data_from_timeout(port: Port, fcr: int, level: int) -> None:
    port.open(ier=RDI, fcr=fcr)
    port.uart.receive(b"x" * (level - 1))
    assert port.cause() == (TIMEOUT if level > 1 else NONE)
    port.uart.receive(b"x")
    assert port.cause() == DATA_READY
    assert port.line.level
    port.read(DATA)
    assert port.cause() == (TIMEOUT if level > 1 else NONE)


def test_identification_shows_whether_fifos_are_on(port: Port) -> None:
    port.write(FCR, 0x01)
    assert port.read(IIR) == 0xC1
    port.write(FCR, 0x00)
    assert port.read(IIR) == 0x01


def test_fcr_without_its_enable_bit_programs_nothing_else(port: Port) -> None:
    port.open(ier=RDI, fcr=0xC0)
    port.write(FCR, 0x01)
    port.uart.receive(b"x")
    assert port.cause() == DATA_READY, "the trigger level is 1"


def test_backlog_of_any_length_arrives_whole(port: Port) -> None:
    data = bytes(range(256)) * 40
    port.open(ier=RDI)
    port.uart.receive(data)
    assert port.drain() == data
    assert not port.line.level


def test_without_fifos_one_byte_at_a_time_arrives_and_none_is_lost(port: Port) -> None:
    port.open(fcr=0x00)
    port.uart.receive(b"hello")
    port.uart.receive(b" there")
    assert port.drain() == b"hello there"


def test_each_refill_of_the_fifo_is_a_new_edge_on_the_line(port: Port) -> None:
    port.open(ier=RDI)
    port.uart.receive(bytes(40))
    port.drain()
    assert port.line.rises == 3


def test_characters_wait_on_the_line_until_rts_is_on(port: Port) -> None:
    port.open(mcr=DTR)
    port.uart.receive(b"early")
    port.write(FCR, 0x03)
    assert port.read(LSR) == IDLE
    port.write(MCR, DTR | RTS)
    assert port.drain() == b"early"


def test_clearing_the_receive_fifo_drops_what_is_in_it_and_no_more(port: Port) -> None:
    port.open()
    port.uart.receive(bytes(range(20)))
    port.write(FCR, 0x03)
    assert port.drain() == bytes(range(16, 20))


def test_switching_the_fifos_off_clears_them(port: Port) -> None:
    port.open()
    port.uart.receive(b"abc")
    port.write(FCR, 0x00)
    assert port.read(LSR) == IDLE


def test_clearing_only_the_transmit_fifo_keeps_received_data(port: Port) -> None:
    port.open()
    port.uart.receive(b"abc")
    port.write(FCR, 0x05)
    assert port.drain() == b"abc"


def test_break_from_the_host_is_a_zero_byte_with_its_bits_until_lsr_is_read(port: Port) -> None:
    port.open(ier=RLSI)
    port.uart.send_break()
    assert port.line.level
    assert port.cause() == LINE_STATUS
    assert port.read(LSR) == IDLE | DR | BI | FE | FIFO_ERROR
    assert not port.line.level
    assert port.read(LSR) == IDLE | DR
    assert port.read(DATA) == 0


def test_break_behind_other_bytes_is_reported_when_it_is_next(port: Port) -> None:
    port.open()
    port.uart.receive(b"x")
    port.uart.send_break()
    assert port.read(LSR) == IDLE | DR | FIFO_ERROR
    assert port.read(DATA) == 0x78
    assert port.read(LSR) == IDLE | DR | BI | FE | FIFO_ERROR
    assert port.read(LSR) == IDLE | DR


def test_without_fifos_the_fifo_error_bit_stays_zero(port: Port) -> None:
    port.open(fcr=0x00)
    port.uart.send_break()
    assert port.read(LSR) == IDLE | DR | BI | FE


def test_interrupts_are_identified_in_the_order_of_the_datasheet(port: Port) -> None:
    port.open(ier=RDI | THRI | RLSI | MSI)
    port.write(MCR, LOOP)
    port.write(MCR, DTR | RTS | OUT2)  # the modem lines have changed twice
    port.uart.send_break()
    assert port.cause() == LINE_STATUS
    port.read(LSR)
    assert port.cause() == DATA_READY
    port.read(DATA)
    assert port.cause() == THRE
    assert port.cause() == MODEM
    port.read(MSR)
    assert port.cause() == NONE
    assert not port.line.level


# Modem lines and loopback


def test_out2_connects_the_interrupt(port: Port) -> None:
    port.open(ier=RDI, mcr=RTS)
    port.uart.receive(b"x")
    assert port.cause() == DATA_READY
    assert not port.line.level
    port.write(MCR, RTS | OUT2)
    assert port.line.level
    port.write(MCR, RTS | OUT2 | LOOP)
    assert not port.line.level, "loopback disconnects the outputs"


@pytest.mark.parametrize(("output", "status"), [(RTS, 0x10), (DTR, 0x20), (OUT1, 0x40), (OUT2, 0x80), (0x0A, 0x90)])
def test_loopback_turns_modem_outputs_into_inputs(port: Port, output: int, status: int) -> None:
    port.write(MCR, LOOP | output)
    assert port.read(MSR) & 0xF0 == status
    port.write(MCR, output)
    assert port.read(MSR) & 0xF0 == 0xB0


def test_delta_bits_report_changes_until_read(port: Port) -> None:
    port.write(MCR, LOOP | 0x0F)
    assert port.read(MSR) == 0xF0  # ringing has begun, which is not reported
    port.write(MCR, LOOP)
    assert port.read(MSR) == 0x0F
    assert port.read(MSR) == 0x00
    port.write(MCR, LOOP | RTS)
    assert port.read(MSR) == 0x11


def test_looped_bytes_come_back_and_do_not_leave(port: Port) -> None:
    port.open(mcr=LOOP)
    for value in b"loop":
        port.write(DATA, value)
    assert port.drain() == b"loop"
    assert port.sent == b""


def test_seventeenth_looped_byte_is_lost_and_reported(port: Port) -> None:
    port.open(mcr=LOOP)
    for value in range(17):
        port.write(DATA, value)
    assert port.read(LSR) == IDLE | DR | OE
    assert port.drain() == bytes(range(16))


def test_without_fifos_the_second_looped_byte_replaces_the_first(port: Port) -> None:
    port.open(fcr=0x00, mcr=LOOP)
    port.write(DATA, 0x41)
    port.write(DATA, 0x42)
    assert port.read(LSR) == IDLE | DR | OE
    assert port.read(DATA) == 0x42


def test_looped_break_is_received_once(port: Port) -> None:
    port.open(mcr=LOOP)
    port.write(LCR, 0x03 | BREAK)
    port.write(DATA, 0x41)
    assert port.read(LSR) == IDLE | DR | BI | FE | FIFO_ERROR
    assert port.read(DATA) == 0
    port.write(LCR, 0x02 | BREAK)  # still the same break
    assert port.read(LSR) == IDLE


def test_loopback_keeps_the_host_out_until_it_ends(port: Port) -> None:
    port.open(mcr=LOOP | RTS)
    port.uart.receive(b"host")
    assert port.read(LSR) == IDLE
    port.write(MCR, RTS)
    assert port.drain() == b"host"


# As Linux probes it


def linux_autoconfig(port: Port) -> str:
    """The decisions of autoconfig() and autoconfig_16550a() in Linux' drivers/tty/serial/8250/8250_port.c."""
    read, write = port.read, port.write
    write(IER, 0)
    nothing = read(IER) & 0x0F
    write(IER, 0x0F)
    everything = read(IER) & 0x0F
    write(IER, 0)
    if (nothing, everything) != (0, 0x0F):
        return "nothing there"
    write(MCR, LOOP | 0x0A)
    looped = read(MSR) & 0xF0
    write(MCR, 0)
    if looped != 0x90:
        return "no loopback"
    write(LCR, 0xBF)
    write(FCR, 0)
    write(LCR, 0)
    write(FCR, 0x01)
    kind = ("8250", "unknown", "16550", "16550A")[read(IIR) >> 6]
    if kind == "8250":
        write(SCR, 0xA5)
        return "16450" if read(SCR) == 0xA5 else "8250"
    return linux_tell_16550a_from_its_kin(port) if kind == "16550A" else kind


def linux_tell_16550a_from_its_kin(port: Port) -> str:
    read, write = port.read, port.write
    for lcr, name in ((0x80, "16650"), (0xBF, "16650V2")):
        write(LCR, lcr)
        if read(IIR) == 0:  # where an enhanced feature register would be
            return name
    write(LCR, 0xE0)
    if read(IIR) & LOOP:
        return "NS16550A with banks"
    identities = []
    for lcr in (0x00, 0x80):
        write(LCR, lcr)
        write(FCR, 0x21)
        identities.append(read(IIR) >> 5)
        write(FCR, 0x01)
    write(LCR, 0)
    if identities == [6, 7]:
        return "16750"
    write(IER, 0x40)
    if read(IER) & 0x40:
        return "XScale"
    return {16: "16550A", 64: "U6_16550A"}.get(linux_fifo_size(port), "odd FIFO")


def linux_fifo_size(port: Port) -> int:
    """As size_fifo() there: overfill the FIFO in loopback, and count."""
    port.write(LCR, 0)
    port.write(FCR, 0x07)
    port.write(MCR, LOOP)
    port.write(LCR, 0x03)
    for value in range(256):
        port.write(DATA, value)
    size = len(port.drain())
    port.write(MCR, 0)
    return size


def test_linux_finds_a_16550a(port: Port) -> None:
    assert linux_autoconfig(port) == "16550A"
    assert port.sent == b""


def test_linux_probe_costs_no_character_of_what_the_host_has_sent_before(port: Port) -> None:
    port.uart.receive(b"typed ahead of the guest")
    linux_autoconfig(port)
    port.write(FCR, 0x07)
    port.read(DATA)
    port.open()
    assert port.drain() == b"typed ahead of the guest"


def test_linux_startup_finds_neither_transmitter_bug(port: Port) -> None:
    port.open()
    for _ in range(2):  # UART_BUG_THRE: enabling the interrupt must raise it each time
        port.write(IER, THRI)
        assert port.cause() == THRE
        port.write(IER, 0)
    port.write(IER, THRI)  # UART_BUG_TXEN
    assert port.read(LSR) & IDLE
    assert port.cause() == THRE
