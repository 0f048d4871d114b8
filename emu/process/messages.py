"""What a machine's process and its user say to each other; JSON by `emu.snapshot.codec`, bulk bytes beside it.

A request has a number, which its replies carry. Some have several: `Output` as it comes, `Forked` for each child. The
last one is `Done`, `Ran`, or `Failed`. Times are in milliseconds, None is for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.stats import ExitStats

__all__ = [
    "Cancel", "ConsoleExpect", "ConsoleOutput", "ConsoleSend", "CopyIn", "CopyOut", "Describe", "Description", "Done",
    "Failed", "Fork", "Forked", "Make", "Output", "Ran", "Reply", "Request", "Run", "Save", "Stats", "WaitReady",
    "WaitStopped",
]


@dataclass(frozen=True)
class Run:
    """Run a command; its input is beside it.

    Attributes:
        command: text for `sh`, or a program and its arguments.
        has_input: there is one; else it is /dev/null.
        most_output: bytes of both together above which the command is killed.
    """

    command: str | tuple[str, ...]
    timeout_ms: int | None
    has_input: bool
    most_output: int | None


@dataclass(frozen=True)
class Make:
    """The first request to a fresh process: make the machine. What of is beside it, as `spawn` has pickled it."""


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for a request any more: what it runs is killed. There is no reply."""

    request: int


@dataclass(frozen=True)
class WaitReady:
    """Wait until commands can be run."""

    timeout_ms: int | None


@dataclass(frozen=True)
class WaitStopped:
    """Wait until the machine has stopped; `Done` says why, or nothing if it still runs."""

    timeout_ms: int | None


@dataclass(frozen=True)
class CopyIn:
    """Copy a file or directory of the host's into the guest; without a source, what is beside the request."""

    source: str | None
    target: str
    timeout_ms: int | None


@dataclass(frozen=True)
class CopyOut:
    """Copy a file or directory of the guest's out."""

    source: str
    target: str
    timeout_ms: int | None


@dataclass(frozen=True)
class Save:
    """Take a snapshot."""

    path: str
    incremental: bool


@dataclass(frozen=True)
class Fork:
    """Fork the process: a `Forked` for each child, with its socket and its pidfd.

    Attributes:
        vsock: the path of a socket file for each child, if its machine is to have one.
    """

    count: int
    vsock: tuple[str, ...]


@dataclass(frozen=True)
class Stats:
    """`Machine.stats`."""


@dataclass(frozen=True)
class Describe:
    """Ask for a `Description`."""


@dataclass(frozen=True)
class ConsoleSend:
    """Type what is beside this."""


@dataclass(frozen=True)
class ConsoleExpect:
    """Wait until the console's output matches a regular expression; `Done` has the text up to the match's end."""

    pattern: str
    timeout_ms: int


@dataclass(frozen=True)
class ConsoleOutput:
    """The console's last output, beside the reply."""


@dataclass(frozen=True)
class Request:
    """From the user."""

    number: int
    body: (
        Make | Run | Cancel | WaitReady | WaitStopped | CopyIn | CopyOut | Save | Fork | Stats | Describe | ConsoleSend
        | ConsoleExpect | ConsoleOutput
    )


@dataclass(frozen=True)
class Output:
    """What a command wrote is beside this: 1 is stdout, 2 stderr."""

    stream: int


@dataclass(frozen=True)
class Ran:
    """A command's exit status."""

    status: int


@dataclass(frozen=True)
class Forked:
    """A child; a socket to it and its pidfd come along."""

    pid: int


@dataclass(frozen=True)
class Description:
    """What the user has to know of the machine.

    Attributes:
        memory: bytes of RAM.
        vsock: the path of its socket file.
        since_ns: host monotonic time from which its guest has run in this process.
    """

    memory: int
    vsock: str | None
    since_ns: int


@dataclass(frozen=True)
class Done:
    """A request was done.

    Attributes:
        value: what was asked for.
    """

    value: str | ExitStats | Description | None = None


@dataclass(frozen=True)
class Failed:
    """A request failed.

    Attributes:
        kind: the name of the exception's class.
        message: its text.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class Reply:
    """From the machine's process."""

    number: int
    body: Output | Ran | Forked | Done | Failed
