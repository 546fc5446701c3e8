"""ONNX export: the same numbers as torch at any length, for every kind of voice and for the content encoder."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from rvc_spark.cli import main
from rvc_spark.errors import EncoderFileError, ExportError, MissingPackageError, OutputError
from rvc_spark.infer import onnx_export
from rvc_spark.infer.content import load_content_encoder
from rvc_spark.infer.fairseq import read_fairseq
from rvc_spark.infer.layers import RelativeAttention
from rvc_spark.infer.onnx_export import (
    compare,
    export_encoder,
    export_voice,
    kept_if_same,
    open_session,
    voice_check,
)
from rvc_spark.infer.random_voice import VoiceRecipe, write_voice
from rvc_spark.infer.synthesizer import load_synthesizer
from rvc_spark.infer.voice_layout import MRF
from tests.encoder_files import write_fairseq, write_folder
from tests.voice_maker import make_voice


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A voice with pitch and its file."""  # exporting takes seconds, so it is done once
    synthesizer = load_synthesizer(make_voice(VoiceRecipe()))
    return synthesizer, export_voice(synthesizer, tmp_path_factory.mktemp("onnx") / "voice.onnx")


@pytest.mark.parametrize("frames", [2, 11, 50, 133])
def test_the_same_sound_at_any_length(exported, frames):
    synthesizer, written = exported
    inputs, expected = voice_check(synthesizer, frames)
    assert compare(written.path, inputs, expected) < 1e-4
    assert expected.shape == (1, 1, frames * 400)


def test_what_is_written_says_what_it_is(exported):
    _, written = exported
    assert written.difference < 1e-4 and written.bytes == written.path.stat().st_size
    assert written.inputs["phone"] == (1, "frames", 768) and written.inputs["latent_noise"] == (1, 8, "frames")
    assert list(written.inputs) == ["phone", "pitch", "pitchf", "speaker", "latent_noise", "source_noise"]
    known = open_session(written.path).get_modelmeta().custom_metadata_map
    assert known["sample_rate"] == "40000" and known["samples_per_frame"] == "400" and known["f0"] == "1"
    assert [path.name for path in written.path.parent.iterdir()] == ["voice.onnx"], "and nothing is left beside it"


def test_the_noise_is_heard(exported):
    synthesizer, written = exported
    inputs, expected = voice_check(synthesizer, 20)
    for name in ("latent_noise", "source_noise", "phone", "pitchf"):
        with pytest.raises(ExportError, match="differs from torch"):
            compare(written.path, {**inputs, name: inputs[name] * 2 + 1}, expected)


def test_another_vocoder(tmp_path):
    recipe = VoiceRecipe(vocoder=MRF, rate=32_000)
    written = export_voice(load_synthesizer(make_voice(recipe)), tmp_path / "voice.onnx")
    assert written.difference < 1e-4 and "pitchf" in written.inputs


def test_attention_for_any_length_is_the_same_attention():
    torch.manual_seed(0)
    layer = RelativeAttention(12, 2)
    for table in (layer.emb_rel_k, layer.emb_rel_v):
        torch.nn.init.normal_(table)
    for frames in (1, 5, 11, 40):
        x = torch.randn(1, 12, frames)
        expected = layer(x, torch.ones(1, 1, frames))
        torch.testing.assert_close(onnx_export.attend(layer, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_content_encoder(version, tmp_path):
    weights = read_fairseq(write_fairseq(tmp_path / "hubert.pt"))
    encoder = load_content_encoder(write_folder(tmp_path / "encoder", weights))
    written = export_encoder(encoder, version, tmp_path / "encoder.onnx")
    assert written.difference < 1e-4 and written.inputs == {"samples": (1, "samples")}
    sound = np.random.default_rng(0).standard_normal(5_000).astype(np.float32)
    (found,) = open_session(written.path).run(None, {"samples": sound[None]})
    np.testing.assert_allclose(found, encoder.features(sound, version).numpy(), atol=1e-4)


def test_a_version_the_encoder_does_not_have(tmp_path):
    weights = {
        name: tensor for name, tensor in read_fairseq(write_fairseq(tmp_path / "hubert.pt")).items()
        if not name.startswith("final_proj")
    }  # fmt: skip
    encoder = load_content_encoder(write_folder(tmp_path / "encoder", weights))
    with pytest.raises(EncoderFileError, match="no v1 features"):
        export_encoder(encoder, "v1", tmp_path / "encoder.onnx")


def test_a_file_that_differs_is_not_kept(exported, tmp_path):
    synthesizer, written = exported
    inputs, expected = voice_check(synthesizer, 20)
    temporary, path = tmp_path / "part.onnx", tmp_path / "voice.onnx"

    def write() -> None:
        shutil.copy(written.path, temporary)

    with pytest.raises(ExportError, match="differs from torch by"):
        kept_if_same(write, temporary, path, [(inputs, expected), (inputs, expected * 1.01)])
    assert list(tmp_path.iterdir()) == []
    assert kept_if_same(write, temporary, path, [(inputs, expected)]).path == path
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_refused(tmp_path, monkeypatch):
    synthesizer = load_synthesizer(make_voice(VoiceRecipe()))
    with pytest.raises(OutputError, match="is not there"):
        export_voice(synthesizer, tmp_path / "missing" / "voice.onnx")
    doubled = load_synthesizer(make_voice(VoiceRecipe()), dtype=torch.float64)
    with pytest.raises(ExportError, match="fp32"):
        export_voice(doubled, tmp_path / "voice.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match="onnxruntime refuses"):
        open_session(tmp_path / "broken.onnx")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(MissingPackageError, match=r"rvc-spark\[export\]"):
        export_voice(synthesizer, tmp_path / "voice.onnx")


def test_from_the_command_line(capsys, tmp_path):
    """Of another layout: v1, no pitch, the light kind of branches."""
    path = write_voice(tmp_path / "mine.pth", VoiceRecipe("v1", 48_000, has_f0=False, resblock="2"))
    assert main(["export", str(path), "-o", str(tmp_path / "mine.onnx"), "--json"]) == 0
    (report,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert report["bytes"] == (tmp_path / "mine.onnx").stat().st_size and report["difference"] < 1e-4
    assert "pitchf" not in [item.name for item in open_session(tmp_path / "mine.onnx").get_inputs()]
    assert main(["export", "no such voice"]) == 6
