"""Fast beside exact: what it gives up is measured, small, and told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rvc_spark import VC, RVCConfig
from rvc_spark.infer.half_products import HalfConv, HalfLinear, halve_products
from rvc_spark.infer.mel_distance import log_mel_distance
from rvc_spark.rvc_config import has_bf16

HARMLESS = 0.15  # dB of log-mel, where another seed of the same voice is 1.5 dB away


def loaded(precision: str) -> VC:
    vc = VC(RVCConfig(device="cpu", precision=precision))
    vc.load("demo")
    return vc


needs_bf16 = pytest.mark.skipif(not has_bf16("cpu"), reason="this processor has no bfloat16 products")


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class Shifted(nn.Module):
    """A network of which one layer's results may stay narrow."""

    NARROW = ("first",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40), nn.Linear(40, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.between = self.first(x)
        return x[..., :5] + self.second(self.between)


@needs_bf16
def test_only_products_are_halved() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(1, 8, 3), nn.GELU(), nn.Conv1d(8, 24, 3), Transposed(), Shifted())
    sound = torch.randn(2, 1, 16)
    with torch.no_grad():
        exact = network(sound)
        halve_products(network, torch.bfloat16)
        rough = network(sound)
    assert type(network[0]) is nn.Conv1d and type(network[2]) is HalfConv
    assert type(network[4].first) is HalfLinear and type(network[4].second) is HalfLinear
    assert network[4].between.dtype == torch.bfloat16 and rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().max()) < 0.02 * float(exact.std())


@needs_bf16
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 600, 1025])
def test_a_halved_layer_takes_any_number_of_rows(rows: int) -> None:
    """They are filled up, so that there are few lengths; nobody sees the rows that fill."""
    torch.manual_seed(rows)
    layer, x = nn.Linear(16, 8), torch.randn(1, rows, 16)
    with torch.no_grad():
        wanted = layer(x)
        half = halve_products(nn.Sequential(layer), torch.bfloat16)
        made = half(x)
    assert made.shape == wanted.shape and made.is_contiguous()
    torch.testing.assert_close(made, wanted, atol=0.03, rtol=0.02)


@needs_bf16
def test_fast_is_the_same_sound_to_the_ear_and_the_same_pitch() -> None:
    exact, fast = loaded("exact"), loaded("fast")
    source = exact.config.demo_dir / "examples" / "source_rms.wav"
    one, other = (vc.convert(source, f0_method="pm", key=5) for vc in (exact, fast))
    assert str(one.engines["precision"]) == "fp32 (exact, as set)"
    assert other.engines["precision"].value == "bf16" and other.engines["precision"].reason.startswith("fast, as set")
    np.testing.assert_array_equal(one.result_f0, other.result_f0)  # pitch is tracked in float32 in any case
    first, second = one.audio.samples, other.audio.samples
    assert first.shape == second.shape and not np.array_equal(first, second)
    assert log_mel_distance(first, second, one.rate) < HARMLESS
    again = exact.convert(source, f0_method="pm", key=5, seed=1).audio.samples
    assert log_mel_distance(first, again, one.rate) > 4 * HARMLESS  # the measure does hear


def test_where_fast_has_nothing_to_offer_it_is_exact_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr("rvc_spark.rvc_config.has_bf16", lambda device: False)
    vc = loaded("fast")
    assert vc.precision.value == "fp32" and "exact" in vc.precision.reason and "bfloat16" in vc.precision.reason
