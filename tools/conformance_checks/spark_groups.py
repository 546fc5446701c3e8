"""The fixtures of a Spark-TTS set, each a group, and how one is run: its checks, then what nobody compared."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import torch

from conformance_checks.record import Group, Recorder
from conformance_checks.spark_folder import SparkRun

MODULES = {  # fixture of meta.json -> the module with its check
    "weights_rule": "networks",
    "fsq": "networks",
    "residual_fsq": "networks",
    "factorized_vq": "networks",
    "sampling_block": "networks",
    "ecapa": "networks",
    "perceiver": "networks",
    "speaker_encoder": "networks",
    "feat_encoder": "networks",
    "feat_decoder": "networks",
    "wave_generator": "networks",
    "mel": "networks",
    "bicodec_tiny": "networks",
    "bicodec_full": "networks",
    "wav2vec2_mix": "sound",
    "ref_clip": "sound",
    "volume": "sound",
    "load_audio": "sound",
    "prompts": "words",
    "triton": "words",
}
SPARK_FILES = "set"  # the group of the set itself
SPARK_GROUPS = (*MODULES, SPARK_FILES)


def run_spark_groups(run: SparkRun, only: tuple[str, ...]) -> Iterator[Group]:
    """Each wanted group when it is done; all of them if `only` is empty, and then what no check looked at."""
    wanted = [name for name in MODULES if not only or name in only]
    for name in wanted:
        yield run_spark_group(run, name)
    if not only or SPARK_FILES in only:
        yield check_set(run, complete=len(wanted) == len(MODULES))


def run_spark_group(run: SparkRun, name: str) -> Group:
    """The checks of one fixture. A set that lacks it fails it."""
    told = run.folder.fixtures.get(name)
    group = Group(name, cases=len(told) if isinstance(told, list) else 1)
    with Recorder(group, name) as record, torch.inference_mode():
        if told is None:
            record.fail("fixture", "is not in meta.json")
        else:
            check_of(name)(told, run, record)
    return group


def check_of(name: str) -> Callable:
    """The check of a fixture, imported when needed: a library that lacks a part fails that part's cases only."""
    module = importlib.import_module(f"conformance_checks.spark_{MODULES[name]}")
    return getattr(module, "check_rule" if name == "weights_rule" else f"check_{name}")


def check_set(run: SparkRun, complete: bool) -> Group:
    """Fixtures nobody knows; after a complete run also files and arrays nobody asked for."""
    group = Group(SPARK_FILES, cases=len(run.folder.fixtures))
    with Recorder(group, SPARK_FILES) as record:
        for name in run.folder.fixtures:
            record.holds(name, name in MODULES, "is a fixture that no group checks")
        if complete:
            for name in run.folder.unopened():
                record.fail(name, "no check opened it")
            for arrays in run.folder.used_arrays():
                missed = ", ".join(arrays.untouched())
                record.holds(arrays.name, not missed, f"unchecked arrays, which no check compared: {missed}")
    return group
