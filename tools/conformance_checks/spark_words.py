"""Prompts and what the model answers; how the reference's server cuts a stream and its client pads and joins."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance_checks.record import Recorder
from conformance_checks.spark_folder import SparkRun, numbered
from conformance_checks.spark_limits import FLOAT64
from rvc_spark.triton_join import OverlapJoiner
from rvc_spark.tts import spark_reference
from rvc_spark.tts.spark_sampling import Sampling
from rvc_spark.tts.spark_settings import MAX_TOKENS
from rvc_spark.tts.spark_tokens import GENDERS, LEVELS, ControlVoice, SparkTokenizer, clone_prompt, control_prompt

SEMANTIC, GLOBAL = 8_192, 4_096
SIGNATURE = ["reference_wav", "reference_wav_len", "reference_text", "target_text"]
FLOAT32_JOIN = 2e-7  # ours joins in the samples' own float32, the reference in float64


def check_prompts(told: Any, run: SparkRun, record: Recorder) -> None:
    """Every prompt string, helper token and answer."""
    recorded = run.folder.document(told)
    tokens = recorded["clone_tokens"]
    for number, case in enumerate(recorded["clone"]):
        prompt = clone_prompt(case["text"], tokens["global_ids"], case["prompt_text"], tokens["semantic_ids"])
        record.same(f"clone {number}", prompt, case["prompt"])
        record.same(f"clone {number}, globals", case["global_shape"], [1, 1, len(tokens["global_ids"])])
    for number, case in enumerate(recorded["control"]):
        voice = ControlVoice(case["gender"], case["pitch"], case["speed"])
        record.same(f"control {number}", control_prompt(case["text"], voice), case["prompt"])
    for kind, values in recorded["parser"].items():
        for value, token in values.items():
            record.same(f"{kind} {value}", spark_reference.helper_token(kind, value), token)
    for name, table in recorded["maps"].items():
        record.same(f"map {name}", dict(spark_reference.TABLES[name]), table)
    record.same("levels, ours", LEVELS, recorded["maps"]["levels"])
    record.same("gender, ours", GENDERS, recorded["maps"]["gender"])
    tokenizer = codec_tokenizer(recorded)
    for number, case in enumerate(recorded["inference"]):
        check_answer(number, case, tokens, tokenizer, record)


def check_answer(number: int, case: Any, tokens: Any, tokenizer: SparkTokenizer, record: Recorder) -> None:
    """One generation: its prompt, its settings, and the tokens read out of what came back, as text and as ids."""
    options = case["kwargs"]
    if "gender" in options:
        prompt = control_prompt("Target", ControlVoice(options["gender"], options["pitch"], options["speed"]))
    else:
        prompt = clone_prompt("Target", tokens["global_ids"], options.get("prompt_text"), tokens["semantic_ids"])
    record.same(f"inference {number}, prompt", prompt, case["prompt"])
    record.same(f"inference {number}, settings", spark_reference.GENERATE, case["generate_kwargs"])
    ours, theirs = Sampling(), case["generate_kwargs"]
    record.same(
        f"inference {number}, our settings",
        [ours.temperature, ours.top_k, ours.top_p, MAX_TOKENS],
        [theirs[key] for key in ("temperature", "top_k", "top_p", "max_new_tokens")],
    )
    ids = tokenizer.encode(case["decoded_text"])
    read = spark_reference.parse_text(case["decoded_text"])
    both = {"text": read, "ids": (tokenizer.semantic_of(ids), tokenizer.globals_of(ids))}
    for way, (semantic, voice) in both.items():
        voice = voice if "gender" in options else tokens["global_ids"]
        record.same(f"inference {number}, semantic by {way}", semantic, case["semantic_arg"]["values"])
        record.same(f"inference {number}, globals by {way}", voice, case["global_arg"]["values"])
    record.same(f"inference {number}, semantic shape", case["semantic_arg"]["shape"], [1, len(read[0])])
    record.same(f"inference {number}, globals shape", case["global_arg"]["shape"], [1, len(voice)])


def codec_tokenizer(recorded: Any) -> SparkTokenizer:
    """A tokenizer that knows the codec's tokens and every helper token, and single letters besides."""
    from tokenizers import AddedToken, Tokenizer, models

    tokenizer = Tokenizer(models.BPE({chr(code): code for code in range(128)}, []))
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    names = [f"<|bicodec_global_{number}|>" for number in range(GLOBAL)]
    names += [f"<|bicodec_semantic_{number}|>" for number in range(SEMANTIC)]
    names += sorted({token for values in recorded["parser"].values() for token in values.values()})
    blocks = ("content", "style_label", "acoustic_token", "global_token", "semantic_token")
    names += [f"<|{edge}_{block}|>" for edge in ("start", "end") for block in blocks]
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    return SparkTokenizer(tokenizer)


def check_triton(told: Any, run: SparkRun, record: Recorder) -> None:
    """Schedule, padding, split and cross-fade."""
    recorded = run.folder.document("triton.json")
    for case in recorded["schedule"]:
        how = spark_reference.ReferenceChunking(case["chunk"], case["max_chunk"], case["scale"], case["overlap"])
        spans, sends = spark_reference.schedule(case["tokens"], how)
        name = f"{case['tokens']} tokens at {how.chunk:g}/{how.max_chunk:g}/{how.scale:g}/{how.overlap:g}"
        record.same(f"schedule of {name}", [list(span) for span in spans], case["spans"])
        record.same(f"sends of {name}", [list(send) for send in sends], case["sends"])
    for number, case in enumerate(recorded["padding"]):
        texts = case["reference_text"], case["target_text"]
        samples = spark_reference.padded_samples(case["wav_len"], *texts, case["padding"])
        kinds = zip(SIGNATURE, ("FP32", "INT32", "BYTES", "BYTES"), ([1, samples], [1, 1], [1, 1], [1, 1]), strict=True)
        record.same(f"padding {number}", [list(one) for one in kinds], case["inputs"])
        record.same(f"padding {number}, output", case["output"], "waveform")
    for case in recorded["split"]:
        sizes = spark_reference.split_sizes(case["n"], case["k"])
        record.same(f"split of {case['n']} over {case['k']}", sizes, case["sizes"])
    for number, case in numbered(recorded["crossfade"]):
        check_crossfade(number, case, run, record)


def check_crossfade(number: int, case: Any, run: SparkRun, record: Recorder) -> None:
    """The reference's join; and ours, equal to it wherever it plays nothing twice."""
    arrays = run.folder.arrays("crossfade")
    chunks = [arrays.given(f"chunk{number}_{part}") for part in range(len(case["lengths"]))]
    record.same(f"lengths{number}", [len(chunk) for chunk in chunks], case["lengths"])
    joined = spark_reference.crossfade(chunks, case["overlap_s"])
    record.against(arrays, f"out{number}", joined, FLOAT64)
    record.same(f"out{number}, type", str(joined.dtype), case["out_dtype"])
    record.same(f"out{number}, length", len(joined), case["out_len"])
    record.same(f"out{number}, seconds", len(joined) / spark_reference.SAMPLE_RATE, case["duration"])
    overlap = int(case["overlap_s"] * spark_reference.SAMPLE_RATE)
    ours = join(chunks, overlap)
    record.same(f"ours{number}, length", len(ours), sum(case["lengths"]) - overlap * (len(chunks) - 1))
    if all(length >= 2 * overlap for length in case["lengths"][1:]):
        error = float(np.abs(ours - joined).max())
        record.holds(f"ours{number}", error <= FLOAT32_JOIN, f"differs by {error:.2g}, {FLOAT32_JOIN:g} is allowed")


def join(chunks: list[np.ndarray], overlap: int) -> np.ndarray:
    """Our client's join of chunks as they come."""
    joiner = OverlapJoiner(overlap)
    return np.concatenate([*(joiner.push(chunk) for chunk in chunks), joiner.finish()])
