"""What goes over the line between `emu.guest.SerialShell` and a shell: a function there, and its replies.

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

import re
import shlex
import zlib

from emu.console import Console

__all__ = ["LINE_BYTES", "Damaged", "Probe", "Reply", "function_text", "parse_reply", "request_line", "status_of"]

LINE_BYTES = 700                # typed at a time: busybox' line editor takes 1023, and a line has a few more
GZIP = 16                       # zlib: a gzip header and checksum

_PROMPT = re.compile(rb"[#$%>] (?:\x1b\[[0-9;?]*[a-zA-Z])*$")
_PLAIN = frozenset(range(0x20, 0x7F))

# $1 number of the reply, whose marks also carry TOKEN; $2 what to do:
#   n NAME LINES, l NAME LINES  take gzip in base64 from the terminal into a new, or the same file NAME
#   r TEXT TIME, f - TIME, i - TIME  run TEXT; the file c; the file c with the file i as input
#   p TEXT TIME                 run what printf makes of TEXT
#   a NAMES                     answer again
# Only a shell without job control uses TIME (seconds): Ctrl-C reaches nothing there, so a watchdog does it.
# `trap : INT` keeps the function alive when its job dies of Ctrl-C; the job itself gets the default action.
FUNCTION = r"""
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


def function_text(name: str, directory: str, token: str) -> str:
    """The shell function.

    Args:
        name: what to call it.
        directory: in the guest, for its files.
        token: in all marks, so that no other output can have them.
    """
    return FUNCTION.strip().replace("NAME", name).replace("DIR", directory).replace("TOKEN", token)


class Damaged(Exception):
    """A reply that the guest should give again: for these files."""

    def __init__(self, files: str) -> None:
        self.files = files


class Probe:
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


class Reply:
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


def request_line(text: bytes) -> str | None:
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


def status_of(content: bytes) -> tuple[int, bytes]:
    """A reply's exit status and what follows, as the guest wrote it; ValueError if damaged."""
    head, _, rest = content.partition(b"\n")
    if head.endswith(b"\r"):    # the terminal made CR LF of each LF
        rest = rest.replace(b"\r\n", b"\n")
    return int(head), rest


def parse_reply(content: bytes, files: dict[str, bytes]) -> int:
    """Add the files of a reply to `files`; the exit status. Raises `Damaged` for those still missing."""
    wanted = [name for name in "oe" if name not in files]
    try:
        status, rest = status_of(content)
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
        raise Damaged(" ".join(missing))
    return status
