"""Changing a contour on purpose: an automatic key, notes to sing on, and a contour of the user's own.

All functions take and give Hz per 10 ms with 0 = unvoiced, and leave unvoiced frames unvoiced; only a user's curve,
which says so itself, may voice one. The order is the caller's: key, then notes, then curve.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvc_spark.errors import PitchError
from rvc_spark.infer.pitch_trackers import HOP, SAMPLE_RATE

FRAMES_PER_SECOND = SAMPLE_RATE // HOP
KEY_LIMIT = 12.0  # semitones an automatic key may move; beyond an octave voices stop sounding like themselves
KEY_GRID = 0.01  # semitones between candidates when an automatic key is not rounded
F0_MIN, F0_MAX = 10.0, 5000.0  # Hz accepted in a user's curve, besides 0
CURVE_BYTES = 32 << 20
CURVE_LINES = 1_000_000  # 2.7 hours at 10 ms
CURVE_ADVICE = "A curve is text with a line of seconds,Hz for each point, in the order of time."
TIME_SLACK = 1e-6  # seconds; a frame at t/100 counts as inside a curve that ends at a rounded t/100

SCALES: dict[str, tuple[int, ...]] = {
    "chromatic": tuple(range(12)),
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "melodic minor": (0, 2, 3, 5, 7, 9, 11),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "locrian": (0, 1, 3, 5, 6, 8, 10),
    "pentatonic": (0, 2, 4, 7, 9),
    "minor pentatonic": (0, 3, 5, 7, 10),
    "blues": (0, 3, 5, 6, 7, 10),
    "whole tone": (0, 2, 4, 6, 8, 10),
}
SCALE_ALIASES = {
    "major pentatonic": "pentatonic",
    "natural minor": "minor",
    "aeolian": "minor",
    "ionian": "major",
    "minor blues": "blues",
}
CHORD_MARKS = {"m": "minor", "min": "minor", "maj": "major"}  # "Am" is A minor
NOTE_LETTERS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
ROOT_PATTERN = re.compile(r"^([a-g])([#♯b♭]?)\s*(maj|min|m)?(?=$|[\s:_-])", re.IGNORECASE)
ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}
MIDI_A4 = 69
A4_RANGE = (380.0, 500.0)  # Hz


# ---- automatic key ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyProposal:
    """A key in semitones and, in words, how it was found."""

    key: float
    reason: str


@dataclass(frozen=True)
class VoiceRange:
    """What a voice sings comfortably, in Hz: its median, and the ends of its range where they are known."""

    median: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        low = self.median if self.low is None else self.low
        high = self.median if self.high is None else self.high
        values = (low, self.median, high)
        if not all(math.isfinite(value) for value in values) or not 0 < low <= self.median <= high:
            raise PitchError(
                f"voice range low={self.low}, median={self.median}, high={self.high} is not 0 < low <= median <= high",
                "Give Hz in that order.",
            )


def voice_range(f0: np.ndarray) -> VoiceRange:
    """The range a contour [T] shows: median and the 5th and 95th percentile of its voiced frames.

    Raises PitchError when no frame is voiced.
    """
    voiced = f0[f0 > 0]
    if len(voiced) == 0:
        raise PitchError("no frame is voiced, so the contour has no range", "Give a recording with singing or speech.")
    low, median, high = np.percentile(voiced, [5, 50, 95])
    return VoiceRange(float(median), float(low), float(high))


def automatic_key(
    f0: np.ndarray, target: float | VoiceRange, *, limit: float = KEY_LIMIT, step: float = 1.0
) -> KeyProposal:
    """The key that brings a contour's median to a target.

    Args:
        f0: float [T] Hz, 0 = unvoiced. Unvoiced frames do not count (Applio fills them first, which weighs long gaps).
        target: the wanted median in Hz, or a voice's range: then the smallest departure from its median that keeps the
            middle 90 % of the contour inside its ends, as far as both ends allow.
        limit: largest move in semitones, either way.
        step: 1 for whole semitones, 12 for octaves (keeps singing in tune with its band), 0 for hundredths.

    With nothing voiced the key is 0 and the reason says so. Raises PitchError for a target, limit or step out of range.
    """
    wanted = target if isinstance(target, VoiceRange) else VoiceRange(float(target))
    if not (math.isfinite(limit) and 0 <= limit <= 48 and math.isfinite(step) and 0 <= step <= 12):
        raise PitchError(f"limit={limit} or step={step} is outside 0..48 and 0..12 semitones", "Use 12 and 1.")
    voiced = np.asarray(f0)[np.asarray(f0) > 0]
    if len(voiced) == 0:
        return KeyProposal(0.0, "key +0: no frame is voiced")
    own = voice_range(voiced)
    ideal = 12 * math.log2(wanted.median / own.median)
    grid = step or KEY_GRID
    count = math.floor(limit / grid + 1e-9)
    keys = np.arange(-count, count + 1) * grid
    too_low = 0.0 if wanted.low is None else np.maximum(0, 12 * np.log2(wanted.low / own.low) - keys)
    too_high = 0.0 if wanted.high is None else np.maximum(0, keys - 12 * np.log2(wanted.high / own.high))
    outside = np.round(too_low + too_high, 6) * np.ones(len(keys))
    best = np.lexsort((np.abs(keys), np.round(np.abs(keys - ideal), 6), outside))[0]
    key = float(round(keys[best], 6)) + 0.0  # + 0.0 turns -0.0 into 0.0
    reason = f"key {key:+g}: from a median of {own.median:.0f} Hz to {wanted.median:.0f} Hz would be {ideal:+.1f}"
    if abs(ideal) > limit + grid / 2:
        reason += f", limited to {limit:g}"
    elif abs(key - ideal) > grid / 2 + 1e-6:
        reason += ", less to stay in the voice's range"
    return KeyProposal(key, reason)


# ---- autotune --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Notes one may sing on: pitch classes 0..11 (0 = C)."""

    name: str
    classes: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Scale:
        """From "chromatic", "A minor", "Am", "F# pentatonic", "Bb:blues", "dorian" (root C) or "D" (D major).

        Raises PitchError naming what is known.
        """
        words = str(text)[:100].strip()
        match = ROOT_PATTERN.match(words)
        root = 0
        kind = words
        if match:
            letter, accidental, mark = (part.lower() for part in match.groups(""))
            root = NOTE_LETTERS[letter] + ACCIDENTALS[accidental]
            kind = f"{CHORD_MARKS.get(mark, '')} {words[match.end() :]}".strip(" \t:_-") or "major"
        kind = " ".join(kind.lower().replace("_", " ").replace("-", " ").split())
        kind = SCALE_ALIASES.get(kind, kind)
        if kind not in SCALES:
            raise PitchError(
                f"there is no scale {words!r}",
                f"Give a root note (C, F#, Bb) and one of: {', '.join(SCALES)}.",
            )
        return cls(words, tuple(sorted((root + interval) % 12 for interval in SCALES[kind])))


def autotune(
    f0: np.ndarray, scale: str | Scale = "chromatic", strength: float = 1.0, *, a4_hz: float = 440.0
) -> np.ndarray:
    """f0 [T] drawn towards the nearest note of a scale: strength 0 leaves it, 1 puts every voiced frame on a note.

    Distance is in semitones (equal temperament on `a4_hz`), so the pull is even in every octave; a frame halfway goes
    to the lower note. Unvoiced frames stay 0. Raises PitchError for an unknown scale or a value out of range.
    """
    scale = scale if isinstance(scale, Scale) else Scale.parse(scale)
    if not 0 <= strength <= 1:
        raise PitchError(f"autotune strength={strength!r} is outside 0 to 1", "Choose a value in that range.")
    if not A4_RANGE[0] <= a4_hz <= A4_RANGE[1]:
        raise PitchError(
            f"a4_hz={a4_hz!r} is outside {A4_RANGE[0]:g} to {A4_RANGE[1]:g} Hz", "440 is the usual concert pitch."
        )
    f0 = np.asarray(f0)
    voiced = f0 > 0
    notes = MIDI_A4 + 12 * np.log2(np.where(voiced, f0, a4_hz) / a4_hz)
    # Every allowed note from an octave below C-1 to far above hearing, so each frame has a neighbour on either side.
    ladder = (np.arange(-12, 180, 12)[:, None] + np.asarray(scale.classes)).reshape(-1)
    above = np.clip(np.searchsorted(ladder, notes), 1, len(ladder) - 1)
    lower, upper = ladder[above - 1], ladder[above]
    nearest = np.where(notes - lower <= upper - notes, lower, upper)
    tuned = a4_hz * 2 ** ((notes + strength * (nearest - notes) - MIDI_A4) / 12)
    return np.where(voiced, tuned, f0).astype(f0.dtype)


# ---- a user's curve --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class F0Curve:
    """Pitch the user wants: float64 [n] seconds from the start of the recording, rising, and Hz (0 = unvoiced)."""

    seconds: np.ndarray
    hz: np.ndarray

    def __post_init__(self) -> None:
        if self.seconds.ndim != 1 or self.seconds.shape != self.hz.shape or len(self.seconds) < 2:
            raise PitchError(
                f"an f0 curve needs at least 2 points, as many seconds as Hz; there are {self.seconds.shape} and "
                f"{self.hz.shape}",
                CURVE_ADVICE,
            )
        fault = _first_fault(self.seconds, self.hz)
        if fault is not None:
            raise PitchError(f"f0 curve, point {fault[0] + 1}: {fault[1]}", CURVE_ADVICE)

    def at(self, seconds: np.ndarray) -> np.ndarray:
        """float64 Hz at `seconds` [T]; NaN outside the curve.

        Straight lines in Hz between two voiced points; beside an unvoiced point the nearer of the two holds, because a
        line from 0 would sing through a breath.
        """
        right = np.clip(np.searchsorted(self.seconds, seconds, side="right"), 1, len(self.seconds) - 1)
        left = right - 1
        share = (seconds - self.seconds[left]) / (self.seconds[right] - self.seconds[left])
        share = np.clip(share, 0, 1)
        a, b = self.hz[left], self.hz[right]
        hz = np.where((a > 0) & (b > 0), a + share * (b - a), np.where(share < 0.5, a, b))
        inside = (seconds >= self.seconds[0] - TIME_SLACK) & (seconds <= self.seconds[-1] + TIME_SLACK)
        return np.where(inside, hz, np.nan)


def apply_f0_curve(f0: np.ndarray, curve: F0Curve, *, start_frame: int = 0) -> np.ndarray:
    """f0 [T] with the curve's values where it has any; frames before its first and after its last point are kept.

    Args:
        start_frame: number of f0's first frame, counted from the start of the recording; negative in a run-in.

    The curve is in output pitch: apply it after the key.
    """
    f0 = np.asarray(f0)
    wanted = curve.at((start_frame + np.arange(len(f0))) / FRAMES_PER_SECOND)
    return np.where(np.isnan(wanted), f0, wanted).astype(f0.dtype)


def read_f0_curve(path: Path | str) -> F0Curve:
    """Read a curve from text: one point a line, seconds then Hz, further columns ignored.

    Columns are parted by comma, semicolon, tab or spaces (with semicolons a decimal comma is understood). What follows
    `#` or `%` is a comment; one header line may stand before the first point. Raises PitchError, naming the line where
    there is one: not text, fewer than 2 points, more than 1,000,000 lines or 32 MiB, a value that is not a number, is
    not finite or is out of range (0 or 10..5000 Hz, 0 seconds and more), times that do not rise.
    """
    path = Path(path)
    return parse_f0_curve(_read_text(path), str(path))


def parse_f0_curve(text: str, name: str = "the f0 curve") -> F0Curve:
    """`read_f0_curve` of text at hand; `name` is what an error calls it."""
    if text.count("\n") > CURVE_LINES:
        raise PitchError(f"{name} has more than {CURVE_LINES:,} lines", "Write one point per 10 ms or fewer.")
    rows: list[tuple[float, float]] = []
    numbers: list[int] = []
    header_allowed = True
    for number, line in enumerate(text.split("\n"), 1):
        point = _point(line)
        if point is None:
            continue
        if isinstance(point, str):
            if not header_allowed:
                raise _refusal(name, number, f"{point!r} is not two numbers")
            header_allowed = False
            continue
        header_allowed = False
        rows.append(point)
        numbers.append(number)
    if len(rows) < 2:
        raise PitchError(
            f"{name} has {len(rows)} point{'s' * (len(rows) != 1)}, a curve needs at least 2", CURVE_ADVICE
        )
    seconds, hz = np.asarray(rows, dtype=np.float64).T
    fault = _first_fault(seconds, hz)
    if fault is not None:
        raise _refusal(name, numbers[fault[0]], fault[1])
    return F0Curve(seconds, hz)


def _point(line: str) -> tuple[float, float] | str | None:
    """The numbers of one line; None when it is empty; its beginning when it is not two numbers."""
    content = line.split("#", 1)[0].split("%", 1)[0].strip()
    if not content:
        return None
    if ";" in content:
        fields = content.replace(",", ".").split(";", 2)
    elif "," in content:
        fields = content.split(",", 2)
    else:
        fields = content.split(None, 2)
    if len(fields) < 2 or "_" in content:  # Python would read 1_0 as 10
        return content[:40]
    try:
        return float(fields[0]), float(fields[1])
    except ValueError:
        return content[:40]


def _first_fault(seconds: np.ndarray, hz: np.ndarray) -> tuple[int, str] | None:
    """Position of a point that cannot be used, and why; None when all can."""
    rising = np.concatenate([[True], np.diff(seconds) > 0])
    faults = (
        (~np.isfinite(seconds) | ~np.isfinite(hz), "is not finite"),
        (seconds < 0, "lies before the start of the recording"),
        (~rising, "is not later than the point before it"),
        ((hz != 0) & ~((hz >= F0_MIN) & (hz <= F0_MAX)), f"is not 0 (unvoiced) or {F0_MIN:g}..{F0_MAX:g} Hz"),
    )
    for wrong, words in faults:
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            return at, f"the point {seconds[at]:.10g} s, {hz[at]:.10g} Hz {words}"
    return None


def _read_text(path: Path) -> str:
    """The text of a curve file. Only regular files are opened: reading a pipe or a device might never end."""
    if not path.is_file():
        raise PitchError(f"there is no f0 curve file at {path}", CURVE_ADVICE)
    try:
        with path.open("rb") as file:
            data = file.read(CURVE_BYTES + 1)
    except OSError as error:
        raise PitchError(f"the f0 curve {path} cannot be read ({error.strerror})", CURVE_ADVICE) from error
    if len(data) > CURVE_BYTES:
        raise PitchError(f"the f0 curve {path} is larger than {CURVE_BYTES >> 20} MiB", CURVE_ADVICE)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PitchError(f"the f0 curve {path} is UTF-16 text", "Save it as UTF-8.")
    control = re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", data)
    if control:
        line = data.count(b"\n", 0, control.start()) + 1
        raise _refusal(str(path), line, f"it holds the control character 0x{control.group()[0]:02x}, so it is not text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(str(path), data.count(b"\n", 0, error.start) + 1, "it is not UTF-8 text") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refusal(name: str, line: int, problem: str) -> PitchError:
    return PitchError(f"{name}, line {line}: {problem}", CURVE_ADVICE)
