"""Guests as processes with a serial line on their standard input and output: ours and QEMU's, driven alike."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import ROOT
from bench.ours import Settings
from emu.errors import GuestStopped, GuestTimeout
from emu.launch import DEFAULT_MEMORY
from emu.loader.linux import command_line
from emu.memory import MIB

__all__ = ["PROMPT", "QEMU_MISSING", "SerialGuest", "have_qemu", "ours", "qemu"]

PROMPT = b"~ # "                # what the init of this package's roots sets
QEMU = "qemu-system-x86_64"
QEMU_MISSING = f"{QEMU} is not installed: no ratio, only our own figures"
# The distribution's kernel as QEMU's users start it: no more than the console.
QEMU_AS_SHIPPED = "console=ttyS0"
QEMU_MODELS = {"none": "none", "mapped": "mapped-xattr", "passthrough": "passthrough"}
CHUNK = 65536
QUOTED_BYTES = 2000
END_S = 5.0


class SerialGuest:
    """A guest that runs in a process. The process, with all its time, starts here.

    Args:
        command: program and arguments; standard input and output are the guest's serial line.

    Attributes:
        output: everything the guest has written.
        started_ns: host monotonic time just before the process was started.
    """

    def __init__(self, command: list[str]) -> None:
        self.output = bytearray()
        self._searched = 0
        self._errors = tempfile.TemporaryFile()     # noqa: SIM115  # closed in close()
        self.started_ns = time.monotonic_ns()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=ROOT, bufsize=0
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output_fd = self._process.stdin.fileno(), self._process.stdout.fileno()

    def send(self, data: bytes) -> int:
        """Type bytes; returns the host monotonic time at which that was done, in nanoseconds."""
        os.write(self._input, data)
        return time.monotonic_ns()

    def expect(self, marker: bytes, timeout: float) -> int:
        """Wait until the guest writes `marker`, behind what earlier calls found.

        Args:
            timeout: host seconds.

        Returns:
            Host monotonic time at which its last byte was read, in nanoseconds.

        Raises:
            GuestTimeout, GuestStopped: it was not written in time; the process ended before.
        """
        end = time.monotonic() + timeout
        seen_ns = time.monotonic_ns()
        while (found := self.output.find(marker, self._searched)) < 0:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._output_fd], [], [], left)[0]:
                raise GuestTimeout(f"{marker!r} did not appear in {timeout:g} s; the console ends in:\n{self.tail()}")
            data = os.read(self._output_fd, CHUNK)
            seen_ns = time.monotonic_ns()
            if not data:
                raise GuestStopped(f"the guest stopped before {marker!r}:\n{self.tail()}\n{self.errors()}")
            self.output += data
        self._searched = found + len(marker)
        return seen_ns

    def line(self, timeout: float) -> str:
        """The next whole line that the guest writes; errors as `expect`."""
        start = self._searched
        self.expect(b"\n", timeout)
        return self.output[start : self._searched].decode("utf-8", "replace").rstrip()

    def command(self, text: str, timeout: float) -> str:
        """Run a command in the guest's shell, at its prompt, and return what it writes on the terminal."""
        start = self._searched
        self.send(f"{text}; echo D''ONE\n".encode())
        self.expect(b"DONE\r\n", timeout)
        output = self.output[start : self._searched - len(b"DONE\r\n")].decode("utf-8", "replace")
        return output.partition("\n")[2].replace("\r\n", "\n")     # without the echo of what was typed

    def tail(self) -> str:
        """The end of what the guest wrote."""
        return self.output[-QUOTED_BYTES:].decode("utf-8", "replace")

    def errors(self) -> str:
        """The end of what the process wrote on its standard error."""
        self._errors.seek(0)
        return self._errors.read()[-QUOTED_BYTES:].decode("utf-8", "replace").strip()

    def cpu_s(self) -> float:
        """Processor time that the process has used, all threads, to one clock tick."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_bytes().rpartition(b")")[2].split()
        return sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK")    # utime, stime (proc(5))

    def kill(self) -> str:
        """Kill the process in the midst of what it does; returns what the guest wrote that no call has found."""
        self._process.kill()
        while data := os.read(self._output_fd, CHUNK):
            self.output += data
        self._process.wait()
        return self.output[self._searched :].decode("utf-8", "replace")

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def __enter__(self) -> SerialGuest:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def ours(settings: Settings) -> SerialGuest:
    """Start a machine of ours (bench/ours.py) under the interpreter that runs this."""
    return SerialGuest([sys.executable, "-m", "bench.ours", json.dumps(dataclasses.asdict(settings))])


def have_qemu() -> bool:
    """Whether there is a QEMU to compare with."""
    return shutil.which(QEMU) is not None


def qemu(settings: Settings) -> SerialGuest:
    """Start QEMU's TCG with the same kernel, initramfs, memory, command line and share."""
    line = QEMU_AS_SHIPPED if settings.as_shipped else command_line(settings.append)
    share = (
        *("-fsdev", f"local,id=share,path={settings.share},security_model={QEMU_MODELS[settings.security]}"),
        *("-device", "virtio-9p-pci,fsdev=share,mount_tag=data"),
    )
    return SerialGuest([
        *(QEMU, "-accel", "tcg", "-m", str(DEFAULT_MEMORY // MIB), "-nographic", "-no-reboot"),
        *("-kernel", settings.kernel, "-initrd", settings.initrd, "-append", line),
        *(share if settings.share else ()),
    ])
