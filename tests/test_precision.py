"""Fast beside exact: what it gives up is measured, small, and told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rvc_spark import VC, RVCConfig
from rvc_spark.infer.half_products import HalfProducts, halve_products
from rvc_spark.infer.mel_distance import log_mel_distance
from rvc_spark.rvc_config import has_bf16

HARMLESS = 0.15  # dB of log-mel, where another seed of the same voice is 1.5 dB away


def loaded(precision: str) -> VC:
    vc = VC(RVCConfig(device="cpu", precision=precision))
    vc.load("demo")
    return vc


def test_only_products_are_halved() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(1, 8, 3), nn.GELU(), nn.Conv1d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 12, 5))
    sound = torch.randn(2, 1, 16)
    with torch.no_grad():
        exact = network(sound)
        halve_products(network, torch.bfloat16)
        rough = network(sound)
    assert [isinstance(layer, HalfProducts) for layer in network] == [False, False, True, False, True]
    assert network[0].weight.dtype == torch.float32 and network[4].weight.dtype == torch.bfloat16
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().max()) < 0.02 * float(exact.std())


@pytest.mark.skipif(not has_bf16("cpu"), reason="this processor has no bfloat16 products")
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
