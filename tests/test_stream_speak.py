"""Speech converted part by part: cut at pauses only, nothing lost, one key, the length of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvc_spark import rvc_init
from rvc_spark.audio import Audio
from rvc_spark.processing.spoken_parts import LONGEST_SECONDS, parts_between_pauses

RATE = 8_000


def tone(count: int) -> np.ndarray:
    return (1 + np.arange(count) % 7).astype(np.float32) / 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3_000), st.integers(900, 2_000)), min_size=1, max_size=6), st.integers(1, 2_500),
    st.booleans(),
)  # fmt: skip
def test_parts_are_what_lies_between_pauses_however_it_comes(parts, step, ends_quiet):
    sound = np.concatenate([piece for speech, pause in parts for piece in (tone(speech), np.zeros(pause, np.float32))])
    if not ends_quiet:
        sound = sound[: -parts[-1][1]]
    pieces = (Audio(sound[start : start + step], RATE) for start in range(0, len(sound), step))
    found = [(speech.frames, pause) for speech, pause in parts_between_pauses(pieces)]
    expected = parts if ends_quiet else [*parts[:-1], (parts[-1][0], 0)]
    assert found == expected


def test_short_silence_is_inside_speech_and_endless_speech_is_cut():
    sound = np.concatenate([tone(50), np.zeros(790, np.float32), tone(50)])
    assert [(part.frames, pause) for part, pause in parts_between_pauses(iter([Audio(sound, RATE)]))] == [(890, 0)]
    long = Audio(tone(round(2.5 * LONGEST_SECONDS * RATE)), RATE)
    pieces = (Audio(long.samples[at : at + 8_000], RATE) for at in range(0, long.frames, 8_000))
    found = [part.frames for part, _ in parts_between_pauses(pieces)]
    assert sum(found) == long.frames and max(found) <= LONGEST_SECONDS * RATE + 8_000


def test_the_stream_is_as_long_as_the_whole_in_one_key():
    rvc_init.init_rvc()
    text = "One sentence. Another one, a little longer. The third."
    whole = rvc_init.speak(text, engine="espeak", f0_method="pm")
    stream = rvc_init.stream_speak(text, engine="espeak", f0_method="pm")
    parts = list(stream)
    assert len(parts) >= 3 and sum(part.frames for part in parts) == whole.audio.frames
    assert {"tts", "key", "pitch"} <= set(stream.engines) and stream.engines["tts"].value == "espeak"
    assert all(np.abs(part.samples).max() > 0.02 for part in parts)


def test_a_stream_that_is_closed_speaks_no_more():
    stream = rvc_init.stream_speak("One. Two. Three.", engine="espeak", f0_method="pm")
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
