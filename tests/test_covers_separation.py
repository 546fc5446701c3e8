"""Separation with the real network class in the published file form, tiny and made here; MDX-Net with a tiny file."""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from rvc_spark.covers import separation_model
from rvc_spark.covers.overlap_add import Pieces, overlap_add
from rvc_spark.covers.separation import Level, load_separator
from rvc_spark.covers.separation_model import load_htdemucs, read_bag
from rvc_spark.errors import MissingPackageError, SeparatorFileError

pytest.importorskip("demucs", reason="pip install 'rvc-spark[covers]'")
tiny = importlib.import_module("tiny_separator")


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((2, frames)) + 0.02).astype(np.float32)


def blocks(sound: np.ndarray, size: int):
    return (sound[:, at : at + size] for at in range(0, sound.shape[1], size))


def separated(separator, sound: np.ndarray, size: int = 7_001) -> tuple[np.ndarray, np.ndarray, list[float]]:
    parts, fractions = [], []
    for fraction, *pair in separator.steps(blocks(sound, size), sound.shape[1], Level.of(blocks(sound, size))):
        fractions.append(fraction)
        parts += [pair] if pair[0] is not None else []
    vocals, band = (np.concatenate(pieces, axis=1) for pieces in zip(*parts, strict=True))
    return vocals, band, fractions


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def separator(folder: Path):
    return load_separator(folder, "htdemucs", "cpu")


@pytest.mark.parametrize("frames", [1, 1_000, 34_398, 80_001])
def test_the_stems_add_up_to_the_song_and_are_what_demucs_makes(separator, frames: int) -> None:
    from demucs.apply import apply_model

    sound = noise(frames)
    vocals, band, fractions = separated(separator, sound)
    assert vocals.shape == band.shape == sound.shape and vocals.dtype == np.float32
    assert np.abs(vocals + band - sound).max() <= 2**-24, "-140 dB"
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    if frames > 1:
        level = Level.of([sound])
        given = torch.from_numpy((sound - level.mean) / level.std).float()[None]
        (network, _), *_ = separator._networks
        whole = apply_model(network, given, shifts=0, overlap=0.25)[0, 3].numpy() * level.std + level.mean
        assert np.abs(vocals - whole).max() < 1e-4 * whole.std()


def test_how_the_song_comes_in_changes_nothing(separator) -> None:
    sound = noise(50_000)
    first, second = (separated(separator, sound, size)[0] for size in (1_000, 50_000))
    assert np.array_equal(first, second)


def test_closing_ends_the_work(separator) -> None:
    asked = []
    sound = noise(200_000)
    steps = separator.steps((asked.append(1) or block for block in blocks(sound, 1_000)), 200_000, Level(0.0, 0.1))
    next(steps)
    steps.close()
    assert len(asked) < 60


def test_silence_stays_silent_enough_and_finite(separator) -> None:
    vocals, band, _ = separated(separator, np.zeros((2, 40_000), np.float32))
    assert np.abs(vocals).max() < 1e-4 and np.array_equal(vocals, -band)


def test_of_four_networks_only_the_one_for_vocals_is_loaded(tmp_path: Path) -> None:
    folder = tiny.make_model(tmp_path, "htdemucs_ft")
    for name in ("f7e0c4bc", "d12395a8", "92cfc3b6"):
        (folder / f"{name}.safetensors").unlink()
    best = load_separator(folder, "htdemucs_ft", "cpu")
    assert [path.stem for path in best.files] == ["04573f0d"] and len(best.left_out) == 3
    alone = tiny.make_network(3)
    for left, right in zip(best._networks[0][0].parameters(), alone.parameters(), strict=True):
        assert torch.equal(left, right.half().float())


def test_several_networks_are_averaged_by_their_shares(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        tiny.write_network(tmp_path / f"{name}.safetensors", tiny.make_network(seed))
        (tmp_path / f"{name}.yaml").write_text(f"models: [{name}]\n")
    (tmp_path / "both.yaml").write_text("models: [a, b]\nweights: [[0, 0, 0, 1], [0, 0, 0, 3]]\n")
    sound = noise(30_000)
    first, second, both = (separated(load_separator(tmp_path, name, "cpu"), sound)[0] for name in ("a", "b", "both"))
    assert np.abs(both - (0.25 * first + 0.75 * second)).max() < 1e-6


def test_nothing_is_downloaded_imported_or_unpickled(folder: Path, monkeypatch) -> None:
    def forbidden(*given, **named):
        raise AssertionError(f"called with {given}")

    import socket

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    monkeypatch.setattr("demucs.hf.load_safetensors_model", forbidden)
    monkeypatch.setattr("demucs.pretrained.get_model", forbidden)
    assert load_separator(folder, "htdemucs", "cpu").segment == 34_398


def altered(folder: Path, tmp_path: Path, change) -> Path:
    """The tiny file with another header."""
    data = (folder / "955717e8.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header["__metadata__"])
    head = json.dumps(header).encode()
    path = tmp_path / "altered.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + length :])
    return path


def set_argument(name: str, value):
    def change(said: dict) -> None:
        said["kwargs"] = json.dumps({**json.loads(said["kwargs"]), name: value})

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: said.update(klass="os.system"), "class"),
        (lambda said: said.update(klass="demucs.hdemucs.HDemucs"), "class"),
        (lambda said: said.pop("klass"), "class"),
        (lambda said: said.update(structure="{}"), "quantised"),
        (lambda said: said.update(kwargs="{"), "not JSON"),
        (lambda said: said.update(kwargs="[" * 100_000), "not JSON"),
        (set_argument("segment", {"_type": "fraction", "numerator": 1, "denominator": 0}), "JSON"),
        (lambda said: said.update(args='["drums"]'), "sources"),
        (lambda said: said.update(args='[["drums", "bass"]]'), "vocals"),
        (lambda said: said.update(args="[1, 2, 3]"), "arguments"),
        (set_argument("channels", 10**9), "channels"),
        (set_argument("channels", True), "channels"),
        (set_argument("channels", 8), "shape"),
        (set_argument("depth", 6), "tensor"),
        (set_argument("t_layers", 12), "missing"),
        (set_argument("nfft", 511), "HTDemucs|tensor"),
        (set_argument("samplerate", 48_000), "samplerate"),
        (set_argument("segment", 1e9), "segment"),
        (set_argument("t_mask_type", "__import__('os')"), "t_mask_type"),
        (set_argument("t_sparse_self_attn", True), "t_sparse_self_attn"),
        (set_argument("multi_freqs", [0.1] * 1000), "multi_freqs"),
    ],
)  # fmt: skip
def test_a_header_that_is_not_of_an_htdemucs_is_refused(folder: Path, tmp_path: Path, change, words: str) -> None:
    with pytest.raises(SeparatorFileError, match=words):
        load_htdemucs(altered(folder, tmp_path, change), "cpu")


def test_an_unknown_argument_is_left_out_as_demucs_does(folder: Path, tmp_path: Path) -> None:
    assert load_htdemucs(altered(folder, tmp_path, set_argument("of_a_later_version", 1)), "cpu").samplerate == 44_100


def test_damaged_files_and_other_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "955717e8.safetensors").read_bytes()
    wrong = tiny.make_network()
    with torch.no_grad():
        next(wrong.parameters())[0] = float("nan")
    tiny.write_network(tmp_path / "nan.safetensors", wrong)
    torch.save({"klass": 1}, tmp_path / "pickle.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole[:-10])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("nan", "pickle", "cut", "empty", "none"):
        with pytest.raises(SeparatorFileError, match=name):
            load_htdemucs(tmp_path / f"{name}.safetensors", "cpu")


@pytest.mark.parametrize(
    "text",
    [
        "", "models: 3", "models: []", "models: ['../../x']", "models: [a/b]", "models: ['a\\nb']", "- a", "models: [a",
        "x: &a [*a]", "models: [a, b]\nweights: [[0, 0, 0, 1]]", "models: [a]\nweights: [[1, 1, 1, 0]]",
        "models: [a]\nweights: [[1]]", "models: [a]\nweights: [[0, 0, 0, -1]]",
        "models: [a]\nweights: [[0, 0, 0, .nan]]", "models: !!python/name:os.system a",
        f"models: {list('abcdefghijk')}", "#" * 100_000,
    ],
)  # fmt: skip
def test_a_list_of_networks_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(SeparatorFileError, match="m"):
        read_bag(tmp_path, "m")


def test_without_demucs_the_message_says_what_to_install(folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "demucs.htdemucs", None)
    with pytest.raises(MissingPackageError, match=r"rvc-spark\[covers\]"):
        load_htdemucs(folder / "955717e8.safetensors", "cpu")


def test_the_bounds_know_every_argument_of_the_class() -> None:
    import inspect

    from demucs.htdemucs import HTDemucs

    tables = (separation_model._NUMBERS, separation_model._SWITCHES, separation_model._OFF, separation_model._WORDS,
              separation_model._LISTS)  # fmt: skip
    known = {name for table in tables for name in table} | {"self", "sources"}
    assert set(inspect.signature(HTDemucs.__init__).parameters) == known
    defaults = {
        name: item.default for name, item in inspect.signature(HTDemucs).parameters.items() if name != "sources"
    }
    assert [name for name, value in defaults.items() if not separation_model._allowed(name, value)] == []


# ------------------------------------------------------------------------------------------------------------ MDX-Net


def write_onnx(path: Path, factor: float = 0.25, shape: tuple = ("batch", 4, 512, 16), finite: bool = True) -> Path:
    """A network of the published signature that multiplies by a number."""
    onnx = pytest.importorskip("onnx", reason="pip install 'rvc-spark[dev]'")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    given, answer = (helper.make_tensor_value_info(name, kind, shape) for name in ("input", "output"))
    number = onnx.numpy_helper.from_array(np.float32(factor if finite else np.nan), "number")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["input", "number"], ["output"])], "tiny", [given], [answer], [number]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def tone(frames: int) -> np.ndarray:
    wave = 0.2 * np.sin(2 * np.pi * 1000 * np.arange(frames) / 44_100)
    return np.stack([wave, 0.5 * wave]).astype(np.float32)


def test_mdx_takes_a_sound_apart_and_both_parts_add_up(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rvc-spark[covers]'")
    from rvc_spark.covers.mdx_net import MdxModel, MdxNet

    net = MdxNet(write_onnx(tmp_path / "tiny.onnx"), MdxModel("id", "a part", 2048, 1.2))
    sound = tone(60_001)
    made = list(net.steps(blocks(sound, 5_000), sound.shape[1]))
    rest, part = (np.concatenate([row[which] for row in made], axis=1) for which in (1, 2))
    assert rest.shape == sound.shape and np.abs(rest + part - sound).max() <= 2**-24
    assert np.abs(part - 0.3 * sound)[:, 2_000:-2_000].max() < 1e-3, "0.25 x 1.2"
    assert made[-1][0] == 1.0


def test_an_onnx_file_that_is_no_mdx_net_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rvc-spark[covers]'")
    from rvc_spark.covers.mdx_net import MdxModel, MdxNet

    model = MdxModel("id", "a part", 2048, 1.0)
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 100)
    write_onnx(tmp_path / "three.onnx", shape=("batch", 4, 512))
    write_onnx(tmp_path / "wide.onnx", shape=(1, 4, 4096, 16))
    write_onnx(tmp_path / "open.onnx", shape=("batch", 4, "bins", "frames"))
    for name in ("junk", "three", "wide", "open", "missing"):
        with pytest.raises(SeparatorFileError, match=name):
            MdxNet(tmp_path / f"{name}.onnx", model)
    broken = MdxNet(write_onnx(tmp_path / "nan.onnx", finite=False), model)
    with pytest.raises(SeparatorFileError, match="not finite"):
        list(broken.steps([tone(30_000)], 30_000))


def test_overlap_add_joins_what_pieces_say_without_a_seam() -> None:
    sound = noise(10_000)

    def network(piece: np.ndarray):
        yield None
        yield 2 * piece

    pairs = [pair for pair in overlap_add(blocks(sound, 333), 10_000, Pieces(1_000), network) if pair is not None]
    heard, doubled = (np.concatenate(part, axis=1) for part in zip(*pairs, strict=True))
    assert np.array_equal(heard, sound) and np.abs(doubled - 2 * sound).max() < 1e-6


def test_an_hour_needs_no_more_memory_than_a_minute() -> None:
    import tracemalloc

    def network(piece: np.ndarray):
        yield piece

    block, count, heard = np.zeros((2, 1 << 18), np.float32), 605, 0
    tracemalloc.start()
    try:
        for pair in overlap_add((block for _ in range(count)), count << 18, Pieces(343_980), network):
            heard += pair[1].shape[1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert heard == count << 18 and peak < 64 << 20, "the hour itself has 1.3 GB"
