"""The synthesizer: every stage of every voice, with silenced and with seeded randomness, whole and in pieces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from conformance_checks.engines import load_voice
from conformance_checks.folder import Arrays, case_file
from conformance_checks.limits import AUDIO, EXACT, LATENT
from conformance_checks.record import Recorder, as_array
from conformance_checks.run import Run
from rvc_spark.infer.source import GivenNoise, Noise, TorchNoise, WindowNoise, ZeroNoise
from rvc_spark.infer.synthesizer import InferResult, StreamWindow, Synthesizer

LIMITS = {"m_p": LATENT, "logs_p": LATENT, "z_p": LATENT, "z": LATENT, "x_mask": EXACT, "audio": AUDIO}
NAMES = {"x_mask": "mask"}  # recorded name -> field of InferResult, where they differ
VARIANT_OF = re.compile(r"zero\.\* of (\S+)\.npz")


@dataclass(frozen=True)
class Inputs:
    """What the synthesizer is given. float [B, T, D], int64 [B], int64 / float [B, T] or None, int64 [B]."""

    phone: torch.Tensor
    lengths: torch.Tensor
    pitch: torch.Tensor | None
    pitchf: torch.Tensor | None
    sid: torch.Tensor

    @classmethod
    def read(cls, arrays: Arrays, run: Run) -> Inputs:
        """The `in.*` arrays; a voice without pitch has no in.pitch."""
        pitch = run.tensor(arrays, "in.pitch") if "in.pitch" in arrays else None
        pitchf = run.f0(arrays, "in.pitchf") if "in.pitchf" in arrays else None
        phone, lengths, sid = (run.tensor(arrays, key) for key in ("in.phone", "in.lengths", "in.sid"))
        return cls(phone, lengths, pitch, pitchf, sid)

    def of_length(self, length: int) -> Inputs:
        """The same frames, of which only the first `length` count."""
        return Inputs(self.phone, torch.full_like(self.lengths, length), self.pitch, self.pitchf, self.sid)

    def first(self, frames: int) -> Inputs:
        """Only the first frames."""
        pitch, pitchf = (None if one is None else one[:, :frames] for one in (self.pitch, self.pitchf))
        return Inputs(self.phone[:, :frames], torch.full_like(self.lengths, frames), pitch, pitchf, self.sid)

    def with_reversed(self, lengths: torch.Tensor) -> Inputs:
        """A batch of two: these inputs for speaker 0, and the same backwards for the speaker they name."""
        phone, pitch, pitchf = (
            None if one is None else torch.cat([one, one.flip(1)]) for one in (self.phone, self.pitch, self.pitchf)
        )
        sid = torch.cat([torch.zeros_like(self.sid), self.sid])
        return Inputs(phone, lengths.to(self.lengths), pitch, pitchf, sid)


def infer(
    voice: Synthesizer, inputs: Inputs, noise: Noise | None = None, stream: StreamWindow | None = None
) -> InferResult:
    """One call of the synthesizer; without noise every random source is zero."""
    return voice.infer(
        inputs.phone,
        inputs.lengths,
        inputs.pitch,
        inputs.pitchf,
        inputs.sid,
        noise=noise or ZeroNoise(),
        stream=stream,
    )


def check_result(arrays: Arrays, stage: str, result: InferResult, record: Recorder, note: str = "") -> None:
    """Every recorded quantity of one stage ("zero", "masked", ...)."""
    for what, limit in LIMITS.items():
        key = f"{stage}.{what}"
        if key in arrays:
            record.against(arrays, key, getattr(result, NAMES.get(what, what)), limit, key + note)


def check_case(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """A stored voice, a recipe voice, or a variant of a stored one."""
    if case["kind"] == "voice_variant":
        check_variant(case, run, record)
        return
    arrays = run.folder.arrays(case_file(case, ".npz"))
    path = run.folder.path(case_file(case, ".pth")) if case["kind"] == "voice" else run.recipe_file(case["recipe"])
    voice = load_voice(run, path)
    check_info(case, voice, run, record)
    inputs = Inputs.read(arrays, run)
    check_result(arrays, "zero", infer(voice, inputs), record)
    check_lengths(arrays, voice, inputs, record)
    check_streams(case, arrays, voice, inputs, record)
    check_seed(arrays, voice, inputs, run, record)
    check_window(arrays, voice, inputs, record)


def check_info(case: dict[str, Any], voice: Synthesizer, run: Run, record: Recorder) -> None:
    """What the library says about the voice."""
    recipe = run.recipe(case["recipe"]) if "recipe" in case else case
    info = voice.info
    record.same("version", info.version, recipe["version"])
    record.same("f0", bool(info.has_f0), bool(recipe["f0"]))
    record.same("sample rate", info.sample_rate, case["sr"])
    record.same("samples per frame", info.samples_per_frame, case["upsample"])
    if "n_spk_in_weights" in case:
        record.same("speakers", info.speakers, case["n_spk_in_weights"])


def check_lengths(arrays: Arrays, voice: Synthesizer, inputs: Inputs, record: Recorder) -> None:
    """Fewer frames than given (`masked`), fewer than the attention window (`short`), and two of a batch."""
    if "masked.x_mask" in arrays:
        length = int(arrays.given("masked.x_mask").sum())
        check_result(arrays, "masked", infer(voice, inputs.of_length(length)), record)
    if "short.m_p" in arrays:
        frames = arrays.given("short.m_p").shape[-1]
        check_result(arrays, "short", infer(voice, inputs.first(frames)), record)
    if "batch.x_mask" in arrays:
        lengths = torch.from_numpy(arrays.given("batch.x_mask")).sum(dim=(1, 2)).round().long()
        check_result(arrays, "batch", infer(voice, inputs.with_reversed(lengths)), record)


def check_streams(
    case: dict[str, Any], arrays: Arrays, voice: Synthesizer, inputs: Inputs, record: Recorder
) -> None:
    """The streaming call, plain and with the stretch of a formant shift."""
    for stage in ("stream", "formant"):
        if stage not in case:
            continue
        cut = case[stage]
        window = StreamWindow(cut["skip_head"], cut["return_length"], cut["return_length2"])
        check_result(arrays, stage, infer(voice, inputs, stream=window), record)


def check_seed(arrays: Arrays, voice: Synthesizer, inputs: Inputs, run: Run, record: Recorder) -> None:
    """True noise: injected as recorded, and drawn from torch's generator in the recorded order."""
    if "seed.seed" not in arrays:
        return
    latent = run.tensor(arrays, "seed.noise_z")
    source = run.f0(arrays, "seed.noise_src") if "seed.noise_src" in arrays else None
    check_result(arrays, "seed", infer(voice, inputs, GivenNoise(latent, source)), record, " injected")
    seed, noise = int(arrays.given("seed.seed")), TorchNoise()
    torch.manual_seed(seed)  # on the CPU, where the recording drew
    drawn = noise.latent(torch.zeros(latent.shape))
    record.against(arrays, "seed.noise_z", drawn, EXACT)
    if source is not None:
        noise.phase(torch.zeros(1, 1))
        record.against(arrays, "seed.noise_src", noise.source(torch.zeros(source.shape)), EXACT)
    if run.replays_torch_draws:
        torch.manual_seed(seed)
        check_result(arrays, "seed", infer(voice, inputs, noise), record, " drawn")


def check_window(arrays: Arrays, voice: Synthesizer, inputs: Inputs, record: Recorder) -> None:
    """The call that decodes only what is kept must give that part of the whole."""
    frames, step = inputs.phone.shape[1], voice.info.samples_per_frame
    silent = WindowNoise(
        torch.zeros_like(infer(voice, inputs).m_p),
        None if inputs.pitchf is None else torch.zeros(1, frames * step, 1, device=inputs.phone.device),
    )
    whole = arrays.expected("zero.audio")[0, 0]
    for keep in ((0, frames), (frames // 3, frames // 3 + 1), (frames // 4, frames - frames // 5)):
        part = voice.window(inputs.phone, inputs.pitch, inputs.pitchf, int(inputs.sid[0]), keep, silent)
        record.compare(f"zero.audio window {keep}", part, whole[keep[0] * step : keep[1] * step], AUDIO)


def check_variant(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """A file of another form with the same weights: the same numbers, to the bit, as the file it was made from."""
    match = VARIANT_OF.search(case["expect"])
    if match is None:
        record.fail("case", f"its expectation is not understood: {case['expect']}")
        return
    arrays = run.folder.arrays(match[1] + ".npz")
    inputs = Inputs.read(arrays, run)
    result = infer(load_voice(run, run.folder.path(case_file(case, ".pth"))), inputs)
    check_result(arrays, "zero", result, record)
    original = infer(load_voice(run, run.folder.path(match[1] + ".pth")), inputs)
    for what in LIMITS:
        name = NAMES.get(what, what)
        record.compare(f"{what}, bit for bit", getattr(result, name), as_array(getattr(original, name)), EXACT)
