"""The voice network: numbers of the reference, windows that equal the whole, the source's phase, and refused inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_vectors import normal, recipe_voice, rising_pitch
from torch.nn import functional as F
from voice_maker import content_for, make_voice

from rvc_spark.errors import ConfigError, PitchError, VoiceFileError
from rvc_spark.infer import decode_blocks, half_products, layers
from rvc_spark.infer.decoder import Margin, receptive_field
from rvc_spark.infer.random_voice import UPSAMPLING, VoiceRecipe
from rvc_spark.infer.source import (
    Excitation,
    GivenNoise,
    TorchNoise,
    WindowNoise,
    ZeroNoise,
    frame_phase,
)
from rvc_spark.infer.stretch import stretched_span
from rvc_spark.infer.synthesizer import StreamWindow, load_synthesizer
from rvc_spark.infer.voice_layout import MRF
from rvc_spark.rvc_config import has_bf16

VECTOR = 2e-5  # the reference's numbers are given to six digits
WINDOW = 2e-5
RECIPES = [
    *(VoiceRecipe(version, rate, has_f0, seed=7) for rate, version in UPSAMPLING for has_f0 in (True, False)),
    VoiceRecipe(vocoder=MRF, rate=48_000),
    VoiceRecipe(resblock="2"),
]


def loaded(recipe: VoiceRecipe, **options):
    return load_synthesizer(make_voice(recipe), **options)


def drawn_noise(voice, frames: int, seed: int = 0) -> WindowNoise:
    torch.manual_seed(seed)
    harmonics = voice.net.harmonics
    samples = frames * voice.net.samples_per_frame
    source, phase = (torch.randn(1, samples, harmonics), torch.rand(1, harmonics)) if harmonics else (None, None)
    return WindowNoise(torch.randn(1, voice.net.inter_channels, frames), source, phase)


def whole(voice, inputs, noise: WindowNoise, sid: int = 0):
    return voice.infer(**inputs, sid=sid, noise=GivenNoise(noise.latent, noise.source, noise.phase))


def window(voice, inputs, noise: WindowNoise, keep, sid: int = 0, **options):
    return voice.window(inputs["phone"], inputs["pitch"], inputs["pitchf"], sid, keep, noise, **options)


def agrees(values: torch.Tensor, places, expected, std=None) -> None:
    flat = values.flatten()
    np.testing.assert_allclose(flat[places].numpy(), expected, atol=VECTOR, rtol=0)
    if std is not None:
        assert float(flat.double().std(unbiased=False)) == pytest.approx(std, abs=VECTOR)


# --- the reference's numbers -----------------------------------------------------------------------------------------


def test_full_size_voice_with_pitch_gives_the_numbers_of_the_reference():
    voice, (pitch, pitchf) = recipe_voice("v2 f0 40k"), rising_pitch()
    phone, lengths, places = normal(1, (1, 60, 768)), torch.tensor([60]), [0, 1, 5000, 11519]
    mean, log_scale, mask = voice.prior(phone, lengths, pitch)
    agrees(mean, places, [-1.042466, -0.200799, -0.193198, 0.060137], 0.987470)
    agrees(log_scale, places, [-0.101994, -0.772262, -0.700571, -0.311530], 0.942479)
    with torch.inference_mode():
        speaker = voice.network.emb_g(torch.tensor([1]))[:, :, None]
        latent = normal(2, (1, 192, 60))
        reverse = voice.network.flow(latent, mask, speaker, reverse=True)
        agrees(reverse, places, [-0.092049, 0.526248, -0.482249, 0.518937], 1.362189)
        forward = voice.network.flow(latent, mask, speaker)
        agrees(forward, places, [-0.832032, 0.261619, 3.654802, -1.054058], 1.378585)
        torch.testing.assert_close(voice.network.flow(reverse, mask, speaker), latent, atol=1e-4, rtol=0)
    torch.manual_seed(7)
    sound = voice.infer(phone, lengths, pitch, pitchf, 1, noise=TorchNoise()).audio
    places = [0, 100, 8000, 12345, 23999]
    agrees(sound, places, [-0.058212, -0.230308, -0.256743, -0.227497, 0.041075], 0.115180)
    torch.manual_seed(7)
    part = voice.infer(phone, lengths, pitch, pitchf, 1, noise=TorchNoise(), stream=StreamWindow(30, 20, 22)).audio
    assert part.shape == (1, 1, 8800)
    agrees(part, [0, 100, 4000, 8799], [-0.060196, -0.158904, -0.166927, 0.028179], 0.103294)


def test_full_size_voice_without_pitch_gives_the_numbers_of_the_reference():
    voice = recipe_voice("v1 no f0 32k")
    torch.manual_seed(7)
    sound = voice.infer(normal(4, (1, 60, 256)), torch.tensor([60]), None, None, 1, noise=TorchNoise()).audio
    agrees(sound, [0, 100, 8000, 12345, 19199], [0.004423, -0.209905, -0.144402, -0.022880, -0.054928], 0.112127)


def test_mrf_vocoder_gives_the_numbers_of_its_program():
    voice, f0 = recipe_voice("mrf 48k"), torch.full((1, 30), 220.0)
    f0[:, 10:15] = 0
    torch.manual_seed(3)
    phase, noise = torch.rand(1, 9), torch.randn(1, 14_400, 9)
    with torch.inference_mode():
        excitation = voice.network.dec.m_source(Excitation(f0, frame_phase(f0, 0.01)[:, :-1], phase, noise))
        sound = voice.network.dec(0.3 * normal(3, (1, 192, 30)), excitation, 0.1 * normal(4, (1, 256, 1)))
    agrees(sound, [0, 100, 7000, 14_399], [-0.008840, -0.033604, -0.061166, -0.024857], 0.078416)


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_any_window_equals_that_part_of_the_whole(recipe):
    voice, frames = loaded(recipe), 90
    inputs, noise = content_for(recipe, frames), drawn_noise(voice, frames)
    sound = whole(voice, inputs, noise, sid=1).audio[0, 0]
    step = voice.info.samples_per_frame
    for start, stop in ((0, frames), (0, 1), (frames - 1, frames), (44, 46), (30, 71), (3, 88)):
        part = window(voice, inputs, noise, (start, stop), sid=1)
        assert part.dtype == torch.float32
        torch.testing.assert_close(part, sound[start * step : stop * step], atol=WINDOW, rtol=0)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_receptive_field_is_exact(recipe):
    """Gradients flow into every frame of the margin's ends and into none outside."""
    voice = load_synthesizer(make_voice(recipe), dtype=torch.float64)
    margin, frames, step = receptive_field(voice.net), 61, voice.info.samples_per_frame
    latent = torch.randn(1, voice.net.inter_channels, frames, dtype=torch.float64, requires_grad=True)
    source = torch.randn(1, 1, frames * step, dtype=torch.float64, requires_grad=True) if recipe.has_f0 else None
    speaker = torch.randn(1, voice.net.gin_channels, 1, dtype=torch.float64)
    voice.network.dec(latent, source, speaker)[0, 0, 30 * step : 31 * step].abs().sum().backward()
    heard = latent.grad[0].abs().sum(0) > 0
    if source is not None:
        heard |= source.grad.reshape(frames, step).abs().sum(1) > 0
    touched = heard.nonzero().flatten().tolist()
    assert (touched[0], touched[-1]) == (30 - margin.before, 30 + margin.after)


def test_the_decoder_works_in_blocks_without_a_trace(monkeypatch):
    recipe = VoiceRecipe(seed=1)
    voice, inputs = loaded(recipe), content_for(recipe, 80)
    noise = drawn_noise(voice, 80)
    one = window(voice, inputs, noise, (5, 75))
    monkeypatch.setattr(decode_blocks, "DECODER_FRAMES", 9)
    torch.testing.assert_close(window(voice, inputs, noise, (5, 75)), one, atol=WINDOW, rtol=0)


def test_attention_in_blocks_is_attention(monkeypatch):
    recipe = VoiceRecipe(seed=2)
    voice, inputs = loaded(recipe), content_for(recipe, 75)
    lengths = torch.tensor([61])
    full = voice.prior(inputs["phone"], lengths, inputs["pitch"])
    monkeypatch.setattr(layers, "SCORE_NUMBERS", 75 * 2 * 7)  # seven rows at a time
    for ours, theirs in zip(voice.prior(inputs["phone"], lengths, inputs["pitch"]), full, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_attention_is_its_formula():
    """Against a plain double loop over pairs."""
    torch.manual_seed(0)
    attention = layers.RelativeAttention(6, 2).double()
    for table in (attention.emb_rel_k, attention.emb_rel_v):
        torch.nn.init.normal_(table)
    x, mask = torch.randn(1, 6, 25, dtype=torch.float64), torch.ones(1, 1, 25, dtype=torch.float64)
    mask[:, :, 22:] = 0
    out = torch.zeros(6, 25, dtype=torch.float64)
    with torch.no_grad():
        query, key, value = (conv(x)[0] for conv in (attention.conv_q, attention.conv_k, attention.conv_v))
        for head in (slice(0, 3), slice(3, 6)):
            for i in range(25):
                scores = torch.zeros(25, dtype=torch.float64)
                for j in range(25):
                    near = key[head, j] + (attention.emb_rel_k[0, j - i + 10] if abs(j - i) <= 10 else 0)
                    scores[j] = query[head, i] @ near / math.sqrt(3) if mask[0, 0, i] * mask[0, 0, j] else -1e4
                weights = scores.softmax(0)
                for j in range(25):
                    far = abs(j - i) > 10
                    out[head, i] += weights[j] * (value[head, j] + (0 if far else attention.emb_rel_v[0, j - i + 10]))
        torch.testing.assert_close(attention(x, mask)[0], attention.conv_o(out[None])[0], atol=1e-12, rtol=0)


def test_masked_frames_do_not_reach_the_others():
    recipe = VoiceRecipe(seed=4)
    voice, inputs = loaded(recipe), content_for(recipe, 40)
    noise = drawn_noise(voice, 40)
    inputs["lengths"] = torch.tensor([31])
    one = whole(voice, inputs, noise)
    inputs["phone"][:, 31:] = 5.0
    two = whole(voice, inputs, noise)
    assert torch.equal(one.z, two.z) and not one.z[:, :, 31:].any()


# --- the formant shift -----------------------------------------------------------------------------------------------


def test_formant_window_of_everything_is_the_reference_call():
    recipe = VoiceRecipe(seed=3)
    voice, inputs = loaded(recipe), content_for(recipe, 20)
    noise = drawn_noise(voice, 20)
    stretched = window(voice, inputs, noise, (0, 20), formant_frames=27)
    given = GivenNoise(noise.latent, noise.source)
    reference = voice.infer(**inputs, sid=0, noise=given, stream=StreamWindow(0, 20, 27)).audio[0, 0]
    torch.testing.assert_close(stretched, reference, atol=WINDOW, rtol=0)


@pytest.mark.parametrize(("part", "become"), [(2, 3), (4, 3)])
@pytest.mark.parametrize("recipe", [VoiceRecipe(seed=3), VoiceRecipe("v1", 48_000, False)], ids=str)
def test_formant_windows_join(recipe, part, become):
    """Windows of the same stretching are parts of one stretched sound, also at the ends of the recording."""
    voice, inputs = loaded(recipe), content_for(recipe, 96)
    noise, step = drawn_noise(voice, 96), voice.info.samples_per_frame
    everything = window(voice, inputs, noise, (0, 96), formant_frames=96 * become // part)
    for start, stop in ((0, 24), (24, 60), (48, 52), (72, 96)):
        first, last = start * become // part, stop * become // part
        piece = window(voice, inputs, noise, (start, stop), formant_frames=last - first)
        torch.testing.assert_close(piece, everything[first * step : last * step], atol=WINDOW, rtol=0)


# --- the source inside the voice --------------------------------------------------------------------------------------


def test_start_phase_carries_a_recording_through_its_parts():
    """A window of a later part, given the phase where that part begins, equals the window of the whole recording."""
    recipe, cut, frames = VoiceRecipe(seed=6), 40, 90
    voice, inputs = loaded(recipe), content_for(recipe, frames)
    noise, step = drawn_noise(voice, frames), voice.info.samples_per_frame
    carried = float(frame_phase(inputs["pitchf"][:, :cut], 0.01)[0, -1])
    tail = {"f0": inputs["pitchf"][:, cut:], "noise": noise.source[:, cut * step :]}
    source = voice.network.dec.m_source
    phase = torch.zeros(1, 1)
    with torch.inference_mode():
        full = source(Excitation(inputs["pitchf"], frame_phase(inputs["pitchf"], 0.01)[:, :-1], phase, noise.source))
        part = source(Excitation(tail["f0"], frame_phase(tail["f0"], 0.01, carried)[:, :-1], phase, tail["noise"]))
    torch.testing.assert_close(part, full[:, :, cut * step :], atol=1e-6, rtol=0)


def test_mrf_overtones_sound_with_shared_noise_and_given_phases():
    recipe = VoiceRecipe(vocoder=MRF, rate=48_000)
    voice, inputs = loaded(recipe), content_for(recipe, 30)
    full = drawn_noise(voice, 30)
    shared = WindowNoise(full.latent, full.source[:, :, :1])
    sound = window(voice, inputs, shared, (0, 30))
    assert sound.shape == (30 * 480,) and bool(torch.isfinite(sound).all())
    other = WindowNoise(full.latent, full.source[:, :, :1], torch.zeros(1, 9))
    assert not torch.allclose(sound, window(voice, inputs, other, (0, 30)), atol=1e-5)


# --- random numbers --------------------------------------------------------------------------------------------------


def test_same_seed_same_sound_and_injected_noise_is_the_same():
    recipe = VoiceRecipe(seed=9)
    voice, inputs = loaded(recipe), content_for(recipe, 30)
    torch.manual_seed(11)
    latent, _, source = torch.randn(1, 8, 30), torch.rand(1, 1), torch.randn(1, 30 * 400, 1)
    injected = voice.infer(**inputs, sid=0, noise=GivenNoise(latent, source)).audio
    torch.manual_seed(11)
    assert torch.equal(voice.infer(**inputs, sid=0, noise=TorchNoise()).audio, injected)
    generator = torch.Generator().manual_seed(11)
    assert torch.equal(voice.infer(**inputs, sid=0, noise=TorchNoise(generator)).audio, injected)
    assert not torch.equal(voice.infer(**inputs, sid=0, noise=ZeroNoise()).audio, injected)


def test_speakers_differ_and_may_be_given_per_sequence():
    recipe = VoiceRecipe(speakers=3)
    voice, inputs = loaded(recipe), content_for(recipe, 12)
    alone = [voice.infer(**inputs, sid=number, noise=ZeroNoise()).audio for number in range(3)]
    assert not torch.allclose(alone[0], alone[2], atol=1e-4)
    double = {name: torch.cat([value, value]) for name, value in inputs.items()}
    both = voice.infer(**double, sid=torch.tensor([2, 0]), noise=ZeroNoise()).audio
    torch.testing.assert_close(both, torch.cat([alone[2], alone[0]]), atol=WINDOW, rtol=0)


# --- precision -------------------------------------------------------------------------------------------------------


def test_single_precision_is_close_to_double():
    recipe = VoiceRecipe(seed=12)
    inputs = content_for(recipe, 30)
    single, double = (loaded(recipe, dtype=dtype) for dtype in (torch.float32, torch.float64))
    noise = drawn_noise(single, 30)
    torch.testing.assert_close(
        window(single, inputs, noise, (0, 30)), window(double, inputs, noise, (0, 30)), atol=WINDOW, rtol=0
    )


@pytest.mark.skipif(not has_bf16("cpu"), reason="this processor has no bfloat16 products")
def test_bfloat16_keeps_the_source_exact_and_the_sound_close():
    recipe = VoiceRecipe(seed=12)
    inputs = content_for(recipe, 200)
    single, half = (loaded(recipe, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    noise = drawn_noise(single, 200)
    exact, rough = (window(voice, inputs, noise, (0, 200)) for voice in (single, half))
    assert rough.dtype == torch.float32
    assert float((rough - exact).std()) < 0.1 * float(exact.std())


def test_half_precision_is_refused_where_it_cannot_work():
    with pytest.raises(ConfigError, match="fp16 on a CPU"):
        loaded(VoiceRecipe(), dtype=torch.float16)
    with pytest.raises(ConfigError, match="not a float type"):
        loaded(VoiceRecipe(), dtype=torch.int32)


def test_bfloat16_is_refused_by_a_processor_without_it(monkeypatch):
    monkeypatch.setattr(half_products, "has_bf16", lambda device: False)
    with pytest.raises(ConfigError, match="no bfloat16 products"):
        loaded(VoiceRecipe(), dtype=torch.bfloat16)


# --- refused inputs --------------------------------------------------------------------------------------------------


def bad(inputs, **changes):
    return {**inputs, **changes}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda i: {"phone": i["phone"][:, :, :256]}, VoiceFileError, r"takes \[B, T, 768\] \(v2\)"),
        (lambda i: {"phone": i["phone"][0]}, VoiceFileError, "do not fit this voice"),
        (lambda i: {"phone": i["phone"][:, :0]}, VoiceFileError, "do not fit this voice"),
        (lambda i: {"pitch": None}, PitchError, "given: none"),
        (lambda i: {"pitch": i["pitch"][:, :-1]}, PitchError, r"shape \[1, 9\]"),
        (lambda i: {"pitch": i["pitch"] + 200}, PitchError, "no code from 0 to 255"),
        (lambda i: {"pitch": i["pitch"].float()}, PitchError, "no code from 0 to 255"),
        (lambda i: {"pitchf": None}, PitchError, "given: none"),
        (lambda i: {"pitchf": i["pitchf"] * math.nan}, PitchError, "undefined"),
        (lambda i: {"pitchf": i["pitchf"] - 1000}, PitchError, "negative"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_both_calls(change, error, words):
    recipe = VoiceRecipe()
    voice, inputs = loaded(recipe), content_for(recipe, 10)
    noise = drawn_noise(voice, 10)
    inputs = bad(inputs, **change(inputs))
    with pytest.raises(error, match=words):
        voice.infer(**inputs, sid=0, noise=ZeroNoise())
    with pytest.raises(error, match=words):
        window(voice, inputs, noise, (0, 10))


@pytest.mark.parametrize("sid", [2, -1, 2333, torch.tensor([0, 5])])
def test_a_speaker_the_voice_does_not_have_is_refused_with_the_range(sid):
    recipe = VoiceRecipe(speakers=2)
    voice, inputs = loaded(recipe), content_for(recipe, 10)
    with pytest.raises(VoiceFileError, match="Valid speakers are 0 to 1"):
        voice.infer(**inputs, sid=sid, noise=ZeroNoise())


@pytest.mark.parametrize("keep", [(0, 11), (5, 5), (-1, 3), (7, 2)])
def test_windows_outside_the_frames_are_refused(keep):
    recipe = VoiceRecipe()
    voice, inputs = loaded(recipe), content_for(recipe, 10)
    with pytest.raises(ConfigError, match="cannot keep frames"):
        window(voice, inputs, drawn_noise(voice, 10), keep)


def test_noise_of_another_size_and_impossible_parts_are_refused():
    recipe = VoiceRecipe()
    voice, inputs = loaded(recipe), content_for(recipe, 10)
    with pytest.raises(ConfigError, match="noise of other sizes"):
        window(voice, inputs, drawn_noise(voice, 9), (0, 10))
    for stream in (StreamWindow(5, 6), StreamWindow(-1, 3), StreamWindow(0, 0), StreamWindow(0, 5, 0)):
        with pytest.raises(ConfigError, match="cannot be returned"):
            voice.infer(**inputs, sid=0, noise=ZeroNoise(), stream=stream)


def test_a_direction_of_zeros_has_no_weight():
    voice = make_voice(VoiceRecipe())
    voice.weights["dec.ups.0.weight_v"][3] = 0
    with pytest.raises(VoiceFileError, match=r"dec\.ups\.0\.weight_v' has a row of zeros"):
        load_synthesizer(voice)


def test_stretching_is_torch_interpolation():
    x = torch.randn(1, 3, 17, generator=torch.Generator().manual_seed(0))
    ours = stretched_span(17, (0, 17), 23, Margin(5, 5)).stretch(x, 1)
    torch.testing.assert_close(ours, F.interpolate(x, size=23, mode="linear"), atol=5e-6, rtol=0)
