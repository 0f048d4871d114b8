"""What a test leaves behind when it fails, for whoever has to find out why."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from emu.errors import EmuError
from emu.fleet.failures import MachineFailure
from emu.fleet.log import printable
from emu.guest import Result
from emu.process.messages import Diagnosis

if TYPE_CHECKING:
    from emu.fleet.fleet import Fleet
    from emu.fleet.machine import FleetMachine

__all__ = ["failure_report", "place_of"]

HERE = Path(__file__).parent
CONSOLE_LINES = 25
OUTPUT_LINES = 40
LONGEST_LINE = 500                      # characters
ANSWER_S = 5.0                          # for a machine's process to say where it stands


def failure_report(fleet: Fleet, error: BaseException) -> str:
    """The failure itself, and the state of every machine.

    Args:
        fleet: whose machines are still there.
        error: what the test ended with.
    """
    lines = [f"FAILED after {fleet.log.seconds:.2f} s: {_headline(error)}"]
    if fleet.failed_in:
        lines.append(f"  subtest: {' > '.join(fleet.failed_in)}")
    if place := place_of(error.__traceback__):
        lines.append(f"  at: {place}")
    lines += [f"  {printable(note)}" for note in getattr(error, "__notes__", ())]
    if isinstance(error, MachineFailure):
        lines += _command(error)
    for machine in fleet:
        lines += ["", *_machine(fleet, machine)]
    return "\n".join(lines)


def _headline(error: BaseException) -> str:
    if isinstance(error, EmuError):
        return printable(str(error))
    return printable(" ".join("".join(traceback.format_exception_only(error)).split()))


def place_of(trace: TracebackType | None) -> str:
    """The line of the test that an exception comes from: file, number and text; nothing if there is none."""
    frames = [frame for frame in traceback.extract_tb(trace) if Path(frame.filename).parent != HERE]
    outer = [frame for frame in frames if not _is_ours(frame.filename)]
    if not outer:
        return ""
    line = linecache.getline(outer[-1].filename, outer[-1].lineno or 0).strip()
    return f"{outer[-1].filename}:{outer[-1].lineno}: {line}"


def _is_ours(filename: str) -> bool:
    """Whether it is this package's file, or Python's own."""
    return HERE.parent in Path(filename).parents or filename.startswith("<") or "/lib/python3" in filename


def _command(error: MachineFailure) -> list[str]:
    if error.command is None:
        return []
    lines = ["  command:", *_indented(error.command.splitlines())]
    if error.result is None:
        return [*lines, "  it had not ended"]
    return [*lines, f"  status: {_status(error.result)}", *_outputs(error.result)]


def _status(result: Result) -> str:
    signal = result.status - 128
    return f"{result.status}{f' (signal {signal})' if 0 < signal <= 64 else ''}"


def _outputs(result: Result) -> list[str]:
    lines = []
    for name, text in ("stdout", result.stdout), ("stderr", result.stderr):
        lines += [f"  {name}:{'' if text else ' nothing'}", *_indented(_last(text, OUTPUT_LINES))]
    return lines


def _machine(fleet: Fleet, machine: FleetMachine) -> list[str]:
    """The state of one machine, which may be anything but well."""
    title = f"{machine.name} (CID {machine.cid})"
    process = machine.current           # which may still be starting
    if process is None:
        return [f"{title}: not running", *_console(machine.last_console)]
    if not process.alive:
        return [f"{title}: its process {process.pid} is gone, and the end of its console with it"]
    diagnosis = fleet.within(ANSWER_S, process.diagnose)
    if diagnosis is None:
        return [f"{title}: its process {process.pid} does not answer"]
    console = fleet.within(ANSWER_S, process.console_output)
    return [f"{title}: {_state(diagnosis)}", *_transport(diagnosis), *_console(console or b"")]


def _state(diagnosis: Diagnosis) -> str:
    if diagnosis.panic:
        return printable(diagnosis.panic)
    return f"stopped: {diagnosis.stopped}" if diagnosis.stopped else "running"


def _transport(diagnosis: Diagnosis) -> list[str]:
    """The ways to the guest: why one is not there, and what happened on them."""
    lines = [
        f"  agent: {printable(diagnosis.agent) or 'there'}",
        f"  vsock: {printable(diagnosis.sockets) or 'ready'}",
    ]
    if diagnosis.log:
        lines.append("  log, seconds ago:")
    return lines + [f"    {line.age_ms / 1000:7.2f}  {printable(line.text)}" for line in diagnosis.log]


def _console(output: bytes) -> list[str]:
    lines = _last(output.decode("utf-8", "replace"), CONSOLE_LINES)
    return ["  console:", *_indented(lines)] if lines else ["  console: nothing"]


def _last(text: str, count: int) -> list[str]:
    """The last lines of a text, and a word on those before."""
    lines = text.splitlines()
    left_out = len(lines) - count
    return ([f"... {left_out} lines before"] if left_out > 0 else []) + lines[-count:]


def _indented(lines: list[str]) -> list[str]:
    return [f"    {printable(line)[:LONGEST_LINE]}" for line in lines]
