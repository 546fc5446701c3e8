"""The language model computes what transformers' Qwen2ForCausalLM computes, and refuses files that are not one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rvc_spark.errors import ConfigError, ModelFileError
from rvc_spark.tts import spark_lm
from rvc_spark.tts.spark_lm import SparkLM, lm_dtype, lm_precision, load_lm
from rvc_spark.tts.spark_lm_cache import MaskedAttention, RowAttention
from rvc_spark.tts.spark_lm_config import LMConfig
from rvc_spark.tts.spark_lm_linear import Linear, can_pack

VOCAB = 300


def make_folder(path: Path, *, dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes) -> torch.nn.Module:
    """A tiny random Qwen2 saved by transformers, and the module itself."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "vocab_size": VOCAB, "tie_word_embeddings": True, "max_position_embeddings": 512,
        "rope_theta": 1e6,
    }  # fmt: skip
    model = Qwen2ForCausalLM(Qwen2Config(**(sizes | changes))).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and norms too, which start as zeros and ones
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(path, max_shard_size=shard)
    return model


def rewrite(folder: Path, **changes) -> None:
    """Change keys of config.json; None as a value is written, `...` removes the key."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    written = json.dumps({key: value for key, value in config.items() if value is not ...})
    file.write_text(written.replace(f'"{HUGE}"', "9" * 5000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lm")
    make_folder(path)
    return path


@pytest.fixture
def own(folder, tmp_path) -> Path:
    """A copy of the folder that a test may damage."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


@torch.inference_mode()
def stepwise(lm: SparkLM, ids: list[int], masked: bool) -> torch.Tensor:
    """Logits [T, vocab] read in two pieces of a prompt, then token by token, in slot 1 of 3."""
    cache = lm.new_cache(3, 100)
    hidden = [lm.prefill(cache, 1, ids[:7]), lm.prefill(cache, 1, ids[7:20], 7)]
    for at in range(20, len(ids)):
        if masked:
            positions = torch.tensor([cache.scratch, at, cache.scratch])
            hidden.append(lm(torch.tensor([0, ids[at], 0]), positions, MaskedAttention(cache, positions, 64))[1:2])
        else:
            hidden.append(lm(torch.tensor([ids[at]]), torch.tensor([at]), RowAttention(cache, [1], [at])))
    return lm.logits(torch.cat(hidden))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"head_dim": 32}],
    ids=str,
)
def test_logits_are_those_of_transformers(tmp_path, changes, masked) -> None:
    model = make_folder(tmp_path, **changes)
    ids = torch.randint(0, VOCAB, (45,), generator=torch.Generator().manual_seed(1))
    want = model(ids[None]).logits[0]
    got = stepwise(load_lm(tmp_path), ids.tolist(), masked)
    assert want.abs().max() > 1 and (got - want).abs().max() < 1e-5


def test_several_prompts_in_their_slots_do_not_mix(folder) -> None:
    from transformers import Qwen2ForCausalLM

    model, lm = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), load_lm(folder)
    prompts = [torch.randint(0, VOCAB, (length,)).tolist() for length in (5, 17, 33)]
    with torch.inference_mode():
        cache = lm.new_cache(4, 60)
        for slot, prompt in zip((2, 0, 3), prompts, strict=True):
            lm.prefill(cache, slot, prompt)
        for step in range(8):
            new = [(7 * step + row) % VOCAB for row in range(3)]
            at = [len(prompt) for prompt in prompts]
            got = lm.logits(lm(torch.tensor(new), torch.tensor(at), RowAttention(cache, (2, 0, 3), at)))
            for row, prompt in enumerate(prompts):
                prompt.append(new[row])
                assert (got[row] - model(torch.tensor([prompt])).logits[0, -1]).abs().max() < 1e-5


def test_rows_do_not_depend_on_their_number(folder) -> None:
    """What `spark_generate` promises on a CPU: to the last bit, at the published widths too."""
    generator = torch.Generator().manual_seed(2)
    for outputs, inputs in ((1152, 896), (896, 4864), (300, 64)):
        linear = Linear(torch.randn(outputs, inputs, generator=generator))
        if not linear.packed:
            pytest.skip("this torch has no blocked layout")
        x = torch.randn(8, inputs, generator=generator)
        alone = torch.cat([linear(row[None]) for row in x])
        for rows in (2, 3, 4, 5, 8):
            assert torch.equal(linear(x[:rows]), alone[:rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocked_and_plain_layouts_agree(dtype) -> None:
    weight, bias = torch.randn(96, 64).to(dtype), torch.randn(96).to(dtype)
    x = torch.randn(5, 64).to(dtype)
    got, want = Linear(weight, bias)(x).float(), Linear(weight, bias, pack=False)(x).float()
    assert (got - want).abs().max() <= (2e-5 if dtype == torch.float32 else 0.2)
    assert can_pack(weight) == Linear(weight).packed and not can_pack(weight.double())


def test_the_head_for_some_ids_gives_their_columns(folder) -> None:
    lm = load_lm(folder)
    hidden = torch.randn(3, 64)
    rows = lm.head((range(100, 120), 7, 110))
    assert rows.ids.tolist() == [7, *range(100, 120)] and lm.head((range(100, 120), 7, 110)) is rows
    assert (lm.logits(hidden, rows) - lm.logits(hidden)[:, rows.ids]).abs().max() < 1e-5
    for wrong in ((VOCAB,), (-1,), (range(0, VOCAB + 1),), (), (range(0),), (1.5,)):
        with pytest.raises(ConfigError):
            lm.head(wrong)
    kept = len(lm._sets)
    for first in range(20):
        lm.head((range(first, first + 3),))
    assert len(lm._sets) == spark_lm.MAX_HEAD_SETS > kept


def test_shards_and_other_types_of_file(tmp_path) -> None:
    from transformers import Qwen2ForCausalLM

    make_folder(tmp_path / "bf16", dtype=torch.bfloat16)
    want = Qwen2ForCausalLM.from_pretrained(tmp_path / "bf16", dtype=torch.float32).eval()
    make_folder(tmp_path / "shards", shard="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole = make_folder(tmp_path / "whole")
    ids = list(range(30))
    exact = whole(torch.tensor([ids])).logits[0]
    assert (stepwise(load_lm(tmp_path / "shards"), ids, False) - exact).abs().max() < 1e-5
    from_bf16 = stepwise(load_lm(tmp_path / "bf16"), ids, False)
    assert (from_bf16 - want(torch.tensor([ids])).logits[0]).abs().max() < 1e-5
    coarse = stepwise(load_lm(tmp_path / "whole", dtype=torch.bfloat16), ids, False).float()
    assert 0 < (coarse - exact).norm() / exact.norm() < 0.05
    fine = stepwise(load_lm(tmp_path / "whole", dtype=torch.float64), ids, False)
    assert fine.dtype == torch.float64 and (fine - exact).abs().max() < 1e-4


def test_rotations_are_read_as_every_transformers_writes_them(own) -> None:
    for changes in (
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_theta": ...},
        {"rope_parameters": ..., "rope_theta": 1000000, "rope_scaling": None},
        {"rope_parameters": ..., "rope_theta": 1e6, "rope_scaling": {"type": "default"}},
    ):
        rewrite(own, **changes)
        assert LMConfig.from_json(own / "config.json").rope_theta == 1e6


HUGE = "a number of 5000 digits"
HOSTILE = [
    {"model_type": "llama"}, {"model_type": ...}, {"architectures": ["Qwen2ForSequenceClassification"]},
    {"vocab_size": 10**12}, {"vocab_size": HUGE}, {"vocab_size": -1}, {"vocab_size": "300"}, {"vocab_size": 300.0},
    {"vocab_size": True}, {"vocab_size": ...}, {"hidden_size": None}, {"hidden_size": [64]}, {"hidden_size": 0},
    {"num_hidden_layers": 10**6}, {"num_attention_heads": 5}, {"num_key_value_heads": 3}, {"num_key_value_heads": 0},
    {"intermediate_size": 2**40}, {"rms_norm_eps": float("nan")}, {"rms_norm_eps": float("inf")}, {"rms_norm_eps": 0},
    {"rms_norm_eps": ...}, {"rope_parameters": {"rope_theta": float("nan"), "rope_type": "default"}},
    {"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}}, {"rope_parameters": [1]}, {"rope_parameters": ...},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": ..., "rope_theta": 1e6},
    {"hidden_act": "gelu"}, {"use_sliding_window": True}, {"layer_types": ["sliding_attention"] * 3},
    {"tie_word_embeddings": "yes"}, {"head_dim": 3}, {"head_dim": 10**9}, {"max_position_embeddings": 0},
    {"vocab_size": 1_000_000, "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8},
]  # fmt: skip


@pytest.mark.parametrize("changes", HOSTILE, ids=lambda changes: next(iter(changes)))
def test_hostile_configs_are_refused(own, changes) -> None:
    rewrite(own, **changes)
    with pytest.raises(ModelFileError) as caught:
        load_lm(own)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{" * 100_000, b"<html>", b" " * (1024**2 + 1)])
def test_configs_that_are_no_json_object_are_refused(own, content) -> None:
    (own / "config.json").write_bytes(content)
    with pytest.raises(ModelFileError):
        load_lm(own)


def test_weights_must_match_the_config_exactly(own) -> None:
    file = own / "model.safetensors"
    good = load_file(file)
    norm, down = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
    for change, said in (
        ({down: None}, "missing"),
        ({"model.layers.3.mlp.up_proj.weight": torch.zeros(96, 64)}, "unknown"),
        ({down: torch.zeros(96, 64)}, "shape"),
        ({norm: torch.zeros(64, dtype=torch.int32)}, "type"),
        ({norm: torch.full((64,), torch.nan)}, "finite"),
        ({down: torch.full((64, 96), torch.inf)}, "finite"),
        ({"lm_head.weight": torch.zeros(VOCAB, 64)}, "tied"),
    ):
        changed = {name: tensor for name, tensor in (good | change).items() if tensor is not None}
        save_file(changed, file)
        with pytest.raises(ModelFileError, match=said):
            load_lm(own)
    save_file(good | {"lm_head.weight": good["model.embed_tokens.weight"].clone()}, file)
    load_lm(own)  # some fine-tunes save both
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelFileError):
        load_lm(own)
    file.unlink()
    with pytest.raises(ModelFileError):
        load_lm(own)
    with pytest.raises(ModelFileError):
        load_lm(own / "nowhere")
    with pytest.raises(ModelFileError):
        load_lm("a\0b")


def test_a_number_too_large_for_the_type_asked_is_refused(own) -> None:
    tensors = load_file(own / "model.safetensors")
    tensors["model.norm.weight"][3] = 3.4028e38  # the largest bfloat16 is 3.39e38
    save_file(tensors, own / "model.safetensors")
    load_lm(own)
    with pytest.raises(ModelFileError, match="finite"):
        load_lm(own, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", 5, "."])
def test_an_index_names_files_of_its_folder_only(tmp_path, name) -> None:
    make_folder(tmp_path, shard="100KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ModelFileError):
        load_lm(tmp_path)


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path) -> None:
    make_folder(tmp_path, shard="100KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    names = sorted(set(content["weight_map"].values()))
    moved = content["weight_map"] | {"model.norm.weight": names[0]}
    for weight_map in (moved, {}, [], None, {f"t{n}": f"{n}.safetensors" for n in range(100)}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ModelFileError):
            load_lm(tmp_path)


def test_precision(folder, monkeypatch) -> None:
    monkeypatch.setattr(spark_lm, "has_bf16", lambda device: True)
    assert lm_precision("fp16", "cuda").value == lm_precision("auto", "cpu").value == "bf16"
    assert lm_precision("fp32", "cuda").value == lm_precision("exact", "cuda").value == "fp32"
    assert lm_precision("fast", "cuda").value == "bf16"
    monkeypatch.setattr(spark_lm, "has_bf16", lambda device: False)
    for asked in ("auto", "exact", "fast", "fp16", "bf16", "fp32"):
        choice = lm_precision(asked, "cpu")
        assert choice.value == "fp32" and choice.reason and lm_dtype(choice) == torch.float32
    with pytest.raises(ConfigError):
        lm_precision("int8", "cpu")
    with pytest.raises(ConfigError, match="garbage"):
        load_lm(folder, dtype=torch.float16)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert lm_precision("bf16", "cuda").value == "fp32"  # T4
    monkeypatch.setattr(torch, "cpu", SimpleNamespace())
    assert lm_precision("auto", "cpu").value == "fp32" == lm_precision("auto", "mps").value
