"""The console in pexpect's words, fed by hand: no machine and no time."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu import console as console_module
from emu.console import EOF, TIMEOUT, Console, PanicWatch
from emu.errors import GuestStopped, GuestTimeout
from emu.terminal import PTY_PENDING_BYTES


class Script:
    """A guest that writes (or does) one thing each time it is driven, then stops or stays silent."""

    def __init__(self, *chunks: bytes | Callable[[], bytes], stops: bool = False) -> None:
        self.typed = bytearray()
        self.watched: dict[int, Callable[[], None]] = {}
        self.console = Console(self.typed.extend, self.drive, self.watched.__setitem__, self.watched.pop)
        self._chunks = iter(chunks)
        self._stops = stops

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        while not until():
            for fd in select.select(list(self.watched), [], [], 0)[0]:
                self.watched[fd]()
            if until():
                break
            chunk = next(self._chunks, None)
            if chunk is None:
                if self._stops:
                    raise GuestStopped("power off")
                if timeout is None and select.select(list(self.watched), [], [], 10)[0]:    # the kernel passes it on
                    continue
                assert timeout is not None, "a wait for ever would hang"
                return False
            self.console.feed(chunk() if callable(chunk) else chunk)
        return True


@pytest.fixture(autouse=True)
def _fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(console_module, "monotonic", lambda: next(ticks) * 0.01)


def test_expect_sets_before_after_and_match() -> None:
    console = Script(b"Linux 6.1.0 ready\r\n").console
    assert console.expect(r"(\d+)\.(\d+)") == 0
    assert (console.before, console.after) == ("Linux ", "6.1")
    assert isinstance(console.match, re.Match) and console.match[2] == "1"
    assert console.buffer == ".0 ready\r\n"


def test_the_leftmost_match_wins_and_of_equal_ones_the_first() -> None:
    console = Script(b"one two").console
    assert console.expect(["two", "one", "on"]) == 1


@pytest.mark.parametrize("pattern", ["é+", "é+".encode(), re.compile("é+"), re.compile("é".encode())])
def test_patterns_may_be_text_bytes_or_compiled(pattern: object) -> None:
    assert Script("caf\xe9".encode()).console.expect(pattern) == 0


def test_a_character_cut_in_two_is_put_together() -> None:
    console = Script(b"\xc3", b"\xa9!").console
    console.expect("!")
    assert console.before == "é"


def test_expect_exact_takes_nothing_as_a_regular_expression() -> None:
    console = Script(b"a+b (c)").console
    assert console.expect_exact(["x", "(c)"]) == 1


def test_timeout_raises_with_the_output_s_tail_and_keeps_the_output() -> None:
    console = Script(b"half an ans").console
    with pytest.raises(GuestTimeout, match="half an ans") as error:
        console.expect("answer", timeout=1)
    assert "\n" not in str(error.value)
    assert console.buffer == console.before == "half an ans"


def test_timeout_and_eof_may_be_patterns() -> None:
    assert Script().console.expect(["x", TIMEOUT], timeout=1) == 1
    assert Script(stops=True).console.expect([EOF, "x"], timeout=1) == 0


def test_the_guest_s_end_raises_unless_the_last_words_match() -> None:
    with pytest.raises(GuestStopped):
        Script(b"bye", stops=True).console.expect("hello")
    assert Script(b"bye", stops=True).console.expect("bye") == 0


def test_a_match_that_began_long_ago_is_found() -> None:
    console = Script(b"BEGIN", *[b"x" * 100] * 100, b"END").console
    assert console.expect("BEGIN.*END", timeout=1000) == 0
    assert len(console.after) == 10_008


def test_an_anchored_pattern_means_the_start_of_what_is_unread() -> None:
    console = Script(b"x" * 2000, b"foo").console
    with pytest.raises(GuestTimeout):
        console.expect("^foo", timeout=1)


@given(st.lists(st.binary(max_size=7), max_size=30))
def test_however_output_is_cut_expect_sees_the_same(chunks: list[bytes]) -> None:
    console = Script(*chunks, b"\n<end>").console
    console.expect("<end>", timeout=1000)
    assert console.before == b"".join([*chunks, b"\n"]).decode("utf-8", "replace")


def test_output_that_nobody_reads_is_bounded() -> None:
    console = Script().console
    for _ in range(300):
        console.feed(b"y" * 65536)
    console.feed(b"the end")
    assert len(console.history) == console_module.HISTORY_BYTES
    assert len(console.buffer) == console_module.UNREAD_CHARS
    assert console.history.endswith(b"the end") and console.buffer.endswith("the end")


def test_a_mebibyte_in_single_bytes_is_searched_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = 0
    tail = console_module._Unread.take_in

    def counted(self: console_module._Unread) -> str:
        nonlocal searched
        text = tail(self)
        searched += len(text)
        return text

    monkeypatch.setattr(console_module._Unread, "take_in", counted)
    monkeypatch.setattr(console_module, "monotonic", lambda: 0.0)
    size = 1 << 17
    console = Script(*[b"z"] * size, b"!").console
    console.expect("!")
    assert searched < size * 1000
    assert len(console.before) == size


def test_keys() -> None:
    script = Script()
    assert script.console.send("é") == 2
    script.console.sendline("ls")
    script.console.sendline(b"")
    script.console.sendcontrol("c")
    script.console.sendcontrol("]")
    script.console.sendeof()
    assert bytes(script.typed) == "éls\n\n\x03\x1d\x04".encode()
    with pytest.raises(ValueError):
        script.console.sendcontrol("1")


@pytest.mark.parametrize("log", [io.BytesIO(), io.StringIO()])
def test_the_logfile_may_be_binary_or_text(log: io.BytesIO | io.StringIO) -> None:
    console = Script().console
    console.logfile = log
    console.feed(b"ok \xff")
    assert log.getvalue() == (b"ok \xff" if isinstance(log, io.BytesIO) else "ok \ufffd")


@given(st.integers(1, 90))
def test_a_panic_is_noticed_however_it_is_cut(size: int) -> None:
    text = b"[    1.0] fine\r\n[    2.5][    T1] Kernel panic - not syncing: No working init found.\r\n[ 2.6] more\r\n"
    watch = PanicWatch()
    for start in range(0, len(text), size):
        watch.feed(text[start:start + size])
    assert watch.line == "Kernel panic - not syncing: No working init found."


def test_a_line_that_quotes_a_panic_is_none() -> None:
    watch = PanicWatch()
    watch.feed(b"grep 'Kernel panic - not syncing' log\n---[ end Kernel panic - not syncing: x ]---\n")
    assert watch.line is None


def test_a_pty_shows_output_and_takes_keys_raw() -> None:
    script = Script()
    path = script.console.open_pty()
    first, second = (os.open(path, os.O_RDWR | os.O_NOCTTY) for _ in range(2))
    script.console.feed(b"a\nb\r\n")
    assert os.read(first, 100) == b"a\nb\r\n"
    os.write(second, b"ls\r\x03")
    while len(script.typed) < 4 and select.select(list(script.watched), [], [], 10)[0]:     # the kernel passes it on
        script.drive(lambda: False, 0)
    assert bytes(script.typed) == b"ls\r\x03"
    os.close(first)
    os.close(second)
    script.console.close()
    assert not script.watched


def test_a_pty_nobody_reads_keeps_the_newest_output_and_never_blocks() -> None:
    script = Script()
    path = script.console.open_pty()
    for number in range(40_000):
        script.console.feed(b"%09d\n" % number)
    reader = os.open(path, os.O_RDWR | os.O_NOCTTY)
    read = bytearray()
    while not read.endswith(b"000039999\n"):
        read += os.read(reader, 65536)
        script.drive(lambda: False, 0)
    assert len(read) >= PTY_PENDING_BYTES
    os.close(reader)
    script.console.close()


@contextmanager
def own_terminal() -> Iterator[int]:
    """Makes a new terminal this process's; its other end."""
    master, slave = pty.openpty()
    with open(slave, "r+b", buffering=0) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", file)
        patch.setattr("sys.stdout", file)
        yield master
    os.close(master)


def test_interact_passes_every_key_but_the_escape_and_restores_the_terminal() -> None:
    def keys() -> bytes:
        os.write(terminal, b"\x03ls\r\x1dnever")
        return b"shown\n"

    script = Script(keys)
    script.console.feed(b"unread ")
    with own_terminal() as terminal:
        modes = termios.tcgetattr(terminal)
        script.console.interact()
        assert termios.tcgetattr(terminal) == modes
        shown = b""
        while not shown.endswith(b"\n"):
            shown += os.read(terminal, 100)
    assert bytes(script.typed) == b"\x03ls\r"
    assert shown == b"unread shown\n"     # raw: no CR was added
    assert not script.watched


def test_interact_ends_with_the_guest_and_restores_the_terminal() -> None:
    with own_terminal() as terminal:
        modes = termios.tcgetattr(terminal)
        Script(b"bye", stops=True).console.interact()
        assert termios.tcgetattr(terminal) == modes


def test_piped_input_is_typed_and_its_end_is_ctrl_d_until_the_guest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, b"ls")
    os.close(write)
    script = Script(b"", b"", stops=True)
    with open(read, "rb", buffering=0) as stdin, open(os.devnull, "wb") as stdout:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        script.console.interact()
    assert script.typed.startswith(b"ls\n\x04")
    assert not script.watched


def test_end_of_input_is_typed_again_while_the_guest_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    script = Script()
    waits: list[float | None] = []

    def drive(until: Callable[[], bool], timeout: float | None = None) -> bool:
        if not waits:
            os.close(write)                         # in the midst of the first wait
        waits.append(timeout)
        for fd in list(script.watched):
            script.watched[fd]()
        if len(waits) == 4:
            raise GuestStopped("power off")
        return until()

    script.console.drive = drive
    with open(read, "rb", buffering=0) as stdin, open(os.devnull, "wb") as stdout:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        script.console.interact()
    assert waits[0] is None and None not in waits[1:]
    assert script.typed == b"\x04\x15\x04"


def test_a_guest_without_a_shell_is_not_told_of_the_input_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, b"ls")
    os.close(write)
    script = Script(b"", b"", stops=True)
    with open(read, "rb", buffering=0) as stdin, open(os.devnull, "wb") as stdout:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        script.console.interact(type_end=False)
    assert script.typed == b"ls"
    assert not script.watched


def test_interact_tells_the_guest_the_terminal_s_size_and_each_new_one() -> None:
    sizes: list[tuple[int, int]] = []

    def enlarge() -> bytes:
        termios.tcsetwinsize(terminal, (50, 132))
        return b"x"

    script = Script(b"x", enlarge, b"x", stops=True)
    script.console = Console(
        script.typed.extend, script.drive, script.watched.__setitem__, script.watched.pop,
        lambda columns, rows: sizes.append((columns, rows)),
    )
    with own_terminal() as terminal:
        termios.tcsetwinsize(terminal, (24, 80))
        script.console.interact()
    assert sizes == [(80, 24), (132, 50)]


def test_output_that_cannot_be_written_ends_interact_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(b"x")
    with open("/dev/zero", "rb") as stdin, open("/dev/full", "wb", buffering=0) as stdout:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(OSError, match="No space"):
            script.console.interact()


def test_a_match_holds_however_often_the_condition_is_asked() -> None:
    asked: list[tuple[bool, bool]] = []

    def drive(until: Callable[[], bool], _timeout: float | None) -> bool:
        console.feed(b"hello\r\n")
        asked.append((until(), until()))
        return asked[-1][1]

    console = Console(lambda _data: None, drive, lambda _fd, _callback: None, lambda _fd: None)
    console.expect("hello", timeout=5)
    assert asked == [(True, True)]
