"""Frozen dataclasses that cost little to define.

`dataclasses.dataclass` writes and compiles six methods for every class: 0.4 ms each, and a start of this program
defines a hundred classes. Here all share the same methods, which look up a class' fields when they are called. What
the functions of `dataclasses` ask a class for is there too, made when one of them first asks.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar, dataclass_transform

__all__ = ["field_types", "frozen", "replace"]

T = TypeVar("T")

DEFAULTS = "__frozen_defaults__"


@dataclass_transform(frozen_default=True)
def frozen(kind: type[T]) -> type[T]:
    """Class decorator: as `dataclass(frozen=True)`, for fields whose defaults are plain values.

    Methods that the class defines itself are left as they are.

    Raises:
        TypeError: a default is none that all instances can share, or a field without one follows one that has it.
    """
    own, names, defaults = _declared(kind), dict[str, None](), dict[str, Any]()
    for base in reversed(kind.__mro__[1:]):
        names |= dict.fromkeys(vars(base).get("__match_args__", ()))
        defaults |= vars(base).get(DEFAULTS, {})
    names |= dict.fromkeys(own)
    defaults |= {name: vars(kind)[name] for name in own if name in vars(kind)}
    if any(name not in defaults for name in [*names][len(names) - len(defaults) :]):
        raise TypeError(f"{kind.__name__}: a field without a default follows one that has a default")
    for name, value in defaults.items():
        if isinstance(value, (list, dict, set, bytearray)) or hasattr(value, "default_factory"):
            raise TypeError(f"{kind.__name__}: instances cannot share the default of {name}")
    made = METHODS | {DEFAULTS: defaults, "__match_args__": tuple(names)}
    made |= {name: _MadeWhenAsked(name) for name in LIKE_DATACLASS}
    for name, value in made.items():
        if name not in vars(kind):
            setattr(kind, name, value)
    return kind


def _declared(kind: type) -> dict[str, Any]:
    """Its own fields and their types; inspect.get_annotations would have to be imported."""
    annotations: dict[str, Any] = vars(kind).get("__annotations__", {})
    return annotations


def field_types(kind: type) -> dict[str, tuple[Any, type]]:
    """The fields of such a class, or of any dataclass: name to type, as it was written, and the class that declares it.

    Raises:
        TypeError: it is none.
    """
    if not any(LIKE_DATACLASS[0] in vars(home) for home in kind.__mro__):
        raise TypeError(f"{kind.__name__} is no dataclass")
    homes = {name: home for home in reversed(kind.__mro__) for name in _declared(home)}
    names: tuple[str, ...] = kind.__match_args__            # type: ignore[attr-defined]
    return {name: (_declared(homes[name])[name], homes[name]) for name in names}


def replace(instance: T, **changes: Any) -> T:
    """Another instance with some fields changed.

    Raises:
        TypeError: there is no such field.
    """
    return instance.__class__(**_fields(instance) | changes)


def _fields(instance: Any) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in instance.__match_args__}


# --- the methods of all classes -----------------------------------------------------------------------------------


def _init(self: Any, *values: Any, **named: Any) -> None:
    names, fields = self.__match_args__, self.__dict__
    fields.update(zip(names, values, strict=False))     # too many are found below
    if named or len(values) != len(names):
        if len(values) > len(names) or not named.keys() <= set(names[len(values) :]):
            raise TypeError(f"{self.__class__.__name__} has the fields {', '.join(names)}; each can be given once")
        fields.update(named)
        defaults = getattr(self, DEFAULTS)
        for name in names:
            if name not in fields:
                if name not in defaults:
                    raise TypeError(f"{self.__class__.__name__} needs the field {name}")
                fields[name] = defaults[name]
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _values(instance: Any) -> tuple[Any, ...]:
    fields = instance.__dict__
    return tuple([fields[name] for name in instance.__match_args__])


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={value!r}" for name, value in _fields(self).items())
    return f"{self.__class__.__qualname__}({shown})"


def _eq(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _set(_self: Any, name: str, _value: Any) -> NoReturn:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(_self: Any, name: str) -> NoReturn:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


METHODS: dict[str, Any] = {
    "__init__": _init, "__repr__": _repr, "__eq__": _eq, "__hash__": _hash, "__setattr__": _set, "__delattr__": _delete,
}


# --- what dataclasses' own functions, and inspect.signature, ask for ----------------------------------------------

LIKE_DATACLASS = "__dataclass_fields__", "__dataclass_params__", "__signature__"


class _MadeWhenAsked:
    """An attribute of a class; all of LIKE_DATACLASS are made at once, from a dataclass with the same fields."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, _instance: object, kind: type) -> Any:
        from dataclasses import dataclass, field
        from inspect import Signature, signature

        def shared(value: Any) -> Any:
            """A mapping proxy cannot be hashed, which is taken for a sign that it can be changed."""
            return field(default_factory=lambda: value) if value.__class__.__hash__ is None else value

        owner = next(base for base in kind.__mro__ if vars(base).get(self._name) is self)
        own = _declared(owner)
        defaults = {name: shared(value) for name, value in getattr(owner, DEFAULTS).items() if name in own}
        content = {"__module__": owner.__module__, "__annotations__": own, **defaults}
        if generic := vars(owner).get("__orig_bases__"):
            content["__orig_bases__"] = generic
        twin: Any = dataclass(frozen=True)(type(owner.__name__, owner.__bases__, content))
        _self, *parameters = signature(twin.__init__).parameters.values()
        for name in LIKE_DATACLASS[:2]:
            setattr(owner, name, getattr(twin, name))
        owner.__signature__ = Signature(parameters)     # type: ignore[attr-defined]
        return getattr(kind, self._name)
