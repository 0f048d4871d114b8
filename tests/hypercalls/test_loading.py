"""Handlers out of a file, a module, or an installed distribution."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercalls import Hypercall
from hypercalls.loading import ENTRY_POINT_GROUP, LoadError, load_objects

HANDLERS = """
from hypercalls import Call, hypercall

@hypercall(0x4B564D20, "PV_ONE")
def pv_one(call: Call) -> int:
    return 1

@hypercall(0x4B564D21, "PV_TWO", access="r")
def pv_two(call: Call) -> int:
    return 2

pv_again, number = pv_one, 3
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that modules are imported from; what was imported is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def names(name: str) -> list[str]:
    """What is loaded, by the hypercalls' names."""
    return [one.name for one in load_objects(name, Hypercall)]


def test_a_file_s_handlers_come_in_their_order_each_once(directory: Path) -> None:
    path = directory / "mine.py"
    path.write_text(HANDLERS)
    assert names(str(path)) == ["PV_ONE", "PV_TWO"]


def test_a_relative_path_is_one_from_here(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "mine.py").write_text(HANDLERS)
    monkeypatch.chdir(directory)
    assert names("mine.py") == ["PV_ONE", "PV_TWO"]


def test_a_module_s_handlers(directory: Path) -> None:
    (directory / "hypercalls_of_mine").mkdir()
    (directory / "hypercalls_of_mine" / "__init__.py").write_text("")
    (directory / "hypercalls_of_mine" / "calls.py").write_text(HANDLERS)
    assert names("hypercalls_of_mine.calls") == ["PV_ONE", "PV_TWO"]


def install(directory: Path, entry_point: str) -> None:
    """Make a distribution that has it."""
    (directory / "mine_dist.py").write_text(HANDLERS)
    metadata = directory / "mine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{entry_point}\n")


@pytest.mark.parametrize(("value", "expected"), [("mine_dist", ["PV_ONE", "PV_TWO"]), ("mine_dist:pv_two", ["PV_TWO"])])
def test_an_entry_point_is_a_module_or_one_handler(directory: Path, value: str, expected: list[str]) -> None:
    install(directory, f"my-calls = {value}")
    assert names("my-calls") == expected


def test_another_program_s_entry_point_is_none(directory: Path) -> None:
    install(directory, "my-calls = mine_dist")
    with pytest.raises(LoadError, match="No module named 'other'"):
        names("other")


def test_what_lies_beside_a_file_can_be_imported_from_it(directory: Path) -> None:
    below = directory / "below"
    below.mkdir()
    (below / "number_beside.py").write_text("NUMBER = 0x4B564D30")
    (below / "mine.py").write_text(
        "from hypercalls import hypercall\nfrom number_beside import NUMBER\n"
        "pv_mine = hypercall(NUMBER, 'PV_MINE')(lambda call: None)\n"
    )
    (one,) = load_objects(str(below / "mine.py"), Hypercall)
    assert one.number == 0x4B564D30


@pytest.mark.parametrize("name", ["hypercalls.py", "random.py"])
def test_a_file_does_not_take_another_module_s_name(directory: Path, name: str) -> None:
    below = directory / "below"             # else the import path would have it before the right one
    below.mkdir()
    (below / name).write_text(HANDLERS)
    module = name.removesuffix(".py")
    before = sys.modules[module]
    assert names(str(below / name)) == ["PV_ONE", "PV_TWO"]
    assert sys.modules[module] is before


def test_a_file_can_have_dataclasses(directory: Path) -> None:
    path = directory / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass State:\n    count: int = 0\n" + HANDLERS
    )
    assert names(str(path)) == ["PV_ONE", "PV_TWO"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def pv_mine(", r"mine\.py: SyntaxError: .*line 1"),
        ("1 / 0", r"mine\.py: ZeroDivisionError: division by zero$"),
        ("import nothing_like_it", r"mine\.py: ModuleNotFoundError: No module named 'nothing_like_it'$"),
        ("raise SystemExit(3)", r"mine\.py: SystemExit: 3$"),
        ("def pv_mine(call): ...", r"mine\.py has no hypercall at its top level$"),
        ("from hypercalls import Hypercall", r"mine\.py has no hypercall at its top level$"),
        (
            "from hypercalls import hypercall\nhypercall(0x4B564D00, 'PV_MINE')",
            r"mine\.py: ValueError: PV_MINE: MSR 0x4b564d00 is reserved by KVM",
        ),
        ("\0", r"mine\.py: (SyntaxError|ValueError): "),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(directory: Path, text: str, message: str) -> None:
    path = directory / "mine.py"
    path.write_text(text)
    with pytest.raises(LoadError, match=message) as raised:
        names(str(path))
    assert "\n" not in str(raised.value)
    assert str(path) not in sys.modules or "no hypercall" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/file.py", r"^no/such/file\.py: there is no such file$"),
        ("no_such_module", r"^no_such_module: ModuleNotFoundError: No module named 'no_such_module'$"),
        ("", "^: ValueError: "),
        (".relative", "^.relative: TypeError: "),
        ("json", "^json has no hypercall at its top level$"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(directory: Path, name: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        names(name)


def test_a_directory_is_no_file(directory: Path) -> None:
    (directory / "mine.py").mkdir()
    with pytest.raises(LoadError, match="there is no such file"):
        names(str(directory / "mine.py"))


def test_an_entry_point_that_is_something_else_is_refused(directory: Path) -> None:
    install(directory, "my-calls = mine_dist:number")
    with pytest.raises(LoadError, match="my-calls has no hypercall at its top level"):
        names("my-calls")
