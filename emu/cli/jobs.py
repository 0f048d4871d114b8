"""The jobs of `emu map`: lines of a file, and what becomes of each as a line of JSON."""

from __future__ import annotations

import base64
import json
import math
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from queue import SimpleQueue

import click

from emu.guest import Result
from emu.pool.pool import Pool
from emu.pool.work import Command

__all__ = ["MOST_AHEAD", "Done", "count", "jobs", "opened", "results", "source", "write"]

STDIN = Path("-")
INPUT = "{}"
CHUNK = 64 << 10
MOST_AHEAD = 1000                       # jobs handed in whose results are not written yet


@dataclass(frozen=True)
class Done:
    """A job that is over: its number, its line, and what became of it."""

    number: int
    line: str
    future: Future[Result]


def source(inputs: Path | None, words: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """Where the lines come from, and the command that they are inputs of, if they are none themselves."""
    if inputs is None:
        if len(words) != 1:
            raise click.UsageError("name one file of commands, or - for standard input; or --inputs FILE -- CMD {}")
        return Path(words[0]), ()
    if not any(INPUT in word for word in words):
        raise click.UsageError(f"the command after -- needs a {INPUT}, for which the inputs stand")
    return inputs, words


@contextmanager
def opened(path: Path) -> Iterator[Iterator[str]]:
    """The file's lines, but for empty ones. Bytes that are not UTF-8 get to the guest as they are."""
    name, is_stdin = (0, True) if path == STDIN else (path, False)
    # Without a buffer, closing does not wait for a thread that reads
    with open(name, "rb", buffering=0, closefd=not is_stdin) as file:
        yield (line.decode("utf-8", "surrogateescape") for line in _lines(file) if line.strip())


def _lines(file: FileIO) -> Iterator[bytes]:
    partial = b""
    while chunk := file.read(CHUNK):
        *lines, partial = (partial + chunk).split(b"\n")
        yield from lines
    yield partial


def count(path: Path) -> int | None:
    """How many lines there will be, if that can be known: for a bar on a terminal."""
    if not (sys.stderr.isatty() and path.is_file()):
        return None
    with opened(path) as lines:
        return sum(1 for _ in lines)


def jobs(lines: Iterator[str], words: tuple[str, ...]) -> Iterator[tuple[str, Command]]:
    """Each line with the command to run for it: itself, or `words` with the line put in."""
    for line in lines:
        yield line, [word.replace(INPUT, line) for word in words] or line


def results(pool: Pool, jobs: Iterator[tuple[str, Command]], ordered: bool) -> Iterator[Done]:
    """Jobs that are over; as they end, or in their order. A thread hands them in: whoever writes them may be slow."""
    over: SimpleQueue[Done | int | Exception] = SimpleQueue()      # in the end how many, or why there are no more
    room = threading.Semaphore(MOST_AHEAD)
    threading.Thread(target=_hand_in, args=(pool, jobs, over, room), name="emu-map", daemon=True).start()
    held: dict[int, Done] = {}
    given, count = 0, math.inf
    while given < count:
        one = over.get()
        if isinstance(one, Exception):
            raise one
        if isinstance(one, int):
            count = one
            continue
        held[one.number if ordered else given] = one
        while given in held:
            yield held.pop(given)
            given += 1
            room.release()


def _hand_in(
    pool: Pool,
    jobs: Iterator[tuple[str, Command]],
    over: SimpleQueue[Done | int | Exception],
    room: threading.Semaphore,
) -> None:
    number = 0
    try:
        for line, job in jobs:
            room.acquire()
            pool.submit(job).add_done_callback(partial(_put, over, number, line))
            number += 1
        over.put(number)
    except Exception as error:
        over.put(error)


def _put(over: SimpleQueue[Done | int | Exception], number: int, line: str, future: Future[Result]) -> None:
    over.put(Done(number, line, future))


def write(done: Done, key: str) -> bool:
    """Write a line of JSON; whether the command has succeeded."""
    fields: dict[str, object] = {"job": done.number, key: _text(done.line)}
    error = done.future.exception()
    if error is None:
        result = done.future.result()
        fields |= {"status": result.status}
        fields |= _output("stdout", result.stdout_bytes) | _output("stderr", result.stderr_bytes)
    else:
        fields |= {"error": type(error).__name__, "message": " ".join(str(error).split())}
    print(json.dumps(fields), flush=True)
    return fields.get("status") == 0


def _output(name: str, data: bytes) -> dict[str, object]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def _text(line: str) -> str:
    """A line that may have had bytes that are not UTF-8, which JSON cannot have."""
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
