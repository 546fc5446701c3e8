"""Profiles on the disk: private, whole or not there; damage spoils no other; deleted is gone; no link is followed."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from profile_maker import SECRET, buzz, make_profile

from rvc_spark.errors import ConfigError, ConsentError, ProfileError, ProfileExistsError, ProfileNotFoundError
from rvc_spark.profiles.consent import STATEMENT, Consent, given_consent, joint_hash, now
from rvc_spark.profiles.private_files import read_plain
from rvc_spark.profiles.profile_names import MAX_NAME, checked_name, is_id, name_key, new_id
from rvc_spark.profiles.profile_record import MAX_RECORD_BYTES, parse_record
from rvc_spark.profiles.profile_store import ProfileStore, describe
from rvc_spark.profiles.profile_voices import ProfileVoices
from rvc_spark.profiles.voice_profile import open_profile
from rvc_spark.tts.choose import Speakers
from rvc_spark.tts.espeak import EspeakEngine, EspeakSettings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    return ProfileStore(tmp_path / "profiles")


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# ------------------------------------------------------------------------------------------------------------- names


HOSTILE_NAMES = [
    "", " ", "..", ".", "../up", "a/b", "a\\b", "/etc/passwd", "C:\\voice", "a\0b", "a\nb", "tab\tbed", "\u202egnp.exe",
    "a\u200bb", "a\u2066b", "x" * 300, "-rf", "~root", "@list", ".hidden", "me.wav", "anna.rvcprofile", "***", "what?",
    "\ud800", "\ue000", "a\u2028b", "profile:anna", "5eab2cb1-c54f-44b3-820a-0c4f6d7b8a11", "\u00a0", 7, None, b"anna",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name)[:24])
def test_names_that_could_be_anything_else_are_refused(name, store: ProfileStore, tmp_path: Path) -> None:
    with pytest.raises(ProfileError) as refused:
        checked_name(name)
    assert refused.value.next_step and "\u202e" not in str(refused.value) and "\0" not in str(refused.value)
    with pytest.raises(ProfileError):
        make_profile(store, name)
    assert everything(tmp_path) <= {"profiles", "profiles/.locks"}


def test_names_of_people_are_kept_and_compared_as_people_do() -> None:
    for name in ("Anna", "Zoë van der Berg", "李雷", "Ólafur 2", "O'Neill & sons", "x" * MAX_NAME, "Dr. Who", "नेहा"):
        assert checked_name(f" {name} ") == name
    assert checked_name("Zoe\u0308") == "Zoë"
    assert name_key("ANNA  Berg") == name_key("Ａnna berg") != name_key("Annaberg")


# ----------------------------------------------------------------------------------------------------------- consent


def test_consent_is_whole_or_refused() -> None:
    consent = given_consent(STATEMENT, "Anna Example")
    assert consent.method == "checkbox" and consent.when.endswith("+00:00")
    hashes = ["b" * 64, "a" * 64]
    assert consent.bound_to(hashes) == consent.bound_to(hashes[::-1])
    assert consent.bound_to(hashes).sample_sha256 == joint_hash(hashes) != joint_hash(hashes[:1])
    for change in (
        {"statement": "ok"}, {"statement": " " * 40}, {"statement": "x" * 3000}, {"who": ""}, {"who": "x" * 300},
        {"who": "A\u202enna"}, {"method": "telepathy"}, {"when": "yesterday"}, {"when": "2026-01-01T00:00:00"},
        {"when": "2999-01-01T00:00:00+00:00"}, {"sample_sha256": "abc"}, {"statement": None}, {"when": 7},
    ):  # fmt: skip
        with pytest.raises(ConsentError):
            dataclasses.replace(consent, **change)
    assert Consent(STATEMENT, "Anna", now(), "recording").method == "recording"


# ----------------------------------------------------------------------------------------------------- making, finding


def test_a_profile_is_private_whole_and_found_by_name_and_id(store: ProfileStore) -> None:
    assert store.listings() == [] and not store.root.exists()
    profile = make_profile(store, "Anna")
    assert is_id(profile.id) and profile.folder == store.root / profile.id
    for path in [store.root, *store.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name.endswith((".lock", ".alive")), path
    profile.check()
    for reference in ("Anna", "anna", " ANNA ", profile.id, f"profile:{profile.id}", "profile:Anna"):
        assert store.get(reference).id == profile.id
    with pytest.raises(ProfileNotFoundError, match="Did you mean Anna"):
        store.get("Ana")
    assert store.find("nobody") is None and store.find("../../etc") is None
    told = json.dumps(describe(profile))
    assert str(store.root) not in told and "f0_hz" in told
    np.testing.assert_allclose(profile.reference().samples, buzz().samples, atol=2 / 32_768)
    assert profile.training_set().name == "samples" and profile.embedding is None


def test_a_root_that_others_could_read_is_closed_and_a_link_is_refused(tmp_path: Path) -> None:
    open_root = tmp_path / "open"
    open_root.mkdir(mode=0o755)
    make_profile(ProfileStore(open_root), "Anna")
    assert stat.S_IMODE(open_root.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(open_root)
    linked = ProfileStore(tmp_path / "link")
    with pytest.raises(ProfileError, match="link"):
        linked.listings()
    with pytest.raises(ProfileError, match="link"):
        make_profile(linked, "Berta")
    assert [profile.name for profile in ProfileStore(open_root).profiles()] == ["Anna"]


def test_one_name_is_one_profile(store: ProfileStore) -> None:
    make_profile(store, "Anna")
    before = everything(store.root)
    with pytest.raises(ProfileExistsError, match="aNNa 2"):
        make_profile(store, "aNNa")
    assert everything(store.root) == before
    assert make_profile(store, "Anna 2").name == "Anna 2"


def test_whatever_fails_on_the_way_leaves_nothing(store: ProfileStore) -> None:
    with pytest.raises(RuntimeError), store.reserved("Anna"), store.draft() as draft:
        draft.add("samples/01.flac", b"half")
        raise RuntimeError("the machine was switched off")
    assert store.listings() == [] and everything(store.root) - {".locks"} == {
        name for name in everything(store.root) if name.startswith(".locks/")
    }
    make_profile(store, "Anna")


def test_what_a_killed_program_left_is_swept_and_what_is_being_made_is_not(store: ProfileStore) -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from rvc_spark.profiles.profile_store import ProfileStore\n"
        "store = ProfileStore(sys.argv[1])\n"
        "with store.reserved('Anna'), store.draft() as draft:\n"
        "    draft.add('reference.wav', b'half'); os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(store.root), str(ROOT)], timeout=60, check=False)
    (store.root / ".deleting-x").mkdir()
    left = [path.name for path in store.root.iterdir() if path.name.startswith(".creating-")]
    assert len(left) == 1 and store.listings() == []
    with store.draft() as alive:
        alive.add("reference.wav", b"half")
        assert store.sweep() == 2 and (alive.folder / "reference.wav").is_file()
    make_profile(store, "Anna")  # its name is free: the dead hold no lock


def test_two_programs_that_enrol_one_name_make_one_profile(store: ProfileStore) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:4]\n"
        "from profile_maker import make_profile\n"
        "from rvc_spark.errors import ProfileExistsError\n"
        "from rvc_spark.profiles.profile_store import ProfileStore\n"
        "try: print('made', make_profile(ProfileStore(sys.argv[1]), 'Anna').id)\n"
        "except ProfileExistsError as error: print('refused', error)\n"
    )
    command = [sys.executable, "-c", code, str(store.root), str(ROOT), str(ROOT / "tests")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [run.communicate(timeout=120) for run in runs]
    assert sorted(out.split()[0] for out, _ in told) == ["made", "refused"], told
    (profile,) = store.profiles()
    profile.check()
    assert not [path for path in store.root.iterdir() if path.name.startswith(".creating-")]


def test_threads_wait_for_each_other_too(store: ProfileStore) -> None:
    told: list[str] = []

    def enrol() -> None:
        try:
            make_profile(store, "Anna")
            told.append("made")
        except ProfileExistsError:
            told.append("refused")

    threads = [threading.Thread(target=enrol) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(told) == ["made", "refused", "refused", "refused"]


# --------------------------------------------------------------------------------------------------------- deleting


def test_deleted_is_gone_and_only_the_fact_stays(store: ProfileStore) -> None:
    profile, other = make_profile(store, "Anna"), make_profile(store, "Berta")
    engine = EspeakEngine(EspeakSettings(), folder=store.root.parent / "speech")
    ProfileVoices(store).speaker_file(engine, "Anna")
    tombstone = store.delete("anna")
    assert tombstone.id == profile.id and store.tombstone(profile.id) == tombstone
    assert [kept.id for kept in store.profiles()] == [other.id]
    (mark,) = (store.root / ".tombstones").iterdir()
    assert set(json.loads(mark.read_text("utf-8"))) == {"format", "id", "deleted"}
    left = [path for path in store.root.parent.rglob("*") if path.is_file() and other.id not in path.parts]
    assert not [path for path in left if SECRET.encode() in path.read_bytes() or b"Anna" in path.read_bytes()]
    assert not list((store.root.parent / "speech").rglob("*")), "the engine kept a copy of the voice"
    with pytest.raises(ProfileNotFoundError):
        store.delete("Anna")
    assert make_profile(store, "Anna").id != profile.id


def test_a_link_among_the_profiles_is_damage_and_deleting_it_touches_nothing_behind_it(
    store: ProfileStore, tmp_path: Path
) -> None:
    make_profile(store, "Anna")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("mine")
    identity = new_id()
    (store.root / identity).symlink_to(outside)
    (damaged,) = [item for item in store.listings() if item.profile is None]
    assert damaged.id == identity and "link" in (damaged.error or "")
    store.delete(identity)
    assert (outside / "precious.txt").read_text() == "mine" and len(store.listings()) == 1
    profile = store.get("Anna")
    (profile.folder / "derived").symlink_to(outside)  # and a link inside a profile
    with pytest.raises(ProfileError, match="link"):
        store.get(profile.id)
    store.delete(profile.id)
    assert (outside / "precious.txt").read_text() == "mine" and store.listings() == []


# ----------------------------------------------------------------------------------------------------------- damage


def _record(profile) -> dict:
    return json.loads((profile.folder / "profile.json").read_text("utf-8"))


def _damage(profile, how: str) -> None:
    folder, record = profile.folder, profile.folder / "profile.json"
    told = _record(profile)
    if how == "no record":
        record.unlink()
    elif how == "not json":
        record.write_bytes(b"\x80{")
    elif how == "huge":
        with record.open("wb") as file:
            file.truncate(3 << 30)
    elif how == "deep":
        record.write_text("[" * 200_000)
    elif how == "pipe":
        record.unlink()
        os.mkfifo(record)
    elif how == "linked record":
        record.unlink()
        record.symlink_to("/etc/hostname")
    elif how == "linked sample":
        (folder / "samples" / "01.flac").unlink()
        (folder / "samples" / "01.flac").symlink_to("/etc/hostname")
    elif how == "missing sample":
        (folder / "samples" / "01.flac").unlink()
    elif how == "shortened":
        (folder / "reference.wav").write_bytes(b"RIFF")
    elif how == "extra file":
        (folder / "samples" / "99.sh").write_text("#!")
    else:
        changes = {
            "twice": None, "unknown field": {"x": 1}, "newer": {"version": 2}, "no consent": {"consent": None},
            "another id": {"id": new_id()}, "path": {"files": {"../../x": {"bytes": 1, "sha256": "a" * 64}}},
            "nan": {"f0": float("nan")}, "hostile name": {"name": "../../x"}, "no samples": {"samples": []},
            "odd f0": {"f0": {**told["f0"], "low_hz": 900.0}}, "true": {"version": True},
            "consent for nothing": {"consent": {**told["consent"], "sample_sha256": ""}},
            "huge number": {"reference": {**told["reference"], "end": 10**400}},
        }  # fmt: skip
        text = json.dumps({**told, **(changes[how] or {})})
        record.write_text(text.replace('"version": 1', '"version": 1, "version": 1') if how == "twice" else text)


DAMAGE = [
    "no record", "not json", "huge", "deep", "pipe", "linked record", "linked sample", "missing sample", "shortened",
    "extra file", "twice", "unknown field", "newer", "no consent", "another id", "path", "nan", "hostile name",
    "no samples", "odd f0", "true", "consent for nothing", "huge number",
]  # fmt: skip


def test_damage_is_listed_with_its_reason_and_spoils_no_other(store: ProfileStore) -> None:
    whole = make_profile(store, "Whole")
    damaged = {how: make_profile(store, f"Damaged {number}") for number, how in enumerate(DAMAGE)}
    for how, profile in damaged.items():
        _damage(profile, how)
    listed = {item.id: item for item in store.listings()}
    assert len(listed) == len(DAMAGE) + 1 and listed[whole.id].error is None
    for how, profile in damaged.items():
        assert listed[profile.id].profile is None and listed[profile.id].error, how
        with pytest.raises(ProfileError):
            store.get(profile.id)
    assert [item.id for item in store.listings()][0] == whole.id
    for profile in damaged.values():
        store.delete(profile.id)
    assert [item.id for item in store.listings()] == [whole.id]


def test_a_changed_byte_is_found_by_check(store: ProfileStore) -> None:
    profile = make_profile(store, "Anna")
    path = profile.folder / "samples" / "01.flac"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert store.get("Anna").name == "Anna"
    for look in (profile.check, profile.training_set):
        with pytest.raises(ProfileError, match=r"samples/01\.flac"):
            look()


def test_a_record_survives_writing_and_reading(store: ProfileStore) -> None:
    profile = make_profile(store, "Zoë", transcript="Grüß Gott.")
    assert parse_record(profile.record.encoded()) == profile.record
    assert open_profile(profile.folder).record == profile.record
    with pytest.raises(ProfileError, match="limit"):
        parse_record(b" " * (MAX_RECORD_BYTES + 1))
    with pytest.raises(ProfileError, match="limit"):
        read_plain(profile.folder / "reference.wav", 100)


# ---------------------------------------------------------------------------------------------------------- serving


def test_a_name_is_a_reference_for_every_engine_and_what_is_learnt_stays_inside(store: ProfileStore, tmp_path) -> None:
    profile = make_profile(store, "Anna", hertz=210.0)
    voices = ProfileVoices(store)
    engine = EspeakEngine(EspeakSettings(), folder=tmp_path / "speech")
    path = voices.speaker_file(engine, "Anna")
    assert path is not None and path.parent == profile.derived_folder
    assert voices.speaker_file(engine, f"profile:{profile.id}") == path, "learnt twice"
    german = voices.speaker_file(EspeakEngine(EspeakSettings(voice="de"), folder=tmp_path / "speech"), "Anna")
    assert german != path
    assert json.loads(path.read_text("utf-8"))["source_hz"] == pytest.approx(210, rel=0.03)
    assert engine.speak(path, "Hello.").seconds > 0.2
    assert not (tmp_path / "speech").exists() or not list((tmp_path / "speech").iterdir())
    open_profile(profile.folder)  # what is derived is no damage
    assert voices.speaker_file(engine, "me.wav") is None and voices.speaker_file(engine, "Nobody") is None
    with pytest.raises(ProfileNotFoundError):
        voices.speaker_file(engine, "profile:Nobody")
    assert voices.pitch("profile:Anna").median == 210.0


def test_a_word_that_is_a_file_and_a_profile_is_refused(store: ProfileStore, tmp_path, monkeypatch) -> None:
    make_profile(store, "Anna")
    monkeypatch.chdir(tmp_path)
    Path("Anna").write_text("a file")
    voices = ProfileVoices(store)
    engine = EspeakEngine(EspeakSettings(), folder=tmp_path / "speech")
    with pytest.raises(ConfigError, match="profile:Anna"):
        voices.speaker_file(engine, "Anna")
    assert voices.speaker_file(engine, "profile:Anna") is not None


def test_the_engines_take_profiles_by_name(store: ProfileStore, tmp_path) -> None:
    from rvc_spark.rvc_config import RVCConfig

    make_profile(store, "Anna")
    speakers = Speakers(RVCConfig(temp=tmp_path / "temp"), ProfileVoices(store))
    engine, _ = speakers.engine("espeak")
    assert speakers.speaker_file(engine, "Anna").name.startswith("speaker_espeak")
    with pytest.raises(ProfileNotFoundError):
        speakers.speaker_file(engine, "profile:Berta")


def test_links_are_noted_and_taken_back(store: ProfileStore) -> None:
    make_profile(store, "Anna")
    assert store.link("Anna", voice="anna_40k", index="/x/y.index").record.links.voice == "anna_40k"
    assert store.get("Anna").record.links.index == "/x/y.index"
    assert store.link("Anna").record.links.voice is None
