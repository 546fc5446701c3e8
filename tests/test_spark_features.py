"""Features of reference recordings: against the transformers package, against one another, and hostile files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rvc_spark.errors import AudioError, ModelFileError
from rvc_spark.tts import wav2vec2
from rvc_spark.tts.spark_features import LAYERS, FeatureExtractor, load_features
from tests.spark_maker import TINY, write_features


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("features")
    write_features(path, TINY, seed=1)
    return path


@pytest.fixture(scope="module")
def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


@pytest.fixture(scope="module")
def extractor(folder) -> FeatureExtractor:
    return load_features(folder)


def wave(samples: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples) + 0.02


def copied(folder: Path, target: Path, weights: dict[str, torch.Tensor], **changes: object) -> Path:
    """The folder with other weights, as safetensors, and other values in config.json."""
    target.mkdir(exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, target / "model.safetensors")
    return target


def test_the_network_computes_what_the_package_computes(folder, weights, extractor):
    """transformers' own network with these weights: inputs of its blocks, so that no final norm is among them."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Wav2Vec2Model(Wav2Vec2Config(**told)).eval()
    spelling = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = {}
    for name, tensor in weights.items():
        if name.startswith("wav2vec2."):
            head, _, last = name.removeprefix("wav2vec2.").rpartition(".")
            state[f"{head}.{spelling.get(last, last)}" if head else last] = tensor
    model.load_state_dict(state, strict=True)
    sound = wave(7_321)
    normal = torch.from_numpy(((sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)).astype(np.float32))
    seen: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(model.encoder.layers):
        layer.register_forward_pre_hook(lambda _, given, number=number: seen.update({number: given[0].detach()}))
    with torch.inference_mode():
        model(normal[None])
    want = sum(seen[layer][0] for layer in LAYERS) / 3
    assert (extractor([sound])[0] - want).abs().max() < 1e-4 * want.abs().max()


def test_a_recording_gives_the_same_in_any_company(extractor):
    waves = [wave(length, seed) for seed, length in enumerate((400, 4_000, 719, 720, 9_600))]
    together = extractor(waves)
    for sound, features in zip(waves, together, strict=True):
        assert features.shape == ((len(sound) - 400) // 320 + 1, TINY.features)
        assert features.dtype == torch.float32
        assert torch.equal(features, extractor([sound])[0])
    assert extractor([]) == []


def test_loudness_and_offset_do_not_matter(extractor):
    sound = wave(5_000)
    plain, moved = extractor([sound, (sound * 7 + 0.3).astype(np.float64)])
    assert (plain - moved).abs().max() < 1e-4 * plain.abs().max()


def test_long_sounds_are_done_in_pieces_with_the_same_result(extractor, monkeypatch):
    sound = wave(40_000)
    whole = extractor([sound])[0]
    monkeypatch.setattr(wav2vec2, "CHUNK_FRAMES", 17)
    assert (extractor([sound])[0] - whole).abs().max() < 1e-5 * whole.abs().max()


def test_every_spelling_of_the_file_is_the_same_network(folder, weights, extractor, tmp_path):
    sound = wave(3_000)
    want = extractor([sound])[0]
    plain = {name.removeprefix("wav2vec2."): tensor for name, tensor in weights.items()}
    position = "encoder.pos_conv_embed.conv."
    new = dict(plain)
    for number, old in enumerate(("weight_g", "weight_v")):
        new[f"{position}parametrizations.weight.original{number}"] = new.pop(position + old)
    for number, tensors in enumerate((weights, plain, new)):
        assert torch.equal(load_features(copied(folder, tmp_path / str(number), tensors))([sound])[0], want)


def test_blocks_above_the_last_used_are_not_kept(extractor):
    assert len(extractor.network.encoder.layers) == 16


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("wav2vec2.encoder.layers.0.layer_norm.bias", None, "encoder.layers.0.layer_norm.bias is missing"),
        ("wav2vec2.encoder.layers.17.layer_norm.bias", torch.ones(5), "layers.17.layer_norm.bias has shape"),
        ("wav2vec2.encoder.layers.18.layer_norm.bias", torch.ones(24), "unknown tensor"),
        ("surprise", torch.ones(1), "unknown tensor 'surprise'"),
        ("quantizer.surprise", torch.ones(1), "unknown tensor"),
        ("wav2vec2.feature_projection.projection.bias", torch.full((24,), float("inf")), "not finite"),
        ("wav2vec2.feature_projection.projection.bias", torch.ones(24, dtype=torch.int64), "needs a float type"),
        ("wav2vec2.encoder.pos_conv_embed.conv.weight_g", torch.ones(24, 1, 1), "weight_g has shape"),
    ],
)
def test_a_spoilt_weight_file_is_refused_by_the_name_of_its_tensor(folder, weights, tmp_path, name, tensor, told):
    tensors = {key: value for key, value in weights.items() if key != name}
    if tensor is not None:
        tensors[name] = tensor
    with pytest.raises(ModelFileError) as caught:
        load_features(copied(folder, tmp_path, tensors))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 10**9),
        ("hidden_size", 25),
        ("num_hidden_layers", 15),
        ("num_hidden_layers", "many"),
        ("num_attention_heads", 7),
        ("intermediate_size", 10**400),
        ("conv_dim", [16] * 6),
        ("conv_dim", [10**6] * 7),
        ("conv_stride", [5, 2, 2, 2, 2, 2, 4]),
        ("conv_kernel", []),
        ("num_conv_pos_embedding_groups", 5),
        ("layer_norm_eps", 0),
        ("feat_extract_norm", "group"),
        ("do_stable_layer_norm", False),
        ("conv_bias", None),
        ("model_type", "hubert"),
        ("hidden_act", ["gelu"]),
    ],
)
def test_a_size_out_of_bounds_is_refused_before_any_weight_is_read(folder, tmp_path, name, value):
    place = copied(folder, tmp_path, {"nothing": torch.ones(1)}, **{name: value})
    with pytest.raises(ModelFileError) as caught:
        load_features(place)
    assert "tensor" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, "{" + " " * 2_000_000 + "}", '{"hidden_size": ' + "9" * 9_000]
)
def test_a_hostile_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelFileError):
        load_features(tmp_path)


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelFileError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_features(tmp_path)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        load_features(tmp_path / "nowhere")


def test_recordings_that_cannot_be_features_are_refused(extractor):
    for sound in (wave(399), np.full(1_000, np.nan), np.zeros((2, 1_000)), np.zeros(1_000, np.int16)):
        with pytest.raises(AudioError):
            extractor([sound])
    with pytest.raises(AudioError, match="120 s is the limit"):
        extractor([np.zeros(121 * 16_000, np.float32)])


def test_silence_has_features(extractor):
    assert torch.isfinite(extractor([np.zeros(1_000)])[0]).all()


def test_half_precision_on_a_cpu_becomes_float32_and_says_so(folder):
    loaded = load_features(folder, dtype=torch.float16)
    assert loaded.precision.startswith("float32 (float16")
