"""The fixtures in other people's tests, and what a report of a failed test shows."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import emu
from emu import microguest
from emu.cache import ENVIRONMENT, default_directory
from tests.fleet.fakes import FakeTemplates

pytest_plugins = ["pytester"]

CACHE = str(default_directory())        # pytester has another home directory

HYPERCALLS = """
    from hypercalls import Call, hypercall

    @hypercall(0x4B564D20, "PV_ZERO_PAGE")
    def pv_zero_page(call: Call) -> None:
        call.memory.write(call.value, bytes(4096))
"""

PASSING = HYPERCALLS + """
    import pytest
    from emu import GuestException

    def test_with_a_guest(micro_guest):
        micro_guest.memory.write(0x5000, b"\\xff" * 4096)
        micro_guest.wrmsr(0x4B564D20, 0x5000)
        assert micro_guest.memory.read(0x5000, 4096) == bytes(4096)

    @pytest.mark.parametrize("again", [0, 1])
    def test_each_has_a_guest_of_its_own(micro_guest, again):
        assert micro_guest.memory.read(0x5000, 8) == bytes(8)
        micro_guest.memory.write(0x5000, b"abcdefgh")

    def test_expected_exceptions_are_no_failure(micro_guest):
        with pytest.raises(GuestException, match="#GP"):
            micro_guest.wrmsr(0x4B564DF0, 0)

    class TestInAClass:
        def test_it_too(self, micro_guest):
            micro_guest.wrmsr(pv_zero_page, 0x5000)

    def test_without_a_cpu(fake_calls):
        fake_calls.memory.write(0x5000, b"\\xff" * 4096)
        fake_calls.wrmsr(pv_zero_page, 0x5000)
        assert fake_calls.memory.read(0x5000, 4096) == bytes(4096)
        assert fake_calls.machine.console == b""
"""

FAILING = HYPERCALLS + """
    from emu.assembler import load, mov

    def test_exception(micro_guest):
        micro_guest.run(mov("rbx", 0x1234567) + load("rcx", "rdx"), rdx=1 << 40)

    def test_assertion(micro_guest):
        micro_guest.run(mov("rsi", 0xABCDEF))
        assert micro_guest.registers.rsi == 0

    def test_closed(micro_guest):
        micro_guest.close()
        assert False, "of the test"

    def test_handler(micro_guest):
        micro_guest.wrmsr(pv_zero_page, 1 << 40)

    def test_other():
        assert False
"""


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run inside fetches the guest anew, nor imports what takes time: it forgets what it was the first to import."""
    monkeypatch.setenv(ENVIRONMENT, CACHE)
    for name in ("capstone", "emu.launch", "emu.microguest", "hypercalls.fake", "hypothesis"):
        import_module(name)


def test_the_fixtures_work(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PASSING)
    result = pytester.runpytest_inprocess("-rP")
    result.assert_outcomes(passed=6)
    assert "PASSES" in result.stdout.str() and "registers and code" not in result.stdout.str()


@pytest.mark.parametrize("how", ["conftest", "-p"])
def test_naming_the_plugin_once_more_does_no_harm(pytester: pytest.Pytester, how: str) -> None:
    pytester.makepyfile(PASSING)
    if how == "conftest":
        pytester.makeconftest("pytest_plugins = ['emu.pytest_plugin']")
    arguments = ["-p", "emu.pytest_plugin"] if how == "-p" else []
    pytester.runpytest_inprocess(*arguments).assert_outcomes(passed=6)


def test_a_failure_shows_registers_and_code(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILING)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines([
        "*test_exception*",
        ">*micro_guest.run(mov(*",
        "E *GuestException: #PF (vector 14), error code 0x0, at RIP 0x10000a, CR2 0x10000000000",
        "*- micro_guest: registers and code -*",
        "*rbx 0000000001234567*",
        "*rip 000000000010000a*",
        "   0x100000  48 bb 67 45 23 01 00 00 00 00  movabs rbx, 0x1234567",
        "=> 0x10000a  48 8b 0a                       mov rcx, qword ptr [[]rdx[]]",
        "*test_assertion*",
        "*- micro_guest: registers and code -*",
        "*rsi 0000000000abcdef*",
        "*0x100000  48 be ef cd ab 00 00 00 00 00  movabs rsi, 0xabcdef",
        "*test_closed*",
        "E *AssertionError: of the test",
        "*- micro_guest -*",
        "its state cannot be shown: the guest is closed",
        "*test_handler*",
        "E *GuestException: #GP (vector 13)*",
        "*PV_ZERO_PAGE (0x4b564d20): 4096 bytes at guest-physical 0x10000000000 are not RAM; the guest gets #GP",
        "=> 0x*  0f 30  wrmsr",
    ])
    text = result.stdout.str()
    assert text.count("micro_guest: registers and code") == 3
    assert "INTERNALERROR" not in text and "_conclude" not in text


def test_two_hypercalls_of_one_number_are_a_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HYPERCALLS + """
    pv_other = hypercall(0x4B564D20, "PV_OTHER")(lambda call: None)

    def test_it(micro_guest):
        pass
    """)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["PV_OTHER: MSR 0x4b564d20 belongs to PV_ZERO_PAGE"])
    assert "Traceback" not in result.stdout.str() and "registry.py" not in result.stdout.str()


def test_hypothesis_makes_guests_of_its_own_and_shows_the_failing_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HYPERCALLS + """
    from emu import MicroGuest
    from hypothesis import given, settings, strategies as st

    @settings(database=None, deadline=None)
    @given(st.integers(0, 2**20))
    def test_it(address):
        with MicroGuest([pv_zero_page]) as guest:
            guest.wrmsr(pv_zero_page, address)
            assert address < 0x123
    """)
    result = pytester.runpytest_inprocess("-p", "no:randomly")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*rax 0000000000000123*", "*0f 30  wrmsr"])


def test_a_fleet_s_failure_report_is_a_section(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu.fleet.fleet.Templates", FakeTemplates)
    pytester.makepyfile("""
    import pytest
    from emu import MachineFailure, Result

    def test_failing(fleet):
        machine = fleet.add("one")
        machine.process.answers["no"] = [Result(7, b"", b"bad")]
        with fleet.subtest("a part"):
            machine.succeed("no")

    def test_another_one_has_other_machines(fleet):
        assert not fleet.machines
        with pytest.raises(MachineFailure):
            fleet.add("one").fail("yes")
    """)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines([
        ">*machine.succeed(\"no\")",
        "E *MachineFailure: one: 'no' ended with status 7, and had to succeed",
        "*- Captured stderr call -*",
        "*  subtest: a part",
        "*- fleet: failure report -*",
        "FAILED after * s: one: 'no' ended with status 7, and had to succeed",
        "  subtest: a part",
        "  at: *test_a_fleet_s_failure_report_is_a_section.py:*: machine.succeed(\"no\")",
        "  stderr:",
        "    bad",
        "one (CID 3): running",
    ])
    assert "emu/fleet/machine.py" not in result.stdout.str()


def test_a_guest_that_cannot_be_had_is_a_line(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise emu.EmuError("the guest is nowhere to be had")

    monkeypatch.setattr(emu, "boot", refuse, raising=False)
    pytester.makepyfile("""
    def test_one(alpine):
        pass

    def test_two(alpine):
        pass
    """)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["the guest is nowhere to be had"])
    assert "Traceback" not in result.stdout.str() and "refuse" not in result.stdout.str()


def test_hypercalls_that_cannot_be_loaded_are_a_line(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nemu_hypercalls = missing.py")
    pytester.makepyfile("def test_one(alpine): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"{pytester.path}/missing.py: there is no such file"])
    assert "Traceback" not in result.stdout.str()


ALPINE = """
    import pytest

    def test_a_file_s_hypercall(alpine):
        alpine.run("pv set 0x4b564d20 42", check=True)
        assert alpine.run("pv get 0x4b564d20", check=True).stdout == "43\\n"

    def test_a_module_s_hypercall_on_the_same_machine(alpine, pytestconfig):
        assert alpine.run("pv get 0x4b564d20", check=True).stdout == "43\\n"
        assert alpine.run("pv get 0x4b564d21", check=True).stdout == "7\\n"

    def test_fails(alpine):
        alpine.console.sendline("echo so far; printf 'a\\\\033[31mb'")
        alpine.console.expect("so far\\r")
        alpine.run("true")
        assert False

    def test_closes(alpine):
        alpine.close()
        assert False
"""


@pytest.mark.integration
def test_an_alpine_for_all_tests(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nemu_hypercalls =\n    sub/plus_one.py\n    seven_module\n")
    pytester.mkdir("sub").joinpath("plus_one.py").write_text(
        "from hypercalls import hypercall\n"
        "plus_one = hypercall(0x4B564D20, 'PV_PLUS_ONE')(lambda call: call.value + 1)\n"
    )
    pytester.makepyfile(seven_module="""
        from hypercalls import hypercall
        seven = hypercall(0x4B564D21, "PV_SEVEN", access="r")(lambda call: 7)
    """)
    pytester.syspathinsert()
    pytester.makepyfile(test_alpine=ALPINE)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines([
        "*- alpine: registers and code -*", "*rip ffffffff*", "=> 0xffffffff*", "*- alpine: console -*", "*so far*",
        "*- alpine -*", "its state cannot be shown: the machine is closed",
    ])
    console = result.stdout.str().partition("alpine: console")[2]
    assert r"a\x1b[31mb" in console


def test_unused_it_imports_nothing_of_the_emulator() -> None:
    program = (
        "import emu.pytest_plugin, sys\n"
        "print(*[name for name in sys.modules if name.partition('.')[0] in ('emu', 'hypercalls', 'devices', 'cffi')])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert sorted(out.split()) == ["emu", "emu.pytest_plugin"]


def test_the_guest_of_the_fixture_is_the_package_s() -> None:
    assert emu.MicroGuest is microguest.MicroGuest
