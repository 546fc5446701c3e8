"""Tokens of several requests at once are those of each alone; streams end, are left and fail, leaving nothing."""

from __future__ import annotations

import gc
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rvc_spark.errors import ConfigError, SpeechError
from rvc_spark.tts.spark_generate import Generator
from rvc_spark.tts.spark_generate_step import Batch, capture_graph
from rvc_spark.tts.spark_generate_stream import TokenRequest
from rvc_spark.tts.spark_lm import SparkLM, load_lm
from rvc_spark.tts.spark_sampling import NOTHING, Draws, Sampling, candidates, choose, kept_probabilities, uniforms
from tests.test_spark_lm import VOCAB, make_folder

SLOW = 30.0  # seconds after which something hangs


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> SparkLM:
    path: Path = tmp_path_factory.mktemp("lm")
    make_folder(path)
    return load_lm(path)


@pytest.fixture
def generator(lm):
    with Generator(lm, slots=4, max_length=400) as made:
        yield made


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(VOCAB), k=length))


def requests_of_all_kinds(count: int) -> list[TokenRequest]:
    """Different lengths, settings, sets of ids and stops."""
    return [
        TokenRequest(
            prompt(1 + 23 * n, n), Sampling(temperature=n % 3 * 0.7, top_k=(50, 0, 3)[n % 3], top_p=0.9, seed=n),
            20 + n, frozenset({n}), (None, (range(100, 250),), (5, range(200, 240)))[n % 3 if n % 2 else 1],
        )
        for n in range(count)
    ]  # fmt: skip


def settled(generator: Generator) -> bool:
    """Wait until nothing runs and nothing waits."""
    until = time.monotonic() + SLOW
    while time.monotonic() < until:
        stats = generator.stats()
        if not stats.active and not stats.queued:
            return True
        time.sleep(0.01)
    return False


# --- drawing ---------------------------------------------------------------------------------------------------------


def draws(rows: int, temperature=0.8, top_k=50, top_p=0.95, uniform=0.5) -> Draws:
    def each(value, dtype):
        return torch.as_tensor(value, dtype=dtype).expand(rows)

    return Draws(
        each(temperature, torch.float32), each(top_k, torch.int64), each(top_p, torch.float64),
        each(uniform, torch.float64),
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 50, 499, 10_000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
def test_candidates_and_probabilities_are_those_of_transformers(temperature, top_k, top_p) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(6, 500, generator=torch.Generator().manual_seed(top_k + 1))
    want = TemperatureLogitsWarper(temperature)(None, logits)
    want = TopKLogitsWarper(top_k)(None, want) if top_k else want
    want = TopPLogitsWarper(top_p)(None, want).softmax(-1)
    got = kept_probabilities(logits, draws(6, temperature, top_k, top_p))
    assert torch.equal(got > 0, want > 0) and (got - want).abs().max() < 1e-6


def test_draws_have_the_probabilities_they_should() -> None:
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(3))
    count = 40_000
    u = torch.from_numpy(uniforms(5, count))
    drawn = choose(logits.expand(count, -1), draws(count, uniform=u, top_k=20), candidates(20, 30))
    share = torch.bincount(drawn, minlength=30) / count
    want = kept_probabilities(logits, draws(1, top_k=20))[0]
    assert (share - want).abs().max() < 0.01 and share[want == 0].sum() == 0


def test_a_draw_does_not_depend_on_how_many_candidates_are_looked_at() -> None:
    logits = torch.randn(200, 500, generator=torch.Generator().manual_seed(4))
    row = draws(200, uniform=torch.from_numpy(uniforms(1, 200)))
    narrow = choose(logits, row, candidates(50, 500))
    assert torch.equal(narrow, choose(logits, row, 500)) and len(set(narrow.tolist())) > 50


def test_greedy_equal_and_broken_logits() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0], [torch.nan, 1, 2, 3], [torch.inf, 1, 2, 3]])
    assert choose(logits, draws(4, temperature=0.0, uniform=0.99), 4).tolist() == [1, 0, NOTHING, NOTHING]
    for uniform, column in ((0.0, 0), (1 - 2**-32, 3)):
        assert choose(logits[:1], draws(1, top_p=1.0, top_k=0, uniform=uniform), 4).tolist() == [column]


def test_numbers_of_a_seed_are_the_same_everywhere() -> None:
    assert uniforms(7, 3).tolist() == uniforms(7, 100)[:3].tolist() != uniforms(8, 3).tolist()
    known = np.random.Philox(key=7).random_raw(2) >> 32
    assert uniforms(7, 2).tolist() == [number / 2**32 for number in known.tolist()]
    many = uniforms(2**64 - 1, 10_000)
    assert 0 <= many.min() and many.max() < 1 and abs(many.mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": 11}, {"temperature": "1"},
        {"temperature": 1e-9}, {"temperature": True}, {"top_k": -1}, {"top_k": 1.5}, {"top_k": 10**30}, {"top_p": 0},
        {"top_p": 1.01}, {"top_p": None}, {"seed": -1}, {"seed": 2**64}, {"seed": 1.0}, {"seed": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_greedy_tokens_are_those_of_transformers(tmp_path, generator) -> None:
    model = make_folder(tmp_path)
    given = prompt(150)
    want = model.generate(torch.tensor([given]), max_new_tokens=30, do_sample=False)[0, 150:].tolist()
    stream = generator.submit(TokenRequest(given, Sampling(temperature=0), 30))
    assert list(stream) == want and stream.finish == "length" and stream.tokens_per_second > 0


def fake_capture(calls: list[int]):
    """What `capture_graph` does, without a device: a first run whose changes are put back, then replays."""

    def capture(work, changed):
        kept = [tensor.clone() for tensor in changed]
        work()
        for tensor, before in zip(changed, kept, strict=True):
            tensor.copy_(before)
        calls.append(0)
        number = len(calls) - 1

        def replay() -> None:
            calls[number] += 1
            work()

        return replay

    return capture


def test_eight_at_once_give_the_tokens_each_gives_alone(lm) -> None:
    requests = requests_of_all_kinds(8)
    with Generator(lm, slots=1, max_length=400) as one:
        alone = [list(one.submit(request)) for request in requests]
    assert len({tuple(tokens) for tokens in alone}) == 8 and max(map(len, alone)) > 10
    for slots in (8, 3):
        with Generator(lm, slots=slots, max_length=400) as many:
            streams = [many.submit(request) for request in requests]
            assert [list(stream) for stream in streams] == alone
    calls: list[int] = []
    with Generator(lm, slots=8, max_length=400, capture=fake_capture(calls)) as recorded:
        streams = [recorded.submit(request) for request in requests]
        assert [list(stream) for stream in streams] == alone
    assert 1 < len(calls) < sum(calls)  # recorded for several sizes, each replayed


def test_recorded_steps_are_few_and_prepared_beforehand(lm) -> None:
    calls: list[int] = []
    wanted = TokenRequest((1,), Sampling(), 1, frozenset({3}), (range(50, 90),))
    with Generator(lm, slots=4, max_length=400, capture=fake_capture(calls)) as generator:
        assert generator.warm_up(wanted) == 3 * 2  # 1, 2, 4 slots; 256 positions and all
        assert generator.warm_up(wanted) == 0 and sum(calls) == 0
        streams = [
            generator.submit(TokenRequest(prompt(200, n), Sampling(seed=n), 100, frozenset({3}), (range(50, 90),)))
            for n in range(6)
        ]
        assert all(0 <= token < VOCAB for stream in streams for token in stream)
        assert len(calls) == 6 and sum(calls) > 10
        with pytest.raises(ConfigError, match="allowed"):
            generator.warm_up(TokenRequest((1,), allowed=(VOCAB,)))


def test_the_recording_puts_the_state_back(lm) -> None:
    """The bookkeeping of a real recording, seen from outside: the first run must not count."""
    batches = [Batch(lm, 2, 300), Batch(lm, 2, 300, fake_capture([]))]
    for batch in batches:
        with torch.inference_mode():
            lm.prefill(batch.cache, 1, prompt(9)[:-1])
            batch.start(1, prompt(9), lm.head(None), Sampling(), 1, 20)
    eager, recorded = ([batch.step()[1] for _ in range(20)] for batch in batches)
    assert eager == recorded
    for batch in batches:
        batch.stop(1)
        batch.stop(1)
        assert batch.running == [] and batch._positions.tolist() == [batch.cache.scratch] * 2
    assert callable(capture_graph)


def test_a_seed_repeats_and_none_draws_one(generator) -> None:
    first = generator.submit(TokenRequest(prompt(9), Sampling(seed=None), 30))
    tokens = list(first)
    assert list(generator.submit(TokenRequest(prompt(9), Sampling(seed=first.seed), 30))) == tokens
    assert generator.submit(TokenRequest(prompt(9), Sampling(seed=11), 1)).seed == 11
    assert len({generator.submit(TokenRequest(prompt(9), Sampling(), 1)).seed for _ in range(5)}) == 5


def test_edges_of_requests(generator) -> None:
    greedy = Sampling(temperature=0)
    first = list(generator.submit(TokenRequest(prompt(5), greedy, 1)))
    assert len(first) == 1
    stopped = generator.submit(TokenRequest(prompt(5), greedy, 10, frozenset(first)))
    assert list(stopped) == [] and stopped.finish == "stop" and stopped.tokens_per_second == 0
    only = generator.submit(TokenRequest(prompt(5), Sampling(), 5, allowed=(17,)))
    assert list(only) == [17] * 5 and only.finish == "length"
    forced = generator.submit(TokenRequest(prompt(5), Sampling(), 5, frozenset({17}), (17,)))
    assert list(forced) == [] and forced.finish == "stop"
    assert len(list(generator.submit(TokenRequest((1,), Sampling(), 399)))) == 399
    with pytest.raises(SpeechError, match="400"):
        generator.submit(TokenRequest(prompt(390), Sampling(), 11))
    for wrong in (
        {"prompt": ()}, {"max_new_tokens": 0}, {"max_new_tokens": 1.0}, {"max_new_tokens": 10**9}, {"allowed": ()},
        {"allowed": (range(0),)},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            TokenRequest(**({"prompt": (1,)} | wrong))
    for wrong in (
        {"prompt": (VOCAB,)}, {"prompt": (1, -1)}, {"prompt": (True,)}, {"stop_ids": frozenset({VOCAB})},
        {"allowed": (range(VOCAB + 1),)}, {"prompt": ("1",)},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            generator.submit(TokenRequest(**({"prompt": (1,), "max_new_tokens": 2} | wrong)))
    assert settled(generator)


def test_batches_of_a_stream(generator) -> None:
    stream = generator.submit(TokenRequest(prompt(5), Sampling(seed=1), 50))
    taken: list[int] = []
    while batch := stream.next_batch(SLOW):
        taken += batch
    assert len(taken) == 50 and stream.finish == "length" and stream.next_batch() == []
    waiting = [generator.submit(TokenRequest(prompt(5), Sampling(), 300)) for _ in range(5)]
    assert waiting[4].next_batch(0.0) == [] and waiting[4].finish is None


def test_leaving_a_stream_at_any_time_frees_its_slot(lm) -> None:
    with Generator(lm, slots=1, max_length=500) as generator:
        running = generator.submit(TokenRequest(prompt(5), Sampling(), 400))
        assert len([next(running) for _ in range(3)]) == 3
        queued = generator.submit(TokenRequest(prompt(5), Sampling(), 400))
        queued.close()
        assert list(queued) == [] and queued.finish == "cancelled"
        running.close()
        running.close()
        assert list(running) == [] and running.finish == "cancelled"
        assert settled(generator)
        reading = generator.submit(TokenRequest(prompt(480), Sampling(), 20))  # its prompt has four pieces
        reading.close()
        assert settled(generator) and reading.finish == "cancelled"
        for token in generator.submit(TokenRequest(prompt(5), Sampling(), 400)):
            assert token >= 0
            break  # the stream is forgotten here
        gc.collect()
        assert settled(generator)
        done = generator.submit(TokenRequest(prompt(5), Sampling(), 3))
        assert len(list(done)) == 3
        done.close()
        assert done.finish == "length" and generator.stats().tokens < 800


def test_a_slow_reader_holds_nobody_up_and_closing_wakes_a_waiting_one(lm) -> None:
    with Generator(lm, slots=2, max_length=400) as generator:
        slow = generator.submit(TokenRequest(prompt(5), Sampling(seed=1), 100))
        assert len(list(generator.submit(TokenRequest(prompt(5), Sampling(seed=2), 200)))) == 200
        assert len(list(slow)) == 100
        holders = [generator.submit(TokenRequest(prompt(5), Sampling(), 390)) for _ in range(2)]
        waiting = generator.submit(TokenRequest(prompt(5), Sampling(), 10))
        ended: list[list[int]] = []
        reader = threading.Thread(target=lambda: ended.append(list(waiting)))
        reader.start()
        waiting.close()
        reader.join(SLOW)
        assert ended == [[]] and len(holders) == 2


def test_closing_ends_streams_and_the_thread(lm) -> None:
    generator = Generator(lm, slots=2, max_length=400)
    streams = [generator.submit(TokenRequest(prompt(5), Sampling(), 390)) for _ in range(6)]
    next(streams[0])
    generator.close()
    generator.close()
    assert not generator._thread.is_alive()
    for stream in streams:
        assert len(list(stream)) < 390 and stream.finish == "cancelled"
    for late in (generator.submit, generator.warm_up):
        with pytest.raises(SpeechError, match="closed"):
            late(TokenRequest((1,), Sampling(), 1))


def test_a_forgotten_generator_ends_its_thread(lm) -> None:
    generator = Generator(lm, slots=2, max_length=400)
    thread, stream = generator._thread, generator.submit(TokenRequest(prompt(5), Sampling(), 390))
    del generator
    gc.collect()
    thread.join(SLOW)
    assert not thread.is_alive() and len(list(stream)) < 390 and stream.finish == "cancelled"


def test_a_failing_step_reaches_every_stream_in_a_slot_and_the_rest_go_on(lm, monkeypatch) -> None:
    broken, step = threading.Event(), Batch.step

    def failing(self):
        if broken.is_set():
            broken.clear()
            raise torch.OutOfMemoryError("no memory\nin many lines")
        return step(self)

    monkeypatch.setattr(Batch, "step", failing)
    with Generator(lm, slots=2, max_length=400) as generator:
        streams = [generator.submit(TokenRequest(prompt(5), Sampling(seed=n), 300)) for n in range(3)]
        next(streams[0])
        next(streams[1])
        broken.set()
        for stream in streams[:2]:
            with pytest.raises(SpeechError, match="no memory") as caught:
                list(stream)
            assert "many lines" not in str(caught.value) and stream.finish is None
            with pytest.raises(SpeechError):
                stream.next_batch()
        assert len(list(streams[2])) == 300 and settled(generator)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dying_thread_leaves_nobody_waiting(lm, monkeypatch) -> None:
    all_wait = threading.Event()  # else the thread may be gone before the third is submitted, which then says so

    def dying(self):
        assert all_wait.wait(SLOW)
        raise SystemExit("gone")

    monkeypatch.setattr(Batch, "step", dying)
    generator = Generator(lm, slots=1, max_length=400)
    streams = [generator.submit(TokenRequest(prompt(5), Sampling(), 100)) for _ in range(3)]
    all_wait.set()
    for stream in streams:
        with pytest.raises(SpeechError, match="gone"):
            list(stream)
    generator._thread.join(SLOW)
    with pytest.raises(SpeechError, match="closed"):
        generator.submit(TokenRequest((1,), Sampling(), 1))
    generator.close()


def test_numbers_that_are_not_finite_are_an_error(tmp_path) -> None:
    make_folder(tmp_path)
    lm = load_lm(tmp_path)
    lm._norm.fill_(torch.nan)
    with Generator(lm, slots=1, max_length=100) as generator, pytest.raises(SpeechError, match="finite"):
        list(generator.submit(TokenRequest((1, 2), Sampling(), 5)))


def test_many_short_requests_with_random_cancels_leave_nothing(lm) -> None:
    threads = threading.active_count()
    with Generator(lm, slots=4, max_length=200) as generator:
        ended: list[str | None] = []

        def visit(worker: int) -> None:
            chance = random.Random(worker)
            for n in range(25):
                length, limit = chance.randint(1, 150), chance.randint(1, 12)
                request = TokenRequest(prompt(length, n), Sampling(), limit, frozenset({n}))
                stream = generator.submit(request)
                for token_count, _ in enumerate(stream):
                    if chance.random() < 0.15 or token_count > 12:
                        break
                if chance.random() < 0.7:
                    stream.close()
                ended.append(stream.finish)
                if chance.random() < 0.2:
                    generator.submit(request)  # never looked at

        workers = [threading.Thread(target=visit, args=(n,)) for n in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert not worker.is_alive()
        del worker
        gc.collect()
        assert len(ended) == 200 and settled(generator)
        stats = generator.stats()
        assert stats.finished >= 200 and stats.steps < stats.tokens + stats.finished and stats.prefill_tokens > 0
        assert len(list(generator.submit(TokenRequest((1,), Sampling(), 150)))) == 150
    assert threading.active_count() == threads


def test_settings_of_a_generator_are_checked(lm) -> None:
    for wrong in ({"slots": 0}, {"slots": 1000}, {"slots": 1.0}, {"max_length": 1}, {"max_length": 513}):
        with pytest.raises(ConfigError):
            Generator(lm, **wrong)
