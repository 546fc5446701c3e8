"""Every error this package raises on purpose, in one tree.

A message has two halves: what is wrong (naming the value and the limit) and what to do next. Both are required, so no
caller can raise an error that leaves its reader stranded. `exit_code` is what the command line returns for the leaf.
"""

from __future__ import annotations


class RvcSparkError(Exception):
    """Anything this package refuses or fails to do. Catch this to keep a session alive.

    Args:
        problem: what is wrong, with the offending value and the limit it broke.
        next_step: the one thing the reader should try now.
    """

    exit_code = 1

    def __init__(self, problem: str, next_step: str) -> None:
        super().__init__(f"{problem} {next_step}" if problem.endswith((".", "!", "?")) else f"{problem}. {next_step}")
        self.problem = problem
        self.next_step = next_step

    def __reduce__(self):  # the default would replay the joined message as one argument and fail across processes
        return type(self), (self.problem, self.next_step)


class ConfigError(RvcSparkError):
    """A setting, an environment variable or a settings file has a value that cannot be used."""

    exit_code = 2


class AudioError(RvcSparkError):
    """A sound cannot be decoded, or is empty, too short, too long, not finite or of an impossible rate."""

    exit_code = 3


class TextError(RvcSparkError):
    """A text is empty, too long or holds nothing that can be spoken."""

    exit_code = 4


class ModelFileError(RvcSparkError):
    """A file with weights is not what it should be: wrong kind, damaged, wrong shapes, not finite or hostile."""

    exit_code = 5


class VoiceFileError(ModelFileError):
    """A voice checkpoint (.pth) is refused; also when the chosen speaker does not exist in it."""


class EncoderFileError(ModelFileError):
    """A content encoder, as a folder or as a fairseq file, is refused."""


class PitchModelError(ModelFileError):
    """The weights of a pitch tracker are refused."""


class SeparatorFileError(ModelFileError):
    """The weights of a source separation network are refused."""


class IndexFileError(ModelFileError):
    """A retrieval index is refused, does not fit the voice, or the choice between several is ambiguous."""


class WatermarkModelError(ModelFileError):
    """The weights of a watermark are refused, or do not mark what they should."""


class VoiceNotFoundError(RvcSparkError):
    """No voice of that name is in the voices folder."""

    exit_code = 6


class PitchError(RvcSparkError):
    """An f0 curve cannot be read, or a pitch method cannot work on this input."""

    exit_code = 7


class MissingPackageError(RvcSparkError):
    """An optional package is needed for what was asked and is not installed."""

    exit_code = 8


class AssetError(RvcSparkError):
    """A downloadable file is unknown, missing, or cannot be fetched."""

    exit_code = 9


class OfflineError(AssetError):
    """A download is needed while offline mode is on."""


class DownloadError(AssetError):
    """No source of a file answered usefully: connection broken, stalled, refused, or not the file."""


class ChecksumError(AssetError):
    """A file came whole but is not the file the catalogue names."""


class DiskSpaceError(AssetError):
    """The disk has less free space than the work needs."""


class ArchiveError(AssetError):
    """An archive is damaged, too large when unpacked, or tries to write outside its folder."""


class SpeechError(RvcSparkError):
    """A text-to-speech engine cannot start or failed on this text or reference voice."""

    exit_code = 10


class NothingSpokenError(SpeechError):
    """The language model ended without one semantic token, or ran away, in every attempt."""


class VoiceTokensError(SpeechError):
    """A file with an enrolled Spark-TTS voice is refused, or its tokens do not fit the codec."""


class TritonError(SpeechError):
    """Anything between this process and a Triton server."""


class TritonUnreachableError(TritonError):
    """No server answers at the address, or the connection broke; sound delivered before stays valid."""


class TritonModelError(TritonError):
    """A model is missing, not ready, has another signature, or failed inside."""


class TritonRequestError(TritonError):
    """The server refuses this request and would refuse it again."""


class TritonTimeoutError(TritonError):
    """The deadline of a request passed."""


class StreamError(RvcSparkError):
    """A stream that is being made or played cannot go on: closed, cancelled, out of order, or asked for twice."""

    exit_code = 13


class WorkerError(StreamError):
    """A worker died at the same sentence too often, or the workers are stopped."""


class OutputError(RvcSparkError):
    """A result cannot be written where it was asked for."""

    exit_code = 11


class WatermarkError(OutputError):
    """A watermark was asked for, and its detector does not find it in what would be written."""


class TritonBootError(RvcSparkError):
    """A Triton server cannot be started: no platform for it, a port in use, a model that does not load."""

    exit_code = 12


class QualityError(RvcSparkError):
    """Recordings are refused as samples of a voice; the message names the worst of what was found."""

    exit_code = 14


class ProfileError(RvcSparkError):
    """A voice profile is damaged, cannot be written, or holds something that no profile holds."""

    exit_code = 15


class ProfileNotFoundError(ProfileError):
    """No profile has that name or id."""


class ProfileExistsError(ProfileError):
    """Another profile has that name or id, or had it and was deleted."""


class ConsentError(ProfileError):
    """A voice may not be enrolled: nobody's consent is told, it is incomplete, or it is another person's."""

    exit_code = 16


class BenchmarkError(RvcSparkError):
    """A measurement cannot be made: a process died, a checkout is not the reference, two reports do not compare."""

    exit_code = 17


class ExportError(RvcSparkError):
    """A network cannot be written in another format, or the written one does not give the same numbers."""

    exit_code = 18
