"""A Spark-TTS checkpoint folder in the published layout, with random weights: tiny for tests, full for benchmarks.

    python tests/spark_maker.py FOLDER --size full       about 4 GB, a minute

Names and shapes follow the published files, not the code under test, so a strict load proves the code's own. Sizes are
what differs. The language model has a constant in its first channel, so that it ends a sentence now and then.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

LEVELS = ("very_low", "low", "moderate", "high", "very_high")
TASKS = ("vc", "tts", "asr", "s2s", "t2s", "cap", "understand", "controllable_tts", "prompt_tts", "edit")
BLOCKS = ("content", "style_label", "style_prompt", "acoustic_token", "global_token", "semantic_token")
RATES, KERNELS = (8, 5, 4, 2), (16, 11, 8, 4)


@dataclass(frozen=True)
class Size:
    """Everything that differs between a tiny and the published checkpoint."""

    width: int  # of codec features
    vocos: int
    inner: int
    layers: int
    post_layers: int
    channels: int  # of the wave generator
    codebook: int
    mels: int
    latent: int
    features: int  # hidden size of wav2vec2, which is what the encoder takes
    feature_layers: int
    feature_heads: int
    feature_inner: int
    feature_conv: int
    base_words: int  # of the tokenizer before special tokens
    rows: int  # of the embedding
    hidden: int
    lm_layers: int
    heads: int
    kv_heads: int
    ffn: int


TINY = Size(32, 16, 32, 3, 2, 32, 128, 16, 16, 24, 18, 3, 40, 16, 256, 0, 32, 2, 4, 2, 64)
FULL = Size(
    1024, 384, 2048, 12, 6, 1536, 8192, 128, 128, 1024, 24, 16, 4096, 512, 151_643, 166_000, 896, 24, 14, 2, 4864
)
SIZES = {"tiny": TINY, "full": FULL}
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def make_spark_folder(
    path: Path, *, size: str = "tiny", seed: int = 0, end_bias: float = 1.2, features: bool = True
) -> Path:
    """Write the folder. end_bias: how much the language model leans to ending; features: with wav2vec2."""
    chosen = SIZES[size]
    rng = np.random.default_rng(seed)
    for name in ("BiCodec", "LLM"):
        (path / name).mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(
        "highpass_cutoff_freq: 40\nsample_rate: 16000\nsegment_duration: 2.4\nmax_val_duration: 12\n"
        "latent_hop_length: 320\nref_segment_duration: 6\nvolume_normalize: true\n"
    )
    (path / "BiCodec" / "config.yaml").write_text(yaml.safe_dump({"audio_tokenizer": codec_config(chosen)}))
    save_file(
        {name: _codec_tensor(name, shape, rng) for name, shape in codec_shapes(chosen)},
        path / "BiCodec" / "model.safetensors",
    )
    rows = write_tokenizer(path / "LLM", chosen)
    write_language_model(path / "LLM", chosen, rows, rng, end_bias)
    if features:
        write_features(path / "wav2vec2-large-xlsr-53", chosen, seed)
    return path


def codec_config(size: Size) -> dict:
    """BiCodec/config.yaml below its root key."""
    vocos = {"vocos_dim": size.vocos, "vocos_intermediate_dim": size.inner}
    return {
        "mel_params": {
            "sample_rate": 16000, "n_fft": 1024, "win_length": 640, "hop_length": 320, "mel_fmin": 10,
            "mel_fmax": None, "num_mels": size.mels,
        },
        "encoder": {
            "input_channels": size.features, **vocos, "vocos_num_layers": size.layers, "out_channels": size.width,
            "sample_ratios": [1, 1],
        },
        "decoder": {
            "input_channel": size.width, "channels": size.channels, "rates": list(RATES),
            "kernel_sizes": list(KERNELS),
        },
        "quantizer": {
            "input_dim": size.width, "codebook_size": size.codebook, "codebook_dim": 8, "commitment": 0.25,
            "codebook_loss_weight": 2.0, "use_l2_normlize": True, "threshold_ema_dead_code": 0.2,
        },
        "speaker_encoder": {
            "input_dim": size.mels, "out_dim": size.width, "latent_dim": size.latent, "token_num": 32,
            "fsq_levels": [4] * 6, "fsq_num_quantizers": 1,
        },
        "prenet": {
            "input_channels": size.width, **vocos, "vocos_num_layers": size.layers, "out_channels": size.width,
            "condition_dim": size.width, "sample_ratios": [1, 1], "use_tanh_at_final": False,
        },
        "postnet": {
            "input_channels": size.width, **vocos, "vocos_num_layers": size.post_layers, "out_channels": size.features,
            "use_tanh_at_final": False,
        },
    }  # fmt: skip


def codec_shapes(size: Size) -> Shapes:
    """Names and shapes of BiCodec/model.safetensors."""
    yield from _encoder(size)
    yield from _weight_normed("quantizer.in_project", (8, size.width, 1))
    yield from _weight_normed("quantizer.out_project", (size.width, 8, 1))
    yield "quantizer.codebook.weight", (size.codebook, 8)
    yield "quantizer.cluster_size", (size.codebook,)
    yield from _ecapa("speaker_encoder.speaker_encoder.", size)
    yield from _perceiver("speaker_encoder.perceiver_sampler.", size.latent)
    yield from _linear("speaker_encoder.quantizer.project_in", size.latent, 6)
    yield from _linear("speaker_encoder.quantizer.project_out", 6, size.latent)
    yield from _linear("speaker_encoder.project", size.latent * 32, size.width)
    yield from _feature_decoder("prenet.", size, size.layers, size.width, conditioned=True)
    yield from _feature_decoder("postnet.", size, size.post_layers, size.features, conditioned=False)
    yield from _wave_generator("decoder.model.", size)


def _linear(name: str, wide: int, out: int) -> Shapes:
    yield f"{name}.weight", (out, wide)
    yield f"{name}.bias", (out,)


def _conv(name: str, wide: int, out: int, kernel: int) -> Shapes:
    yield f"{name}.weight", (out, wide, kernel)
    yield f"{name}.bias", (out,)


def _weight_normed(name: str, shape: tuple[int, int, int], bias: int | None = None) -> Shapes:
    yield f"{name}.weight_g", (shape[0], 1, 1)
    yield f"{name}.weight_v", shape
    yield f"{name}.bias", (shape[0] if bias is None else bias,)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _batch_norm(name: str, width: int) -> Shapes:
    yield from _norm(name, width)
    yield f"{name}.running_mean", (width,)
    yield f"{name}.running_var", (width,)
    yield f"{name}.num_batches_tracked", ()


def _backbone(name: str, wide: int, size: Size, layers: int, condition: int | None = None) -> Shapes:
    yield from _conv(f"{name}embed", wide, size.vocos, 7)
    for place in ("norm", *(f"convnext.{number}.norm" for number in range(layers))):
        if condition is None:
            yield from _norm(f"{name}{place}", size.vocos)
        else:
            yield from _linear(f"{name}{place}.scale", condition, size.vocos)
            yield from _linear(f"{name}{place}.shift", condition, size.vocos)
    for number in range(layers):
        block = f"{name}convnext.{number}."
        yield f"{block}gamma", (size.vocos,)
        yield f"{block}dwconv.weight", (size.vocos, 1, 7)
        yield f"{block}dwconv.bias", (size.vocos,)
        yield from _linear(f"{block}pwconv1", size.vocos, size.inner)
        yield from _linear(f"{block}pwconv2", size.inner, size.vocos)
    yield from _norm(f"{name}final_layer_norm", size.vocos)


def _encoder(size: Size) -> Shapes:
    yield from _backbone("encoder.encoder.", size.features, size, size.layers)
    for number in (0, 1):
        yield from _backbone(f"encoder.downsample.{number}.1.", size.vocos, size, 2)
    yield from _linear("encoder.project", size.vocos, size.width)


def _feature_decoder(name: str, size: Size, layers: int, out: int, *, conditioned: bool) -> Shapes:
    yield from _linear(f"{name}linear_pre", size.width, size.vocos)
    for number in (0, 1):
        yield from _backbone(f"{name}downsample.{number}.1.", size.vocos, size, 2)
    yield from _backbone(f"{name}vocos_backbone.", size.vocos, size, layers, size.width if conditioned else None)
    yield from _linear(f"{name}linear", size.vocos, out)


def _ecapa(name: str, size: Size) -> Shapes:
    yield from _conv(f"{name}layer1.conv", size.mels, 512, 5)
    yield from _batch_norm(f"{name}layer1.bn", 512)
    for layer in (2, 3, 4):
        block = f"{name}layer{layer}.se_res2block."
        for place in (0, 2):
            yield from _conv(f"{block}{place}.conv", 512, 512, 1)
            yield from _batch_norm(f"{block}{place}.bn", 512)
        for number in range(7):
            yield from _conv(f"{block}1.convs.{number}", 64, 64, 3)
            yield from _batch_norm(f"{block}1.bns.{number}", 64)
        yield from _linear(f"{block}3.linear1", 512, 128)
        yield from _linear(f"{block}3.linear2", 128, 512)
    yield from _conv(f"{name}conv", 1536, 1536, 1)
    yield from _conv(f"{name}pool.linear1", 4608, 128, 1)
    yield from _conv(f"{name}pool.linear2", 128, 1536, 1)
    yield from _batch_norm(f"{name}bn", 3072)
    yield from _linear(f"{name}linear", 3072, size.width)


def _perceiver(name: str, dim: int) -> Shapes:
    inner = int(dim * 4 * 2 / 3)
    yield f"{name}latents", (32, dim)
    yield from _linear(f"{name}proj_context", 1536, dim)
    for layer in (0, 1):
        yield f"{name}layers.{layer}.0.to_q.weight", (512, dim)
        yield f"{name}layers.{layer}.0.to_kv.weight", (1024, dim)
        yield f"{name}layers.{layer}.0.to_out.weight", (dim, 512)
        yield from _linear(f"{name}layers.{layer}.1.0", dim, 2 * inner)
        yield from _linear(f"{name}layers.{layer}.1.2", inner, dim)
    yield f"{name}norm.gamma", (dim,)


def _wave_generator(name: str, size: Size) -> Shapes:
    wide = size.channels
    yield from _weight_normed(f"{name}0", (wide, size.width, 7))
    for number, kernel in enumerate(KERNELS, 1):
        block, out = f"{name}{number}.block.", wide // 2
        yield f"{block}0.alpha", (1, wide, 1)
        yield from _weight_normed(f"{block}1", (wide, out, kernel), bias=out)
        for unit in (2, 3, 4):
            yield f"{block}{unit}.block.0.alpha", (1, out, 1)
            yield from _weight_normed(f"{block}{unit}.block.1", (out, out, 7))
            yield f"{block}{unit}.block.2.alpha", (1, out, 1)
            yield from _weight_normed(f"{block}{unit}.block.3", (out, out, 1))
        wide = out
    yield f"{name}5.alpha", (1, wide, 1)
    yield from _weight_normed(f"{name}6", (1, wide, 7))


def _codec_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """Scales that keep the signal at a useful level through all layers."""
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    noise = rng.uniform(-1, 1, shape).astype(np.float32)
    if last == "cluster_size":
        noise *= 0
    elif last in ("running_var", "alpha"):
        noise = 1 + 0.5 * noise
    elif last == "weight_g":
        noise = 0.7 + 0.175 * noise
    elif last == "gamma":
        noise = 0.75 + 0.25 * noise
    elif last in ("running_mean", "bias"):
        noise *= 0.1
    elif last == "weight" and len(shape) == 1:
        noise = 1 + 0.25 * noise
    elif last != "latents" and "codebook" not in name and len(shape) > 1:
        noise *= np.float32(np.sqrt(3 / np.prod(shape[1:])))
    return torch.from_numpy(np.ascontiguousarray(noise, np.float32))


def added_tokens(size: Size) -> list[str]:
    """The tokens Spark-TTS adds to its base tokenizer, in their order."""
    families = (
        ("bicodec_global", 4096), ("bicodec_semantic", size.codebook), ("pitch_value", 1001), ("pitch_var_value", 11),
        ("pitch_label", 5), ("pitch_var_label", 5), ("speed_value", 11), ("speed_label", 5), ("loudness_value", 31),
        ("loudness_label", 5), ("age", 5), ("gender", 3), ("emotion", 101),
    )  # fmt: skip
    names = [f"{family}_{number}" for family, count in families for number in range(count)]
    names += [f"task_{task}" for task in TASKS]
    names += [f"{edge}_{block}" for edge in ("start", "end") for block in BLOCKS]
    return [f"<|{name}|>" for name in names]


def write_tokenizer(folder: Path, size: Size) -> int:
    """Byte-level tokenizer with the added tokens at the published distance; returns the rows of the embedding."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: number for number, letter in enumerate(letters)}
    for number in range(len(words), size.base_words):
        words[f"\u0120unused{number}"] = number
    tokenizer = Tokenizer(models.BPE(words, [], fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|reserved_{number}|>" for number in range(19))]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    names = added_tokens(size)
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    tokenizer.save(str(folder / "tokenizer.json"))
    count = tokenizer.get_vocab_size(with_added_tokens=True)
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps({name: tokenizer.token_to_id(name) for name in names}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": special[0]}))
    told = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": special[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return max(size.rows, -(-count // 64) * 64)


def write_language_model(folder: Path, size: Size, rows: int, rng: np.random.Generator, end_bias: float) -> None:
    """A Qwen2 model with tied embeddings. Channel 0 carries a constant through all layers."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": size.hidden,
        "num_hidden_layers": size.lm_layers, "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads,
        "intermediate_size": size.ffn, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "max_position_embeddings": 32768, "vocab_size": rows, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "bos_token_id": end - 2, "eos_token_id": end, "attention_dropout": 0.0, "initializer_range": 0.02,
        "max_window_layers": 21, "sliding_window": 32768, "use_cache": True, "use_sliding_window": False,
        "transformers_version": "4.43.1",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end], "pad_token_id": end - 2}))
    tensors = {
        name: _lm_tensor(name, shape, rng, size.hidden) for name, shape in language_model_shapes(size, rows)
    }
    embedding = tensors["model.embed_tokens.weight"]
    embedding[:, 0] = 1.0
    embedding[end, 0] = 1.0 + end_bias
    for silent in ("<|start_semantic_token|>", "<|end_semantic_token|>"):
        embedding[tokenizer.token_to_id(silent), 0] = 0.0  # a real model puts them in their places only
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def language_model_shapes(size: Size, rows: int) -> Shapes:
    """Names and shapes of LLM/model.safetensors."""
    head = size.hidden // size.heads
    yield "model.embed_tokens.weight", (rows, size.hidden)
    for number in range(size.lm_layers):
        layer = f"model.layers.{number}."
        for name, heads in (("q", size.heads), ("k", size.kv_heads), ("v", size.kv_heads)):
            yield from _linear(f"{layer}self_attn.{name}_proj", size.hidden, heads * head)
        yield f"{layer}self_attn.o_proj.weight", (size.hidden, size.heads * head)
        yield f"{layer}mlp.gate_proj.weight", (size.ffn, size.hidden)
        yield f"{layer}mlp.up_proj.weight", (size.ffn, size.hidden)
        yield f"{layer}mlp.down_proj.weight", (size.hidden, size.ffn)
        yield f"{layer}input_layernorm.weight", (size.hidden,)
        yield f"{layer}post_attention_layernorm.weight", (size.hidden,)
    yield "model.norm.weight", (size.hidden,)


def _lm_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator, hidden: int) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    noise = torch.from_numpy(rng.standard_normal(shape, np.float32))
    if name.endswith("bias"):
        return noise * 0.1
    if "embed_tokens" in name:
        return noise * (2.4 / hidden**0.5)
    # Sharp attention: what is said then depends on every letter of the prompt, so that a wrong prompt shows.
    noise *= (3.0 if "q_proj" in name or "k_proj" in name else 1.0) / shape[1] ** 0.5
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        noise[0] = 0.0  # leaves the constant alone
    return noise


def feature_config(size: Size) -> dict:
    """wav2vec2-large-xlsr-53/config.json."""
    tiny = size is TINY
    return {
        "architectures": ["Wav2Vec2ForPreTraining"], "model_type": "wav2vec2", "hidden_size": size.features,
        "num_hidden_layers": size.feature_layers, "num_attention_heads": size.feature_heads,
        "intermediate_size": size.feature_inner, "conv_dim": [size.feature_conv] * 7,
        "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "num_feat_extract_layers": 7,
        "feat_extract_norm": "layer", "feat_extract_activation": "gelu", "hidden_act": "gelu", "conv_bias": True,
        "do_stable_layer_norm": True, "num_conv_pos_embeddings": 16 if tiny else 128,
        "num_conv_pos_embedding_groups": 4 if tiny else 16, "layer_norm_eps": 1e-05, "vocab_size": 32,
    }  # fmt: skip


def feature_shapes(size: Size) -> Shapes:
    """Names and shapes of the published pytorch_model.bin, heads of the training included."""
    config = feature_config(size)
    conv, wide = size.feature_conv, size.features
    for number, kernel in enumerate(config["conv_kernel"]):
        layer = f"feature_extractor.conv_layers.{number}."
        yield from _conv(f"{layer}conv", 1 if number == 0 else conv, conv, kernel)
        yield from _norm(f"{layer}layer_norm", conv)
    yield from _norm("feature_projection.layer_norm", conv)
    yield from _linear("feature_projection.projection", conv, wide)
    kernel, groups = config["num_conv_pos_embeddings"], config["num_conv_pos_embedding_groups"]
    yield "encoder.pos_conv_embed.conv.weight_g", (1, 1, kernel)
    yield "encoder.pos_conv_embed.conv.weight_v", (wide, wide // groups, kernel)
    yield "encoder.pos_conv_embed.conv.bias", (wide,)
    yield from _norm("encoder.layer_norm", wide)
    for number in range(size.feature_layers):
        layer = f"encoder.layers.{number}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{layer}attention.{name}", wide, wide)
        yield from _norm(f"{layer}layer_norm", wide)
        yield from _linear(f"{layer}feed_forward.intermediate_dense", wide, size.feature_inner)
        yield from _linear(f"{layer}feed_forward.output_dense", size.feature_inner, wide)
        yield from _norm(f"{layer}final_layer_norm", wide)
    yield "masked_spec_embed", (wide,)


def write_features(folder: Path, size: Size, seed: int) -> None:
    """wav2vec2 as published: config, preprocessor and a torch pickle of Wav2Vec2ForPreTraining's names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed + 1)
    state = {f"wav2vec2.{name}": _codec_tensor(name, shape, rng) for name, shape in feature_shapes(size)}
    state["quantizer.codevectors"] = torch.zeros(1, 4, 8)
    state["project_q.weight"] = torch.zeros(4, 8)
    state["project_q.bias"] = torch.zeros(4)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(feature_config(size), indent=1))
    preprocessor = {"do_normalize": True, "feature_size": 1, "padding_value": 0, "sampling_rate": 16000}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_spark_folder(options.folder, size=options.size, seed=options.seed)
