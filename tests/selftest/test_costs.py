"""Costs are measured by the guest's own clock."""

from __future__ import annotations

import time

import pytest

from emu.selftest.costs import COSTS, Cost, measure


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    return {name: measure(name) for name in COSTS}


def test_what_is_measured(costs: dict[str, Cost]) -> None:
    assert set(costs) == {
        "exit", "uart byte", "bypassed byte", "hypercall", "interrupt", "page fault", "syscall", "cpuid",
    }  # fmt: skip
    assert all(name == cost.name for name, cost in costs.items())


def test_every_cost_is_of_the_order_it_should_be(costs: dict[str, Cost]) -> None:
    """Far bounds: a host may be slow, and busy."""
    for cost in costs.values():
        assert 1 < cost.ns_median < 1_000_000
        assert cost.ns_spread >= 0
    assert costs["bypassed byte"].ns_median < costs["uart byte"].ns_median / 3


def test_nanoseconds_and_cycles_are_of_one_counter(costs: dict[str, Cost]) -> None:
    hz = [cost.cycles_median / cost.ns_median for cost in costs.values()]
    assert max(hz) < 1.05 * min(hz)


def test_the_loop_is_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that takes a known time costs that, and not the loop with it."""
    from emu.selftest import costs as module

    wanted = {"an empty loop": 1000.0, COSTS["exit"].what: 1500.0}
    programs = {module.program_of(module.Scenario("an empty loop")): "an empty loop"}
    monkeypatch.setattr(
        module, "_cycles", lambda guest, program, at, turns: wanted[programs.get(program, COSTS["exit"].what)]
    )
    assert measure("exit").cycles_median == 500.0
    assert measure("exit").ns_spread == 0.0


def test_an_unknown_cost_is_refused() -> None:
    with pytest.raises(ValueError, match="no cost is called coffee; there are exit, uart byte"):
        measure("coffee")


def test_a_cost_is_measured_quickly() -> None:
    started = time.process_time()
    measure("syscall")
    assert time.process_time() - started < 5
