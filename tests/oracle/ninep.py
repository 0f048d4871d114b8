"""One script in a share of ours and in one of QEMU's: whatever differs is printed, with the reason where there is one.

    python -m tests.oracle.ninep

QEMU's virtio-9p is the oracle, under the same kernel and initramfs; its security models none, mapped-xattr and, for
root, passthrough stand beside ours of the same meaning. Compared are what each step of ninep_steps.sh writes in the
guest, and what it left on the host: types, modes, owners, contents, extended attributes. docs/9p.md explains the
differences in full. The exit status is 1 if one is not explained, and 2 without QEMU.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.files import initramfs_file, kernel_file
from bench.ours import Settings
from bench.serial_guest import PROMPT, QEMU_MISSING, SerialGuest, have_qemu, ours, qemu
from tests.oracle.ninep_programs import PROGRAMS

__all__ = ["EXPLAINED", "MODELS", "Difference", "compare", "differences", "parse", "script", "steps"]

STEPS = Path(__file__).with_name("ninep_steps.sh")
KERNEL = "generic"
MODELS = "none", "mapped", *(() if os.geteuid() else ("passthrough",))
START_S, SCRIPT_S = 120.0, 600.0
SHARE, TOOLS = "/mnt/data", ".tools"
BEGIN, END = "=== ", "=== end"

SPECIAL = "QEMU opens what it made, and since the fix of CVE-2023-2861 opens no special file; we make it without"
SET_ID = "set-user-id and set-group-id bits of a guest do not reach the host's file"
FILE_SYSTEM = "QEMU says the host's file system type, we say 9p's"
BLOCK_SIZE = "QEMU says msize, we say at most 128 KiB: programs take it for the size of a buffer"
EMPTY_XATTR = "QEMU takes an empty value for a removal; we do so only with XATTR_REPLACE, as Linux removes"
OUR_XATTRS = "where the mapping is kept no guest may read or write, whatever the model"
STORED_XATTRS = "we keep trusted and security attributes under names of our own; QEMU has none"

EVERYWHERE = {
    "statfs": FILE_SYSTEM, "stat-block-size": BLOCK_SIZE, "xattr": EMPTY_XATTR, "xattr-namespaces": OUR_XATTRS,
}  # fmt: skip
FILES = dict.fromkeys(("create-umask", "readdir-types", "fifo", "socket", "permissions-own"), SPECIAL)
SET_IDS = dict.fromkeys(("mkdir-modes", "chmod-set-id", "chown-clears-set-id", "write-clears-set-id"), SET_ID)
EXPLAINED: dict[str, dict[str, str]] = {
    "none": EVERYWHERE | FILES | SET_IDS | {"device": "nobody makes the host a device; the errors differ"},
    "mapped": EVERYWHERE | {"xattr-namespaces": STORED_XATTRS, "xattr-capability": STORED_XATTRS},
    "passthrough": EVERYWHERE | FILES | {"device": SPECIAL},
}
"""Why a step differs, by model and step."""


@dataclass(frozen=True)
class Difference:
    """A step that did not go the same way.

    Attributes:
        model: of security.
        step: its name.
        lines: of a diff from QEMU's output, and behind it what is on the host, to ours.
    """

    model: str
    step: str
    lines: tuple[str, ...]

    @property
    def reason(self) -> str | None:
        """Why it is so; None if nobody knows."""
        return EXPLAINED[self.model].get(self.step)


def steps() -> tuple[str, dict[str, str]]:
    """The functions that the steps use, and the text of each by its name."""
    prelude, *parts = re.split(r"^### (.+)\n", STEPS.read_text(), flags=re.MULTILINE)
    return prelude, dict(zip(parts[::2], parts[1::2], strict=True))


def script() -> str:
    """All steps as a script, each in a shell and a directory of its own."""
    prelude, texts = steps()
    parts = [f"export PATH=/tmp/{TOOLS}:$PATH\ncp -r {SHARE}/{TOOLS} /tmp\numask 022\n{prelude}"]
    parts += [
        f"echo '{BEGIN}{name}'; mkdir {SHARE}/{name}; (\ncd {SHARE}/{name}\n{text}) </dev/null 2>&1\necho '{END}'\n"
        for name, text in texts.items()
    ]
    return "".join(parts)


def parse(output: str) -> dict[str, list[str]]:
    """What each step wrote, in lines."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in output.splitlines():
        if line == END:
            lines = []
        elif line.startswith(BEGIN):
            found[line.removeprefix(BEGIN)] = lines = []
        else:
            lines.append(line)
    return found


def on_host(directory: Path) -> list[str]:
    """What is in a directory of the host, a line for each name."""
    top, lines = os.fsencode(directory), []
    for parent, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            keys = sorted(os.listxattr(path, follow_symlinks=False))
            owner = f"{status.st_uid}:{status.st_gid}"
            facts = [repr(os.path.relpath(path, top)), stat.filemode(status.st_mode), owner]
            if stat.S_ISREG(status.st_mode):
                facts.append(f"{status.st_size} bytes {_digest(path)}")
            elif stat.S_ISLNK(status.st_mode):
                facts.append(repr(os.readlink(path)))
            facts += [f"{key}={os.getxattr(path, key, follow_symlinks=False)!r}" for key in keys]
            lines.append("host: " + " ".join(facts))
    return sorted(lines)


def _digest(path: bytes) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:12]


def run(start: Callable[[Settings], SerialGuest], initrd: Path, model: str) -> dict[str, list[str]]:
    """Run the steps on one side; for each, what it wrote and what it left.

    Args:
        start: boots that side.
        initrd: of both.
        model: in `MODELS`.
    """
    with tempfile.TemporaryDirectory() as name:
        share = Path(name)
        share.chmod(0o755)
        (share / TOOLS).mkdir()
        for tool, program in PROGRAMS.items():
            (share / TOOLS / tool).write_bytes(program.elf)
            (share / TOOLS / tool).chmod(0o755)
        (share / TOOLS / "script").write_text(script())
        settings = Settings(str(kernel_file(KERNEL)), str(initrd), share=name, security=model)
        with start(settings) as guest:
            guest.expect(PROMPT, START_S)
            output = guest.command(f"sh {SHARE}/{TOOLS}/script", SCRIPT_S)
        return {step: lines + on_host(share / step) for step, lines in parse(output).items()}


def compare(model: str, expected: dict[str, list[str]], found: dict[str, list[str]]) -> list[Difference]:
    """The steps whose lines are not the same."""
    differences = []
    for step in {**expected, **found}:
        lines = list(difflib.unified_diff(expected.get(step, []), found.get(step, []), lineterm="", n=1))[2:]
        if lines:
            differences.append(Difference(model, step, tuple(lines)))
    return differences


def differences() -> list[Difference]:
    """Run both sides under each model."""
    initrd = initramfs_file("alpine", modules=KERNEL)
    found = []
    for model in MODELS:
        found += compare(model, run(qemu, initrd, model), run(ours, initrd, model))
    return found


def main() -> int:
    """Print the differences; the exit status."""
    if not have_qemu():
        print(QEMU_MISSING, file=sys.stderr)
        return 2
    found = differences()
    for difference in found:
        print(f"\n{difference.model}: {difference.step}: {difference.reason or 'NOT EXPLAINED'}")
        print("\n".join(f"    {line}" for line in difference.lines))
    unknown = [difference for difference in found if difference.reason is None]
    total = len(MODELS) * len(steps()[1])
    print(f"\n{total} steps; - is QEMU, + is ours; {len(found)} differ, {len(unknown)} of them not explained")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
