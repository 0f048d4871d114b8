"""Guest memory by 1, 2, 4 and 8 bytes, aligned and not, from the host's side and the guest's."""

from __future__ import annotations

import pytest

from bench.micro.access import GUEST, READ, SIDES, SIZES, VIRTUAL, WRITE, access, places_of
from bench.micro.conftest import Timed

COUNTS = {GUEST: 2_000_000, VIRTUAL: 2_000}
HOST_COUNT, ACROSS_PAGES_COUNT = 20_000, 100_000     # of the host's, and of the guest's across pages
CASES = [
    (side, kind, size, place)
    for side in SIDES for kind in (READ, WRITE) for size in SIZES for place in places_of(size)
]


@pytest.mark.parametrize(("side", "kind", "size", "place"), CASES)
def test_access(timed: Timed, side: str, kind: str, size: int, place: str) -> None:
    count = COUNTS.get(side, HOST_COUNT)
    with access(side, kind, size, place) as do:
        key = f"{side}_{kind}{size}_{place.replace(' ', '_')}_ns"
        timed(key, do, min(count, ACROSS_PAGES_COUNT) if place == "across pages" else count)
