"""PV_READ and PV_WRITE, by each of the ways in which a request can be passed."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import OutsideMemory
from devices.p9.export import Export
from devices.p9.whole_files import WholeFiles
from hypercalls import Call, CallMemory, Files, GuestFault, Hypercall
from hypercalls.fake import FakeCalls, FakeMemory
from hypercalls.files import (
    APPEND,
    CREATE,
    IN_MAILBOX,
    LARGEST_OFFSET,
    LONGEST_PATH,
    MOST_BYTES,
    REQUEST,
    RESULT,
    RESULT_OFFSET,
    TRUNCATE,
    VIRTUAL,
    pv_read,
    pv_write,
)
from hypercalls.mailbox import pv_mailbox

RAM = 4 << 20
BLOCK, PATH, BUFFER = 0x1000, 0x2000, 0x10_0000
WAYS = "physical", "virtual", "mailbox"
WORDS = st.integers(0, 2**64 - 1)


@dataclass
class Recorder:
    """Files that are all the same, and what was asked of them."""

    content: bytes = b""
    error: int = 0
    asked: list[tuple[object, ...]] = field(default_factory=list)

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        self._ask(path, offset, size)
        return self.content[offset : offset + size]

    def write(self, path: bytes, offset: int, data: bytes, create: bool, truncate: bool, append: bool) -> int:
        self._ask(path, offset, data, create, truncate, append)
        return len(data)

    def _ask(self, *arguments: object) -> None:
        self.asked.append(arguments)
        if self.error:
            raise OSError(self.error, "")


class Guest:
    """Passes requests in one of the ways.

    Args:
        files: of the machine.
        way: "physical", "virtual" or "mailbox".
    """

    def __init__(self, files: Files | None, way: str) -> None:
        self.fakes = FakeCalls(RAM, files)
        self._way = way

    def ask(
        self, hypercall: Hypercall, path: bytes, flags: int = 0, offset: int = 0, size: int = 0, data: bytes = b""
    ) -> tuple[int, bytes]:
        """Result, and what came into the buffer."""
        size = size or len(data)
        if self._way == "mailbox":
            self.put(REQUEST.pack(0, len(path), flags, offset, 0, size, 0) + path + data)
            words = -(-(REQUEST.size + len(path) + len(data)) // 8)
            self.fakes.wrmsr(hypercall, 8 * words | IN_MAILBOX)
            answer = self.take()
            (result,) = RESULT.unpack_from(answer)
            return result, answer[RESULT.size :][: max(result, 0)] if hypercall is pv_read else b""
        memory = self.fakes.memory
        memory.write(BLOCK, REQUEST.pack(PATH, len(path), flags, offset, BUFFER, size, 0x5555))
        memory.write(PATH, path)
        memory.write(BUFFER, data)
        self.fakes.wrmsr(hypercall, BLOCK | (VIRTUAL if self._way == "virtual" else 0))
        (result,) = RESULT.unpack(memory.read(BLOCK + RESULT_OFFSET, RESULT.size))
        return result, memory.read(BUFFER, max(result, 0)) if hypercall is pv_read else b""

    def put(self, data: bytes) -> None:
        """Into the mailbox, word by word."""
        for at in range(0, len(data), 8):
            self.fakes.wrmsr(pv_mailbox, int.from_bytes(data[at : at + 8], "little"))

    def take(self) -> bytes:
        """All that is in the mailbox."""
        words = []
        while self.fakes.mailbox:
            words.append(self.fakes.rdmsr(pv_mailbox))
        return b"".join(word.to_bytes(8, "little") for word in words if word is not None)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_block_is_laid_out_as_the_abi_says() -> None:
    block = REQUEST.pack(1, 2, 3, 4, 5, 6, -2)
    fields = ((0, 8), (8, 4), (12, 4), (16, 8), (24, 8), (32, 8))
    assert [int.from_bytes(block[at : at + size], "little") for at, size in fields] == [1, 2, 3, 4, 5, 6]
    assert block[40:] == (-2).to_bytes(8, "little", signed=True) and RESULT_OFFSET == 40


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096, MOST_BYTES])
def test_a_file_is_read(way: str, size: int) -> None:
    files = Recorder(bytes(i % 251 for i in range(size)))
    assert Guest(files, way).ask(pv_read, b"a/b", size=size + 100) == (size, files.content)
    assert files.asked == [(b"a/b", 0, min(size + 100, MOST_BYTES))]


def test_a_part_of_a_file_is_read(way: str) -> None:
    assert Guest(Recorder(b"0123456789"), way).ask(pv_read, b"a", offset=3, size=4) == (4, b"3456")


def test_no_more_is_read_than_fits_into_an_answer(way: str) -> None:
    files = Recorder(bytes(MOST_BYTES + 1))
    result, _ = Guest(files, way).ask(pv_read, b"a", size=2**64 - 1)
    assert result == MOST_BYTES
    assert files.asked == [(b"a", 0, MOST_BYTES)]


@pytest.mark.parametrize("size", [0, 1, 8, MOST_BYTES])
def test_a_file_is_written(way: str, size: int) -> None:
    files, data = Recorder(), bytes(i % 251 for i in range(size))
    assert Guest(files, way).ask(pv_write, b"a", offset=5, data=data) == (size, b"")
    assert files.asked == [(b"a", 5, data, False, False, False)]


@pytest.mark.parametrize("flags", range(8))
def test_the_flags_of_a_write(way: str, flags: int) -> None:
    files = Recorder()
    Guest(files, way).ask(pv_write, b"a", flags, data=b"x")
    expected = bool(flags & CREATE), bool(flags & TRUNCATE), bool(flags & APPEND)
    assert files.asked == [(b"a", 0, b"x", *expected)]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ELOOP, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("hypercall", [pv_read, pv_write], ids=lambda one: one.name)
def test_the_host_s_refusal_is_the_result(way: str, hypercall: Hypercall, number: int) -> None:
    assert Guest(Recorder(error=number), way).ask(hypercall, b"a") == (-number, b"")


@pytest.mark.parametrize(
    ("hypercall", "arguments", "number"),
    [
        (pv_read, {"flags": 1}, errno.EINVAL),
        (pv_read, {"flags": 1 << 31}, errno.EINVAL),
        (pv_read, {"offset": LARGEST_OFFSET}, errno.EINVAL),
        (pv_read, {"offset": 2**64 - 1}, errno.EINVAL),
        (pv_read, {"path": b"x" * (LONGEST_PATH + 1)}, errno.ENAMETOOLONG),
        (pv_read, {"path": b"x" * (64 << 10)}, errno.ENAMETOOLONG),
        (pv_write, {"flags": 8}, errno.EINVAL),
        (pv_write, {"offset": 1 << 63, "data": b"x"}, errno.EINVAL),
        (pv_write, {"size": MOST_BYTES + 1}, errno.EFBIG),
        (pv_write, {"size": 2**64 - 1}, errno.EFBIG),
    ],
)
def test_a_request_that_cannot_be_is_answered_without_asking(
    way: str, hypercall: Hypercall, arguments: dict[str, object], number: int
) -> None:
    files = Recorder()
    assert Guest(files, way).ask(hypercall, **{"path": b"a", **arguments}) == (-number, b"")  # type: ignore[arg-type]
    assert not files.asked


@pytest.mark.parametrize("hypercall", [pv_read, pv_write], ids=lambda one: one.name)
def test_without_a_directory_there_is_a_fault(way: str, hypercall: Hypercall) -> None:
    with pytest.raises(GuestFault):
        Guest(None, way).ask(hypercall, b"a")


def test_virtual_addresses_are_all_of_them_virtual() -> None:
    files, virtual = Recorder(b"content"), FakeMemory(RAM)
    fakes = FakeCalls(RAM, files)
    virtual.write(BLOCK, REQUEST.pack(PATH, 1, 0, 0, BUFFER, 100, 0))
    call = Call(pv_read.number, CallMemory(fakes.memory, virtual), fakes.clock, fakes.machine)
    call.value = BLOCK | VIRTUAL
    pv_read(call)
    assert virtual.read(BUFFER, 8) == b"content\0"
    virtual.write(BLOCK, REQUEST.pack(PATH, 1, 0, 0, BUFFER, 7, 0))
    pv_write(call)
    assert files.asked == [(b"\0", 0, 100), (b"\0", 0, b"content", False, False, False)]
    assert not any(fakes.memory.ram)


@pytest.mark.parametrize("flags", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("hypercall", [pv_read, pv_write], ids=lambda one: one.name)
def test_other_bits_of_the_value_are_refused(hypercall: Hypercall, flags: int) -> None:
    guest = Guest(Recorder(), "physical")
    with pytest.raises(GuestFault):
        guest.fakes.wrmsr(hypercall, BLOCK | flags)


@pytest.mark.parametrize(
    ("value", "path", "buffer"),
    [(RAM - 40, PATH, BUFFER), (2**64 - 8, PATH, BUFFER), (BLOCK, RAM - 1, BUFFER), (BLOCK, PATH, RAM - 1)],
    ids=["block", "block at the end of all", "path", "buffer"],
)
@pytest.mark.parametrize("virtual", [0, VIRTUAL])
@pytest.mark.parametrize("hypercall", [pv_read, pv_write], ids=lambda one: one.name)
def test_what_is_not_in_memory_is_refused(
    hypercall: Hypercall, virtual: int, value: int, path: int, buffer: int
) -> None:
    fakes = FakeCalls(RAM, Recorder(b"content"))
    fakes.memory.write(BLOCK, REQUEST.pack(path, 2, 0, 0, buffer, 2, 0))
    before = bytes(fakes.memory.ram)
    with pytest.raises(OutsideMemory):
        fakes.wrmsr(hypercall, value | virtual)
    assert fakes.memory.ram == before


# --- the mailbox ------------------------------------------------------------------------------------------------


def test_what_others_left_in_the_mailbox_is_no_part_of_a_request() -> None:
    files = Recorder(b"content")
    guest = Guest(files, "mailbox")
    guest.put(REQUEST.pack(0, 5, 0, 0, 0, 100, 0) + b"other")       # somebody was killed here
    assert guest.ask(pv_read, b"mine", size=100) == (7, b"content")
    assert files.asked == [(b"mine", 0, 100)]


def test_an_answer_nobody_took_is_no_part_of_the_next() -> None:
    guest = Guest(Recorder(b"content"), "mailbox")
    guest.put(REQUEST.pack(0, 1, 0, 0, 0, 100, 0) + b"a")
    guest.fakes.wrmsr(pv_read, 56 | IN_MAILBOX)
    assert guest.ask(pv_read, b"a", offset=4, size=100) == (3, b"ent")


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (b"", 0), (b"", 48), (bytes(40), 40), (bytes(40), 48), (bytes(48), 0), (bytes(48), 2**64 - 8),
        (REQUEST.pack(0, 9, 0, 0, 0, 0, 0) + b"12345678", 56),
        (REQUEST.pack(0, 2**32 - 1, 0, 0, 0, 0, 0) + b"12345678", 56),
    ],
    ids=["nothing", "nothing in it", "no block", "a part of it", "no size", "any size", "half a path", "a huge path"],
)
@pytest.mark.parametrize("hypercall", [pv_read, pv_write], ids=lambda one: one.name)
def test_a_mailbox_with_less_than_a_request_is_refused_and_emptied(
    hypercall: Hypercall, content: bytes, size: int
) -> None:
    files = Recorder()
    guest = Guest(files, "mailbox")
    guest.put(content)
    with pytest.raises(GuestFault):
        guest.fakes.wrmsr(hypercall, size | IN_MAILBOX)
    assert not files.asked and not guest.fakes.mailbox


def test_a_write_of_more_than_the_mailbox_holds_is_an_errno() -> None:
    files = Recorder()
    guest = Guest(files, "mailbox")
    guest.put(REQUEST.pack(0, 1, 0, 0, 0, 8, 0) + b"a1234567")
    guest.fakes.wrmsr(pv_write, 56 | IN_MAILBOX)
    assert guest.take() == RESULT.pack(-errno.EINVAL) and not files.asked


# --- whatever a guest writes --------------------------------------------------------------------------------------


@contextmanager
def some_files() -> Iterator[tuple[Path, WholeFiles]]:
    """A directory with another in it, as a machine exports it."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "d").mkdir()
        with closing(WholeFiles(Export(Path(name), "test"))) as files:
            yield Path(name), files


NEAR = st.sampled_from([0, 1, 8, 48, 4096, 4097, BLOCK, PATH, BUFFER, RAM - 48, RAM - 1, RAM, 2**31, 2**63, 2**64 - 1])
NUMBERS = NEAR | st.integers(0, 64) | WORDS
BLOCKS = st.binary(min_size=48, max_size=48) | st.builds(
    REQUEST.pack,
    NUMBERS,
    (NEAR | st.integers(0, 64)).map(lambda number: number & 0xFFFF_FFFF),
    st.integers(0, 8),
    NUMBERS, NUMBERS, NUMBERS,
    st.just(0),
)
REQUESTS = st.tuples(st.sampled_from([pv_read, pv_write]), BLOCKS, st.binary(max_size=64), NUMBERS | st.just(BLOCK))


@settings(max_examples=300)
@given(st.lists(REQUESTS, max_size=4))
def test_a_malformed_request_is_an_errno_or_a_fault(requests: list[tuple[Hypercall, bytes, bytes, int]]) -> None:
    with some_files() as (_, files):
        fakes = FakeCalls(RAM, files)
        for hypercall, block, rest, value in requests:
            fakes.memory.write(BLOCK, block + rest)
            fakes.memory.write(PATH, rest)
            fakes.mailbox += block + rest
            for one in (value, value | VIRTUAL, len(fakes.mailbox) & ~7 | IN_MAILBOX, value & ~7 | IN_MAILBOX):
                try:
                    assert fakes.wrmsr(hypercall, one) is None
                except (GuestFault, OutsideMemory):
                    pass


# --- against a model ----------------------------------------------------------------------------------------------


@dataclass
class Model:
    """What the files of `some_files` hold."""

    files: dict[bytes, bytes] = field(default_factory=dict)

    def _find(self, path: bytes) -> int:
        """The errno for what is at a path; 0 for a file."""
        way, _, _ = path.rpartition(b"/")
        if way not in (b"", b"d"):
            return errno.ENOTDIR if way in self.files else errno.ENOENT
        if path == b"d":
            return errno.EISDIR
        return 0 if path in self.files else errno.ENOENT

    def read(self, path: bytes, offset: int, size: int) -> tuple[int, bytes]:
        if number := self._find(path):
            return -number, b""
        data = self.files[path][offset : offset + size]
        return len(data), data

    def write(self, path: bytes, flags: int, offset: int, data: bytes) -> tuple[int, bytes]:
        number = self._find(path)
        way = path.rpartition(b"/")[0]
        if number == errno.ENOENT and flags & CREATE and way in (b"", b"d"):
            number, self.files[path] = 0, b""
        if number:
            return -number, b""
        before = b"" if flags & TRUNCATE else self.files[path]
        if flags & APPEND:
            offset = len(before)
        after = before.ljust(offset, b"\0")[:offset] + data + before[offset + len(data) :] if data else before
        self.files[path] = after
        return len(data), b""


PATHS = st.sampled_from([b"a", b"b", b"d/a", b"d", b"a/x", b"no/a"])
OFFSETS = st.integers(0, 40)
STEPS = st.one_of(
    st.tuples(st.just(pv_read), PATHS, st.just(0), OFFSETS, st.integers(0, 60), st.just(b"")),
    st.tuples(st.just(pv_write), PATHS, st.integers(0, 7), OFFSETS, st.just(0), st.binary(max_size=30)),
)


@settings(max_examples=150)
@given(st.sampled_from(WAYS), st.lists(STEPS, max_size=20))
def test_files_are_as_a_model_of_them(
    way: str, steps: list[tuple[Hypercall, bytes, int, int, int, bytes]]
) -> None:
    model = Model()
    with some_files() as (directory, files):
        guest = Guest(files, way)
        for hypercall, path, flags, offset, size, data in steps:
            found = guest.ask(hypercall, path, flags, offset, size, data)
            if hypercall is pv_read:
                assert found == model.read(path, offset, size)
            else:
                assert found == model.write(path, flags, offset, data)
        paths = (path for path in directory.rglob("*") if path.is_file())
        assert {bytes(path.relative_to(directory)): path.read_bytes() for path in paths} == model.files
