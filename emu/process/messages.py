"""What a machine's process and its user say to each other; JSON by `emu.snapshot.codec`, bulk bytes beside it.

A request has a number, which its replies carry. Some have several: `Output` and `Shown` as it comes, `Forked` for each
child. The last one is `Done`, `Ran`, or `Failed`. To `Cancel` and `Took`, whose number is 0, there is no reply; a reply
of that number is the process' last words. Times are in milliseconds, None is for ever.
"""

from __future__ import annotations

from devices.frozen import frozen
from emu.stats import ExitStats

__all__ = [
    "AHEAD", "Cancel", "ConsoleExpect", "ConsoleOutput", "ConsoleSend", "CopyIn", "CopyOut", "Describe", "Description",
    "Diagnose", "Diagnosis", "Done", "Failed", "Fork", "Forked", "Isolate", "LogLine", "Make", "Network", "Output",
    "Pause", "Ran", "Reply", "Request", "Resize", "Run", "Save", "Shown", "Stats", "Took", "View", "WaitReady",
    "WaitStopped",
]

AHEAD = 1 << 20                 # bytes that a command or a view may have sent, and its user not dealt with yet


@frozen
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


@frozen
class Make:
    """The first request to a fresh process: make the machine. What of is beside it, as `spawn` has pickled it."""


@frozen
class Cancel:
    """Nobody waits for a request any more: what it runs is killed."""

    request: int


@frozen
class Took:
    """So many more bytes of the output of a command, or of a view, are dealt with."""

    request: int
    size: int


@frozen
class WaitReady:
    """Wait until commands can be run."""

    timeout_ms: int | None


@frozen
class WaitStopped:
    """Wait until the machine has stopped; `Done` says why, or nothing if it still runs."""

    timeout_ms: int | None


@frozen
class CopyIn:
    """Copy a file or directory of the host's into the guest; without a source, what is beside the request."""

    source: str | None
    target: str
    timeout_ms: int | None


@frozen
class CopyOut:
    """Copy a file or directory of the guest's out."""

    source: str
    target: str
    timeout_ms: int | None


@frozen
class Save:
    """Take a snapshot."""

    path: str
    incremental: bool


@frozen
class Network:
    """`emu.fittings.VsockNetwork`."""

    directory: str
    cid: int


@frozen
class Fork:
    """Fork the process: a `Forked` for each child, with its socket and its pidfd.

    Attributes:
        vsock: the path of a socket file for each child, or its network, if its machine is to have one.
    """

    count: int
    vsock: tuple[str | Network, ...]


@frozen
class Stats:
    """`Machine.stats`."""


@frozen
class Describe:
    """Ask for a `Description`."""


@frozen
class Isolate:
    """Take the machine out of its network of sockets, or put it back."""

    isolated: bool


@frozen
class Diagnose:
    """Ask for a `Diagnosis`."""


@frozen
class ConsoleSend:
    """Type what is beside this."""


@frozen
class ConsoleExpect:
    """Wait until the console's output matches a regular expression; `Done` has the text up to the match's end."""

    pattern: str
    timeout_ms: int


@frozen
class ConsoleOutput:
    """The console's last output, beside the reply."""


@frozen
class View:
    """Show the console as it comes, by `Shown`; `Done` says why the machine has stopped."""


@frozen
class Resize:
    """The console has so many characters."""

    columns: int
    rows: int


@frozen
class Pause:
    """Let the guest stand, or go on."""

    is_paused: bool


@frozen
class Request:
    """From the user."""

    number: int
    body: (
        Make | Run | Cancel | Took | WaitReady | WaitStopped | CopyIn | CopyOut | Save | Fork | Stats | Describe
        | Diagnose | Isolate | ConsoleSend | ConsoleExpect | ConsoleOutput | View | Resize | Pause
    )


@frozen
class Output:
    """What a command wrote is beside this: 1 is stdout, 2 stderr."""

    stream: int


@frozen
class Shown:
    """What the guest wrote to its console is beside this.

    Attributes:
        position: how much there was before it, some of which may not have been shown; in bytes.
    """

    position: int


@frozen
class Ran:
    """A command's exit status."""

    status: int


@frozen
class Forked:
    """A child; a socket to it and its pidfd come along."""

    pid: int


@frozen
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


@frozen
class LogLine:
    """What a part of the machine had to tell, so long ago."""

    age_ms: int
    text: str


@frozen
class Diagnosis:
    """Where a machine stands, as can be seen from outside of its guest.

    Attributes:
        stopped: why it has stopped; nothing if it runs.
        panic: the line with which its kernel panicked.
        agent: why the guest's agent is not there; nothing if it is.
        sockets: why nobody can connect to its guest by vsock; nothing if one can.
        log: the end of it.
    """

    stopped: str
    panic: str
    agent: str
    sockets: str
    log: tuple[LogLine, ...]


@frozen
class Done:
    """A request was done.

    Attributes:
        value: what was asked for.
    """

    value: str | ExitStats | Description | Diagnosis | None = None


@frozen
class Failed:
    """A request failed.

    Attributes:
        kind: the name of the exception's class.
        message: its text.
    """

    kind: str
    message: str


@frozen
class Reply:
    """From the machine's process."""

    number: int
    body: Output | Shown | Ran | Forked | Done | Failed
