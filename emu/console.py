"""The guest's serial console with pexpect's vocabulary, on a terminal, or as a PTY of the host.

The console belongs to the thread that calls it: `expect` and `interact` run the guest until what they
wait for has happened, and nothing runs between calls.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Sequence
from time import monotonic
from typing import IO, TYPE_CHECKING, Any

from emu.errors import GuestStopped, GuestTimeout

if TYPE_CHECKING:
    from emu.terminal import HostPty

__all__ = ["EOF", "TIMEOUT", "Console", "Drive", "PanicWatch"]

TIMEOUT = GuestTimeout      # in a pattern list: `expect` returns its index instead of raising
EOF = GuestStopped

Drive = Callable[[Callable[[], bool], "float | None"], bool]

HISTORY_BYTES = 1024 * 1024     # kept of what the guest wrote
UNREAD_CHARS = 1024 * 1024      # kept of what no expect() has consumed
TAIL_CHARS = 512                # searched whenever something arrives; the whole text only now and then
FULL_SEARCH_S = 0.05            # how often at most the whole unread text is searched while waiting
SEARCH_SHARE = 8                # and never for more than one part in this many of the time
QUOTED_CHARS = 160              # of the console's last output in an error message

_PANIC = re.compile(rb"(?:^|\]) ?(Kernel panic - not syncing\b[^\r\n]*)")


class PanicWatch:
    """Remembers the first kernel panic among the lines a guest writes to its console."""

    LONGEST_LINE = 4096

    def __init__(self) -> None:
        self.line: str | None = None
        self._partial = bytearray()

    def feed(self, data: bytes) -> None:
        """Look through more of the guest's output, cut anywhere."""
        self._partial += data
        if b"\n" not in data:
            if len(self._partial) > self.LONGEST_LINE:
                del self._partial[: -self.LONGEST_LINE // 2]
            return
        *lines, rest = self._partial.split(b"\n")
        self._partial = bytearray(rest)
        if self.line is None:
            for line in lines:
                if found := _PANIC.search(line):
                    self.line = found[1].decode("utf-8", "replace")
                    return


class _Ring:
    """The last `size` bytes appended; appending is constant time on average."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._data = bytearray()

    def append(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > 2 * self._size:
            del self._data[: -self._size]

    def last(self, size: int) -> bytes:
        return bytes(self._data[-min(size, self._size):])


class _Unread:
    """Decoded output that nobody has consumed, bounded; bytes may arrive one at a time."""

    COLLAPSE_CHUNKS = 4096

    def __init__(self) -> None:
        self.fresh = False          # something arrived since the last look at `tail`
        self.tail = ""
        self._arrived = bytearray()
        self._chunks: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def append(self, data: bytes) -> None:
        self._arrived += data
        self.fresh = True
        if len(self._arrived) >= UNREAD_CHARS:
            self.take_in()

    def take_in(self) -> str:
        """Decode what arrived; the end of the text, long enough to show what is new."""
        self.fresh = False
        new = self._decoder.decode(bytes(self._arrived))
        self._arrived.clear()
        self._chunks.append(new)
        self.tail = (self.tail + new)[-(len(new) + TAIL_CHARS):]
        if len(self._chunks) > self.COLLAPSE_CHUNKS:
            self.text()
        return self.tail

    def text(self) -> str:
        if self._arrived:
            self.take_in()
        whole = "".join(self._chunks)[-UNREAD_CHARS:]
        self._chunks = [whole]
        return whole

    def replace(self, text: str) -> None:
        """Make `text`, the end of what there was, all that is unread."""
        self._chunks = [text]
        self.tail = text[-TAIL_CHARS:]


class Console:
    """What the guest writes to its console, and a keyboard for it.

    Args:
        send: takes bytes towards the guest's serial port; does not wait.
        drive: runs the guest until a condition holds (True) or a time in seconds has passed (False); raises
            `GuestStopped` if the guest stopped before.
        watch_fd: calls back on the guest's thread when a host file descriptor can be read.
        unwatch_fd: ends that.
        resize: tells the guest its console's columns and rows; None: there is no way to.

    As in pexpect, `before`, `after` and `match` are set by the last `expect`, patterns that are strings are
    regular expressions with DOTALL, and `logfile` (text or binary) gets a copy of all output.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        drive: Drive,
        watch_fd: Callable[[int, Callable[[], None]], None],
        unwatch_fd: Callable[[int], None],
        resize: Callable[[int, int], None] | None = None,
    ) -> None:
        self.timeout: float | None = 30.0
        self.before = ""
        self.after = ""
        self.match: re.Match[str] | type[Exception] | None = None
        self.logfile: IO[Any] | None = None
        self.panics = PanicWatch()
        self.tap: Callable[[bytes], bytes] | None = None
        self.drive = drive
        self._send = send
        self._watch_fd = watch_fd
        self._unwatch_fd = unwatch_fd
        self._resize = resize
        self._log_decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._history = _Ring(HISTORY_BYTES)
        self._unread = _Unread()
        self._outputs: list[Callable[[bytes], None]] = []
        self._ptys: list[HostPty] = []

    # Output of the guest

    def feed(self, data: bytes) -> None:
        """Take output of the guest; the sink of its serial port."""
        self.panics.feed(data)
        if self.tap is not None:
            data = self.tap(data)
            if not data:
                return
        self.record(data)
        self._unread.append(data)

    def record(self, data: bytes) -> None:
        """Keep and show output without leaving it for `expect`."""
        self._history.append(data)
        if self.logfile is not None:
            text = isinstance(self.logfile, io.TextIOBase)
            self.logfile.write(self._log_decoder.decode(data) if text else data)
        for output in self._outputs:
            output(data)

    @property
    def history(self) -> bytes:
        """The last MiB of what the guest wrote, read or not."""
        return self.recent(HISTORY_BYTES)

    def recent(self, size: int) -> bytes:
        """The last `size` bytes of `history`."""
        return self._history.last(size)

    @property
    def buffer(self) -> str:
        """What no `expect` has consumed (its last 2**20 characters)."""
        return self._unread.text()

    @property
    def has_news(self) -> bool:
        """Whether the guest has written since the last `expect` looked."""
        return self._unread.fresh

    def tail(self) -> str:
        """The last few characters the guest wrote, quoted, for messages of one line."""
        return repr(self.recent(QUOTED_CHARS).decode("utf-8", "replace"))

    def discard(self) -> None:
        """Forget what no `expect` has consumed."""
        self._unread.text()
        self._unread.replace("")

    # Input to the guest

    def send(self, text: str | bytes) -> int:
        """Type `text`; returns how many bytes that is. The guest sees it when it runs next."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        self._send(data)
        return len(data)

    def sendline(self, text: str | bytes = "") -> int:
        """Type `text` and Enter."""
        return self.send((text.encode() if isinstance(text, str) else bytes(text)) + b"\n")

    def sendcontrol(self, char: str) -> int:
        """Type Ctrl and `char`: a letter, or one of @ [ \\ ] ^ _ ?"""
        code = ord(char.upper())
        if not 0x3F <= code <= 0x5F:
            raise ValueError(f"there is no Ctrl-{char}")
        return self.send(bytes([code ^ 0x40]))

    def sendeof(self) -> int:
        """Type Ctrl-D."""
        return self.sendcontrol("d")

    @property
    def can_resize(self) -> bool:
        """Whether there is a way to tell the guest how large its console is."""
        return self._resize is not None

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest how large its console is, in characters; over a serial line there is no way to."""
        if self._resize is not None:
            self._resize(columns, rows)

    # Waiting

    def expect(self, pattern: Any, timeout: float | None = -1) -> int:
        """Run the guest until its unread output matches; consume the output up to the match's end.

        Args:
            pattern: one, or a list, of: a regular expression (str, bytes or compiled), `TIMEOUT`, `EOF`.
            timeout: host seconds; None is for ever, -1 the attribute `timeout`.

        Returns:
            The index of the pattern whose match starts first (of several, the first in the list).

        Raises:
            GuestTimeout, GuestStopped: unless `TIMEOUT` or `EOF` is in the list.
        """
        wanted = pattern if isinstance(pattern, list | tuple) else [pattern]
        patterns = [(i, _compiled(p)) for i, p in enumerate(wanted) if not isinstance(p, type)]
        if timeout == -1:
            timeout = self.timeout
        try:
            self._wait(_Search(self._unread, [p for _, p in patterns]), timeout)
        except (GuestTimeout, GuestStopped) as error:
            self.before, self.after, self.match = self.buffer, "", type(error)
            for index, kind in enumerate(wanted):
                if isinstance(kind, type) and isinstance(error, kind):
                    return index
            raise
        return patterns[self._consume([p for _, p in patterns])][0]

    def expect_exact(self, pattern: Any, timeout: float | None = -1) -> int:
        """`expect` for plain text (str or bytes) instead of regular expressions."""
        wanted = pattern if isinstance(pattern, list | tuple) else [pattern]
        return self.expect([p if isinstance(p, type) else re.escape(_text(p)) for p in wanted], timeout)

    def _wait(self, search: _Search, timeout: float | None) -> None:
        deadline = None if timeout is None else monotonic() + timeout
        while not search.whole():
            left = FULL_SEARCH_S if deadline is None else deadline - monotonic()
            if left <= 0:
                raise GuestTimeout(f"{search} did not appear in {timeout:g} s; the console ends in {self.tail()}")
            try:
                self.drive(search.recent, min(left, max(FULL_SEARCH_S, SEARCH_SHARE * search.cost_s)))
            except GuestStopped:
                if search.whole():
                    return
                raise

    def _consume(self, patterns: Sequence[re.Pattern[str]]) -> int:
        text = self._unread.text()
        index, match = _first_match(patterns, text)     # type: ignore[misc]  # the search has just found one
        self.before, self.after, self.match = text[: match.start()], match[0], match
        self._unread.replace(text[match.end():])
        return index

    # The console elsewhere

    def show_to(self, output: Callable[[bytes], None]) -> None:
        """Call this with all that comes from now on; it runs in an exit, and must neither wait nor raise."""
        self._outputs.append(output)

    def hide_from(self, output: Callable[[bytes], None]) -> None:
        """End that."""
        self._outputs.remove(output)

    def interact(self, escape: bytes = b"\x1d", type_end: bool = True) -> None:
        """Connect this process's terminal (or pipes) to the guest until `escape` is typed.

        Also returns when the guest stops, or what reads our output has gone. On a terminal every key goes to the
        guest, Ctrl-C too. Input that is no terminal is typed as it comes; with `type_end` its end is typed as Ctrl-D.
        A guest that panics ends the session then. The guest is told the terminal's size, as often as that changes.
        Unread output is shown first.
        """
        from emu.terminal import Interaction, raw_terminal

        session = Interaction(self.send, escape, lambda: self.panics.line is not None, self.resize, type_end)
        session.show(self.buffer.encode())
        self.discard()
        self._outputs.append(session.show)

        def typed() -> None:
            if not session.typed():
                self._unwatch_fd(session.input_fd)

        self._watch_fd(session.input_fd, typed)
        try:
            with raw_terminal(session.input_fd):
                while not session.over():
                    def attention(ended: bool = session.input_ended) -> bool:
                        return session.over() or session.input_ended != ended

                    if not self.drive(attention, session.patience_s()):
                        session.nothing_happened()
        except GuestStopped:
            pass
        finally:
            if not session.input_ended:
                self._unwatch_fd(session.input_fd)
            self._outputs.remove(session.show)
            self.discard()
        if session.failure is not None:
            raise session.failure

    def open_pty(self) -> str:
        """A new PTY of the host attached to this console; its path, for `screen PATH` and the like.

        Several programs may open it, at any time. What nobody reads is kept up to 256 KiB, the newest. It
        works while the guest runs, that is inside `drive`, `expect`, `interact` and the like.
        """
        from emu.terminal import HostPty

        pty = HostPty(self._send)
        self._ptys.append(pty)
        self._outputs.append(pty.show)
        self._watch_fd(pty.poll_fd, pty.ready)
        return pty.path

    def forked(self) -> None:
        """This process is a copy: what shows the original's console, or is told of it, is not this one's."""
        self.logfile = None
        self._outputs.clear()
        for pty in self._ptys:
            pty.close()
        self._ptys.clear()

    def close(self) -> None:
        """Take the PTYs away."""
        for pty in self._ptys:
            self._unwatch_fd(pty.poll_fd)
            self._outputs.remove(pty.show)
            pty.close()
        self._ptys.clear()


class _Search:
    """A wait for patterns that stays cheap: the tail at each arrival, the whole text now and then.

    A match that began more than TAIL_CHARS ago is found by the next look at the whole text.
    """

    def __init__(self, unread: _Unread, patterns: Sequence[re.Pattern[str]]) -> None:
        self.cost_s = 0.0
        self._is_likely = False         # kept until the next look at the whole text: `recent` may be asked twice
        self._unread = unread
        self._patterns = patterns

    def __str__(self) -> str:
        return " or ".join(repr(p.pattern) for p in self._patterns) or "the guest's end"

    def whole(self) -> bool:
        started = monotonic()
        found = _first_match(self._patterns, self._unread.text())
        self._unread.fresh = self._is_likely = False
        self.cost_s = monotonic() - started
        return found is not None

    def recent(self) -> bool:
        """Whether anything that arrived since the last look completes a match; True may be a false alarm."""
        if self._unread.fresh and not self._is_likely:
            tail = self._unread.take_in()
            self._is_likely = any(p.search(tail) for p in self._patterns)
        return self._is_likely


def _text(pattern: str | bytes) -> str:
    return pattern if isinstance(pattern, str) else pattern.decode("utf-8", "replace")


def _compiled(pattern: str | bytes | re.Pattern[str] | re.Pattern[bytes]) -> re.Pattern[str]:
    if not isinstance(pattern, re.Pattern):
        return re.compile(_text(pattern), re.DOTALL)
    if isinstance(pattern.pattern, str):
        return pattern
    return re.compile(pattern.pattern.decode("utf-8", "replace"), pattern.flags)


def _first_match(patterns: Sequence[re.Pattern[str]], text: str) -> tuple[int, re.Match[str]] | None:
    found = [(match.start(), index, match) for index, p in enumerate(patterns) if (match := p.search(text))]
    if not found:
        return None
    _, index, match = min(found, key=lambda hit: hit[:2])
    return index, match
