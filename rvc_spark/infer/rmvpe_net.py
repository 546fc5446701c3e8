"""The network of RMVPE (Wei et al. 2023, arXiv:2306.15412): a U-Net over the log mel spectrogram, then a GRU.

    mel [B, T, 128] as image -> encoder levels (halve time and frequency) -> middle -> decoder levels (double, skips)
    -> 3 channels -> [B, T, 384] -> bidirectional GRU -> 360 bins of 20 cents, sigmoid

Module names follow the community's `rmvpe.pt`, and all sizes are read off its tensors, so a small network is made by
the same code. The module refuses to know files, sounds and f0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rvc_spark.infer.packed_conv import PackedConv2d

MELS = 128
BINS = 360  # of 20 cents, 31.7 Hz to 2006 Hz
TIME_MULTIPLE = 32  # frames are padded to this, also by smaller networks


@dataclass(frozen=True)
class RMVPESizes:
    """Sizes of the network; the defaults are those of the published weights (90.4 M parameters)."""

    levels: int = 5  # encoder levels, each halving both axes
    blocks: int = 4  # residual blocks per level
    middle: int = 4  # groups of blocks between encoder and decoder
    channels: int = 16  # of the first level, doubled at each further one
    rnn_layers: int = 1
    rnn_width: int = 256


class SizesError(ValueError):
    """The tensors are not those of an RMVPE network; says which one is wrong."""


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> RMVPESizes:
    """Read the sizes off the tensor shapes of a state dict.

    Raises:
        SizesError: a needed tensor is missing, or a size is beyond every known network.
    """
    levels = _count(shapes, "unet.encoder.layers.{}.conv.0.conv.0.weight")
    blocks = _count(shapes, "unet.encoder.layers.0.conv.{}.conv.0.weight")
    middle = _count(shapes, "unet.intermediate.layers.{}.conv.0.conv.0.weight")
    rnn_layers = _count(shapes, "fc.0.gru.weight_hh_l{}")
    first = shapes.get("unet.encoder.layers.0.conv.0.conv.0.weight", ())
    recurrent = shapes.get("fc.0.gru.weight_hh_l0", ())
    for name, value, most in (
        ("encoder levels", levels, 5),  # 128 bands can be halved so often and TIME_MULTIPLE still fits
        ("blocks per level", blocks, 16),
        ("middle groups", middle, 16),
        ("GRU layers", rnn_layers, 4),
        ("first channels", first[0] if len(first) == 4 else 0, 128),
        ("GRU width", recurrent[1] if len(recurrent) == 2 else 0, 1024),
    ):
        if not 1 <= value <= most:
            raise SizesError(f"it would have {value:,} {name}, must be 1 to {most}")
    return RMVPESizes(levels, blocks, middle, first[0], rnn_layers, recurrent[1])


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count


class ResidualBlock(nn.Module):
    """[B, c_in, T, F] -> [B, c_out, T, F]: two convolutions, plus the input (through 1x1 where channels change).

    The second ReLU comes before the addition, unlike in common residual networks.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
        )
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).add_(x if self.shortcut is None else self.shortcut(x))


class BlockGroup(nn.Module):
    """Residual blocks in a row; the first one changes the channels."""

    def __init__(self, c_in: int, c_out: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.ModuleList([ResidualBlock(c_in if i == 0 else c_out, c_out) for i in range(blocks)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.conv:
            x = block(x)
        return x


class Encoder(nn.Module):
    """[B, 1, T, 128] -> the deepest image, and the image of every level before its pooling."""

    def __init__(self, sizes: RMVPESizes) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(1)
        widths = [1, *(sizes.channels * 2**level for level in range(sizes.levels))]
        self.layers = nn.ModuleList(
            [BlockGroup(widths[level], widths[level + 1], sizes.blocks) for level in range(sizes.levels)]
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        x = self.bn(x)
        for group in self.layers:
            skips.append(group(x))
            x = nn.functional.avg_pool2d(skips[-1], 2)
        return x, skips


class Middle(nn.Module):
    """The deepest level: groups of blocks without pooling."""

    def __init__(self, sizes: RMVPESizes) -> None:
        super().__init__()
        width = sizes.channels * 2**sizes.levels
        self.layers = nn.ModuleList(
            [BlockGroup(width // 2 if i == 0 else width, width, sizes.blocks) for i in range(sizes.middle)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for group in self.layers:
            x = group(x)
        return x


class DecoderLevel(nn.Module):
    """[B, 2c, T, F] and the encoder's [B, c, 2T, 2F] -> [B, c, 2T, 2F]."""

    def __init__(self, c_out: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.ConvTranspose2d(2 * c_out, c_out, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.ModuleList([ResidualBlock(2 * c_out if i == 0 else c_out, c_out) for i in range(blocks)])

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.conv1(x), skip], dim=1)
        for block in self.conv2:
            x = block(x)
        return x


class Decoder(nn.Module):
    """Back up to the size of the input, taking the encoder's images in reverse order."""

    def __init__(self, sizes: RMVPESizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [DecoderLevel(sizes.channels * 2**level, sizes.blocks) for level in reversed(range(sizes.levels))]
        )

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        for level in self.layers:
            x = level(x, skips.pop())  # popped, so that an image is freed as soon as it has been used
        return x


class UNet(nn.Module):
    """[B, 1, T, 128] -> [B, channels, T, 128]."""

    def __init__(self, sizes: RMVPESizes) -> None:
        super().__init__()
        self.encoder = Encoder(sizes)
        self.intermediate = Middle(sizes)
        self.decoder = Decoder(sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skips = self.encoder(x)
        return self.decoder(self.intermediate(x), skips)


class BidirectionalGRU(nn.Module):
    """[B, T, n] -> [B, T, 2 * width]."""

    def __init__(self, features: int, width: int, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, width, layers, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0]


class RMVPENetwork(nn.Module):
    """Log mel float32 [B, T, 128], T a multiple of 32 -> salience in 0..1, float32 [B, T, 360]."""

    def __init__(self, sizes: RMVPESizes) -> None:
        super().__init__()
        self.unet = UNet(sizes)
        self.cnn = nn.Conv2d(sizes.channels, 3, 3, padding=1)
        self.fc = nn.Sequential(
            BidirectionalGRU(3 * MELS, sizes.rnn_width, sizes.rnn_layers),
            nn.Linear(2 * sizes.rnn_width, BINS),
            nn.Dropout(0.25),  # holds the place it has in the published network; idle in inference
            nn.Sigmoid(),
        )

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        image = self.cnn(self.unet(mel[:, None]))  # [B, 3, T, 128]
        return self.fc(image.transpose(1, 2).flatten(2))


def fold_batch_norms(network: RMVPENetwork) -> RMVPENetwork:
    """Put every batch norm into the convolution before it, in place: the same function with a third fewer passes.

    Only for a network in eval mode; afterwards its state dict has other names.
    """
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                convolution, norm = module[index], module[index + 1]
                if isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d):
                    transposed = isinstance(convolution, nn.ConvTranspose2d)
                    module[index] = fuse_conv_bn_eval(convolution, norm, transposed)
                    module[index + 1] = nn.Identity()
    return network


def pack_convolutions(network: RMVPENetwork) -> RMVPENetwork:
    """Lay out the weights of all residual blocks for oneDNN, ReLUs included, in place; batch norms must be folded."""
    for block in [module for module in network.modules() if isinstance(module, ResidualBlock)]:
        convolutions = [module for module in block.conv if isinstance(module, nn.Conv2d)]
        block.conv = nn.Sequential(*(PackedConv2d(module, relu=True) for module in convolutions))
        if block.shortcut is not None:
            block.shortcut = PackedConv2d(block.shortcut, relu=False)
    return network
