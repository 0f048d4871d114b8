"""The comparison with QEMU's 9p server: its parts; and, where there is time and a QEMU, the whole."""

from __future__ import annotations

from pathlib import Path

import capstone
import pytest

from bench.serial_guest import QEMU_MISSING, have_qemu
from tests.integration.programs import CODE
from tests.oracle.ninep import EXPLAINED, MODELS, compare, differences, on_host, parse, script, steps
from tests.oracle.ninep_programs import PROGRAMS


@pytest.mark.parametrize("name", PROGRAMS)
def test_listings_are_what_their_bytes_mean(name: str) -> None:
    program = PROGRAMS[name]
    decoded = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(program.code, CODE[program.bits])
    assert [(bytes(i.bytes), f"{i.mnemonic} {i.op_str}".strip()) for i in decoded] == program.lines()


def test_script_has_each_step_once_with_its_functions_first() -> None:
    prelude, texts = steps()
    assert "as_nobody()" in prelude and len(texts) > 70
    text = script()
    assert text.index(prelude) < min(text.index(f"'=== {name}'") for name in texts)


def test_output_is_taken_apart_by_step() -> None:
    output = "noise\n=== one\na\n\nb\n=== end\nnoise\n=== two\n=== end\n"
    assert parse(output) == {"one": ["a", "", "b"], "two": []}


def test_step_that_went_another_way_or_is_missing_is_a_difference() -> None:
    found = compare("none", {"same": ["a"], "other": ["a", "b"], "gone": ["c"]}, {"same": ["a"], "other": ["a", "x"]})
    assert [(difference.step, difference.lines[1:]) for difference in found] == [
        ("other", (" a", "-b", "+x")), ("gone", ("-c",)),
    ]
    assert all(difference.reason is None for difference in found)


def test_host_s_side_shows_types_modes_contents_and_targets(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir(0o750)
    (tmp_path / "sub" / "file").write_text("text")
    (tmp_path / "link").symlink_to("sub")
    link, sub, file = on_host(tmp_path)
    assert link.startswith("host: b'link' lrwxrwxrwx ") and link.endswith(" b'sub'")
    assert sub.startswith("host: b'sub' drwxr-x--- ")
    assert file.startswith("host: b'sub/file' -rw") and " 4 bytes 982d9e3eb996" in file


def test_only_steps_that_there_are_have_explanations() -> None:
    known = steps()[1].keys()
    assert all(reasons.keys() <= known for reasons in EXPLAINED.values())
    assert {*MODELS} <= {*EXPLAINED}


@pytest.mark.integration
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not have_qemu(), reason=QEMU_MISSING)
def test_every_difference_from_qemu_is_explained() -> None:
    assert [difference for difference in differences() if difference.reason is None] == []
