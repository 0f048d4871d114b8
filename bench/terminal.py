"""README's picture: a session that was really held, as an SVG whose lines appear when they appeared.

    python -m bench.terminal docs/pictures/terminal.svg
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

__all__ = ["Line", "Step", "drawn", "record"]

PATIENCE_S = 60.0
PAUSE_S = 0.8                           # of a person, before each command
COLUMNS = 96
PROMPT = "$ "
GUEST_PROMPT = r"# $"
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[78]|\r|\a")

CHARACTER, LINE, MARGIN = 7.85, 19, 16  # pixels
BACKGROUND, TEXT, TYPED = "#16181d", "#d5d8df", "#8fd18f"


@dataclass(frozen=True)
class Step:
    """A command, and what is typed at the programs that it runs: each when the output ends like the pattern."""

    command: str
    typed: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Line:
    """A line of the terminal, and how many seconds after the beginning it was there."""

    text: str
    seconds: float


SESSION = (
    Step("emu boot", ((GUEST_PROMPT, "uname -srm"), (GUEST_PROMPT, "cat /etc/alpine-release"), (GUEST_PROMPT, "exit"))),
    Step("emu exec -- sh -c 'echo restored, not booted: $(uptime)'"),
    Step("seq 3 | emu map --ordered --inputs - -- factor {}"),
    Step("emu stats -- true 2>&1 | tail -7"),
)


def record(steps: Sequence[Step]) -> list[Line]:
    """Hold a session on a terminal of its own.

    Raises:
        RuntimeError: a program did not say in a minute what it should.
    """
    lines: list[Line] = []
    seconds = 0.0
    for step in steps:
        seconds += PAUSE_S
        lines.append(Line(PROMPT + step.command, seconds))
        for line in _run(step):
            lines.append(Line(line.text, seconds + line.seconds))
        seconds = lines[-1].seconds
    lines.append(Line(PROMPT, seconds + PAUSE_S))
    return lines


def _run(step: Step) -> list[Line]:
    """The lines of one command, by seconds since its start."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        os.environ["COLUMNS"] = str(COLUMNS)
        os.execvp("sh", ["sh", "-c", step.command])
    started, paused = time.monotonic(), 0.0
    seen, lines, typed = b"", [], list(step.typed)
    try:
        while data := _read(terminal, started):
            seen += data
            *whole, seen = seen.split(b"\n")
            now = time.monotonic() - started + paused
            lines += [Line(_plain(line), now) for line in whole]
            if typed and re.search(typed[0][0], _plain(seen)):
                os.write(terminal, f"{typed.pop(0)[1]}\n".encode())
                paused += PAUSE_S
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    return [line for line in lines if line.text]


def _read(terminal: int, started: float) -> bytes:
    """What comes next; nothing at the end."""
    if not select.select([terminal], [], [], max(0.0, started + PATIENCE_S - time.monotonic()))[0]:
        raise RuntimeError(f"the session does not come to an end in {PATIENCE_S:g} s")
    try:
        return os.read(terminal, 65536)
    except OSError:                     # EIO: the other side is closed
        return b""


def _plain(data: bytes) -> str:
    return CONTROL.sub(b"", data).decode(errors="replace")


def drawn(lines: Sequence[Line]) -> str:
    """An SVG file: text and styles alone, no script, nothing from elsewhere.

    A viewer that moves nothing shows all lines.
    """
    width = round(COLUMNS * CHARACTER) + 2 * MARGIN
    height = len(lines) * LINE + 2 * MARGIN
    rows = [_row(number, line) for number, line in enumerate(lines)]
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{escape(lines[0].text)} ...</title>",
        "<style>",
        f"text {{ font: 13px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: {TEXT};",
        "  white-space: pre; animation: appear 1ms backwards }",
        f".typed {{ fill: {TYPED} }}",
        "@keyframes appear { from { opacity: 0 } }",
        "@media (prefers-reduced-motion: reduce) { text { animation: none } }",
        "</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
        *rows,
        "</svg>\n",
    ))  # fmt: skip


def _row(number: int, line: Line) -> str:
    kind = ' class="typed"' if line.text.startswith(PROMPT) else ""
    place = f'x="{MARGIN}" y="{MARGIN + number * LINE + 14}"'
    return f'<text{kind} {place} style="animation-delay:{line.seconds:.2f}s">{escape(line.text[:COLUMNS])}</text>'


def main() -> None:
    """Hold the session, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.svg")
    file = parser.parse_args().file
    record(SESSION[1:2])                # what is made on first use is there then
    lines = record(SESSION)
    file.write_text(drawn(lines), encoding="utf-8")
    print("\n".join(f"{line.seconds:6.2f}  {line.text}" for line in lines))


if __name__ == "__main__":
    main()
