"""Content encoders: the reference's numbers from every stored form, exactness of chunks, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rvc_spark.errors import AudioError, ConfigError, EncoderFileError
from rvc_spark.infer import conv_features
from rvc_spark.infer.content import canonical_embedder, load_content_encoder
from rvc_spark.infer.encoder_sizes import read_config, sizes_of_weights
from rvc_spark.infer.encoder_weights import _expected_shapes, build_encoder
from rvc_spark.infer.fairseq import read_fairseq, read_fairseq_checkpoint, transformers_name
from rvc_spark.infer.hubert import Hubert
from tests.encoder_files import HEADS, HIDDEN, LAYERS, PROJECTION, config, fairseq_weights, write_fairseq, write_folder

GOLDEN = Path(__file__).parent / "golden" / "rvc" / "hubert"
DEMO = Path(__file__).parents[1] / "assets" / "demo" / "content_encoder"
TOLERANCE = 1e-4  # of the golden set for the tiny encoder; kernels of another machine differ by 1e-5


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """The small encoder's weights under transformers' names."""
    named = {transformers_name(name): tensor for name, tensor in fairseq_weights().items()}
    return {name: tensor for name, tensor in named.items() if name is not None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights) -> Path:
    return write_folder(tmp_path_factory.mktemp("encoders") / "small", weights)


def noise(seconds: float, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(round(seconds * 16000)) * 0.1).astype(np.float32)


# --- the reference's numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tiny_hf", "tiny_hf_bin", "tiny_fairseq.pt", "tiny_fairseq_oldstyle.pt"])
def test_reference_numbers(form, tmp_path):
    path = GOLDEN / form
    if form == "tiny_hf_bin":  # the same folder with the older spelling of weight norm, in torch's container
        path = shutil.copytree(GOLDEN / "tiny_hf", tmp_path / form)
        old = {
            name.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): tensor
            for name, tensor in read_fairseq(GOLDEN / "tiny_fairseq.pt").items()
        }
        (path / "model.safetensors").unlink()
        torch.save({f"hubert.{name}": tensor for name, tensor in old.items()}, path / "pytorch_model.bin")
    encoder = load_content_encoder(path)
    assert encoder.dims == {"v1": 16, "v2": 32}
    recorded = np.load(GOLDEN / "tiny.npz")
    for signal in ("tone", "glide", "noise", "min400", "n719"):
        samples = recorded[f"{signal}/in.audio"]
        got = {
            "v1": encoder.features(samples, "v1"),
            "v2": encoder.features(torch.from_numpy(samples), "v2"),
            "conv": encoder.convolutional(samples),
            **{f"layer{layer}": encoder.hidden(samples, layer) for layer in (0, 1, 9, 12)},
        }
        for what, value in got.items():
            assert value.dtype == torch.float32
            np.testing.assert_allclose(value[0].numpy(), recorded[f"{signal}/{what}"], rtol=0, atol=TOLERANCE)


def test_names_of_the_key_map():
    for name, wanted in json.loads((GOLDEN / "key_map.json").read_text()).items():
        assert transformers_name(name) == wanted
    with pytest.raises(KeyError):
        transformers_name("w2v_model.mask_emb")


def test_every_form_gives_the_same_features(folder, weights, tmp_path):
    """safetensors, .bin with either spelling of weight norm, already folded, with a prefix, fairseq: one network."""
    position = "encoder.pos_conv_embed.conv."
    old = dict(weights)
    g, v = (old.pop(f"{position}parametrizations.weight.original{i}") for i in (0, 1))
    old |= {position + "weight_g": g, position + "weight_v": v}
    folded = {name: tensor for name, tensor in old.items() if "weight_" not in name}
    folded[position + "weight"] = torch._weight_norm(v, g, 2)
    forms = [
        write_folder(tmp_path / "old", old, binary=True),
        write_folder(tmp_path / "folded", folded),
        write_folder(tmp_path / "prefixed", {f"hubert.{name}": tensor for name, tensor in weights.items()}),
        write_folder(tmp_path / "half", {name: tensor.half() for name, tensor in weights.items()}),
        write_fairseq(tmp_path / "hubert_base.pt"),
    ]
    sound = noise(0.5)
    wanted = load_content_encoder(folder).features(sound, "v1")
    assert wanted.std(dim=1).min() > 0.1  # it is the sound that is heard, not the biases
    # torch sums the norm in another order with another number of threads, so a weight folded beforehand may differ in
    # its last bit (1.5e-8), which is 2e-6 in features; 1e-5 is this encoder's own noise floor.
    for form in forms:
        torch.testing.assert_close(load_content_encoder(form).features(sound, "v1"), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        load_content_encoder(folder / "config.json").features(sound, "v1"), wanted, rtol=0, atol=0
    )


# --- features --------------------------------------------------------------------------------------------------------


def test_number_of_frames(folder):
    encoder = load_content_encoder(folder)
    for count in (400, 401, 719, 720, 721, 16000, 16079, 16080):
        frames = (count - 400) // 320 + 1
        assert encoder.features(noise(1.1)[:count], "v1").shape == (1, frames, PROJECTION)
        assert encoder.features(noise(1.1)[:count], "v2").shape == (1, frames, HIDDEN)


def test_chunks_of_the_convolutions_are_exact(folder, monkeypatch):
    """The group norm spans the whole sound, so chunks that normalized themselves would differ at once.

    In double precision: in single, how far the rounding of other matrix sizes carries depends on the machine.
    """
    encoder = load_content_encoder(folder, dtype=torch.float64)
    sound = noise(3.0) * np.linspace(0.05, 1.0, 48000, dtype=np.float32) + 0.1
    with torch.no_grad():  # everything at once, the norm where it stands in the network
        whole = encoder._model(torch.from_numpy(sound).double()[None], LAYERS).float()
    for frames in (1, 7, 64, 128, 148):
        monkeypatch.setattr(conv_features, "PIECE_FRAMES", frames)
        torch.testing.assert_close(encoder.features(sound, "v2"), whole, rtol=0, atol=5e-7)  # returned in single


@pytest.mark.parametrize("avx512", [False, True])
def test_rows_compute_what_the_network_computes(folder, monkeypatch, avx512):
    """In single precision on a CPU the convolutions run in another layout, with their GELU inside, or as products."""
    monkeypatch.setattr(conv_features, "has_avx512", lambda: avx512)
    encoder, exact = load_content_encoder(folder), load_content_encoder(folder, dtype=torch.float64)
    sound = noise(2.0, 5)
    assert encoder._convolve._rows is not None and exact._convolve._rows is None
    for frames in (10, 128):
        monkeypatch.setattr(conv_features, "PIECE_FRAMES", frames)
        made, wanted = encoder.convolutional(sound), exact.convolutional(sound)
        assert made.shape == wanted.shape
        torch.testing.assert_close(made, wanted, rtol=0, atol=2e-5)


def test_only_the_needed_layers_run(folder):
    encoder = load_content_encoder(folder)
    ran: list[int] = []
    for number, layer in enumerate(encoder._model.encoder.layers, 1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    encoder.features(noise(0.1), "v1")
    assert ran == list(range(1, 10))
    ran.clear()
    encoder.features(noise(0.1), "v2")
    assert ran == list(range(1, LAYERS + 1))
    ran.clear()
    encoder.hidden(noise(0.1), 0)
    assert ran == []


def test_features_do_not_depend_on_the_kind_of_array(folder):
    encoder = load_content_encoder(folder)
    sound = noise(0.2)
    wanted = encoder.features(sound, "v2")
    reversed_view = sound[::-1].copy()[::-1]
    sound.setflags(write=False)
    for same in (sound, reversed_view, torch.from_numpy(reversed_view.copy()), sound.astype(np.float64)):
        assert torch.equal(encoder.features(same, "v2"), wanted)
    assert not wanted.requires_grad


def test_normalization_is_obeyed(folder, tmp_path):
    """`do_normalize` is the waveform's layer norm; without it (ContentVec) a quiet sound gives other features."""
    listening = shutil.copytree(folder, tmp_path / "listening")
    (listening / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 16000}')
    quiet = noise(0.3) / 20
    standard = (quiet - quiet.mean()) / np.sqrt(quiet.var() + 1e-5)
    plain = load_content_encoder(folder)
    got = load_content_encoder(listening).features(quiet, "v1")
    torch.testing.assert_close(got, plain.features(standard, "v1"), rtol=0, atol=1e-4)
    assert (got - plain.features(quiet, "v1")).abs().max() > 0.01


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(399, np.float32), "399 samples"),
        (np.zeros(0, np.float32), "0 samples"),
        (np.full(1000, np.nan, np.float32), "not finite"),
        (np.r_[np.zeros(999), np.inf].astype(np.float32), "not finite"),
        (np.full(1000, 1e300), "not finite"),
        (np.zeros((2, 1000), np.float32), "shape"),
        (np.zeros(1000, np.int16), "int16"),
        (np.zeros(16000 * 1801, np.float32), "1800 s"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_sounds_that_are_refused(folder, samples, words):
    with pytest.raises(AudioError, match=words):
        load_content_encoder(folder).features(samples, "v1")


def test_silence_and_noise_give_finite_features(folder):
    encoder = load_content_encoder(folder)
    for sound in (np.zeros(16000, np.float32), noise(1.0) * 1e-30, noise(1.0) * 1e4, np.ones(16000, np.float32)):
        assert torch.isfinite(encoder.features(sound, "v1")).all()


def test_double_precision_agrees(folder, monkeypatch):
    exact = load_content_encoder(folder, "cpu", torch.float64).features(noise(0.5), "v1")
    assert exact.dtype == torch.float32
    encoder = load_content_encoder(folder)
    torch.testing.assert_close(encoder.features(noise(0.5), "v1"), exact, rtol=0, atol=1e-4)
    monkeypatch.setattr(conv_features, "PIECE_FRAMES", 5)
    torch.testing.assert_close(encoder.features(noise(0.5), "v1"), exact, rtol=0, atol=1e-4)


def test_unknown_versions_and_layers(folder):
    encoder = load_content_encoder(folder)
    with pytest.raises(ConfigError, match="v3"):
        encoder.features(noise(0.1), "v3")
    with pytest.raises(ConfigError, match="layers 0 to 10"):
        encoder.hidden(noise(0.1), 11)
    with pytest.raises(ConfigError, match="float16"):
        load_content_encoder(folder, "cpu", torch.float16)


# --- what an encoder can serve ---------------------------------------------------------------------------------------


def test_without_projection_only_v2(weights, tmp_path):
    bare = {name: tensor for name, tensor in weights.items() if not name.startswith("final_proj")}
    encoder = load_content_encoder(write_folder(tmp_path / "bare", bare))
    assert encoder.dims == {"v1": None, "v2": HIDDEN}
    assert encoder.features(noise(0.1), "v2").shape[2] == HIDDEN
    with pytest.raises(EncoderFileError, match="final_proj"):
        encoder.features(noise(0.1), "v1")


def test_the_layer_its_config_names(weights, tmp_path):
    encoder = load_content_encoder(write_folder(tmp_path / "seventh", weights, rvc_feature_layer=7))
    projection = weights["final_proj.weight"], weights["final_proj.bias"]
    wanted = torch.nn.functional.linear(encoder.hidden(noise(0.2), 7), *projection)
    torch.testing.assert_close(encoder.features(noise(0.2), "v1"), wanted)


def test_too_few_layers_for_v1(weights, tmp_path):
    few = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith(("encoder.layers.8", "encoder.layers.9"))
    }
    encoder = load_content_encoder(write_folder(tmp_path / "few", few, num_hidden_layers=8))
    assert encoder.dims == {"v1": None, "v2": HIDDEN}
    with pytest.raises(EncoderFileError, match="8 layers, v1 needs layer 9"):
        encoder.features(noise(0.1), "v1")


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo voice is not in this checkout")
def test_the_demo_encoder():
    encoder = load_content_encoder(DEMO)
    assert encoder.dims == {"v1": 256, "v2": 160} and encoder.sizes.v1_layer == 9
    features = encoder.features(noise(1.0), "v1")
    assert features.shape == (1, 49, 256) and torch.isfinite(features).all() and features.std() > 0.05


def test_embedders_are_compared_by_their_many_names(folder, tmp_path, weights):
    assert canonical_embedder(" Hubert_Base.pt ") == "contentvec"
    contentvec = load_content_encoder(write_folder(tmp_path / "contentvec", weights))
    assert contentvec.embedder == "contentvec"
    for fits in ("", "contentvec", "hubert_base"):
        assert contentvec.conflict_with(fits) is None
    assert "spin-v2" in contentvec.conflict_with("spin-v2")
    stated = load_content_encoder(write_folder(tmp_path / "encoder", weights, rvc_embedder="spin"))
    assert stated.conflict_with("spin") is None and "spin" in stated.conflict_with("contentvec")
    nameless = load_content_encoder(folder)
    assert nameless.conflict_with("contentvec") is None and nameless.conflict_with("japanese-hubert-base")


def test_heads_of_a_fairseq_file(weights, tmp_path):
    """Tensors do not tell the heads: the settings do, else the caller, else an assumption that is said."""
    stated = read_fairseq_checkpoint(write_fairseq(tmp_path / "hubert_base.pt"))
    assert sizes_of_weights(stated.weights, stated.settings).heads == HEADS
    assert sizes_of_weights(weights, {}, heads=8).heads == 8
    assumed = sizes_of_weights(weights, {})
    assert assumed.heads == 12 and "assumed 12" in assumed.warnings[0]
    with pytest.raises(EncoderFileError, match="divisible"):
        sizes_of_weights(weights, {"encoder_attention_heads": 7})
    with pytest.raises(EncoderFileError, match="heads"):
        sizes_of_weights(weights, {"encoder_attention_heads": 10**30})


# --- folders that are refused ----------------------------------------------------------------------------------------

CONFIGS = {
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "layers as text": ({"num_hidden_layers": "12"}, "num_hidden_layers"),
    "layers as true": ({"num_hidden_layers": True}, "num_hidden_layers"),
    "a width of 400 digits": ({"hidden_size": 10**400}, "integer of 1329 bits"),
    "a huge width": ({"hidden_size": 10**6}, "hidden_size"),
    "a negative width": ({"hidden_size": -8}, "hidden_size"),
    "many parameters": (
        {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 64, "num_attention_heads": 64},
        "parameters",
    ),
    "zero heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "heads that do not divide": ({"num_attention_heads": 7}, "divisible"),
    "groups that do not divide": ({"num_conv_pos_embedding_groups": 7}, "divisible"),
    "zero stride": ({"conv_stride": [0] * 7}, "conv_stride"),
    "strides of a text": ({"conv_stride": "5,2,2"}, "conv_stride"),
    "a million convolutions": ({"conv_dim": [8] * 10**5}, "conv_dim is a list of 100000 items"),
    "fewer kernels": ({"conv_kernel": [10, 3]}, "differ in number"),
    "another frame rate": ({"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, "every 160"),
    "epsilon of zero": ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
    "epsilon not a number": ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    "layer-norm extractor": ({"feat_extract_norm": "layer"}, "normalized per frame"),
    "pre-norm layers": ({"do_stable_layer_norm": True}, "before attention"),
    "convolution biases": ({"conv_bias": True}, "biases"),
    "another activation": ({"hidden_act": "relu"}, "another activation"),
    "another architecture": ({"model_type": "wavlm"}, "another architecture"),
    "an object as architecture": ({"model_type": {"a": 1}}, "another architecture"),
    "adapters": ({"adapter_attn_dim": 16}, "adapters"),
    "a feature layer it lacks": ({"rvc_feature_layer": 11}, "rvc_feature_layer"),
    "another width than its weights": ({"hidden_size": 48}, "shape"),
    "more layers than its weights": ({"num_hidden_layers": 11}, "encoder.layers.10.attention.k_proj.bias is missing"),
    "fewer layers than its weights": ({"num_hidden_layers": 9}, "unknown tensor 'encoder.layers.9"),
}


@pytest.mark.parametrize("case", CONFIGS.values(), ids=CONFIGS.keys())
def test_configs_that_are_refused(case, folder, tmp_path):
    changes, words = case
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").write_text(json.dumps(config(**changes)))
    with pytest.raises(EncoderFileError, match=words) as caught:
        load_content_encoder(broken)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "no JSON object"),
        (b'"hubert"', "no JSON object"),
        (b" " * 2_000_000, "at most"),
    ],
)
def test_config_files_that_are_none(folder, tmp_path, data, words):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").write_bytes(data)
    with pytest.raises(EncoderFileError, match=words):
        load_content_encoder(broken)


def test_nothing_but_sizes_is_taken_from_the_config(weights, tmp_path):
    """Fields that make transformers' own loader fetch or run code have no effect here."""
    hostile = write_folder(
        tmp_path / "remote",
        weights,
        auto_map={"AutoModel": "evil--model.Evil", "AutoConfig": "evil--config.Evil"},
        trust_remote_code=True,
        _attn_implementation="kernels-community/evil",
        torch_dtype="os.system",
        quantization_config={"quant_method": "evil"},
    )
    (hostile / "model.py").write_text("raise SystemExit('ran')")
    assert load_content_encoder(hostile).features(noise(0.1), "v2").shape[2] == HIDDEN


WEIGHTS = {
    "a missing tensor": (lambda w: w.pop("encoder.layers.3.final_layer_norm.bias"), "layers.3.final_layer_norm.bias"),
    "half a projection": (lambda w: w.pop("final_proj.bias"), "final_proj.bias is missing"),
    "half a weight norm": (lambda w: w.pop("encoder.pos_conv_embed.conv.parametrizations.weight.original0"), "missing"),
    "an unknown tensor": (lambda w: w.update(extra=torch.zeros(1)), "unknown tensor 'extra'"),
    "a wrong shape": (lambda w: w.update({"encoder.layer_norm.bias": torch.zeros(25)}), "shape"),
    "a gain of another shape": (
        lambda w: w.update({"encoder.pos_conv_embed.conv.parametrizations.weight.original0": torch.ones(24, 1, 1)}),
        "gain",
    ),
    "infinity": (lambda w: w["encoder.layers.0.attention.q_proj.weight"].fill_(torch.inf), "not finite"),
    "not a number": (lambda w: w["feature_projection.layer_norm.bias"].fill_(torch.nan), "not finite"),
    "a direction of length zero": (
        lambda w: w["encoder.pos_conv_embed.conv.parametrizations.weight.original1"].zero_(),
        "not finite",
    ),
    "whole numbers": (lambda w: w.update({"encoder.layer_norm.bias": torch.zeros(HIDDEN, dtype=torch.int64)}), "type"),
    "a projection of one dimension": (lambda w: w.update({"final_proj.weight": torch.zeros(6)}), "final_proj"),
    "an empty projection": (
        lambda w: w.update({"final_proj.weight": torch.zeros(0, HIDDEN), "final_proj.bias": torch.zeros(0)}),
        "final_proj",
    ),
}


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_are_refused(case, binary, weights, tmp_path):
    change, words = case
    changed = {name: tensor.clone() for name, tensor in weights.items()}
    change(changed)
    with pytest.raises(EncoderFileError, match=words):
        load_content_encoder(write_folder(tmp_path / "broken", changed, binary=binary))


def test_weights_of_a_fairseq_file_are_checked_too(tmp_path):
    for change, words in (
        ({"encoder.layers.0.fc1.bias": torch.zeros(41)}, "fc1|intermediate_dense.bias has shape"),
        ({"encoder.layers.0.fc1.bias": torch.full((40,), torch.inf)}, "not finite"),
        ({"post_extract_proj.weight": torch.zeros(0, 8)}, "hidden_size is 0"),
        ({"encoder.pos_conv.0.weight_v": torch.zeros(24, 0, 16)}, "sizes need"),
        ({"encoder.pos_conv.0.weight_v": torch.zeros(24)}, "dimensions"),
        ({"feature_extractor.conv_layers.3.0.weight": torch.zeros(8, 8, 5)}, "unknown strides"),
        ({"decoder.embed": torch.zeros(1)}, "not a HuBERT content encoder"),
    ):
        path = write_fairseq(tmp_path / "hubert_base.pt", fairseq_weights() | change)
        with pytest.raises(EncoderFileError, match=words):
            load_content_encoder(path)
    with pytest.raises(EncoderFileError, match="lacks the tensor"):
        load_content_encoder(write_fairseq(tmp_path / "few.pt", {"mask_emb": torch.zeros(HIDDEN)}))


def test_folders_that_are_no_encoder(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderFileError, match="config.json"):
        load_content_encoder(tmp_path / "empty")
    shutil.copy(folder / "config.json", tmp_path / "empty" / "config.json")
    with pytest.raises(EncoderFileError, match="neither model.safetensors nor pytorch_model.bin"):
        load_content_encoder(tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(EncoderFileError, match="split into several files"):
        load_content_encoder(tmp_path / "empty")
    for data in (b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x08" + bytes(40), bytes(3000)):
        (tmp_path / "empty" / "model.safetensors").write_bytes(data)
        with pytest.raises(EncoderFileError):
            load_content_encoder(tmp_path / "empty")
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "empty" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoderFileError):
        load_content_encoder(tmp_path / "empty")


def test_a_foreign_class_in_a_bin_file_is_refused(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    torch.save({"a": Path("x")}, broken / "pytorch_model.bin")
    with pytest.raises(EncoderFileError):
        load_content_encoder(broken)


@pytest.mark.parametrize("position_kernel", [7, 16])
def test_the_network_is_that_of_transformers(folder, position_kernel):
    """Same names, same shapes, same numbers after every layer."""
    from transformers import HubertConfig, HubertModel

    sizes = replace(
        read_config(folder), channels=(4, 5, 6, 7, 8, 9, 11), intermediate=33, layers=3, epsilon=1e-3,
        position_kernel=position_kernel,
    )  # fmt: skip
    config = HubertConfig(
        hidden_size=sizes.hidden, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        intermediate_size=sizes.intermediate, conv_dim=list(sizes.channels), conv_kernel=list(sizes.kernels),
        conv_stride=list(sizes.strides), num_conv_pos_embeddings=sizes.position_kernel,
        num_conv_pos_embedding_groups=sizes.position_groups, layer_norm_eps=sizes.epsilon,
        mask_time_prob=0.0, mask_feature_prob=0.0, layerdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = HubertModel(config).eval()
    torch.nn.utils.parametrize.remove_parametrizations(theirs.encoder.pos_conv_embed.conv, "weight")
    weights = {name: torch.randn_like(tensor) * 0.3 for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(weights)
    ours = Hubert(sizes).eval()
    ours.load_state_dict(weights)
    assert _expected_shapes(sizes) == {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wave = torch.from_numpy(noise(0.4))[None]
    with torch.no_grad():
        hidden = theirs(wave, output_hidden_states=True).hidden_states
        for layer, wanted in enumerate(hidden):
            torch.testing.assert_close(ours(wave, layer), wanted, rtol=1e-4, atol=1e-4)


def test_a_conversion_imports_no_compiler_and_no_transformers():
    """Both take seconds, more than a first conversion may cost."""
    code = (
        "import sys; import numpy as np; from rvc_spark import VC, RVCConfig; from rvc_spark.audio import Audio\n"
        "vc = VC(RVCConfig(device='cpu', offline=True)); vc.load('demo')\n"
        "vc.convert(Audio(np.random.default_rng(0).standard_normal(16000).astype('f4') / 9, 16000), f0_method='pm')\n"
        "print({'torch._dynamo', 'transformers', 'sympy', 'scipy.signal'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_sizes_are_checked_before_anything_is_built(folder, weights):
    sizes = read_config(folder)
    with pytest.raises(EncoderFileError, match="missing"):
        build_encoder(replace(sizes, layers=LAYERS + 1), weights, "small")
