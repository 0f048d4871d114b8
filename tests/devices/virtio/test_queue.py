"""Split virtqueues, the device's side, against a driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.virtio.device import BadRequest
from devices.virtio.queue import EVENT_IDX, INDIRECT_DESC, RING_FEATURES, Chain, Queue
from tests.devices.virtio.driver import BASE, DriverQueue, FakeMemory, Used, pack_descriptor

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 1 << 16
END = BASE + SIZE


class Pair:
    """A queue of 8 and its driver."""

    def __init__(self, features: int = RING_FEATURES, size: int = 8, start: int = 0) -> None:
        self.memory = FakeMemory(SIZE)
        self.driver = DriverQueue(self.memory, size, features)
        state = replace(self.driver.state, last_avail=start, next_used=start, signalled_used=start)
        if start:
            self.driver.seen_used = start
            self.driver.set_available(start)
            self.driver.suppress(start)
            self.memory.poke(self.driver.device + 2, start.to_bytes(2, "little"))
        self.features = features
        self.interrupts = 0
        self.queue = Queue(0, self.memory, state, features, self._interrupted)

    def _interrupted(self) -> None:
        self.interrupts += 1

    def pop(self) -> Chain:
        chain = self.queue.pop()
        assert chain is not None
        return chain

    def answer(self, data: bytes = b"") -> None:
        """Serve one chain."""
        chain = self.pop()
        self.queue.push(chain, chain.write(data))
        self.queue.signal()


@pytest.fixture
def pair() -> Pair:
    """A queue with indirect descriptors and EVENT_IDX."""
    return Pair()


# --- chains ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indirect", [False, True])
def test_chain_is_read_and_answered(pair: Pair, indirect: bool) -> None:
    head = pair.driver.send([b"one", b"three"], [2, 5], indirect)
    chain = pair.pop()
    assert [bytes(view) for view in chain.readable] == [b"one", b"three"]
    assert (chain.readable_size, chain.writable_size) == (8, 7)
    assert [len(view) for view in chain.writable] == [2, 5]
    pair.queue.push(chain, chain.write(b"abcd"))
    assert not pair.memory.unreported() or pair.memory.unreported()[0] >= pair.driver.device
    pair.queue.signal()
    assert pair.driver.used() == [Used(head, 4, b"abcd")]
    assert not pair.memory.unreported()


def test_direct_descriptors_may_come_before_an_indirect_one(pair: Pair) -> None:
    text, answer, table = (pair.memory.allocate(32) for _ in range(3))
    pair.memory.poke(text, b"abcdef")
    pair.memory.poke(table, pack_descriptor(text + 2, 4, NEXT, 1) + pack_descriptor(answer, 9, WRITE, 0))
    pair.driver.describe(5, text, 2, NEXT, 3)
    pair.driver.describe(3, table, 32, INDIRECT | WRITE)        # the device ignores WRITE here
    pair.driver.offer(5)
    chain = pair.pop()
    assert (chain.head, chain.read(), chain.writable_size) == (5, b"abcdef", 9)


def test_indirect_table_may_be_in_any_order(pair: Pair) -> None:
    text, table = pair.memory.allocate(32), pair.memory.allocate(64)
    pair.memory.poke(text, b"abcdef")
    entries = [(text, 1, NEXT, 3), (text + 4, 2, 0, 0), (0, 0, 0, 0), (text + 1, 3, NEXT, 1)]
    pair.memory.poke(table, b"".join(pack_descriptor(*entry) for entry in entries))
    pair.driver.describe(0, table, 64, INDIRECT)
    pair.driver.offer(0)
    assert pair.pop().read() == b"abcdef"


PAGE = 256                          # of a long request; what Linux sends has 4096
LONG = [(END - 8 * PAGE + at * PAGE, PAGE, flags) for at, flags in enumerate((1, 1, 3, 3, 3, 3, 3, 2))]


def _offer_table(pair: Pair, descriptors: list[tuple[int, int, int]], slots: Sequence[int] = range(8)) -> None:
    """Make an indirect table available whose descriptors stand in these slots."""
    table = pair.memory.allocate(16 * len(slots))
    for descriptor, slot, following in zip(descriptors, slots, (*slots[1:], 8), strict=True):
        pair.memory.poke(table + 16 * slot, pack_descriptor(*descriptor, following))
    pair.driver.describe(0, table, 16 * len(slots), INDIRECT)
    pair.driver.offer(0)


@pytest.mark.parametrize("slots", [range(8), (0, 1, 2, 3, 5, 4, 6, 7)])
def test_long_indirect_table_is_read_and_answered(pair: Pair, slots: Sequence[int]) -> None:
    _offer_table(pair, LONG, slots)
    pair.memory.poke(LONG[0][0], b"request")
    chain = pair.pop()
    assert (chain.readable_size, chain.writable_size, chain.read(7)) == (2 * PAGE, 6 * PAGE, b"request")
    data = bytes(range(PAGE)) * 5
    for number, view in enumerate(chain.writable_views(PAGE, 5 * PAGE)):
        view[:] = data[number * PAGE : (number + 1) * PAGE]
    pair.queue.push(chain, chain.write(b"h" * PAGE) + 5 * PAGE)
    pair.queue.signal()
    assert not pair.memory.unreported()
    assert pair.memory.read(LONG[2][0], 6 * PAGE) == b"h" * PAGE + data


@pytest.mark.parametrize("at, descriptor", [
    (3, (END - PAGE + 1, PAGE, NEXT | WRITE)), (3, (LONG[3][0], PAGE, NEXT)), (3, (LONG[3][0], 16, NEXT | INDIRECT)),
    (7, (LONG[7][0], PAGE, NEXT | WRITE)), (3, (0, PAGE, NEXT | WRITE)),
])
def test_bad_long_indirect_table_is_refused(pair: Pair, at: int, descriptor: tuple[int, int, int]) -> None:
    _offer_table(pair, [*LONG[:at], descriptor, *LONG[at + 1 :]])
    with pytest.raises(BadRequest):
        pair.queue.pop()


def test_empty_descriptors_of_a_long_indirect_table_are_skipped(pair: Pair) -> None:
    _offer_table(pair, [*LONG[:3], (0, 0, NEXT | WRITE), *LONG[4:]])
    assert len(pair.pop().writable) == 5


def test_chains_come_in_the_order_offered_and_go_in_any(pair: Pair) -> None:
    heads = [pair.driver.send([bytes([65 + i])], [4]) for i in range(3)]
    chains = [pair.pop() for _ in range(3)]
    assert [chain.read() for chain in chains] == [b"A", b"B", b"C"]
    for i in 2, 0, 1:
        pair.queue.push(chains[i], chains[i].write(b"!" * i))
    pair.queue.signal()
    assert [used.id for used in pair.driver.used()] == [heads[2], heads[0], heads[1]]


def test_chain_of_as_many_descriptors_as_the_queue_has(pair: Pair) -> None:
    pair.driver.send([b"x"] * 8)
    assert pair.pop().read() == b"x" * 8


def test_empty_descriptors_are_skipped(pair: Pair) -> None:
    text = pair.memory.allocate(16)
    pair.memory.poke(text, b"ab")
    pair.driver.describe(0, 0, 0, NEXT | WRITE, 1)          # wherever they point
    pair.driver.describe(1, text, 2, NEXT, 2)
    pair.driver.describe(2, END + 5, 0, WRITE)
    pair.driver.offer(0)
    chain = pair.pop()
    assert (chain.read(), chain.writable) == (b"ab", [])


def test_ring_indices_wrap_at_65536() -> None:
    pair = Pair(start=0xFFFE)
    for i in range(5):
        pair.driver.send([bytes([i])], [1])
        pair.answer(bytes([i]))
        assert [used.data for used in pair.driver.used()] == [bytes([i])]
    assert pair.queue.save().last_avail == pair.queue.save().next_used == 3
    assert pair.interrupts == 5


# --- Chain ------------------------------------------------------------------------------------------------------------


def test_read_takes_a_part_across_buffers(pair: Pair) -> None:
    pair.driver.send([b"abc", b"defg", b"h"])
    chain = pair.pop()
    assert chain.read() == b"abcdefgh"
    assert chain.read(4, 1) == b"bcde"
    assert chain.read(100, 6) == b"gh"
    assert chain.read(2) == b"ab"
    assert chain.read(3, 8) == chain.read(3, 100) == b""


def test_write_goes_across_buffers_from_an_offset(pair: Pair) -> None:
    pair.driver.send([], [2, 3, 4])
    chain = pair.pop()
    assert chain.write(b"ABCDE", 1) == 5
    assert b"".join(chain.writable) == b"\xa5ABCDE\xa5\xa5\xa5"
    assert chain.write(b"Z", 0) == 1
    assert bytes(chain.writable[0]) == b"ZA"


def test_write_that_does_not_fit_stores_nothing(pair: Pair) -> None:
    pair.driver.send([], [2, 2])
    chain = pair.pop()
    with pytest.raises(BadRequest):
        chain.write(b"12345")
    with pytest.raises(BadRequest):
        chain.write(b"12", 3)
    assert b"".join(chain.writable) == b"\xa5" * 4


def test_views_are_the_memory_itself(pair: Pair) -> None:
    pair.driver.send([b"abc", b"def"], [3, 3])
    chain = pair.pop()
    assert [bytes(view) for view in chain.readable_views(2, 3)] == [b"c", b"de"]
    views = chain.writable_views(1, 4)
    assert [len(view) for view in views] == [2, 2]
    views[1][:] = b"XY"
    assert bytes(chain.writable[1]) == b"XY\xa5"
    assert chain.writable_views(6, 0) == []
    with pytest.raises(BadRequest):
        chain.readable_views(0, 7)
    with pytest.raises(BadRequest):
        chain.writable_views(3, 4)


def test_only_the_filled_part_is_reported(pair: Pair) -> None:
    pair.driver.send([], [4, 4, 4])
    chain = pair.pop()
    chain.write(b"123456")
    pair.memory.reported.clear()
    pair.queue.push(chain, 6)
    assert pair.memory.reported == [(chain.addresses[0], 4), (chain.addresses[1], 2)]


# --- what the driver may not do ---------------------------------------------------------------------------------------


def _loop(pair: Pair) -> None:
    pair.driver.describe(0, BASE, 1, NEXT, 1)
    pair.driver.describe(1, BASE, 1, NEXT, 0)


def _loop_of_empty(pair: Pair) -> None:
    pair.driver.describe(0, BASE, 0, NEXT, 0)


def _next_out_of_range(pair: Pair) -> None:
    pair.driver.describe(0, BASE, 1, NEXT, 8)


def _readable_after_writable(pair: Pair) -> None:
    pair.driver.describe(0, BASE, 1, NEXT | WRITE, 1)
    pair.driver.describe(1, BASE, 1)


def _below_memory(pair: Pair) -> None:
    pair.driver.describe(0, BASE - 1, 2)


def _across_the_end(pair: Pair) -> None:
    pair.driver.describe(0, END - 1, 2, WRITE)


def _across_2_64(pair: Pair) -> None:
    pair.driver.describe(0, (1 << 64) - 1, 0xFFFF_FFFF)


def _table(pair: Pair, entries: list[tuple[int, int, int, int]], length: int | None = None, flags: int = 0) -> None:
    table = pair.memory.allocate(16 * len(entries))
    pair.memory.poke(table, b"".join(pack_descriptor(*entry) for entry in entries))
    pair.driver.describe(0, table, 16 * len(entries) if length is None else length, INDIRECT | flags, 1)


def _empty_table(pair: Pair) -> None:
    _table(pair, [(BASE, 1, 0, 0)], 0)


def _ragged_table(pair: Pair) -> None:
    _table(pair, [(BASE, 1, 0, 0)] * 2, 24)


def _table_outside_memory(pair: Pair) -> None:
    pair.driver.describe(0, END - 16, 32, INDIRECT)


def _table_in_table(pair: Pair) -> None:
    _table(pair, [(BASE, 16, INDIRECT, 0)])


def _table_with_next(pair: Pair) -> None:
    _table(pair, [(BASE, 1, 0, 0)], flags=NEXT)


def _next_outside_the_table(pair: Pair) -> None:
    _table(pair, [(BASE, 1, NEXT, 1)])


def _loop_in_the_table(pair: Pair) -> None:
    _table(pair, [(BASE, 1, NEXT, 0)])


def _chain_longer_than_the_queue(pair: Pair) -> None:
    _table(pair, [(BASE, 1, NEXT, i + 1) for i in range(8)] + [(BASE, 1, 0, 0)])


def _writable_before_a_table_that_is_read(pair: Pair) -> None:
    _table(pair, [(BASE, 1, 0, 0)])
    pair.driver.describe(1, BASE, 1, NEXT | WRITE, 0)
    pair.driver.offer(1)


BAD: list[Callable[[Pair], None]] = [
    _loop, _loop_of_empty, _next_out_of_range, _readable_after_writable, _below_memory, _across_the_end, _across_2_64,
    _empty_table, _ragged_table, _table_outside_memory, _table_in_table, _table_with_next, _next_outside_the_table,
    _loop_in_the_table, _chain_longer_than_the_queue, _writable_before_a_table_that_is_read,
]


@pytest.mark.parametrize("describe", BAD, ids=lambda describe: describe.__name__)
def test_bad_chain_is_refused_and_stays(pair: Pair, describe: Callable[[Pair], None]) -> None:
    describe(pair)
    if not pair.driver.available:
        pair.driver.offer(0)
    for _ in range(2):
        with pytest.raises(BadRequest):
            pair.queue.pop()
    assert pair.queue.save().last_avail == 0
    assert not pair.queue.empty


@pytest.mark.parametrize("describe", BAD, ids=lambda describe: describe.__name__)
def test_bad_chain_can_be_given_back_unread(pair: Pair, describe: Callable[[Pair], None]) -> None:
    describe(pair)
    if not pair.driver.available:
        pair.driver.offer(0)
    pair.queue.skip()
    pair.queue.signal()
    state = pair.queue.save()
    assert (state.last_avail, state.next_used, pair.driver.used_index, pair.interrupts) == (1, 1, 1, 1)
    assert pair.memory.read(pair.driver.device + 8, 4) == b"\1\0\0\0"
    assert pair.queue.empty


def test_head_out_of_range_is_not_given_back(pair: Pair) -> None:
    pair.driver.offer(8)
    pair.queue.skip()
    assert pair.queue.empty
    assert pair.driver.used_index == 0


@pytest.mark.parametrize("available", [0, 9, 0xFFFF])
def test_nothing_is_given_back_of_an_empty_ring_or_of_one_that_is_nonsense(pair: Pair, available: int) -> None:
    pair.driver.set_available(available)
    pair.queue.skip()
    assert pair.queue.save().last_avail == pair.driver.used_index == 0


def test_head_out_of_range_is_refused(pair: Pair) -> None:
    pair.driver.offer(8)
    with pytest.raises(BadRequest):
        pair.queue.pop()


def test_indirect_is_refused_unless_agreed_on() -> None:
    pair = Pair(EVENT_IDX)
    pair.driver.send([b"a"], indirect=True)
    with pytest.raises(BadRequest):
        pair.queue.pop()


@pytest.mark.parametrize("ahead", [9, 0x8000, 0xFFFF])
def test_index_more_than_the_size_ahead_is_refused(pair: Pair, ahead: int) -> None:
    pair.driver.send([b"a"])
    pair.driver.set_available(ahead)
    with pytest.raises(BadRequest):
        pair.queue.pop()


def test_work_is_bounded_by_the_queue_size() -> None:
    pair = Pair(size=4)
    pair.driver.send([b"a"])
    pair.driver.set_available(4)            # the other entries of the ring say 0, too
    assert sum(1 for _ in iter(pair.queue.pop, None)) == 4


def test_chains_are_those_available_and_then_a_notification_is_wanted(pair: Pair) -> None:
    heads = [pair.driver.send([bytes([number])]) for number in range(3)]
    seen = []
    for chain in pair.queue.chains():
        seen.append((chain.head, chain.read()))
        pair.queue.push(chain, 0)
    assert seen == [(head, bytes([number])) for number, head in enumerate(heads)]
    pair.queue.signal()
    pair.driver.used()
    pair.driver.send([b"a"])
    assert pair.driver.wants_notification
    pair.answer()
    assert list(pair.queue.chains()) == []


def test_requests_that_make_the_next_one_available_are_given_up(pair: Pair) -> None:
    """The answer goes over the driver area's index: always one more request, for ever."""
    index = pair.driver.state.driver + 2
    pair.driver.describe(0, index, 2, WRITE)
    pair.driver.offer(0)
    answers = 0
    with pytest.raises(BadRequest, match="made available by requests"):
        for chain in pair.queue.chains():
            answers += 1
            pair.queue.push(chain, chain.write((answers + 1).to_bytes(2, "little")))
    assert answers == 1


def test_chains_of_an_index_too_far_ahead_are_refused(pair: Pair) -> None:
    pair.driver.send([b"a"])
    pair.driver.set_available(9)
    with pytest.raises(BadRequest, match="ahead"):
        list(pair.queue.chains())


def test_a_stopped_queue_has_no_chains(pair: Pair) -> None:
    pair.driver.send([b"a"])
    pair.queue.stop()
    assert list(pair.queue.chains()) == []


def test_chain_of_4_gib_is_refused() -> None:
    class Endless(FakeMemory):
        """Says yes to every range."""

        def view(self, address: int, size: int) -> memoryview:
            return super().view(address, size) if address < END else _Long(size)    # type: ignore[return-value]

    class _Long:
        def __init__(self, size: int) -> None:
            self.size = size

    memory = Endless(SIZE)
    driver = DriverQueue(memory, 4)
    queue = Queue(0, memory, driver.state, 0, lambda: None)
    driver.describe(0, 1 << 40, 0xFFFF_FFFF, NEXT, 1)
    driver.describe(1, 1 << 40, 1, WRITE)
    driver.offer(0)
    with pytest.raises(BadRequest, match="4294967296 bytes"):
        queue.pop()


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0}, {"size": 3}, {"size": 1 << 16}, {"descriptors": BASE + 8}, {"driver": BASE + 1},
        {"device": BASE + 2}, {"descriptors": END - 64}, {"driver": END - 20}, {"device": END - 68},
        {"device": 0}, {"descriptors": 1 << 63},
    ],
)
def test_rings_that_cannot_be_are_refused(change: dict[str, int]) -> None:
    memory = FakeMemory(SIZE)
    good = DriverQueue(memory, 8).state
    with pytest.raises(BadRequest):
        Queue(0, memory, replace(good, **change), 0, lambda: None)


def test_rings_may_end_where_memory_ends() -> None:
    for area, size in ("descriptors", 16), ("driver", 2), ("device", 4):
        memory = FakeMemory(SIZE)
        length = {"descriptors": 128, "driver": 22, "device": 70}[area]
        change = {area: (END - length) // size * size}
        Queue(0, memory, replace(DriverQueue(memory, 8).state, **change), 0, lambda: None).release()


# --- interrupts and notifications -------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_one_interrupt_for_a_batch(features: int) -> None:
    pair = Pair(features)
    for _ in range(3):
        pair.driver.send([b"a"])
    while chain := pair.queue.pop():
        pair.queue.push(chain, 0)
    assert pair.interrupts == 0
    pair.queue.signal()
    pair.queue.signal()
    assert pair.interrupts == 1


def test_no_interrupt_flag_without_event_idx() -> None:
    pair = Pair(0)
    pair.memory.poke(pair.driver.driver, b"\1\0")
    pair.driver.send([b"a"])
    pair.answer()
    assert pair.interrupts == 0
    pair.memory.poke(pair.driver.driver, b"\0\0")
    pair.driver.send([b"a"])
    pair.answer()
    assert pair.interrupts == 1


def test_event_idx_interrupts_when_the_entry_asked_for_is_filled(pair: Pair) -> None:
    pair.memory.poke(pair.driver.driver, b"\1\0")       # the flag counts for nothing now
    pair.driver.suppress(2)
    seen = []
    for _ in range(5):
        pair.driver.send([b"a"])
        pair.answer()
        seen.append(pair.interrupts)
    assert seen == [0, 0, 1, 1, 1]


def test_event_idx_interrupts_when_a_batch_passes_the_entry_asked_for(pair: Pair) -> None:
    pair.driver.suppress(1)
    for _ in range(4):
        pair.driver.send([b"a"])
    while chain := pair.queue.pop():
        pair.queue.push(chain, 0)
    pair.queue.signal()
    assert pair.interrupts == 1


def test_notification_is_wanted_once_the_queue_was_found_empty(pair: Pair) -> None:
    pair.driver.send([b"a"])
    assert pair.driver.wants_notification
    pair.driver.send([b"a"])
    assert not pair.driver.wants_notification
    pair.answer()
    pair.answer()
    pair.driver.used()
    pair.driver.send([b"a"])
    assert not pair.driver.wants_notification, "the device did not look for more"
    pair.answer()
    assert pair.queue.pop() is None
    assert not pair.memory.unreported()
    pair.driver.send([b"a"])
    assert pair.driver.wants_notification


def test_looking_at_empty_asks_for_a_notification(pair: Pair) -> None:
    pair.driver.send([b"a"])
    assert not pair.queue.empty
    pair.answer()
    assert pair.queue.empty
    pair.driver.send([b"a"])
    assert pair.driver.wants_notification


def test_notification_is_always_wanted_without_event_idx() -> None:
    pair = Pair(0)
    for _ in range(3):
        pair.driver.send([b"a"])
        assert pair.driver.wants_notification


# --- life -------------------------------------------------------------------------------------------------------------


def test_saved_queue_goes_on_where_it_was(pair: Pair) -> None:
    for text in b"one", b"two", b"three":
        pair.driver.send([text], [1])
    pair.answer()
    state = pair.queue.save()
    assert state == replace(pair.driver.state, last_avail=1, next_used=1, signalled_used=1)
    pair.queue.release()
    pair.queue = Queue(0, pair.memory, state, pair.features, pair._interrupted)
    assert pair.queue.save() == state
    assert pair.pop().read() == b"two"


def test_stopped_queue_is_empty_and_takes_nothing(pair: Pair) -> None:
    pair.driver.send([b"a"])
    pair.driver.send([b"b"])
    chain = pair.pop()
    pair.queue.stop()
    assert pair.queue.empty
    assert pair.queue.pop() is None
    pair.queue.push(chain, 0)
    pair.queue.skip()
    pair.queue.signal()
    assert pair.driver.used_index == pair.interrupts == 0


def test_stopping_reports_what_was_pushed_without_a_signal(pair: Pair) -> None:
    pair.driver.send([b"a"])
    pair.queue.push(pair.pop(), 0)
    assert pair.memory.unreported()
    pair.queue.stop()
    assert not pair.memory.unreported()
    assert pair.interrupts == 0


def test_released_queue_lets_go_of_memory(pair: Pair) -> None:
    pair.driver.send([b"a"], [4], indirect=True)
    pair.answer(b"b")
    with pytest.raises(BufferError):
        pair.memory.close()
    pair.queue.release()
    pair.queue.release()
    pair.memory.close()


operations = st.one_of(
    st.tuples(
        st.just("send"),
        st.lists(st.binary(min_size=1, max_size=9), max_size=3),
        st.lists(st.integers(1, 9), max_size=3),
        st.booleans(),
    ),
    st.tuples(st.just("pop")),
    st.tuples(st.just("push"), st.integers(0, 7), st.integers(0, 30)),
    st.tuples(st.just("signal")),
    st.tuples(st.just("used")),
    st.tuples(st.just("restore")),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, INDIRECT_DESC, EVENT_IDX, RING_FEATURES]), st.lists(operations, max_size=80), st.booleans())
def test_queue_behaves_as_two_fifos(features: int, steps: list[tuple], wrapping: bool) -> None:  # type: ignore[type-arg]
    pair = Pair(features, start=0xFFF0 if wrapping else 0)
    offered: deque[tuple[int, bytes, int]] = deque()        # head, request, room for the answer
    taken: list[tuple[Chain, int]] = []
    filled: list[Used] = []
    pushed = told = seen = 0                # chains that the device has pushed, has told of, that the driver has seen
    for step in steps:
        if step[0] == "send" and step[1] + step[2]:
            indirect = step[3] and bool(features & INDIRECT_DESC)
            if len(pair.driver._free) >= (1 if indirect else len(step[1] + step[2])):
                head = pair.driver.send(step[1], step[2], indirect)
                offered.append((head, b"".join(step[1]), sum(step[2])))
        elif step[0] == "pop":
            chain = pair.queue.pop()
            assert (chain is None) == (not offered)
            if chain:
                head, request, room = offered.popleft()
                assert (chain.head, chain.read(), chain.writable_size) == (head, request, room)
                taken.append((chain, room))
        elif step[0] == "push" and taken:
            chain, room = taken.pop(step[1] % len(taken))
            data = bytes(range(min(step[2], room)))
            pair.queue.push(chain, chain.write(data) if data else 0)
            filled.append(Used(chain.head, len(data), data))
            pushed += 1
        elif step[0] == "signal":
            expected = told < pushed and (not features & EVENT_IDX or told <= seen < pushed)
            told, before = pushed, pair.interrupts
            pair.queue.signal()
            assert pair.interrupts - before == expected
            assert not pair.memory.unreported()
        elif step[0] == "used":
            assert pair.driver.used() == filled
            filled.clear()
            seen = pushed
        elif step[0] == "restore" and not taken:
            state = pair.queue.save()
            pair.queue.release()
            pair.queue = Queue(0, pair.memory, state, features, pair._interrupted)
        assert pair.queue.empty == (not offered)
