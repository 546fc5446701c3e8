"""Voices that are damaged or contradict themselves, and models of other programs: refused, and told by name."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from hostile_files import refused, torch_zip
from voice_maker import save_parts, save_voice

from rvc_spark.errors import VoiceFileError
from rvc_spark.infer.checkpoint import read_checkpoint
from rvc_spark.infer.random_voice import VoiceRecipe, voice_parts

# --- models of other programs ----------------------------------------------------------------------------------------

ONE = torch.zeros(1)
FOREIGN = {
    "generator": ({"model": {"enc_p.a": ONE, "dec.a": ONE, "enc_q.a": ONE}, "iteration": 9, "optimizer": {0: {}},
                   "learning_rate": 1e-4}, "training checkpoint or pretrained base.*Extract a voice from it first"),
    "discriminator": ({"model": {"discriminators.0.convs.0.bias": ONE}, "iteration": 9, "optimizer": {},
                       "learning_rate": 1e-4}, "checkpoint of a discriminator.*Extract"),
    "pretrained base": ({"model": {"enc_p.a": ONE, "dec.a": ONE, "enc_q.a": ONE}}, "pretrained base.*Extract"),
    "bare state dict": ({"enc_p.a": ONE, "dec.a": ONE, "enc_q.a": ONE}, "pretrained base"),
    "other training": ({"model": {"x": ONE}, "iteration": 1, "optimizer": {}}, "training checkpoint"),
    "rmvpe": ({"unet.encoder.bn.weight": ONE, "fc.1.bias": ONE}, "RMVPE pitch model, not a voice model"),
    "hubert": ({"model": {"w2v": ONE}, "cfg": {}, "args": None}, "fairseq checkpoint.*not a voice model"),
    "hf hubert": ({"feature_extractor.conv_layers.0.conv.weight": ONE, "encoder.layers.0.a": ONE}, "content encoder"),
    "uvr": ({"stg1_low_band_net.enc1.a": ONE}, "UVR"),
    "gpt-sovits": ({"weight": {"enc_p.ssl_proj.weight": ONE}, "config": {"data": {}}, "info": "e"}, "GPT-SoVITS"),
    "gpt-sovits, list": ({"weight": {"enc_p.ssl_proj.weight": ONE}, "config": [1]}, "GPT-SoVITS"),
    "so-vits": ({"model": {"emb_uv.weight": ONE}, "iteration": 1, "optimizer": {}}, "so-vits-svc"),
    "ddsp": ({"global_step": 5, "model": {"unit2ctrl.a": ONE}}, "DDSP"),
    "beatrice": ({"iteration": 1, "net_g": {"a": ONE}, "net_d": {}, "phone_extractor": {}}, "Beatrice"),
    "lightning": ({"state_dict": {"a": ONE}, "epoch": 1}, "another program"),
    "refinegan": ({"weight": {"enc_p.emb_phone.weight": ONE, "dec.mel_conv.weight_v": ONE}, "config": []},
                  "RefineGAN voices cannot be checked against a reference"),
    "no weight": ({"config": [1, 2], "info": "x"}, "no 'weight'.*'config', 'info'"),
    "no config": ({"weight": {"enc_p.emb_phone.weight": ONE}}, "no 'config'"),
    "nothing": ({}, "no 'weight'.*holds nothing"),
    "a list": ([1, 2], "a saved list"),
    "a tensor": (ONE, "a saved Tensor"),
    "a number": (7, "a saved int"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_models_of_other_programs_are_called_by_their_name(kind, tmp_path):
    tree, words = FOREIGN[kind]
    path = tmp_path / "model.pth"
    torch.save(tree, path)
    words = words.replace("a saved Tensor", "a saved Tensor(Note)?")
    refused(path, words)


class HParams:
    """Stands for the settings object inside other programs' models; pickled by name."""


def test_objects_of_other_programs_are_told_by_their_class(tmp_path):
    for module, words in (
        ("fairseq.data.dictionary", "fairseq checkpoint such as the content encoder hubert_base.pt"),
        ("utils", "GPT-SoVITS or so-vits-svc"),
        ("numpy.core.multiarray", "pickled numpy data"),
        ("torch.nn.modules.linear", "whole pickled network"),
        ("somebody.project", r"class somebody\.project\.HParams; only tensors"),
    ):
        data = b"\x80\x02}X\x06\x00\x00\x00weightc" + module.encode() + b"\nHParams\n)\x81s."
        refused(torch_zip(tmp_path / "x.pth", data), words)


# --- damaged voices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_a_voice_cut_anywhere_is_refused(legacy, tmp_path):
    path = save_parts(tmp_path / "x.pth", *voice_parts(), legacy=legacy)
    content = path.read_bytes()
    for stop in [*range(1, 40, 3), *range(40, len(content), len(content) // 40), len(content) - 1]:
        path.write_bytes(content[:stop])
        with pytest.raises(VoiceFileError):
            read_checkpoint(path)


def test_a_flipped_bit_among_the_numbers_is_noticed(tmp_path):
    """torch does not compare the checksums of its archives; a damaged download would sing wrongly."""
    path = save_voice(tmp_path / "x.pth")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    refused(path, "damaged", numbers_only=True)


# --- voices that contradict themselves -------------------------------------------------------------------------------

CONFIGS = [
    (None, {"a": 1}, "GPT-SoVITS"),
    (None, "text", "its config is a str"),
    (None, [1] * 17, "17 items"),
    (None, [1] * 20, "20 items"),
    (2, 7, "inter_channels 7 .must be even"),
    (2, 10**9, "inter_channels is 1000000000, not 2 to 4096"),
    (2, 10**20, "inter_channels is huge"),
    (2, 1 << 300, "integer of 301 bits"),
    (3, 0, "hidden_channels is 0"),
    (3, True, "hidden_channels is a bool"),
    (3, "12", "hidden_channels is a str"),
    (3, 12.0, "hidden_channels is a float"),
    (3, None, "hidden_channels is a NoneType"),
    (4, -5, "filter_channels is -5"),
    (5, 5, "must divide by n_heads 5"),
    (6, 65, "n_layers is 65, not 1 to 64"),
    (6, 3, r"attn_layers\.2\.conv_q\.weight' is missing"),
    (7, 5, r"conv_1\.weight' has shape \[16, 12, 3\], its config needs \[16, 12, 5\]"),
    (8, float("nan"), "p_dropout"),
    (8, 1.5, "p_dropout"),
    (9, [], "resblock"),
    (9, "2", r"resblocks\.0\.convs\.0\.weight_g' is missing"),
    (10, [3, 4], "holds an even number"),
    (10, [], "has 0 entries"),
    (10, [3] * 9, "has 9 entries"),
    (10, [3, 5, 7], "differ in length"),
    (11, [[1, 3, 5], [1]], "has 1 entries"),
    (11, [[1, 3, 5], [1, 3, 65]], "is 65, not 1 to 64"),
    (11, 3, "resblock_dilation_sizes is not a short list"),
    (12, [10, 8, 2, 2], "320 samples per 10 ms"),
    (12, [400], "is 400, not 1 to 64"),
    (12, [10, 10, 4], "differ in length"),
    (12, 400, "upsample_rates is a int, not a list"),
    (13, 8, "cannot be halved 4 times"),
    (13, 10_000, "upsample_initial_channel is 10000"),
    (14, [16, 16, 4, 3], "up-sampling by 2 with a kernel of 3"),
    (14, [16, 8, 4, 4], "up-sampling by 10 with a kernel of 8"),
    (15, "many", "spk_embed_dim"),
    (16, 7, r"cond_layer\.weight_v' has shape \[72, 6, 1\], its config needs \[72, 7, 1\]"),
    (17, 48_000, "400 samples per 10 ms, but its sample rate 48000 Hz has 480"),
    (17, "forty", "sample_rate is a str"),
    (17, 100, "sample_rate is 100"),
]


@pytest.mark.parametrize(("item", "value", "words"), CONFIGS)
def test_a_config_that_cannot_be_is_refused_naming_the_item(item, value, words, tmp_path):
    weights, document = voice_parts()
    if item is None:
        document["config"] = value
    else:
        document["config"][item] = value
    refused(save_parts(tmp_path / "x.pth", weights, document), words)


def test_the_content_width_of_the_longer_config_must_be_that_of_the_tensors(tmp_path):
    weights, document = voice_parts(VoiceRecipe(config_items=19))
    document["config"][17] = 256
    refused(save_parts(tmp_path / "x.pth", weights, document), "content width 256, its tensors 768")


def test_networks_that_would_fill_the_memory_are_never_built(tmp_path):
    """The largest sizes the bounds allow, over a file of a few hundred kilobytes."""
    weights, document = voice_parts()
    config = document["config"]
    config[2], config[3], config[4], config[6], config[13], config[16] = 4096, 4096, 16_384, 64, 4096, 4096
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(save_parts(tmp_path / "x.pth", weights, document), "its config needs")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path):
    def with_change(change) -> Path:
        weights, document = voice_parts()
        change(weights)
        return save_parts(tmp_path / "x.pth", weights, document)

    half = torch.float16
    cases = [
        (lambda w: w.pop("dec.conv_pre.bias"), r"'dec\.conv_pre\.bias' is missing"),
        (lambda w: w.pop("dec.ups.0.weight_v"), r"'dec\.ups\.0\.weight_v' is missing"),
        (lambda w: w.pop("dec.ups.0.weight_g"), r"'dec\.ups\.0\.weight_g' is missing"),
        (lambda w: w.pop("enc_p.emb_phone.weight"), r"'enc_p\.emb_phone\.weight' is missing"),
        (lambda w: w.pop("enc_p.emb_pitch.weight"), "half of a voice with pitch"),
        (lambda w: w.pop("dec.m_source.l_linear.weight"), "half of a voice with pitch"),
        (lambda w: w.pop("emb_g.weight"), r"'emb_g\.weight' is missing"),
        (lambda w: w.update({"dec.bonus": torch.zeros(1, dtype=half)}), r"no such voice has: 'dec\.bonus'"),
        (lambda w: w.update({f"x{n}\x1b": torch.zeros(1) for n in range(9)}), r"'x0\\x1b', .* and 6 more"),
        (lambda w: w.update({"dec.ups.0.weight": w["dec.ups.0.weight_v"]}), r"has: 'dec\.ups\.0\.weight_g"),
        (lambda w: w.update({"dec.cond.bias": torch.zeros(31)}), r"shape \[31\], its config needs \[32\]"),
        (lambda w: w.update({"dec.cond.bias": torch.zeros(32, dtype=torch.int64)}), "not a float type"),
        (lambda w: w.update({"emb_g.weight": torch.zeros(0, 6)}), "0 rows"),
        (lambda w: w.update({"emb_g.weight": torch.zeros(6)}), "not two axes"),
        (lambda w: w.update({"enc_p.emb_phone.weight": torch.zeros(12, 1024)}), "content width is 1024"),
        (lambda w: w.update({"dec.cond.bias": 7}), "not a named tensor"),
        (lambda w: w.update({3: torch.zeros(1)}), "not a named tensor"),
        (lambda w: w.update({"dec.cond.bias": torch.zeros(32, dtype=torch.complex64)}), "type that is not read"),
        (lambda w: w.update({"dec.cond.bias": torch.zeros(32).to_sparse()}), "class torch|torch.serialization"),
        (lambda w: w.update({f"enc_q.{n}": torch.zeros(1) for n in range(4_000)}), "tensors, the limit is 4,000"),
        (lambda w: w.clear(), r"'enc_p\.emb_phone\.weight' is missing"),
    ]  # fmt: skip
    for change, words in cases:
        refused(with_change(change), words)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", ["emb_g.weight", "dec.ups.1.weight_g", "enc_q.leftover"])
def test_numbers_that_are_not_finite_are_found(name, value, tmp_path):
    weights, document = voice_parts()
    weights.setdefault("enc_q.leftover", torch.zeros(2, 2))
    weights[name].view(-1)[-1] = value
    refused(save_parts(tmp_path / "x.pth", weights, document), f"{name}.*infinite or undefined", numbers_only=True)


def test_an_item_without_a_name_is_refused(tmp_path):
    weights, document = voice_parts()
    refused(save_parts(tmp_path / "x.pth", weights, {**document, 5: "five"}), "an item of it has no name")
