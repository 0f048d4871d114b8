"""Frozen dataclasses of plain values as JSON, by their type hints.

A dataclass is an object with a member for each field, a tuple an array, bytes are base64, an enum's member is its
name; where a hint leaves several dataclasses open, the object says which one by "class", which no field can be called.
Nothing but what the hints say is taken: no code is run, and no class is looked up, that the reader does not name.

A class' converters are made once, as closures. Resolving its hints costs most of that, so the commonest are not
evaluated.
"""

from __future__ import annotations

import sys
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from devices.frozen import field_types, frozen
from emu.errors import BadSnapshot, EmuError

__all__ = ["U64", "U128", "Bits", "decode", "encode"]

LARGEST_INT_BITS = 2048         # one for each vector of MSI-X
SHOWN = 40                      # characters of a wrong value

T = TypeVar("T")
Convert = Callable[[Any], Any]


@frozen
class Bits:
    """In `Annotated[int, Bits(n)]`: an unsigned number of that many bits."""

    count: int


U64 = Annotated[int, Bits(64)]
U128 = Annotated[int, Bits(128)]


class _Wrong(Exception):
    """A value that its hint does not allow; `place` is where, innermost first."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.place: list[str] = []

    def at(self, root: str) -> str:
        return f"{root}{''.join(reversed(self.place))}: {self.reason}"


@frozen
class _Form:
    """How values of a hint are written and read.

    Attributes:
        python: the types its values have.
        plain: the type of what stands in JSON for them.
    """

    python: tuple[type, ...]
    plain: tuple[type, ...]
    encode: Convert
    decode: Convert
    record: type | None = None      # the dataclass


def encode(value: Any) -> Any:
    """A dataclass as what `json.dumps` takes.

    Raises:
        TypeError: a value is not what its hint says.
    """
    try:
        return _record(type(value)).encode(value)
    except _Wrong as wrong:
        raise TypeError(wrong.at(type(value).__name__)) from None


def decode(kind: type[T], plain: Any, root: str = "") -> T:
    """A dataclass from what `json.loads` has made of it.

    Args:
        kind: the class.
        plain: what `encode` made.
        root: what messages call it.

    Raises:
        BadSnapshot: it is not exactly that; the message says where it differs.
    """
    try:
        value: T = _record(kind).decode(plain)
    except _Wrong as wrong:
        raise BadSnapshot(wrong.at(root or kind.__name__)) from None
    return value


# --- plain values -------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    text = ascii(value) if not isinstance(value, int) or value.bit_length() < 3 * SHOWN else "a huge number"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _same(kind: type, noun: str) -> _Form:
    """A type that JSON has, too; a bool is no int."""

    def convert(value: Any) -> Any:
        if type(value) is not kind:
            raise _Wrong(f"{_shown(value)} is not {noun}")
        return value

    return _Form((kind,), (kind,), convert, convert)


BOOL, STR, NONE = _same(bool, "true or false"), _same(str, "a string"), _same(NoneType, "null")


def _integer(low: int, bits: int) -> _Form:
    high = 1 << bits

    def read(value: Any) -> int:
        if type(value) is not int or not low <= value < high:
            raise _Wrong(f"{_shown(value)} is not a number of {bits} bits")
        return value

    def write(value: Any) -> int:
        return read(int(value) if isinstance(value, int) and not isinstance(value, bool) else value)

    return _Form((int,), (int,), write, read)


def _write_bytes(value: Any) -> str:
    if not isinstance(value, bytes):
        raise _Wrong(f"{_shown(value)} is not bytes")
    return b2a_base64(value, newline=False).decode()


def _read_bytes(value: Any) -> bytes:
    try:
        return a2b_base64(STR.decode(value), strict_mode=True)
    except ValueError:
        raise _Wrong(f"{_shown(value)} is not base64") from None


def _enumeration(kind: type[Enum]) -> _Form:
    def write(value: Any) -> str:
        if type(value) is not kind:
            raise _Wrong(f"{_shown(value)} is not a {kind.__name__}")
        return value.name

    def read(value: Any) -> Enum:
        member = kind.__members__.get(value) if type(value) is str else None
        if member is None:
            raise _Wrong(f"{_shown(value)} is not a {kind.__name__}")
        return member

    return _Form((kind,), (str,), write, read)


INT = _integer(-1 << LARGEST_INT_BITS, LARGEST_INT_BITS)
BYTES = _Form((bytes,), (str,), _write_bytes, _read_bytes)

COMMON: dict[str, _Form] = {"int": INT, "bool": BOOL, "str": STR, "bytes": BYTES}   # hints that are not evaluated
BASIC: dict[Any, _Form] = {int: INT, bool: BOOL, str: STR, bytes: BYTES, None: NONE, NoneType: NONE}


# --- containers ---------------------------------------------------------------------------------------------------


def _each(convert: Convert, values: Any) -> list[Any]:
    """Every value converted; an error says which one."""
    done: list[Any] = []
    try:
        for value in values:
            done.append(convert(value))
    except _Wrong as wrong:
        wrong.place.append(f"[{len(done)}]")
        raise
    return done


def _items(form: _Form) -> _Form:
    """tuple[X, ...]"""

    def write(value: Any) -> list[Any]:
        if type(value) is not tuple:
            raise _Wrong(f"{_shown(value)} is not a tuple")
        return _each(form.encode, value)

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _Wrong(f"{_shown(value)} is not an array")
        return tuple(_each(form.decode, value))

    return _Form((tuple,), (list,), write, read)


def _fixed(forms: tuple[_Form, ...]) -> _Form:
    """tuple[X, Y]"""


    def convert(converts: list[Convert], kind: type[tuple[Any, ...] | list[Any]], noun: str, value: Any) -> list[Any]:
        if not isinstance(value, kind) or len(value) != len(converts):
            raise _Wrong(f"{_shown(value)} is not {noun} of {len(converts)}")
        following = iter(converts)
        return _each(lambda item: next(following)(item), value)

    writers, readers = [form.encode for form in forms], [form.decode for form in forms]
    return _Form(
        (tuple,), (list,),
        lambda value: convert(writers, tuple, "a tuple", value),
        lambda value: tuple(convert(readers, list, "an array", value)),
    )


def _read_number(key: str) -> int:
    try:
        number = int(key)
    except ValueError:      # also for thousands of digits
        number = -1
    if str(number) != key:
        raise _Wrong(f"{_shown(key)} is not a number")
    return number


KEYS: dict[Any, tuple[Convert, Convert]] = {
    int: (lambda key: str(INT.encode(key)), _read_number),
    str: (STR.encode, STR.decode),
    bytes: (_write_bytes, _read_bytes),
}


def _mapping(key: Any, form: _Form) -> _Form:
    """Mapping[K, X]"""
    write_key, read_key = KEYS[key]

    def convert(converts: tuple[Convert, Convert], value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise _Wrong(f"{_shown(value)} is not an object")
        done = {}
        for name, item in value.items():
            try:
                done[converts[0](name)] = converts[1](item)
            except _Wrong as wrong:
                wrong.place.append(f"[{_shown(name)}]")
                raise
        return done

    return _Form(
        (dict,), (dict,),
        lambda value: convert((write_key, form.encode), value), lambda value: convert((read_key, form.decode), value),
    )


# --- one of several -----------------------------------------------------------------------------------------------


def _union(forms: list[_Form]) -> _Form:
    """X | Y: told apart by their types in JSON; of several dataclasses, by "class"."""
    records = [form for form in forms if form.record is not None]
    if len(records) > 1:
        forms = [*(form for form in forms if form.record is None), _tagged(records)]
    writers = {kind: form.encode for form in forms for kind in form.python}
    readers = {kind: form.decode for form in forms for kind in form.plain}
    if len(readers) < sum(len(form.plain) for form in forms):
        raise TypeError("a hint leaves open what JSON does not tell apart")

    def convert(converters: dict[type, Convert], value: Any) -> Any:
        found = converters.get(type(value))
        if found is None:
            raise _Wrong(f"{_shown(value)} is not of any type that can stand here")
        return found(value)

    return _Form(
        tuple(writers), tuple(readers),
        lambda value: convert(writers, value), lambda value: convert(readers, value),
    )


def _tagged(forms: list[_Form]) -> _Form:
    by_name = {form.record.__name__: form for form in forms if form.record}

    def write(value: Any) -> dict[str, Any]:
        name = type(value).__name__
        return {"class": name, **by_name[name].encode(value)}

    def read(value: Any) -> Any:
        name = value.get("class")
        form = by_name.get(name) if type(name) is str else None
        if form is None:
            raise _Wrong(f"its class is none of {', '.join(by_name)}")
        return form.decode({key: item for key, item in value.items() if key != "class"})

    return _Form(tuple(kind for form in forms for kind in form.python), (dict,), write, read)


# --- dataclasses --------------------------------------------------------------------------------------------------


_records: dict[type, _Form] = {}


def _record(kind: type) -> _Form:
    """A dataclass.

    Raises:
        TypeError: it is none, or a hint is nothing that JSON could hold.
    """
    if kind not in _records:
        _records[kind] = _new_record(kind)
    return _records[kind]


def _new_record(kind: type) -> _Form:
    forms = [(name, _resolved(hint, home)) for name, (hint, home) in field_types(kind).items()]
    encoders = [(name, form.encode) for name, form in forms]
    decoders = [(name, form.decode) for name, form in forms]
    names = dict(forms).keys()

    def write(value: Any) -> dict[str, Any]:
        if type(value) is not kind:
            raise _Wrong(f"{_shown(value)} is not a {kind.__name__}")
        return _members(encoders, {name: getattr(value, name) for name in names})

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise _Wrong(f"{_shown(value)} is not an object")
        if value.keys() != names:
            raise _Wrong(_difference(value, names))
        members = _members(decoders, value)
        try:
            return kind(**members)
        except (ValueError, EmuError) as error:         # what it refuses itself
            raise _Wrong(str(error)) from None

    return _Form((kind,), (dict,), write, read, kind)


def _members(converts: list[tuple[str, Convert]], value: dict[str, Any]) -> dict[str, Any]:
    done = {}
    name = ""
    try:
        for name, convert in converts:
            done[name] = convert(value[name])
    except _Wrong as wrong:
        wrong.place.append(f".{name}")
        raise
    return done


def _difference(value: dict[str, Any], names: Any) -> str:
    missing = [name for name in names if name not in value]
    if missing:
        return f"{missing[0]} is missing"
    return f"{_shown(next(name for name in value if name not in names))} is unknown"


def _resolved(hint: Any, home: type) -> _Form:
    """The form of a field's type, which may be text as it stands in the class `home`."""
    if not isinstance(hint, str):
        return _form(hint)
    if found := COMMON.get(hint):
        return found
    try:
        return _form(eval(hint, vars(sys.modules[home.__module__])))
    except NameError as error:
        raise TypeError(f"{home.__name__}: {error}; a state's hints are needed at run time") from None


@cache
def _form(hint: Any) -> _Form:
    if found := BASIC.get(hint):
        return found
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _union([_form(member) for member in arguments])
    if origin is Annotated and arguments[0] is int and isinstance(arguments[1], Bits):
        return _integer(0, arguments[1].count)
    if origin is tuple and arguments[1:] == (...,):
        return _items(_form(arguments[0]))
    if origin is tuple:
        return _fixed(tuple(map(_form, arguments)))
    if origin in (dict, Mapping) and arguments[0] in KEYS:
        return _mapping(arguments[0], _form(arguments[1]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enumeration(hint)
    if isinstance(hint, type):
        return _record(hint)
    raise TypeError(f"a snapshot cannot hold {hint}")
