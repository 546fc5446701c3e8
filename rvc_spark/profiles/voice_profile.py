"""An enrolled voice on the disk, and what it is good for.

    PROFILE/profile.json      what is known: name, consent, samples, pitch, sizes and hashes of the files below
            samples/NN.flac   recordings, mono, at one loudness: the training set
            originals/NN.*    as they came, where that was asked for
            reference.wav     the best stretch, for engines that clone
            report.json       what the recordings were found to be; the speaker embedding
            consent.flac      the consent being spoken, where it was recorded
            derived/          what can be made again from the rest (speaker files, indexes); never exported

A profile is read when it is opened: its record strictly, its files by name and size. `check` reads every byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rvc_spark.audio import Audio, open_audio, read_audio
from rvc_spark.errors import AudioError, ProfileError
from rvc_spark.infer.pitch_edit import VoiceRange
from rvc_spark.profiles.private_files import read_plain, sha256_plain, tree_of
from rvc_spark.profiles.profile_record import (
    MAX_FILES,
    MAX_RECORD_BYTES,
    MAX_REPORT_BYTES,
    RECORD,
    REFERENCE,
    REPORT,
    ProfileRecord,
    StoredSample,
    parse_record,
)
from rvc_spark.profiles.strict_json import NEXT, parse_plain

if TYPE_CHECKING:
    from rvc_spark.profiles.sample_report import EnrolmentReport

DERIVED = "derived"
MAX_DERIVED = 64  # files
MAX_REFERENCE_SECONDS = 120.0
SECONDS_SLACK = 0.05  # between what the record says of a sound and what the file holds


@dataclass(frozen=True)
class VoiceProfile:
    """One enrolled voice. Made by `open_profile`, by a `ProfileStore` or by enrolling."""

    folder: Path
    record: ProfileRecord

    def __repr__(self) -> str:
        return f"VoiceProfile({self.name!r}, {self.id})"

    @property
    def id(self) -> str:
        """What it is called inside, and by other programs."""
        return self.record.id

    @property
    def name(self) -> str:
        """What people call it."""
        return self.record.name

    @property
    def samples(self) -> tuple[StoredSample, ...]:
        """What is known of each recording."""
        return self.record.samples

    @property
    def seconds(self) -> float:
        """Length of all recordings together."""
        return sum(sample.seconds for sample in self.record.samples)

    @property
    def transcript(self) -> str | None:
        """What the reference clip says, word for word, where that is known."""
        return self.record.reference.transcript

    @property
    def pitch(self) -> VoiceRange | None:
        """Where the voice speaks: a target for the automatic key."""
        return None if self.record.f0 is None else self.record.f0.voice_range

    @property
    def reference_path(self) -> Path:
        """The reference clip, for whoever reads sound from files."""
        return self.folder / REFERENCE

    @property
    def derived_folder(self) -> Path:
        """Where what is made of this voice is kept, so that deleting the profile deletes it too."""
        return self.folder / DERIVED

    def reference(self) -> Audio:
        """The clip that stands for the voice, float32 [T]. Raises ProfileError, AudioError."""
        content = read_plain(self.reference_path, self.record.files[REFERENCE].bytes)
        with open_audio(content) as reader:
            _check_seconds(REFERENCE, reader.frames, reader.rate, MAX_REFERENCE_SECONDS)
        return read_audio(content, mono=True)

    def sample(self, number: int) -> Audio:
        """A normalised recording, float32 [T]. Raises ProfileError, AudioError."""
        entry = self.record.samples[number]
        return read_audio(read_plain(self.folder / entry.file, self.record.files[entry.file].bytes), mono=True)

    def report(self) -> EnrolmentReport:
        """What the recordings were found to be when they were enrolled. Raises ProfileError, QualityError's kin."""
        from rvc_spark.profiles.sample_report import EnrolmentReport

        content = read_plain(self.folder / REPORT, MAX_REPORT_BYTES)
        return EnrolmentReport.from_dict(parse_plain(content, REPORT))

    @property
    def embedding(self) -> np.ndarray | None:
        """The voice as a direction, float32 [256] of length 1; None where no speaker encoder was installed."""
        found = self.report().embedding
        return None if found is None else np.asarray(found, np.float32)

    def training_set(self) -> Path:
        """The folder of normalised recordings, checked: every file is there and is what was enrolled.

        Raises ProfileError naming the first that is not.
        """
        for sample in self.record.samples:
            self._check_file(sample.file)
        return self.folder / "samples"

    def check(self) -> None:
        """Read every file through. Raises ProfileError or AudioError naming the first that is not what it should be."""
        for name in self.record.files:
            self._check_file(name)
        for entry in self.record.samples:
            with open_audio(self.folder / entry.file) as reader:
                seconds = _check_seconds(entry.file, reader.frames, reader.rate, float("inf"))
                if reader.rate != entry.rate or abs(seconds - entry.seconds) > SECONDS_SLACK or reader.channels != 1:
                    raise ProfileError(
                        f"{entry.file} is {seconds:.2f} s at {reader.rate} Hz in {reader.channels} channels, the "
                        f"record says {entry.seconds:.2f} s at {entry.rate} Hz, mono",
                        NEXT,
                    )
        self.reference()
        self.report()

    def _check_file(self, name: str) -> None:
        entry = self.record.files[name]
        if sha256_plain(self.folder / name, entry.bytes) != entry.sha256:
            raise ProfileError(f"{name} is not the file that was enrolled: its sha256 differs", NEXT)


def open_profile(folder: Path, *, identity: str | None = None) -> VoiceProfile:
    """Open a profile: its record is read strictly, its files are there in their size and no others are.

    identity: the id that it must have. Raises ProfileError saying what is damaged.
    """
    if folder.is_symlink():
        raise ProfileError("its folder is a link", "Remove the link; nothing behind it is touched.")
    if not folder.is_dir():
        raise ProfileError(f"{folder.name} is no folder", "Name the folder of a profile.")
    record = parse_record(read_plain(folder / RECORD, MAX_RECORD_BYTES))
    if identity is not None and record.id != identity:
        raise ProfileError(f"{RECORD} is that of another profile ({record.id})", NEXT)
    found = tree_of(folder, MAX_FILES + MAX_DERIVED)
    for name, size in found.items():
        if name == RECORD or (name.startswith(f"{DERIVED}/") and name.count("/") == 1):
            continue
        if name not in record.files:
            raise ProfileError(f"it holds {ascii(name[:80])}, which does not belong to it", NEXT)
        if size != record.files[name].bytes:
            raise ProfileError(f"{name} has {size:,} bytes, {record.files[name].bytes:,} were enrolled", NEXT)
    if gone := sorted(set(record.files) - set(found)):
        raise ProfileError(f"{gone[0]} is missing", NEXT)
    return VoiceProfile(folder, record)


def _check_seconds(name: str, frames: int | None, rate: int, most: float) -> float:
    if frames is None:
        raise AudioError(f"{name} does not say how long it is", "Restore the profile from a backup.")
    if frames > most * rate:
        raise ProfileError(f"{name} is {frames / rate:.0f} s long, the limit is {most:g} s", NEXT)
    return frames / rate
