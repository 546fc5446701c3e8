"""HuBERT as content encoders use it (Hsu et al. 2021, arXiv:2106.07447): group norm first, norms behind the blocks.

    samples [B, N] -> 7 convolutions -> [B, F, C] -> norm, projection -> + positional convolution -> blocks -> [B, F, H]

Written out here because the transformers package takes seconds to import, more than a first conversion may cost, and
its layers cannot be given faster products. Names follow the published checkpoints; a test holds this network against
that package. Inference only; refuses to know files, sounds and versions.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.infer.encoder_sizes import EncoderSizes

NORM_EPSILON = 1e-5  # of the norm between convolutions, whatever the config says of the others


class ConvLayer(nn.Module):
    """A convolution without bias and its GELU; the first one with a group norm between, a group per channel."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, normed: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, stride, bias=False)
        self.layer_norm = nn.GroupNorm(c_out, c_out, NORM_EPSILON) if normed else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, T] -> [B, c_out, (T - kernel) // stride + 1]."""
        x = self.conv(x)
        return F.gelu(x if self.layer_norm is None else self.layer_norm(x))


class Extractor(nn.Module):
    """Samples [B, N] to convolution features [B, C, F], everything at once; `conv_features` works in pieces."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        widths = zip((1, *sizes.channels), sizes.channels, sizes.kernels, sizes.strides, strict=False)
        self.conv_layers = nn.ModuleList(ConvLayer(*numbers, normed=i == 0) for i, numbers in enumerate(widths))

    def forward(self, wave: Tensor) -> Tensor:
        x = wave[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x


class FeatureProjection(nn.Module):
    """[B, F, C] -> [B, F, H]."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(sizes.channels[-1], sizes.epsilon)
        self.projection = nn.Linear(sizes.channels[-1], sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x))


class PositionalConv(nn.Module):
    """[B, F, H] -> [B, F, H]: a wide grouped convolution that tells where a frame is."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        kernel = sizes.position_kernel
        self.conv = nn.Conv1d(sizes.hidden, sizes.hidden, kernel, padding=kernel // 2, groups=sizes.position_groups)

    def forward(self, x: Tensor) -> Tensor:
        moved = self.conv(x.transpose(1, 2))[:, :, : x.shape[1]]  # an even kernel gives one frame too many
        return F.gelu(moved).transpose(1, 2)


class Attention(nn.Module):
    """[B, F, H] -> [B, F, H]."""

    NARROW = ("q_proj", "k_proj", "v_proj")  # whose results may stay in the type of the products, see `half_products`

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        for name in (*self.NARROW, "out_proj"):
            setattr(self, name, nn.Linear(sizes.hidden, sizes.hidden))

    def forward(self, x: Tensor) -> Tensor:
        projected = (getattr(self, name)(x) for name in self.NARROW)
        heard = F.scaled_dot_product_attention(*(y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in projected))
        return self.out_proj(heard.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """[B, F, H] -> [B, F, H]."""

    NARROW = ("intermediate_dense",)

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(sizes.hidden, sizes.intermediate)
        self.output_dense = nn.Linear(sizes.intermediate, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class Block(nn.Module):
    """A transformer block: [B, F, H] -> [B, F, H]."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.layer_norm = nn.LayerNorm(sizes.hidden, sizes.epsilon)
        self.feed_forward = FeedForward(sizes)
        self.final_layer_norm = nn.LayerNorm(sizes.hidden, sizes.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.attention(x))
        return self.final_layer_norm(x + self.feed_forward(x))


class Transformer(nn.Module):
    """Position and blocks; `layers` of them are run."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.pos_conv_embed = PositionalConv(sizes)
        self.layer_norm = nn.LayerNorm(sizes.hidden, sizes.epsilon)
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))

    def forward(self, x: Tensor, layers: int) -> Tensor:
        x = self.layer_norm(x + self.pos_conv_embed(x))
        for layer in self.layers[:layers]:
            x = layer(x)
        return x


class Hubert(nn.Module):
    """The whole network under the names of published checkpoints."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.feature_extractor = Extractor(sizes)
        self.feature_projection = FeatureProjection(sizes)
        self.encoder = Transformer(sizes)

    def transformed(self, features: Tensor, layers: int) -> Tensor:
        """Convolution features [B, F, C] -> output of block `layers`, counted from 1; 0 is the input of the first."""
        return self.encoder(self.feature_projection(features), layers)

    def forward(self, wave: Tensor, layers: int) -> Tensor:
        """Samples [B, N] -> [B, F, H]."""
        return self.transformed(self.feature_extractor(wave).transpose(1, 2), layers)
