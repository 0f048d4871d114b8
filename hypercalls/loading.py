"""Handlers from a user's own code: a file, a module, or an entry point of an installed distribution."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import TypeVar

__all__ = ["ENTRY_POINT_GROUP", "LoadError", "load_objects", "objects_of"]

ENTRY_POINT_GROUP = "pvemu.hypercalls"

T = TypeVar("T")


class LoadError(ValueError):
    """There is no such code, it cannot be imported, or there is nothing in it."""


def load_objects(name: str, kind: type[T]) -> list[T]:
    """The objects of one kind that a module has at its top level.

    Args:
        name: a file that ends in .py, an entry point of the group `pvemu.hypercalls`, or a module to import.
        kind: such as `Hypercall`.

    Raises:
        LoadError: see there.
    """
    try:
        found = _load(name)
    except LoadError:
        raise
    except (Exception, SystemExit) as error:    # whatever the user's code does at its top level
        raise LoadError(f"{name}: {type(error).__name__}: {error}") from error
    if isinstance(found, kind):
        return [found]
    objects = objects_of(found, kind) if isinstance(found, ModuleType) else []
    if not objects:
        raise LoadError(f"{name} has no {kind.__name__.lower()} at its top level")
    return objects


def objects_of(module: ModuleType, kind: type[T]) -> list[T]:
    """The objects of one kind at a module's top level, each once, in the order of their names' definition."""
    return list({id(value): value for value in vars(module).values() if isinstance(value, kind)}.values())


def _load(name: str) -> object:
    if name.endswith(".py"):
        return _load_file(name)
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        loaded: object = entry_point.load()
        return loaded
    return importlib.import_module(name)


def _load_file(path: str) -> ModuleType:
    """Import a file by its path; what lies beside it can be imported from it.

    The path is the module's name as well: a file may be called hypercalls.py or random.py without standing in the way
    of those.
    """
    if not os.path.isfile(path):
        raise LoadError(f"{path}: there is no such file")
    name = os.path.abspath(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    directory = os.path.dirname(name)
    sys.modules[name] = module          # where a dataclass looks for its module
    sys.path.insert(0, directory)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(directory)
    return module
