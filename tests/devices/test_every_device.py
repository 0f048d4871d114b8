"""What holds for every device: its state is all there is to it, so a restored device is the old one."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import Device
from tests.devices.battery import DEVICES, STIMULI, Bench
from tests.devices.fakes import FakeClock

WIND_NS = 2_000_000_000

Step = tuple[str, int, int]  # what; register, or nanoseconds; value


def offsets(device: Device) -> list[int]:
    """Every register the device has."""
    base = device.ports[0][0]
    return [first - base + index for first, length in device.ports for index in range(length)]


def width(device: Device) -> int:
    """Bits of one register."""
    return getattr(device, "width", 8)


def steps(name: str) -> st.SearchStrategy[list[Step]]:
    """Random accesses, stimuli and times."""
    device = DEVICES[name](Bench(), None)
    registers = st.sampled_from(offsets(device))
    values = st.integers(0, 0xFF) | st.sampled_from([1 << bit for bit in range(8)])
    written = values if width(device) == 8 else values | st.integers(0, (1 << width(device)) - 1)
    kinds = [
        st.tuples(st.just("read"), registers, st.just(0)),
        st.tuples(st.just("write"), registers, written),
        st.tuples(st.just("wind"), st.integers(0, WIND_NS), st.just(0)),
    ]
    if name in STIMULI:
        kinds.append(st.tuples(st.just("stimulate"), st.just(0), values))
    return st.lists(st.one_of(kinds), max_size=60)


def play(name: str, device: Device, bench: Bench, sequence: list[Step]) -> list[Any]:
    """Everything that can be seen while the steps are taken."""
    trace: list[Any] = []
    for kind, where, value in sequence:
        if kind == "read":
            trace.append(device.read(where))
        elif kind == "write":
            device.write(where, value)
        elif kind == "wind":
            bench.clock.advance(where)
        else:
            STIMULI[name](device, value)
        trace.append(bench.levels())
    return trace


def bench_at(time_of: Bench) -> Bench:
    """A new bench at the time of another."""
    return Bench(clock=FakeClock(time_of.clock.time_ns, time_of.clock.wall_epoch_ns))


@pytest.mark.parametrize("name", DEVICES)
def test_state_is_a_frozen_dataclass_of_plain_values(name: str) -> None:
    state = DEVICES[name](Bench(), None).save()
    with pytest.raises(FrozenInstanceError):
        setattr(state, fields(state)[0].name, None)
    assert hash(state) == hash(copy.deepcopy(state))


@pytest.mark.parametrize("name", DEVICES)
@given(data=st.data())
def test_restored_device_has_the_state_and_the_lines_of_the_old_one(name: str, data: st.DataObject) -> None:
    bench = Bench()
    device = DEVICES[name](bench, None)
    play(name, device, bench, data.draw(steps(name)))
    state = device.save()
    new_bench = bench_at(bench)
    assert DEVICES[name](new_bench, state).save() == state
    assert new_bench.levels() == bench.levels()
    assert device.save() == state, "saving has changed the device"


@pytest.mark.parametrize("name", DEVICES)
@given(data=st.data())
def test_restored_device_answers_as_the_old_one(name: str, data: st.DataObject) -> None:
    bench = Bench()
    device = DEVICES[name](bench, None)
    play(name, device, bench, data.draw(steps(name)))
    state = device.save()
    bench.seen.clear()
    new_bench = bench_at(bench)
    restored = DEVICES[name](new_bench, state)
    sequence = data.draw(steps(name))
    assert play(name, restored, new_bench, sequence) == play(name, device, bench, sequence)
    assert new_bench.seen == bench.seen
    assert restored.save() == device.save()


@pytest.mark.parametrize("name", DEVICES)
@given(data=st.data())
def test_reads_fit_the_register(name: str, data: st.DataObject) -> None:
    bench = Bench()
    device = DEVICES[name](bench, None)
    trace = play(name, device, bench, data.draw(steps(name)))
    assert all(0 <= answer < 1 << width(device) for answer in trace if isinstance(answer, int))
