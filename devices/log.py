"""Loggers for modules that every machine has: `logging` takes 5 ms to import, and is left alone until it is needed."""

from __future__ import annotations

import sys

__all__ = ["Log"]

CALLER = 3                              # frames up from where `logging` is called


class Log:
    """A logger of `logging`, by its name.

    Args:
        name: usually `__name__`.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, text: str, *details: object) -> None:
        """For whoever has set logging up to be shown everything."""
        if "logging" in sys.modules:    # else it was not set up, and shows warnings only
            self._say("debug", text, details)

    def info(self, text: str, *details: object) -> None:
        """For whoever has set logging up to be shown how things go."""
        if "logging" in sys.modules:
            self._say("info", text, details)

    def warning(self, text: str, *details: object) -> None:
        """On standard error, unless logging was set up otherwise."""
        self._say("warning", text, details)

    def error(self, text: str, *details: object, exc_info: BaseException | None = None) -> None:
        """As `warning`, with the traceback of an exception."""
        self._say("error", text, details, exc_info)

    def _say(
        self, level: str, text: str, details: tuple[object, ...], exc_info: BaseException | None = None
    ) -> None:
        from logging import getLogger

        say = getattr(getLogger(self._name), level)
        say(text, *details, exc_info=exc_info, stacklevel=CALLER)
