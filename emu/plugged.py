"""What is plugged into a machine: virtio devices with what they have of the host's. It outlives the board."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from devices import Clock
from devices.disk import Disk
from devices.frozen import frozen, replace
from devices.p9.saved import P9State
from devices.virtio.blk import BlkState
from devices.virtio.console import Console, ConsoleState
from devices.virtio.device import VirtioDevice
from devices.virtio.rng import Rng, RngState
from devices.virtio.vsock_state import VsockState
from emu.channel import PORTS as CHANNEL_PORTS
from emu.errors import EmuError
from emu.fittings import Fittings, VsockNetwork
from emu.poller import Poller

if TYPE_CHECKING:
    from devices.virtio.vsock import Vsock
    from emu.vsock import Drive, VsockHost

__all__ = ["Plugged", "PluggedState"]

GUEST_CID = 3                           # of vsock; 2 is the host
SYSRQ_KEY = b"\x0f"                     # Linux takes Ctrl-O on hvc0 for SysRq, and two for a Ctrl-O


@frozen
class PluggedState:
    """What a snapshot keeps of the devices.

    Attributes:
        shares, disks: as `Fittings` has them, in that order.
    """

    rng: RngState
    shares: tuple[P9State, ...]
    disks: tuple[BlkState, ...]
    hvc: ConsoleState | None
    ports: ConsoleState | None
    vsock: VsockState | None


class Plugged:
    """The devices, from their fittings.

    Args:
        fittings: what there is.
        poller: watches files of the host.
        drive: runs the machine.
        console: gets what the guest writes on hvc0.
        state: what to go on with.

    Raises:
        EmuError: a directory, image or socket file cannot be used, or is not the one in the state.

    Attributes:
        hvc: the virtio console, None if there is none.
        hvc_speaks: the guest has written to it since it was opened.
        ports: the device for the channel to the guest's agent.
        vsock: the host's side of sockets.
        files: for PV_READ and PV_WRITE.
    """

    def __init__(
        self,
        fittings: Fittings,
        poller: Poller,
        drive: Drive,
        console: Callable[[bytes], None],
        state: PluggedState | None = None,
    ) -> None:
        self._console = console
        self.vsock: VsockHost | None = None
        self._socket_device: Vsock | None = None
        self.hvc_speaks = False
        self.files = fittings.whole_files()
        self._rng = Rng(state=state.rng if state else None)
        self._fitted: list[VirtioDevice] = [self._rng]
        try:
            self._plug(fittings, poller, drive, state)
        except BaseException:
            self.close()
            raise

    def _plug(self, fittings: Fittings, poller: Poller, drive: Drive, state: PluggedState | None) -> None:
        self._shares = fittings.share_devices(state.shares if state else None)
        self._fitted += self._shares
        self._disks = fittings.disk_devices(state.disks if state else None)
        self._fitted += self._disks
        self.hvc = self._make_hvc(state.hvc if state else None) if fittings.hvc else None
        self.ports = Console(CHANNEL_PORTS, state.ports if state else None) if fittings.channel else None
        self._fitted += [device for device in (self.hvc, self.ports) if device]
        self._vsock_state = state.vsock if state and state.vsock else VsockState(GUEST_CID)
        if fittings.vsock is not False:
            from emu.vsock import VsockHost  # 5 ms

            place = fittings.vsock if isinstance(fittings.vsock, VsockNetwork | bool) else Path(fittings.vsock)
            if isinstance(place, VsockNetwork):
                self._vsock_state = replace(self._vsock_state, guest_cid=place.cid)
            self.vsock = VsockHost(poller, drive, None if place is True else place)

    def _make_hvc(self, state: ConsoleState | None) -> Console:
        device = Console(state=state)
        port = device.port(0, is_console=True)
        port.received, port.opened = self._hvc_output, self._hvc_opened
        return device

    def _hvc_output(self, data: bytes) -> None:
        self.hvc_speaks = True
        self._console(data)

    def _hvc_opened(self, _is_open: bool) -> None:
        self.hvc_speaks = False

    @property
    def disks(self) -> list[Disk]:
        """What is behind the disks, in order."""
        return [device.disk for device in self._disks]

    def type_on_hvc(self, data: bytes) -> bool:
        """Send what was typed to hvc0; False if the guest has none."""
        if self.hvc is None or not self.hvc.ports[0].guest_open:
            return False
        self.hvc.ports[0].send(data.replace(SYSRQ_KEY, 2 * SYSRQ_KEY))
        return True

    def devices(self, clock: Clock) -> list[VirtioDevice]:
        """All of them for a new board, in the order of their slots.

        Args:
            clock: of the board.
        """
        if self.vsock is None:
            return self._fitted
        if self._socket_device:
            self._socket_device.close()
        self._socket_device = self.vsock.device(clock, self._vsock_state)
        self._vsock_state = VsockState(self._vsock_state.guest_cid)
        return [*self._fitted, self._socket_device]

    def save(self) -> PluggedState:
        """The state to go on with."""
        return PluggedState(
            self._rng.save(),
            tuple(device.save() for device in self._shares),
            tuple(device.save() for device in self._disks),
            self.hvc.save() if self.hvc else None,
            self.ports.save() if self.ports else None,
            self._socket_device.save() if self._socket_device else None,
        )

    def resumed(self) -> None:
        """The machine is whole again after a restore: connections that were open are gone."""
        if self._socket_device:
            self._socket_device.transport_reset()

    def prepare_fork(self) -> None:
        """Let the disks be such that a copy of this process can go on with them.

        Raises:
            EmuError: one cannot.
        """
        try:
            for disk in self._disks:
                disk.prepare_fork()
        except ValueError as error:
            raise EmuError(str(error)) from None

    def forked(self, vsock: Path | VsockNetwork | None) -> None:
        """This process is a copy of the one that had the devices: share nothing with that which either can change.

        Args:
            vsock: a socket file of its own, or its network.

        Raises:
            EmuError: the host has no room for what is needed.
        """
        try:
            for share in self._shares:
                share.forked()
            for disk in self._disks:
                disk.forked()
        except ValueError as error:
            raise EmuError(str(error)) from None
        if self._socket_device:
            self._socket_device.transport_reset(vsock.cid if isinstance(vsock, VsockNetwork) else None)
            self._vsock_state = VsockState(self._socket_device.guest_cid)
        if self.vsock:
            self.vsock.forked(vsock)

    def close(self) -> None:
        """Give back what the devices have of the host's."""
        for device in self._fitted:
            device.close()
        if self._socket_device:
            self._socket_device.close()
        if self.vsock:
            self.vsock.close()
        if self.files:
            self.files.close()
