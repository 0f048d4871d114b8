"""Multiboot kernels on the machine: 32-, 64- and 16-bit code, and the ways in which they end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import emu
from emu.cli import main
from emu.errors import EmuError
from emu.fittings import DebugExit
from emu.machine import Machine
from emu.memory import GIB, MIB
from emu.run_loop import StopReason
from tests.multiboot.images import BASE, elf, flat, header, kernel

END_S = 60.0                            # on a busy host; a kernel takes 20 ms
FILES: dict[str, Callable[[str], bytes]] = {
    "ELF32": lambda name: elf([(BASE, BASE, kernel(name), 0x1000)]),
    "ELF64": lambda name: elf([(BASE, BASE, kernel(name), 0x1000)], 64),
    "flat": flat,
}
COMMAND_LINE = 'one  two=3 "four"'
LOW_MEMORY = """\
memory 0000000000000000 000000000009fc00 00000001
memory 000000000009fc00 0000000000000400 00000002
memory 00000000000f0000 0000000000010000 00000002
"""
TOUR = f"""\
command line: {COMMAND_LINE}
module {{module}} its words: what is in it
{LOW_MEMORY}memory 0000000000100000 0000000003f00000 00000001
three ticks
page fault at 00400120 error 00000002 by {{place}}
0000600d
"""
REAL = """\
32-bit code
16-bit code
int 0x60
behind ud2
AuthenticAMD
three ticks
32-bit code again
"""

EXIT = b"\xb0\x05\xe6\xf4\xfa\xf4"      # mov al, 5; out 0xf4, al; cli; hlt: status 11, or a halt for good
HALT = b"\xfa\xf4"                      # cli; hlt
CRASH = b"\x0f\x0b"                     # ud2, without an IDT
PANIC = b"Kernel panic - not syncing\n"
ECHO = (                                # reads bytes and writes the ones that follow, until there is a NUL
    b"\x66\xba\xfc\x03\xb0\x03\xee"      # mov dx, 0x3fc; mov al, 3; out dx, al: DTR and RTS, go ahead
    b"\x66\xba\xfd\x03"                 # mov dx, 0x3fd
    b"\xec\xa8\x01\x74\xfb"             # in al, dx; test al, 1; jz to in
    b"\xb2\xf8\xec"                     # mov dl, 0xf8; in al, dx
    b"\x84\xc0\x74\x04"                 # test al, al; jz to the end
    b"\x40\xee\xeb\xec"                 # inc eax; out dx, al; jmp to mov dx, 0x3fd
) + EXIT


def program(tmp_path: Path, code: bytes) -> str:
    """The path of a kernel of a few instructions."""
    path = tmp_path / "kernel.elf"
    image = header().ljust(32, b"\0") + code
    path.write_bytes(elf([(BASE, BASE, image, len(image))]))
    return str(path)


def printing(text: bytes) -> bytes:
    """Instructions that write to COM1, whose transmitter is never full."""
    return b"\x66\xba\xf8\x03" + b"".join(b"\xb0" + bytes((byte,)) + b"\xee" for byte in text)


def run_to_end(machine: Machine) -> str:
    """Run a kernel; what it printed."""
    assert machine.run_to_end(END_S) is not None
    return machine.console.history.decode()


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("name", "first", "place", "status"),
    [("protected", "32-bit code", "0000003a", 43), ("long", "64-bit code", "00000014", 85)],
)
def test_a_kernel_sees_what_it_is_given_and_takes_interrupts_and_faults(
    name: str, first: str, place: str, status: int, kind: str, tmp_path: Path
) -> None:
    path, module = tmp_path / "kernel", tmp_path / "module"
    path.write_bytes(FILES[kind](name))
    module.write_text("what is in it")
    with emu.boot(kernel=path, memory=64 * MIB, append=COMMAND_LINE, initrd=f"{module} its words") as machine:
        assert run_to_end(machine) == f"{first}\n" + TOUR.format(module=module, place=place)
        assert (machine.stop_reason, machine.exit_status) == (StopReason.EXIT, status)
        assert f"status {status}" in machine.stop_detail


def test_real_mode_and_back(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(FILES["ELF32"]("real"))
    with emu.boot(kernel=str(path), memory=64 * MIB) as machine:
        assert run_to_end(machine) == REAL
        assert machine.exit_status == 103


def test_memory_above_4_gib_is_in_the_map(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(FILES["ELF32"]("protected"))
    with emu.boot(kernel=path, memory=4 * GIB) as machine:
        assert LOW_MEMORY + (
            "memory 0000000000100000 00000000bff00000 00000001\n"
            "memory 0000000100000000 0000000040000000 00000001\n"
        ) in run_to_end(machine)


# -- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "debug_exit", "reason", "status"),
    [
        (EXIT, None, StopReason.EXIT, 11),
        (EXIT, True, StopReason.EXIT, 11),
        (EXIT, DebugExit(0xF0, 5), StopReason.EXIT, 11),
        (EXIT, False, StopReason.HALTED, None),
        (EXIT, DebugExit(0x501, 2), StopReason.HALTED, None),
        (HALT, None, StopReason.HALTED, None),
        (CRASH, None, StopReason.TRIPLE_FAULT, None),
    ],
)
def test_how_a_kernel_ends(
    code: bytes, debug_exit: DebugExit | bool | None, reason: StopReason, status: int | None, tmp_path: Path
) -> None:
    with emu.boot(kernel=program(tmp_path, code), debug_exit=debug_exit) as machine:
        assert machine.run_to_end(END_S) is reason
        assert machine.exit_status == status


def test_a_reset_starts_the_kernel_anew(tmp_path: Path) -> None:
    reset = b"\x66\xba\xf9\x0c\xb0\x06\xee\xf4"       # mov dx, 0xcf9; mov al, 6; out dx, al; hlt
    with emu.boot(kernel=program(tmp_path, printing(b"x") + reset)) as machine:
        assert machine.drive(lambda: machine.console.history == b"xxx", END_S)


@pytest.mark.parametrize("place", [(0x3F8, 1), (0x20, 1), (0xCFC, 4), (0x600, 1)])
def test_ports_of_other_devices_are_refused(place: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(EmuError, match=f"port {place[0]:#x} belongs to"):
        emu.boot(kernel=program(tmp_path, EXIT), debug_exit=DebugExit(*place))


@pytest.mark.parametrize("place", [(-1, 4), (0xFFFF, 2), (0xF4, 0), (1 << 40, 1)])
def test_ports_that_there_are_not(place: tuple[int, int]) -> None:
    with pytest.raises(EmuError, match="0xffff"):
        DebugExit(*place)


def test_there_is_nothing_to_run_commands_in(tmp_path: Path) -> None:
    with emu.boot(kernel=program(tmp_path, EXIT)) as machine:
        for ask in (machine.wait_prompt, machine.wait_ready, lambda: machine.run("true")):
            with pytest.raises(EmuError, match="no shell"):
                ask()
        assert machine.channel is None
        assert machine.run_to_end(END_S) is StopReason.EXIT


def test_what_is_typed_reaches_the_kernel_before_a_snapshot_and_after(tmp_path: Path) -> None:
    with emu.boot(kernel=program(tmp_path, ECHO), memory=64 * MIB) as machine:
        machine.console.send("HAL")
        machine.console.expect_exact("IBM", timeout=END_S)
        machine.snapshot(tmp_path / "kernel.snap")
    with emu.restore(tmp_path / "kernel.snap") as machine:
        assert not machine.has_shell
        machine.console.send("HAL\0")
        machine.console.expect_exact("IBM", timeout=END_S)
        assert machine.run_to_end(END_S) is StopReason.EXIT
        assert machine.exit_status == 11


# -- the command line ----------------------------------------------------------------------------------------------


def emu_boot(*words: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`emu boot` without a terminal."""
    command = [sys.executable, "-m", "emu", "boot", *words]
    return subprocess.run(command, input=typed, capture_output=True, timeout=END_S)


def test_emu_boot_shows_the_serial_line_and_ends_with_the_kernels_status(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(FILES["ELF32"]("protected"))
    ended = emu_boot("--kernel", str(path), "--memory", "64M", "--cmdline", "one two", "--append", "three")
    assert ended.stdout.startswith(b"32-bit code\ncommand line: one two three\nmemory ")
    assert (ended.returncode, ended.stderr) == (43, b"")


def test_emu_boot_types_its_input_at_the_kernel(tmp_path: Path) -> None:
    ended = emu_boot("--kernel", program(tmp_path, ECHO), typed=b"HAL\0")
    assert (ended.returncode, ended.stdout, ended.stderr) == (11, b"IBM", b"")


@pytest.mark.parametrize(
    ("code", "message"),
    [(HALT, b"halted with interrupts off"), (CRASH, b"triple fault"), (printing(PANIC) + HALT, b"panic")],
    ids=["halt", "crash", "panic"],
)
def test_emu_boot_says_how_a_kernel_has_failed(code: bytes, message: bytes, tmp_path: Path) -> None:
    ended = emu_boot("--kernel", program(tmp_path, code))
    assert ended.returncode == 125
    assert ended.stderr.startswith(b"emu: ") and message in ended.stderr and ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--root", "x"], "takes no root"),
        (["--root-over", "9p"], "takes no root-over"),
        (["--modules", "x"], "takes no modules"),
        (["--config", "x"], "takes no config"),
        (["--as-shipped"], "takes no as-shipped"),
        (["--initrd", "nowhere words"], "cannot read nowhere"),
        (["--debug-exit", "0x3f8"], "belongs to com1"),
        (["--debug-exit", "0x10000"], "0xffff"),
        (["--debug-exit", "x"], "no port"),
    ],
)
def test_options_that_make_no_sense(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", "--kernel", program(tmp_path, EXIT), *words]) == 2
    said = capfd.readouterr().err
    assert message in said and said.startswith("emu: ") and said.count("\n") == 1


def test_emu_run_has_nothing_to_run_its_command_in(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--kernel", program(tmp_path, EXIT), "true"]) == 2
    assert "no shell" in capfd.readouterr().err


def test_a_damaged_kernel_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kernel.elf"
    path.write_bytes(elf([(BASE, BASE, header(checksum=5), 12)]))
    assert main(["boot", "--kernel", str(path)]) == 2
    assert capfd.readouterr().err == "emu: kernel.elf has a multiboot header with a wrong checksum\n"
