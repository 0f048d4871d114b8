"""Commands and files in a machine's guest: through its agent, or the shell on its console."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from devices.frozen import replace
from emu.channel import Channel, ChannelState
from emu.console import Console
from emu.errors import EmuError, GuestError
from emu.guest import Result, SerialShell
from emu.job import Job

if TYPE_CHECKING:
    from devices.virtio.console import Console as Ports

__all__ = ["GuestCommands"]

AGENT_S = 5.0                           # for the agent to come after the shell, where its driver is there
FRESH_GUEST_S = 60.0                    # to the shell or the agent, when run() is called without a timeout


class GuestCommands:
    """What a machine offers for work in its guest.

    Args:
        console: the guest's console; it drives the machine.
        ports: the device that the guest's agent talks through; None if the machine has none.
        channel: the channel's state to go on with.
        ready: the guest's shell or agent has answered before.
        shell: whether the guest has a shell at all.
        has_shares: whether there are directories that the guest may have mounted.
        look: has the run under way come back to who waits.

    Attributes:
        console: the guest's console, in pexpect's words.
        channel: commands in the guest, many at once; None if the machine was made without it.
        has_shell: False for a multiboot kernel: there is nothing to run commands in.
    """

    def __init__(
        self,
        console: Console,
        ports: Ports | None,
        channel: ChannelState | None = None,
        ready: bool = False,
        shell: bool = True,
        has_shares: bool = False,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.console = console
        self.has_shell = shell
        self.channel = None if ports is None else Channel(ports, console, channel, has_shares, look)
        self._ports = ports
        self._forget_shell()
        self._is_ready = ready

    def _forget_shell(self) -> None:
        """The guest starts over."""
        self._shell = SerialShell(self.console)
        self._is_ready = False

    def wait_prompt(self, timeout: float | None = 120.0) -> None:
        """Run the guest until a shell answers on its console.

        Args:
            timeout: host seconds, None for ever.

        Raises:
            GuestTimeout, GuestStopped, GuestError: none in time; the guest stopped; its kernel panicked.
            EmuError: the guest has no shell.
        """
        self._check_shell()
        self._shell.wait_prompt(timeout)

    def wait_ready(self, timeout: float | None = 120.0) -> None:
        """Run the guest until commands can be run in it: through its agent, or else the shell on its console.

        Arguments and errors as `wait_prompt`.
        """
        self._check_shell()
        if self._is_ready:
            return
        deadline = None if timeout is None else monotonic() + timeout
        self._shell.wait_prompt(timeout, unless=self._agent_is_there)
        if self._ports is not None and not self._agent_is_there():
            # The agent is started before the shell, and may need a moment more; a guest without its driver has none
            left = AGENT_S if deadline is None else min(AGENT_S, deadline - monotonic())
            assert self.channel is not None
            self.channel.wait(max(left, 0) if self._ports.driver_ready else 0)
        self._is_ready = True

    def _check_shell(self) -> None:
        if not self.has_shell:
            raise EmuError("a multiboot kernel has no shell to run commands in; its serial line is the console")

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | None = None,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
    ) -> Result:
        """Run a command in the guest; through its agent, or in the shell on its console if there is no agent.

        Args:
            command: text for `sh`, or a program and its arguments, passed on as they are. It runs in root's
                directory with a login shell's environment.
            timeout: host seconds; after that the command is ended, by the agent with everything it started, and
                `GuestTimeout` is raised. None: for ever.
            check: raise `GuestError` unless the exit status is 0.
            input: the command's standard input; else that is /dev/null.
            stdout, stderr: called with that output, which is not in the result then: as it comes if the agent is
                there, else at the command's end.

        Raises:
            GuestTimeout, GuestStopped: see above; the guest stopped before the command ended.
            GuestError: the guest's kernel panicked, or `check`.
            ValueError: the command holds a NUL, which no shell can take.
        """
        if not self._is_ready:
            started = monotonic()
            self.wait_ready(timeout if timeout is not None else FRESH_GUEST_S)
            if timeout is not None:
                timeout = max(timeout - (monotonic() - started), 0.001)
        if self.channel is not None and self.channel.alive:
            return self.channel.run(
                command, timeout=timeout, check=check, input=input, stdout=stdout, stderr=stderr
            )
        result = self._shell.run(command, timeout=timeout, check=check, input=input)
        if stdout is not None:
            stdout(result.stdout_bytes)
            result = replace(result, stdout_bytes=b"")
        if stderr is not None:
            stderr(result.stderr_bytes)
            result = replace(result, stderr_bytes=b"")
        return result

    def start_job(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | None = None,
        writes: bool = False,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
        timeout: float | None = None,
    ) -> Job:
        """Start a command and come back at once; arguments, result and errors as `emu.channel.Channel.start`."""
        return self._agent().start(
            command, input=input, writes=writes, stdout=stdout, stderr=stderr, timeout=timeout
        )

    def copy_in(
        self, source: str | os.PathLike[str] | bytes, target: str, *, timeout: float | None = None
    ) -> None:
        """Copy a file or a directory into the guest; arguments and errors as `emu.transfer.copy_in`."""
        from emu.transfer import copy_in

        copy_in(self._agent(), source, target, timeout)

    def copy_out(self, source: str, target: str | os.PathLike[str], *, timeout: float | None = None) -> None:
        """Copy a file or a directory out of the guest; arguments and errors as `emu.transfer.copy_out`."""
        from emu.transfer import copy_out

        copy_out(self._agent(), source, target, timeout)

    def _agent(self) -> Channel:
        """The channel, once the guest's agent is there.

        Raises:
            GuestError: it has none.
            GuestStopped: the guest has stopped.
        """
        self.wait_ready(FRESH_GUEST_S)
        self.console.drive(self._agent_is_there, 0)
        if self.channel is None or not self.channel.alive:
            why = "the machine was made without a channel" if self.channel is None else self.channel.missing()
            raise GuestError(f"the guest's agent is not there: {why}")
        return self.channel

    def _agent_is_there(self) -> bool:
        return self.channel is not None and self.channel.alive

    @property
    def panic(self) -> str | None:
        """The line with which the guest's kernel panicked, None if it has not."""
        return self.console.panics.line
