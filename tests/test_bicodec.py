"""The speech codec: how it loads, what it refuses, how far it sees. Its numbers stand in test_conformance_spark."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rvc_spark.errors import ConfigError, ModelFileError, NothingSpokenError, SpeechError
from rvc_spark.tts.bicodec import BiCodec, codec_precision, lay_out, load_bicodec
from rvc_spark.tts.bicodec_config import BiCodecConfig, PrenetSizes, WaveSizes
from rvc_spark.tts.bicodec_convnext import FeatureDecoder
from rvc_spark.tts.bicodec_wave import WaveGenerator
from rvc_spark.tts.bicodec_weights import fold_weight_norm
from tests.spark_maker import FULL, TINY, codec_config, codec_shapes, make_spark_folder

ROOT = Path(__file__).parents[1]
DECODING = ("quantizer.", "speaker_encoder.quantizer.", "speaker_encoder.project.", "prenet.", "decoder.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_spark_folder(tmp_path_factory.mktemp("spark"), features=False) / "BiCodec"


@pytest.fixture(scope="module")
def codec(folder) -> BiCodec:
    return load_bicodec(folder)


@pytest.fixture(scope="module")
def decode_only(folder) -> dict[str, torch.Tensor]:
    """The tensors decoding needs, which are few in a tiny codec."""
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith(DECODING)}


def write(path: Path, tensors: dict[str, torch.Tensor], config: dict | str | None = None) -> Path:
    """A BiCodec folder."""
    path.mkdir(exist_ok=True)
    config = {"audio_tokenizer": codec_config(TINY)} if config is None else config
    (path / "config.yaml").write_text(config if isinstance(config, str) else yaml.safe_dump(config), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


def tokens(codec: BiCodec, count: int, rows: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randint(codec.semantic_size, (rows, count), generator=generator)
    return semantic, torch.randint(codec.global_size, (rows, 1, codec.token_count), generator=generator)


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_the_published_sizes_and_how_far_they_see():
    codec = lay_out(BiCodecConfig.from_mapping(codec_config(FULL)))
    assert (codec.samples_per_token, codec.token_count) == (320, 32)
    assert (codec.semantic_size, codec.global_size) == (8192, 4096)
    assert (codec.reach, codec.prenet_reach, codec.wave_reach) == (67, 57, 10)
    assert sum(weight.numel() for weight in codec.parameters()) == pytest.approx(156.3e6, rel=0.001)
    normed = {name.removesuffix("_g") for name, _ in codec_shapes(FULL) if name.endswith("weight_g")}
    told = {name: shape for name, shape in codec_shapes(FULL) if not name.endswith(("weight_g", "weight_v"))}
    told |= {name.removesuffix("_v"): shape for name, shape in codec_shapes(FULL) if name.endswith("weight_v")}
    ours = {name: tuple(weight.shape) for name, weight in codec.state_dict().items()}
    passed_over = {name for name in told if name.endswith(("num_batches_tracked", "cluster_size"))}
    assert ours == {name: shape for name, shape in told.items() if name not in passed_over}
    assert normed <= ours.keys()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("mel_params", "n_fft", 10**9),
        ("mel_params", "sample_rate", 44_100),
        ("mel_params", "mel_fmin", float("nan")),
        ("mel_params", "win_length", 2_000),
        ("encoder", "vocos_num_layers", 10**6),
        ("encoder", "out_channels", 33),
        ("encoder", "vocos_dim", "wide"),
        ("encoder", "sample_ratios", [1] * 99),
        ("decoder", "rates", [8, 5, 4]),
        ("decoder", "kernel_sizes", [16, 10, 8, 4]),
        ("decoder", "channels", 24),
        ("decoder", "channels", True),
        ("quantizer", "codebook_size", 2**40),
        ("quantizer", "codebook_dim", 0),
        ("speaker_encoder", "fsq_levels", [256] * 8),
        ("speaker_encoder", "fsq_levels", [1, 4]),
        ("speaker_encoder", "token_num", -1),
        ("speaker_encoder", "latent_dim", 10**400),
        ("prenet", "condition_dim", 7),
        ("prenet", "use_tanh_at_final", "yes"),
        ("postnet", "vocos_dim", None),
    ],
)
def test_a_size_out_of_bounds_is_named(part, name, value):
    config = codec_config(TINY)
    config[part][name] = value
    with pytest.raises(ModelFileError) as caught:
        BiCodecConfig.from_mapping(config)
    assert part in str(caught.value) or name in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_part_that_is_missing_is_named_and_unknown_keys_are_not_minded():
    config = codec_config(TINY)
    config["quantizer"]["use_l2_normlize"] = "whatever"
    config["colour"] = "blue"
    BiCodecConfig.from_mapping(config)
    del config["prenet"]
    with pytest.raises(ModelFileError, match="prenet"):
        BiCodecConfig.from_mapping(config)


def test_a_codec_too_large_is_refused_before_any_weight_is_read(tmp_path, decode_only):
    config = codec_config(TINY)
    for part in ("encoder", "prenet", "postnet"):
        config[part] |= {"vocos_dim": 8192, "vocos_intermediate_dim": 8192, "vocos_num_layers": 64}
    with pytest.raises(ModelFileError, match=r"parameters, limit 1,000,000,000"):
        load_bicodec(write(tmp_path, decode_only, {"audio_tokenizer": config}))


# --- how far a token is heard ----------------------------------------------------------------------------------------


def changed(whole: torch.Tensor, other: torch.Tensor) -> tuple[int, int]:
    """First and last place along the last axis where two results differ."""
    places = (whole != other).flatten(0, -2).any(0).nonzero()
    return int(places[0]), int(places[-1])


def test_one_token_changes_the_samples_within_reach_and_no_other(codec):
    exact = copy.deepcopy(codec).double()  # so that what is far is small and not lost
    count = 2 * codec.reach + 9
    middle = count // 2
    semantic, voice = tokens(codec, count)
    other = semantic.clone()
    other[0, middle] = (other[0, middle] + 1) % codec.semantic_size
    frames, others = exact.prenet_frames(semantic, voice), exact.prenet_frames(other, voice)
    assert changed(frames, others) == (middle - codec.prenet_reach, middle + codec.prenet_reach)
    first, last = changed(exact.decoder(frames), exact.decoder(others))
    assert (first // 320, last // 320) == (middle - codec.reach, middle + codec.reach)
    one = frames.clone()
    one[0, :, middle] += 1.0
    first, last = changed(exact.decoder(frames), exact.decoder(one))
    assert (first // 320, last // 320) == (middle - codec.wave_reach, middle + codec.wave_reach)


@pytest.mark.parametrize("ratios", [(1, 1), (2, 2), (3, 1), (1, 4)])
def test_how_far_a_feature_decoder_sees_when_it_lengthens(ratios):
    torch.manual_seed(3)
    decoder = FeatureDecoder(PrenetSizes(6, 8, 12, 2, 5, sample_ratios=ratios)).double()
    for name, weight in decoder.named_parameters():
        torch.nn.init.uniform_(weight, 0.2, 0.9) if "gamma" in name else None
    x = torch.randn(1, 6, 61, dtype=torch.float64)
    other = x.clone()
    other[0, :, 30] += 1.0
    lengthened = ratios[0] * ratios[1]
    with torch.inference_mode():
        first, last = changed(decoder(x), decoder(other))
    heard = [frame for frame in range(61 * lengthened) if decoder.inputs_of(frame, frame)[0] <= 30]
    assert last <= max(heard)
    assert decoder.inputs_of(last, last)[0] <= 30 <= decoder.inputs_of(first, first)[1]
    assert max(heard) - last < 2 * lengthened  # counted, not guessed generously


def test_how_far_a_wave_generator_of_other_rates_sees():
    torch.manual_seed(4)
    network = WaveGenerator(WaveSizes(3, 8, (3, 2), (7, 4))).double()
    for module in network.modules():
        if hasattr(module, "alpha"):
            torch.nn.init.uniform_(module.alpha, 0.5, 1.5)
    x = torch.randn(1, 3, 41, dtype=torch.float64)
    other = x.clone()
    other[0, :, 20] += 1.0
    with torch.inference_mode():
        first, last = changed(network(x), network(other))
    heard = [n for n in range(41 * 6) if network.inputs_of(n, n)[0] <= 20 <= network.inputs_of(n, n)[1]]
    assert (first, last) == (heard[0], heard[-1])


def test_a_window_with_enough_context_gives_the_samples_of_the_whole(codec):
    semantic, voice = tokens(codec, 200, seed=2)
    whole = codec.detokenise(semantic, voice)
    for first, last in ((0, 50), (50, 51), (90, 140), (199, 200)):
        start, stop = max(0, first - codec.reach), min(200, last + codec.reach)
        part = codec.detokenise(semantic[:, start:stop], voice)[..., (first - start) * 320 : (last - start) * 320]
        assert (part - whole[..., first * 320 : last * 320]).abs().max() < 1e-5
    short = codec.detokenise(semantic[:, 90:140], voice)
    assert (short - whole[..., 90 * 320 : 140 * 320]).abs().max() > 1e-3  # without context it is another sound


def test_a_row_of_a_batch_is_what_it_is_alone(codec):
    semantic, voice = tokens(codec, 20, rows=3, seed=5)
    together = codec.detokenise(semantic, voice)
    assert together.shape == (3, 1, 6400) and together.dtype == torch.float32
    for row in range(3):
        alone = codec.detokenise(semantic[row : row + 1], voice[row : row + 1])
        assert (alone - together[row : row + 1]).abs().max() < 1e-5


def test_types_and_shapes(codec):
    features, clip = torch.randn(2, 7, TINY.features), torch.randn(2, 96_000)
    semantic, voice = codec.tokenise(features, clip)
    assert (semantic.dtype, semantic.shape) == (torch.int64, (2, 7))
    assert (voice.dtype, voice.shape) == (torch.int32, (2, 1, 32))
    assert torch.equal(codec.global_tokens(clip), voice)
    wave = codec.detokenise(semantic.int(), voice)
    assert torch.equal(wave, codec.detokenise(semantic, voice.long()))
    assert wave.abs().max() <= 1


# --- what callers may not do -----------------------------------------------------------------------------------------


def test_nothing_to_decode_is_told(codec):
    semantic, voice = tokens(codec, 3)
    with pytest.raises(NothingSpokenError):
        codec.detokenise(semantic[:, :0], voice)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda s, g: (s + 10_000, g), "semantic token is"),
        (lambda s, g: (s - 10_000, g), "semantic token is -"),
        (lambda s, g: (s, g + 4_096), "must be 0 to 4095"),
        (lambda s, g: (s, g[:, :, :31]), r"need \[1, 1, 32\]"),
        (lambda s, g: (s, g[0]), r"need \[1, 1, 32\]"),
        (lambda s, g: (s.expand(2, -1), g), r"need \[2, 1, 32\]"),
        (lambda s, g: (s[0], g), "semantic tokens have shape"),
        (lambda s, g: (s.float(), g), "whole numbers"),
    ],
)
def test_tokens_that_are_none_are_refused(codec, spoil, told):
    with pytest.raises(SpeechError, match=told):
        codec.detokenise(*spoil(*tokens(codec, 4)))


def test_recordings_that_are_none_are_refused(codec):
    for clip in (torch.randn(96_000), torch.randn(1, 512), torch.full((1, 2_000), float("nan"))):
        with pytest.raises(SpeechError):
            codec.global_tokens(clip)
    for features in (torch.randn(1, 0, 24), torch.randn(1, 5, 23), torch.full((1, 5, 24), float("inf"))):
        with pytest.raises(SpeechError):
            codec.semantic_tokens(features)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_each_choice_of_parts_does_its_share_and_refuses_the_rest(folder, codec):
    clip, features = torch.randn(1, 96_000), torch.randn(1, 9, TINY.features)
    semantic, voice = codec.tokenise(features, clip)
    parts = {name: load_bicodec(folder, parts=name) for name in ("decode", "encode", "speaker")}
    assert torch.equal(parts["decode"].detokenise(semantic, voice), codec.detokenise(semantic, voice))
    assert all(map(torch.equal, parts["encode"].tokenise(features, clip), (semantic, voice)))
    assert torch.equal(parts["speaker"].global_tokens(clip), voice)
    for name, refused in (
        ("decode", lambda part: part.global_tokens(clip)),
        ("decode", lambda part: part.semantic_tokens(features)),
        ("encode", lambda part: part.detokenise(semantic, voice)),
        ("speaker", lambda part: part.semantic_tokens(features)),
        ("speaker", lambda part: part.prenet_frames(semantic, voice)),
        ("speaker", lambda part: part.wave(torch.randn(1, TINY.width, 4))),
    ):
        with pytest.raises(ConfigError, match="loaded without"):
            refused(parts[name])


def test_every_spelling_of_weight_norm_is_the_same_codec(tmp_path, decode_only, codec):
    semantic, voice = tokens(codec, 12)
    want = codec.detokenise(semantic, voice)
    new, folded = dict(decode_only), dict(decode_only)
    for name in [name for name in decode_only if name.endswith("weight_g")]:
        stem = name.removesuffix("_g")
        gain, direction = new.pop(name), new.pop(f"{stem}_v")
        new[f"{stem.removesuffix('weight')}parametrizations.weight.original0"] = gain
        new[f"{stem.removesuffix('weight')}parametrizations.weight.original1"] = direction
        folded[stem] = fold_weight_norm(folded.pop(name), folded.pop(f"{stem}_v"))
    tables = {"spectrogram.window": torch.ones(640), "mel_scale.fb": torch.ones(513, 16)}
    tables = {f"mel_transformer.{name}": table for name, table in tables.items()}
    for number, tensors in enumerate((new, folded, decode_only | tables)):
        other = load_bicodec(write(tmp_path / str(number), tensors), parts="decode")
        assert torch.equal(other.detokenise(semantic, voice), want)


def test_a_transposed_convolution_is_normed_per_input_channel():
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(6, 4, 5), dim=0)
    gain, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    assert gain.shape == (6, 1, 1)
    assert (fold_weight_norm(gain, direction) - layer.weight).abs().max() < 1e-6


SPOILT = [
    (lambda t: t.pop("decoder.model.0.bias"), "decoder.model.0.bias is missing"),
    (lambda t: t.pop("decoder.model.0.weight_g"), "model.0.weight is missing"),
    (lambda t: t.update({"decoder.model.9.bias": torch.ones(3)}), "unknown tensor 'decoder.model.9.bias'"),
    (lambda t: t.update({"mel_transformer.other": torch.ones(3)}), "unknown tensor"),
    (lambda t: t.update({"encoder.encoder.embed.bias": torch.ones(3)}), "encoder.encoder.embed.bias has shape"),
    (lambda t: t.update({"prenet.linear.bias": torch.ones(33)}), "prenet.linear.bias has shape"),
    (lambda t: t.update({"prenet.linear.bias": torch.ones(32, dtype=torch.int32)}), "needs a float type"),
    (lambda t: t.update({"prenet.linear.bias": torch.full((32,), float("nan"))}), "not finite"),
    (lambda t: t.update({"decoder.model.0.weight_v": torch.zeros(32, 32, 7)}), "not finite"),
    (lambda t: t.update({"decoder.model.0.weight_g": torch.ones(32)}), "weight_g has shape"),
    (lambda t: t.update({"decoder.model.0.weight": torch.ones(32, 32, 7)}), "two spellings"),
]


@pytest.mark.parametrize(("spoil", "told"), SPOILT, ids=[told for _, told in SPOILT])
def test_a_spoilt_weight_file_is_refused_by_the_name_of_its_tensor(tmp_path, decode_only, spoil, told):
    tensors = dict(decode_only)
    spoil(tensors)
    with pytest.raises(ModelFileError) as caught:
        load_bicodec(write(tmp_path, tensors), parts="decode")
    assert told in str(caught.value)


def test_files_that_are_no_codec_are_refused(tmp_path, decode_only):
    with pytest.raises(ModelFileError, match=r"config\.yaml"):
        load_bicodec(tmp_path / "nowhere")
    place = write(tmp_path / "cut", decode_only)
    data = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match="cut off"):
        load_bicodec(place, parts="decode")
    (place / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="cannot be opened"):
        load_bicodec(place, parts="decode")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "audio_tokenizer: 3",
        "audio_tokenizer: {encoder: []}",
        "[" * 5_000,
        "a: &a [1]\naudio_tokenizer: [*a, *a]",
        "audio_tokenizer: !!python/object/apply:os.mkdir [canary]",
        "base_config: ../../config.yaml",
        "base_config: /etc/hostname",
        "base_config: config.yaml",
        "x: " + "9" * 60_000,
        "x" * 100_000,
        "\x00\x01",
    ],
)
def test_a_hostile_config_is_refused(tmp_path, decode_only, text):
    with pytest.raises(ModelFileError) as caught:
        load_bicodec(write(tmp_path, decode_only, text), parts="decode")
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "canary").exists() and not Path("canary").exists()


def test_a_config_may_build_on_another_in_its_folder(tmp_path, decode_only):
    whole = {"audio_tokenizer": codec_config(TINY)}
    place = write(tmp_path, decode_only, {"base_config": "base.yaml", "audio_tokenizer": {"postnet": {"vocos_dim": 8}}})
    (place / "base.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    config = load_bicodec(place, parts="decode").config
    assert config.postnet.vocos_dim == 8 and config.prenet.vocos_dim == TINY.vocos


def test_half_precision_on_a_cpu_becomes_float32_and_says_so(folder):
    codec = load_bicodec(folder, dtype=torch.bfloat16, parts="decode")
    assert {weight.dtype for weight in codec.parameters()} == {torch.float32}
    assert codec.precision.startswith("float32 (bfloat16")
    assert codec_precision("cuda", torch.float16) == (torch.float16, "float16")


def test_loading_imports_no_compiler_and_no_transformers(folder):
    """Both take seconds, which a server would spend at every start."""
    program = (
        "import sys; from pathlib import Path; from rvc_spark.tts.bicodec import load_bicodec\n"
        "import rvc_spark.tts.spark_features, rvc_spark.tts.spark_clip\n"
        "load_bicodec(Path(sys.argv[1])); print({'torch._dynamo', 'transformers', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "set()"
