"""Applio's "MRF HiFi-GAN" vocoder, seen as what it is: the HiFi-GAN of every other voice under other names.

It differs in three things. The harmonic source sings nine sines instead of one (`NetConfig.harmonics`), the first and
last convolutions are weight-normalised (gone once folded), and the last one has a bias. Its residual branches compute
the same as HiFi-GAN's kind "1". So there is no second network to keep exact: this module translates the names.
"""

from __future__ import annotations

from rvc_spark.infer.voice_layout import MRF, NetConfig, branch_modules


def hifigan_names(net: NetConfig) -> dict[str, str]:
    """Module name in the file -> module name in the network, for those that differ; empty for a HiFi-GAN voice."""
    if net.vocoder != MRF:
        return {}
    names: dict[str, str] = {}
    branches = len(net.resblock_kernel_sizes)
    for stage in range(len(net.upsample_rates)):
        names[f"dec.upsamples.{stage}"] = f"dec.ups.{stage}"
        for branch in range(branches):
            block = f"dec.resblocks.{stage * branches + branch}"
            for number, module in enumerate(branch_modules(net, stage, branch)):
                names[module] = f"{block}.convs{number % 2 + 1}.{number // 2}"
    return names
