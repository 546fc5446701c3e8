"""The harmonic source by itself: an exact phase, voiced where f0 is above zero, merged by a known layer."""

from __future__ import annotations

from typing import Any

import torch

from conformance_checks.folder import case_file
from conformance_checks.limits import EXACT, SOURCE
from conformance_checks.record import Recorder
from conformance_checks.run import Run
from rvc_spark.infer.source import Excitation, HarmonicSource, TorchNoise, ZeroNoise, frame_phase, sines, voiced

EVERY = "zero.every_"  # + "97th": what a long case stores instead of the whole
LAST = "zero.last_"  # + "2000"


def check_case(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Sine, voiced flag, merged excitation, and the sine with true noise of one contour."""
    arrays, prefix = run.folder.arrays(case_file(case, ".npz")), case["prefix"]
    f0 = run.f0(arrays, prefix + "in.f0")
    rate, step = case["sr"], case["upp"]
    if "frames" in case:
        record.same("frames", f0.shape[1], case["frames"])
    start = frame_phase(f0, step / rate)[:, :-1]
    silent_phase = torch.zeros(1, 1, device=f0.device)
    sine = sines(f0, start, rate, step, silent_phase)
    for key in arrays.keys(prefix):
        what = key.removeprefix(prefix)
        if what == "zero.sine":
            record.against(arrays, key, sine, SOURCE)
        elif what == "zero.uv":
            record.against(arrays, key, voiced(f0, step), EXACT)
        elif what.startswith(EVERY):
            stride = int("".join(letter for letter in what.removeprefix(EVERY) if letter.isdigit()))
            record.against(arrays, key, sine.flatten()[::stride], SOURCE)
        elif what.startswith(LAST):
            record.against(arrays, key, sine.flatten()[-int(what.removeprefix(LAST)) :], SOURCE)
        elif what == "zero.har":
            merged = merge(f0, start, case, ZeroNoise(), (case["linear_weight"], case["linear_bias"]))
            record.against(arrays, key, merged.transpose(1, 2), SOURCE)
        elif what == "seed.sine":
            torch.manual_seed(case["seed"])
            # through a layer that changes nothing but the tanh, which is undone here
            merged = merge(f0, start, case, TorchNoise(), (1.0, 0.0))
            record.against(arrays, key, torch.atanh(merged.double()).transpose(1, 2), SOURCE)


def merge(
    f0: torch.Tensor,
    start: torch.Tensor,
    case: dict[str, Any],
    noise: TorchNoise | ZeroNoise,
    layer: tuple[float, float],
) -> torch.Tensor:
    """The excitation [1, 1, N] for a contour, with the merging layer's weight and bias given.

    Noise is drawn on the CPU, where the recording drew it, in the reference's order: start phase, then source.
    """
    phase = noise.phase(torch.zeros(1, 1))
    drawn = noise.source(torch.zeros(1, f0.shape[1] * case["upp"], 1))
    source = HarmonicSource(case["sr"], case["upp"], 1).to(f0.device)  # after the draws: a new layer draws its weights
    with torch.no_grad():
        source.l_linear.weight.fill_(layer[0])
        source.l_linear.bias.fill_(layer[1])
        return source(Excitation(f0, start, phase.to(f0.device), drawn.to(f0.device)))
