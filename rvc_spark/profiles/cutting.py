"""Where to cut: a long file into samples at its pauses, and the best few seconds of all samples as reference."""

from __future__ import annotations

from collections.abc import Sequence

from rvc_spark.profiles.quality_settings import QualitySettings
from rvc_spark.profiles.sample_report import Reference, SampleReport, Span, Stretch
from rvc_spark.profiles.speech_activity import seconds_of

REFERENCE_SECONDS = (6.0, 15.0)
"""What speech engines with cloning take: shorter shows too little, longer is cut or ignored."""
BEST_SECONDS = 10.0
EDGE = 0.15
"""Seconds of pause left at both ends of a cut."""
MAX_CUTS = 200


def propose_cuts(speech: Sequence[Span], duration: float, settings: QualitySettings) -> tuple[Stretch, ...]:
    """Parts between the shortest and the longest sample allowed, beginning and ending in pauses.

    From each beginning the cut goes as far as the limit, to the longest pause in its last half. Speech that does not
    pause for longer than the limit is cut at the limit.

    Args:
        speech: where somebody speaks, in seconds.
        duration: of the file.
    """
    longest, shortest = settings.max_sample_duration, settings.min_sample_duration
    cuts: list[Stretch] = []
    place, speech = 0.0, list(speech)
    while len(cuts) < MAX_CUTS:
        rest = [(max(start, place), end) for start, end in speech if end > place]
        if not rest:
            break
        start = max(place, rest[0][0] - EDGE)
        end = _end_of_cut(rest, start + longest, duration, start + longest / 2)
        spoken = seconds_of(rest, start, end)
        if end - start >= shortest and spoken >= settings.min_speech_seconds:
            cuts.append(Stretch(round(start, 3), round(end, 3), round(spoken, 3)))
        place = end
    return tuple(cuts)


def _end_of_cut(rest: Sequence[Span], limit: float, duration: float, earliest: float) -> float:
    """The middle, or the edge, of the longest pause between `earliest` and `limit`."""
    if rest[-1][1] <= limit - EDGE:
        return min(duration, rest[-1][1] + EDGE)
    found, longest = limit, 0.0
    for (_, pause), (resumed, _) in zip(rest, rest[1:], strict=False):
        if earliest <= pause and pause + min(EDGE, (resumed - pause) / 2) <= limit and resumed - pause >= longest:
            longest = resumed - pause
            found = pause + min(EDGE, longest / 2)
    if longest:
        return found
    earlier = [end for _, end in rest if end + EDGE / 2 < limit]
    return earlier[-1] + EDGE / 2 if earlier else limit


def best_stretch(samples: Sequence[SampleReport]) -> Reference | None:
    """The best 6 to 15 s of the samples that are not rejected: beginning and end in pauses, much speech, little noise.

    A sample shorter than 6 s can be the reference only where no stretch of 6 s exists.
    """
    best: tuple[float, Reference] | None = None
    for sample in samples:
        if sample.grade == "reject":
            continue
        for start, end in _candidates(sample):
            score, why = _score(sample, start, end)
            if best is None or score > best[0]:
                best = score, Reference(sample.index, round(start, 3), round(end, 3), why)
    return best[1] if best else None


def _candidates(sample: SampleReport) -> list[Span]:
    """Every span from the beginning of one stretch of speech to the end of another that has the right length."""
    shortest, longest = REFERENCE_SECONDS
    spans = []
    for first, (start, _) in enumerate(sample.speech):
        for _, end in sample.speech[first:]:
            begin, stop = max(0.0, start - EDGE), min(sample.duration, end + EDGE)
            if stop - begin > longest:
                break
            spans.append((begin, stop))
    fitting = [span for span in spans if span[1] - span[0] >= shortest]
    if fitting:
        return fitting
    if sample.duration <= longest:
        return [(0.0, sample.duration)]
    start = max(0.0, sample.speech[0][0] - EDGE) if sample.speech else 0.0  # speech without a pause: cut in it
    return [(start, min(sample.duration, start + BEST_SECONDS))]


def _score(sample: SampleReport, start: float, end: float) -> tuple[float, str]:
    """Higher is better; and the reason in words."""
    length = end - start
    share = seconds_of(sample.speech, start, end) / length
    noise = min(sample.snr_db if sample.snr_db is not None else 0.0, 40.0)
    likeness = sample.similarity if sample.similarity is not None else 0.85
    edges = [edge for edge in (start, end) if 0 < edge < sample.duration]
    inside = any(first < edge < last for edge in edges for first, last in sample.speech)
    score = 2 * share + noise / 25 + 2 * likeness - abs(length - BEST_SECONDS) / BEST_SECONDS
    score -= (1.0 if sample.grade == "warn" else 0.0) + (0.5 if inside else 0.0)
    score -= 3.0 if length < REFERENCE_SECONDS[0] else 0.0
    ends = "cut inside speech, as there is no pause" if inside else "begins and ends in pauses"
    short = "; no sample has 6 s" if length < REFERENCE_SECONDS[0] else ""
    return score, f"{length:.1f} s, {share:.0%} speech, {noise:.0f} dB over its noise, {ends}{short}"
