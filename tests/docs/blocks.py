"""The fenced blocks of README and docs/: what is in them, and how each is run.

How a block is run follows from its language, and from a comment in the line before it, which readers do not see:

    <!-- not run: REASON -->        it is not, and why
    <!-- output varies -->          its commands are run; what they print is of one machine, or one day
    <!-- file: NAME -->             it is written to that file; a line "`NAME`:" before it does the same
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(r"^```(?P<language>[\w{}-]*)[^\n]*\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)
DIRECTIVE = "{"                         # of the site's generator, as in ```{toctree}
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
VARIES = "<!-- output varies -->"
FILE = re.compile(r"<!-- file: (\S+) -->|`([\w.-]+)`:")
IS_TEST = re.compile(r"^def test_", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        place: file and line, for messages.
        before: the line before it that is not empty.
    """

    place: str
    language: str
    content: str
    before: str

    @property
    def reason(self) -> str | None:
        """Why it is not run, if it is not."""
        found = NOT_RUN.fullmatch(self.before)
        return found[1] if found else None

    @property
    def output_varies(self) -> bool:
        """Whether what it shows is that of one machine."""
        return self.before == VARIES

    @property
    def file(self) -> str | None:
        """The file that it is, if it is one."""
        found = FILE.search(self.before)
        return (found[1] or found[2]) if found and self.before.endswith((":", "-->")) else None

    @property
    def is_test(self) -> bool:
        """Whether it is for pytest."""
        return self.language == "python" and bool(IS_TEST.search(self.content))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, but those that are directives of the site's generator."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    assert len(ANY_FENCE.findall(text)) == 2 * len(found), f"{page}: a fence is indented, or not closed"
    return [
        Block(
            f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}",
            match["language"],
            match["content"],
            text[: match.start()].rstrip().rpartition("\n")[2],
        )
        for match in found
        if not match["language"].startswith(DIRECTIVE)
    ]


@dataclass(frozen=True)
class Typed:
    """A command of a block, and what it prints there."""

    prompt: str
    command: str
    output: str


def typed(block: Block) -> list[Typed]:
    """The commands of a console block: those of the host stand behind `$`, those of a guest behind `#`."""
    commands: list[Typed] = []
    continued = False
    for line in block.content.splitlines():
        if continued:
            last = commands.pop()
            commands.append(Typed(last.prompt, f"{last.command}\n{line}", ""))
        elif line.startswith(("$ ", "# ")):
            commands.append(Typed(line[0], line[2:], ""))
        else:
            assert commands, f"{block.place}: output before the first command"
            last = commands.pop()
            commands.append(Typed(last.prompt, last.command, f"{last.output}{line}\n"))
        continued = not commands[-1].output and commands[-1].command.endswith("\\")
    return commands


def matches(shown: str, seen: str) -> bool:
    """Whether output is as shown, where three dots stand for anything."""
    return re.fullmatch(re.escape(shown).replace(re.escape("..."), ".*"), seen, re.DOTALL) is not None
