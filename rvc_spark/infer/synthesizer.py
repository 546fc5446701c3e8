"""A loaded voice: content features, pitch and a speaker in, sound at the voice's rate out.

    phone, pitch -> prior (mean, log-scale) -> + noise -> flow reversed -> z -> decoder (+ harmonic source) -> sound

`infer` does what the reference does, call for call. `window` makes only a stretch of the same sound, from the frames
that stretch depends on. Inputs are checked before any work. Refuses to know files, recordings and pipelines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.errors import ConfigError, PitchError, VoiceFileError
from rvc_spark.infer.checkpoint import VoiceCheckpoint, VoiceInfo
from rvc_spark.infer.decode_blocks import BlockDecoder
from rvc_spark.infer.decoder import Decoder, Margin, receptive_field
from rvc_spark.infer.half_products import check_type, halve_products
from rvc_spark.infer.layers import Flow, PriorEncoder, table
from rvc_spark.infer.source import Excitation, Noise, WindowNoise, frame_phase, spread_phase
from rvc_spark.infer.stretch import stretched_span
from rvc_spark.infer.voice_layout import PITCH_CODES, NetConfig
from rvc_spark.infer.voice_weights import WeightProblem, folded_weights
from rvc_spark.safe_load import all_finite

NOISE_SCALE = 0.66666  # of the latent noise; not 2/3
FLOW_STEP = 64  # frames; oneDNN makes and keeps kernels for each length
HEAD_MARGIN = 24  # frames kept before `skip_head`, the reference's margin for the flow


class VoiceNetwork(nn.Module):
    """The parts of a voice under the names of community files. The posterior encoder belongs to training."""

    def __init__(self, net: NetConfig) -> None:
        super().__init__()
        self.enc_p = PriorEncoder(net)
        self.flow = Flow(net)
        self.dec = Decoder(net)
        self.emb_g = table(net.speakers, net.gin_channels)


@dataclass(frozen=True)
class StreamWindow:
    """The reference's partial call, in frames.

    Attributes:
        skip_head: first frame of the result.
        return_length: frames of the result.
        return_length2: frames they are stretched to (formant shift); None leaves them.
    """

    skip_head: int
    return_length: int
    return_length2: int | None = None


@dataclass(frozen=True)
class InferResult:
    """Sound and what led to it: audio [B, 1, N]; all others [B, C, T], mask [B, 1, T]; z is cut in a partial call."""

    audio: Tensor
    m_p: Tensor
    logs_p: Tensor
    mask: Tensor
    z_p: Tensor
    z: Tensor


class WindowOptions(TypedDict, total=False):
    """The rarer arguments of `Synthesizer.window`.

    start_phase: cycles of the harmonic source at the start of frame 0 (default 0), one or one for each sequence.
    formant_frames: stretch the kept frames to so many before the decoder, so formants move; the f0 given is that of
        the stretched sound. Default None: no stretching.
    first_frames: frames of the first block that leaves; each following one has half as many again, up to what is
        fastest. Default None: the fastest from the start.
    """

    start_phase: float | Sequence[float]
    formant_frames: int | None
    first_frames: int | None


def load_synthesizer(
    checkpoint: VoiceCheckpoint, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Synthesizer:
    """Build the network of a voice, weight norm folded in float32, then moved to `device` and `dtype`.

    On a CPU bfloat16 is for products only, see `row_decoder` and `half_products`.

    Raises:
        VoiceFileError: weights that cannot be folded, or that do not fit into `dtype`.
        ConfigError: `dtype` is not a float type, or half precision is asked of a CPU.
    """
    device = torch.device(device)
    check_type(dtype, device)
    try:
        weights = folded_weights(checkpoint.weights, checkpoint.net)
    except WeightProblem as problem:
        raise VoiceFileError(f"the voice cannot be loaded: {problem}", "Use an earlier save of this voice.") from None
    with torch.device("meta"):  # no memory and no random start values for weights that are given anyway
        network = VoiceNetwork(checkpoint.net)
    wide = torch.float32 if device.type == "cpu" and dtype == torch.bfloat16 else dtype
    network.load_state_dict({name: _narrowed(name, weight, wide) for name, weight in weights.items()}, assign=True)
    network = network.to(device).eval().requires_grad_(False)
    if wide != dtype:
        for part in (network.enc_p, network.flow):
            halve_products(part, dtype)
    return Synthesizer(checkpoint.info, checkpoint.net, network, dtype)


def _narrowed(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = weight.to(dtype).contiguous()
    if dtype == torch.float16 and not all_finite(narrow):
        raise VoiceFileError(f"tensor '{name}' of the voice exceeds half precision", "Use fp32 or bf16 for this voice.")
    return narrow


class Synthesizer:
    """A voice ready to sing.

    Attributes:
        info: what the voice is.
        net: its network's sizes.
        network: the torch module, in eval mode, without gradients.
        decoder: the vocoder in the form that suits the device.
        margin: frames before and after a frame that its sound depends on in the decoder.
    """

    def __init__(self, info: VoiceInfo, net: NetConfig, network: VoiceNetwork, dtype: torch.dtype) -> None:
        self.info = info
        self.net = net
        self.network = network
        self.decoder = BlockDecoder(network.dec, net, dtype)
        self.margin: Margin = receptive_field(net)

    @property
    def device(self) -> torch.device:
        return self.network.emb_g.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.emb_g.weight.dtype

    # --- the whole, as the reference does it -------------------------------------------------------------------------

    @torch.inference_mode()
    def prior(
        self, phone: Tensor, lengths: Tensor, pitch: Tensor | None, head: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-scale of the latent and the mask, from frame `head` on.

        Args:
            phone: content features [B, T, D].
            lengths: int [B], frames in use.
            pitch: coarse pitch int [B, T], None for a voice without pitch.

        Returns:
            m_p [B, C, T - head], logs_p of the same shape, mask [B, 1, T - head].

        Raises:
            VoiceFileError: features of another width. PitchError: pitch missing, out of range or of another length.
        """
        phone, pitch = self._checked(phone, pitch)
        lengths = torch.as_tensor(lengths, device=self.device).reshape(-1, 1)
        mask = (torch.arange(phone.shape[1], device=self.device) < lengths)[:, None].to(self.dtype)
        hidden = self.network.enc_p.hidden(phone, mask, pitch)[:, :, head:]
        mask = mask[:, :, head:]
        mean, log_scale = self.network.enc_p.project(hidden, mask)
        return mean, log_scale, mask

    @torch.inference_mode()
    def infer(
        self,
        phone: Tensor,
        lengths: Tensor,
        pitch: Tensor | None,
        pitchf: Tensor | None,
        sid: Tensor | int,
        *,
        noise: Noise,
        stream: StreamWindow | None = None,
    ) -> InferResult:
        """One call of the reference, in its order of random draws.

        Args:
            phone: content features [B, T, D].
            lengths: int [B], frames in use.
            pitch: coarse pitch int [B, T], 1 to 255; None for a voice without pitch.
            pitchf: f0 in Hz, float32 [B, T], 0 = unvoiced; None for a voice without pitch.
            sid: speaker, int or int [B].
            stream: only a part of the frames.

        Raises:
            VoiceFileError: features of another width, or a speaker the voice does not have.
            PitchError: pitch missing, not finite, out of range or of another length.
        """
        phone, pitch = self._checked(phone, pitch)
        pitchf = self._checked_f0(pitchf, phone)
        speaker = self._speaker(sid, phone.shape[0])
        head = 0
        if stream is not None:
            _check_stream(stream, phone.shape[1])
            head = max(stream.skip_head - HEAD_MARGIN, 0)
        mean, log_scale, mask = self.prior(phone, lengths, pitch, head)
        z_p = (mean + torch.exp(log_scale) * noise.latent(mean) * NOISE_SCALE) * mask
        z = self.network.flow(z_p, mask, speaker, reverse=True)
        sung, shown = z, mask
        if stream is not None:
            part = slice(stream.skip_head - head, stream.skip_head - head + stream.return_length)
            sung, shown = z[:, :, part], mask[:, :, part]
            if pitchf is not None:
                pitchf = pitchf[:, stream.skip_head : stream.skip_head + stream.return_length]
        latent = sung * shown
        excitation = None if pitchf is None else self._drawn_excitation(pitchf, noise)
        if stream is not None and stream.return_length2 not in (None, stream.return_length):
            latent = F.interpolate(latent, size=stream.return_length2, mode="linear")
            if excitation is not None:
                samples = stream.return_length2 * self.net.samples_per_frame
                excitation = F.interpolate(excitation, size=samples, mode="linear")
        audio = self.decoder.whole(latent, excitation, speaker)
        return InferResult(audio, mean, log_scale, mask, z_p, sung)

    def _drawn_excitation(self, pitchf: Tensor, noise: Noise) -> Tensor:
        source = self.network.dec.m_source
        samples = pitchf.shape[1] * source.samples_per_frame
        phase = noise.phase(pitchf.new_zeros(pitchf.shape[0], source.harmonics))
        drawn = noise.source(pitchf.new_zeros(pitchf.shape[0], samples, source.harmonics))
        start = frame_phase(pitchf, source.seconds_per_frame)[:, :-1]
        return source(Excitation(pitchf, start, phase, drawn))

    # --- a stretch of it ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def window(
        self,
        phone: Tensor,
        pitch: Tensor | None,
        pitchf: Tensor | None,
        sid: int,
        keep: tuple[int, int],
        noise: WindowNoise,
        **options: Unpack[WindowOptions],
    ) -> Tensor:
        """The sound of frames keep[0] to keep[1] of one sequence: float32 [n], equal to that part of the whole.

        See `window_blocks`, with B = 1.
        """
        return torch.cat(list(self.window_blocks(phone, pitch, pitchf, sid, keep, noise, **options)), dim=1)[0]

    @torch.inference_mode()
    def window_blocks(
        self,
        phone: Tensor,
        pitch: Tensor | None,
        pitchf: Tensor | None,
        sid: int,
        keep: tuple[int, int],
        noise: WindowNoise,
        **options: Unpack[WindowOptions],
    ) -> Iterator[Tensor]:
        """The sound of frames keep[0] to keep[1] of each of several sequences, block by block as it is decoded.

        The prior sees all frames (attention has no margin), the flow and the decoder what the kept ones depend on.

        Args:
            phone: content features [B, T, D].
            pitch, pitchf: coarse pitch int [B, T] and f0 in Hz float32 [B, T]; None for a voice without pitch.
            sid: speaker.
            keep: first frame and the one after the last.
            noise: latent [B, C, T] and source noise [B, T * samples_per_frame, 1 or H].
            options: see WindowOptions.

        Yields:
            float32, together [B, (keep[1] - keep[0]) * samples_per_frame], or [B, formant_frames * samples_per_frame]
            when stretched: the same moment of sound at a rate higher by formant_frames / (keep[1] - keep[0]).

        Raises:
            VoiceFileError, PitchError: as `infer`. ConfigError: `keep` or noise do not fit the frames.
        """
        phone, pitch = self._checked(phone, pitch)
        pitchf = self._checked_f0(pitchf, phone)
        speaker = self._speaker(sid, phone.shape[0])
        frames = phone.shape[1]
        stretched = options.get("formant_frames")
        count = keep[1] - keep[0] if stretched is None else stretched
        self._check_window(phone.shape[:2], keep, noise, count)
        plan = stretched_span(frames, keep, count, self.margin)
        flowed = _flow_window(plan.first - self.network.flow.MARGIN, plan.last + self.network.flow.MARGIN, frames)
        hidden = self.network.enc_p.hidden(phone, None, pitch)[:, :, flowed]
        mean, log_scale = self.network.enc_p.project(hidden, None)
        drawn = noise.latent[:, :, flowed].to(mean)
        z = self.network.flow(mean + torch.exp(log_scale) * drawn * NOISE_SCALE, None, speaker, reverse=True)
        z = z[:, :, plan.first - flowed.start : plan.last - flowed.start]
        excitation = None
        if pitchf is not None:
            start_phase = options.get("start_phase", 0.0)
            excitation = self._span_excitation(pitchf, noise, start_phase, slice(plan.first, plan.last))
            excitation = plan.stretch(excitation, self.net.samples_per_frame)
        latent, span = plan.stretch(z, 1), (plan.lead, plan.lead + count)
        yield from self.decoder.blocks(latent, excitation, speaker, span, options.get("first_frames"))

    def _span_excitation(
        self, pitchf: Tensor, noise: WindowNoise, start_phase: float | Sequence[float], span: slice
    ) -> Tensor:
        source = self.network.dec.m_source
        step = source.samples_per_frame
        phase = spread_phase(source.harmonics) if noise.phase is None else noise.phase
        drawn = pitchf.new_zeros(1, 1, 1) if noise.source is None else noise.source
        if noise.source is not None:
            drawn = drawn[:, span.start * step : span.stop * step].to(pitchf)
        first = torch.as_tensor(start_phase, dtype=torch.float64).reshape(-1, 1)
        start = frame_phase(pitchf, source.seconds_per_frame, first)[:, :-1]
        phase = phase.to(pitchf).expand(len(pitchf), -1)
        return source(Excitation(pitchf[:, span], start[:, span], phase, drawn))

    # --- what comes in -----------------------------------------------------------------------------------------------

    def _speaker(self, sid: Tensor | int, batch: int) -> Tensor:
        """Rows of the speaker table, [B, gin, 1]."""
        ids = torch.as_tensor(sid).reshape(-1).tolist()
        wrong = [number for number in ids if not 0 <= number < self.net.speakers]
        if wrong:
            raise VoiceFileError(
                f"speaker {wrong[0]} does not exist in this voice", f"Valid speakers are 0 to {self.net.speakers - 1}."
            )
        if len(ids) not in (1, batch):
            raise VoiceFileError(f"{len(ids)} speakers for {batch} sequences", "Give one, or one for each.")
        rows = torch.tensor(ids, dtype=torch.long, device=self.device).expand(batch)
        return self.network.emb_g(rows)[:, :, None]

    def _checked(self, phone: Tensor, pitch: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if phone.dim() != 3 or phone.shape[2] != self.net.content_dim or not phone.shape[1]:
            raise VoiceFileError(
                f"content features of shape {list(phone.shape)} do not fit this voice, which takes [B, T, "
                f"{self.net.content_dim}] ({self.info.version})",
                f"Use a content encoder that gives {self.info.version} features.",
            )
        if not self.net.has_f0:
            return phone.to(self.device, self.dtype), None
        if pitch is None or pitch.shape != phone.shape[:2]:
            found = "none" if pitch is None else f"shape {list(pitch.shape)}"
            raise PitchError(f"coarse pitch {list(phone.shape[:2])} is needed, given: {found}", "Track f0 first.")
        if pitch.is_floating_point() or int(pitch.min()) < 0 or int(pitch.max()) >= PITCH_CODES:
            raise PitchError(
                f"coarse pitch of type {pitch.dtype} from {pitch.min()} to {pitch.max()} is no code from 0 to 255",
                "Use coarse_pitch(f0).",
            )
        return phone.to(self.device, self.dtype), pitch.to(self.device, torch.long)

    def _checked_f0(self, pitchf: Tensor | None, phone: Tensor) -> Tensor | None:
        """f0 as float32 [B, T] on the device, None for a voice without pitch (which ignores what is given)."""
        if not self.net.has_f0:
            return None
        if pitchf is None or pitchf.shape != phone.shape[:2]:
            found = "none" if pitchf is None else f"shape {list(pitchf.shape)}"
            raise PitchError(f"f0 {list(phone.shape[:2])} is needed, given: {found}", "Track f0 first.")
        if not bool(torch.isfinite(pitchf).all()) or float(pitchf.min()) < 0:
            raise PitchError("f0 holds negative, infinite or undefined values", "Use 0 Hz for unvoiced frames.")
        return pitchf.to(self.device, torch.float32)

    def _check_window(self, shape: tuple[int, int], keep: tuple[int, int], noise: WindowNoise, count: int) -> None:
        batch, frames = shape
        if not 0 <= keep[0] < keep[1] <= frames or count < 1:
            raise ConfigError(f"cannot keep frames {keep[0]} to {keep[1]} of {frames}", "Keep at least one of them.")
        samples = frames * self.net.samples_per_frame
        latent_fits = noise.latent.shape == (batch, self.net.inter_channels, frames)
        source_fits = noise.source is None or noise.source.shape in (
            (batch, samples, 1), (batch, samples, self.net.harmonics)
        )  # fmt: skip
        if not latent_fits or not (source_fits or not self.net.has_f0):
            raise ConfigError(
                f"noise of other sizes than [{batch}, {self.net.inter_channels}, {frames}] and [{batch}, {samples}, 1]",
                "Draw the noise for these frames.",
            )


def _flow_window(first: int, last: int, frames: int) -> slice:
    """Frames first..last and as many more as make the length a multiple of FLOW_STEP, of those that there are."""
    count = min(-(-(last - first) // FLOW_STEP) * FLOW_STEP, frames)
    start = min(max(first, 0), frames - count)
    return slice(start, start + count)


def _check_stream(stream: StreamWindow, frames: int) -> None:
    stop = stream.skip_head + stream.return_length
    become = stream.return_length if stream.return_length2 is None else stream.return_length2
    if stream.skip_head < 0 or stream.return_length < 1 or stop > frames or become < 1:
        raise ConfigError(
            f"frames {stream.skip_head} to {stop} of {frames} cannot be returned", "Ask for frames that are there."
        )
