"""Single functions: pitch code, loudness, high-pass, retrieval with protection, cutting, and the file loader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance_checks.folder import Arrays, case_file
from conformance_checks.limits import (
    ARITHMETIC,
    DECODED_EDGE,
    DECODED_FILE,
    DECODED_LEVEL,
    EXACT,
    EXACT_F0,
    HIGHPASS,
    REALTIME_F0,
    Limit,
)
from conformance_checks.record import Recorder
from conformance_checks.run import Run
from rvc_spark.audio import read_audio
from rvc_spark.infer.features import prepare_features
from rvc_spark.infer.index import read_index
from rvc_spark.infer.loudness_match import match_loudness
from rvc_spark.infer.pitch import coarse_pitch, fill_unvoiced, shift_key
from rvc_spark.infer.segments import (
    FEATURE_HOP,
    FEATURE_WINDOW,
    HIGHPASS_A,
    HIGHPASS_B,
    HOP,
    SAMPLE_RATE,
    Cutting,
    highpass,
    plan_reference,
    quiet_points,
)

COARSE_KEY = re.compile(r"(dense|dense_f32|realtime|all_zero|gaps|gaps_nofill)(?:\.key(-?[\d.]+))?\.(coarse|f0)")
COARSE_INPUT = {
    "dense": "in.f0_dense",
    "dense_f32": "in.f0_dense_f32",
    "realtime": "in.f0_dense",
    "all_zero": "in.f0_all_zero",
    "gaps": "in.f0_gaps",
    "gaps_nofill": "in.f0_gaps",
}
COEFFICIENTS = Limit(1e-12)  # filter coefficients, float64
PHONE_KEY = re.compile(r"phone\.(?:rate(?P<rate>[\d.]+)|(?P<none>noindex))\.(?:protect(?P<protect>[\d.]+)|nopitch)")
NEIGHBOURS = 8
MISSING_DISTANCE = 1e38  # where the probed cell ran out, faiss writes about 3.4e38
RISING_START, RISING_STEP = 60.0, 0.5  # Hz, Hz per frame: the contour that shows which slice of pitch a segment got
SEGMENT_TEST_RATE = 40_000  # Hz, as the name of the recorded array says
STEREO_GAIN = 1 / np.sqrt(2)  # ffmpeg's float down-mix adds the channels with this gain; ours is their mean


def check_case(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Send a case to the function it is about, by the second word of its id."""
    checks = {
        "coarse": check_coarse,
        "rms": check_loudness,
        "highpass": check_highpass,
        "retrieval": check_retrieval,
        "segments": check_segments,
        "load_audio": check_load_audio,
    }
    check = checks.get(case["id"].split("/")[1])
    if check is None:
        record.fail("case", f"there is no check for {case['id']}")
        return
    check(case, run, record)


def float_limit(values: np.ndarray) -> Limit:
    """1e-6 Hz for float64 contours; one rounding more for those handed on as float32."""
    return EXACT_F0 if values.dtype == np.float64 else REALTIME_F0


def check_coarse(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Gap filling, then the key, then the 1..255 code; every contour of the file."""
    arrays = run.folder.arrays(case_file(case, ".npz"))
    for name in arrays.keys():
        match = COARSE_KEY.fullmatch(name)
        if match is None:
            continue
        kind, key, what = match.groups()
        f0 = arrays.given(COARSE_INPUT[kind])
        if kind == "realtime":
            f0 = f0.astype(np.float32)
        if kind != "gaps_nofill":
            f0 = fill_unvoiced(f0)
        f0 = shift_key(f0, float(key or 0))
        if what == "coarse":
            record.against(arrays, name, coarse_pitch(f0), EXACT)
        else:
            record.against(arrays, name, f0, float_limit(arrays.expected(name)))


def check_loudness(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """The source's loudness envelope imposed on a target, at the case's rate of mixing."""
    arrays, prefix = run.folder.arrays(case_file(case, ".npz")), case["prefix"]
    source, target = arrays.given(prefix + "in.source_16k"), arrays.given(prefix + "in.target")
    matched = match_loudness(source, target, case["sr_target"], case["rate"])
    record.against(arrays, prefix + "out", matched, ARITHMETIC)


def check_highpass(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """The filter's coefficients and what it makes of a signal."""
    arrays = run.folder.arrays(case_file(case, ".npz"))
    record.against(arrays, "b", HIGHPASS_B, COEFFICIENTS)
    record.against(arrays, "a", HIGHPASS_A, COEFFICIENTS)
    record.against(arrays, "out", highpass(arrays.given("in.audio")), HIGHPASS)


def check_retrieval(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """The search itself, what the synthesizer receives for every rate and protection, and the two edge cases."""
    arrays = run.folder.arrays(case_file(case, ".npz"))
    path = run.folder.path(case_file(case, ".index"))
    index = read_index(path)
    features = torch.from_numpy(arrays.given("in.feats"))[None]
    pitchf = torch.from_numpy(arrays.given("in.pitchf"))
    for name in arrays.keys("phone."):
        match = PHONE_KEY.fullmatch(name)
        if match is None:
            continue
        used = None if match["none"] else index
        contour = None if match["protect"] is None else pitchf
        rate, protect = float(match["rate"] or 0), float(match["protect"] or 0.5)
        phone = prepare_features(features, used, rate, contour, protect, pitchf.shape[1])
        record.against(arrays, name, phone, ARITHMETIC)
    check_search(arrays, index, record)
    check_exact_hit(arrays, path, record)
    longer = torch.cat([pitchf, pitchf[:, :7]], dim=1)  # a pitch contour that outlasts the features
    cut = prepare_features(features, index, 1.0, longer, 0.33, longer.shape[1]).shape[1]
    record.against(arrays, "truncate.lengths", [cut], EXACT)
    record.against(arrays, "truncate.pitchf", longer[:, :cut], EXACT)
    pitch = arrays.given("in.pitch")
    record.against(arrays, "truncate.pitch", np.concatenate([pitch, pitch[:, :7]], axis=1)[:, :cut], EXACT)


def check_search(arrays: Arrays, index: Any, record: Recorder) -> None:
    """Distances and ids as faiss gives them, missing neighbours included, and the stored vectors themselves."""
    queries = arrays.given("in.feats")
    distances, ids = index.search(queries, k=arrays.expected("search.id").shape[1])
    found = arrays.expected("search.id") >= 0
    record.against(arrays, "search.id", ids, EXACT)
    wanted = arrays.expected("search.distance")
    record.compare("search.distance", np.where(found, distances, 0), np.where(found, wanted, 0), ARITHMETIC)
    missing = np.asarray(distances)[~found]
    record.holds(
        "search.distance, missing", bool((missing > MISSING_DISTANCE).all()), "a missing neighbour has a small distance"
    )
    vectors = arrays.expected("vectors")
    record.same("index size", (index.count, index.dim), vectors.shape)
    stored = index.content.vectors[np.argsort(index.content.ids)]  # the file keeps them cell by cell
    record.compare("vectors", stored, vectors, EXACT)


def check_exact_hit(arrays: Arrays, index_path: Path, record: Recorder) -> None:
    """Where the reference gives NaN (a query equal to a stored vector), a finite blend is wanted."""
    queries = torch.from_numpy(arrays.given("in.feats_exact_hit"))[None]
    nan_rows = arrays.expected("exact_hit.is_nan_row")
    phone = prepare_features(queries, read_index(index_path), 1.0, None, 0.5, len(nan_rows))[0]
    record.same("exact_hit.is_nan_row rows", phone.shape[0], len(nan_rows))
    finite = torch.isfinite(phone).all(dim=1).numpy()
    lost = np.flatnonzero(~finite).tolist()
    record.holds("exact_hit.is_nan_row finite", not lost, f"rows {lost} are not finite")
    original = queries[0].repeat_interleave(2, dim=0)
    distance = (phone - original).square().mean(dim=1).sqrt().numpy()[nan_rows]
    record.compare("exact_hit.is_nan_row is the vector", distance, np.zeros_like(distance), Limit(1e-4))


def check_segments(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Where the reference cuts, which slice of pitch each segment gets, and how much sound comes of it."""
    arrays, prefix = run.folder.arrays(case_file(case, ".npz")), case["prefix"]
    filtered = highpass(arrays.given(prefix + "in.audio"))
    cutting = Cutting(case["x_pad"], case["x_query"], case["x_center"], case["x_max"])
    cuts = quiet_points(lambda start, stop: filtered[start:stop], len(filtered), cutting)
    parts = plan_reference(len(filtered), cuts, case["x_pad"])
    padded_frames = (len(filtered) + 2 * int(case["x_pad"] * SAMPLE_RATE)) // HOP
    contour = coarse_pitch(RISING_START + RISING_STEP * np.arange(padded_frames))
    slices = [contour[part.pitch_start : part.pitch_stop] for part in parts]
    record.against(arrays, prefix + "start", [part.start for part in parts], EXACT)
    record.against(arrays, prefix + "length", [part.length for part in parts], EXACT)
    record.against(arrays, prefix + "pitch_frames", [len(one) for one in slices], EXACT)
    record.against(arrays, prefix + "pitch_first", [one[0] for one in slices], EXACT)
    record.against(arrays, prefix + "pitch_last", [one[-1] for one in slices], EXACT)
    features = [(part.length - FEATURE_WINDOW) // FEATURE_HOP + 1 for part in parts]
    frames = sum(min(part.length // HOP, 2 * count) for part, count in zip(parts, features, strict=True))
    kept = frames - len(parts) * 2 * int(case["x_pad"] * SAMPLE_RATE) // HOP
    record.against(arrays, prefix + "output_samples_at_40k", kept * SEGMENT_TEST_RATE * HOP // SAMPLE_RATE, EXACT)


def check_load_audio(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Every sound file of the case, at 16 kHz. A file that needs no resampling must pass through untouched."""
    arrays = run.folder.arrays(case_file(case, ".npz"))
    for name in case["files"]:
        if name.endswith(".npz"):
            continue
        sound = read_audio(run.folder.path(name))
        channels = np.atleast_2d(sound.samples)
        stereo = len(channels) == 2
        if not stereo and len(channels) != 1:
            record.fail(Path(name).stem, f"has {len(channels)} channels; the reference's down-mix is known for 1 and 2")
            continue
        ours = sound.mono().resampled(SAMPLE_RATE).samples.reshape(-1) * (2 * STEREO_GAIN if stereo else 1.0)
        key = Path(name).stem
        if not stereo and sound.rate == SAMPLE_RATE:
            record.against(arrays, key, ours, EXACT)
            continue
        wanted, inner = arrays.expected(key), slice(DECODED_EDGE, -DECODED_EDGE)
        record.same(f"{key}, samples", len(ours), len(wanted))
        record.compare(f"{key}, inside", ours[inner], wanted[inner], DECODED_FILE)
        record.compare(f"{key}, level", level_db(ours), level_db(wanted), DECODED_LEVEL)


def level_db(samples: np.ndarray) -> np.ndarray:
    """RMS level in dB of full scale."""
    return np.array(20 * np.log10(np.sqrt(np.mean(np.square(samples, dtype=np.float64))) + 1e-12))
