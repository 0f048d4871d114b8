"""What setup.py says of the distribution is what is in the tree."""

from __future__ import annotations

import runpy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import setuptools

import emu

ROOT = Path(__file__).parents[1]
MADE = {"__pycache__"}


@pytest.fixture
def distribution(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py gives to setuptools."""
    given: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **words: given.update(words))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_it_has_the_version_that_the_package_says(distribution: dict[str, Any]) -> None:
    assert distribution["version"] == emu.__version__


def test_every_file_of_the_packages_is_in_it(distribution: dict[str, Any]) -> None:
    for package, patterns in distribution["package_data"].items():
        assert "py.typed" in patterns
        for path in (ROOT / package).rglob("*"):
            if path.is_dir() or MADE & {*path.parts} or path.suffix in (".py", ".pyc"):
                continue
            name = path.relative_to(ROOT / package)
            assert any(fnmatch(str(name), pattern) for pattern in patterns), f"{package}/{name} is in no wheel"
    directories = {path.parent for name in distribution["package_data"] for path in (ROOT / name).rglob("*.py")}
    packages = {".".join(path.relative_to(ROOT).parts) for path in directories}
    assert packages == {*distribution["packages"]}


def test_the_licence_and_what_the_site_includes_are_in_the_source_distribution(distribution: dict[str, Any]) -> None:
    manifest = (ROOT / "MANIFEST.in").read_text()
    assert distribution["license_files"] == ["LICENSE"] and (ROOT / "LICENSE").is_file()
    assert all(name in manifest for name in ("CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "docs", "tests", "bench"))
