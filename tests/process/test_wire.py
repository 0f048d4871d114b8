"""Frames between processes: whole however they are cut, and refused when they are none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import EmuError
from emu.process import wire as wire_module
from emu.process.wire import HEADER, LARGEST, LONGEST_TEXT, Frame, Wire, WireError
from tests.support.descriptors import open_files


@dataclass(frozen=True)
class Note:
    """A message."""

    text: str
    number: int = 0


class Pair:
    """Two ends."""

    def __init__(self) -> None:
        self.raw, theirs = socket.socketpair()
        self.wire: Wire[Note] = Wire(theirs, Note)

    def close(self) -> None:
        self.raw.close()
        self.wire.close()

    def come(self) -> list[Frame[Note]]:
        """What has come."""
        return list(self.wire.receive())

    def come_to_end(self) -> list[Frame[Note]]:
        """What comes before the end, which the other end has made."""
        came: list[Frame[Note]] = []
        try:
            while True:
                for frame in self.wire.receive():
                    came.append(frame)
        except EOFError:
            return came


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def wires() -> Iterator[tuple[Wire[Note], Wire[Note]]]:
    one, other = socket.socketpair()
    ends = Wire(one, Note), Wire(other, Note)
    yield ends
    for end in ends:
        end.close()


def framed(text: bytes, data: bytes = b"") -> bytes:
    return HEADER.pack(len(text), len(data)) + text + data


def encoded(note: Note, data: bytes = b"") -> bytes:
    return framed(json.dumps({"text": note.text, "number": note.number}).encode(), data)


def pipes(count: int) -> tuple[list[int], list[int]]:
    """Ends to read and to write."""
    pairs = [os.pipe() for _ in range(count)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


NOTES = st.lists(
    st.tuples(st.builds(Note, st.text(max_size=20), st.integers(-5, 5)), st.binary(max_size=40)), max_size=6
)


# -- whole frames ------------------------------------------------------------------------------------------------------


@given(NOTES, st.data())
def test_frames_come_as_they_were_sent_wherever_the_stream_is_cut(
    notes: list[tuple[Note, bytes]], data: st.DataObject
) -> None:
    pair = Pair()
    try:
        stream = b"".join(encoded(note, beside) for note, beside in notes)
        came: list[Frame[Note]] = []
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            pair.raw.sendall(stream[:size])
            stream = stream[size:]
            came += pair.wire.receive()
        assert [(frame.message, frame.data, frame.fds) for frame in came] == [(*each, ()) for each in notes]
    finally:
        pair.close()


@given(NOTES)
def test_what_one_end_posts_the_other_receives(notes: list[tuple[Note, bytes]]) -> None:
    one, other = (Wire(sock, Note) for sock in socket.socketpair())
    try:
        assert all(one.post(note, data) for note, data in notes)
        assert [(frame.message, frame.data) for frame in other.receive()] == notes
    finally:
        one.close()
        other.close()


def test_text_that_is_no_unicode_comes_through(wires: tuple[Wire[Note], Wire[Note]]) -> None:
    wires[0].post(Note("a\udcffb\0"))
    assert wires[1].wait().message.text == "a\udcffb\0"


def test_more_than_the_socket_takes_is_sent_on_as_it_is_read(wires: tuple[Wire[Note], Wire[Note]]) -> None:
    data = random.Random(1).randbytes(3 << 20)
    assert not wires[0].post(Note("long"), data)
    assert not wires[0].post(Note("behind it"), b"x")
    came: list[Frame[Note]] = []
    for _ in range(1000):
        is_sent = wires[0].flush()
        came += wires[1].receive()
        if is_sent and len(came) == 2:
            break
    assert [(frame.message.text, frame.data) for frame in came] == [("long", data), ("behind it", b"x")]


def test_one_read_takes_no_more_than_some_of_a_flood(wires: tuple[Wire[Note], Wire[Note]]) -> None:
    """Who reads has other things to do."""
    def flood() -> None:
        with suppress(BrokenPipeError):         # the end
            while True:
                if not wires[0].post(Note("again"), bytes(50_000)):
                    wires[0].wait_writable()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        sizes = [sum(len(frame.data) for frame in wires[1].receive()) for _ in range(20)]
    finally:
        wires[1].shut_down()
        thread.join()
    assert max(sizes) <= 2 * wire_module.CHUNK


def test_waiting_takes_one_frame_and_leaves_the_next(pair: Pair) -> None:
    pair.raw.sendall(encoded(Note("one")) + encoded(Note("two")) + encoded(Note("three"))[:10])
    assert [pair.wire.wait().message.text for _ in range(2)] == ["one", "two"]
    pair.raw.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        pair.wire.wait()


def test_waiting_for_room_ends_with_the_other_end(wires: tuple[Wire[Note], Wire[Note]]) -> None:
    assert not wires[0].post(Note("much"), bytes(3 << 20))
    wires[1].close()
    wires[0].wait_writable()
    with pytest.raises(BrokenPipeError):
        wires[0].flush()


# -- what is none ------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_an_error_or_the_beginning_of_a_frame(garbage: bytes) -> None:
    pair = Pair()
    try:
        pair.raw.sendall(garbage)
        pair.raw.shutdown(socket.SHUT_WR)
        with suppress(WireError):
            assert pair.come_to_end() == []
    finally:
        pair.close()


@pytest.mark.parametrize("text", [
    b"", b"{", b"null", b"[]", b"7", b'{"text": 5, "number": 0}', b'{"text": "x"}', b'{"text": "x", "number": 1.5}',
    b'{"text": "x", "number": 0, "more": 1}', b'{"text": "x", "number": ' + b"9" * 5000 + b"}", b"\xff\xfe",
    b"[" * 100_000, b'{"text": "x", "number": NaN}',
])
def test_what_is_no_message_is_refused_in_one_line(pair: Pair, text: bytes) -> None:
    pair.raw.sendall(framed(text))
    with pytest.raises(WireError, match=r"^a process of a machine sent what is no message: [^\n]*$"):
        pair.come()


@pytest.mark.parametrize("lengths", [(LONGEST_TEXT + 1, 0), (0, LARGEST + 1), (0xFFFF_FFFF, 0xFFFF_FFFF)])
def test_lengths_that_no_frame_has_are_refused_before_the_bytes_come(pair: Pair, lengths: tuple[int, int]) -> None:
    pair.raw.sendall(HEADER.pack(*lengths))
    with pytest.raises(WireError, match="too long"):
        pair.come()


def test_frames_before_a_bad_one_are_taken(pair: Pair) -> None:
    pair.raw.sendall(encoded(Note("good")) + framed(b"bad") + encoded(Note("good")))
    frames = pair.wire.receive()
    assert next(frames).message.text == "good"
    with pytest.raises(WireError):
        next(frames)


@pytest.mark.parametrize("cut", [0, 3, HEADER.size, HEADER.size + 5, -1])
def test_an_end_in_the_midst_of_a_frame_is_the_end(pair: Pair, cut: int) -> None:
    pair.raw.sendall(encoded(Note("whole"), b"data") + encoded(Note("cut"), b"data")[:cut])
    pair.raw.close()
    assert [frame.message.text for frame in pair.come_to_end()] == ["whole"]
    assert pair.come_to_end() == []


def test_an_end_that_did_not_read_is_the_end(pair: Pair) -> None:
    """ECONNRESET"""
    pair.wire.post(Note("unread"))
    pair.raw.close()
    with pytest.raises(EOFError):
        pair.come()


def test_what_is_too_long_is_not_sent(wires: tuple[Wire[Note], Wire[Note]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "LARGEST", 3 << 20)
    with pytest.raises(EmuError, match=r"^4 MiB are more than can go to another process at once$"):
        wires[0].post(Note(""), bytes(4 << 20))
    monkeypatch.setattr(wire_module, "LONGEST_TEXT", 1 << 20)
    with pytest.raises(EmuError, match=r"^2 MiB are more"):
        wires[0].post(Note("x" * (2 << 20)))
    wires[0].post(Note("next"))
    assert wires[1].wait().message.text == "next"


def test_what_is_no_message_is_not_sent(wires: tuple[Wire[Note], Wire[Note]]) -> None:
    with pytest.raises(TypeError):
        wires[0].post(Note("x", number="no number"))     # type: ignore[arg-type]
    wires[0].post(Note("next"))
    assert wires[1].wait().message.text == "next"


# -- descriptors -------------------------------------------------------------------------------------------------------


def test_descriptors_come_with_their_frame_and_are_closed_where_they_came_from(
    wires: tuple[Wire[Note], Wire[Note]]
) -> None:
    readers, writers = pipes(4)
    wires[0].post(Note("before"), b"data" * 100)
    for index in (0, 2):
        wires[0].post(Note(f"{index}"), fds=writers[index : index + 2])
        wires[0].post(Note("between"))
    assert not any(map(is_open, writers))
    frames = {frame.message.text: frame.fds for frame in wires[1].receive()}
    while len(frames) < 4:
        frames |= {frame.message.text: frame.fds for frame in wires[1].receive()}
    assert frames["before"] == frames["between"] == ()
    for index in (0, 2):
        for reader, fd in zip(readers[index : index + 2], frames[str(index)], strict=True):
            os.write(fd, b"through")
            assert os.read(reader, 10) == b"through"
            assert not os.get_inheritable(fd)
            os.close(fd)
    for reader in readers:
        os.close(reader)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300)), max_size=12), st.randoms())
def test_descriptors_stay_with_their_frames_however_these_are_read(
    frames: list[tuple[int, int]], choice: random.Random
) -> None:
    """Each frame has a count of them, whose ends say which frame's they are."""
    one, other = (Wire(sock, Note) for sock in socket.socketpair())
    came: list[Frame[Note]] = []
    try:
        for number, (count, size) in enumerate(frames):
            readers, writers = pipes(count)
            for writer in writers:
                os.write(writer, b"%d" % number)
                os.close(writer)
            one.post(Note("", number), bytes(size), readers)
            if choice.random() < 0.3:
                came += other.receive()
        for _ in range(2 * len(frames) + 1):
            came += other.receive()
        assert [(frame.message.number, len(frame.fds), len(frame.data)) for frame in came] == [
            (number, count, size) for number, (count, size) in enumerate(frames)
        ]
        assert all(int(os.read(fd, 10)) == frame.message.number for frame in came for fd in frame.fds)
    finally:
        for frame in came:
            frame.drop()
        one.close()
        other.close()


def test_descriptors_that_nobody_took_or_sent_are_closed() -> None:
    before = open_files()
    one, other = (Wire(sock, Note) for sock in socket.socketpair())
    readers, writers = pipes(4)
    one.post(Note("taken by nobody"), fds=readers[:2])
    assert other._read() is False               # read, and in no frame that somebody has
    while one.post(Note("full"), bytes(100_000)):
        pass
    one.post(Note("never sent"), fds=readers[2:])
    one.close()
    other.close()
    for writer in writers:
        os.close(writer)
    assert open_files() == before


def test_a_frame_whose_descriptors_have_no_room_has_none(pair: Pair) -> None:
    """The host's kernel drops those, one or all; the next frame has its own again."""
    sender: Wire[Note] = Wire(pair.raw, Note)
    readers, writers = pipes(6)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_files()
    sender.post(Note("first"), fds=[os.dup(fd) for fd in readers[:3]])
    highest = max(map(int, open_files())) + 1
    taken = [os.dup(0) for _ in range(highest - len(open_files()) + 3)]
    free = taken.pop()                              # room for one
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))
    try:
        (frame,) = pair.wire.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)
    assert (frame.message.text, frame.fds) == ("first", ())
    assert open_files() == before
    sender.post(Note("second"), fds=readers[3:])
    (frame,) = pair.wire.receive()
    assert len(frame.fds) == 3
    frame.drop()
    for fd in (*readers[:3], *writers):
        os.close(fd)


def test_a_frame_goes_without_descriptors_when_too_many_are_on_their_way(
    wires: tuple[Wire[Note], Wire[Note]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(errno.ETOOMANYREFS, "Too many references")

    readers, writers = pipes(1)
    monkeypatch.setattr(socket, "send_fds", refuse)
    assert wires[0].post(Note("alone"), fds=readers)
    assert not is_open(readers[0])
    frame = wires[1].wait()
    assert (frame.message.text, frame.fds) == ("alone", ())
    os.close(writers[0])


def test_descriptors_in_the_midst_of_a_frame_are_refused_and_closed(pair: Pair) -> None:
    """Else they would pile up while an endless frame comes."""
    readers, writers = pipes(2)
    stream = encoded(Note("long"), bytes(100))
    before = len(open_files())
    socket.send_fds(pair.raw, [stream[:10]], readers[:1])
    assert pair.come() == []
    socket.send_fds(pair.raw, [stream[10:20]], readers[1:])
    assert pair.come() == []                    # for all that is known, the frame ends before
    with pytest.raises(WireError, match="in the midst of a frame"):
        pair.come()
    pair.wire.close()
    assert len(open_files()) == before - 1
    for fd in (*readers, *writers):
        os.close(fd)


def test_descriptors_beside_what_is_no_message_are_closed(pair: Pair) -> None:
    readers, writers = pipes(1)
    before = open_files()
    socket.send_fds(pair.raw, [framed(b"no message")], readers)
    with pytest.raises(WireError):
        pair.come()
    assert open_files() == before
    for fd in (*readers, *writers):
        os.close(fd)


def test_a_thread_that_waits_finds_the_end_when_its_end_is_shut_down(pair: Pair) -> None:
    ended: list[bool] = []

    def wait(receive: Callable[[], object]) -> None:
        try:
            receive()
        except EOFError:
            ended.append(True)

    thread = threading.Thread(target=wait, args=(pair.wire.wait,))
    thread.start()
    pair.wire.shut_down()
    thread.join(30)
    assert ended == [True]


def test_a_socket_that_takes_another_ones_place_begins_afresh(pair: Pair) -> None:
    before = len(open_files())
    with open(os.devnull) as null:
        socket.send_fds(pair.raw, [encoded(Note("half"))[:10]], [null.fileno()])
        assert pair.come() == []
        ours, theirs = socket.socketpair()
        other: Wire[Note] = Wire(ours, Note)
        pair.wire.exchange(theirs.detach())
        assert pair.come() == []                        # and does not wait
        assert other.post(Note("first")) and other.post(Note("second"), fds=[os.dup(null.fileno())])
        assert other.post(Note("third"))
        other.close()
        came = pair.come_to_end()
    assert [(frame.message.text, len(frame.fds)) for frame in came] == [("first", 0), ("second", 1), ("third", 0)]
    for frame in came:
        frame.drop()
    assert len(open_files()) == before
