"""Settings and configuration: every limit is a named error, every source of a value has its rank."""

from __future__ import annotations

import pickle
from dataclasses import fields

import pytest
import torch

from rvc_spark import rvc_config
from rvc_spark.errors import ConfigError, RvcSparkError
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_config import Choice, RVCConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": 49},
        {"key": float("nan")},
        {"key": "up"},
        {"index_rate": -0.1},
        {"index_rate": True},
        {"protect": 0.6},
        {"rms_mix_rate": 2},
        {"formant": 13},
        {"speaker": -1},
        {"speaker": 1.5},
        {"seed": -1},
        {"resample_rate": 7999},
        {"resample_rate": 192_001},
        {"auto_key": "loud"},
        {"auto_key": 5},
        {"profile": "r24"},
        {"neighbours": 0},
        {"scale": "H major"},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named_with_its_range(wrong):
    (name,) = wrong
    with pytest.raises(RvcSparkError) as caught:
        ConversionSettings(**wrong)
    assert caught.value.next_step
    assert name in str(caught.value)


def test_unknown_setting_lists_the_known_ones():
    with pytest.raises(ConfigError, match="pitchh.*index_rate"):
        ConversionSettings().changed(pitchh=1)


def test_every_setting_has_words_for_people():
    for item in fields(ConversionSettings):
        assert len(item.metadata["help"]) > 10, item.name


def test_errors_survive_a_process_boundary():
    copy = pickle.loads(pickle.dumps(ConfigError("a=1 is wrong", "Use 2.")))
    assert isinstance(copy, ConfigError)
    assert (copy.problem, copy.next_step) == ("a=1 is wrong", "Use 2.")


def test_argument_beats_environment_beats_file_beats_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RVCConfig().device == "auto"
    (tmp_path / "rvc_spark.yaml").write_text("device: mps\nweights: /from/file\n")
    assert RVCConfig().device == "mps"
    assert str(RVCConfig().weights_dir) == "/from/file"
    monkeypatch.setenv("weight_root", "/from/environment")
    assert str(RVCConfig().weights_dir) == "/from/environment"
    assert str(RVCConfig(weights="/from/argument").weights_dir) == "/from/argument"


def test_historic_environment_names(monkeypatch, tmp_path):
    for name, value in {"RVC_ROOT": "r", "index_root": "i", "rmvpe_root": "p"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    config = RVCConfig()
    assert (config.root, config.index_dir, config.rmvpe_path) == (
        tmp_path / "r",
        tmp_path / "i",
        tmp_path / "p" / "rmvpe.pt",
    )


def test_generic_environment_names_are_not_ours(monkeypatch):
    for name in ("ROOT", "WEIGHTS", "TEMP", "DEVICE", "PRECISION", "OFFLINE"):
        monkeypatch.setenv(name, "/elsewhere")
    config = RVCConfig()
    assert str(config.root) != "/elsewhere"
    assert str(config.temp_dir) != "/elsewhere"


@pytest.mark.parametrize("text", ["devicee: cpu", "- a\n- b", "device: [", "precision: fp8", "\x00"])
def test_a_bad_settings_file_is_named(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rvc_spark.yaml").write_text(text)
    with pytest.raises(ConfigError, match="rvc_spark.yaml"):
        RVCConfig()


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="no_such_device"):
        RVCConfig(device="no_such_device").device_choice()


def test_precision_is_exact_unless_asked_and_says_why(monkeypatch):
    def chosen(precision: str) -> tuple[str, str]:
        choice = RVCConfig(device="cpu", precision=precision).precision_choice()
        return choice.value, choice.reason

    assert chosen("auto") == ("fp32", "exact") and chosen("exact") == ("fp32", "exact, as set")
    for has, half in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(rvc_config, "has_bf16", lambda device, has=has: has)
        assert chosen("fast")[0] == chosen("bf16")[0] == half
        assert "bfloat16" in chosen("fast")[1] and ("bfloat16" in chosen("bf16")[1]) == (not has)
        assert chosen("fp16")[0] == "fp32" and "fp16 is for CUDA" in chosen("fp16")[1]
        assert chosen("fp32") == ("fp32", "as set")


@pytest.mark.parametrize(
    ("name", "capability", "half"), [("Tesla T4", (7, 5), "fp16"), ("GTX 1660", (7, 5), "fp32"), ("P4", (6, 1), "fp32")]
)
def test_fast_on_a_gpu_is_what_its_tensor_cores_take(name, capability, half, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(RVCConfig, "device_choice", lambda self: Choice("cuda", name))
    choice = RVCConfig(precision="fast").precision_choice()
    assert choice.value == half and name in choice.reason
    assert RVCConfig(precision="bf16").precision_choice() == Choice("bf16", "as set")


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in repr(RVCConfig())
