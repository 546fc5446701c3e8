"""Spark-TTS in process on a tiny checkpoint: enrol, speak, stream, the same to the last sample; and who is chosen."""

from __future__ import annotations

import shutil
import socket
import threading

import numpy as np
import pytest
import soundfile
import torch

from rvc_spark import rvc_init
from rvc_spark.audio import Audio, write_audio
from rvc_spark.errors import (
    AssetError,
    ConfigError,
    ModelFileError,
    SpeechError,
    TextError,
    TritonUnreachableError,
    VoiceTokensError,
)
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.tts.bicodec import load_bicodec
from rvc_spark.tts.choose import Speakers
from rvc_spark.tts.chunk_schedule import ChunkSchedule, ChunkSettings
from rvc_spark.tts.espeak import EspeakEngine
from rvc_spark.tts.spark import SparkEngine
from rvc_spark.tts.spark_decode import WindowedCodec
from rvc_spark.tts.spark_networks import SparkNetworks, choose_precision
from rvc_spark.tts.spark_settings import SparkSettings
from rvc_spark.tts.spark_tokens import ControlVoice
from rvc_spark.tts.spark_voice import SparkVoice, read_voice

TEXT = "Hello there, this is the first sentence of the text. And here comes the second one, a little longer than it."


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def config(spark_folder, tmp_path_factory) -> RVCConfig:
    return RVCConfig(spark=spark_folder, temp=tmp_path_factory.mktemp("temp"), triton_port=closed_port())


@pytest.fixture(scope="module")
def networks(config):
    networks = SparkNetworks(config)
    yield networks
    networks.close()


@pytest.fixture
def engine(networks, tmp_path) -> SparkEngine:
    return SparkEngine(SparkSettings(seed=1), folder=tmp_path / "voices", networks=networks)


@pytest.fixture(scope="module")
def recording() -> Audio:
    rng = np.random.default_rng(5)
    time = np.arange(3 * 24_000) / 24_000
    tone = sum(np.sin(2 * np.pi * 140 * number * time) / number for number in range(1, 12))
    return Audio((0.2 * tone * (1 + 0.5 * np.sin(2 * np.pi * 3 * time)) + 0.01 * rng.standard_normal(len(time))).astype(
        np.float32), 24_000)  # fmt: skip


# --- decoding in windows ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec(spark_folder):
    return load_bicodec(spark_folder / "BiCodec", parts="decode")


def joined(codec, tokens, settings: ChunkSettings, step: int = 1) -> np.ndarray:
    windowed = WindowedCodec(codec)
    decode = windowed.utterance(range(32))
    schedule = ChunkSchedule(settings, windowed.reach)
    sound = np.zeros(320 * len(tokens), np.float32)
    for known in range(step, len(tokens) + step, step):
        known = min(known, len(tokens))
        windows = schedule.push(known - schedule.known)
        for window in windows + (schedule.finish() if known == len(tokens) else []):
            sound[320 * window.keep_start : 320 * window.keep_stop] = decode(tokens[:known], window)
    return sound


@pytest.mark.parametrize("count", [1, 2, 40, 41, 90, 333])
@pytest.mark.parametrize(
    "settings",
    [
        ChunkSettings(), ChunkSettings(first_seconds=0.1, scale=1.0), ChunkSettings(first_seconds=0.5, scale=1.5),
        ChunkSettings(first_seconds=0.3, scale=2.0, overlap_seconds=0.1), ChunkSettings(max_seconds=0.02),
    ],
    ids=str,
)  # fmt: skip
def test_exact_streaming_is_the_whole_decode(codec, count, settings):
    tokens = np.random.default_rng(count).integers(0, 128, count).tolist()
    whole = codec.detokenise(torch.tensor(tokens)[None], torch.arange(32, dtype=torch.int32)[None, None])[0, 0].numpy()
    for step in (1, 7, 400):
        np.testing.assert_allclose(joined(codec, tokens, settings, step), whole, rtol=0, atol=1e-4)


def test_less_context_is_less_exact_and_more_is_better(codec):
    tokens = np.random.default_rng(0).integers(0, 128, 300).tolist()
    whole = codec.detokenise(torch.tensor(tokens)[None], torch.arange(32, dtype=torch.int32)[None, None])[0, 0].numpy()
    errors = [
        np.sqrt(np.mean((joined(codec, tokens, ChunkSettings(0.5, 1.0, context=context)) - whole) ** 2))
        for context in (0, 10, 20, codec.reach)
    ]
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[3] < 1e-5 and errors[0] > 0.01


# --- the engine ------------------------------------------------------------------------------------------------------


def test_the_voice_of_a_recording_is_spoken_from_its_file(engine, recording):
    result = engine.enroll([recording])
    assert result.success and result.sample_count == 1
    voice = read_voice(result.path)
    assert len(voice.global_tokens) == 32 and voice.transcript is None and "CC BY-NC-SA" in voice.notes["licence"]
    assert engine.enroll([recording]).path == result.path
    sound = engine.speak(result.path, TEXT)
    assert sound.rate == 16_000 and sound.frames % 320 == 0 and sound.samples.std() > 0.05


def test_a_transcript_keeps_the_speech_of_the_recording(engine, recording):
    voice = read_voice(engine.enroll([recording], transcript="What it says.").path)
    assert voice.transcript == "What it says." and len(voice.semantic_tokens) == 149  # 48,000 samples, conv by conv
    assert voice.global_tokens == read_voice(engine.enroll([recording]).path).global_tokens


def test_same_seed_same_sound_and_streams_join_to_it(networks, engine, recording):
    path = engine.enroll([recording]).path
    whole = engine.speak(path, TEXT).samples
    assert (engine.speak(path, TEXT).samples == whole).all()
    for chunks in (ChunkSettings(first_seconds=0.2, scale=1.5), ChunkSettings(first_seconds=60)):
        other = SparkEngine(SparkSettings(seed=1, chunks=chunks), networks=networks)
        stream = other.stream(path, TEXT)
        parts = [piece.samples for piece in stream]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
        assert stream.notes.seed == 1 and stream.notes.pieces == 2 and not stream.notes.warnings
        assert stream.notes.tokens * 320 + 3_200 == len(whole)
    assert len(SparkEngine(SparkSettings(seed=2), networks=networks).speak(path, TEXT).samples) != len(whole)


def test_sound_comes_before_the_tokens_end(networks, engine, recording):
    chunks = ChunkSettings(first_seconds=0.1, scale=1.0)
    stream = SparkEngine(SparkSettings(seed=1, chunks=chunks), networks=networks).stream(None, TEXT)
    parts = [piece.frames for piece in stream]
    assert parts[0] == 1_600 and len(parts) > 5


def test_a_voice_made_to_order_speaks_without_a_recording(networks):
    voices = [
        SparkEngine(SparkSettings(seed=seed), networks=networks, voice=ControlVoice("male", "low", "high"))
        for seed in (1, 1, 2)
    ]
    streams = [engine.stream(None, "Hello there.") for engine in voices]
    sounds = [np.concatenate([piece.samples for piece in stream]) for stream in streams]
    made = [stream.notes.voice.global_tokens for stream in streams]
    assert made[0] == made[1] != made[2] and (sounds[0] == sounds[1]).all()
    kept = SparkEngine(SparkSettings(seed=1), networks=networks, voice=streams[0].notes.voice)
    assert kept.speak(None, "Hello there.").samples.std() > 0.01
    assert "male, pitch low, speed high" in str(voices[0].choice)


def test_the_licence_travels_with_voice_choice_and_file(engine, tmp_path):
    result = engine.synthesize(None, "Hello there.", output=tmp_path / "said.flac")
    assert result.success and "CC BY-NC-SA 4.0" in soundfile.SoundFile(tmp_path / "said.flac").comment
    assert "CC BY-NC-SA 4.0" in str(engine.choice)


def test_several_texts_at_once_are_what_they_are_alone(networks):
    texts = [f"This is text number {number}, spoken at the same time as the others." for number in range(6)]
    engines = [SparkEngine(SparkSettings(seed=number), networks=networks) for number in range(6)]
    alone = [engine.speak(None, text).samples for engine, text in zip(engines, texts, strict=True)]
    together: list[np.ndarray | None] = [None] * 6

    def work(number: int) -> None:
        together[number] = engines[number].speak(None, texts[number]).samples

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4)


def test_closing_the_engine_ends_its_thread(config):
    before = threading.active_count()
    with SparkEngine(SparkSettings(seed=1), config=config) as engine:
        stream = engine.stream(None, TEXT)
        next(stream)
        stream.close()
        assert threading.active_count() > before
    assert threading.active_count() == before


# --- what is refused -------------------------------------------------------------------------------------------------


def test_recordings_that_cannot_be_enrolled_are_told(engine, recording, tmp_path):
    (tmp_path / "text.wav").write_text("not sound")
    for samples, transcript, words in (
        ([], None, "no recording"),
        ([tmp_path / "none.wav"], None, "none.wav"),
        ([tmp_path / "text.wav"], None, "text.wav"),
        ([recording, recording], "both", "2 recordings"),
        ([recording], "x" * 2_001, "2,001 characters"),
        ([recording], "say <|im_end|>", "obey as a command"),
        ([Audio(np.tile(recording.samples, 11), recording.rate)], "long", "up to 30 s"),
        ([Audio(recording.samples[:100], recording.rate)], None, "s"),
    ):
        result = engine.enroll(samples, transcript=transcript)
        assert not result.success and result.path is None and words in result.error


@pytest.mark.parametrize("text", ["", "🙂", "a <|task_tts|>", "\0"])
def test_texts_that_cannot_be_spoken_are_refused_at_once(engine, text):
    with pytest.raises(TextError):
        engine.stream(None, text)


def test_speaker_files_of_others_are_refused(engine, tmp_path, recording):
    (tmp_path / "v.json").write_text("{}")
    with pytest.raises(VoiceTokensError, match="Enrol the speaker again"):
        engine.stream(tmp_path / "v.json", TEXT)
    wrong = SparkVoice(tuple(range(32)), (5_000,), "x").save(tmp_path / "w.safetensors")
    with pytest.raises(VoiceTokensError, match="semantic token 5,000"):
        engine.stream(wrong, TEXT)


def test_a_folder_without_a_checkpoint_is_refused_with_the_way_to_get_it(tmp_path):
    with pytest.raises(AssetError, match="rvc-spark assets get spark --accept"):
        SparkEngine(config=RVCConfig(spark=tmp_path))


def test_a_transcript_needs_the_feature_network(spark_folder, tmp_path, recording):
    shutil.copytree(spark_folder, tmp_path / "part", ignore=shutil.ignore_patterns("wav2vec2*"))
    with SparkEngine(SparkSettings(seed=1), config=RVCConfig(spark=tmp_path / "part"), folder=tmp_path) as engine:
        assert engine.enroll([recording]).success
        assert "feature network" in engine.enroll([recording], transcript="x").error


@pytest.mark.parametrize(
    ("name", "cut"), [("BiCodec/model.safetensors", 1_000), ("LLM/model.safetensors", 5_000), ("LLM/config.json", 40)]
)
def test_damaged_checkpoints_are_refused(spark_folder, tmp_path, name, cut):
    folder = tmp_path / "damaged"
    shutil.copytree(spark_folder, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:cut])
    with SparkEngine(SparkSettings(seed=1), config=RVCConfig(spark=folder)) as engine, pytest.raises(ModelFileError):
        engine.stream(None, TEXT)


def test_half_precision_is_only_what_is_known_to_work():
    told = choose_precision(RVCConfig(precision="fp16"), "cpu")
    assert told.codec.value == "fp32" and told.language_model.value in ("bf16", "fp32")
    assert "garbage" in told.language_model.reason
    told = choose_precision(RVCConfig(), "cpu")
    assert told.codec == told.language_model == Choice("fp32", "exact")


# --- who speaks ------------------------------------------------------------------------------------------------------


def test_automatic_choice_on_a_bare_machine_is_the_embedded_engine(tmp_path):
    speakers = Speakers(RVCConfig(spark=tmp_path, triton_port=closed_port()))
    choice = speakers.choose()
    assert choice.value == "espeak" and "no Triton server at" in choice.reason
    assert "no Spark-TTS checkpoint" in choice.reason
    survey = speakers.survey()
    assert {name: state.value for name, state in survey.items()} == {
        "triton": "missing", "spark": "missing", "espeak": "ready",
    }  # fmt: skip
    engine, told = speakers.engine()
    assert isinstance(engine, EspeakEngine) and told.value == "espeak" and "no Triton" in told.reason


def test_a_checkpoint_without_a_gpu_waits_to_be_asked_for(config):
    speakers = Speakers(config)
    if not torch.cuda.is_available():
        assert speakers.choose().value == "espeak" and "slow on cpu" in speakers.choose().reason
    assert speakers.choose("spark") == Choice("spark", "as set")
    assert speakers.survey()["spark"].value == "ready"
    speakers.close()


def test_what_was_asked_for_is_never_replaced(config, tmp_path):
    with pytest.raises(TritonUnreachableError, match="no Triton server.*rvc-spark triton up"):
        Speakers(config).choose("triton")
    with pytest.raises(AssetError, match="assets get spark"):
        Speakers(RVCConfig(spark=tmp_path)).choose("spark")
    with pytest.raises(ConfigError, match="'bogus' is unknown"):
        Speakers(config).choose("bogus")
    with pytest.raises(ConfigError, match="has no setting 'voice'.*temperature"):
        Speakers(config).engine("spark", {"voice": "en-us"})
    with pytest.raises(ConfigError, match="has no setting 'temperature'"):
        Speakers(config).engine("espeak", {"temperature": 1.0})


def test_a_port_that_speaks_no_triton_is_not_taken_for_one(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        choice = Speakers(RVCConfig(spark=tmp_path, triton_port=server.getsockname()[1])).choose()
    assert choice.value == "espeak"


@pytest.fixture
def notebook(config):
    """The notebook's verbs on the tiny checkpoint."""
    rvc_init.init_rvc(config)
    yield
    rvc_init.init_rvc()


def test_the_verbs_speak_with_any_engine(notebook, recording, tmp_path):
    chosen = {"engine": "spark", "tts": {"seed": 3}}
    said = rvc_init.say("Hello there.", tmp_path / "said.wav", reference=recording, **chosen)
    assert said.engine.value == "spark" and "CC BY-NC-SA" in soundfile.SoundFile(said.path).comment
    pieces, why = rvc_init.stream_speech("Hello there.", reference=recording, **chosen)
    np.testing.assert_allclose(np.concatenate([piece.samples for piece in pieces]), said.audio.samples, atol=1e-4)
    assert why == said.engine
    enrolled = rvc_init.enroll([recording], engine="spark")
    again = rvc_init.say("Hello there.", reference=enrolled.path, **chosen)
    np.testing.assert_array_equal(again.audio.samples, said.audio.samples)
    speech = rvc_init.speak("Hello there.", tmp_path / "voice.wav", reference=enrolled.path, **chosen, f0_method="pm")
    assert speech.engines["tts"].value == "spark" and speech.audio.rate == 32_000
    np.testing.assert_array_equal(speech.source.samples, said.audio.samples)
    assert "CC BY-NC-SA" in soundfile.SoundFile(tmp_path / "voice.wav").comment


def test_the_embedded_engine_needs_and_writes_nothing(notebook, tmp_path):
    said = rvc_init.say("One. Two.", tmp_path / "said.wav", engine="espeak")
    assert said.licence == "" and said.audio.seconds > 0.5 and soundfile.SoundFile(said.path).comment == ""


def test_a_reference_needs_an_engine_that_can_use_it(notebook, recording, tmp_path):
    with pytest.raises(ConfigError, match="transcript"):
        rvc_init.say("One.", engine="espeak", reference=recording, transcript="x")
    with pytest.raises(ConfigError, match="without a recording"):
        rvc_init.say("One.", engine="spark", transcript="x")
    with pytest.raises(SpeechError, match="cannot be enrolled"):
        rvc_init.say("One.", engine="spark", reference=tmp_path / "none.wav")
    path = write_audio(tmp_path / "me.wav", recording)
    with pytest.raises(SpeechError, match="silent"):
        rvc_init.say("One.", engine="spark", reference=Audio(np.zeros(16_000, np.float32), 16_000))
    assert rvc_init.say("One.", engine="spark", reference=str(path), tts={"seed": 1}).audio.frames > 0
