"""PV_INFORMATION."""

from __future__ import annotations

from typing import Any

from hypercalls.fake import FakeCalls
from hypercalls.information import Feature, pv_information


class NoFiles:
    """A directory in which nothing is looked for."""

    def read(self, *_arguments: Any) -> bytes:
        raise AssertionError

    def write(self, *_arguments: Any) -> int:
        raise AssertionError


def test_signature_version_and_features() -> None:
    assert FakeCalls(0, files=NoFiles()).rdmsr(pv_information) == 0x5056_0001_0000_00FF


def test_files_are_offered_only_where_there_are_any() -> None:
    assert FakeCalls(0).rdmsr(pv_information) == 0x5056_0001_0000_00FF - Feature.FILES == 0x5056_0001_0000_00FB
