"""Sound that is not finished: paced by the test's clock, kept, pulled and sent, with producers of every bad habit."""

from __future__ import annotations

import base64
import gc
import itertools
import re
import signal
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvc_spark.audio import Audio, EncodeOptions, read_audio
from rvc_spark.errors import OutputError, SpeechError, StreamError
from rvc_spark.streaming import take as take_module
from rvc_spark.streaming.chunk import AudioChunk, Gap
from rvc_spark.streaming.intake import Intake
from rvc_spark.streaming.outlet import GRACE_SECONDS, Outlet
from rvc_spark.streaming.pacer import MAX_LEAD, MAX_PACKET, MIN_PACKET, Pacer
from rvc_spark.streaming.page_source import packed_module, player_module, player_style
from rvc_spark.streaming.page_watch import FAREWELL, PATIENCE, PageWatch
from rvc_spark.streaming.pump import Pump, PumpOptions
from rvc_spark.streaming.sinks import ClockSink, Feedback, FileSink, MemorySink, Packet, RunInfo, Words
from rvc_spark.streaming.stats import StreamStats
from rvc_spark.streaming.take import TakeStore

RATE = 8_000
SECONDS_TO_END = 20.0  # only means "does not hang"


def noise(seconds: float, seed: int = 0, channels: int = 1) -> np.ndarray:
    """float32 [n, C]."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * RATE), channels)).astype(np.float32)


# ---- pacing, in virtual time -----------------------------------------------------------------------------------------


class World:
    """A producer, an outlet and a player that share one clock, which only this class moves."""

    def __init__(self, lead: float = 0.3, rate: int = RATE) -> None:
        self.now = 0.0
        self.take = TakeStore(rate, 1)
        self.player = ClockSink(lambda: self.now)
        self.outlet = Outlet(self.player, self.take, lead, "")
        self.pacer = self.outlet.pacer
        self.most_ahead = 0
        self.finished = False

    def run_until(self, end: float) -> None:
        while self.now < end and not self.outlet.done:
            wait = self.outlet.step(self.now, self.finished, True)
            self.most_ahead = max(self.most_ahead, self.pacer.packets_ahead(self.now))
            self.now = end if wait is None else min(end, self.now + max(wait, 1e-4))

    def make(self, seconds: float) -> None:
        self.take.append(noise(seconds, seed=self.take.frames))

    def sent(self) -> np.ndarray:
        return np.concatenate([packet.samples for packet in self.player.packets])


arrivals = st.lists(
    st.tuples(st.floats(0.0, 3.0), st.floats(0.001, 4.0)), min_size=1, max_size=25
)  # (seconds until, seconds of sound)


@settings(max_examples=60, deadline=None)
@given(arrivals=arrivals, lead=st.sampled_from([0.05, 0.2, 0.3, 1.0, MAX_LEAD]))
def test_whatever_the_producer_does_everything_is_sent_once_and_never_in_a_burst(
    arrivals: list[tuple[float, float]], lead: float
) -> None:
    world = World(lead)
    for wait, seconds in arrivals:
        world.run_until(world.now + wait)
        world.make(seconds)
    world.finished = True
    world.run_until(world.now + 200.0)
    assert world.outlet.done and world.player.ended
    assert np.array_equal(world.sent(), world.take.read(0, world.take.frames))
    packets = world.player.packets
    assert [packet.seq for packet in packets] == list(range(len(packets)))
    assert [packet.start for packet in packets] == [0, *itertools.accumulate(len(p.samples) for p in packets)][:-1]
    sizes = np.array([len(packet.samples) for packet in packets]) / RATE
    assert sizes.max() <= MAX_PACKET and (sizes[:-1] >= MIN_PACKET).all()
    assert [packet.last for packet in packets].count(True) <= 1
    assert world.most_ahead <= min(300, lead / MIN_PACKET + 2)
    assert world.player.deepest <= lead + MAX_PACKET + 1e-6
    assert world.pacer.reanchors == world.player.underruns  # its picture of the player is what the player does


def test_latency_does_not_stay_after_a_producer_that_was_late_and_caught_up() -> None:
    world = World(0.3)
    world.make(1.0)
    world.run_until(2.5)  # runs dry at 1.0
    world.make(20.0)  # 1.5 s are made up at once
    world.run_until(4.0)
    assert world.player.underruns == world.pacer.reanchors == 1
    assert world.player.buffered() <= 0.3 + 1e-6
    assert world.player.silence == pytest.approx(1.5, abs=MIN_PACKET)  # a rest below a packet waits for company
    world.run_until(12.0)
    assert world.player.underruns == 1


def test_a_late_start_costs_nothing_later() -> None:
    world = World(0.3)
    world.run_until(2.5)
    world.make(10.0)
    world.run_until(5.0)
    assert world.player.underruns == 0 and world.player.buffered() <= 0.3 + 1e-6
    assert world.pacer.position(world.now) == pytest.approx(2.5 * RATE, abs=2)


def test_a_producer_in_real_time_keeps_its_start_as_a_reserve() -> None:
    world = World(0.3)
    for _ in range(100):
        world.make(0.05)
        world.run_until(world.now + 0.05)
    assert world.player.underruns == 0 and 0.1 < world.player.buffered() <= 0.3


def test_pause_shifts_the_clock() -> None:
    world = World(0.3)
    world.make(5.0)
    world.run_until(1.0)
    depth = world.player.buffered()
    world.pacer.pause(world.now)
    world.player.pause()
    sent, position = world.outlet.sent, world.pacer.position(world.now)
    world.run_until(61.0)
    assert world.outlet.sent == sent and world.pacer.position(world.now) == position
    world.pacer.resume(world.now)
    world.player.resume()
    assert world.player.buffered() == pytest.approx(depth)
    world.finished = True
    world.run_until(61.0 + 3.9)
    assert world.player.buffered() > 0 and not world.outlet.done
    world.run_until(61.0 + 4.1 + GRACE_SECONDS + 0.2)
    assert world.outlet.done and world.player.underruns == 0


@pytest.mark.parametrize("lead", [0.0, 0.04, 10.5, float("nan")])
def test_a_lead_that_cannot_work_is_refused(lead: float) -> None:
    with pytest.raises(StreamError, match="lead"):
        Pacer(RATE, lead)
    with pytest.raises(StreamError, match="lead"):
        PumpOptions(lead=lead)


# ---- the take --------------------------------------------------------------------------------------------------------


def test_a_take_is_readable_anywhere_while_it_grows_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take_module, "MEMORY_LIMIT", 1 << 20)
    block = noise(2.0, channels=2)
    tracemalloc.start()
    take = TakeStore(RATE, 2)
    for number in range(400):  # 51 MB
        take.append(block + np.float32(number))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 << 20
    for number in (0, 7, 399):
        assert np.array_equal(take.read(number * len(block), (number + 1) * len(block)), block + np.float32(number))
    middle = take.read(len(block) - 3, len(block) + 3)
    assert np.array_equal(middle, np.concatenate([block[-3:], block[:3] + np.float32(1)]))
    assert sum(len(part) for part in take.blocks()) == take.frames == 400 * len(block)
    assert take.audio(5, 10).samples.shape == (2, 5)
    with pytest.raises(StreamError, match="outside"):
        take.read(0, take.frames + 1)
    take.close()
    with pytest.raises(StreamError, match="closed"):
        take.read(0, 1)


def test_a_take_frees_its_file_with_its_last_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take_module, "MEMORY_LIMIT", 10)
    take = TakeStore(RATE, 1)
    take.append(noise(0.1))
    file = take._file
    assert not file.closed
    del take
    gc.collect()
    assert file.closed


def test_readers_and_the_writer_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take_module, "MEMORY_LIMIT", 50_000)
    take = TakeStore(RATE, 1)
    wrong: list[int] = []

    def read() -> None:
        random = np.random.default_rng(1)
        while take.frames < 100_000:
            stop = take.frames
            start = int(random.integers(0, stop + 1))
            wrong.extend(np.flatnonzero(take.read(start, stop)[:, 0] != np.arange(start, stop)))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for start in range(0, 100_000, 500):
        take.append(np.arange(start, start + 500, dtype=np.float32)[:, None])
    for reader in readers:
        reader.join(SECONDS_TO_END)
    assert wrong == [] and not any(reader.is_alive() for reader in readers)


# ---- what can be played ----------------------------------------------------------------------------------------------


def pulled(source: object) -> np.ndarray:
    intake = Intake(source)
    pieces = []
    while (piece := intake.pull()) is not None:
        pieces.append(piece.samples)
    return np.concatenate(pieces)


def test_a_sound_pairs_and_chunks_are_one_thing() -> None:
    samples = noise(0.5)[:, 0]
    audio = Audio(samples, RATE)

    class Music:
        rate = RATE

        def __iter__(self) -> Iterator[np.ndarray]:
            yield samples

    chunk = AudioChunk(samples=samples, rate=RATE, stream="a", seq=0)
    for source in (audio, (samples, RATE), [audio], iter([(samples, RATE)]), Music(), [chunk]):
        assert np.array_equal(pulled(source)[:, 0], samples)
    assert Intake(audio).total == 0.5 and Intake([audio]).total is None


def test_a_whole_song_comes_in_parts() -> None:
    intake = Intake(Audio(np.zeros(200_000, np.float32), RATE))
    assert len(intake.pull().samples) < 100_000


def test_another_rate_on_the_way_is_resampled_to_the_sample() -> None:
    first, second, third = noise(0.5)[:, 0], np.zeros(24_000, np.float32), noise(0.25, seed=3)[:, 0]
    joined = pulled([Audio(first, RATE), Audio(second, 3 * RATE), Audio(second, 3 * RATE), Audio(third, RATE)])
    assert len(joined) == len(first) + 2 * 8_000 + len(third)
    assert np.array_equal(joined[: len(first), 0], first) and np.array_equal(joined[-len(third) :, 0], third)


def test_the_first_piece_decides_the_channels() -> None:
    stereo, mono = Audio(noise(0.1, channels=2).T.copy(), RATE), Audio(noise(0.1)[:, 0], RATE)
    assert pulled([stereo, mono]).shape == (1600, 2) and pulled([mono, stereo]).shape == (1600, 1)


@pytest.mark.parametrize("source", ["a.wav", b"RIFF", 7, None, np.zeros(10)])
def test_what_cannot_be_played_is_refused_at_once(source: object) -> None:
    with pytest.raises(StreamError, match="cannot be played"):
        Intake(source)


def test_a_piece_that_is_no_sound_is_told_by_its_type() -> None:
    with pytest.raises(StreamError, match="type str"):
        pulled(["sentence"])


# ---- the pump --------------------------------------------------------------------------------------------------------


class Producer:
    """Pieces of sound that can be held up, fail, or block; remembers that it was closed."""

    def __init__(self, count: int, seconds: float = 0.1, *, fails_at: int = -1, blocks_at: int = -1) -> None:
        self.count, self.seconds, self.fails_at, self.blocks_at = count, seconds, fails_at, blocks_at
        self.made, self.closed = 0, threading.Event()
        self.inside, self.release = threading.Event(), threading.Event()

    def __iter__(self) -> Producer:
        return self

    def __next__(self) -> AudioChunk:
        if self.made == self.fails_at:
            raise SpeechError("the engine fell over", "Start it again.")
        if self.made == self.blocks_at:
            self.inside.set()
            assert self.release.wait(SECONDS_TO_END)
        if self.made == self.count:
            raise StopIteration
        self.made += 1
        return AudioChunk(samples=noise(self.seconds, seed=self.made)[:, 0], rate=RATE, seq=self.made - 1)

    def close(self) -> None:
        self.closed.set()

    def whole(self) -> np.ndarray:
        return np.concatenate([noise(self.seconds, seed=number + 1) for number in range(self.made)])[:, 0]


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rvc-spark")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    end = time.monotonic() + SECONDS_TO_END
    while ours() and time.monotonic() < end:
        time.sleep(0.01)
    assert ours() == []


def test_everything_reaches_every_sink_and_the_file_is_exact(tmp_path: Path) -> None:
    producer, memory = Producer(12), MemorySink()
    options = EncodeOptions(sample_format="float32")
    pump = Pump(producer, [memory, FileSink(tmp_path / "a.wav", options)])
    pump.start()
    assert pump.wait(SECONDS_TO_END) and pump.wait_played(SECONDS_TO_END)
    assert producer.closed.is_set() and memory.ended and pump.state == "ended"
    assert np.array_equal(memory.audio().samples, producer.whole())
    assert np.array_equal(read_audio(tmp_path / "a.wav").samples, producer.whole())
    assert np.array_equal(pump.take.audio().samples, producer.whole())
    assert pump.stats().made == pytest.approx(1.2) and pump.stats().gaps == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "a.wav"]


def test_what_came_before_an_error_is_played_and_the_error_is_raised_by_whoever_waits(tmp_path: Path) -> None:
    producer, memory = Producer(9, fails_at=4), MemorySink()
    pump = Pump(producer, [memory, FileSink(tmp_path / "a.flac")])
    pump.start()
    with pytest.raises(SpeechError, match="fell over"):
        pump.wait(SECONDS_TO_END)
    assert pump.wait_played(SECONDS_TO_END) and pump.state == "failed"
    assert np.array_equal(memory.audio().samples, producer.whole()) and producer.made == 4
    assert list(tmp_path.iterdir()) == [] and producer.closed.is_set()


def test_a_producer_without_sound_ends_and_one_that_fails_at_once_says_so() -> None:
    pump = Pump(iter([]), [MemorySink()])
    pump.start()
    assert pump.wait(SECONDS_TO_END) and pump.take is None and pump.state == "ended"
    pump = Pump(Producer(3, fails_at=0), [MemorySink()])
    pump.start()
    with pytest.raises(SpeechError):
        pump.wait(SECONDS_TO_END)


def test_a_sink_that_fails_ends_the_producer_and_is_told(tmp_path: Path) -> None:
    producer = Producer(10_000)
    pump = Pump(producer, [MemorySink(), FileSink(tmp_path / "none" / "a.wav")])
    pump.start()
    with pytest.raises(OutputError, match="does not exist"):
        pump.wait(SECONDS_TO_END)
    assert producer.closed.wait(SECONDS_TO_END)


def test_the_producer_runs_ahead_only_as_far_as_it_may_until_somebody_waits() -> None:
    producer = Producer(200)
    pump = Pump(producer, [ClockSink(time.monotonic)], PumpOptions(ahead=2.0))
    pump.start()
    end = time.monotonic() + SECONDS_TO_END
    while producer.made < 20 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    assert 20 <= producer.made < 100
    assert pump.wait(SECONDS_TO_END)  # 20 s of sound, of which a second was played
    assert producer.made == 200 and pump.alive
    assert pump.stop() and pump.state == "stopped"


def test_stop_is_silence_and_the_end_of_producer_and_threads(tmp_path: Path) -> None:
    producer, player = Producer(10_000), ClockSink(time.monotonic)
    pump = Pump(producer, [player, FileSink(tmp_path / "a.wav")], PumpOptions(ahead=1.0))
    pump.start()
    while not player.packets:
        time.sleep(0.01)
    assert pump.stop(timeout=SECONDS_TO_END)
    assert ours() == [] and producer.closed.is_set() and player.stopped
    assert list(tmp_path.iterdir()) == [] and pump.error is None
    assert pump.wait(1.0) and pump.stop()


def test_a_generator_is_closed_by_the_thread_that_is_inside_it() -> None:
    ended = threading.Event()

    def generate() -> Iterator[Audio]:
        try:
            while True:
                time.sleep(0.05)
                yield Audio(np.zeros(400, np.float32), RATE)
        finally:
            ended.set()

    pump = Pump(generate(), [ClockSink(time.monotonic)])
    pump.start()
    time.sleep(0.12)
    assert pump.stop(timeout=SECONDS_TO_END) and ended.is_set()


def test_a_producer_that_blocks_is_closed_from_outside_and_left_to_itself() -> None:
    producer, player = Producer(50, blocks_at=3), ClockSink(time.monotonic)
    pump = Pump(producer, [player])
    pump.start()
    assert producer.inside.wait(SECONDS_TO_END)
    assert pump.stop(timeout=0.6) is False  # one thread is left: the one inside the producer
    assert pump.wait_played(SECONDS_TO_END) and player.stopped and ours() == ["rvc-spark-pull"]
    assert producer.closed.is_set()
    producer.release.set()  # `no_thread_is_left` sees it end


def test_an_interrupt_while_waiting_stops_everything_and_is_passed_on() -> None:
    producer, player = Producer(50, blocks_at=20), ClockSink(time.monotonic)
    pump = Pump(producer, [player])
    pump.start()
    threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        pump.wait(SECONDS_TO_END)
    assert pump.state == "stopped" and player.stopped
    producer.release.set()


def test_pause_and_resume_reach_the_player_and_the_producer_goes_on() -> None:
    producer, player = Producer(40), ClockSink(time.monotonic)
    pump = Pump(producer, [player], PumpOptions(ahead=30.0))
    pump.start()
    pump.pause()
    assert pump.wait(SECONDS_TO_END) and pump.state == "paused"
    sent = len(player.packets)
    time.sleep(0.3)
    assert len(player.packets) - sent <= 1 and producer.made == 40
    pump.resume()
    end = time.monotonic() + SECONDS_TO_END
    while len(player.packets) < sent + 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(player.packets) >= sent + 3
    assert pump.stop()


def test_missing_sentences_are_counted_and_told() -> None:
    told: list[Words] = []

    class Listening(MemorySink):
        def words(self, words: Words) -> None:
            told.append(words)

    gap = Gap(1, "Two.", SpeechError("no voice", "Try again."))
    silence = np.zeros(800, np.float32)
    chunks = [AudioChunk(samples=silence, rate=RATE, seq=n, gap=gap if n == 1 else None) for n in range(3)]
    pump = Pump(chunks, [Listening()])
    pump.start()
    assert pump.wait(SECONDS_TO_END) and pump.wait_played(SECONDS_TO_END)
    assert pump.stats().gaps == 1 and pump.gaps == [gap]
    assert told[-1] == Words("all is made", 0.3, 0.3, ("sentence 2 is missing: no voice",))


def test_figures_read_well() -> None:
    stats = StreamStats("playing", 3.0, 1.0, 12, 0.2, 0.5, 2, 0.01, 1, Feedback(mode="worklet", underruns=1))
    assert str(stats) == (
        "playing: 3.0 s made, first sound after 0.20 s, real-time factor 0.50, 1.0 s sent in 12 packets, the producer "
        "was late 2 times, 1 sentence is missing, 1 underruns, 0 packets lost (worklet)"
    )
    assert str(StreamStats("starting")) == "starting: 0.0 s made"


def test_a_clock_player_counts_what_a_listener_would_hear() -> None:
    now = [0.0]
    player = ClockSink(lambda: now[0])
    player.begin(RunInfo(RATE, 1, 0.3, 0.2))
    player.packet(Packet(0, 0, noise(0.1)))
    now[0] = 5.0
    assert player.buffered() == pytest.approx(0.1)  # below the prebuffer nothing plays
    player.packet(Packet(1, 800, noise(0.2)))
    now[0] = 5.4
    assert player.buffered() == 0.0 and player.underruns == 1 and player.silence == pytest.approx(0.1)


# ---- whether the page is there ---------------------------------------------------------------------------------------


def watched(events: list[tuple[float, str]], until: float, busy: tuple[float, float] = (9e9, 9e9)) -> float | None:
    """Stamps ten times a second but for the time the loop is `busy`, which holds up ticks as well; when it was gone."""
    watch, queue, stamp = PageWatch(), list(events), 0.0
    while stamp <= until:
        if not busy[0] <= stamp < busy[1]:
            while queue and queue[0][0] <= stamp:
                getattr(watch, queue.pop(0)[1])(stamp)
            if watch.stamp(stamp, playing=True):
                return stamp
        stamp = round(stamp + 0.1, 3)
    return None


TICKS = [(0.25 * n, "tick") for n in range(1, 9)]  # until 2.0


def test_a_page_that_falls_silent_is_gone_after_patience() -> None:
    assert watched(TICKS, 9.0) == pytest.approx(2.0 + PATIENCE, abs=0.11)


def test_a_page_that_never_spoke_is_not_missed() -> None:
    assert watched([], 9.0) is None and watched(TICKS[:1], 9.0) is None


def test_a_busy_kernel_proves_nothing() -> None:
    later = [(0.25 * n, "tick") for n in range(1, 60)]
    assert watched(later, 14.0, busy=(1.0, 8.0)) is None
    gone = watched(TICKS, 14.0, busy=(1.0, 8.0))
    assert gone == pytest.approx(8.0 + PATIENCE, abs=0.11)


def test_a_kernel_that_is_busy_again_and_again_still_notices() -> None:
    watch, stamp, gone = PageWatch(), 0.0, None
    for number in range(200):
        stamp += 0.5 if number % 8 == 7 else 0.1  # half a second of work in between, more often than patience lasts
        if stamp < 2.0:
            watch.tick(stamp)
        if watch.stamp(stamp, playing=True):
            gone = stamp
            break
    assert gone is not None and 2.0 + PATIENCE < gone < 2.0 + 2 * PATIENCE


def test_a_page_that_says_good_bye_is_gone_unless_another_plays_on() -> None:
    assert watched([*TICKS, (2.1, "bye")], 9.0) == pytest.approx(2.1 + FAREWELL, abs=0.11)
    other = sorted([*TICKS, (1.1, "bye"), *((t, "tick") for t in np.arange(2.0, 9.0, 0.25))])
    assert watched(other, 8.0) is None


def test_while_nothing_should_play_nobody_is_missed() -> None:
    watch = PageWatch()
    for stamp in np.arange(0.0, 2.0, 0.1):
        watch.tick(stamp)
        assert not watch.stamp(stamp, True)
    assert not any(watch.stamp(stamp, False) for stamp in np.arange(2.0, 9.0, 0.1))
    watch.bye(9.0)
    assert [watch.stamp(stamp, False) for stamp in (9.1, 9.5)] == [False, True]


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_small_enough_to_be_saved_with_a_widget() -> None:
    module = player_module()
    assert "__RING_SOURCE__" not in module and "registerProcessor" in module and "export default" in module
    packed = re.search(r'atob\("([^"]+)"\)', packed_module()).group(1)
    assert zlib.decompress(base64.b64decode(packed)).decode("utf-8") == module
    assert len(packed_module()) + len(player_style()) < 29_000
