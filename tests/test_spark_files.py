"""Spark-TTS without its networks: the checkpoint folder, the tokenizer, prompts, and voices on file."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path

import pytest
from safetensors import safe_open

from rvc_spark.errors import AssetError, ConfigError, ModelFileError, OutputError, TextError, VoiceTokensError
from rvc_spark.tts import spark_checkpoint
from rvc_spark.tts.spark_checkpoint import SparkFolder
from rvc_spark.tts.spark_settings import SparkSettings
from rvc_spark.tts.spark_tokens import (
    ControlVoice,
    Family,
    SparkTokenizer,
    check_words,
    clone_prompt,
    control_prompt,
    joined_transcript,
    load_tokenizer,
)
from rvc_spark.tts.spark_voice import SparkVoice, read_voice

GLOBALS = tuple(range(100, 132))


@pytest.fixture(scope="module")
def tokenizer(spark_folder: Path) -> SparkTokenizer:
    return load_tokenizer(spark_folder / "LLM")


# --- checkpoint folder -----------------------------------------------------------------------------------------------


def test_a_published_folder_is_complete(spark_folder):
    folder = SparkFolder(spark_folder).check()
    assert folder.missing() == [] and folder.has_features
    settings = folder.settings()
    assert (settings.ref_segment_duration, settings.latent_hop_length, settings.volume_normalize) == (6.0, 320, True)


def test_what_is_missing_is_named_with_the_way_to_get_it(spark_folder, tmp_path):
    with pytest.raises(AssetError, match=r"no Spark-TTS checkpoint at .*assets get spark --accept CC-BY-NC-SA-4\.0"):
        SparkFolder(tmp_path / "nothing").check()
    copy = tmp_path / "part"
    shutil.copytree(spark_folder, copy)
    (copy / "LLM" / "tokenizer.json").unlink()
    with pytest.raises(AssetError, match=r"LLM/tokenizer\.json missing"):
        SparkFolder(copy).check()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sample_rate: 24000\n", "sample_rate=24000"),
        ("ref_segment_duration: 1000\n", "ref_segment_duration=1000"),
        ("ref_segment_duration: .nan\n", "ref_segment_duration=nan"),
        ("latent_hop_length: true\n", "latent_hop_length=True"),
        ("volume_normalize: 7\n", "volume_normalize=7"),
        ("- 1\n", "not a mapping"),
        ("a: [\n", "cannot be read"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("base_config: ../../../etc/passwd\n", "outside its checkpoint folder"),
        ("!!python/object/apply:os.system [id]\n", "cannot be read"),
        ("x: " + "1" * 70_000, "70,003 bytes"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ModelFileError, match=words):
        SparkFolder(tmp_path).settings()


def test_a_base_file_lies_below(tmp_path):
    (tmp_path / "base.yaml").write_text("ref_segment_duration: 3\nlatent_hop_length: 160\n")
    (tmp_path / "config.yaml").write_text("base_config: base.yaml\nlatent_hop_length: 320\n")
    settings = SparkFolder(tmp_path).settings()
    assert (settings.ref_segment_duration, settings.latent_hop_length) == (3.0, 320)
    (tmp_path / "base.yaml").write_text("base_config: config.yaml\n")
    with pytest.raises(ModelFileError, match="yet another file"):
        SparkFolder(tmp_path).settings()


# --- tokenizer and prompts -------------------------------------------------------------------------------------------


def test_codec_tokens_are_found_where_the_tokenizer_has_them(tokenizer):
    assert tokenizer.semantic == Family(4374, 128) and tokenizer.glob == Family(278, 4096)
    prompt = clone_prompt("Grüße 你好 🙂", GLOBALS, "He said. ", [5, 6, 127])
    ids = tokenizer.encode(prompt)
    assert tokenizer.globals_of(ids) == list(GLOBALS) and tokenizer.semantic_of(ids) == [5, 6, 127]
    assert ids[0] == tokenizer.id_of("task_tts") and ids[-4] == tokenizer.id_of("start_semantic_token")


def test_what_may_follow_a_style_prompt_holds_no_codec_token(tokenizer):
    assert not set(tokenizer.style_ids) & (set(tokenizer.semantic.ids) | set(tokenizer.glob.ids))
    assert tokenizer.id_of("start_global_token") in tokenizer.style_ids


@pytest.mark.parametrize("mark", ["<|im_end|>", "<|task_tts|>", "<|bicodec_semantic_5|>", "<||>", "<|anything|>"])
def test_commands_in_a_text_are_refused(mark):
    with pytest.raises(TextError, match="obey as a command"):
        check_words(f"Hello {mark} there")


def test_bars_that_are_no_command_are_left_alone():
    assert check_words("a < b | c > d, <|not closed, f<|x") == "a < b | c > d, <|not closed, f<|x"


def test_a_transcript_gets_a_space_where_words_have_them():
    assert [joined_transcript(text) for text in ("", "Hi.", "Hi. ", "参考文本。")] == ["", "Hi. ", "Hi. ", "参考文本。"]


@pytest.mark.parametrize("wrong", [{"gender": "robot"}, {"pitch": "5"}, {"speed": "fast"}])
def test_unknown_attributes_of_a_voice_are_refused(wrong):
    with pytest.raises(ConfigError, match="Choose one of"):
        ControlVoice(**wrong)


def test_prompts_are_those_of_the_reference(golden_spark):
    told = json.loads((golden_spark / "prompts.json").read_text(encoding="utf-8"))
    made = told["clone_tokens"]
    for case in told["clone"]:
        prompt = clone_prompt(case["text"], made["global_ids"], case["prompt_text"], made["semantic_ids"])
        assert prompt == case["prompt"]
    for case in told["control"]:
        voice = ControlVoice(case["gender"], case["pitch"], case["speed"])
        assert control_prompt(case["text"], voice) == case["prompt"]




@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ("<|bicodec_semantic_7|>", "127 semantic tokens that are not consecutive"),
        ("<|bicodec_global_0|>", "global tokens that are not consecutive"),
        ("<|end_content|>", r"lacks <\|end_content\|>"),
    ],
)
def test_a_tokenizer_without_a_token_is_refused(spark_folder, tmp_path, drop, words):
    told = json.loads((spark_folder / "LLM" / "tokenizer.json").read_text(encoding="utf-8"))
    for entry in told["added_tokens"]:
        if entry["content"] == drop:
            entry["content"] = "<|something_else|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ModelFileError, match=words):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b"[1, 2]", b'{"version": "1.0", "model": null}'])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


# --- settings and pieces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_k": 2.5}, {"top_p": 0.0},
        {"seed": -1}, {"seed": 2**64}, {"max_tokens": 5_000}, {"max_chars": 5}, {"attempts": 0}, {"lookahead": True},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SparkSettings(**wrong)


def test_short_sentences_are_spoken_together():
    long = "This sentence is long enough to stand on its own, really. "
    pieces = SparkSettings().pieces("Yes. No. Maybe. " + long * 2)
    assert pieces[0].startswith("Yes. No. Maybe. This") and len(pieces) == 2


def test_pieces_of_wide_letters_are_short_and_lose_nothing():
    text = "今天天气很好我们去公园散步吧，" * 30 + "。"
    pieces = SparkSettings().pieces(text)
    assert "".join(pieces) == text and max(map(len, pieces)) <= 60


def test_the_limit_follows_the_text():
    settings = SparkSettings()
    limits = [settings.limit_for(text) for text in ("a", "hello there", "x" * 200, "1234567890", "好" * 60)]
    assert limits == sorted(limits[:3]) + limits[3:] and limits[0] > 150 and limits[3] > 3 * limits[0]
    assert max(limits) <= 3_000 and SparkSettings(max_tokens=7).limit_for("x" * 200) == 7


# --- voices on file --------------------------------------------------------------------------------------------------


def test_a_voice_survives_its_file_and_is_plain_safetensors(tmp_path):
    voice = SparkVoice(GLOBALS, (1, 2, 3), "Der Text – 你好", {"seconds": "6.00"})
    path = voice.save(tmp_path / "deep" / "anna.safetensors")
    back = read_voice(path)
    assert (back.global_tokens, back.semantic_tokens, back.transcript) == (GLOBALS, (1, 2, 3), "Der Text – 你好")
    assert "CC BY-NC-SA" in back.notes["licence"] and back.notes["seconds"] == "6.00"
    with safe_open(path, "np") as file:
        assert file.get_tensor("global_tokens").tolist() == list(GLOBALS)
        assert file.metadata()["transcript"] == "Der Text – 你好"
    assert [item.name for item in path.parent.iterdir()] == ["anna.safetensors"]


def test_a_voice_without_transcript_stays_without(tmp_path):
    """Empty and none are different prompts."""
    assert read_voice(SparkVoice(GLOBALS).save(tmp_path / "a.safetensors")).transcript is None
    assert read_voice(SparkVoice(GLOBALS, (1,), "").save(tmp_path / "b.safetensors")).transcript == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_tokens": GLOBALS[:31]}, {"global_tokens": (-1, *GLOBALS[1:])}, {"global_tokens": (1.5, *GLOBALS[1:])},
        {"semantic_tokens": (1,) * 3_001}, {"semantic_tokens": (True,)}, {"transcript": "x" * 2_001},
    ],
)  # fmt: skip
def test_tokens_that_are_no_voice_are_refused(wrong):
    with pytest.raises(VoiceTokensError, match="Enrol the speaker again"):
        SparkVoice(**{"global_tokens": GLOBALS, **wrong})


def test_a_voice_of_another_codec_is_refused():
    voice = SparkVoice(GLOBALS, (127,), "x")
    assert voice.fits(128, 4096) is voice
    with pytest.raises(VoiceTokensError, match="semantic token 127, this codec has 100"):
        voice.fits(100, 4096)
    with pytest.raises(VoiceTokensError, match="global token 120, this codec has 120"):
        voice.fits(128, 120)


def test_damaged_voice_files_are_refused_and_never_crash(tmp_path):
    whole = SparkVoice(GLOBALS, tuple(range(50)), "words").save(tmp_path / "v.safetensors").read_bytes()
    rng = random.Random(3)
    path = tmp_path / "broken.safetensors"
    refused = 0
    for _ in range(1_500):
        damaged = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.choice([0, 1, 3])):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_voice(path)
        except VoiceTokensError:
            refused += 1
    assert refused > 700


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63), struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 4) + b"null", b"", b"x" * 300_000,
        struct.pack("<Q", 60) + b'{"a":{"dtype":"I32","shape":[-1],"data_offsets":[4,0]}}     ',
    ],
)  # fmt: skip
def test_hostile_voice_files_are_refused(tmp_path, content):
    path = tmp_path / "v.safetensors"
    path.write_bytes(content)
    with pytest.raises(VoiceTokensError):
        read_voice(path)


def test_paths_that_are_no_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", "a\0b"):
        with pytest.raises(VoiceTokensError):
            read_voice(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        SparkVoice(GLOBALS).save(tmp_path / "file" / "v.safetensors")


def test_the_licence_is_told_where_the_weights_are_got():
    assert "CC BY-NC-SA 4.0" in spark_checkpoint.LICENCE_NOTE and "CC-BY-NC-SA-4.0" in spark_checkpoint.GET
