"""profile.json: everything that is known of an enrolled voice but its sound.

Written by this package, read as if by a stranger: profiles travel as archives. Every name of a file in it has one of a
few forms, every file has its size and sha256, and nothing in it is ever made into a path of any other shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from rvc_spark.errors import ConsentError, PitchError, ProfileError
from rvc_spark.infer.pitch_edit import VoiceRange
from rvc_spark.profiles.consent import Consent
from rvc_spark.profiles.profile_names import checked_name, is_id
from rvc_spark.profiles.strict_json import Fields, parse_object

FORMAT, VERSION = "rvc_spark profile", 1
RECORD = "profile.json"
REPORT, REFERENCE, CONSENT_SOUND = "report.json", "reference.wav", "consent.flac"
MAX_RECORD_BYTES = 1 << 20
MAX_REPORT_BYTES = 8 << 20
MAX_SAMPLES = 99
MAX_FILES = 2 * MAX_SAMPLES + 8
MAX_FILE_BYTES = 1 << 30  # of one file in a profile; originals are what a person recorded, never hours
MAX_TRANSCRIPT = 2_000  # characters
MAX_SECONDS = 12 * 3600.0
MAX_LINK = 240
F0_HZ = (20.0, 2_000.0)
RATES = (8_000, 192_000)

_FILE = re.compile(
    r"report\.json|reference\.wav|consent\.flac|samples/[0-9]{2}\.flac|originals/[0-9]{2}\.[a-z0-9]{1,5}"
)
_HASH = re.compile(r"[0-9a-f]{64}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")


@dataclass(frozen=True)
class StoredFile:
    """A file of a profile: its size, and its sha256 as hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredSample:
    """One recording, normalised. rate in Hz; gain_db: what normalising did; original: the file as it came, if kept.

    pcm_sha256: of the samples as they were decoded from the original.
    """

    file: str
    rate: int
    seconds: float
    gain_db: float
    pcm_sha256: str
    transcript: str | None = None
    original: str | None = None


@dataclass(frozen=True)
class StoredReference:
    """The clip that stands for the voice: seconds start..end of a sample (by index), and why that one."""

    sample: int
    start: float
    end: float
    rate: int
    reason: str
    transcript: str | None = None


@dataclass(frozen=True)
class F0Range:
    """Where the voice speaks, in Hz: median, 5th and 95th percentile of its voiced frames; method: who tracked it."""

    median_hz: float
    low_hz: float
    high_hz: float
    voiced_seconds: float
    method: str

    @property
    def voice_range(self) -> VoiceRange:
        """As the automatic key takes it."""
        return VoiceRange(self.median_hz, self.low_hz, self.high_hz)


@dataclass(frozen=True)
class Links:
    """What of this machine belongs to the profile: the name of an RVC voice and the path of its index."""

    voice: str | None = None
    index: str | None = None


@dataclass(frozen=True)
class ProfileRecord:
    """The content of profile.json. f0 is None where hardly anything was voiced; engine: who enrolled the voice."""

    id: str
    name: str
    created: str
    consent: Consent
    samples: tuple[StoredSample, ...]
    reference: StoredReference
    grade: str
    engine: str
    f0: F0Range | None = None
    language: str | None = None
    links: Links = Links()
    files: Mapping[str, StoredFile] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """As it is written."""
        told = {"format": FORMAT, "version": VERSION, **asdict(replace(self, files={}))}
        told["files"] = {name: asdict(entry) for name, entry in sorted(self.files.items())}
        return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8")


def parse_record(content: bytes) -> ProfileRecord:
    """Read profile.json. Raises ProfileError naming the field that is wrong."""
    if len(content) > MAX_RECORD_BYTES:
        raise ProfileError(f"{RECORD} has {len(content):,} bytes, the limit is {MAX_RECORD_BYTES:,}", "Delete it.")
    fields = parse_object(content, RECORD)
    if fields.text("format", 40) != FORMAT:
        fields.refuse("format", "is that of another kind of file")
    version = fields.whole("version", 0, 1 << 31)
    if version != VERSION:
        fields.refuse("version", f"is {version}, this program reads {VERSION}; a newer one wrote it")
    record = ProfileRecord(
        id=_identity(fields), name=checked_name(fields.text("name", 400)), created=fields.text("created", 40),
        consent=_consent(fields.part("consent")),
        samples=tuple(_sample(row) for row in fields.rows("samples", MAX_SAMPLES)),
        reference=_reference(fields.part("reference")), grade=fields.text("grade", 10),
        engine=fields.text("engine", 40), f0=fields.maybe("f0", lambda name: _f0(fields.part(name))),
        language=checked_language(fields.maybe("language", lambda name: fields.text(name, 40))),
        links=_links(fields.part("links")), files=_files(fields.part("files")),
    )  # fmt: skip
    fields.end()
    _check_whole(record, fields)
    return record


def checked_language(language: str | None) -> str | None:
    """A language tag such as `en` or `de-AT`, or None. Raises ProfileError."""
    if language is not None and not (isinstance(language, str) and _LANGUAGE.fullmatch(language)):
        raise ProfileError(f"the language {language!r:.40} is no language tag", "Write it like en or de-AT.")
    return language


def checked_transcript(text: str | None) -> str | None:
    """What is said in a recording, or None. Raises ProfileError."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    if not isinstance(text, str) or len(text) > MAX_TRANSCRIPT:
        told = f"{len(text):,} characters" if isinstance(text, str) else type(text).__name__
        raise ProfileError(f"a transcript has {told}, the limit is {MAX_TRANSCRIPT:,} characters", "Shorten it.")
    if any(ord(c) < 32 and c not in "\n\t" for c in text):
        raise ProfileError("a transcript holds control characters", "Give what is said, as plain text.")
    return " ".join(text.split())


def _identity(fields: Fields) -> str:
    found = fields.text("id", 60)
    if not is_id(found):
        fields.refuse("id", f"is {found!r:.60}, not the id of a profile")
    return found


def _consent(fields: Fields) -> Consent:
    try:
        consent = Consent(
            fields.text("statement", 4_000), fields.text("who", 400), fields.text("when", 60),
            fields.text("method", 20), fields.text("sample_sha256", 64),
        )  # fmt: skip
    except ConsentError as error:
        raise ProfileError(f"{fields.what}: {error.problem}", error.next_step) from error
    if not consent.sample_sha256:
        fields.refuse("sample_sha256", "is empty: the consent is for no recording")
    fields.end()
    return consent


def _hash(fields: Fields, name: str) -> str:
    found = fields.text(name, 64)
    if not _HASH.fullmatch(found):
        fields.refuse(name, "is no sha256")
    return found


def _sample(fields: Fields) -> StoredSample:
    sample = StoredSample(
        file=fields.text("file", 40), rate=fields.whole("rate", *RATES),
        seconds=fields.number("seconds", 0.0, MAX_SECONDS), gain_db=fields.number("gain_db", -200.0, 200.0),
        pcm_sha256=_hash(fields, "pcm_sha256"),
        transcript=fields.maybe("transcript", lambda name: fields.text(name, MAX_TRANSCRIPT)),
        original=fields.maybe("original", lambda name: fields.text(name, 40)),
    )  # fmt: skip
    fields.end()
    return sample


def _reference(fields: Fields) -> StoredReference:
    reference = StoredReference(
        sample=fields.whole("sample", 0, MAX_SAMPLES - 1), start=fields.number("start", 0.0, MAX_SECONDS),
        end=fields.number("end", 0.0, MAX_SECONDS), rate=fields.whole("rate", *RATES),
        reason=fields.text("reason", 400),
        transcript=fields.maybe("transcript", lambda name: fields.text(name, MAX_TRANSCRIPT)),
    )  # fmt: skip
    fields.end()
    return reference


def _f0(fields: Fields) -> F0Range:
    found = F0Range(
        *(fields.number(name, *F0_HZ) for name in ("median_hz", "low_hz", "high_hz")),
        voiced_seconds=fields.number("voiced_seconds", 0.0, MAX_SECONDS), method=fields.text("method", 20),
    )  # fmt: skip
    fields.end()
    try:
        _ = found.voice_range
    except PitchError as error:
        fields.refuse("", error.problem)
    return found


def _links(fields: Fields) -> Links:
    links = Links(
        fields.maybe("voice", lambda name: fields.text(name, MAX_LINK)),
        fields.maybe("index", lambda name: fields.text(name, 4_096)),
    )
    fields.end()
    return links


def _files(fields: Fields) -> dict[str, StoredFile]:
    found = {}
    for name in fields.names(MAX_FILES):
        if not is_profile_file(name):
            fields.refuse(ascii(name[:40]), "is no file of a profile")
        entry = fields.part(name)
        found[name] = StoredFile(entry.whole("bytes", 0, MAX_FILE_BYTES), _hash(entry, "sha256"))
        entry.end()
    return found


def is_profile_file(name: str) -> bool:
    """Whether a relative path is one of the few that a profile has, profile.json aside."""
    return _FILE.fullmatch(name) is not None


def _check_whole(record: ProfileRecord, fields: Fields) -> None:
    """What single fields cannot tell: that they agree."""
    named = [sample.file for sample in record.samples]
    named += [sample.original for sample in record.samples if sample.original is not None]
    if not record.samples:
        fields.refuse("samples", "are none")
    if record.grade not in ("ok", "warn", "reject"):
        fields.refuse("grade", f"is {record.grade!r:.20}")
    if record.reference.sample >= len(record.samples):
        fields.refuse("reference", f"is of sample {record.reference.sample + 1}, there are {len(record.samples)}")
    if record.reference.end <= record.reference.start:
        fields.refuse("reference", "ends before it begins")
    needed = {*named, REFERENCE, REPORT, *({CONSENT_SOUND} if record.consent.method == "recording" else ())}
    if len(set(named)) != len(named):
        fields.refuse("samples", "name a file twice")
    if odd := sorted(needed ^ set(record.files)):
        fields.refuse("files", f"and what is named elsewhere differ in {ascii(odd[0][:40])}")
    for sample in record.samples:
        if not sample.file.startswith("samples/") or not (sample.original or "originals/").startswith("originals/"):
            fields.refuse("samples", "name a file of another kind")
