"""The shape of an RVC voice network: what its `config` list says, within bounds, and the tensors that follow from it.

`NetConfig` is all that is needed to build the network; `expected_tensors` is the table of every tensor such a network
has, so a file can be judged before anything is allocated. Facts about names and shapes only: refuses to know files,
layers and arithmetic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WINDOW = 10  # reach of the relative attention in frames; hard-coded in every RVC program
PITCH_CODES = 256
FLOW_COUPLINGS = 4
FLOW_LAYERS = 3
FLOW_KERNEL = 5
CONV_KERNEL = 7  # first and last convolution of the decoder
FRAMES_PER_SECOND = 100

HIFIGAN = "HiFi-GAN"
MRF = "MRF HiFi-GAN"
MRF_HARMONICS = 9  # the fundamental and eight overtones
CONTENT_VERSIONS = {256: "v1", 768: "v2"}

MAX_CHANNELS = 4096
MAX_LAYERS = 64
MAX_STAGES = 8
MAX_RATE = 64
MAX_KERNEL = 255
MAX_SPEAKERS = 100_000
SAMPLE_RATES = (8_000, 192_000)


class LayoutProblem(ValueError):
    """A config value is of the wrong type or outside its bounds. The reader of the file wraps it in its own error."""


@dataclass(frozen=True)
class NetConfig:
    """One voice network. The first eighteen fields are the items of the file's `config`, in order.

    `spec_channels` and `segment_size` matter for training only. `speakers` is the row count of the speaker table, not
    the number the file's config claims (`spk_embed_dim`), which lies in most voices.
    """

    spec_channels: int
    segment_size: int
    inter_channels: int
    hidden_channels: int
    filter_channels: int
    n_heads: int
    n_layers: int
    kernel_size: int
    p_dropout: float
    resblock: str
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    upsample_rates: tuple[int, ...]
    upsample_initial_channel: int
    upsample_kernel_sizes: tuple[int, ...]
    spk_embed_dim: int
    gin_channels: int
    sample_rate: int
    content_dim: int
    speakers: int
    has_f0: bool
    vocoder: str

    @property
    def samples_per_frame(self) -> int:
        """Output samples per 10 ms."""
        return math.prod(self.upsample_rates)

    @property
    def harmonics(self) -> int:
        """Sines in the harmonic source; 0 for a voice without pitch."""
        if not self.has_f0:
            return 0
        return MRF_HARMONICS if self.vocoder == MRF else 1

    def stage_channels(self, stage: int) -> int:
        """Channels after up-sampling stage `stage`; -1 is the input of the first."""
        return self.upsample_initial_channel // 2 ** (stage + 1)

    def stage_stride(self, stage: int) -> int:
        """Output samples per step after stage `stage`: what the stages behind it still multiply by."""
        return math.prod(self.upsample_rates[stage + 1 :])

    def noise_kernel(self, stage: int) -> int:
        """Taps of the convolution that brings the source to the rhythm of a stage."""
        stride = self.stage_stride(stage)
        return 1 if stride == 1 else 2 * stride - stride % 2

    def branch_dilations(self, branch: int) -> tuple[int, ...]:
        """Dilations of a residual branch. HiFi-GAN uses three of kind "1" and two of any other; MRF uses all it has."""
        row = self.resblock_dilation_sizes[branch]
        return row if self.vocoder == MRF else row[: 3 if self.resblock == "1" else 2]

    def items(self) -> list[Any]:
        """The 18-item `config` list of a voice file with these values."""
        return [
            self.spec_channels, self.segment_size, self.inter_channels, self.hidden_channels, self.filter_channels,
            self.n_heads, self.n_layers, self.kernel_size, self.p_dropout, self.resblock,
            list(self.resblock_kernel_sizes), [list(row) for row in self.resblock_dilation_sizes],
            list(self.upsample_rates), self.upsample_initial_channel, list(self.upsample_kernel_sizes),
            self.spk_embed_dim, self.gin_channels, self.sample_rate,
        ]  # fmt: skip


# --- reading the list ------------------------------------------------------------------------------------------------


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int:
        raise LayoutProblem(f"config item {name} is a {type(value).__name__}, not a whole number")
    if not low <= value <= high:
        raise LayoutProblem(f"config item {name} is {value if abs(value) < 10**15 else 'huge'}, not {low} to {high}")
    return value


def _row(name: str, value: Any, length: tuple[int, int], high: int) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise LayoutProblem(f"config item {name} is a {type(value).__name__}, not a list")
    if not length[0] <= len(value) <= length[1]:
        raise LayoutProblem(f"config item {name} has {len(value)} entries, not {length[0]} to {length[1]}")
    return tuple(_whole(name, entry, 1, high) for entry in value)


def sample_rate_of(value: Any) -> int:
    """Hz from an int or a label such as "40k". Raises LayoutProblem."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}k", value):
        value = int(value[:-1]) * 1000
    return _whole("sample_rate", value, *SAMPLE_RATES)


@dataclass(frozen=True)
class Traits:
    """What the tensors of a file say about the network, whatever its labels claim."""

    content_dim: int
    speakers: int
    has_f0: bool
    vocoder: str


def parse_config(config: Any, traits: Traits) -> NetConfig:
    """The network that a file's `config` list and tensors describe.

    18 items, or the 19 of the "rvc-webui" fork, which puts the content width before the sample rate.
    Raises LayoutProblem naming the item.
    """
    if not isinstance(config, list | tuple) or len(config) not in (18, 19):
        found = f"{len(config)} items" if isinstance(config, list | tuple) else f"a {type(config).__name__}"
        raise LayoutProblem(f"its config is {found}, not a list of 18 (or 19) items")
    if len(config) == 19:
        width = _whole("content width", config[17], 1, MAX_CHANNELS)
        if width != traits.content_dim:
            raise LayoutProblem(f"its config says content width {width}, its tensors {traits.content_dim}")
    dropout = config[8]
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise LayoutProblem("config item p_dropout is not a number from 0 to 1")
    kind = config[9]
    if type(kind) not in (str, int) or len(str(kind)) > 8:
        raise LayoutProblem("config item resblock is neither text nor a whole number")
    dilations = config[11]
    if not isinstance(dilations, list | tuple) or len(dilations) > MAX_STAGES:
        raise LayoutProblem("config item resblock_dilation_sizes is not a short list")
    needed = 1 if traits.vocoder == MRF else 3 if str(kind) == "1" else 2
    net = NetConfig(
        spec_channels=_whole("spec_channels", config[0], 1, 1 << 16),
        segment_size=_whole("segment_size", config[1], 1, 1 << 20),
        inter_channels=_whole("inter_channels", config[2], 2, MAX_CHANNELS),
        hidden_channels=_whole("hidden_channels", config[3], 1, MAX_CHANNELS),
        filter_channels=_whole("filter_channels", config[4], 1, 4 * MAX_CHANNELS),
        n_heads=_whole("n_heads", config[5], 1, MAX_LAYERS),
        n_layers=_whole("n_layers", config[6], 1, MAX_LAYERS),
        kernel_size=_whole("kernel_size", config[7], 1, MAX_KERNEL),
        p_dropout=dropout,
        resblock=str(kind),
        resblock_kernel_sizes=_row("resblock_kernel_sizes", config[10], (1, MAX_STAGES), MAX_KERNEL),
        resblock_dilation_sizes=tuple(_row("resblock_dilation_sizes", row, (needed, 8), 64) for row in dilations),
        upsample_rates=_row("upsample_rates", config[12], (1, MAX_STAGES), MAX_RATE),
        upsample_initial_channel=_whole("upsample_initial_channel", config[13], 1, MAX_CHANNELS),
        upsample_kernel_sizes=_row("upsample_kernel_sizes", config[14], (1, MAX_STAGES), MAX_KERNEL),
        spk_embed_dim=_whole("spk_embed_dim", config[15], 0, 1 << 31),
        gin_channels=_whole("gin_channels", config[16], 1, MAX_CHANNELS),
        sample_rate=sample_rate_of(config[-1]),
        content_dim=traits.content_dim,
        speakers=traits.speakers,
        has_f0=traits.has_f0,
        vocoder=traits.vocoder,
    )
    _check_together(net)
    return net


def _check_together(net: NetConfig) -> None:
    """Values that are fine alone and impossible together."""
    if net.inter_channels % 2 or net.hidden_channels % net.n_heads:
        raise LayoutProblem(
            f"config has inter_channels {net.inter_channels} (must be even) and hidden_channels {net.hidden_channels} "
            f"(must divide by n_heads {net.n_heads})"
        )
    if len(net.resblock_kernel_sizes) != len(net.resblock_dilation_sizes):
        raise LayoutProblem("config items resblock_kernel_sizes and resblock_dilation_sizes differ in length")
    if any(kernel % 2 == 0 for kernel in net.resblock_kernel_sizes):
        raise LayoutProblem(f"config item resblock_kernel_sizes {net.resblock_kernel_sizes} holds an even number")
    if len(net.upsample_rates) != len(net.upsample_kernel_sizes):
        raise LayoutProblem("config items upsample_rates and upsample_kernel_sizes differ in length")
    for rate, kernel in zip(net.upsample_rates, net.upsample_kernel_sizes, strict=True):
        # anything else would not give exactly `rate` samples for one
        if kernel < rate or ((kernel - rate) % 2 and kernel != 2 * rate):
            raise LayoutProblem(f"config pairs up-sampling by {rate} with a kernel of {kernel}")
    if net.samples_per_frame * FRAMES_PER_SECOND != net.sample_rate:
        raise LayoutProblem(
            f"config item upsample_rates multiplies to {net.samples_per_frame} samples per 10 ms, "
            f"but its sample rate {net.sample_rate} Hz has {net.sample_rate / FRAMES_PER_SECOND:g}"
        )
    if net.stage_channels(len(net.upsample_rates) - 1) < 1:
        raise LayoutProblem(
            f"config item upsample_initial_channel {net.upsample_initial_channel} cannot be halved "
            f"{len(net.upsample_rates)} times"
        )


# --- the table of tensors --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """One module's `weight`: its name without the suffix, its shape, and whether files store it as gain and direction.

    A weight-normalised tensor w = g * v / |v| has the norm over all axes but the first, also where the first axis is
    the input channel (transposed convolutions).
    """

    module: str
    shape: tuple[int, ...]
    normed: bool

    @property
    def gain_shape(self) -> tuple[int, ...]:
        return (self.shape[0], *(1 for _ in self.shape[1:]))


@dataclass(frozen=True)
class Layout:
    """Every tensor of a network: the weights of modules, and all others by full name."""

    weights: tuple[Weight, ...]
    others: dict[str, tuple[int, ...]]


def _conv(name: str, shape: tuple[int, ...], *, normed: bool = False, bias: int | None = None) -> Iterator[Any]:
    yield Weight(name, shape, normed)
    if bias is not None:
        yield f"{name}.bias", (bias,)


def _prior(net: NetConfig) -> Iterator[Any]:
    hidden, head = net.hidden_channels, net.hidden_channels // net.n_heads
    yield from _conv("enc_p.emb_phone", (hidden, net.content_dim), bias=hidden)
    if net.has_f0:
        yield from _conv("enc_p.emb_pitch", (PITCH_CODES, hidden))
    for layer in range(net.n_layers):
        attention, ffn = f"enc_p.encoder.attn_layers.{layer}", f"enc_p.encoder.ffn_layers.{layer}"
        for part in "qkvo":
            yield from _conv(f"{attention}.conv_{part}", (hidden, hidden, 1), bias=hidden)
        for table in "kv":
            yield f"{attention}.emb_rel_{table}", (1, 2 * WINDOW + 1, head)
        for norm in (1, 2):
            for part in ("gamma", "beta"):
                yield f"enc_p.encoder.norm_layers_{norm}.{layer}.{part}", (hidden,)
        filters, taps = net.filter_channels, net.kernel_size
        yield from _conv(f"{ffn}.conv_1", (filters, hidden, taps), bias=filters)
        yield from _conv(f"{ffn}.conv_2", (hidden, filters, taps), bias=hidden)
    yield from _conv("enc_p.proj", (2 * net.inter_channels, hidden, 1), bias=2 * net.inter_channels)


def _flow(net: NetConfig) -> Iterator[Any]:
    hidden, half = net.hidden_channels, net.inter_channels // 2
    for coupling in range(FLOW_COUPLINGS):
        name = f"flow.flows.{2 * coupling}"  # the odd ones are flips without parameters
        yield from _conv(f"{name}.pre", (hidden, half, 1), bias=hidden)
        wide = 2 * hidden * FLOW_LAYERS
        yield from _conv(f"{name}.enc.cond_layer", (wide, net.gin_channels, 1), normed=True, bias=wide)
        for layer in range(FLOW_LAYERS):
            double, last = 2 * hidden, layer == FLOW_LAYERS - 1
            out = hidden if last else double
            shape = (double, hidden, FLOW_KERNEL)
            yield from _conv(f"{name}.enc.in_layers.{layer}", shape, normed=True, bias=double)
            yield from _conv(f"{name}.enc.res_skip_layers.{layer}", (out, hidden, 1), normed=True, bias=out)
        yield from _conv(f"{name}.post", (half, hidden, 1), bias=half)


def _decoder(net: NetConfig) -> Iterator[Any]:
    mrf, first, stages = net.vocoder == MRF, net.upsample_initial_channel, len(net.upsample_rates)
    if net.has_f0:
        yield from _conv("dec.m_source.l_linear", (1, net.harmonics), bias=1)
    yield from _conv("dec.conv_pre", (first, net.inter_channels, CONV_KERNEL), normed=mrf, bias=first)
    yield from _conv("dec.cond", (first, net.gin_channels, 1), bias=first)
    for stage in range(stages):
        width, before, taps = net.stage_channels(stage), net.stage_channels(stage - 1), net.upsample_kernel_sizes[stage]
        if net.has_f0:
            yield from _conv(f"dec.noise_convs.{stage}", (width, 1, net.noise_kernel(stage)), bias=width)
        name = "upsamples" if mrf else "ups"
        yield from _conv(f"dec.{name}.{stage}", (before, width, taps), normed=True, bias=width)
        for branch, kernel in enumerate(net.resblock_kernel_sizes):
            for module in branch_modules(net, stage, branch):
                yield from _conv(module, (width, width, kernel), normed=True, bias=width)
    last = net.stage_channels(stages - 1)
    yield from _conv("dec.conv_post", (1, last, CONV_KERNEL), normed=mrf, bias=1 if mrf else None)


def branch_modules(net: NetConfig, stage: int, branch: int) -> list[str]:
    """Names of the convolutions of one residual branch, in the order they are applied."""
    steps = range(len(net.branch_dilations(branch)))
    if net.vocoder == MRF:
        return [f"dec.mrfs.{stage}.{branch}.layers.{step}.conv{part}" for step in steps for part in (1, 2)]
    block = f"dec.resblocks.{stage * len(net.resblock_kernel_sizes) + branch}"
    if net.resblock == "1":
        return [f"{block}.convs{part}.{step}" for step in steps for part in (1, 2)]
    return [f"{block}.convs.{step}" for step in steps]


def expected_tensors(net: NetConfig) -> Layout:
    """Every tensor of a voice with this network, the posterior encoder left out."""
    weights: list[Weight] = []
    others: dict[str, tuple[int, ...]] = {}
    parts = [*_prior(net), *_flow(net), *_decoder(net), Weight("emb_g", (net.speakers, net.gin_channels), False)]
    for part in parts:
        if isinstance(part, Weight):
            weights.append(part)
        else:
            others[part[0]] = part[1]
    return Layout(tuple(weights), others)
