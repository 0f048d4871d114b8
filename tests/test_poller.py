"""Waiting for files: who is called back, and when no more."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest

from emu import poller as poller_module
from emu.poller import Poller


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_a_readable_file_calls_back_until_it_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    poller, seen = Poller(), []
    poller.watch(here.fileno(), lambda: seen.append(here.recv(1)))
    poller.wait(0)
    there.send(b"ab")
    for _ in range(3):
        poller.wait(0)
    assert seen == [b"a", b"b"]


def test_a_writable_file_calls_back_only_if_that_was_asked(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    poller, seen = Poller(), []
    poller.watch(here.fileno(), readable=lambda: seen.append("read"))
    poller.wait(0)
    assert seen == []
    poller.watch(here.fileno(), writable=lambda: seen.append("write"))
    poller.wait(0)
    assert seen == ["write"]


def test_only_sleep_is_slept_time(monkeypatch: pytest.MonkeyPatch) -> None:
    poller, (reader, writer) = Poller(), os.pipe()
    poller.wait(20_000_000)
    assert poller.slept_ns >= 20_000_000
    before, now_ns = poller.slept_ns, 0

    def work() -> None:
        nonlocal now_ns
        os.read(reader, 1)
        now_ns += 1_000_000_000

    monkeypatch.setattr(poller_module, "time", SimpleNamespace(monotonic_ns=lambda: now_ns))
    poller.watch(reader, work)
    os.write(writer, b"xy")
    for timeout_ns in (0, 10_000_000_000):
        poller.wait(timeout_ns)
    assert now_ns == 2_000_000_000
    assert poller.slept_ns == before
    os.close(reader)
    os.close(writer)


def test_an_end_that_is_gone_calls_back(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    poller, seen = Poller(), []
    poller.watch(here.fileno(), lambda: seen.append(here.recv(1)))
    there.close()
    poller.wait(0)
    assert seen == [b""]


def test_a_callback_may_forget_another_file_that_is_ready(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    reader, writer = os.pipe()
    try:
        poller, seen = Poller(), []
        poller.watch(here.fileno(), lambda: (seen.append("socket"), poller.forget(reader)))
        poller.watch(reader, lambda: seen.append("pipe"))
        there.send(b"x")
        os.write(writer, b"x")
        poller.wait(0)
        assert seen == ["socket"]
    finally:
        os.close(reader)
        os.close(writer)


def test_only_what_is_kept_is_watched_on(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    poller, seen = Poller(), []
    for end in pair:
        poller.watch(end.fileno(), partial(seen.append, end))
    here.send(b"x")
    there.send(b"x")
    poller.forget_others((there.fileno(), -1))
    poller.wait(0)
    assert seen == [there]
