"""Whole conversions through the reference pipeline, to the int16 sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from conformance_checks.engines import load_encoder, load_voice
from conformance_checks.folder import Arrays, case_file
from conformance_checks.limits import (
    ARITHMETIC,
    EXACT,
    INT16,
    INT16_FCPE,
    INT16_RECIPE,
    NEURAL_COARSE,
    NEURAL_F0,
    REALTIME_F0,
    SALIENCE_F0,
    Limit,
)
from conformance_checks.record import Recorder
from conformance_checks.run import Run
from rvc_spark.audio import read_audio
from rvc_spark.infer.index import read_index
from rvc_spark.infer.noise_field import CallOrderNoise, NoNoise
from rvc_spark.infer.pitch import PitchTracker, load_tracker
from rvc_spark.infer.reference import ReferenceEngines, ReferenceResult, ReferenceSettings, reference_convert
from rvc_spark.infer.segments import FEATURE_HOP, FEATURE_WINDOW, HOP, SAMPLE_RATE

TEN_MS = 100  # per second
SEAM_REACH = 4  # a window reaches 1/4 s to either side of a seam
HALF_SECOND = 2


class StubEncoder:
    """The content encoder of most cases: one tanh layer per frame, then a matrix per recorded layer."""

    def __init__(self, arrays: Arrays) -> None:
        self._input = torch.from_numpy(arrays.given("A"))
        self._layer9 = torch.from_numpy(arrays.given("B9"))
        self._layer12 = torch.from_numpy(arrays.given("B12"))
        self._projection = torch.from_numpy(arrays.given("final_proj_weight"))
        self._projection_bias = torch.from_numpy(arrays.given("final_proj_bias"))

    def features(self, samples: np.ndarray | torch.Tensor, version: str) -> torch.Tensor:
        """float [N] at 16 kHz -> float32 [1, F, D]."""
        sound = torch.as_tensor(samples).float().cpu()
        hidden = torch.tanh(sound.unfold(0, FEATURE_WINDOW, FEATURE_HOP) @ self._input)
        if version == "v2":
            return (hidden @ self._layer12)[None]
        return ((hidden @ self._layer9) @ self._projection.T + self._projection_bias)[None]


def check_case(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Convert with the settings of the case and compare everything that was recorded of it."""
    settings = case["settings"]
    arrays = run.folder.arrays(next(name for name in case["files"] if PurePosixPath(name).stem == case_stem(case)))
    wav = next(name for name in case["files"] if PurePosixPath(name).name == settings["wav"])
    sound = read_audio(run.folder.path(wav), rate=SAMPLE_RATE, mono=True)
    engines = make_engines(case, arrays, run)
    seed = settings["rng_seed"]
    if seed is not None:
        torch.manual_seed(seed)
    result = reference_convert(
        np.asarray(sound.samples).reshape(-1),
        engines,
        reference_settings(settings),
        NoNoise() if seed is None else CallOrderNoise(),
    )
    check_timing(case, arrays, result, record)
    check_pitch(arrays, settings, result, record)
    if "phone_first_segment" in arrays:
        record.against(arrays, "phone_first_segment", result.phone_first_segment, ARITHMETIC)
    check_sound(arrays, result, engines.synthesizer.info.sample_rate, settings, record)


def case_stem(case: dict[str, Any]) -> str:
    """The last word of a case's id is the stem of its array file."""
    return case["id"].rsplit("/", 1)[-1]


def reference_settings(settings: dict[str, Any]) -> ReferenceSettings:
    """The set's names for the options, in ours."""
    return ReferenceSettings(
        key=settings["key"],
        index_rate=settings["rate"],
        protect=settings["protect"],
        rms_mix_rate=settings["rms"],
        resample_rate=settings["resample"],
        speaker=settings["sid"],
        x_pad=settings["x_pad"],
        x_query=settings["x_query"],
        x_center=settings["x_center"],
        x_max=settings["x_max"],
        fill_unvoiced=settings["gap_fill"],
    )


def make_engines(case: dict[str, Any], arrays: Arrays, run: Run) -> ReferenceEngines:
    """Encoder, voice, tracker and index that the case names."""
    settings = case["settings"]
    if settings["encoder"] == "stub":
        stub = next(name for name in case["files"] if name.endswith("stub_encoder.npz"))
        encoder = StubEncoder(run.folder.arrays(stub))
    else:
        encoder = load_encoder(run, run.recipe_file(settings["encoder"]))
    voice = next((name for name in case["files"] if name.endswith(".pth")), None)
    synthesizer = load_voice(run, run.folder.path(voice) if voice else run.recipe_file(settings["voice"]))
    tracker = make_tracker(settings["method"], arrays, run) if synthesizer.info.has_f0 else None
    index = read_index(run.folder.path(case_file(case, ".index"))) if settings["index"] else None
    return ReferenceEngines(encoder, synthesizer, tracker, index)


def make_tracker(method: str, arrays: Arrays, run: Run) -> Any:
    """A contour of the file, a pitch network of the recipes, or a tracker of the library by name."""
    if method == "fixed":
        contour = arrays.given("in.raw_f0")
        return PitchTracker("fixed", "recorded contour", lambda samples: contour)
    if method.startswith("rmvpe"):
        return load_tracker("rmvpe", device=run.device, rmvpe_path=run.recipe_file(method))
    return load_tracker(method, device=run.device)


def check_timing(case: dict[str, Any], arrays: Arrays, result: ReferenceResult, record: Recorder) -> None:
    """Rates, lengths and segments, all exact."""
    record.against(arrays, "sr", result.rate, EXACT)
    record.against(arrays, "n_samples", len(result.audio), EXACT)
    record.same("out_sr of the case", result.rate, case["out_sr"])
    record.same("n_samples of the case", len(result.audio), case["n_samples"])
    record.same("segments of the case", len(result.segments), case["segments"])
    starts, lengths, frames = zip(*result.segments, strict=True)
    record.against(arrays, "seg_start", starts, EXACT)
    record.against(arrays, "seg_input_samples", lengths, EXACT)
    record.against(arrays, "seg_frames", frames, EXACT)


def check_pitch(arrays: Arrays, settings: dict[str, Any], result: ReferenceResult, record: Recorder) -> None:
    """Pitch code and Hz over the padded signal, at the tracker's own length."""
    f0_limit, code_limit = REALTIME_F0, EXACT
    if settings["method"] in ("fcpe", "crepe", "crepe-tiny"):
        f0_limit, code_limit = NEURAL_F0, NEURAL_COARSE
    elif settings["method"].startswith("rmvpe"):
        f0_limit, code_limit = replace(SALIENCE_F0, share=NEURAL_F0.share), NEURAL_COARSE
    for key, actual, limit in (("pitch", result.pitch, code_limit), ("pitchf", result.pitchf, f0_limit)):
        if key not in arrays:
            record.holds(key, actual is None, "there is a pitch contour where the reference has none")
            continue
        wanted = arrays.expected(key)
        if actual is None:
            record.fail(key, "there is no pitch contour where the reference has one")
        else:
            record.compare(key, actual, wanted, limit)


def sound_limit(settings: dict[str, Any]) -> Limit:
    """Steps of int16 allowed: more where another library's network or a full-size one is in the chain."""
    if settings["encoder"] != "stub" or settings["method"].startswith("rmvpe"):
        return INT16_RECIPE
    return INT16_FCPE if settings["method"] in ("fcpe", "crepe", "crepe-tiny") else INT16


def check_sound(
    arrays: Arrays, result: ReferenceResult, voice_rate: int, settings: dict[str, Any], record: Recorder
) -> None:
    """The int16 samples: all of them, or the excerpts and the level curve that a long case stores instead."""
    limit, sound, rate = sound_limit(settings), result.audio.astype(np.float64), result.rate
    if "audio" in arrays:
        record.against(arrays, "audio", sound, limit)
    if "rms_10ms" in arrays:
        hop = rate // TEN_MS
        level = np.sqrt(np.square(sound[: len(sound) // hop * hop].reshape(-1, hop)).mean(axis=1))
        record.against(arrays, "rms_10ms", level, limit)
    if "first_half_second" in arrays:
        record.against(arrays, "first_half_second", sound[: rate // HALF_SECOND], limit)
    if "last_half_second" in arrays:
        record.against(arrays, "last_half_second", sound[-(rate // HALF_SECOND) :], limit)
    if "seam_samples" in arrays:
        pad_frames = 2 * int(settings["x_pad"] * SAMPLE_RATE) // HOP
        kept = [(frames - pad_frames) * voice_rate // TEN_MS for _, _, frames in result.segments]
        seams = np.cumsum(kept)[:-1] * rate // voice_rate
        record.against(arrays, "seam_samples", seams, EXACT)
        reach = rate // SEAM_REACH
        windows = np.stack([sound[seam - reach : seam + reach] for seam in seams])
        record.against(arrays, "seam_windows", windows, limit)
