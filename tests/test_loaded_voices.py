"""Voices that stay ready: what is kept, what makes room, and that a switch back reads nothing."""

from __future__ import annotations

import gc
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rvc_spark import rvc_modules
from rvc_spark.benchmark_models import TINY_SIZE, make_models
from rvc_spark.errors import ConfigError, EncoderFileError, VoiceFileError
from rvc_spark.infer.content import load_content_encoder
from rvc_spark.infer.lazy_encoder import outline_encoder
from rvc_spark.infer.random_encoders import EncoderRecipe, write_encoder
from rvc_spark.infer.random_voice import VoiceRecipe, write_voice
from rvc_spark.loaded_voices import LoadedVoices
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.rvc_modules import VC
from rvc_spark.safe_load import read_tensors


def kept(memory: LoadedVoices, path: Path, size: int = 10, variant: str = "cpu") -> str:
    """What the memory gives; text says when it was made anew."""
    made = []

    def make() -> str:
        made.append(path)
        return path.read_text()

    found = memory.get(path, variant, make, lambda _: size)
    return f"{found} {'made' if made else 'kept'}"


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_text(path.name)
    return paths


def test_the_one_used_longest_ago_makes_room(files):
    a, b, c = files
    memory = LoadedVoices(25)
    assert [kept(memory, path) for path in (a, b, a)] == ["a made", "b made", "a kept"]
    assert kept(memory, c) == "c made" and memory.bytes == 20
    assert [kept(memory, path) for path in (a, c, b)] == ["a kept", "c kept", "b made"]


def test_a_changed_file_is_another_file(files):
    memory = LoadedVoices(100)
    kept(memory, files[0])
    files[0].write_text("anew")
    assert kept(memory, files[0]) == "anew made" and kept(memory, files[0]) == "anew kept"
    assert len(memory) == 1, "its earlier state is forgotten"
    stamp = files[0].stat()
    replaced = files[0].with_name("other")
    replaced.write_text("also")
    os.utime(replaced, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    replaced.replace(files[0])  # same size, same time: another file still
    assert kept(memory, files[0]) == "also made"


def test_variants_are_apart_and_links_are_not(files, tmp_path):
    memory = LoadedVoices(100)
    kept(memory, files[0])
    assert kept(memory, files[0], variant="cuda") == "a made" and len(memory) == 2
    (tmp_path / "link").symlink_to(files[0])
    assert kept(memory, tmp_path / "link") == "a kept"


def test_nothing_is_kept_beyond_the_limit_or_without_a_file(files):
    assert kept(LoadedVoices(0), files[0]) == "a made"
    memory = LoadedVoices(9)
    kept(memory, files[0])
    assert len(memory) == 0
    assert memory.get(Path("missing"), "cpu", lambda: "made", len) == "made" and len(memory) == 0


def test_a_file_that_is_replaced_while_it_is_read_is_not_kept(files):
    memory = LoadedVoices(100)

    def make() -> str:
        files[0].write_text("longer than before")
        return "half of each"

    memory.get(files[0], "cpu", make, len)
    assert len(memory) == 0


# --- VC --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"), TINY_SIZE)


@pytest.fixture
def reads(monkeypatch):
    """How often each file was read."""
    counted: Counter[str] = Counter()
    for name in ("read_checkpoint", "read_index", "load_content_encoder"):
        read = getattr(rvc_modules, name)

        def counting(path, *rest, read=read, **options):
            counted[Path(path).name] += 1
            return read(path, *rest, **options)

        monkeypatch.setattr(rvc_modules, name, counting)
    return counted


def vc_of(models, **changes) -> VC:
    return VC(RVCConfig(**models.config(), **changes))


def test_a_switch_back_reads_nothing(models, reads):
    vc = vc_of(models)
    for path in (models.voice, models.other, models.voice, models.other):
        vc.load(path, index=models.index)
    assert reads == {"voice.pth": 1, "other.pth": 1, models.index.name: 1}
    assert vc.voice.path == models.other and vc.loaded


def test_the_encoder_is_read_once_and_when_it_is_needed(models, reads):
    vc = vc_of(models)
    vc.load(models.voice, index=None)
    vc.load(models.other, index=None)
    assert reads["hubert_base"] == 0 and not vc._encoder[1].loaded
    first, second = vc.engines().encoder, vc.sibling().load(models.voice, index=None) and vc.engines().encoder
    assert first is second and reads["hubert_base"] == 1


def test_an_encoder_that_does_not_fit_is_refused_before_it_is_read(models, reads, tmp_path):
    write_encoder(tmp_path / "narrow", replace(TINY_SIZE.encoder, hidden=24))
    vc = VC(RVCConfig(**{**models.config(), "hubert": str(tmp_path / "narrow")}))
    with pytest.raises(EncoderFileError, match="gives 24 v2 features, voice voice.pth needs 768"):
        vc.load(models.voice, index=None)
    v1 = write_voice(tmp_path / "old.pth", VoiceRecipe(version="v1"))
    with pytest.raises(EncoderFileError, match="v1 features, voice old.pth needs 256"):
        vc_of(models).load(v1, index=None)
    weights = tmp_path / "narrow" / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EncoderFileError, match="cut off"):
        vc.load(models.voice, index=None)
    assert reads["narrow"] == 0 and reads["hubert_base"] == 0


def test_an_outline_knows_what_the_encoder_knows(models, tmp_path):
    for folder in (models.hubert, write_encoder(tmp_path / "spin", EncoderRecipe(8, 24, 12, 32, 9, 6, 16, 4))):
        outline, encoder = outline_encoder(folder), load_content_encoder(folder)
        assert (outline.dims, outline.embedder, outline.sizes) == (encoder.dims, encoder.embedder, encoder.sizes)
        assert outline.conflict_with("spin") == encoder.conflict_with("spin")


def test_weights_stay_in_their_file(tmp_path):
    numbers = torch.arange(4096, dtype=torch.float32)
    torch.save({"a": numbers}, tmp_path / "a.bin")
    save_file({"a": numbers, "odd": numbers[:3].half(), "none": numbers[:0]}, tmp_path / "a.safetensors")
    for name in ("a.bin", "a.safetensors"):
        path = tmp_path / name
        before = path.read_bytes()
        read = read_tensors(path, max_bytes=1 << 20, what="encoder", error=EncoderFileError, mapped=True)
        torch.testing.assert_close(read["a"], numbers)
        read["a"][0] = 7  # a private page: neither the file nor another reader sees it
        assert path.read_bytes() == before
        again = read_tensors(path, max_bytes=1 << 20, what="encoder", error=EncoderFileError, mapped=True)
        assert again["a"][0] == 0
        path.replace(tmp_path / "moved")  # as an update does; what is mapped stays what it was
        path.write_bytes(b"0" * len(before))
        assert read["a"][1:].equal(numbers[1:])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list what is mapped")
def test_mapped_tensors_are_pages_of_the_file(tmp_path):
    torch.save({"a": torch.ones(1 << 16)}, tmp_path / "mapped.bin")
    kept = read_tensors(tmp_path / "mapped.bin", max_bytes=1 << 20, what="encoder", error=EncoderFileError, mapped=True)
    assert "mapped.bin" in Path("/proc/self/maps").read_text()
    del kept
    gc.collect()
    kept = read_tensors(tmp_path / "mapped.bin", max_bytes=1 << 20, what="encoder", error=EncoderFileError)
    assert "mapped.bin" not in Path("/proc/self/maps").read_text() and kept["a"].sum() == 1 << 16


def test_voices_are_kept_by_their_bytes(models, reads):
    vc = vc_of(models, voice_memory=0)
    for path in (models.voice, models.other, models.voice):
        vc.load(path, index=None)
    assert reads["voice.pth"] == 2 and reads["other.pth"] == 1
    with pytest.raises(ConfigError, match="voice_memory"):
        vc_of(models, voice_memory=-1)


def test_a_voice_that_is_trained_on_is_read_again(models, reads, tmp_path):
    path = write_voice(tmp_path / "mine.pth", VoiceRecipe(seed=1))
    vc = vc_of(models)
    before = vc.load(path, index=None).info
    write_voice(path, VoiceRecipe(seed=2, speakers=3))
    assert (before.speakers, vc.load(path, index=None).info.speakers) == (2, 3)


def test_a_damaged_file_is_refused_even_when_its_old_state_is_kept(models, tmp_path):
    path = write_voice(tmp_path / "mine.pth", VoiceRecipe(seed=1))
    vc = vc_of(models)
    vc.load(path, index=None)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(VoiceFileError):
        vc.load(path, index=None)
    assert vc.loaded and vc.voice.path == path


def test_siblings_share_what_is_kept_and_unloading_frees_it(models, reads):
    vc = vc_of(models)
    vc.load(models.voice, index=None)
    vc.sibling().load(models.voice, index=None)
    assert reads["voice.pth"] == 1
    assert vc.unload() and vc._kept.bytes == 0 and not vc.loaded
    vc.engines()
    assert reads["voice.pth"] == 2 and vc.loaded
