"""Commands in a guest over nothing but its serial console: any POSIX shell that shows a prompt there.

`emu.shell_protocol` has what is said; here is who says it when, and what happens when it goes wrong.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Sequence
from time import monotonic

from devices.frozen import frozen
from emu.console import Console
from emu.errors import GuestError, GuestStopped, GuestTimeout
from emu.job import shown
from emu.shell_protocol import LINE_BYTES, Damaged, Probe, Reply, function_text, parse_reply, request_line, status_of

__all__ = ["Result", "SerialShell"]

ATTEMPTS = 5                    # at an undamaged transfer
PAUSE_S = 0.05                  # before the second attempt, doubled for each further: the kernel may have more to say
WINDOW_BYTES = 16 * 1024        # sent at a time, before packing: Linux buffers 64 KiB of a terminal's input
SETTLE_S = 0.005                # without output after what looks like a prompt, before it is believed to be one
SILENCE_S = 1.0                 # without output, before asking a console whose prompt we do not know
FIRST_SILENCE_S = 10.0          # before the first output: a kernel told to be quiet says nothing until its shell does
SILENCE_LIMIT_S = 8.0
CANCEL_S = 2.0                  # for a command to end after each key that should end it
REPLY_SILENCE_S = 10.0          # in the middle of a reply, before it is asked for again
FRESH_SHELL_S = 60.0            # to the prompt, when run() is called without a timeout

CURSOR_QUERY, CURSOR_ANSWER = b"\x1b[6n", b"\x1b[1;1R"    # DSR and CPR (ECMA-48 8.3.35, 8.3.14)
NO_KEY = b"\x05"                # Ctrl-E, end of line: does nothing at the end of a line
INTERRUPT, SUSPEND = b"\x03", b"\x1a"


@frozen
class Result:
    """What a command in the guest did.

    `status` is its exit status, 128 + n if signal n ended it. `stdout` and `stderr` are UTF-8; bytes that are
    not survive as surrogate escapes, and the raw output is in `stdout_bytes` and `stderr_bytes`. `read_s` is how
    many seconds reading the output took after the command's end.
    """

    status: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    read_s: float = 0.0

    def __eq__(self, other: object) -> bool:
        """However long the reading took."""
        return isinstance(other, Result) and self._said() == other._said()

    def __hash__(self) -> int:
        return hash(self._said())

    def _said(self) -> tuple[int, bytes, bytes]:
        return self.status, self.stdout_bytes, self.stderr_bytes

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode("utf-8", "surrogateescape")

    def check(self, command: bytes) -> None:
        """Raise `GuestError`, which quotes the command and the last line of stderr, unless the status is 0."""
        if self.status:
            last = (self.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise GuestError(f"{shown(command)} ended with status {self.status}: {last}")


class _ShellLost(Exception):
    """The shell does not know the function (any more): another shell, or /tmp was emptied."""


class SerialShell:
    """Runs commands through the shell on a console.

    Args:
        console: where the shell is, or will be.
    """

    def __init__(self, console: Console) -> None:
        self._token = os.urandom(4).hex()
        self._console = console
        self._function = "_" + self._token[:3]      # short: a line editor's echo is slow
        self._directory = f"/tmp/.emu-{self._token}"
        self._number = 0
        self._shell_there = False
        self._installed = False
        self._asks_cursor = False
        self._reply_began = 0.0
        self._deadline: float | None = None

    # Is a shell there?

    def wait_prompt(
        self, timeout: float | None = FRESH_SHELL_S, unless: Callable[[], bool] = lambda: False
    ) -> None:
        """Run the guest until a shell answers on its console, whatever its prompt looks like.

        Args:
            timeout: host seconds, None for ever.
            unless: when this holds, come back without having found one.

        Raises:
            GuestTimeout, GuestStopped, GuestError: in time no shell; the guest stopped; its kernel panicked.
        """
        self._deadline = None if timeout is None else monotonic() + timeout
        self._number += 1
        probe = Probe(self._number, self._console)
        self._console.tap = probe.tap
        silence, asked = SILENCE_S if self._console.recent(1) else FIRST_SILENCE_S, False
        try:
            while not (probe.answered or unless()):
                probe.fresh = False
                wait_s = SETTLE_S if probe.at_prompt() and not asked else silence
                if self._drive(lambda: probe.fresh or unless(), wait_s):
                    silence = silence if asked else SILENCE_S
                    continue
                # No quotes in it: a line whose start was lost must not leave the shell inside a string.
                self._type(("\n" if asked else "") + rf" printf \\036p%s\\036 {self._number}" + "\n")
                silence = min(2 * silence, SILENCE_LIMIT_S) if asked else silence
                asked = True
        finally:
            self._console.tap = None
        self._shell_there = probe.answered

    # Commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | None = None,
    ) -> Result:
        """Run a command in the guest's shell and wait for its end.

        Args:
            command: text for `sh`, or a program and its arguments, passed on as they are. It runs in a shell of
                its own, in the console shell's directory and environment.
            timeout: host seconds; after that the command gets Ctrl-C and `GuestTimeout` is raised. None: for ever.
            check: raise `GuestError` unless the exit status is 0.
            input: the command's standard input; else that is /dev/null.

        Raises:
            GuestTimeout, GuestStopped: see above; the guest stopped before the command ended.
            GuestError: the guest's kernel panicked, or `check`.
            ValueError: the command holds a NUL, which no shell can take.
        """
        text = (command if isinstance(command, str) else shlex.join(command)).encode("utf-8", "surrogateescape")
        if b"\0" in text:
            raise ValueError("a command cannot hold a NUL byte")
        deadline = None if timeout is None else monotonic() + timeout
        if not self._shell_there:
            self.wait_prompt(timeout if timeout is not None else FRESH_SHELL_S)
        self._deadline = deadline
        try:
            result = self._run(text, input)
        except GuestTimeout as error:
            raise GuestTimeout(f"{shown(text)} did not end within {timeout:g} s{self._cancel()}") from error
        except BaseException:
            self._shell_there = False
            raise
        if check:
            result.check(text)
        return result

    def _run(self, text: bytes, input: bytes | None) -> Result:
        watchdog = "" if self._deadline is None else str(max(math.ceil(self._deadline - monotonic()), 1) + 1)
        if input is None and (line := request_line(text)) is not None:
            asked = f"{line} {watchdog}"
        else:
            self._load("c", text)
            if input is not None:
                self._load("i", input)
            asked = f"{'f' if input is None else 'i'} - {watchdog}"
        files: dict[str, bytes] = {}
        reply = self._ask(asked)
        ended = self._reply_began
        for attempt in range(ATTEMPTS):
            try:
                status = parse_reply(reply, files)
                return Result(status, files["o"], files["e"], monotonic() - ended)
            except Damaged as damage:
                self._pause(attempt)
                reply = self._ask(f"a '{damage.files}'")
        raise GuestError(f"the output of {shown(text)} came damaged {ATTEMPTS} times over the serial console")

    def _load(self, name: str, data: bytes) -> None:
        """Write a file of our directory in the guest."""
        from base64 import b64encode  # guests with our agent need neither
        from gzip import compress

        for attempt in range(ATTEMPTS):
            for start in range(0, max(len(data), 1), WINDOW_BYTES):
                packed = b64encode(compress(data[start:start + WINDOW_BYTES], 1, mtime=0))
                lines = [packed[i:i + LINE_BYTES] for i in range(0, len(packed), LINE_BYTES)]
                how = "l" if start else "n"
                content = self._ask(f"{how} {name} {len(lines)}", b"".join(line + b"\n" for line in lines))
                if not _succeeded(content):
                    break
            else:
                return
            self._pause(attempt)
        raise GuestError(f"{len(data)} bytes came damaged to the guest {ATTEMPTS} times over the serial console")

    def _pause(self, attempt: int) -> None:
        """Let what speaks on the line between come to its end."""
        self._drive(lambda: False, PAUSE_S * 2**attempt)

    def _ask(self, request: str, data: bytes | None = None) -> bytes:
        """Call the function in the guest, defining it first if need be; the reply's content, unchecked."""
        for _ in range(2):
            try:
                if not self._installed:
                    self._install()
                return self._exchange(request, data)
            except _ShellLost:
                self._installed = self._asks_cursor = False
                self._console.send(b"\n")   # a shell that does not edit lines took NO_KEY as part of one
        raise GuestError(f"the guest's shell cannot run commands: {self._console.tail()}")

    def _install(self) -> None:
        """Define the function; through `head`, since a line editor would look at each character."""
        text = function_text(self._function, self._directory, self._token)
        number = self._next()
        last = rf"printf '\036z%s\036' {number}"
        lines = f"{text}\n{last}\n"
        ask = rf"printf \\036g%s\\036 {number};eval " + f'"$(head -n {lines.count(chr(10))})"\n'
        self._transfer(Reply(number, self._function, "g", self._console), ask, lines)
        self._installed = True

    def _next(self) -> str:
        """A number for a reply that no earlier reply, and no output, has."""
        self._number += 1
        return f"{self._number}.{self._token}"

    def _exchange(self, request: str, data: bytes | None) -> bytes:
        number = self._next()
        reply = Reply(number, self._function, "b" if data is None else "g", self._console)
        line = f"{self._function} {self._number} {request}\n"
        return self._transfer(reply, line, None if data is None else data.decode())

    def _transfer(self, reply: Reply, line: str, lines: str | None) -> bytes:
        """Type a line, and more lines once the reply begins; wait for the reply's end."""
        self._console.discard()
        self._console.tap = reply.tap
        try:
            self._type(line, ahead=lines is None)
            self._drive(lambda: reply.begun or reply.done or reply.lost, None)
            self._reply_began = monotonic()
            if reply.lost:
                raise _ShellLost
            if lines is not None:
                self._type(lines)
            length = -1
            while not reply.done and length != len(reply.content):  # a reply that dries up has lost its end mark
                length = len(reply.content)
                self._drive(lambda: reply.done, REPLY_SILENCE_S)
        finally:
            self._console.tap = None
        return bytes(reply.content.partition(reply.answer)[2])

    def _type(self, lines: str, ahead: bool = True) -> None:
        """Type lines at the shell, without the 20 ms that busybox waits when it asked where the cursor is.

        It asks unless a key has been typed already, and waits at Enter unless it got an answer.
        """
        recent = self._console.recent(len(CURSOR_QUERY))
        self._asks_cursor = self._asks_cursor or recent == CURSOR_QUERY
        answer = CURSOR_ANSWER if recent == CURSOR_QUERY else b""
        self._console.send(answer + lines.encode() + (NO_KEY if ahead and self._asks_cursor else b""))

    def _drive(self, until: Callable[[], bool], timeout: float | None) -> bool:
        """Drive the guest for `timeout` at most; raises if it panics or the whole call's time is up."""
        panics = self._console.panics
        left = None if self._deadline is None else max(self._deadline - monotonic(), 0)
        limit = min((t for t in (timeout, left) if t is not None), default=None)
        try:
            happened = self._console.drive(lambda: until() or panics.line is not None, limit)
        except GuestStopped:
            if panics.line is None:
                raise
            happened = True
        if panics.line is not None:
            raise GuestError(panics.line)
        if not happened and limit == left:
            raise GuestTimeout(f"no shell answered in time; the console ends in {self._console.tail()}")
        return happened

    # Timeouts

    def _cancel(self) -> str:
        """End the command that runs; what to add to the message if that did not work."""
        self._shell_there = False
        for key in (INTERRUPT, INTERRUPT, SUSPEND):
            self._console.send(key)
            try:
                self.wait_prompt(CANCEL_S)
            except GuestTimeout:
                continue
            if key == SUSPEND:
                self._console.send(" kill -9 %%\n")
                self.wait_prompt(CANCEL_S)
            return ""
        return ", nor on Ctrl-C"


def _succeeded(content: bytes) -> bool:
    try:
        return status_of(content)[0] == 0
    except ValueError:
        return False
