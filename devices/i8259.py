"""8259A programmable interrupt controller (Intel 8259A datasheet, order number 231468), and the PC's pair.

The edge/level control registers at 0x4D0 are the PIIX's (Intel 82371AB datasheet, section 4.2.5).
The 8080 interrupt sequence (ICW4 bit 0 clear) is not modelled: no x86 processor understands its CALL.
"""

from __future__ import annotations

from devices import IrqLine, PortRanges
from devices.frozen import field_types, frozen

__all__ = ["I8259", "POWER_ON", "I8259State", "PicPair", "PicPairState"]

COMMAND, DATA, EDGE_LEVEL = range(3)    # registers of a chip; the last is the chipset's

ICW1 = 0x10             # command bit 4: starts the initialisation
ICW1_IC4 = 0x01         # ICW4 follows
ICW1_SNGL = 0x02        # no cascade, no ICW3
ICW1_LTIM = 0x08        # all inputs level triggered
ICW2_VECTOR = 0xF8
ICW4_AEOI = 0x02
ICW4_MASTER = 0x04      # only counts in buffered mode; otherwise the SP pin tells
ICW4_BUFFERED = 0x08
ICW4_SFNM = 0x10        # special fully nested mode

OCW3 = 0x08             # command bit 3 with bit 4 clear; otherwise OCW2
OCW2_ROTATE, OCW2_SPECIFIC, OCW2_EOI = 0x80, 0x40, 0x20
OCW2_ACTION = OCW2_ROTATE | OCW2_SPECIFIC | OCW2_EOI
OCW3_ESMM, OCW3_SMM = 0x40, 0x20
OCW3_POLL = 0x04
OCW3_RR, OCW3_RIS = 0x02, 0x01

POLL_REQUEST = 0x80     # in the byte a poll reads: there was a request
CASCADE = 2             # the master's input that the slave drives
SPURIOUS = 7            # what a chip answers when the request has gone
SLAVE_ID_AT_RESET = 7
FLOATING_BUS = 0xFF     # the vector when no chip answers the second INTA

READY = 0               # `expected`: no initialisation under way, else the number of the next ICW

# The chipset keeps the timer, keyboard, cascade, clock and coprocessor inputs edge triggered.
MASTER_ELCR, SLAVE_ELCR = 0xF8, 0xDE

# Offsets from port 0x20 of the pair's registers.
MASTER_PORTS, SLAVE_PORTS = (0x00, 0x01, 0x4B0), (0x80, 0x81, 0x4B1)


@frozen
class I8259State:
    """What a snapshot keeps of one chip; bit n of a mask is input IRn."""

    lines: int = 0              # levels of the inputs
    latched: int = 0            # rising edges seen and not acknowledged, while the input stays high
    in_service: int = 0
    # The datasheet leaves the chip undefined before ICW1; firmware hands it over masked, and so do we.
    mask: int = 0xFF
    elcr: int = 0
    lowest: int = 7             # the input of lowest priority; the one above it is the highest
    expected: int = READY
    icw1: int = ICW1_IC4
    vector_base: int = 0
    icw3: int = 0               # master: inputs with slaves; slave: its number
    icw4: int = 0x01
    rotate_on_aeoi: bool = False
    special_mask: bool = False
    read_in_service: bool = False
    poll: bool = False


@frozen
class PicPairState:
    """What a snapshot keeps of both chips."""

    master: I8259State
    slave: I8259State


POWER_ON = PicPairState(I8259State(icw3=1 << CASCADE), I8259State(icw3=CASCADE))


class _Input:
    """An interrupt request input of a chip, as the wire that drives it."""

    __slots__ = ("_bit", "_chip")

    def __init__(self, chip: I8259, number: int) -> None:
        self._chip = chip
        self._bit = 1 << number

    def set(self, level: bool) -> None:
        self._chip.drive(self._bit, level)


class I8259:
    """One controller: eight inputs, one output.

    An input's request is there only while the input is high, as on the real chip: a pulse that ends before the
    acknowledge cycle is lost (or gives the spurious IR7), so a device holds its line until it is served.

    Args:
        output: the INT pin.
        state: the registers to start with.
        master: the SP pin: True for a master or a lone chip.
        elcr_mask: inputs that the chipset lets be made level triggered one by one.
    """

    lines: int
    latched: int
    in_service: int
    mask: int
    elcr: int
    lowest: int
    expected: int
    icw1: int
    vector_base: int
    icw3: int
    icw4: int
    rotate_on_aeoi: bool
    special_mask: bool
    read_in_service: bool
    poll: bool

    def __init__(self, output: IrqLine, state: I8259State, *, master: bool = True, elcr_mask: int = 0xFF) -> None:
        vars(self).update(vars(state))
        self.requesting = False             # the INT pin
        self._output = output
        self._master_pin = master
        self._elcr_mask = elcr_mask
        self._inputs = tuple(_Input(self, number) for number in range(8))
        self._update()

    def save(self) -> I8259State:
        """The registers and the levels of the inputs."""
        return I8259State(**{name: getattr(self, name) for name in field_types(I8259State)})

    def line(self, number: int) -> IrqLine:
        """The wire into input IR`number` (0..7)."""
        return self._inputs[number]

    def drive(self, bit: int, level: bool) -> None:
        """Set the level of the input whose mask is `bit`."""
        if bool(self.lines & bit) == level:
            return
        self.lines ^= bit
        if level:
            self.latched |= bit
        else:
            self.latched &= ~bit
        if level != self.requesting:        # a rising line only adds a request, a falling one only takes it away
            self._update()

    @property
    def requests(self) -> int:
        """The interrupt request register (IRR), masked inputs included."""
        level_triggered = 0xFF if self.icw1 & ICW1_LTIM else self.elcr
        return self.latched | self.lines & level_triggered

    @property
    def is_master(self) -> bool:
        """The chip's role in a cascade: ICW4's in buffered mode, otherwise the SP pin's."""
        return bool(self.icw4 & ICW4_MASTER) if self.icw4 & ICW4_BUFFERED else self._master_pin

    @property
    def cascade_inputs(self) -> int:
        """Mask of the inputs at which a slave gives the vector, 0 for a slave or a lone chip."""
        return self.icw3 if self.is_master and not self.icw1 & ICW1_SNGL else 0

    def acknowledge(self) -> int:
        """The first INTA pulse: the input now in service (0..7); 7, not in service, when the request has gone."""
        number = self._winner()
        if number is None:
            return SPURIOUS
        bit = 1 << number
        self.latched &= ~bit
        if not self.icw4 & ICW4_AEOI:
            self.in_service |= bit
        elif self.rotate_on_aeoi:
            self.lowest = number
        # INT falls with every acknowledge: the master, edge triggered, has to see a slave's next request.
        self._drive_output(False)
        self._update()
        return number

    def read(self, register: int) -> int:
        """Read COMMAND (IRR or ISR), DATA (mask) or EDGE_LEVEL; after a poll command, the first two do the poll."""
        if register == EDGE_LEVEL:
            return self.elcr
        if self.poll:
            self.poll = False
            return POLL_REQUEST | self.acknowledge() if self.requesting else 0
        if register == DATA:
            return self.mask
        return self.in_service if self.read_in_service else self.requests

    def write(self, register: int, value: int) -> None:
        """Write COMMAND (ICW1, OCW2, OCW3), DATA (ICW2-4, OCW1) or EDGE_LEVEL."""
        if register == EDGE_LEVEL:
            self.elcr = value & self._elcr_mask
        elif register == DATA:
            self._write_data(value)
        elif value & ICW1:
            self._initialise(value)
        elif value & OCW3:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value)
        self._update()

    def _initialise(self, icw1: int) -> None:
        """ICW1: forget requests and services, clear the mask, default priorities and modes."""
        self.icw1 = icw1
        self.expected = 2
        self.latched = self.in_service = self.mask = 0
        self.lowest = 7
        self.icw3 = 0 if self._master_pin else SLAVE_ID_AT_RESET
        self.icw4 = 0
        self.rotate_on_aeoi = self.special_mask = self.read_in_service = self.poll = False

    def _write_data(self, value: int) -> None:
        if self.expected == READY:
            self.mask = value
        elif self.expected == 2:
            self.vector_base = value & ICW2_VECTOR
            self.expected = 3 if not self.icw1 & ICW1_SNGL else self._after_icw3()
        elif self.expected == 3:
            self.icw3 = value
            self.expected = self._after_icw3()
        else:
            self.icw4 = value
            self.expected = READY

    def _after_icw3(self) -> int:
        return 4 if self.icw1 & ICW1_IC4 else READY

    def _write_ocw3(self, value: int) -> None:
        if value & OCW3_ESMM:
            self.special_mask = bool(value & OCW3_SMM)
        if value & OCW3_RR:
            self.read_in_service = bool(value & OCW3_RIS)
        self.poll = bool(value & OCW3_POLL)

    def _write_ocw2(self, value: int) -> None:
        action = value & OCW2_ACTION
        if action in (0, OCW2_ROTATE):
            self.rotate_on_aeoi = bool(action)
            return
        number = value & 7 if action & OCW2_SPECIFIC else self._highest(self._unmasked_in_service())
        if number is None:
            return
        if action & OCW2_EOI:
            self.in_service &= ~(1 << number)
        if action & OCW2_ROTATE:
            self.lowest = number

    def _unmasked_in_service(self) -> int:
        """The services that block others and that a non-specific EOI ends: in special mask mode not masked ones."""
        return self.in_service & ~self.mask if self.special_mask else self.in_service

    def _rank(self, inputs: int) -> int:
        """Priority of the foremost of `inputs`: 0 the highest, 8 when there are none."""
        first = self.lowest + 1
        rotated = (inputs >> first | inputs << 8 - first) & 0xFF | 0x100
        return (rotated & -rotated).bit_length() - 1

    def _highest(self, inputs: int) -> int | None:
        rank = self._rank(inputs)
        return None if rank == 8 else (rank + self.lowest + 1) & 7

    def _winner(self) -> int | None:
        """The input whose request the INT pin announces."""
        requests = self.requests & ~self.mask
        if not requests or self.expected != READY:
            return None
        serving = self._rank(self._unmasked_in_service())
        rank = self._rank(requests)
        number = (rank + self.lowest + 1) & 7
        if rank < serving:
            return number
        # Special fully nested: a slave in service may interrupt again, with something more urgent of its own.
        again = rank == serving and self.icw4 & ICW4_SFNM and self.cascade_inputs >> number & 1
        return number if again else None

    def _update(self) -> None:
        self._drive_output(self._winner() is not None)

    def _drive_output(self, level: bool) -> None:
        if level != self.requesting:
            self.requesting = level
            self._output.set(level)


class PicPair:
    """The PC's interrupt controllers: a master, and a slave on its IR2; sixteen lines, one INTR.

    Args:
        output: the processor's INTR pin.
        state: both chips' registers to start with.
    """

    ports: PortRanges = ((0x20, 2), (0xA0, 2), (0x4D0, 2))

    def __init__(self, output: IrqLine, state: PicPairState = POWER_ON) -> None:
        self._master = I8259(output, state.master, master=True, elcr_mask=MASTER_ELCR)
        self._slave = I8259(self._master.line(CASCADE), state.slave, master=False, elcr_mask=SLAVE_ELCR)
        self._decode = {
            offset: (chip, register)
            for chip, offsets in ((self._master, MASTER_PORTS), (self._slave, SLAVE_PORTS))
            for register, offset in enumerate(offsets)
        }

    def line(self, number: int) -> IrqLine:
        """The wire of IRQ `number`: 0..15 but 2, which is the cascade.

        Raises:
            ValueError: there is no such line.
        """
        if number == CASCADE or not 0 <= number <= 15:
            raise ValueError(f"IRQ {number} is not a line of the interrupt controllers")
        return self._slave.line(number - 8) if number >= 8 else self._master.line(number)

    @property
    def pending(self) -> bool:
        """The level of INTR."""
        return self._master.requesting

    def acknowledge(self) -> int:
        """The two INTA cycles: the vector (0..255) of the interrupt now in service.

        When the request went away since, it is the vector of IR7, with nothing put in service; when nobody
        answers the master's cascade address, the bus floats.
        """
        master, slave = self._master, self._slave
        number = master.acknowledge()
        if not master.cascade_inputs >> number & 1:
            return master.vector_base | number
        if slave.is_master or slave.icw3 & 7 != number:
            return FLOATING_BUS
        return slave.vector_base | slave.acknowledge()

    def read(self, offset: int) -> int:
        """Read a register of either chip; `offset` counts from port 0x20."""
        chip, register = self._decode[offset]
        return chip.read(register)

    def write(self, offset: int, value: int) -> None:
        """Write a register of either chip; `offset` counts from port 0x20."""
        chip, register = self._decode[offset]
        chip.write(register, value)

    def save(self) -> PicPairState:
        """Both chips' registers."""
        return PicPairState(self._master.save(), self._slave.save())
