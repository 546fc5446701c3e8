"""Voices of every layout: what they are told to be, both weight-norm spellings, and the way back to disk."""

from __future__ import annotations

import hashlib
import math
import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils.parametrizations import weight_norm
from voice_maker import make_voice, save_parts, save_voice

from rvc_spark.errors import MissingPackageError, OutputError, VoiceFileError
from rvc_spark.infer.checkpoint import inspect_checkpoint, make_checkpoint, read_checkpoint, write_checkpoint
from rvc_spark.infer.random_voice import (
    CLASSIC,
    FOLDED,
    PARAMETRIZED,
    SPELLINGS,
    UPSAMPLING,
    VoiceRecipe,
    config_of,
    voice_parts,
)
from rvc_spark.infer.synthesizer import VoiceNetwork
from rvc_spark.infer.voice_layout import MRF, Traits, parse_config
from rvc_spark.infer.voice_weights import fold, folded_weights
from rvc_spark.safe_load import read_tensors, require_safe_torch

LAYOUTS = [
    *(VoiceRecipe(version, rate, has_f0) for rate, version in UPSAMPLING for has_f0 in (True, False)),
    *(VoiceRecipe(spelling=spelling) for spelling in SPELLINGS),
    *(VoiceRecipe(speakers=speakers) for speakers in (1, 3, 109)),
    *(VoiceRecipe(vocoder=MRF, spelling=spelling) for spelling in SPELLINGS),
    *(VoiceRecipe(version, config_items=19) for version in ("v1", "v2")),
    VoiceRecipe(resblock="2"),
    VoiceRecipe(dtype=torch.float32),
    VoiceRecipe(dtype=torch.bfloat16),
]


@pytest.mark.parametrize("recipe", LAYOUTS, ids=str)
def test_every_layout_is_recognised_and_comes_back_as_it_was(recipe, tmp_path):
    path = save_voice(tmp_path / "voice.pth", recipe)
    voice = read_checkpoint(path)
    info = voice.info
    assert (info.version, info.sample_rate, info.has_f0) == (recipe.version, recipe.rate, recipe.has_f0)
    assert (info.speakers, info.vocoder) == (recipe.speakers, recipe.vocoder)
    assert info.samples_per_frame == recipe.rate // 100
    assert info.content_dim == (256 if recipe.version == "v1" else 768)
    assert info.parameters == sum(tensor.numel() for tensor in voice.weights.values())
    assert info.warnings == ()
    assert inspect_checkpoint(path) == info
    again = torch.load(write_checkpoint(tmp_path / "again.pth", voice), weights_only=True)
    original = torch.load(path, weights_only=True)
    assert list(again["weight"]) == list(original["weight"])
    for name, tensor in original["weight"].items():
        assert again["weight"][name].dtype == tensor.dtype
        assert torch.equal(again["weight"][name], tensor)
    del again["weight"], original["weight"]
    assert again == original


@pytest.mark.parametrize("recipe", LAYOUTS, ids=str)
def test_the_table_of_tensors_is_the_network(recipe):
    voice = make_voice(recipe)
    with torch.device("meta"):
        state = VoiceNetwork(voice.net).state_dict()
    weights = folded_weights(voice.weights, voice.net)
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: tensor.shape for n, tensor in state.items()}


@pytest.mark.parametrize("layer", [torch.nn.Conv1d(3, 5, 4), torch.nn.ConvTranspose1d(3, 5, 4)], ids=["conv", "up"])
def test_folding_is_torch_weight_norm(layer):
    torch.manual_seed(0)
    normed = weight_norm(layer)
    gain, direction = (getattr(normed.parametrizations.weight, f"original{part}") for part in (0, 1))
    with torch.no_grad():
        gain.mul_(1.7)
        torch.testing.assert_close(fold(gain, direction), normed.weight, rtol=1e-6, atol=1e-7)


def test_all_spellings_fold_to_the_same_weights():
    folded = {
        spelling: folded_weights(voice.weights, voice.net)
        for spelling in SPELLINGS
        for voice in [make_voice(VoiceRecipe(spelling=spelling, dtype=torch.float32, seed=5))]
    }
    for name, weight in folded[CLASSIC].items():
        assert torch.equal(weight, folded[PARAMETRIZED][name])
        torch.testing.assert_close(weight, folded[FOLDED][name], rtol=1e-6, atol=1e-7)


def test_half_precision_weights_are_folded_in_single_precision():
    voice = make_voice(VoiceRecipe(seed=2))
    weight = folded_weights(voice.weights, voice.net)["dec.ups.0.weight"]
    gain, direction = (voice.weights[f"dec.ups.0.weight_{part}"].double() for part in "gv")
    exact = gain * direction / direction.square().sum(dim=(1, 2), keepdim=True).sqrt()
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.double(), exact, rtol=3e-7, atol=1e-8)


def test_real_files_spell_modules_independently(tmp_path):
    weights, document = voice_parts()
    mixed = {}
    for name, tensor in weights.items():
        if name.startswith("flow") and name.endswith(("weight_g", "weight_v")):
            name = name[:-8] + "parametrizations.weight.original" + ("0" if name.endswith("g") else "1")
        mixed[name] = tensor
    voice = read_checkpoint(save_parts(tmp_path / "mixed.pth", mixed, document))
    plain = make_voice()
    for name, weight in folded_weights(voice.weights, voice.net).items():
        assert torch.equal(weight, folded_weights(plain.weights, plain.net)[name])


def test_missing_labels_mean_an_early_voice(tmp_path):
    weights, document = voice_parts(VoiceRecipe(version="v1"))
    for item in ("version", "f0", "sr", "info"):
        del document[item]
    info = inspect_checkpoint(save_parts(tmp_path / "early.pth", weights, document))
    assert (info.version, info.has_f0, info.label, info.warnings) == ("v1", True, "", ())


@pytest.mark.parametrize(
    ("label", "value", "words"),
    [
        ("version", "v1", "calls itself v1"),
        ("version", ["v2"], "calls itself a list"),
        ("f0", 0, "f0=0"),
        ("f0", torch.zeros(3), "f0=a "),
        ("sr", "48k", "sr=48k"),
        ("vocoder", "RefineGAN", "vocoder=RefineGAN"),
        ("embedder_model", "spin-v2", "features of spin-v2"),
        ("embedder_output_layer", 9, "layer 9"),
    ],
)
def test_tensors_are_believed_and_a_lying_label_is_told(label, value, words, tmp_path):
    weights, document = voice_parts()
    path = save_parts(tmp_path / "lying.pth", weights, {**document, label: value})
    info = read_checkpoint(path).info
    assert (info.version, info.has_f0, info.sample_rate) == ("v2", True, 40_000)
    assert len(info.warnings) == 1 and words in info.warnings[0]


def test_what_other_programs_wrote_is_kept(tmp_path):
    weights, document = voice_parts()
    document |= {
        "sr": 40_000,
        "f0": True,
        "epoch": 120,
        "author": "Ann\x1b[31m\nO\u202eN",
        "embedder_model": "contentvec",
        "loss": float("nan"),
        "big": 1 << 80,
        "speaker_info": {"0": "first"},
        "overtrain_info": None,
    }
    voice = read_checkpoint(save_parts(tmp_path / "applio.pth", weights, document))
    assert voice.info.metadata == {"epoch": 120, "author": "Ann [31m O N", "embedder_model": "contentvec"}
    assert voice.info.embedder == "contentvec" and voice.info.warnings == ()
    written = torch.load(write_checkpoint(tmp_path / "again.pth", voice), weights_only=True)
    assert math.isnan(written.pop("loss")) and math.isnan(document.pop("loss"))
    del written["weight"]
    assert written == document


def test_leftovers_of_the_posterior_encoder_are_kept_but_not_used(tmp_path):
    weights, document = voice_parts()
    weights["enc_q.pre.weight"] = torch.ones(3, 4, 1, dtype=torch.float16)
    voice = read_checkpoint(save_parts(tmp_path / "voice.pth", weights, document))
    assert "enc_q.pre.weight" in voice.weights
    assert voice.info.parameters == make_voice().info.parameters
    assert not any(name.startswith("enc_q") for name in folded_weights(voice.weights, voice.net))


@pytest.mark.parametrize("legacy", [False, True])
def test_both_containers_of_torch_give_the_same_voice(legacy, tmp_path):
    voice = read_checkpoint(save_parts(tmp_path / "voice.pth", *voice_parts(), legacy=legacy))
    assert voice.info == make_voice().info
    assert all(torch.equal(voice.weights[name], tensor) for name, tensor in make_voice().weights.items())


def test_config_survives_parsing():
    config = config_of(VoiceRecipe())
    assert parse_config(config, Traits(768, 2, True, "HiFi-GAN")).items() == config


def test_sample_rate_may_be_a_label():
    config = config_of(VoiceRecipe())
    config[17] = "40k"
    assert parse_config(config, Traits(768, 2, True, "HiFi-GAN")).sample_rate == 40_000


def test_writing_is_repeatable_atomic_and_leaves_nothing_behind(tmp_path):
    voice = make_voice()
    one, two = (write_checkpoint(tmp_path / f"{name}.pth", voice) for name in ("one", "two"))
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(one.stat().st_mode) == 0o666 & ~mask
    with pytest.raises(OutputError, match="cannot write the voice"):
        write_checkpoint(tmp_path / "no folder" / "voice.pth", voice)
    (tmp_path / "taken.pth").mkdir()
    with pytest.raises(OutputError):
        write_checkpoint(tmp_path / "taken.pth", voice)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pth", "taken.pth", "two.pth"]


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), RuntimeError("write failed")])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_half_one(problem, tmp_path, monkeypatch):
    path = tmp_path / "voice.pth"
    path.write_bytes(b"the old one")

    def fail(tree, file):
        file.write(b"half")
        raise problem

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match="cannot write the voice .*(No space left|write failed)"):
        write_checkpoint(path, make_voice())
    assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]


def test_parts_that_make_no_voice_are_not_written(tmp_path):
    voice = make_voice()
    del voice.weights["dec.conv_pre.bias"]
    with pytest.raises(VoiceFileError, match=r"dec\.conv_pre\.bias' is missing"):
        write_checkpoint(tmp_path / "voice.pth", voice)
    weights, document = voice_parts()
    weights["emb_g.weight"][0, 0] = math.inf
    with pytest.raises(VoiceFileError, match="emb_g.weight"):
        make_checkpoint(weights, document)
    assert list(tmp_path.iterdir()) == []


def test_tensor_containers_are_read_alike(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor([], dtype=torch.float16)}
    paths = [tmp_path / "new.pt", tmp_path / "old.pt", tmp_path / "x.safetensors"]
    torch.save(tensors, paths[0])
    torch.save(tensors, paths[1], _use_new_zipfile_serialization=False)
    save_file(tensors, paths[2], metadata={"format": "pt"})
    for path in paths:
        read = read_tensors(path, max_bytes=10_000, what="test", error=VoiceFileError)
        assert sorted(read) == sorted(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype


@pytest.mark.parametrize("version", ["2.5.1+cu121", "1.13.0", "0.4", "unknown"])
def test_a_torch_whose_safe_loading_can_be_bypassed_is_refused(version):
    with pytest.raises(MissingPackageError, match=r"CVE-2025-32434.*pip install 'torch>=2\.6'"):
        require_safe_torch(version)


@pytest.mark.parametrize("version", ["2.6.0", "2.11.0+cu128", "3.0"])
def test_newer_torch_is_accepted(version):
    require_safe_torch(version)
