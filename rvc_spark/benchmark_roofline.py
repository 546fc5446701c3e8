"""How near the vocoder comes to what a machine can multiply: its operations per second over those of a matrix product.

The peak is measured, not looked up, in the same process, type and threads. Refuses to know how anything is timed whole.
"""

from __future__ import annotations

import time

import torch

from rvc_spark.infer.decoder import is_light
from rvc_spark.infer.voice_layout import CONV_KERNEL, NetConfig

ROUNDS = 5
SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices: a tenth of a second or less


def decoder_flops(net: NetConfig) -> float:
    """Multiplications and additions of the vocoder's convolutions for one second of sound, as `decoder` has them."""
    rate = net.sample_rate / net.samples_per_frame  # moments a second
    first, last = net.stage_channels(-1), net.stage_channels(len(net.upsample_rates) - 1)
    products = CONV_KERNEL * (net.inter_channels * first * rate + last * net.sample_rate)
    for stage, (factor, kernel) in enumerate(zip(net.upsample_rates, net.upsample_kernel_sizes, strict=True)):
        wide, narrow = net.stage_channels(stage - 1), net.stage_channels(stage)
        products += wide * narrow * kernel * rate
        rate *= factor
        products += narrow * net.noise_kernel(stage) * rate * net.has_f0
        for number, size in enumerate(net.resblock_kernel_sizes):
            products += narrow**2 * size * len(net.branch_dilations(number)) * (1 if is_light(net) else 2) * rate
    return 2.0 * products


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product; the best of a few."""
    side = SIDES["cuda" if device.startswith("cuda") else "cpu"]
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    least = float("inf")
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        matrix @ matrix
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - began)
    return 2.0 * side**3 / least
