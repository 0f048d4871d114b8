"""Loggers that leave `logging` alone until it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from devices.log import Log

LOG = Log("a.name")


def run(code: str) -> tuple[str, str]:
    """What a process of its own that has such a logger prints, and its standard error."""
    code = f"import sys; from devices.log import Log; log = Log('a.name'); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr


def test_a_message_goes_to_the_logger_of_that_name_as_from_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    LOG.debug("one of %d", 4)
    LOG.info("two")
    LOG.warning("three")
    error = ValueError("why")
    LOG.error("four", exc_info=error)
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("a.name", "DEBUG", "one of 4"), ("a.name", "INFO", "two"), ("a.name", "WARNING", "three"),
        ("a.name", "ERROR", "four"),
    ]
    assert {record.filename for record in caplog.records} == {"test_log.py"}
    assert caplog.records[-1].exc_info is not None and caplog.records[-1].exc_info[1] is error


def test_what_nobody_could_see_imports_nothing() -> None:
    assert run("log.info('not shown'); log.debug('not shown'); print('logging' in sys.modules)") == ("False\n", "")


def test_a_warning_is_shown_though_nothing_was_set_up() -> None:
    assert run("log.warning('at %s', 'once')") == ("", "at once\n")


def test_information_is_shown_to_who_asks_for_it() -> None:
    assert run("import logging; logging.basicConfig(level='INFO'); log.info('now')") == ("", "INFO:a.name:now\n")
