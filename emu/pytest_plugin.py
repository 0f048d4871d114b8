"""pytest fixtures: calls of hypercalls without a CPU, a guest without a kernel, a booted Alpine, several machines.

Nothing of the emulator is imported before a test asks for one of them (docs/testing.md).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pluggy import Result

    from emu.fleet.fleet import Fleet
    from emu.machine import Machine
    from emu.microguest import MicroGuest
    from hypercalls.fake import FakeCalls

CONSOLE_LINES = 25                      # shown when a test fails
CONSOLE_BYTES = 4096
HYPERCALLS = "emu_hypercalls"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The setting of the `alpine` fixture."""
    text = "hypercalls of the alpine fixture: files relative to the configuration's directory, modules or entry points"
    parser.addini(HYPERCALLS, text, type="linelist", default=[])


@pytest.fixture
def fake_calls() -> FakeCalls:
    """Calls of handlers without a CPU."""
    from hypercalls.fake import FakeCalls

    return FakeCalls()


@pytest.fixture
def micro_guest(request: pytest.FixtureRequest) -> Iterator[MicroGuest]:
    """A CPU without a kernel that has the hypercalls at the top level of the test's module, and the built-in ones."""
    from emu.errors import UnsupportedHost
    from emu.microguest import MicroGuest
    from hypercalls import Hypercall
    from hypercalls.loading import objects_of

    module = request.node.getparent(pytest.Module)
    try:
        guest = MicroGuest(objects_of(module.obj, Hypercall) if module else ())
    except (UnsupportedHost, ValueError) as error:
        pytest.fail(str(error), pytrace=False)
    with guest:
        yield guest


@pytest.fixture(scope="session")
def alpine(pytestconfig: pytest.Config) -> Iterator[Machine]:
    """An Alpine that has booted, shared by all tests; it has the hypercalls of the setting `emu_hypercalls`."""
    import emu

    here = pytestconfig.inipath.parent if pytestconfig.inipath else pytestconfig.rootpath
    names: list[str] = pytestconfig.getini(HYPERCALLS)
    hypercalls = [str(here / Path(name)) if name.endswith(".py") else name for name in names]
    try:
        machine = emu.boot("alpine", hypercalls=hypercalls)
        with machine:
            machine.wait_ready()
            yield machine
    except emu.EmuError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """No machines yet, for the test to add some: all are gone after it (docs/fleet.md)."""
    from emu.fleet.fleet import Fleet

    with Fleet() as fleet:
        yield fleet


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Result[pytest.TestReport], None]:
    """Show where the guests of a failed test are."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and report.when != "teardown":
        fixtures = getattr(item, "funcargs", {})
        for name, describe in (("micro_guest", _describe_micro_guest), ("alpine", _describe_alpine)):
            if name not in fixtures:
                continue
            try:
                report.sections += describe(name, fixtures[name])
            except Exception as error:      # a report must not fail, whatever the test has done to its guest
                report.sections.append((name, f"its state cannot be shown: {error}"))
        if "fleet" in fixtures and call.excinfo is not None:
            report.sections.append(("fleet: failure report", fixtures["fleet"].report(call.excinfo.value)))


def _describe_micro_guest(name: str, guest: MicroGuest) -> list[tuple[str, str]]:
    return [(f"{name}: registers and code", guest.describe())]


def _describe_alpine(name: str, machine: Machine) -> list[tuple[str, str]]:
    from emu.disassembly import describe, linear_rip
    from emu.paging import AddressSpace

    machine.drive(lambda: True)             # raises if it is closed: its registers are gone then
    registers = machine.board.cpu.registers
    read = AddressSpace(machine.memory, registers).read
    state = describe(registers.dump(), read, linear_rip(registers), registers.code_bits)
    lines = machine.console.recent(CONSOLE_BYTES).decode("utf-8", "replace").splitlines()[-CONSOLE_LINES:]
    return [
        (f"{name}: registers and code", state),
        (f"{name}: console", "\n".join(map(_printable, lines))),
    ]


def _printable(line: str) -> str:
    """A guest's line without what a terminal would obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
