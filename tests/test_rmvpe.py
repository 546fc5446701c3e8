"""RMVPE: the reference's numbers, windows that join without a trace, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rvc_spark.errors import AudioError, PitchError, PitchModelError
from rvc_spark.infer import rmvpe
from rvc_spark.infer.mel import hz_to_mel, mel_filters, mel_to_hz
from rvc_spark.infer.random_encoders import rmvpe_weights
from rvc_spark.infer.rmvpe import decode_salience, load_rmvpe
from rvc_spark.infer.rmvpe_net import RMVPENetwork, RMVPESizes, sizes_of

GOLDEN = Path(__file__).parent / "golden" / "rvc"
SMALL = RMVPESizes(levels=3, blocks=1, middle=1, channels=2, rnn_width=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The golden set's tiny network, regenerated from its recipe."""
    recipe = json.loads((GOLDEN / "recipes.json").read_text())["rmvpe_tiny"]
    random = np.random.RandomState(recipe["seed"])
    weights = {}
    for name, shape, spread, centre in recipe["tensors"]:
        if spread is None:
            weights[name] = torch.tensor(int(centre))
            continue
        uniform = random.random_sample(int(np.prod(shape)))
        weights[name] = torch.from_numpy((centre + spread * (2 * uniform - 1)).astype("<f2").reshape(shape))
    path = tmp_path_factory.mktemp("rmvpe") / "rmvpe.pt"
    torch.save(weights, path)
    return load_rmvpe(path)


def small_weights() -> dict[str, torch.Tensor]:
    """Random weights of a network of a few kilobytes."""
    return rmvpe_weights(SMALL)


@pytest.fixture
def small(tmp_path):
    torch.save(small_weights(), tmp_path / "rmvpe.pt")
    return load_rmvpe(tmp_path / "rmvpe.pt")


# --- the reference's numbers -----------------------------------------------------------------------------------------


RECORDED = GOLDEN / "rmvpe" / "rmvpe_tiny.npz"


@pytest.mark.parametrize("signal", sorted({key.split("/")[0] for key in np.load(RECORDED)}))
def test_reference_numbers(tiny, signal):
    recorded = np.load(RECORDED)
    samples, wanted = recorded[f"{signal}/in.audio"], recorded[f"{signal}/mel"]
    mel = tiny.mel(samples)
    np.testing.assert_allclose(mel.numpy(), wanted, rtol=0, atol=5e-3)
    np.testing.assert_allclose(np.exp(mel.numpy()), np.exp(wanted), rtol=0, atol=1e-6)
    np.testing.assert_allclose(tiny.salience(mel).numpy(), recorded[f"{signal}/hidden"], rtol=0, atol=2e-4)
    f0 = tiny.f0(samples)
    sure = recorded[f"{signal}/margin"] > 1e-4
    assert f0.dtype == np.float64 and len(f0) == len(samples) // 160 + 1
    np.testing.assert_allclose(f0[sure], recorded[f"{signal}/f0"][sure], rtol=0, atol=0.05)


@pytest.mark.parametrize("threshold", [0.03, 0.05, 0.3])
def test_decoder_against_the_reference(threshold):
    """Edges, ties, and peaks just below, exactly at and just above the threshold."""
    recorded = np.load(GOLDEN / "rmvpe" / "decode.npz")
    f0 = decode_salience(recorded["in.salience"], threshold)
    np.testing.assert_array_equal(f0 > 0, recorded[f"f0_thr_{threshold}"] > 0)
    np.testing.assert_allclose(f0, recorded[f"f0_thr_{threshold}"], rtol=0, atol=5e-3)


def test_front_end_constants():
    recorded = np.load(GOLDEN / "rmvpe" / "decode.npz")
    np.testing.assert_allclose(mel_filters(16000, 1024, 128, 30, 8000), recorded["mel_basis"], rtol=0, atol=1e-8)
    bins = rmvpe.FIRST_CENT + rmvpe.CENTS_PER_BIN * np.arange(360)
    np.testing.assert_allclose(bins, recorded["cents_mapping"], rtol=0, atol=1e-9)


def test_decoder_worked_example():
    """Bumps at chosen bins, the values of the specification."""
    salience = np.full((5, 360), 0.001, np.float32)
    for row, peak in enumerate((0, 2, 150, 358, 359)):
        for k in range(-6, 7):
            if 0 <= peak + k < 360:
                salience[row, peak + k] = 0.9 * np.exp(-(k**2) / 4)
    salience[2] *= 0.02
    wanted = [32.00861, 32.4837, 0, 1974.02855, 1986.16177]
    np.testing.assert_allclose(decode_salience(torch.from_numpy(salience)), wanted, rtol=0, atol=1e-3)


# --- properties ------------------------------------------------------------------------------------------------------


def test_a_pure_bin_is_its_own_pitch():
    salience = np.zeros((360, 360))
    np.fill_diagonal(salience, 1.0)
    wanted = 10 * 2 ** ((1997.3794084376191 + 20 * np.arange(360)) / 1200)
    np.testing.assert_allclose(decode_salience(salience), wanted, rtol=1e-12)


def test_mel_scale_and_filters():
    hz = np.array([30.0, 440.0, 1000.0, 8000.0])
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz)
    assert abs(hz_to_mel(1000.0) - 1000.0) < 0.02  # what the scale was made for
    filters = mel_filters(16000, 1024, 128, 30, 8000)
    assert filters.shape == (128, 513) and filters.min() == 0
    # Slaney's norm: every triangle that is wide enough to be sampled well has the same area of 1 over Hz
    np.testing.assert_allclose(filters[60:].sum(axis=1) * 16000 / 1024, 1.0, atol=0.02)


def test_the_loudest_mel_band_follows_the_tone(small):
    for hertz in (200.0, 900.0, 3000.0):
        tone = np.sin(2 * np.pi * hertz * np.arange(16000) / 16000)
        mel = small.mel(tone)
        centres = mel_to_hz(np.linspace(hz_to_mel(30), hz_to_mel(8000), 130))[1:-1]
        loudest = centres[mel.mean(dim=1).argmax()]
        assert abs(loudest / hertz - 1) < 0.1
        assert mel.argmax(dim=0).float().std() < 1.0  # also in the mirrored frames at the ends


def test_windows_join_without_a_trace(small, monkeypatch):
    """A clip in windows gives the whole clip's pitch, at the joins too."""
    rng = np.random.default_rng(2)
    time = np.arange(16000 * 12) / 16000
    sound = 0.3 * np.sin(2 * np.pi * (200 * time + 20 * np.sin(3 * time))) + 0.05 * rng.standard_normal(len(time))
    whole = small.salience(small.mel(sound))
    f0 = small.f0(sound)
    assert whole.std(dim=0).max() > 0.01  # frames differ, so a shifted window would be seen
    monkeypatch.setattr(rmvpe, "CONTEXT", 128)
    for frames in (416, 512, 1024):
        monkeypatch.setattr(rmvpe, "WHOLE_FRAMES", frames)
        torch.testing.assert_close(small.salience(small.mel(sound)), whole, rtol=0, atol=1e-5)
        np.testing.assert_allclose(small.f0(sound), f0, rtol=1e-4)


def test_a_piece_of_mel_is_a_piece_of_the_whole(small):
    sound = np.random.default_rng(4).standard_normal(16123)
    whole = small.mel(sound)
    for start, stop in ((0, 101), (0, 1), (1, 5), (40, 60), (97, 101), (100, 101)):
        torch.testing.assert_close(small._mel(sound, start, stop), whole[:, start:stop], rtol=0, atol=1e-4)


def test_every_length_has_its_frames(small):
    for count in (1, 2, 3, 159, 160, 161, 511, 512, 513, 514, 1024, 5119, 5120, 5121):
        f0 = small.f0(np.random.default_rng(count).standard_normal(count) * 0.1)
        assert len(f0) == count // 160 + 1 and np.isfinite(f0).all() and (f0 >= 0).all()


def test_the_kind_of_array_does_not_matter(small):
    sound = np.random.default_rng(6).standard_normal(8000).astype(np.float32)
    wanted = small.f0(sound)
    reversed_view = sound[::-1].copy()[::-1]
    sound.setflags(write=False)
    for same in (sound, reversed_view, sound.astype(np.float64), torch.from_numpy(reversed_view.copy())):
        np.testing.assert_array_equal(small.f0(same), wanted)


def test_silence_is_finite(small):
    for sound in (np.zeros(16000), np.full(16000, 0.5), np.random.default_rng(1).standard_normal(16000) * 1e-20):
        assert np.isfinite(small.f0(sound)).all()
    assert small.mel(np.zeros(16000)).max() == pytest.approx(np.log(1e-5))


def test_threshold_decides_voicing(small):
    sound = np.random.default_rng(6).standard_normal(16000)
    peaks = small.salience(small.mel(sound)).amax(dim=1).numpy()
    middle = float(np.median(peaks))
    np.testing.assert_array_equal(small.f0(sound, middle) > 0, peaks > middle)
    assert (small.f0(sound, 1.0) == 0).all()


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(0), "shape"),
        (np.zeros((2, 100)), "shape"),
        (np.full(100, np.nan), "not finite"),
        (np.r_[np.zeros(3 * 2**20), np.inf], "not finite"),
        (np.zeros(100, np.int16), "int16"),
    ],
)
def test_sounds_that_are_refused(small, samples, words):
    with pytest.raises(AudioError, match=words):
        small.f0(samples)


def test_values_that_are_refused(small):
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(PitchError, match="0 to 1"):
            decode_salience(np.zeros((1, 360)), threshold)
    with pytest.raises(PitchError, match="shape"):
        decode_salience(np.zeros((1, 128)))
    with pytest.raises(PitchError, match="shape"):
        small.salience(torch.zeros(64, 10))


# --- the network -----------------------------------------------------------------------------------------------------


def test_the_published_size():
    """90,423,165 parameters in 741 entries, 623 of them without the batch counters."""
    with torch.device("meta"):
        network = RMVPENetwork(RMVPESizes())
    assert sum(parameter.numel() for parameter in network.parameters()) == 90_423_165
    names = network.state_dict()
    assert len(names) == 741 and sum(not name.endswith("num_batches_tracked") for name in names) == 623


def test_sizes_are_read_off_the_tensors():
    for sizes in (RMVPESizes(), SMALL, RMVPESizes(levels=2, blocks=3, middle=2, channels=6, rnn_layers=2, rnn_width=5)):
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in RMVPENetwork(sizes).state_dict().items()}
        assert sizes_of(shapes) == sizes


def test_folding_batch_norms_changes_nothing(small):
    network = RMVPENetwork(SMALL)
    network.load_state_dict(small_weights())
    mel = torch.randn(128, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network.eval()(mel.T[None])[0]
    torch.testing.assert_close(small.salience(mel), wanted, rtol=0, atol=1e-5)


# --- files that are refused ------------------------------------------------------------------------------------------

FIRST = "unet.encoder.layers.0.conv.0.conv.0.weight"
CHANGES = {
    "a missing tensor": (lambda w: w.pop("cnn.bias"), "cnn.bias is missing"),
    "a missing level": (lambda w: w.pop("unet.encoder.layers.1.conv.0.conv.0.weight"), "missing|shape|unknown"),
    "an unknown tensor": (lambda w: w.update(extra=torch.zeros(1)), "unknown tensor 'extra'"),
    "a wrong shape": (lambda w: w.update({"cnn.weight": torch.zeros(3, 2, 5, 5)}), "cnn.weight has shape"),
    "infinity": (lambda w: w["cnn.weight"].fill_(torch.inf), "not finite"),
    "not a number": (lambda w: w["fc.1.bias"].fill_(torch.nan), "not finite"),
    "whole numbers": (lambda w: w.update({"cnn.bias": torch.zeros(3, dtype=torch.int64)}), "whole numbers"),
    "negative variance": (lambda w: w["unet.encoder.bn.running_var"].fill_(-1.0), "negative variances"),
    "no GRU": (lambda w: [w.pop(name) for name in list(w) if "gru" in name], "GRU layers"),
    "first tensor of one dimension": (lambda w: w.update({FIRST: torch.zeros(4)}), "first channels"),
    "a thousand levels": (
        lambda w: w.update({f"unet.encoder.layers.{i}.conv.0.conv.0.weight": torch.zeros(1) for i in range(1000)}),
        "1,000 encoder levels",
    ),
    "a wide first level": (lambda w: w.update({FIRST: torch.zeros(4000, 1, 3, 3)}), "4,000 first channels"),
    "a list inside": (lambda w: w.update(names=[1, 2]), "something else than named tensors"),
    "so-vits-svc, flat": (lambda w: w.update({"unet.tf.layers.0.weight": torch.zeros(1)}), "so-vits-svc"),
}


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES.keys())
def test_weights_that_are_refused(case, tmp_path):
    change, words = case
    weights = small_weights()
    change(weights)
    torch.save(weights, tmp_path / "rmvpe.pt")
    with pytest.raises(PitchModelError, match=words) as caught:
        load_rmvpe(tmp_path / "rmvpe.pt")
    assert len(str(caught.value)) < 400


def test_files_of_other_programs(tmp_path):
    for document, words in (
        ({"model": small_weights(), "global_step": 5}, "so-vits-svc"),
        ({"weight": {}, "config": [1]}, "is a voice"),
        ({"state_dict": {}}, "no tensors of an RMVPE"),
        ({}, "no tensors of an RMVPE"),
        ([torch.zeros(1)], "no dictionary"),
        (torch.zeros(3), "no dictionary"),
    ):
        torch.save(document, tmp_path / "rmvpe.pt")
        with pytest.raises(PitchModelError, match=words):
            load_rmvpe(tmp_path / "rmvpe.pt")


def test_files_that_are_no_weights(tmp_path):
    torch.save(small_weights(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for data in (b"", b"<html>no</html>", b"version https://git-lfs.github.com/spec/v1\n", whole[:-100], whole[:5000]):
        (tmp_path / "rmvpe.pt").write_bytes(data)
        with pytest.raises(PitchModelError):
            load_rmvpe(tmp_path / "rmvpe.pt")
    for path in (tmp_path, tmp_path / "none.pt", GOLDEN / "voices" / "variants" / "hostile.pth"):
        with pytest.raises(PitchModelError):
            load_rmvpe(path)
