"""Commands in a guest over nothing but its serial console: any POSIX shell that shows a prompt there.

The protocol, one line each way for a short command:

* A shell function is typed once. It runs a command with its output going to files under /tmp, then prints a
  reply: exit status, and each file that is not empty as a gzip stream. That takes one process of the guest's a
  file, carries binary output (a terminal alters nothing but line ends, which is undone), and has a checksum: so
  the kernel's messages on the same line are noticed, and what they damaged is asked for again.
* Every reply begins and ends with marks made by `printf '\\036...'`: the terminal's echo of the command can
  never be taken for one. Marks carry a number, so that a late reply is not taken for the next one.
* What is longer than a line, or binary, goes to the guest as gzip in base64, as much at a time as a terminal
  buffers, with echo off.
"""

from __future__ import annotations

import base64
import gzip
import math
import re
import secrets
import shlex
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from emu.console import Console
from emu.errors import GuestError, GuestStopped, GuestTimeout

__all__ = ["Result", "SerialShell"]

ATTEMPTS = 5                    # at an undamaged transfer
LINE_BYTES = 700                # typed at a time: busybox' line editor takes 1023, and a line has a few more
WINDOW_BYTES = 16 * 1024        # sent at a time, before packing: Linux buffers 64 KiB of a terminal's input
GZIP = 16                       # zlib: a gzip header and checksum
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

_PROMPT = re.compile(rb"[#$%>] (?:\x1b\[[0-9;?]*[a-zA-Z])*$")
_PLAIN = frozenset(range(0x20, 0x7F))

# $1 number of the reply, whose marks also carry TOKEN; $2 what to do:
#   n NAME LINES, l NAME LINES  take gzip in base64 from the terminal into a new, or the same file NAME
#   r TEXT TIME, f - TIME, i - TIME  run TEXT; the file c; the file c with the file i as input
#   p TEXT TIME                 run what printf makes of TEXT
#   a NAMES                     answer again
# Only a shell without job control uses TIME (seconds): Ctrl-C reaches nothing there, so a watchdog does it.
# `trap : INT` keeps the function alive when its job dies of Ctrl-C; the job itself gets the default action.
_FUNCTION = r"""
NAME() {
_emu_n=$1 _emu_o=$2 _emu_t=$4 _emu_f='o e'
[ -d DIR ] || mkdir -m 700 DIR || { printf '\036?%s.TOKEN\036' $1; return; }
case $2 in
a) _emu_f=$3;;
[nl]) [ $2 = l ] || : >|DIR/$3
stty sane -echo; printf '\036g%s.TOKEN\036' $1
head -n $4|base64 -d|gzip -dc >>DIR/$3 && _emu_r=0 || _emu_r=$?
stty echo; _emu_f=;;
p) printf "$3" >|DIR/c || { printf '\036?%s.TOKEN\036' $1; return; };;
esac
case $2 in [rpfi])
_emu_i=/dev/null
[ $2 != i ] || _emu_i=DIR/i
case $2 in r) set -- -c "$3";; *) set -- DIR/c;; esac
trap : INT
case $-,$_emu_t in
*m*|*,) sh "$@" <$_emu_i >|DIR/o 2>|DIR/e && _emu_r=0 || _emu_r=$?;;
*) setsid sh "$@" <$_emu_i >|DIR/o 2>|DIR/e &
_emu_p=$!
(sleep $_emu_t; kill -9 -$_emu_p) >/dev/null 2>&1 &
wait $_emu_p && _emu_r=0 || _emu_r=$?
kill -9 $!;;
esac
trap - INT;;
esac
{ printf '\036b%s.TOKEN %s\n' $_emu_n $_emu_r
for _emu_i in $_emu_f; do
if [ -s DIR/$_emu_i ]; then gzip -1cf <DIR/$_emu_i; else printf -; fi
done
printf '\036z%s.TOKEN\036' $_emu_n; } 2>/dev/null
}
"""


@dataclass(frozen=True)
class Result:
    """What a command in the guest did.

    `status` is its exit status, 128 + n if signal n ended it. `stdout` and `stderr` are UTF-8; bytes that are
    not survive as surrogate escapes, and the raw output is in `stdout_bytes` and `stderr_bytes`. `read_s` is how
    many seconds reading the output took after the command's end.
    """

    status: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    read_s: float = field(default=0.0, compare=False)

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode("utf-8", "surrogateescape")


class _Damaged(Exception):
    """A reply that the guest should give again: for these files."""

    def __init__(self, files: str) -> None:
        self.files = files


class _ShellLost(Exception):
    """The shell does not know the function (any more): another shell, or /tmp was emptied."""


class _Probe:
    """Watches the console for a prompt, and for the answer to a question only a shell can answer."""

    KEPT_BYTES = 256

    def __init__(self, number: int, console: Console) -> None:
        self.answered = False
        self.fresh = False
        self._answer = f"\036p{number}\036".encode()
        self._console = console
        self._seen = bytearray(console.recent(self.KEPT_BYTES))

    def at_prompt(self) -> bool:
        """Whether the output ends in what most prompts end in; a pause has to confirm it."""
        return bool(_PROMPT.search(self._seen))

    def tap(self, data: bytes) -> bytes:
        """The console's tap; the answer makes all output before it read."""
        self.fresh = True
        if self.answered:
            return data
        self._seen += data
        end = self._seen.find(self._answer)
        if end < 0:
            del self._seen[:-self.KEPT_BYTES]
            return data
        self.answered = True
        rest = bytes(self._seen[end + len(self._answer):])
        self._console.record(data[: len(data) - len(rest)])
        self._console.discard()
        return rest


class _Reply:
    """Collects one reply out of the console's output; what comes before and after it is passed on."""

    NOISE_BYTES = 4096          # of other output kept while the reply has not begun

    def __init__(self, number: str, function: str, begin: str, console: Console) -> None:
        self.done = False
        self.lost = False
        self.begun = False
        self.content = bytearray()
        self.answer = f"\036b{number}".encode()     # what follows is the reply proper
        self._begin = f"\036{begin}{number}".encode()
        self._end = f"\036z{number}\036".encode()
        self._unknown = re.compile(rf"{function}: [^\n]{{0,20}}not found|\036\?{re.escape(number)}\036".encode())
        self._console = console

    def tap(self, data: bytes) -> bytes:
        """The console's tap while the reply is awaited: returns what comes after it."""
        if self.done:
            return data
        searched = max(len(self.content) - len(self._end), 0)
        self.content += data
        if not self.begun:
            self._before(data)
        end = self.content.find(self._end, searched)
        if end >= 0:
            self.done = True
            rest = bytes(self.content[end + len(self._end):])
            del self.content[end:]
            return rest
        if not self.begun and len(self.content) > self.NOISE_BYTES:
            del self.content[: -self.NOISE_BYTES // 2]
        return b""

    def _before(self, data: bytes) -> None:
        self.begun = self._begin in self.content
        if not self.begun:
            self._console.record(data)
            self.lost = bool(self._unknown.search(self.content))


class SerialShell:
    """Runs commands through the shell on a console.

    Args:
        console: where the shell is, or will be.
    """

    def __init__(self, console: Console) -> None:
        self._token = secrets.token_hex(4)
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

    def wait_prompt(self, timeout: float | None = FRESH_SHELL_S) -> None:
        """Run the guest until a shell answers on its console, whatever its prompt looks like.

        Args:
            timeout: host seconds, None for ever.

        Raises:
            GuestTimeout, GuestStopped, GuestError: in time no shell; the guest stopped; its kernel panicked.
        """
        self._deadline = None if timeout is None else monotonic() + timeout
        self._number += 1
        probe = _Probe(self._number, self._console)
        self._console.tap = probe.tap
        silence, asked = SILENCE_S if self._console.recent(1) else FIRST_SILENCE_S, False
        try:
            while not probe.answered:
                probe.fresh = False
                if self._drive(lambda: probe.fresh, SETTLE_S if probe.at_prompt() and not asked else silence):
                    silence = silence if asked else SILENCE_S
                    continue
                # No quotes in it: a line whose start was lost must not leave the shell inside a string.
                self._type(("\n" if asked else "") + rf" printf \\036p%s\\036 {self._number}" + "\n")
                silence = min(2 * silence, SILENCE_LIMIT_S) if asked else silence
                asked = True
        finally:
            self._console.tap = None
        self._shell_there = True

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
            raise GuestTimeout(f"{_shown(text)} did not end within {timeout:g} s{self._cancel()}") from error
        except BaseException:
            self._shell_there = False
            raise
        if check and result.status:
            last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise GuestError(f"{_shown(text)} ended with status {result.status}: {last}")
        return result

    def _run(self, text: bytes, input: bytes | None) -> Result:
        watchdog = "" if self._deadline is None else str(max(math.ceil(self._deadline - monotonic()), 1) + 1)
        if input is None and (line := _line(text)) is not None:
            request = f"{line} {watchdog}"
        else:
            self._load("c", text)
            if input is not None:
                self._load("i", input)
            request = f"{'f' if input is None else 'i'} - {watchdog}"
        files: dict[str, bytes] = {}
        reply = self._ask(request)
        ended = self._reply_began
        for _ in range(ATTEMPTS):
            try:
                status = _parse(reply, files)
                return Result(status, files["o"], files["e"], monotonic() - ended)
            except _Damaged as damage:
                reply = self._ask(f"a '{damage.files}'")
        raise GuestError(f"the output of {_shown(text)} came damaged {ATTEMPTS} times over the serial console")

    def _load(self, name: str, data: bytes) -> None:
        """Write a file of our directory in the guest."""
        for _ in range(ATTEMPTS):
            for start in range(0, max(len(data), 1), WINDOW_BYTES):
                packed = base64.b64encode(gzip.compress(data[start:start + WINDOW_BYTES], 1, mtime=0))
                lines = [packed[i:i + LINE_BYTES] for i in range(0, len(packed), LINE_BYTES)]
                how = "l" if start else "n"
                content = self._ask(f"{how} {name} {len(lines)}", b"".join(line + b"\n" for line in lines))
                if _status(content)[0] != 0:
                    break
            else:
                return
        raise GuestError(f"{len(data)} bytes came damaged to the guest {ATTEMPTS} times over the serial console")

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
        text = _FUNCTION.strip().replace("NAME", self._function).replace("DIR", self._directory)
        text = text.replace("TOKEN", self._token)
        number = self._next()
        last = rf"printf '\036z%s\036' {number}"
        lines = f"{text}\n{last}\n"
        ask = rf"printf \\036g%s\\036 {number};eval " + f'"$(head -n {lines.count(chr(10))})"\n'
        self._transfer(_Reply(number, self._function, "g", self._console), ask, lines)
        self._installed = True

    def _next(self) -> str:
        """A number for a reply that no earlier reply, and no output, has."""
        self._number += 1
        return f"{self._number}.{self._token}"

    def _exchange(self, request: str, data: bytes | None) -> bytes:
        number = self._next()
        reply = _Reply(number, self._function, "b" if data is None else "g", self._console)
        line = f"{self._function} {self._number} {request}\n"
        return self._transfer(reply, line, None if data is None else data.decode())

    def _transfer(self, reply: _Reply, line: str, lines: str | None) -> bytes:
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


def _line(text: bytes) -> str | None:
    """What to ask the function for to run `text`, if that fits into a line.

    Typed at a terminal, so no control character may be in it, nor a byte above 126.
    """
    plain = _PLAIN.issuperset(text)
    line = "r " + shlex.quote(text.decode()) if plain else f"p '{_escaped(text)}'"
    return line if len(line) <= LINE_BYTES else None


def _escaped(text: bytes) -> str:
    r"""A format for the shell's `printf`, inside single quotes, that prints `text`."""
    special = b"%\\'" if text[:1] != b"-" else b"%\\'-"
    return "".join(chr(c) if c in _PLAIN and c not in special else f"\\{c:03o}" for c in text)


def _status(content: bytes) -> tuple[int, bytes]:
    """A reply's exit status and what follows, as the guest wrote it; ValueError if damaged."""
    head, _, rest = content.partition(b"\n")
    if head.endswith(b"\r"):    # the terminal made CR LF of each LF
        rest = rest.replace(b"\r\n", b"\n")
    return int(head), rest


def _parse(content: bytes, files: dict[str, bytes]) -> int:
    """Add the files of a reply to `files`; the exit status. Raises `_Damaged` for those still missing."""
    wanted = [name for name in "oe" if name not in files]
    try:
        status, rest = _status(content)
        for name in wanted:
            if rest.startswith(b"-"):
                files[name], rest = b"", rest[1:]
                continue
            stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | GZIP)
            data = stream.decompress(rest)
            if not stream.eof:
                break
            files[name], rest = data, stream.unused_data
    except (ValueError, zlib.error):
        pass
    missing = [name for name in "oe" if name not in files]
    if missing:
        raise _Damaged(" ".join(missing))
    return status


def _shown(text: bytes) -> str:
    """A command for a message of one line."""
    line = repr(text.decode("utf-8", "replace"))
    return line if len(line) <= 80 else line[:77] + "..."
