"""What is said of a host, even if it says little of itself."""

from __future__ import annotations

import builtins
import io
from typing import Any

import pytest

from emu import host


def test_packages() -> None:
    assert host.package_version("unicorn") == "2.1.4"
    assert host.package_version("no-such-package") == "not installed"
    assert all(host.package_version(name) != "not installed" for name in host.REQUIREMENTS)


@pytest.mark.parametrize(
    ("content", "model"),
    [("processor: 0\nmodel name\t: A CPU: fast\nmodel name: B\n", "A CPU: fast"), ("processor: 0\n", "unknown")],
)
def test_the_cpus_name(monkeypatch: pytest.MonkeyPatch, content: str, model: str) -> None:
    monkeypatch.setattr(builtins, "open", lambda path: io.StringIO(content))
    assert host.cpu_model() == model


def test_a_host_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: str) -> Any:
        raise FileNotFoundError(path)

    monkeypatch.setattr(builtins, "open", absent)
    assert host.cpu_model() == "unknown"


def test_the_rest_is_there() -> None:
    assert host.host().startswith("Linux ")
    assert host.python_version().startswith("3.")
    assert host.usable_cpus() >= 1
