"""Whatever a guest sends is answered, and only the export is touched. EMU_FUZZ_EXAMPLES sets how much is sent."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.p9 import messages as m
from devices.p9.codec import HEADER
from devices.p9.export import Limits
from devices.p9.mapping import Security
from devices.virtio.device import BadRequest
from tests.devices.p9.client import ROOT, Guest, chain_of

EXAMPLES = int(os.environ.get("EMU_FUZZ_EXAMPLES", "20"))
sent = {"frames": 0}
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
SECRET = b"the host's secret"

EDGES = {
    "B": [0, 1, 2, 3, 255],
    "H": [0, 7, 0xFFFF],
    "I": [0, 1, 2, 3, 4, 5, 0o100, 0o777, 0o40755, 0o10644, 0o120777, 0x200, 0x7FFF_FFFF, 0xFFFF_FFFF],
    "Q": [0, 1, 2, 17, 4096, (1 << 63) - 1, 1 << 63, (1 << 64) - 1],
}
NAMES = [
    b"a", b"b", b"directory", b"file", b"link", b"fifo", b"..", b".", b"", b"/", b"../outside/secret", b"a\0b",
    b"x" * 300, b"user.x", b"user.virtfs.mode", b"security.capability", b"9P2000.L", b"\xff",
]
WIDTHS = {"B": 8, "H": 16, "I": 32, "Q": 64}


def value(kind: str) -> st.SearchStrategy[Any]:
    """A value of a field, mostly an odd one."""
    if kind == "string":
        return st.sampled_from(NAMES)
    if kind == "strings":
        return st.lists(st.sampled_from(NAMES), max_size=4).map(tuple)
    if "fid" in kind:
        return st.integers(0, 5)
    return st.sampled_from(EDGES[kind]) | st.integers(0, (1 << WIDTHS[kind]) - 1)


def request(type_: int) -> st.SearchStrategy[bytes]:
    """A frame of that type, perhaps with data behind it."""
    message = m.MESSAGES[type_]
    hints = get_type_hints(message, include_extras=True)
    fields = [value("fid" if "fid" in name else hints[name].__metadata__[0]) for name in message._fields]
    return st.tuples(st.tuples(*fields), st.sampled_from([b"", b"x" * 17])).map(
        lambda drawn: m.encode(type_, 1, message(*drawn[0]), len(drawn[1])) + drawn[1]
    )


# Tversion seldom: it ends what the others built up.
REQUESTS = st.sampled_from([type_ for type_ in m.REQUESTS if type_ != m.TYPE_OF[m.Tversion]]).flatmap(request)
FRAMES = st.one_of(
    REQUESTS, REQUESTS, REQUESTS,
    st.binary(max_size=60),
    st.tuples(st.integers(0, 80), st.integers(0, 255), st.binary(max_size=60)).map(
        lambda drawn: HEADER.pack(drawn[0], drawn[1], 0) + drawn[2]
    ),
    st.tuples(REQUESTS, st.integers(0, 50)).map(lambda drawn: drawn[0][: drawn[1]]),
)


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    """Says at the end how many there were (pytest -s)."""
    yield
    print(f"\n9p: {sent['frames']:,} frames")


@contextmanager
def guest_of(security: Security, read_only: bool) -> Iterator[Guest]:
    """A guest of a small tree, with something beside it that has to stay."""
    directory = Path(tempfile.mkdtemp(prefix="p9-"))
    try:
        shared, outside = directory / "shared", directory / "outside"
        (shared / "directory").mkdir(parents=True)
        (shared / "file").write_bytes(b"content")
        (shared / "link").symlink_to(outside / "secret")
        os.mkfifo(shared / "fifo")
        outside.mkdir()
        (outside / "secret").write_bytes(SECRET)
        guest = Guest(shared, security, read_only, limits=Limits(2, 8, fids=8, xattr_bytes=1 << 17, listing_bytes=1000))
        yield guest
        guest.server.close()
        assert (outside / "secret").read_bytes() == SECRET and os.listdir(outside) == ["secret"]
        assert sorted(os.listdir(directory)) == ["outside", "shared"]
    finally:
        shutil.rmtree(directory)


def feed(guest: Guest, frames: list[bytes], cut: random.Random) -> None:
    """Send frames in odd pieces; each is answered, and nothing is written but the answer."""
    sent["frames"] += len(frames)
    for frame in frames:
        at = cut.randrange(len(frame) + 1)
        chain = chain_of([frame[:at], frame[at:]], [cut.choice([0, 7, 11, 64]), 600])
        size = chain.writable_size
        try:
            written = guest.server.handle(chain)
        except BadRequest:
            assert len(frame) < HEADER.size
            continue
        reply = b"".join(map(bytes, chain.writable))
        assert HEADER.size <= written <= size
        assert not any(reply[written:]) or reply[4] == m.RLERROR
        length, type_, tag = HEADER.unpack_from(reply)
        assert length == written and tag == HEADER.unpack_from(frame)[2]
        assert type_ == m.RLERROR or type_ == frame[4] + 1
        assert SECRET not in reply


@FUZZ
@given(
    st.lists(FRAMES, max_size=40), st.sampled_from([Security.NONE, Security.MAPPED]), st.booleans(), st.integers(0, 99)
)
def test_malformed_and_hostile_frames_are_answered(
    frames: list[bytes], security: Security, read_only: bool, seed: int
) -> None:
    with guest_of(security, read_only) as guest:
        feed(guest, frames, random.Random(seed))
        guest.version()
        guest.attach(ROOT)
        assert guest.stat().nlink


@FUZZ
@given(st.lists(FRAMES, max_size=20), st.lists(FRAMES, max_size=20), st.integers(0, 99))
def test_any_session_can_be_saved_and_goes_on(before: list[bytes], after: list[bytes], seed: int) -> None:
    with guest_of(Security.NONE, False) as guest:
        feed(guest, before, random.Random(seed))
        state = guest.server.save()
        new = Guest(guest.export.path, state=state, limits=Limits(2, 8, fids=8))
        feed(new, after, random.Random(seed))
        new.server.close()
