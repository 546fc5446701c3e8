"""The harmonic source: an exact phase however long the recording, seamless pieces, sine and noise of known strength."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rvc_spark.infer.source import Excitation, HarmonicSource, frame_phase, sines, spread_phase


def test_phase_is_exact_after_an_hour():
    f0 = (100 + 300 * torch.rand(1, 360_000, generator=torch.Generator().manual_seed(0))).float()
    start = frame_phase(f0, 0.01)[:, -3:-1]
    wave = sines(f0[:, -2:], start, 48_000, 480, torch.zeros(1, 1))[0, :, 0]
    held, steps = f0[0].double().numpy(), np.arange(1, 481) / 48_000
    before = math.fsum(held[:-2] * 0.01)
    cycles = before + np.concatenate([held[-2] * steps, held[-2] * 0.01 + held[-1] * steps])
    np.testing.assert_allclose(wave.numpy(), 0.1 * np.sin(2 * np.pi * (cycles % 1)), atol=1e-6)


def test_source_made_in_pieces_joins_without_a_seam():
    f0 = torch.tensor([[200.0, 210.0, 0.0, 0.0, 330.0, 333.0, 0.25]])
    start = frame_phase(f0, 0.01, start_phase=0.3)
    together = sines(f0, start[:, :-1], 32_000, 320, torch.zeros(1, 1))
    first = sines(f0[:, :3], start[:, :3], 32_000, 320, torch.zeros(1, 1))
    carried = float(frame_phase(f0[:, :3], 0.01, 0.3)[0, -1])
    rest = sines(f0[:, 3:], frame_phase(f0[:, 3:], 0.01, carried)[:, :-1], 32_000, 320, torch.zeros(1, 1))
    torch.testing.assert_close(torch.cat([first, rest], dim=1), together, atol=1e-7, rtol=0)


def test_unvoiced_frames_hold_noise_of_the_stated_strength_and_voiced_ones_a_sine():
    source = HarmonicSource(40_000, 400, 1)
    source.l_linear.weight.data.fill_(1.0)
    source.l_linear.bias.data.fill_(0.0)
    f0 = torch.tensor([[0.0] * 100 + [200.0] * 100])
    noise = torch.randn(1, 80_000, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sound = torch.atanh(source(Excitation(f0, frame_phase(f0, 0.01)[:, :-1], torch.zeros(1, 1), noise)))[0, 0]
    assert float(sound[:40_000].std()) == pytest.approx(0.1 / 3, rel=0.02)
    spectrum = torch.fft.rfft(sound[40_000:]).abs() / 20_000
    assert int(spectrum.argmax()) == 200 and float(spectrum[200]) == pytest.approx(0.1, rel=0.01)
    spectrum[200] = 0
    assert float(spectrum.max()) < 0.001


def test_one_noise_for_all_harmonics_is_as_strong_as_one_for_each():
    source = HarmonicSource(48_000, 480, 9)
    torch.nn.init.normal_(source.l_linear.weight, generator=torch.Generator().manual_seed(2))
    f0, generator = torch.zeros(1, 200), torch.Generator().manual_seed(3)
    start, phase = torch.zeros(1, 200, dtype=torch.float64), torch.zeros(1, 9)
    with torch.no_grad():
        strength = [
            float(source(Excitation(f0, start, phase, torch.randn(1, 96_000, width, generator=generator))).std())
            for width in (1, 9)
        ]
    assert strength[0] == pytest.approx(strength[1], rel=0.02)


def test_overtones_start_apart():
    phases = spread_phase(9)[0]
    apart = (phases[:, None] - phases + torch.eye(9)).abs()
    assert float(phases[0]) == 0 and float(torch.minimum(apart, 1 - apart + torch.eye(9)).min()) > 0.05
