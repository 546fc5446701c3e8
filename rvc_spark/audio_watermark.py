"""The watermark as a stage of writing: what it adds, at any rate and channel count, and whether it can be found.

    sound --+------------------------------------ wait ------------------------(+)--> marked sound
            +-- mean of channels -- to 32 kHz -- network: the change -- back --+

Only the change travels through the resamplers, so everything above 2 kHz, where the mark has nothing, stays as it is,
and every channel gets the same. It arrives 0.7 s late and in memory that does not grow. Networks and numbers are
behind `perth_*`; which file the sound goes to is for `audio_writer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rvc_spark.audio_resample import StreamResampler
from rvc_spark.audio_samples import mix_down
from rvc_spark.errors import ConfigError, WatermarkError

if TYPE_CHECKING:
    from rvc_spark.perth_network import Perth

WATERMARKS = ("none", "perth")
PRESENT_SCORE = 0.8
"""From here on a sound counts as marked. Unmarked music reaches 0.75 over 10 s (unmarked speech 0.05), so the 0.5 that
the published package rounds at would find marks in songs that have none."""
WINDOW_SECONDS = 10.0
"""Judged at a time: what the detector says of less is not as sure, and of more needs memory."""
SURE_SECONDS = 1.0
"""Marked speech of this length is always found. A shorter sound may be too short for the detector, which is told."""


class WatermarkWarning(UserWarning):
    """A sound was written that its watermark cannot be found in, because it is too short or silent."""


@dataclass(frozen=True)
class WatermarkReport:
    """What the detector says of a sound.

    Attributes:
        kind: "perth".
        present: whether the sound as a whole is marked: score >= PRESENT_SCORE.
        score: 0..1, mean over what sounds; None where there was nothing to judge.
        seconds: of sound that was judged; digital silence is left out.
        marked_seconds: of these, in windows of WINDOW_SECONDS that are marked by themselves.
        reason: the same in words.
    """

    kind: str
    present: bool
    score: float | None
    seconds: float
    marked_seconds: float
    reason: str

    def report(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def __str__(self) -> str:
        score = "no score" if self.score is None else f"score {self.score:.2f}"
        return f"{self.kind} {'present' if self.present else 'not found'}, {score}: {self.reason}"


# ---- which one -------------------------------------------------------------------------------------------------------

_in_use: str | None = None  # of this process, set by whoever makes the shared VC; None: what the settings say


def use_watermark(name: str | None) -> None:
    """Set what everything written by this process gets, where its options do not say; None: as the settings say.

    It is one for the process on purpose: so no way a sound can leave by needs to be told, and none can be forgotten.

    Raises ConfigError for an unknown name.
    """
    global _in_use
    if name is not None and name not in WATERMARKS:
        raise ConfigError(f"There is no watermark {name!r:.40}", f"Choose one of {', '.join(WATERMARKS)}.")
    _in_use = name


def watermark_in_use() -> str:
    """What is written where the options do not say: "none" or "perth". Raises ConfigError for damaged settings."""
    if _in_use is not None:
        return _in_use
    from rvc_spark.rvc_config import RVCConfig

    return RVCConfig().watermark


def require_watermark(name: str) -> None:
    """Raises MissingPackageError or WatermarkModelError when that watermark cannot be written here."""
    if name != "none":
        from rvc_spark.perth_weights import weights_path

        weights_path()


def load_watermark(name: str) -> None:
    """Read what that watermark needs now, not when the first sound comes. Raises as `require_watermark`."""
    if name != "none":
        _perth()


def _perth() -> Perth:
    from rvc_spark.perth_weights import load_perth

    return load_perth()


# ---- marking ---------------------------------------------------------------------------------------------------------


class Marker:
    """Adds the mark to a sound that arrives in blocks. The joined answers are as long as the sound.

    A sound of less than 64 ms stays as it is.
    """

    def __init__(self, rate: int, channels: int) -> None:
        """Raises MissingPackageError, WatermarkModelError."""
        from rvc_spark.perth_network import SAMPLE_RATE

        self._stream = _perth().stream()
        self._up, self._down = StreamResampler(rate, SAMPLE_RATE), StreamResampler(SAMPLE_RATE, rate)
        self._waiting: list[np.ndarray] = []  # [C, n] each, until their change arrives
        self._change = np.zeros(0, np.float32)
        self._empty = np.zeros((channels, 0), np.float32)

    def push(self, block: np.ndarray) -> np.ndarray:
        """Take float32 [C, n]; returns what is marked by now, [C, m], maybe empty."""
        if block.shape[1] == 0:
            return self._empty
        self._waiting.append(block)
        change = self._stream.push(self._up.push(mix_down(block)))
        self._change = np.concatenate([self._change, self._down.push(change)])
        return self._added(len(self._change))

    def finish(self) -> np.ndarray:
        """The rest."""
        change = [self._stream.push(self._up.finish()[0]), self._stream.finish()]
        rest = [self._down.push(np.concatenate(change)), self._down.finish()[0]]
        waiting = sum(block.shape[1] for block in self._waiting)
        # Rounding up and down again may end a frame early; there is nothing of the mark left by then.
        self._change = np.concatenate([self._change, *rest, np.zeros(waiting, np.float32)])
        return self._added(waiting)

    def _added(self, count: int) -> np.ndarray:
        ready = [self._empty]
        while self._waiting and count > 0:
            first = self._waiting.pop(0)
            if first.shape[1] > count:
                self._waiting.insert(0, first[:, count:])
                first = first[:, :count]
            ready.append(first + self._change[: first.shape[1]])
            self._change = self._change[first.shape[1] :]
            count -= first.shape[1]
        return np.concatenate(ready, axis=1)


def marked_whole(samples: np.ndarray, rate: int) -> np.ndarray:
    """float32 [C, T] → [C, T] with the mark. Raises MissingPackageError, WatermarkModelError."""
    marker = Marker(rate, samples.shape[0])
    return np.concatenate([marker.push(samples), marker.finish()], axis=1)


# ---- detecting -------------------------------------------------------------------------------------------------------


class Examiner:
    """Looks for the mark in a sound that arrives in blocks, in memory that does not grow."""

    def __init__(self, rate: int) -> None:
        """Raises MissingPackageError, WatermarkModelError."""
        from rvc_spark.perth_network import HOP, SAMPLE_RATE

        self._perth = _perth()
        self._rate, self._frame_seconds = SAMPLE_RATE, HOP / SAMPLE_RATE
        self._resampler = StreamResampler(rate, SAMPLE_RATE)
        self._held: list[np.ndarray] = []
        self._frames_held = 0
        self._frames = 0
        self._verdicts: list[tuple[float, int]] = []  # score, frames that sound

    def push(self, block: np.ndarray) -> None:
        """Take float32 [C, n]."""
        self._hold(self._resampler.push(mix_down(block)))
        window = round(WINDOW_SECONDS * self._rate)
        while self._frames_held >= 2 * window:  # so that the last one is never a short one
            joined = np.concatenate(self._held)
            self._judge(joined[:window])
            self._held, self._frames_held = [joined[window:]], len(joined) - window

    def finish(self) -> WatermarkReport:
        """The verdict on all of it."""
        self._hold(self._resampler.finish()[0])
        self._judge(np.concatenate([np.zeros(0, np.float32), *self._held]))
        return self._verdict()

    def _hold(self, samples: np.ndarray) -> None:
        self._held.append(samples)
        self._frames_held += len(samples)
        self._frames += len(samples)

    def _judge(self, samples: np.ndarray) -> None:
        verdict = self._perth.judge(samples)
        if verdict.frames:
            self._verdicts.append((verdict.score, verdict.frames))

    def _verdict(self) -> WatermarkReport:
        sounding = sum(frames for _, frames in self._verdicts)
        length = self._frames / self._rate
        if sounding == 0:
            from rvc_spark.perth_network import MIN_SAMPLES

            short = self._frames < MIN_SAMPLES
            limit = MIN_SAMPLES / self._rate
            why = f"it lasts {length:.3f} s, less than one frame of {limit:.3f} s" if short else "it is digital silence"
            return WatermarkReport("perth", False, None, 0.0, 0.0, f"nothing can be judged, {why}")
        score = sum(score * frames for score, frames in self._verdicts) / sounding
        marked = sum(frames for score, frames in self._verdicts if score >= PRESENT_SCORE)
        seconds, marked_seconds = sounding * self._frame_seconds, marked * self._frame_seconds
        return WatermarkReport(
            "perth", score >= PRESENT_SCORE, round(score, 4), round(seconds, 3), round(marked_seconds, 3),
            _words(score, seconds, marked_seconds),
        )  # fmt: skip


def _words(score: float, seconds: float, marked: float) -> str:
    if 0 < marked < seconds:
        return f"found in {marked:.1f} of {seconds:.1f} s; another part is not marked, or was cut in"
    if score >= PRESENT_SCORE:
        return f"found in all of {seconds:.1f} s"
    if seconds < SURE_SECONDS:
        return f"{seconds:.2f} s of sound is short, the detector is sure from {SURE_SECONDS:g} s on"
    if score > 0.5:
        return f"undecided, below the limit of {PRESENT_SCORE:g}: music scores this without a mark too"
    return f"below the limit of {PRESENT_SCORE:g}"


def examine(blocks: Iterator[np.ndarray], rate: int) -> WatermarkReport:
    """The verdict on blocks float32 [C, n]. Raises MissingPackageError, WatermarkModelError."""
    examiner = Examiner(rate)
    for block in blocks:
        examiner.push(block)
    return examiner.finish()


def approve(report: WatermarkReport) -> str:
    """Whether what was marked may be written: empty if the mark is found, else why it need not be.

    Raises WatermarkError when it is not found in a sound that should carry it.
    """
    if report.present:
        return ""
    if report.score is None or report.seconds < SURE_SECONDS:
        return report.reason
    raise WatermarkError(
        f"The watermark was added, but its detector does not find it: score {report.score:.2f} over "
        f"{report.seconds:.1f} s, {PRESENT_SCORE:g} is needed. It needs speech, singing or music below 2 kHz",
        "Write this sound without it: EncodeOptions(watermark='none'), or --watermark none.",
    )
