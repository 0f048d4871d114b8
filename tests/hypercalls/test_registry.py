"""Which numbers a hypercall may have, and what a machine's handlers may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypercalls import Call, Hypercall, Registry, hypercall
from hypercalls.builtin import BUILT_IN
from hypercalls.numbers import FIRST, FIRST_USER, KVM_FIRST, KVM_LAST, LAST


def nothing(_call: Call) -> None:
    """A handler."""


def test_a_decorated_function_is_a_hypercall_with_its_docstring_s_function() -> None:
    made = hypercall(0x4B564D20, "PV_NOTHING", access="rw")(nothing)
    assert made == Hypercall(0x4B564D20, "PV_NOTHING", "rw", nothing)


@pytest.mark.parametrize("number", range(KVM_FIRST, KVM_LAST + 1))
def test_every_number_of_kvm_s_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"PV_MINE: MSR 0x4b564d0\d is reserved by KVM"):
        hypercall(number, "PV_MINE")


@given(st.integers().filter(lambda number: not KVM_FIRST <= number <= LAST))
def test_numbers_outside_the_range_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"is no hypercall's; they are 0x4b564d09 to 0x4b564dff"):
        hypercall(number, "PV_MINE")


@given(st.integers(FIRST, LAST))
def test_every_number_of_ours_is_taken(number: int) -> None:
    assert hypercall(number, "PV_MINE")(nothing).number == number


def test_an_unknown_access_is_refused() -> None:
    with pytest.raises(ValueError, match="access 'x' is none of r, w, rw"):
        hypercall(FIRST_USER, "PV_MINE", access="x")


def test_two_hypercalls_cannot_have_one_number() -> None:
    mine = hypercall(FIRST_USER, "PV_MINE")(nothing)
    yours = hypercall(FIRST_USER, "PV_YOURS")(nothing)
    registry = Registry([mine, mine])
    assert list(registry) == [mine]
    with pytest.raises(ValueError, match="PV_YOURS: MSR 0x4b564d20 belongs to PV_MINE"):
        registry.add(yours)


def test_the_built_in_ones_leave_the_users_numbers_alone() -> None:
    assert all(one.number < FIRST_USER for one in Registry(BUILT_IN))
    with pytest.raises(ValueError, match="PV_MINE: MSR 0x4b564d14 belongs to PV_CONSOLE"):
        Registry([*BUILT_IN, hypercall(0x4B564D14, "PV_MINE")(nothing)])
