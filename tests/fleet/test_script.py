"""Test scripts: what they see, and what becomes of their mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from emu.errors import EmuError
from emu.fleet.fleet import Fleet
from emu.fleet.script import read_script, run_script


def run(fleet: Fleet, path: Path, text: str) -> None:
    """Run a script of that text."""
    path.write_text(text)
    run_script(read_script(path), fleet)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def test_machines_are_names_as_soon_as_they_are_added(fleet: Fleet, path: Path) -> None:
    run(fleet, path, """
server = fleet.add("server")
fleet.add("data-base")
assert [machine.name for machine in fleet] == ["server", "data-base"]
assert data_base.cid == 4 and fleet["data-base"] is data_base
start_all()
wait_all([server, data_base], lambda machine: machine.succeed("true"))
retry(lambda: server.succeed("true") == "")
with subtest("a part"):
    log("noted")

def helper():
    return server           # a name of the whole script, functions included

assert helper() is fleet["server"]
assert __name__ == "__main__" and __file__.endswith("script.py")
""")
    assert [entry.text for entry in fleet.log.entries][-3:-1] == ["subtest: a part", "noted"]


@pytest.mark.parametrize("name", ["log", "fleet", "start_all", "wait-all", "retry", "subtest"])
def test_machines_cannot_hide_what_scripts_use(fleet: Fleet, path: Path, name: str) -> None:
    with pytest.raises(EmuError, match=f"cannot have the name {name}"):
        run(fleet, path, f"fleet.add({name!r})")
    assert not fleet.machines


def test_modules_beside_a_script_can_be_imported(fleet: Fleet, path: Path) -> None:
    before = list(sys.path)
    (path.parent / "beside_the_script.py").write_text("ANSWER = 42\n")
    run(fleet, path, "import beside_the_script\nassert beside_the_script.ANSWER == 42\n")
    assert sys.path == before
    with pytest.raises(AssertionError):
        run(fleet, path, "assert False")
    assert sys.path == before


@pytest.mark.parametrize(("content", "message"), [
    (b"x = (\n", "script.py:1: "), (b"a b", "script.py:1: invalid syntax"), (b"\0", "null bytes"),
    (b"# coding: nonsense\n", "unknown encoding"), (b"\xff\xfe\xfa", "script.py"),
])  # fmt: skip
def test_what_is_no_python_is_an_error_in_a_line(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(EmuError, match=message) as failure:
        read_script(path)
    assert "\n" not in str(failure.value)


def test_files_that_cannot_be_read(path: Path) -> None:
    for bad in path, path.parent:
        with pytest.raises(EmuError, match=f"{bad.name}: "):
            read_script(bad)
