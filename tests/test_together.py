"""Many at once: the same results as one by one, on whatever device; and a GPU's look-up finds what the CPU's finds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch
from encoder_files import write_fairseq
from small_engines import small_engines, steady_tracker

from rvc_spark.audio import Audio
from rvc_spark.benchmark_models import TINY_SIZE, make_models
from rvc_spark.conversion import Conversion, ConversionJob, read_source
from rvc_spark.conversion_many import converted_many
from rvc_spark.errors import AudioError, IndexFileError
from rvc_spark.infer.content import load_content_encoder
from rvc_spark.infer.index import read_index
from rvc_spark.infer.index_device import DeviceIndex
from rvc_spark.infer.pipeline import Rendering, drain
from rvc_spark.infer.pitch import load_tracker
from rvc_spark.infer.segments import Cutting
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.infer.together import render_together
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.rvc_modules import VC

SAME = 2e-5  # sums in another order


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"), TINY_SIZE)


def sound(seconds: float, seed: int = 0) -> Audio:
    time = np.arange(round(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(seed).normal(size=len(time))
    return Audio((0.3 * np.sin(2 * np.pi * (150 + 20 * seed) * time) + 0.02 * noise).astype(np.float32), 16_000)


# --- the look-up -----------------------------------------------------------------------------------------------------


def vectors(count: int, dim: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    near = draw.normal(size=(12, dim))[draw.integers(0, 12, count)]
    return (near + 0.2 * draw.normal(size=(count, dim))).astype(np.float32)


def index_of(path: Path, factory: str, stored: np.ndarray, nprobe: int = 1, metric: int = faiss.METRIC_L2):
    made = faiss.index_factory(stored.shape[1], factory, metric)
    made.train(stored)
    made.add(stored)
    if factory.startswith("IVF"):
        made.nprobe = nprobe
    faiss.write_index(made, str(path))
    return read_index(path)


@pytest.mark.parametrize(
    ("factory", "count", "nprobe"),
    [("IVF20,Flat", 3000, 1), ("IVF20,Flat", 3000, 5), ("IVF150,Flat", 400, 2), ("Flat", 5000, 1)],
)
def test_a_device_finds_the_same_neighbours(tmp_path, factory, count, nprobe):
    index = index_of(tmp_path / "i.index", factory, vectors(count, 64, 0), nprobe)
    queries = vectors(70, 64, 1)
    queries[5], queries[6, 3] = np.nan, np.inf
    distances, rows = index._nearest(queries, 8)
    found_distances, found_rows = DeviceIndex(index, "cpu").search(torch.from_numpy(queries), 8)
    np.testing.assert_array_equal(found_rows.numpy(), rows)
    np.testing.assert_allclose(found_distances.numpy(), distances, rtol=1e-9, atol=1e-9)
    assert (rows[5:7] == -1).all() and (factory != "IVF150,Flat" or (rows[:5] == -1).any())
    usable = torch.from_numpy(queries[7:])
    for rate in (0.0, 0.3, 1.0):
        want = index.blended(usable, rate)
        torch.testing.assert_close(DeviceIndex(index, "cpu").blended(usable, rate), want, atol=1e-6, rtol=1e-5)


def test_a_device_takes_blocks_few_vectors_and_exact_hits(tmp_path, monkeypatch):
    stored = vectors(300, 16, 2)
    index = index_of(tmp_path / "i.index", "IVF4,Flat", stored)
    device, whole = DeviceIndex(index, "cpu"), index._nearest(stored, 8)
    monkeypatch.setattr("rvc_spark.infer.index_device.BLOCK_NUMBERS", 5_000)
    found = device.search(torch.from_numpy(stored), 8)
    np.testing.assert_array_equal(found[1].numpy(), whole[1])
    same = torch.from_numpy(stored)
    torch.testing.assert_close(device.blended(same, 1.0), same, atol=1e-5, rtol=0)
    few = DeviceIndex(index_of(tmp_path / "few.index", "Flat", stored[:3]), "cpu")
    distances, rows = few.search(torch.from_numpy(stored[:2]), 8)
    assert rows[0, 0] == 0 and (rows[:, 3:] == -1).all() and torch.isinf(distances[:, 3:]).all()
    assert few.blended(torch.empty(0, 16), 0.5).shape == (0, 16) and few.nbytes >= 3 * 16 * 4
    with pytest.raises(IndexFileError, match="between 0 and 1"):
        few.blended(torch.zeros(1, 16), 1.5)


# --- the networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_content_of_many_is_that_of_each(tmp_path, version):
    path = write_fairseq(tmp_path / "encoder.pt")
    encoder, plain = (load_content_encoder(path, heads=2) for _ in range(2))
    sounds = [sound(3.3, seed).samples for seed in range(3)]
    together = encoder.features_of_many(sounds, version)
    assert together.shape[0] == 3
    for one, row in zip(sounds, together, strict=True):
        torch.testing.assert_close(encoder.features(one, version)[0], row, atol=SAME, rtol=0)
    plain._convolve._rows = None  # as on a GPU
    torch.testing.assert_close(plain.features_of_many(sounds, version), together, atol=SAME, rtol=0)
    with pytest.raises(AudioError, match="of one length"):
        encoder.features_of_many([sounds[0], sounds[1][:-1]], version)


def test_pitch_of_many_is_that_of_each(models):
    tracker = load_tracker("rmvpe", rmvpe_path=RVCConfig(**models.config()).rmvpe_path)
    sounds = [sound(2.0, seed).samples for seed in range(3)]
    for one, contour in zip(sounds, tracker.track_many(sounds), strict=True):
        np.testing.assert_allclose(tracker.track(one), contour, rtol=1e-4)
    unlike = tracker.track_many([sounds[0], sounds[1][:16_000]])
    assert [len(f0) for f0 in unlike] == [200, 100]


def test_blocks_on_a_device_fit_its_memory(monkeypatch):
    decoder = small_engines(rate=40_000).synthesizer.decoder
    weight = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(decoder, "_decoder", SimpleNamespace(conv_pre=SimpleNamespace(weight=weight)))
    memory = {"mem_get_info": (7 << 30, 8 << 30), "memory_reserved": 3 << 30, "memory_allocated": 2 << 30}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    fits = (4 << 30) // (400 * 1024)  # half of what is free
    assert decoder._on_device(1, 100_000) == fits and decoder._on_device(32, 1_000) == fits // 32
    assert decoder._on_device(1, 500) == 1024, "nobody asks how much memory there is"
    assert decoder._on_device(1_000, 500) == 64


# --- whole recordings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [{}, {"has_f0": False}, {"version": "v1", "rate": 32_000}])
@pytest.mark.parametrize("settings", [{}, {"formant": 3.0, "rms_mix_rate": 0.3, "resample_rate": 24_000}])
def test_together_is_one_by_one(layout, settings):
    engines, settings = small_engines(**layout), ConversionSettings(**settings)
    sounds = [sound(1.5, 0), sound(2.0, 1), sound(1.5, 2), sound(7.0, 3), sound(1.5, 4)]
    cutting = Cutting(pad=0.5, query=0.5, center=2.0, limit=3.0)
    calls = []
    encode = engines.encoder.features_of_many
    engines.encoder.features_of_many = lambda given, version: calls.append(len(given)) or encode(given, version)
    renderings = [Rendering(read_source(one), engines, settings, cutting) for one in sounds]
    results = [rendered.store.array() for rendered in render_together(renderings, engines, settings)]
    assert calls[0] == 3, "the three of one length"
    for one, result in zip(sounds, results, strict=True):
        alone = drain(Rendering(read_source(one), engines, settings, cutting).steps()).store.array()
        np.testing.assert_allclose(result, alone, atol=SAME)


def test_batches_are_bounded_and_long_recordings_go_alone(monkeypatch):
    engines, settings = small_engines(), ConversionSettings()
    calls = []
    encode = engines.encoder.features_of_many
    engines.encoder.features_of_many = lambda given, version: calls.append(len(given)) or encode(given, version)
    monkeypatch.setattr("rvc_spark.infer.pitch_track.CHUNK", 400)
    recordings = [read_source(sound(seconds, 1)) for seconds in (1.0, 1.0, 8.0, 1.0)]
    renderings = [Rendering(recording, engines, settings) for recording in recordings]
    results = list(render_together(renderings, engines, settings, most_frames=700))
    assert calls == [2, 1, 1]
    assert [len(rendered.store) for rendered in results] == [len(recording.store) * 5 // 2 for recording in recordings]


@pytest.mark.parametrize("together", [False, True])
def test_a_bad_sound_costs_only_itself(together):
    engines = small_engines()
    job = ConversionJob("small", ConversionSettings(), {}, None)
    sources = [sound(1.0), b"no sound at all", sound(0.5), Audio(np.zeros(10, np.float32), 16_000), sound(1.0, 1)]
    results = list(converted_many(iter(sources), engines, job, together=together))
    assert [type(result) for result in results] == [Conversion, AudioError, Conversion, AudioError, Conversion]
    assert [result.frames for result in results if isinstance(result, Conversion)] == [40_000, 20_000, 40_000]
    assert results[0].elapsed > 0 and results[0].engines["key"].value == "+0"


def test_a_voice_converts_many(models, tmp_path):
    vc = VC(RVCConfig(**models.config(), offline=True))
    vc.load(models.voice, index=models.index)
    sounds = [sound(1.0, seed) for seed in range(3)]
    results = list(vc.convert_many(sounds, f0_method="pm", key=2))
    for one, result in zip(sounds, results, strict=True):
        np.testing.assert_array_equal(result.audio.samples, vc.convert(one, f0_method="pm", key=2).audio.samples)
    assert results[0].save(tmp_path / "a.wav").is_file() and list(vc.convert_many([])) == []


def test_the_pitch_of_a_steady_tracker_is_tracked_one_by_one():
    contours = steady_tracker(200.0).track_many([np.zeros(16_000), np.zeros(16_000)])
    assert [round(float(f0.max())) for f0 in contours] == [200, 200]
