"""States through JSON and back: every one of them, exactly, and nothing that only looks like one."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from random import Random
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import emu
from emu.errors import BadSnapshot, EmuError
from emu.snapshot.codec import U64, U128, Bits, decode, encode
from tests.devices.battery import DEVICES, Bench
from tests.devices.test_every_device import play, steps

ROOT = Path(emu.__file__).parent.parent
PACKAGES = "devices", "emu", "hypercalls"


class Colour(Enum):
    RED = 1
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    number: int = 0


@dataclass(frozen=True)
class Other:
    number: int = 0
    text: str = ""


@dataclass(frozen=True)
class Everything:
    number: int = 0
    flag: bool = False
    text: str = ""
    data: bytes = b""
    maybe: int | None = None
    either: bool | str = False
    colour: Colour = Colour.RED
    many: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    none: tuple[()] = ()
    nested: tuple[tuple[bool, ...], ...] = ()
    inner: Inner = Inner()
    inner_or_none: Inner | None = None
    kind: Inner | Other | None = None
    kinds: tuple[Inner | Other, ...] = ()
    by_number: Mapping[int, bytes] = field(default_factory=dict)
    by_name: dict[str, Inner] = field(default_factory=dict)
    by_bytes: dict[bytes, int] = field(default_factory=dict)
    u64: U64 = 0
    u128: U128 = 0
    nibble: Annotated[int, Bits(4)] = 0


def through_json(value: Any) -> Any:
    """What is left of it after a save and a restore."""
    return decode(type(value), json.loads(json.dumps(encode(value))))


def state_classes() -> list[type]:
    """Every dataclass called ...State in the packages."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            names = re.findall(r"^class (\w+State)\b", path.read_text(), re.MULTILINE)
            if names:
                module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
                found += [getattr(module, name) for name in names if is_dataclass(getattr(module, name))]
    return found


STATES = state_classes()


def test_states_are_found() -> None:
    assert len(STATES) > 25


NUMBERS = 0, 1, 2, 5, 255, 4096, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, 1 << 127, -1
TEXTS = "", "a", "root", "/dev/vda", "grün\n"
DATA = b"", b"\0", b"\xff" * 5, bytes(range(256))


def some(hint: Any, rng: Random) -> Any:
    """Some value that a hint allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return some(rng.choice(arguments), rng)
    if origin is Annotated:
        return rng.choice(NUMBERS) & (1 << arguments[1].count) - 1
    if origin is tuple and arguments[1:] == (...,):
        return tuple(some(arguments[0], rng) for _ in range(rng.randrange(4)))
    if origin is tuple:
        return tuple(some(argument, rng) for argument in arguments)
    if origin in (dict, Mapping):
        return {some(arguments[0], rng): some(arguments[1], rng) for _ in range(rng.randrange(4))}
    if is_dataclass(hint):
        return some_record(hint, rng)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return rng.choice(list(hint))
    choices: dict[Any, Sequence[Any]] = {bool: (False, True), int: NUMBERS, str: TEXTS, bytes: DATA}
    return rng.choice(choices[hint]) if hint in choices else None


def some_record(kind: Any, rng: Random) -> Any:
    """Some value of a dataclass; several are tried if it refuses them."""
    hints = get_type_hints(kind, include_extras=True)
    for _ in range(1000):
        with suppress(ValueError, EmuError):
            return kind(**{field.name: some(hints[field.name], rng) for field in fields(kind)})
    raise AssertionError(f"{kind.__name__} takes nothing")


@pytest.mark.parametrize("kind", [*STATES, Everything], ids=lambda kind: kind.__name__)
def test_every_state_goes_through(kind: type) -> None:
    rng = Random(kind.__name__)
    for _ in range(30):
        value = some_record(kind, rng)
        restored = through_json(value)
        assert restored == value
        assert repr(restored) == repr(value), "some value has another type"


@pytest.mark.parametrize("name", DEVICES)
@settings(max_examples=20)
@given(data=st.data())
def test_what_devices_really_save_goes_through(name: str, data: st.DataObject) -> None:
    bench = Bench()
    device = DEVICES[name](bench, None)
    play(name, device, bench, data.draw(steps(name)))
    state = device.save()
    restored = through_json(state)
    assert restored == state
    assert repr(restored) == repr(state), "some value has another type"


def test_a_path_that_is_no_text_goes_through() -> None:
    value = Other(text=b"caf\xe9".decode(errors="surrogateescape"))
    assert through_json(value) == value


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"extra": 1}, "'extra' is unknown"),
    ({"number": True}, ".number: True is not a number"),
    ({"number": 1.0}, ".number: 1.0 is not a number"),
    ({"number": "1"}, ".number: '1' is not a number"),
    ({"number": 1 << 2048}, ".number: a huge number is not a number of 2048 bits"),
    ({"u64": 1 << 64}, ".u64: 18446744073709551616 is not a number of 64 bits"),
    ({"u64": -1}, ".u64: -1 is not a number of 64 bits"),
    ({"u128": 1 << 128}, ".u128: a huge number is not a number of 128 bits"),
    ({"nibble": 16}, ".nibble: 16 is not a number of 4 bits"),
    ({"flag": 1}, ".flag: 1 is not true or false"),
    ({"text": None}, ".text: None is not a string"),
    ({"data": "a"}, ".data: 'a' is not base64"),
    ({"data": "YQ==\n"}, r".data: 'YQ==\n' is not base64"),
    ({"data": "é"}, r".data: '\xe9' is not base64"),
    ({"data": 0}, ".data: 0 is not a string"),
    ({"maybe": "x"}, ".maybe: 'x' is not of any type"),
    ({"maybe": False}, ".maybe: False is not of any type"),
    ({"either": 1}, ".either: 1 is not of any type"),
    ({"colour": 1}, ".colour: 1 is not a Colour"),
    ({"colour": "GREEN"}, ".colour: 'GREEN' is not a Colour"),
    ({"colour": "__class__"}, ".colour: '__class__' is not a Colour"),
    ({"many": {}}, ".many: an object is not an array"),
    ({"many": [1, 2, None]}, ".many[2]: None is not a number"),
    ({"pair": [1]}, ".pair: an array is not an array of 2"),
    ({"pair": [1, 1]}, ".pair[1]: 1 is not a string"),
    ({"none": [1]}, ".none: an array is not an array of 0"),
    ({"nested": [[True], [True, 0]]}, ".nested[1][1]: 0 is not true or false"),
    ({"inner": []}, ".inner: an array is not an object"),
    ({"inner": {"number": None}}, ".inner.number: None is not a number"),
    ({"kind": {"number": 1}}, ".kind: its class is none of Inner, Other"),
    ({"kind": {"class": ["Inner"]}}, ".kind: its class is none of Inner, Other"),
    ({"kind": {"class": "Everything"}}, ".kind: its class is none of Inner, Other"),
    ({"kind": {"class": "Inner", "number": 1, "text": ""}}, ".kind: 'text' is unknown"),
    ({"by_number": {"01": ""}}, ".by_number['01']: '01' is not a number"),
    ({"by_number": {"x": ""}}, ".by_number['x']: 'x' is not a number"),
    ({"by_number": {"9" * 5000: ""}}, "is not a number"),
    ({"by_bytes": {"!": 0}}, ".by_bytes['!']: '!' is not base64"),
    ({"by_name": {"a": {}}}, ".by_name['a']: number is missing"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_not_exactly_a_state_is_refused(change: dict[str, Any], message: str) -> None:
    plain = encode(Everything()) | change
    with pytest.raises(BadSnapshot) as caught:
        decode(Everything, plain, "state")
    assert message in str(caught.value)
    assert str(caught.value).startswith("state")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_missing_field_is_named() -> None:
    plain = encode(Everything())
    del plain["inner"]
    with pytest.raises(BadSnapshot, match=r"^Everything: inner is missing$"):
        decode(Everything, plain)


@pytest.mark.parametrize("plain", [None, 1, "x", [], [[[[]]]]])
def test_what_is_no_object_is_refused(plain: Any) -> None:
    with pytest.raises(BadSnapshot, match=r"^Everything: .* is not an object$"):
        decode(Everything, plain)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_anything_in_the_place_of_a_value_is_refused_or_means_itself(data: st.DataObject) -> None:
    plain = encode(Everything(kind=Other(), many=(1, 2), by_number={1: b"x"}))
    at: Any = plain
    while True:
        key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        if not at[key] or not isinstance(at[key], (dict, list)) or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(JSON)
    try:
        value = decode(Everything, plain)
    except BadSnapshot as error:
        assert "\n" not in str(error)
    else:
        assert encode(value) == plain


@dataclass(frozen=True)
class Picky:
    number: int

    def __post_init__(self) -> None:
        if self.number > 9:
            raise ValueError(f"{self.number} is more than 9")


def test_what_a_class_refuses_itself_is_a_bad_snapshot() -> None:
    with pytest.raises(BadSnapshot, match=r"^Picky: 10 is more than 9$"):
        decode(Picky, {"number": 10})


@dataclass(frozen=True)
class Ambiguous:
    value: str | bytes


@dataclass(frozen=True)
class Unknown:
    value: complex


@dataclass(frozen=True)
class NoSuchName:
    value: Missing  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("kind", [Ambiguous, Unknown, NoSuchName, int])
def test_a_class_that_json_cannot_hold_is_the_programs_fault(kind: type) -> None:
    with pytest.raises(TypeError):
        decode(kind, {"value": 1})


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"number": True}, ".number: True is not a number"),
    ({"number": 1 << 3000}, ".number: a huge number"),
    ({"flag": 1}, ".flag: 1 is not true or false"),
    ({"data": bytearray()}, ".data: bytearray"),
    ({"many": [1]}, ".many: an array is not a tuple"),
    ({"many": (1, "2")}, ".many[1]: '2' is not a number"),
    ({"pair": (1, "a", 2)}, ".pair: (1, 'a', 2) is not a tuple of 2"),
    ({"inner": Other()}, ".inner: "),
    ({"kind": Picky(1)}, ".kind: "),
    ({"colour": "RED"}, ".colour: 'RED' is not a Colour"),
    ({"by_number": {"1": b""}}, "is not a number"),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES)
def test_a_state_with_other_values_than_its_hints_say_is_not_saved(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        encode(Everything(**values))
    assert message in str(caught.value)
