"""The multiboot kernels do on QEMU what they do here."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.serial_guest import QEMU_MISSING, have_qemu
from tests.multiboot.listing import KERNELS
from tests.oracle.multiboot import ours, qemu, write_files

STATUS = {"protected": 43, "long": 85, "real": 103}


@pytest.mark.skipif(not have_qemu(), reason=QEMU_MISSING)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_does_the_same_on_qemu(name: str, tmp_path: Path) -> None:
    files = write_files(tmp_path, name)
    own = ours(*files)
    assert own == qemu(*files)
    assert own.status == STATUS[name]
    assert "three ticks" in own.lines
