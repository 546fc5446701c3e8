"""The ordered buffer: any order in, one order out; nothing lost, doubled, late or blocked; exact lengths, no clicks."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvc_spark.audio import Audio
from rvc_spark.errors import ConfigError, SpeechError, StreamError
from rvc_spark.processing.buffer_queue import BufferQueue
from rvc_spark.processing.chunk_order import ChunkOrder, Missing, Place
from rvc_spark.processing.sound_line import FADE_SECONDS, GAP_SECONDS, Source

RATE = 16_000
PATIENCE = 60  # seconds; reaching it means that something hangs
ERROR = SpeechError("it failed", "Try again.")
GAP = round(GAP_SECONDS * RATE)


def tone(count: int, level: float = 0.5) -> np.ndarray:
    return np.full(count, level, np.float32)


def sound(count: int, level: float = 0.5, rate: int = RATE) -> Audio:
    return Audio(tone(count, level), rate)


def taken(queue: BufferQueue) -> list:
    chunks = []
    while not queue.ended:
        chunk = queue.get(PATIENCE)
        assert chunk is not None, "it hangs"
        chunks.append(chunk)
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len({chunk.rate for chunk in chunks}) == 1
    return chunks


def joined(chunks: list) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


# the order, without threads

plans = st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=8)  # parts of a sentence, fails


@settings(max_examples=200, deadline=None)
@given(plans, st.randoms(use_true_random=False), st.booleans())
def test_any_order_in_is_the_one_order_out(plan, rng, known):
    """Whatever comes when, and whenever it is asked: every part once, in order; failed sentences in their turn."""
    order: ChunkOrder[str] = ChunkOrder(len(plan) if known else None)
    waiting = {number: list(range(parts)) for number, (parts, _) in enumerate(plan)}
    kept = {number: rng.randint(0, parts - 1) if fails else parts for number, (parts, fails) in enumerate(plan)}
    out: list[object] = []
    while waiting:
        number = rng.choice(list(waiting))
        if len(waiting[number]) == plan[number][0] - kept[number] and plan[number][1]:
            order.fail(number, "text", ERROR)
            del waiting[number]
        else:
            part = waiting[number].pop(0)
            order.put(Place(number, part, part == plan[number][0] - 1), f"{number}.{part}")
            if not waiting[number]:
                del waiting[number]
        while rng.random() < 0.7 and (found := order.pop()) is not None:
            out.append(found.sentence if isinstance(found, Missing) else found[1])
            if isinstance(found, Missing):
                order.pass_missing()
    order.finish(len(plan))
    while (found := order.pop()) is not None:
        out.append(found.sentence if isinstance(found, Missing) else found[1])
        if isinstance(found, Missing):
            order.pass_missing()
    expected: list[object] = []
    for number, (_, fails) in enumerate(plan):
        expected += [f"{number}.{part}" for part in range(kept[number])] + [number] * fails
    assert out == expected and order.ended and order.waiting == 0


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(6)))
def test_parts_of_one_sentence_may_come_in_any_order_too(numbers):
    order: ChunkOrder[int] = ChunkOrder(1)
    for number in numbers:
        order.put(Place(0, number, number == 5), number)
    out = [order.pop()[1] for _ in range(6)]
    assert out == list(range(6)) and order.ended and order.pop() is None


def test_what_cannot_be_placed_is_refused_by_name():
    order: ChunkOrder[int] = ChunkOrder(3)
    order.put(Place(0, 0, True), 0)
    order.put(Place(1, 0), 0)
    order.put(Place(1, 2), 0)
    refused = {
        Place(-1, 0): "below 0", Place(1, 0): "twice", Place(3, 0): "unknown: there are 3",
        Place(1, 1, True): "part 2 is", Place(0, 1): "after the last",
    }  # fmt: skip
    for place, words in refused.items():
        with pytest.raises(StreamError, match=words):
            order.put(place, 0)
    order.pop()
    with pytest.raises(StreamError, match="late"):
        order.put(Place(0, 0), 0)
    order.fail(1, "", ERROR)
    for place in (Place(1, 1), Place(1, 3)):
        with pytest.raises(StreamError, match="failed"):
            order.put(place, 0)
    for sentence in (0, 1, 3):
        with pytest.raises(StreamError):
            order.fail(sentence, "", ERROR)
    for count in (0, 2, 4):
        with pytest.raises(StreamError):
            order.finish(count)
    assert order.pop()[0] == Place(1, 0) and order.pop() == Missing(1, "", ERROR) == order.pop()
    order.reopen(1)
    assert order.received(1) == 1 and order.pop() is None
    with pytest.raises(StreamError):
        order.pass_missing()


# lengths, gaps and fades


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(200, 9_000), st.integers(0, 3_000), st.integers(-1, 1)), min_size=1, max_size=12),
    st.sampled_from([(22_050, 40_000), (16_000, 44_100), (48_000, 32_000)]), st.integers(1, 3),
)  # fmt: skip
def test_the_stream_is_as_long_as_the_conversion_of_the_whole(sentences, rates, cuts):
    """Each sentence is rounded on its own and may be a sample off; the sum is not."""
    rate_in, rate_out = rates
    queue = BufferQueue("a", len(sentences), ahead_seconds=3600)
    for number, (frames, pause, off) in enumerate(sentences):
        samples = tone(max(cuts, round(frames * rate_out / rate_in) + off))
        pieces = np.array_split(samples, cuts)
        for part, piece in enumerate(pieces):
            last = part == cuts - 1
            source = Source(frames, rate_in, pause) if last else None
            queue.put(Place(number, part, last), Audio(piece, rate_out), source)
    total = sum(frames + pause for frames, pause, _ in sentences)
    assert len(joined(taken(queue))) == round(total * rate_out / rate_in)


def test_a_voice_with_another_rate_joins_the_stream_at_its_first_rate():
    queue = BufferQueue("a", 2)
    queue.put(Place(0, 0, True), sound(16_000), Source(16_000, RATE, 4_000))
    second = np.sin(2 * np.pi * 440 * np.arange(40_000) / 40_000).astype(np.float32)
    for part, piece in enumerate(np.array_split(second, 3)):
        queue.put(Place(1, part, part == 2), Audio(piece, 40_000), Source(16_000, RATE) if part == 2 else None)
    whole = joined(taken(queue))
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / RATE)
    assert len(whole) == 36_000 and np.abs(whole[20_000:][200:-200] - expected[200:-200]).max() < 1e-3


def test_a_missing_sentence_is_silence_with_a_reason_between_faded_neighbours():
    queue = BufferQueue("a", 3)
    queue.put(Place(2, 0, True), sound(4_000))
    queue.put(Place(0, 0), sound(3_000))
    queue.fail(0, "the text", ERROR)  # broke off in the middle: what was heard of it is faded
    queue.put(Place(1, 0, True), sound(5_000))
    chunks = taken(queue)
    gap = next(chunk for chunk in chunks if chunk.gap)
    assert (gap.gap.sentence, gap.gap.text, gap.gap.error, gap.frames) == (0, "the text", ERROR, GAP)
    assert not gap.samples.any() and queue.gaps == (gap.gap,)
    whole = joined(chunks)
    assert len(whole) == 3_000 + GAP + 5_000 + 4_000
    assert np.abs(np.diff(whole)).max() < 0.01  # steps of 0.5 would click
    faded = (whole > 0) & (whole < 0.5)
    assert faded.sum() < 2.1 * FADE_SECONDS * RATE


def test_a_gap_counts_for_itself_and_lengths_stay_exact_behind_it():
    queue = BufferQueue("a", 4)
    for number in (0, 2, 3):
        queue.put(Place(number, 0, True), sound(3_334, rate=40_000), Source(1_333, RATE, 100))
    queue.fail(1, "", ERROR)
    assert len(joined(taken(queue))) == round(3 * 1_433 * 2.5) + round(GAP_SECONDS * 40_000)


@pytest.mark.parametrize("number", [0, 2])
def test_a_gap_may_be_first_or_last(number):
    queue = BufferQueue("a", 3, rate=RATE)
    for other in {0, 1, 2} - {number}:
        queue.put(Place(other, 0, True), sound(1_000))
    queue.fail(number, "", ERROR)
    chunks = taken(queue)
    assert [bool(chunk.gap) for chunk in chunks].count(True) == 1 and bool(chunks[-1].gap) == (number == 2)
    assert len(joined(chunks)) == 2_000 + GAP


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_may_be_told_after_everything_was_put(fails):
    queue = BufferQueue("a")
    queue.put(Place(0, 0, True), sound(1_000), Source(1_000, RATE, 500))
    if fails:
        queue.fail(1, "", ERROR)
    first = queue.get(PATIENCE)
    while (chunk := queue.get(0)) is not None:
        assert not chunk.last
    queue.finish(1 + fails)
    last = queue.get(PATIENCE)
    assert not first.last and last.last and queue.ended
    with pytest.raises(StreamError, match="ended"):
        queue.get(0)


def test_stop_delivers_what_came_before_and_then_raises():
    queue = BufferQueue("a", 3, on_failure="stop")
    queue.put(Place(2, 0, True), sound(100))
    queue.fail(1, "", ERROR)
    assert queue.get(0) is None
    queue.put(Place(0, 0, True), sound(1_000), Source(1_000, RATE, 1_000))
    assert queue.get(0).frames == 2_000
    for _ in range(2):
        with pytest.raises(SpeechError, match="it failed"):
            queue.get(0)
    assert queue.gaps[0].sentence == 1


def test_wait_holds_until_a_retry_or_another_policy():
    queue = BufferQueue("a", 3, on_failure="wait")
    queue.put(Place(0, 0), sound(1_000, 0.1))
    queue.put(Place(1, 0, True), sound(1_000))
    queue.fail(0, "text", ERROR)
    assert queue.get(0).frames < 1_000 and queue.get(0) is None
    assert queue.held_by == Missing(0, "text", ERROR)
    queue.retry(0)
    assert queue.held_by is None and queue.received(0) == (1, 1_000)
    queue.put(Place(0, 1, True), sound(500, 0.2))
    while queue.get(0) is not None:
        pass
    queue.fail(2, "", ERROR)
    assert queue.get(0) is None and queue.held_by.sentence == 2
    queue.on_failure = "skip"
    assert taken_rest(queue)[-1].gap.sentence == 2
    with pytest.raises(ConfigError):
        queue.on_failure = "perhaps"


def taken_rest(queue: BufferQueue) -> list:
    chunks = []
    while not queue.ended:
        chunks.append(queue.get(PATIENCE))
    return chunks


# threads


def test_makers_wait_for_room_but_never_the_one_the_listener_waits_for():
    """Every sentence but the first is made first, by more makers than there is room for; then the first comes."""
    queue = BufferQueue("a", 40, ahead_seconds=0.2)
    blocked = [threading.Thread(target=make, args=(queue, number)) for number in range(39, 0, -1)]
    for thread in blocked:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while queue.ready_seconds < 0.2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert 0.2 <= queue.ready_seconds < 0.4 and not queue.has_room(39) and queue.has_room(0)
    with pytest.raises(StreamError, match="no room"):
        queue.put(Place(20, 0, True), sound(1_600), timeout=0.01)
    assert queue.get(0) is None
    blocked.append(threading.Thread(target=make, args=(queue, 0)))
    blocked[-1].start()
    whole = joined(taken(queue))
    for thread in blocked:
        thread.join(PATIENCE)
    assert len(whole) == sum(1_600 + number for number in range(40))


def make(queue: BufferQueue, number: int) -> None:
    samples = sound(1_600 + number, (number + 1) / 100)
    queue.put(Place(number, 0), Audio(samples.samples[:800], RATE))
    queue.put(Place(number, 1, True), Audio(samples.samples[800:], RATE))


def test_a_single_maker_in_order_is_held_back_too():
    """The next sentence is always the head; it may not run away while chunks wait to be taken."""
    queue = BufferQueue("a", 1_000, ahead_seconds=0.5)
    maker = threading.Thread(target=lambda: [make(queue, number) for number in range(1_000)])
    maker.start()
    most = 0.0
    rng = random.Random(1)
    frames = 0
    while not queue.ended:
        most = max(most, queue.ready_seconds)
        frames += queue.get(PATIENCE).frames
        if rng.random() < 0.02:
            time.sleep(0.002)
    maker.join(PATIENCE)
    assert frames == sum(1_600 + number for number in range(1_000)) and most < 0.5 + 0.2


@pytest.mark.parametrize("error", [None, ERROR])
def test_close_wakes_everybody(error):
    queue = BufferQueue("a", 5, ahead_seconds=0.1)
    queue.put(Place(1, 0, True), sound(3_200))
    ended: list[type] = []

    def waits(call):
        try:
            call()
        except (StreamError, SpeechError) as problem:
            ended.append(type(problem))

    calls = [queue.get] + [lambda number=number: queue.put(Place(number, 0), sound(10)) for number in (2, 3, 4)]
    threads = [threading.Thread(target=waits, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert not ended
    queue.close(error)
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(kind.__name__ for kind in ended) == sorted(
        ["StreamError"] * 3 + [type(error).__name__ if error else "StreamError"]
    )
    assert queue.ready_seconds == 0 and queue.closed


def test_pause_holds_delivery():
    queue = BufferQueue("a", 1)
    queue.put(Place(0, 0, True), sound(1_000))
    queue.pause()
    assert queue.get(0.01) is None
    queue.pause(False)
    assert queue.get(0).last


def test_bounds_are_checked():
    for seconds in (0, -1, 1e9, float("nan")):
        with pytest.raises(ConfigError, match="ahead_seconds"):
            BufferQueue("a", ahead_seconds=seconds)
    with pytest.raises(ConfigError, match="on_failure"):
        BufferQueue("a", on_failure="never")
