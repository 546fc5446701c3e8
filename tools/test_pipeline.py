"""One sentence through everything: text, speech, pitch, features, index, voice, file and back.

    python tools/test_pipeline.py            # the demo voice
    python tools/test_pipeline.py MyVoice    # any voice of `rvc-spark voices`

Prints what each engine was and why, checks what came out, and exits with 1 if a check fails. Needs no test framework,
so it also tells on a user's machine whether an installation works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from rvc_spark import RvcSparkError, load_model, read_audio, speak

SENTENCE = "One sentence goes through the whole chain, and comes out in another voice."


def checks(voice: str) -> list[tuple[str, bool, str]]:
    """Run the chain; (what, passed, detail) per check."""
    load_model(voice)
    with tempfile.TemporaryDirectory() as folder:
        speech = speak(SENTENCE, Path(folder) / "result.flac")
        written = read_audio(speech.path)
    conversion, source = speech.conversion, speech.source
    sound = speech.audio.samples
    expected = round(source.frames * conversion.rate / source.rate)
    level = 20 * np.log10(np.sqrt(np.mean(sound**2)) + 1e-9)
    same = written.samples.shape == sound.shape and float(np.abs(written.samples - sound).max()) < 1e-3
    again = speak(SENTENCE, seed=conversion.settings.seed).audio.samples
    return [
        ("engines", True, ", ".join(f"{name}={choice}" for name, choice in conversion.engines.items())),
        ("length", len(sound) == expected, f"{len(sound)} samples, expected {expected}"),
        ("level", -50 < level < -3, f"{level:.1f} dBFS"),
        ("finite", bool(np.isfinite(sound).all()), f"peak {np.abs(sound).max():.3f}"),
        ("file", same, f"{written!r}"),
        ("repeatable", bool(np.array_equal(sound, again)), "same seed, same samples"),
        ("speed", True, f"real-time factor {conversion.real_time_factor:.2f}"),
    ]


def main() -> int:
    """Print one line per check."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("voice", nargs="?", default="demo")
    try:
        results = checks(arguments.parse_args().voice)
    except RvcSparkError as error:
        print(f"FAILED  {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    for what, passed, detail in results:
        print(f"{'ok' if passed else 'FAILED':<7} {what:<11} {detail}")
    return 0 if all(passed for _, passed, _ in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
