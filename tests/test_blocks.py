"""Conversion block by block is conversion: the same samples, the first of them early, and nothing held when it ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rvc_spark.audio import Audio
from rvc_spark.errors import AudioError, ConfigError, VoiceFileError
from rvc_spark.infer.loudness_match import StreamedMatch, envelope_of, match_loudness
from rvc_spark.rvc_modules import VC


@pytest.fixture(scope="module")
def vc() -> VC:
    loaded = VC()
    loaded.load("demo")
    return loaded


def melody(seconds: float, rate: int = 22_050) -> Audio:
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * time)) / rate
    loud = 0.08 + 0.06 * np.sin(2 * np.pi * 0.31 * time)
    return Audio((loud * (np.sin(phase) + 0.4 * np.sin(2 * phase))).astype(np.float32), rate)


@pytest.mark.parametrize("changes", [
    {}, {"rms_mix_rate": 1.0}, {"rms_mix_rate": 0.0, "resample_rate": 48_000}, {"resample_rate": 11_025},
    {"formant": 2.0}, {"auto_key": "voice"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("seconds", [0.02, 0.4, 3.7])
def test_blocks_are_the_samples_of_the_whole(vc: VC, seconds: float, changes: dict) -> None:
    source = melody(seconds)
    whole = vc.convert(source, f0_method="pm", **changes)
    blocks = vc.convert_blocks(source, f0_method="pm", **changes)
    assert blocks.frames == whole.frames and blocks.rate == whole.rate and "key" not in blocks.engines
    pieces = [block.samples for block in blocks]
    np.testing.assert_allclose(np.concatenate(pieces), whole.audio.samples, atol=2e-6)
    assert blocks.engines == whole.engines
    np.testing.assert_array_equal(blocks.result_f0, whole.result_f0)
    if seconds > 3 and "formant" not in changes:
        assert len(pieces) >= 3 and len(pieces[0]) < 0.7 * blocks.rate


@pytest.mark.thorough
def test_a_recording_that_is_cut_joins_its_parts_the_same_way(vc: VC) -> None:
    source = melody(43.0, 16_000)
    whole = vc.convert(source, f0_method="pm", index_rate=0.0)
    pieces = [block.samples for block in vc.convert_blocks(source, f0_method="pm", index_rate=0.0)]
    np.testing.assert_allclose(np.concatenate(pieces), whole.audio.samples, atol=2e-6)


def test_closing_ends_the_work_and_bad_input_is_refused_at_once(vc: VC) -> None:
    blocks = vc.convert_blocks(melody(3.0), f0_method="pm")
    next(blocks)
    blocks.close()
    blocks.close()
    with pytest.raises(StopIteration):
        next(blocks)
    with pytest.raises(AudioError, match="less than 10 ms"):
        vc.convert_blocks(melody(0.005))
    with pytest.raises(ConfigError, match="index_rate=2"):
        vc.convert_blocks(melody(1.0), index_rate=2)
    with pytest.raises(VoiceFileError, match="no voice is loaded"):
        VC().convert_blocks(melody(1.0))


def test_an_unloaded_voice_comes_back_by_itself_and_sounds_the_same(vc: VC) -> None:
    before = vc.convert(melody(0.5), f0_method="pm").audio.samples
    assert vc.loaded and vc.unload() and not vc.loaded and not vc.unload()
    assert vc.voice is not None and vc.voice.name == "demo" and vc.voice.index is None
    running = vc.convert_blocks(melody(0.5), f0_method="pm")
    vc.unload()  # what runs keeps what it holds
    np.testing.assert_array_equal(np.concatenate([block.samples for block in running]), before)
    assert not vc.loaded
    np.testing.assert_array_equal(vc.convert(melody(0.5), f0_method="pm").audio.samples, before)
    assert vc.voice.index is not None


def test_a_sibling_shares_the_encoder_and_has_its_own_voice(vc: VC) -> None:
    vc.convert(melody(0.1), f0_method="pm")
    other = vc.sibling()
    assert other.voice is None and not other.loaded
    other.load("demo", index=None)
    assert other._encoder[1] is vc._encoder[1] and other._trackers is vc._trackers
    assert other.voice.index is None and vc.voice.index is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=25), st.floats(0, 1), st.integers(0, 9))
def test_streamed_loudness_is_that_of_the_whole(lengths: list[int], mix: float, seed: int) -> None:
    assume(sum(lengths))
    rate, chance = 400, np.random.default_rng(seed)
    sound = (chance.normal(size=sum(lengths)) * np.linspace(0.01, 0.5, sum(lengths))).astype(np.float32)
    source = (chance.normal(size=16_000) * np.linspace(0.3, 0.1, 16_000)).astype(np.float32)
    match = StreamedMatch(envelope_of([source], 16_000), mix, rate, len(sound))
    edges = np.cumsum(lengths)[:-1]
    held, pieces = 0, []
    for block in np.split(sound, edges):
        pieces.append(match.push(block))
        held = max(held, sum(map(len, np.split(sound, edges)[: len(pieces)])) - sum(map(len, pieces)))
    np.testing.assert_array_equal(np.concatenate(pieces), match_loudness(source, sound, rate, mix))
    assert held <= rate + max(lengths)  # less than a second, and what has just come
