"""Voices that stay ready: what is kept, what makes room, and that a switch back reads nothing."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from rvc_spark import rvc_modules
from rvc_spark.benchmark_models import TINY_SIZE, make_models
from rvc_spark.errors import ConfigError, VoiceFileError
from rvc_spark.infer.random_voice import VoiceRecipe, write_voice
from rvc_spark.loaded_voices import LoadedVoices
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.rvc_modules import VC


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
    assert reads == {"voice.pth": 1, "other.pth": 1, models.index.name: 1, "hubert_base": 1}
    assert vc.voice.path == models.other and vc.loaded


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
