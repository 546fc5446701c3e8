"""espeak-ng's shared library from its wheel, called in process: one text in, samples out.

The library keeps its state in globals, among them where its pitch flutter stands, so the same text never sounds quite
the same twice in a process. Here it is loaded afresh for each text (5 ms) and unloaded again: same text, same samples,
whatever was said before, in whichever thread. A lock admits one at a time. The price: a text that mixes alphabets
makes the library load a second dictionary which it never frees, 0.2 MB each time.

This module does not know voices by name and does not judge texts.
"""

from __future__ import annotations

import _ctypes  # the one way to unload a library; ctypes itself has none
import atexit
import ctypes
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvc_spark.errors import MissingPackageError, SpeechError

MAX_DATA_PATH = 120
"""Bytes. The library keeps its data path in 160 bytes and appends file names; beyond, it cuts silently."""

_RETRIEVAL = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples come to the callback within the call
_DO_NOT_EXIT = 0x8000  # without it, missing data would end the whole process
_BUFFER_MS = 200
_CHARS_UTF8 = 1  # and neither 0x10 (SSML) nor 0x100 (phonemes in [[ ]]): a text is only text
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SEED = 1

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_unload: Callable[[int], None] = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # Windows has the latter


@dataclass(frozen=True)
class Utterance:
    """One call: voice as the library names it, words per minute, pitch, range and volume in its own units."""

    text: str
    voice: str
    speed: int
    pitch: int
    pitch_range: int
    volume: int


_turn = threading.Lock()
"""Whoever holds it may use the library; in all other moments it is not loaded."""

if hasattr(os, "register_at_fork"):
    # A fork waits for the text being spoken: a child made while another thread loads or unloads a library could never
    # load one again, for the loader's own lock would stay taken.
    os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


class EspeakLibrary:
    """The shared library and its data folder. Any number may exist; all share the one lock."""

    def __init__(self, library: Path, data: Path) -> None:
        self.library = library
        self.data = data
        self._short_data: Path | None = None

    def render(self, utterance: Utterance) -> tuple[np.ndarray, int]:
        """The spoken text, float32 [T] in [-1, 1), and its rate in Hz. T may be 0.

        Raises SpeechError when the library cannot be loaded, lacks the voice, or fails on the text. KeyboardInterrupt
        is raised at once; the library then stops at its next 0.2 s of sound.
        """
        # In a thread of its own: an interrupt that Python raises inside a callback from C is printed and lost, but
        # only the main thread is ever interrupted.
        given_up = threading.Event()
        pool = ThreadPoolExecutor(1, "espeak")
        try:
            return pool.submit(self._in_turn, utterance, given_up).result()
        finally:
            given_up.set()
            pool.shutdown(wait=False)

    def _in_turn(self, utterance: Utterance, given_up: threading.Event) -> tuple[np.ndarray, int]:
        with _turn:
            data = self._data_path()
            library = self._load()
            try:
                return self._run(library, data, utterance, given_up)
            finally:
                library.espeak_Terminate()
                _unload(library._handle)

    def _load(self) -> ctypes.CDLL:
        try:
            library = ctypes.CDLL(str(self.library))
            library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
            library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
            library.espeak_Synth.argtypes = [
                ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
                ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p,
            ]  # fmt: skip
            library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        except (OSError, AttributeError) as error:
            raise SpeechError(
                f"espeak-ng cannot be loaded from {self.library} ({error})",
                "Reinstall: pip install --force-reinstall espeakng-loader",
            ) from error
        return library

    def _run(
        self, library: ctypes.CDLL, data: bytes, utterance: Utterance, given_up: threading.Event
    ) -> tuple[np.ndarray, int]:
        rate = library.espeak_Initialize(_RETRIEVAL, _BUFFER_MS, data, _DO_NOT_EXIT)
        if rate <= 0:
            raise SpeechError(
                f"espeak-ng does not start with its data in {self.data} (code {rate})",
                "Reinstall: pip install --force-reinstall espeakng-loader",
            )
        if library.espeak_SetVoiceByName(utterance.voice.encode()) != 0:
            raise SpeechError(f"espeak-ng does not take the voice {utterance.voice}", "Choose another voice.")
        library.espeak_ng_SetRandSeed(_SEED)
        for parameter, value in (
            (_RATE, utterance.speed), (_VOLUME, utterance.volume), (_PITCH, utterance.pitch),
            (_RANGE, utterance.pitch_range),
        ):  # fmt: skip
            library.espeak_SetParameter(parameter, value, 0)
        samples = bytearray()

        def take(wave: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
            if count > 0 and wave:
                samples.extend(ctypes.string_at(wave, 2 * count))
            return 1 if given_up.is_set() else 0  # 1 ends the synthesis

        callback = _Callback(take)
        library.espeak_SetSynthCallback(callback)
        text = utterance.text.encode("utf-8")
        status = library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
        if status != 0:
            raise SpeechError(f"espeak-ng failed on this text (code {status})", "Try a shorter or simpler text.")
        spoken = np.frombuffer(samples, "<i2").astype(np.float32)
        spoken /= np.float32(32768)
        return spoken, rate

    def _data_path(self) -> bytes:
        """A path to the data that fits the library's buffer: its own, or a short link that lasts as long as we do."""
        path = self._short_data if self._short_data and self._short_data.exists() else self.data
        if len(os.fsencode(path)) <= MAX_DATA_PATH:
            return os.fsencode(path)
        try:
            folder = Path(tempfile.mkdtemp(prefix="espeak_"))
            link = folder / "espeak-ng-data"
            link.symlink_to(self.data, target_is_directory=True)
        except OSError as error:
            raise self._too_long(f"and a link to it cannot be made ({error})") from error
        atexit.register(_remove_link, link, os.getpid())
        if len(os.fsencode(link)) > MAX_DATA_PATH:
            raise self._too_long("and so is the temporary folder's")
        self._short_data = link
        return os.fsencode(link)

    def _too_long(self, also: str) -> SpeechError:
        return SpeechError(
            f"the path of espeak-ng's data has {len(os.fsencode(self.data))} bytes ({self.data}), more than the "
            f"{MAX_DATA_PATH} it can work with, {also}",
            "Install the package into a folder with a shorter path.",
        )


def _remove_link(link: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child ends before its parent does
        link.unlink(missing_ok=True)
        if link.parent.is_dir():
            link.parent.rmdir()


def installed_library() -> EspeakLibrary:
    """The library of the installed wheel. Raises MissingPackageError without it."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise MissingPackageError("the embedded engine needs espeak-ng", "pip install espeakng-loader") from error
    return EspeakLibrary(Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path()))
