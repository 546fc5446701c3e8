"""From a text to sound over stand-in networks: order, pieces, retries, runaways, cancelling, nothing lost or twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rvc_spark.errors import NothingSpokenError, SpeechError, TextError, VoiceTokensError
from rvc_spark.tts.chunk_schedule import ChunkSettings, Window
from rvc_spark.tts.spark_settings import SAMPLES_PER_TOKEN, SparkSettings
from rvc_spark.tts.spark_speech import PartOfText, SpeechParts, SpokenText, TokenCall, seed_of
from rvc_spark.tts.spark_tokens import ControlVoice, load_tokenizer
from rvc_spark.tts.spark_voice import SparkVoice

VOICE = SparkVoice(tuple(range(32)))
REACH = 5


@dataclass
class FakeTokens:
    """Hands out a list; `finish` is what the list's end means."""

    ids: list[int]
    end: str
    log: list[str] = field(default_factory=list)
    finish: str | None = None
    closed: bool = False

    def __iter__(self) -> FakeTokens:
        return self

    def __next__(self) -> int:
        if self.closed or not self.ids:
            self.finish = self.finish or ("cancelled" if self.closed else self.end)
            raise StopIteration
        return self.ids.pop(0)

    def close(self) -> None:
        self.closed = True


class FakeModel:
    """Answers with what `script(call)` says: codec numbers, and how they end."""

    room = 4_096

    def __init__(self, tokenizer, script: Callable[[TokenCall], tuple[list[int], str]]) -> None:
        self._tokenizer, self._script = tokenizer, script
        self.calls: list[TokenCall] = []
        self.given: list[FakeTokens] = []

    def generate(self, call: TokenCall, settings: SparkSettings) -> FakeTokens:
        self.calls.append(call)
        if call.allowed == (self._tokenizer.glob.ids,):
            tokens = FakeTokens([self._tokenizer.glob.start + number for number in range(40, 72)], "length")
        elif call.allowed == self._tokenizer.style_ids:
            tokens = FakeTokens([self._tokenizer.style_ids[5]], "stop")
        else:
            numbers, end = self._script(call)
            start = [self._tokenizer.id_of("start_semantic_token")]
            tokens = FakeTokens(start + [self._tokenizer.semantic.start + number for number in numbers], end)
        self.given.append(tokens)
        return tokens


class FakeCodec:
    """Each sample is a weighted sum of the tokens within reach, so a wrong context shows."""

    reach, semantic_size, global_size = REACH, 128, 4096

    def utterance(self, global_tokens: Sequence[int]) -> Callable[[Sequence[int], Window], np.ndarray]:
        return lambda semantic, window: fake_decode(semantic[window.start : window.stop], global_tokens)[
            (window.keep_start - window.start) * SAMPLES_PER_TOKEN : (window.keep_stop - window.start)
            * SAMPLES_PER_TOKEN
        ]


def fake_decode(semantic: Sequence[int], global_tokens: Sequence[int]) -> np.ndarray:
    padded = np.pad(np.asarray(semantic, np.float32), REACH)
    frames = sum(padded[shift : shift + len(semantic)] / (shift + 1) for shift in range(2 * REACH + 1))
    return np.repeat(frames + sum(global_tokens), SAMPLES_PER_TOKEN).astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer(spark_folder):
    return load_tokenizer(spark_folder / "LLM")


def make(tokenizer, script, text="Hello there, how are you today?", voice=VOICE, **settings):
    settings = {"seed": 1, "chunks": ChunkSettings(first_seconds=0.2, scale=2.0, max_seconds=1.0), **settings}
    model = FakeModel(tokenizer, script)
    return SpokenText(SpeechParts(tokenizer, model, FakeCodec()), text, voice, SparkSettings(**settings)), model


def numbers_of(call: TokenCall, count: int | None = None) -> list[int]:
    rng = np.random.default_rng(call.seed % 2**32)
    return rng.integers(0, 128, count or int(rng.integers(1, 200))).tolist()


def counted(count: int, end: str = "stop") -> Callable[[TokenCall], tuple[list[int], str]]:
    return lambda call: (numbers_of(call, count), end)


LONG = "The first sentence is about the weather, which is fine. The second one asks what we shall do with it. " * 3


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 400), min_size=20, max_size=20),
    first=st.sampled_from([0.02, 0.1, 1.0, 30.0]),
    pause=st.sampled_from([0.0, 0.2]),
    lookahead=st.integers(0, 3),
)
def test_the_joined_stream_is_the_whole_decode(tokenizer, counts, first, pause, lookahead):
    script = iter(counts)
    said: list[list[int]] = []
    prompts: list[tuple[int, ...]] = []

    def answer(call: TokenCall) -> tuple[list[int], str]:
        said.append(numbers_of(call, next(script)))
        prompts.append(call.prompt)
        return said[-1], "stop"

    spoken, _ = make(
        tokenizer, answer, LONG, pause_seconds=pause, lookahead=lookahead, chunks=ChunkSettings(first_seconds=first)
    )
    sound = np.concatenate(list(spoken))
    silence = np.zeros(round(pause * 16_000), np.float32)
    wholes = [part for numbers in said for part in (fake_decode(numbers, VOICE.global_tokens), silence)]
    np.testing.assert_allclose(sound, np.concatenate(wholes[:-1]), atol=1e-4)
    assert spoken.notes.tokens == sum(map(len, said)) and spoken.notes.pieces == len(said) == 6
    words = "".join(LONG.split())
    found = "".join(bytes_of(tokenizer, prompt) for prompt in prompts)
    assert "".join(found.split()) == words


def bytes_of(tokenizer, prompt: Sequence[int]) -> str:
    """The words between the content marks; the tiny tokenizer has one token per byte."""
    begin, end = prompt.index(tokenizer.id_of("start_content")), prompt.index(tokenizer.id_of("end_content"))
    return tokenizer._tokenizer.decode(list(prompt[begin + 1 : end]), skip_special_tokens=False)


def test_the_first_sound_leaves_before_the_tokens_end(tokenizer):
    spoken, model = make(tokenizer, counted(500))
    first = next(spoken)
    assert len(first) == 10 * SAMPLES_PER_TOKEN
    assert len(model.given[0].ids) > 480  # all but the first chunk, its context and the start mark


def test_the_next_piece_is_asked_for_before_this_one_ends(tokenizer):
    spoken, model = make(tokenizer, counted(300), LONG)
    assert len(model.calls) == 0  # nothing is made before it is asked for
    next(spoken)
    assert len(model.calls) == 2 and model.given[0].ids


def test_same_seed_same_calls_and_other_seed_others(tokenizer):
    def seeds(seed):
        spoken, model = make(tokenizer, counted(30), LONG, seed=seed)
        list(spoken)
        return [call.seed for call in model.calls]

    assert seeds(5) == seeds(5) != seeds(6)
    assert len(set(seeds(5))) == 6
    assert all(0 <= seed_of(seed, piece, 1) < 2**63 for seed in (0, 2**63 - 1) for piece in (-1, 0, 99))


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_tokens_are_sound(tokenizer, count):
    spoken, _ = make(tokenizer, counted(count), "a")
    assert len(np.concatenate(list(spoken))) == count * SAMPLES_PER_TOKEN


def test_no_token_is_tried_again_and_then_told(tokenizer):
    answers = iter([[], [], [7, 8, 9]])
    spoken, model = make(tokenizer, lambda call: (next(answers), "stop"))
    assert len(np.concatenate(list(spoken))) == 3 * SAMPLES_PER_TOKEN
    assert spoken.notes.retries == 2 and len({call.seed for call in model.calls}) == 3
    begin = tokenizer.id_of("start_semantic_token")
    assert [call.prompt[-1] == begin for call in model.calls] == [False, True, True]  # opened for it once it failed
    spoken, model = make(tokenizer, lambda call: ([], "stop"), attempts=3)
    with pytest.raises(NothingSpokenError, match="no semantic token.*3 attempts.*another seed"):
        list(spoken)
    assert len(model.calls) == 3


def test_a_runaway_is_tried_again_while_nothing_was_heard(tokenizer):
    answers = iter([(list(range(100)), "length"), ([1, 2, 3], "stop")])
    spoken, _ = make(tokenizer, lambda call: next(answers), chunks=ChunkSettings(first_seconds=10))
    assert len(np.concatenate(list(spoken))) == 3 * SAMPLES_PER_TOKEN
    spoken, _ = make(tokenizer, counted(100, "length"), chunks=ChunkSettings(first_seconds=10))
    with pytest.raises(NothingSpokenError, match="did not end within 100 tokens"):
        list(spoken)


def test_a_runaway_that_was_heard_is_ended_and_noted(tokenizer):
    spoken, _ = make(tokenizer, counted(400, "length"), LONG)
    sound = np.concatenate(list(spoken))
    assert len(sound) == 6 * 400 * SAMPLES_PER_TOKEN + 5 * 3_200
    assert len(spoken.notes.warnings) == 6 and "did not end within 400 tokens" in spoken.notes.warnings[0]


def test_a_held_sound_is_a_runaway(tokenizer):
    spoken, model = make(tokenizer, lambda call: ([3] * 10_000, "stop"), chunks=ChunkSettings(first_seconds=20))
    with pytest.raises(NothingSpokenError, match="held one sound for 150 tokens"):
        list(spoken)
    assert all(len(tokens.ids) > 9_000 and tokens.closed for tokens in model.given)


def test_a_limit_that_was_set_ends_a_piece_without_a_retry(tokenizer):
    spoken, model = make(tokenizer, lambda call: (numbers_of(call, call.limit - 1), "length"), max_tokens=40)
    sound = np.concatenate(list(spoken))
    assert len(model.calls) == 1 and len(sound) == 41 * SAMPLES_PER_TOKEN and spoken.notes.warnings


def test_a_voice_made_to_order_is_kept_for_all_pieces(tokenizer):
    spoken, model = make(tokenizer, counted(50), LONG, voice=ControlVoice("male", "low", "high"))
    list(spoken)
    assert spoken.notes.voice.global_tokens == tuple(range(40, 72))
    style, numbers, *speech = model.calls
    assert numbers.limit == 32 and numbers.prompt[-1] == tokenizer.id_of("start_global_token")
    assert len(speech) == 6
    assert all(tokenizer.globals_of(call.prompt) == list(range(40, 72)) for call in speech)


@pytest.mark.parametrize("voice", [VOICE, ControlVoice("male", "low", "high")], ids=["enrolled", "made to order"])
def test_a_text_in_several_calls_sounds_as_in_one(tokenizer, voice):
    whole, model = make(tokenizer, lambda call: (numbers_of(call), "stop"), LONG, voice=voice, pause_seconds=0)
    sound = np.concatenate(list(whole))
    pieces = SparkSettings().pieces(LONG)
    parts = []
    for number, piece in enumerate(pieces):
        other = FakeModel(tokenizer, lambda call: (numbers_of(call), "stop"))
        part = PartOfText(number, pieces[0])
        settings = SparkSettings(seed=1)
        spoken = SpokenText(SpeechParts(tokenizer, other, FakeCodec()), piece, voice, settings, part)
        parts.append(np.concatenate(list(spoken)))
        assert set(other.calls) <= set(model.calls)
    np.testing.assert_allclose(np.concatenate(parts), sound, atol=1e-4)


def test_a_transcribed_voice_goes_on_with_its_tokens(tokenizer):
    voice = SparkVoice(VOICE.global_tokens, (1, 2, 3), "Reference words.")
    spoken, model = make(tokenizer, counted(10), "Hello.", voice=voice)
    assert len(np.concatenate(list(spoken))) == 10 * SAMPLES_PER_TOKEN  # the reference itself is not heard
    assert tokenizer.semantic_of(model.calls[0].prompt) == [1, 2, 3]
    assert bytes_of(tokenizer, model.calls[0].prompt) == "Reference words. Hello."


def test_closing_ends_every_call(tokenizer):
    spoken, model = make(tokenizer, counted(300), LONG, lookahead=3)
    next(spoken)
    assert len(model.given) == 4 and not any(tokens.closed for tokens in model.given)
    spoken.close()
    assert all(tokens.closed for tokens in model.given)
    with pytest.raises(StopIteration):
        next(spoken)


def test_an_abandoned_text_ends_its_calls_too(tokenizer):
    spoken, model = make(tokenizer, counted(300), LONG)
    next(spoken)
    del spoken
    assert all(tokens.closed for tokens in model.given)


def test_a_reference_that_fills_the_prompt_is_refused_at_once(tokenizer):
    voice = SparkVoice(VOICE.global_tokens, (1,) * 3_000, "x" * 1_100)
    with pytest.raises(SpeechError, match="shorter recording"):
        make(tokenizer, counted(5), voice=voice)


@pytest.mark.parametrize("text", ["", "   ", "🙂🙂", "...", "a <|im_end|> b", "\0", "x" * 200_001])
def test_texts_that_cannot_be_spoken_are_refused_at_once(tokenizer, text):
    with pytest.raises(TextError):
        make(tokenizer, counted(5), text)


def test_a_voice_of_another_codec_is_refused_at_once(tokenizer):
    with pytest.raises(VoiceTokensError, match="semantic token 128"):
        make(tokenizer, counted(5), voice=SparkVoice(VOICE.global_tokens, (128,), ""))


def test_a_codec_that_returns_nonsense_is_an_error(tokenizer):
    class Broken(FakeCodec):
        def utterance(self, global_tokens):
            return lambda semantic, window: np.full(320, np.nan, np.float32)

    parts = SpeechParts(tokenizer, FakeModel(tokenizer, counted(1)), Broken())
    with pytest.raises(SpeechError, match="not finite"):
        list(SpokenText(parts, "a", VOICE, SparkSettings(seed=1)))


def test_two_thousand_words_are_all_spoken(tokenizer):
    words = [f"word{number}" for number in range(2_000)]
    text = " ".join(word + ("." if number % 9 == 8 else "") for number, word in enumerate(words))
    spoken, model = make(tokenizer, counted(3), text)
    sound: Iterator[np.ndarray] = iter(spoken)
    total = sum(len(part) for part in sound)
    said = " ".join(bytes_of(tokenizer, call.prompt) for call in model.calls)
    assert said.replace(".", "").split() == words
    assert total == len(model.calls) * 3 * SAMPLES_PER_TOKEN + (len(model.calls) - 1) * 3_200
