"""The limits of every sound that enters or leaves, each with its unit and its reason.

Knows numbers only: no file, no codec, no array.
"""

from __future__ import annotations

from rvc_spark.errors import AudioError

MIN_RATE = 8_000
"""Hz. Below this the telephone band is gone and no pitch tracker or content encoder has anything to work on."""
MAX_RATE = 192_000
"""Hz. The highest rate studio hardware records at."""
MAX_CHANNELS = 8
"""7.1 surround; more than that is a multitrack session, to be mixed down by somebody who knows it."""
MAX_SECONDS = 12 * 3600.0
"""Seconds. Longer than any audio book in one file; a longer claim is a damaged header or an attack."""
MAX_AMPLITUDE = 65_536.0
"""Full scale is 1.0. Float files written at 16-bit scale reach 32768; beyond twice that the numbers are not sound."""
MAX_VALUES_IN_MEMORY = 2**30
"""float32 values (4 GiB) one whole sound may take in memory: 6 hours at 48 kHz mono. Read longer ones in blocks."""
MAX_FRAMES_PER_BYTE = 1_024
"""Frames one byte of a file may unpack to. Pure silence reaches 300 (FLAC) to 500 (Opus); bombs reach thousands."""
EXPANSION_GRACE_SECONDS = 60.0
"""Seconds of sound that may be unpacked before MAX_FRAMES_PER_BYTE is asked."""
MAX_STREAM_BYTES = 4 * 2**30
"""Bytes read from a pipe before giving up; a pipe has no size to check beforehand."""

_FILE_PAGE = "Convert it to a WAV or FLAC file"


def check_rate(rate: float, what: str = "audio") -> int:
    """The sampling rate in Hz as an int.

    Raises:
        AudioError: not a whole number, or outside `MIN_RATE`..`MAX_RATE`.
    """
    try:
        whole = int(rate)
    except (TypeError, ValueError, OverflowError):  # no number, NaN, infinity
        whole = None
    if whole is None or isinstance(rate, bool) or whole != rate:
        raise AudioError(f"The sampling rate of {what} is {rate!r}, not a whole number of Hz", "Give it as an integer.")
    if not MIN_RATE <= whole <= MAX_RATE:
        raise AudioError(
            f"The sampling rate of {what} is {whole} Hz; the limits are {MIN_RATE} to {MAX_RATE} Hz",
            f"{_FILE_PAGE} at 44100 or 48000 Hz.",
        )
    return whole


def check_channels(channels: int, what: str = "audio") -> int:
    """The channel count.

    Raises:
        AudioError: outside 1..`MAX_CHANNELS`.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{what} has {channels} channels; the limits are 1 to {MAX_CHANNELS}",
            "Mix it down to stereo or mono first (an array is channels first: [C, T]).",
        )
    return channels


def check_seconds(frames: int, rate: int, what: str = "audio") -> None:
    """Refuse a sound longer than `MAX_SECONDS`.

    Raises:
        AudioError: too long.
    """
    if frames > MAX_SECONDS * rate:
        raise AudioError(
            f"{what} is {frames / rate / 3600:.4g} hours long; the limit is {MAX_SECONDS / 3600:.0f} hours",
            "Cut it into shorter files; if it is in truth short, its header is damaged: save it again.",
        )
