"""Decoders: a seekable stream in, blocks of float32 samples out, in memory that does not depend on the length.

Two libraries read sound. libsndfile (`soundfile`) reads the lossless kinds and Ogg, where its frame count is exact;
libav (`av`) reads everything else, gapless data and priming samples honoured. Knows nothing of limits on what a sound
may be, of resampling or mixing, and never opens a file by name: libav would follow addresses and playlists.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import soundfile

from rvc_spark.audio_container import VORBIS_TO_WAV, Container
from rvc_spark.audio_source import Source
from rvc_spark.errors import AudioError

if TYPE_CHECKING:
    import av

READ_FRAMES = 65_536
"""Frames libsndfile decodes at a time."""
TRIM_FRAMES = 4_096
"""Frames a compressed stream may go on after its stated end: the encoder filled its last packets up."""
CUT_OFF_SECONDS = 0.5
"""Seconds a compressed stream may end before its stated end; some programs round the length or round it up."""
DAMAGED_SHARE = 0.01
"""Share of packets that may be undecodable before a file counts as damaged; broken tags and splices stay below."""

# Demuxers libav may use. Playlists (hls, concat, dash, sdp) would open other files and addresses, so they are not here.
LIBAV_FORMATS = (
    "mov,matroska,mp3,aac,ogg,wav,w64,aiff,au,caf,flac,avi,flv,mpegts,mpeg,asf,amr,ac3,eac3,ape,wv,tta,dts,mpc,mpc8"
)
LIBAV_PLANES = 8
"""Planes a libav frame has room for in itself (AV_NUM_DATA_POINTERS)."""
_UNKNOWN_FRAMES = 2**62  # libsndfile says about 2**63 when a header gives no count
_BIT_DEPTHS = {"FLOAT": 32, "DOUBLE": 64, "ULAW": 8, "ALAW": 8}  # by libsndfile's name; names of PCM tell theirs
_SAMPLE_SCALES = {"u8": (128.0, 2.0**7), "s16": (0.0, 2.0**15), "s32": (0.0, 2.0**31), "s64": (0.0, 2.0**63)}


class Decoder(Protocol):
    """What both decoders offer. `frames` is exact or None; `expected_frames` is what the file claims, for progress.

    `coding` is how the library calls the codec; `bit_depth` the bits of a stored sample, None where none are stored.
    """

    rate: int
    channels: int
    coding: str
    bit_depth: int | None
    frames: int | None
    expected_frames: int | None

    def chunks(self) -> Iterator[np.ndarray]:
        """float32 [C, n] of any n > 0, once, to the end. Raises AudioError where the file is damaged or cut off."""

    def close(self) -> None:
        """Release the library's handle (not the stream)."""


def open_decoder(source: Source, container: Container) -> Decoder:
    """The decoder for a file.

    Raises:
        AudioError: neither library can read it.
    """
    if not container.soundfile:
        return LibavDecoder(source)
    try:
        decoder = SoundFileDecoder(source)
    except soundfile.LibsndfileError as refusal:
        source.stream.seek(0)
        try:
            return LibavDecoder(source)  # a known container around a codec libsndfile does not have, e.g. ALAC in CAF
        except AudioError as error:
            raise AudioError(
                f"{source.name} is a damaged {container.kind} file or of an unknown codec ({_reason(refusal)})",
                "Convert it to 16-bit WAV or FLAC with the program that made it.",
            ) from error
    if decoder.frames is None:
        decoder.close()
        source.stream.seek(0)
        return LibavDecoder(source)
    return decoder


class _SeekableView:
    """A stream for libsndfile's callbacks. A damaged header makes it seek to places that do not exist; an exception
    there cannot reach Python and would only be printed. The library notices by itself that it is elsewhere.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._stream.seek(offset, whence)
        except (ValueError, OverflowError, OSError):  # before the start, or beyond what a file can be
            return self._stream.tell()

    def read(self, count: int = -1) -> bytes:
        return self._stream.read(count)

    def tell(self) -> int:
        return self._stream.tell()


class _ForwardFile(soundfile.SoundFile):
    """Read from start to end only. After every block soundfile seeks to where it already is, if the file can seek; that
    costs time everywhere and loses the place in compressed files."""

    def seekable(self) -> bool:
        return False


class SoundFileDecoder:
    """libsndfile: WAV, RF64, W64, AIFF, AU, CAF, FLAC, NIST, VOC, Ogg; any PCM width, float, mu-law, ADPCM, Vorbis."""

    def __init__(self, source: Source) -> None:
        """Raises soundfile.LibsndfileError when the library does not know the file."""
        self._name = source.name
        self._file = _ForwardFile(_SeekableView(source.stream))
        self.rate = self._file.samplerate
        self.channels = self._file.channels
        self.coding = self._file.subtype
        self.bit_depth = _BIT_DEPTHS.get(self.coding, _digits(self.coding, "PCM_"))
        uncounted = self._file.frames >= _UNKNOWN_FRAMES or self._file.subtype.startswith("MPEG")
        self.frames = None if uncounted else self._file.frames
        self.expected_frames = self.frames
        self._order = VORBIS_TO_WAV.get(self.channels) if self._file.subtype in ("VORBIS", "OPUS") else None

    def chunks(self) -> Iterator[np.ndarray]:
        """See `Decoder`."""
        done = 0
        buffer = np.empty((READ_FRAMES, self.channels), np.float32)
        while self.frames is not None and done < self.frames:
            try:
                count = self._file.buffer_read_into(buffer, "float32")
            except soundfile.LibsndfileError as error:
                raise _damaged(self._name, done / self.rate, _reason(error)) from error
            if count == 0:
                raise AudioError(
                    f"{self._name} is cut off: it holds {done} of the {self.frames} frames its header promises",
                    "Copy or download it again.",
                )
            done += count
            frames = buffer[:count] if self._order is None else buffer[:count, self._order]
            yield np.array(frames.T, order="C")  # always a copy: one channel, transposed, is still the buffer itself

    def close(self) -> None:
        """See `Decoder`."""
        self._file.close()


class LibavDecoder:
    """libav: MP3, AAC, Ogg, Opus, WMA, the sound of MP4, MKV, WebM, AVI and TS ...; takes the first audio stream."""

    def __init__(self, source: Source) -> None:
        """Raises AudioError when there is no decodable sound."""
        import av  # a large library that WAV and FLAC do not need

        self._name = source.name
        self._av = av
        # Tags in a wrong encoding must not keep a sound from being read; PyAV 19 is always lenient and lost the option.
        lenient = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
        limits = {"format_whitelist": LIBAV_FORMATS, "protocol_whitelist": "none"}
        try:
            self._container = av.open(source.stream, "r", options=limits, **lenient)
        except (av.FFmpegError, ValueError) as error:
            raise _unknown(self._name, _av_reason(error)) from error
        try:
            self._start()
        except BaseException:
            self._container.close()
            raise

    def _start(self) -> None:
        """Decode up to the first frame: containers err about rate and channels (HE-AAC), frames do not."""
        if not self._container.streams.audio:
            raise AudioError(f"{self._name} has no audio track", "Give a file with sound in it.")
        self._stream = self._container.streams.audio[0]
        if self._stream.codec_context is None:  # PyAV before 18 crashes when such a stream is decoded
            raise _unknown(self._name, "its codec is not known")
        self._seconds = 0.0
        self._packets = self._damaged = 0
        self._frames = self._decoded()
        self._first = next(self._frames, None)
        if self._first is None:
            raise AudioError(f"{self._name} holds no samples that can be decoded", "Export or download it again.")
        self.rate = self._first.rate
        self.channels = self._first.layout.nb_channels
        self.coding = self._stream.codec_context.name
        self.bit_depth = _digits(self.coding, "pcm_")
        self.frames = None
        self.expected_frames = self._stated_frames()

    def _stated_frames(self) -> int | None:
        stream, container = self._stream, self._container
        if stream.duration and stream.time_base:
            return max(0, round(stream.duration * stream.time_base * self.rate))
        return max(0, round(container.duration * self.rate / 1_000_000)) if container.duration else None

    def _exact_end(self) -> int | None:
        """Frames after which only filling comes, where the file tells: edit lists of MP4, the LAME header of MP3."""
        told = self._container.format.name.startswith("mov") or (
            self._container.format.name == "mp3" and (self._stream.start_time or 0) > 0
        )
        return self.expected_frames if told and self._stream.duration else None

    def _decoded(self) -> Iterator[av.AudioFrame]:
        for packet in self._packets_read():
            self._packets += packet.size > 0
            try:
                frames = packet.decode()
            except self._av.error.EOFError:
                return
            except self._av.FFmpegError as error:
                self._count_damage(_av_reason(error))
                continue
            except ValueError as error:  # what PyAV 19 says of a codec that is unknown or could not be opened
                raise _unknown(self._name, str(error)) from error
            for frame in frames:
                if frame.samples > 0:
                    self._seconds += frame.samples / max(frame.rate, 1)
                    yield frame

    def _packets_read(self) -> Iterator[av.Packet]:
        try:
            yield from self._container.demux(self._stream)
        except self._av.FFmpegError as error:
            raise _damaged(self._name, self._seconds, _av_reason(error)) from error

    def _count_damage(self, reason: str) -> None:
        self._damaged += 1
        if self._damaged > max(3, DAMAGED_SHARE * self._packets):
            raise _damaged(self._name, self._seconds, reason)

    def chunks(self) -> Iterator[np.ndarray]:
        """See `Decoder`."""
        end = self._exact_end()
        done = 0
        for chunk in self._converted():
            if end is not None and end < done + chunk.shape[1] <= end + TRIM_FRAMES:
                chunk = chunk[:, : max(0, end - done)]
                done = max(done, end)
            else:
                done += chunk.shape[1]
            if chunk.shape[1]:
                yield chunk
        if end is not None and done < end - CUT_OFF_SECONDS * self.rate:
            raise AudioError(
                f"{self._name} is cut off or damaged: {done / self.rate:.2f} of {end / self.rate:.2f} s are there",
                "Copy or download it again.",
            )

    def _converted(self) -> Iterator[np.ndarray]:
        try:
            yield from self._samples()
        except (self._av.FFmpegError, ValueError) as error:  # a layout or sample type no converter knows
            raise _damaged(self._name, self._seconds, _av_reason(error)) from error

    def _samples(self) -> Iterator[np.ndarray]:
        """Every frame in the rate and layout of the first; broadcasts and joined files change theirs midway."""
        setup = converter = None
        for frame in chain([self._first], self._frames):
            if (frame.rate, frame.layout.name, frame.format.name) != setup:
                if converter is not None:
                    yield from map(_as_float32, converter.resample(None))
                setup = (frame.rate, frame.layout.name, frame.format.name)
                converter = None if self._fits(frame) else self._converter()
            if converter is None:
                yield _as_float32(frame)
            else:
                frame.pts = None  # timestamps across a splice would make the resampler insert or drop samples
                yield from map(_as_float32, converter.resample(frame))
        if converter is not None:
            yield from map(_as_float32, converter.resample(None))

    def _fits(self, frame: av.AudioFrame) -> bool:
        """Whether samples can be taken as they are; PyAV reads beyond its table of planes, and crashes, at 8 planes."""
        same = (frame.rate, frame.layout.name) == (self._first.rate, self._first.layout.name)
        return same and not (frame.format.is_planar and frame.layout.nb_channels >= LIBAV_PLANES)

    def _converter(self) -> av.AudioResampler:
        return self._av.AudioResampler("flt", self._first.layout, self._first.rate)

    def close(self) -> None:
        """See `Decoder`."""
        self._container.close()


def _as_float32(frame: av.AudioFrame) -> np.ndarray:
    """Samples of a frame as float32 [C, n], integers divided by their full scale."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    kind = frame.format.packed.name
    if kind in _SAMPLE_SCALES:
        offset, divisor = _SAMPLE_SCALES[kind]
        samples = (samples - offset) / divisor
    return np.ascontiguousarray(samples, np.float32)


def _digits(coding: str, family: str) -> int | None:
    """Bits in the name of a PCM codec: PCM_S8, PCM_16, pcm_s24le, pcm_f32le."""
    found = re.match(rf"{family}[a-zA-Z]*(\d+)", coding)
    return int(found.group(1)) if found else None


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.rstrip(". ") or "no reason given"


def _av_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _damaged(name: str, seconds: float, reason: str) -> AudioError:
    return AudioError(
        f"{name} is damaged or cut off after {seconds:.2f} s ({reason})",
        "Copy or download it again; to rescue what is there, open and save it in an audio editor.",
    )


def _unknown(name: str, reason: str) -> AudioError:
    return AudioError(
        f"{name} is no sound this library can read ({reason[:120]})",
        "Give wav, flac, ogg, mp3, m4a, aac or a video with sound; convert anything else first.",
    )
