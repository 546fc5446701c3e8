"""The vocoder over rows and its split convolutions: the same numbers as the plain network, at any place and length."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from voice_maker import make_voice

from rvc_spark.infer import row_decoder
from rvc_spark.infer.random_voice import VoiceRecipe
from rvc_spark.infer.row_conv import RowConv, as_matrix, as_rows, rows_work
from rvc_spark.infer.row_decoder import RowDecoder, tiles
from rvc_spark.infer.synthesizer import load_synthesizer
from rvc_spark.infer.voice_layout import MRF

FLOAT = torch.float32
pytestmark = pytest.mark.skipif(not rows_work(FLOAT), reason="this torch has no oneDNN")
RECIPES = [
    VoiceRecipe(seed=1),
    VoiceRecipe("v1", 48_000, seed=2),
    VoiceRecipe("v2", 48_000, has_f0=False, seed=3),
    VoiceRecipe("v2", 44_100, seed=4),  # odd rates
    VoiceRecipe(vocoder=MRF, rate=48_000, seed=5),
    VoiceRecipe(resblock="2", seed=6),
    VoiceRecipe(changes={11: [[2, 3, 5], [1, 4, 5]]}, seed=7),  # even dilations
]


def ingredients(recipe: VoiceRecipe, frames: int, dtype=torch.float64):
    """A decoder and its inputs."""
    voice = load_synthesizer(make_voice(recipe), dtype=dtype)
    random = torch.Generator().manual_seed(recipe.seed)
    latent = torch.randn(1, voice.net.inter_channels, frames, generator=random)
    source = torch.randn(1, 1, frames * voice.net.samples_per_frame, generator=random) if recipe.has_f0 else None
    speaker = torch.randn(1, voice.net.gin_channels, 1, generator=random)
    return voice, latent, source, speaker


def test_a_convolution_over_rows_adds_and_bends_on_its_way_out() -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(5, 4, 3), torch.randn(5), torch.randn(40, 4)
    conv = RowConv(weight, bias, 2)
    plain = conv(as_rows(x))
    torch.testing.assert_close(as_matrix(plain).T, F.conv1d(x.T, weight, bias, dilation=2), atol=1e-5, rtol=0)
    torch.testing.assert_close(conv(as_rows(x), 0.3), F.leaky_relu(plain, 0.3), atol=1e-6, rtol=0)
    total = torch.ones_like(plain)
    torch.testing.assert_close(conv.plus(as_rows(x), total), plain + 1, atol=1e-6, rtol=0)
    conv.onto(as_rows(x), total)
    torch.testing.assert_close(total, plain + 1, atol=1e-6, rtol=0)
    torch.testing.assert_close(conv.gelu(as_rows(x)), F.gelu(plain), atol=1e-5, rtol=0)  # oneDNN's erf is off by 1e-6


def test_a_convolution_over_rows_may_stride_and_group() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 2, 3), torch.randn(40, 4)
    made = RowConv(weight, None, stride=2, groups=2)(as_rows(x))
    torch.testing.assert_close(as_matrix(made).T, F.conv1d(x.T, weight, stride=2, groups=2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("context", [0, 6, 120])
def test_tiles_cover_everything_have_few_lengths_and_waste_little(context: int) -> None:
    lengths = set()
    for rows in range(1, 9000, 7):
        found = tiles(rows, 2048, context)
        assert [at for at, _, _ in found] == [sum(kept for *_, kept in found[:i]) for i in range(len(found))]
        assert sum(kept for *_, kept in found) == rows
        assert all(0 < kept <= count for _, count, kept in found)
        assert sum(count for _, count, _ in found) <= rows * 9 / 8 + context + 64
        lengths |= {count for _, count, _ in found}
    assert len(lengths) == 11  # kernels are made and kept for each


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("numbers", [2**12, 2**18])  # so small that every stage has several tiles, and as it is
def test_every_stretch_is_that_part_of_the_plain_network(recipe, numbers, monkeypatch) -> None:
    monkeypatch.setattr(row_decoder, "TILE_NUMBERS", numbers)
    monkeypatch.setattr(row_decoder, "TILE_HALVES", 2)
    monkeypatch.setattr(row_decoder, "FIRST_FRAMES", 16)
    frames = 31
    voice, latent, source, speaker = ingredients(recipe, frames)
    wanted = voice.network.dec(latent.double(), None if source is None else source.double(), speaker.double())[0, 0]
    decoder, step = RowDecoder(voice.network.dec.float(), voice.net, FLOAT), voice.net.samples_per_frame
    with torch.inference_mode():
        for start, stop in ((0, frames), (0, 1), (frames - 1, frames), (14, 16), (3, 29)):
            made = decoder(latent, source, speaker, (start, stop))
            assert made.dtype == FLOAT and made.shape == ((stop - start) * step,)
            torch.testing.assert_close(made, wanted[start * step : stop * step].float(), atol=1e-5, rtol=0)


@pytest.mark.skipif(not rows_work(torch.bfloat16), reason="oneDNN has no bfloat16 on this processor")
def test_bfloat16_stays_near() -> None:
    voice, latent, source, speaker = ingredients(VoiceRecipe(seed=8), 40, FLOAT)
    with torch.inference_mode():
        exact = voice.network.dec(latent, source, speaker)[0, 0]
        rough = RowDecoder(voice.network.dec, voice.net, torch.bfloat16)(latent, source, speaker, (0, 40))
    error = float((rough - exact).std() / exact.std())
    assert 1e-4 < error < 0.03  # it is another precision, and 30 dB above its noise
