"""Frozen dataclasses that cost little to define, compared with those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.frozen import frozen, replace


@frozen
class Point:
    """Two numbers."""

    x: int
    y: int = 7
    name: str = "a point"

    def __post_init__(self) -> None:
        if self.x == 13:
            raise ValueError("unlucky")


@frozen
class Point3(Point):
    z: int = 0


@dataclasses.dataclass(frozen=True)
class Usual:
    x: int
    y: int = 7
    name: str = "a point"


NAMES = st.sampled_from(["x", "y", "name", "w"])
CALLS = st.tuples(st.lists(st.integers(0, 9), max_size=4), st.dictionaries(NAMES, st.integers(0, 9)))


def made(kind: type, values: list[Any], named: dict[str, Any]) -> tuple[Any, ...] | type[TypeError]:
    try:
        one = kind(*values, **named)
    except TypeError:
        return TypeError
    return one.x, one.y, one.name


@given(CALLS)
def test_it_is_called_as_a_dataclass_is(call: tuple[list[Any], dict[str, Any]]) -> None:
    assert made(Point, *call) == made(Usual, *call)


@given(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_equality_and_hash_are_those_of_the_fields(first: tuple[int, int], second: tuple[int, int]) -> None:
    assert (Point(*first) == Point(*second)) == (first == second)
    assert hash(Point(*first)) == hash(Usual(*first))


def test_instances_of_other_classes_are_not_equal() -> None:
    assert Point(1) != Usual(1) and Point(1) != Point3(1) and Point(1) != (1, 7, "a point")


def test_repr_is_that_of_a_dataclass() -> None:
    assert repr(Point(1, name="it")) == repr(Usual(1, name="it")).replace("Usual", "Point")


def test_nothing_of_an_instance_can_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="'x'"):
        Point(1).x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="'x'"):
        del Point(1).x
    with pytest.raises(dataclasses.FrozenInstanceError):
        Point(1).more = 2  # type: ignore[attr-defined]


def test_what_a_class_checks_itself_is_checked() -> None:
    with pytest.raises(ValueError, match="unlucky"):
        Point(13)
    with pytest.raises(ValueError, match="unlucky"):
        replace(Point(1), x=13)


def test_replace_changes_some_fields_and_knows_them() -> None:
    assert replace(Point(1), y=2) == Point(1, 2)
    with pytest.raises(TypeError):
        replace(Point(1), w=2)


def test_a_subclass_has_the_fields_of_its_base_first() -> None:
    assert Point3(1, z=4) == Point3(1, 7, "a point", 4)
    assert [field.name for field in dataclasses.fields(Point3)] == ["x", "y", "name", "z"]


def test_the_functions_of_dataclasses_take_it() -> None:
    one = Point3(1, 2)
    assert dataclasses.is_dataclass(Point) and dataclasses.is_dataclass(one)
    assert dataclasses.replace(one, x=5) == Point3(5, 2)
    assert dataclasses.asdict(one) == {"x": 1, "y": 2, "name": "a point", "z": 0}
    assert dataclasses.astuple(one) == (1, 2, "a point", 0)
    assert [(field.type, field.default) for field in dataclasses.fields(Point)][1:] == [("int", 7), ("str", "a point")]


def test_a_dataclass_may_be_made_of_it() -> None:
    @dataclasses.dataclass(frozen=True)
    class Named(Point):
        tag: str = ""

    assert Named(1, tag="it") == Named(1, 7, "a point", "it")


def test_signature_and_pattern_are_those_of_a_dataclass() -> None:
    assert str(inspect.signature(Point)) == str(inspect.signature(Usual)).removesuffix(" -> None")
    assert str(inspect.signature(Point3)).endswith("z: 'int' = 0)")
    match Point(1, 2):
        case Point(x, 2):
            assert x == 1
        case _:
            pytest.fail("no match")


def test_copies_are_equal() -> None:
    one = Point(1, name="it")
    assert copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one


def test_methods_of_the_class_stay() -> None:
    @frozen
    class Own:
        x: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own)

        def __hash__(self) -> int:
            return 5

        def __repr__(self) -> str:
            return "mine"

    assert Own(1) == Own(2) and hash(Own(1)) == 5 and repr(Own(1)) == "mine"


def test_defaults_that_instances_would_share_are_refused() -> None:
    for default in ([], {}, set(), bytearray(), dataclasses.field(default_factory=list)):
        with pytest.raises(TypeError, match="share the default of x"):
            frozen(type("Bad", (), {"__annotations__": {"x": "Any"}, "x": default}))


def test_fields_without_a_default_come_first() -> None:
    with pytest.raises(TypeError, match="without a default"):
        frozen(type("Bad", (), {"__annotations__": {"x": "int", "y": "int"}, "x": 1}))


def test_every_class_of_a_machine_is_as_a_dataclass_would_be() -> None:
    import emu.launch
    import emu.process.wire
    import emu.snapshot.machine  # noqa: F401

    packages = "emu.", "devices.", "hypercalls."
    ours = [vars(module) for name, module in sys.modules.items() if name.startswith(packages)]
    kinds = {
        kind for names in ours for kind in names.values()
        if isinstance(kind, type) and "__frozen_defaults__" in vars(kind)
    }
    assert len(kinds) > 50
    for kind in kinds:
        fields = dataclasses.fields(kind)
        assert tuple(field.name for field in fields) == kind.__match_args__
        found = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
        found |= {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}
        assert found == vars(kind)["__frozen_defaults__"]


def test_a_restore_needs_neither_dataclasses_nor_what_they_import() -> None:
    code = "import sys; old = {*sys.modules}; import emu.snapshot.machine; print(*{*sys.modules} - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"dataclasses", "inspect", "ast"} & set(done.stdout.split())
