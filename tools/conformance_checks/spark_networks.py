"""The codec against the reference, part by part and whole, with weights made by rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from conformance_checks.folder import Arrays
from conformance_checks.limits import EXACT
from conformance_checks.record import Recorder
from conformance_checks.spark_folder import SparkRun, numbered
from conformance_checks.spark_limits import MARGIN, TABLE, WAVE, activation
from conformance_checks.spark_rule import tensor_of, uniform
from rvc_spark.tts.bicodec import lay_out
from rvc_spark.tts.bicodec_config import (
    BiCodecConfig,
    EncoderSizes,
    MelSizes,
    PrenetSizes,
    QuantizerSizes,
    SpeakerSizes,
    WaveSizes,
)
from rvc_spark.tts.bicodec_convnext import FeatureDecoder, FeatureEncoder, SamplingBlock
from rvc_spark.tts.bicodec_mel import MelFrontEnd, mel_filters
from rvc_spark.tts.bicodec_quantise import FactorizedQuantizer, ResidualScalarQuantizer, ScalarQuantizer
from rvc_spark.tts.bicodec_wave import WaveGenerator
from rvc_spark.tts.speaker import EcapaTdnn, Perceiver, SpeakerEncoder

Cases = Any  # what meta.json says of one fixture


def close(record: Recorder, arrays: Arrays, key: str, actual: torch.Tensor) -> None:
    """File a comparison of a network's result."""
    record.against(arrays, key, actual, activation(arrays.expected(key)))


def same_ids(record: Recorder, arrays: Arrays, key: str, actual: torch.Tensor, margin: str = "") -> None:
    """File a comparison of ids, exact wherever the decision was not a toss-up."""
    want, got = arrays.expected(key), actual.cpu().numpy()
    record.same(f"{key}, type", str(got.dtype), str(want.dtype))
    if margin:
        clear = arrays.given(margin).reshape(want.shape) > MARGIN
        got = np.where(clear, got, want) if got.shape == want.shape else got
    record.compare(key, got, want, EXACT)


def check_stored(run: SparkRun, record: Recorder, name: str, number: int, seed: int) -> None:
    """The weights that are stored beside the rule are the rule's."""
    stored = run.folder.tensors(f"{name}_w{number}")
    for key, tensor in (stored or {}).items():
        record.compare(f"w{number}.{key}", tensor_of(key, tuple(tensor.shape), seed), tensor.numpy(), EXACT)


def check_inner(record: Recorder, arrays: Arrays, number: int, seed: int) -> None:
    """The same for weights stored in the array file itself."""
    prefix = f"w{number}."
    for key in arrays.keys(prefix):
        want = arrays.expected(key)
        record.compare(key, tensor_of(key.removeprefix(prefix), want.shape, seed), want, EXACT)


def check_rule(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The rule weights are made by."""
    arrays = run.folder.arrays("weights_rule")
    seed = int(arrays.given("u01_seed"))
    record.compare("u01", uniform(seed, len(arrays.expected("u01"))), arrays.expected("u01"), EXACT)
    for number, (name, shape) in enumerate(told["tensors"]):
        record.compare(f"t{number}", tensor_of(name, tuple(shape), told["seed"]), arrays.expected(f"t{number}"), EXACT)


def check_fsq(told: Cases, run: SparkRun, record: Recorder) -> None:
    """Finite scalar quantisation and its inverse."""
    arrays = run.folder.arrays("fsq")
    for i, case in numbered(told):
        quantizer, z = ScalarQuantizer(case["levels"]), run.tensor(arrays, f"z{i}")
        codes, ids = quantizer(z)
        record.same(f"size{i}", quantizer.size, case["codebook_size"])
        close(record, arrays, f"out{i}", codes)
        close(record, arrays, f"bound{i}", quantizer.bound(z))
        same_ids(record, arrays, f"idx{i}", ids)
        every = torch.arange(len(arrays.expected(f"codes_of_all{i}")), device=run.device)
        close(record, arrays, f"codes_of_all{i}", quantizer.codes_of(every))


def check_residual_fsq(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The same in rows, between projections."""
    arrays = run.folder.arrays("residual_fsq")
    for i, case in numbered(told):
        network = ResidualScalarQuantizer(case["levels"], case["num_quantizers"], case["dim"])
        quantizer = run.ready(network, case["seed"])
        turned = (lambda x: x.transpose(1, 2)) if case["is_channel_first"] else (lambda x: x)
        x = turned(run.tensor(arrays, f"x{i}"))
        result, ids = quantizer(x)
        close(record, arrays, f"pre{i}", quantizer.project_in(x))
        close(record, arrays, f"q{i}", turned(result))
        margin = arrays.given(f"margin{i}")
        record.holds(f"margin{i}", bool((margin > MARGIN).all()), "the recording itself holds a toss-up")
        same_ids(record, arrays, f"idx{i}", turned(ids))
        close(record, arrays, f"rec{i}", quantizer.decode(ids))
        check_inner(record, arrays, i, case["seed"])


def check_factorized_vq(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The semantic codebook."""
    arrays = run.folder.arrays("factorized_vq")
    for i, case in numbered(told):
        sizes = QuantizerSizes(case["input_dim"], case["codebook_size"], case["codebook_dim"])
        quantizer = run.ready(FactorizedQuantizer(sizes), case["seed"], ("in_project", "out_project"))
        z = run.tensor(arrays, f"z{i}")
        ids = quantizer.tokenise(z)
        close(record, arrays, f"dists{i}", quantizer.distances(z).flatten(0, 1))
        for key in ("indices", "tok"):
            same_ids(record, arrays, f"{key}{i}", ids, f"margin{i}")
        for key in ("z_q", "detok", "detok_nowm"):
            close(record, arrays, f"{key}{i}", quantizer.detokenise(run.tensor(arrays, f"tok{i}")))
        check_inner(record, arrays, i, case["seed"])


def check_sampling_block(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The block that triples, up and down."""
    arrays = run.folder.arrays("sampling_block")
    for i, case in numbered(told):
        block = SamplingBlock(case["dim"], case["upsample_scale"], case["downsample_scale"], case["groups"])
        close(record, arrays, f"y{i}", run.ready(block, case["seed"])(run.tensor(arrays, f"x{i}")))
        check_inner(record, arrays, i, case["seed"])


def check_feat_encoder(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The feature encoder."""
    arrays = run.folder.arrays("feat_encoder")
    for i, case in numbered(told):
        encoder = run.ready(FeatureEncoder(_sizes(EncoderSizes, case)), case["seed"])
        x = run.tensor(arrays, f"x{i}")
        close(record, arrays, f"backbone{i}", encoder.encoder(x))
        close(record, arrays, f"y{i}", encoder(x))
        check_stored(run, record, "encoder", i, case["seed"])


def check_feat_decoder(told: Cases, run: SparkRun, record: Recorder) -> None:
    """Prenet and postnet."""
    arrays = run.folder.arrays("feat_decoder")
    for i, case in numbered(told):
        decoder = run.ready(FeatureDecoder(_sizes(PrenetSizes, case)), case["seed"])
        condition = run.tensor(arrays, f"c{i}") if f"c{i}" in arrays else None
        close(record, arrays, f"y{i}", decoder(run.tensor(arrays, f"x{i}"), condition))
        check_stored(run, record, "decoder", i, case["seed"])


def check_ecapa(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The speaker network."""
    arrays = run.folder.arrays("ecapa")
    for i, case in numbered(told):
        network = EcapaTdnn(case["feat_dim"], case["embed_dim"], case["channels"], case["global_context_att"])
        run.ready(network, case["seed"])
        mel = run.tensor(arrays, f"x{i}")
        first = network.layer1(mel.transpose(1, 2))
        latent = network(mel)
        close(record, arrays, f"layer1{i}", first)
        close(record, arrays, f"layer2{i}", network.layer2(first))
        close(record, arrays, f"latent{i}", latent)
        close(record, arrays, f"emb{i}", network.embedding(latent))


def check_perceiver(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The resampler of the speaker path."""
    arrays = run.folder.arrays("perceiver")
    for i, case in numbered(told):
        context = case["dim_context"] or case["dim"]
        network = run.ready(Perceiver(case["dim"], context, case["num_latents"], case["depth"]), case["seed"])
        close(record, arrays, f"y{i}", network(run.tensor(arrays, f"x{i}")))
        check_stored(run, record, "perceiver", i, case["seed"])


def check_speaker_encoder(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The whole speaker path from the mel spectrogram on."""
    arrays = run.folder.arrays("speaker_encoder")
    network = run.ready(SpeakerEncoder(_sizes(SpeakerSizes, told)), told["seed"])
    mel = run.tensor(arrays, "mel")
    gathered, tokens = network.gathered(mel), network.tokenise(mel)
    close(record, arrays, "perceiver_out", gathered)
    close(record, arrays, "fsq_pre", network.quantizer.project_in(gathered))
    same_ids(record, arrays, "tokens", tokens, "margin")
    close(record, arrays, "x_vector", network.speaker_encoder.embedding(network.speaker_encoder(mel)))
    for key in ("d_vector", "d_vector_detok"):
        close(record, arrays, key, network.detokenise(run.tensor(arrays, "tokens")))


def check_wave_generator(told: Cases, run: SparkRun, record: Recorder) -> None:
    """Frames to samples."""
    arrays = run.folder.arrays("wave_generator")
    for i, case in numbered(told):
        network = run.ready(WaveGenerator(_sizes(WaveSizes, case)), case["seed"], ("model.",))
        x = run.tensor(arrays, f"x{i}")
        first, block = network.model[0], network.model[1]
        close(record, arrays, f"pre{i}", first(x))
        close(record, arrays, f"block1{i}", block(first(x)))
        for key in ("y", "y_plain"):
            record.against(arrays, f"{key}{i}", network(x), WAVE)
        check_stored(run, record, "wavegen", i, case["seed"])


def check_mel(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The mel front end, its tables and its lengths."""
    arrays = run.folder.arrays("mel")
    wave = run.tensor(arrays, "wav")
    published, small = (MelFrontEnd(MelSizes(**told[name])) for name in ("published", "small"))
    close(record, arrays, "mel", published(wave))
    close(record, arrays, "mel_small", small(wave[:, :8000]))
    record.against(arrays, "fb", mel_filters(published.sizes), TABLE)
    record.against(arrays, "window", torch.hann_window(published.sizes.win_length), TABLE)
    frames = published(torch.zeros(1, 96_000, device=run.device)).shape[2]
    record.same("n96000_frames", frames, int(arrays.expected("n96000_frames")))


def check_bicodec_tiny(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The whole codec in small sizes."""
    check_codec("bicodec_tiny", told, run, record)


def check_bicodec_full(told: Cases, run: SparkRun, record: Recorder) -> None:
    """The whole codec in the published sizes: 156 million weights."""
    check_codec("bicodec_full", told, run, record)


def check_codec(name: str, told: Cases, run: SparkRun, record: Recorder) -> None:
    """Both directions of a codec, and what lies between."""
    arrays = run.folder.arrays(name)
    codec = run.ready(lay_out(BiCodecConfig.from_mapping(told["config"])), told["seed"], ("decoder.", "quantizer."))
    clip = run.tensor(arrays, "ref_wav")
    semantic, voice = codec.tokenise(run.tensor(arrays, "feat"), clip)
    close(record, arrays, "mel_head", codec.mel(clip)[:, :, : arrays.expected("mel_head").shape[2]])
    same_ids(record, arrays, "semantic", semantic, "semantic_margin")
    same_ids(record, arrays, "global_tokens", voice, "global_margin")
    given = run.tensor(arrays, "semantic"), run.tensor(arrays, "global_tokens")
    vector = codec.speaker_encoder.detokenise(given[1].long())
    prenet = codec.prenet_frames(*given) - vector[:, :, None]
    close(record, arrays, "d_vector", vector)
    close(record, arrays, "prenet_out", prenet[:, :, : arrays.expected("prenet_out").shape[2]])
    record.against(arrays, "wav", codec.detokenise(*given), WAVE)
    others = run.tensor(arrays, "semantic2"), run.tensor(arrays, "global2")
    record.against(arrays, "wav2", codec.detokenise(*others), WAVE)


def _sizes(kind: type, case: Cases) -> Any:
    """The sizes dataclass with what a case says of its fields."""
    told = {key: value for key, value in case.items() if key in kind.__dataclass_fields__}
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in told.items()})
